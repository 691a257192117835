"""Stage 2: a time-aware LSTM over a subject's visits gives a log-hazard and survival curves.

    python tlstm.py                                      the features of the last run
    python tlstm.py --FEATURES table.csv --FOLDS 5 --REPEATS 3 --LANDMARKS 0,3,5 --WINDOWS 7,5,3

All PyTorch is here. Shapes: S seeds side by side, M visits without padding (sequences.Visits),
R landmark rows, P inputs, H hidden. Direction: a higher log-hazard means an earlier event.
"""

import copy
import dataclasses
import logging
import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import metrics
import predictions
import tables
from config import Config, read_config
from files import InputError, read_json, write_json, written_whole
from linear import RiskSets, ridge_cox, risk_sets
from sequences import IMAGE_FEATURE, Inputs, Landmarks, Scale, Visits, landmarks, usable_columns, years_since_last

FORMAT = 1  # of model.json
SLOPE_PENALTY = 1e-6  # keeps the recalibration finite where the validation part is separable
SAFE_SPREAD = 600.0  # float64 holds exp of so wide a range; wider ones are summed in log space

logger = logging.getLogger(__name__)


# ---- The loss ------------------------------------------------------------------------------------
def cox_loss(log_hazard: torch.Tensor, sets: RiskSets) -> torch.Tensor:
    """Mean negative Cox partial log-likelihood per event, stratified, ties as `sets` treats them.

    Args:
        log_hazard: (R,) float; higher = earlier event; in the order of the rows that `sets` was made of.
        sets: `linear.risk_sets(time, event, stratum, ties)`, made once for many losses.
    Returns:
        Scalar in the precision of `log_hazard`; 0, still attached to the graph, without an event.
    Source: Cox (1972); Efron (1977). Checked against lifelines and torchsurv.
    """
    return _Cox.apply(log_hazard, sets)


class _Cox(torch.autograd.Function):
    """The loss and its gradient in closed form, in float64 and log space: O(R) memory."""

    @staticmethod
    def forward(ctx, log_hazard, sets):
        def tensor(array):
            return torch.as_tensor(array, device=log_hazard.device)

        if len(sets.event) == 0:
            ctx.save_for_backward(torch.zeros_like(log_hazard))
            return log_hazard.sum() * 0
        order, event, last, tie = tensor(sets.order), tensor(sets.event), tensor(sets.last), tensor(sets.tie)
        x = log_hazard.double()[order]  # (R,)
        at_risk = _log_running_sum(x, sets.bounds)[last]  # (E,)
        fraction = tensor(sets.fraction)
        relative = (x[event] - at_risk).exp()  # (E,) <= 1
        tied = x.new_zeros(sets.num_ties).index_add_(0, tie, relative)[tie]
        term = at_risk + torch.log1p(-fraction * tied)
        loss = (term - x[event]).mean()
        # A row's gradient: exp(x) summed over the events at which it is at risk, less Efron's share.
        summed = _log_running_sum(-term.flip(0), len(term) - sets.event_bounds[::-1]).flip(0)
        end = np.repeat(sets.event_bounds[1:], np.diff(sets.bounds))
        ever = tensor(sets.next_event < end)
        gradient = (x + summed[tensor(np.minimum(sets.next_event, len(term) - 1))]).exp().where(ever, x.new_zeros(()))
        share = x.new_zeros(sets.num_ties).index_add_(0, tie, fraction / (1 - fraction * tied))[tie]
        gradient[event] -= relative * share + 1
        gradient /= len(term)
        ctx.save_for_backward(torch.empty_like(gradient).index_copy_(0, order, gradient).to(log_hazard.dtype))
        return loss.to(log_hazard.dtype)

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None


def _log_running_sum(x: torch.Tensor, bounds: np.ndarray) -> torch.Tensor:
    """Log of the running sum of exp(x), (R,) float64, begun anew at each of `bounds`."""
    parts = []
    for part in x.tensor_split(torch.as_tensor(bounds[1:-1])):
        if len(part) == 0:
            continue
        low, high = part.aminmax()
        fast = bool(high - low < SAFE_SPREAD)
        parts.append((part - high).exp().cumsum(0).log() + high if fast else part.logcumsumexp(0))
    return torch.cat(parts)


# ---- The network ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Settings:
    """How stage 2 is built and trained; see config.py."""

    hidden: int = 16
    num_seeds: int = 5
    pool: str = "attention"
    link: bool = True
    time_aware: bool = True  # False: a plain LSTM
    dropout: float = 0.3
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    epochs: int = 200
    patience: int = 20
    penalties: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    components: tuple[int, ...] = (0, 4, 8, 16)
    recalibrate: bool = False
    ties: Any = "efron"
    seed: int = 0


class TLSTM(nn.Module):
    """S time-aware LSTMs with additive attention, from different seeds, in one computation.

    Source: Baytas et al. (2017), KDD, eq. 1-9; attention: Yang et al. (2016), NAACL, eq. 5-7.
    Checked against a naive per-step reference.
    """

    def __init__(self, num_inputs: int, settings: Settings):
        super().__init__()
        seeds, hidden = settings.num_seeds, settings.hidden
        self.pool, self.time_aware = settings.pool, settings.time_aware
        self.dropout = nn.Dropout(settings.dropout)
        draws = [torch.Generator().manual_seed(settings.seed * 1000 + seed) for seed in range(seeds)]

        def drawn(*shape: int) -> nn.Parameter:  # as in torch.nn.LSTM
            bound = 1 / math.sqrt(hidden)
            return nn.Parameter(torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=g) for g in draws]))

        self.input = drawn(num_inputs, 4 * hidden)  # gates: input, forget, output, candidate
        self.recurrent = drawn(hidden, 4 * hidden)
        self.bias = drawn(1, 4 * hidden)
        self.short = drawn(hidden, hidden)  # W_d
        self.short_bias = drawn(1, hidden)  # b_d
        self.attend = drawn(hidden, hidden)
        self.attend_bias = drawn(1, hidden)
        self.context = drawn(hidden, 1)
        self.head = drawn(hidden, 1)
        if settings.link:  # the correction starts at 0
            nn.init.zeros_(self.head)

    def forward(self, inputs: torch.Tensor, years: torch.Tensor, sizes: Sequence[int], rows: torch.Tensor):
        """Log-hazards at the landmark rows.

        Args:
            inputs: (M, P) in the order of sequences.Visits.
            years: (M,) since the visit before; 0 at the first.
            sizes: (V,) subjects with a visit k.
            rows: (R,) where the last visit of each landmark row stands.
        Returns:
            (S, R) log-hazards; (S, M) attention scores, whose softmax over a history are its weights.
        """
        states = self.states(inputs, years, sizes)  # (S, M, H)
        attended = torch.tanh(torch.baddbmm(self.attend_bias, states, self.attend))
        scores = torch.bmm(attended, self.context).squeeze(-1)  # (S, M)
        pooled = states if self.pool == "last" else running_attention(states, scores, sizes)
        return torch.bmm(self.dropout(pooled[:, rows]), self.head).squeeze(-1), scores

    def states(self, inputs: torch.Tensor, years: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """(S, M, H): the state after each visit, which has seen that visit and the earlier ones."""
        seeds, hidden = self.short.shape[:2]
        projected = torch.matmul(inputs, self.input) + self.bias  # (S, M, 4H), all visits at once
        # C* = (C - C_s) + g(dt) C_s = C + (g(dt) - 1) C_s
        decay = (1 / torch.log(math.e + years) - 1)[:, None]  # (M, 1)
        cell = state = inputs.new_zeros(seeds, sizes[0], hidden)
        every = []
        for size, gates, fade in zip(sizes, projected.split(sizes, 1), decay.split(sizes), strict=True):
            cell, state = cell[:, :size], state[:, :size]  # those who have this visit
            if self.time_aware:
                cell = cell + fade * torch.tanh(torch.baddbmm(self.short_bias, cell, self.short))
            gates = torch.baddbmm(gates, state, self.recurrent)
            enter, keep, show = gates[..., : 3 * hidden].sigmoid().chunk(3, dim=-1)
            cell = keep * cell + enter * torch.tanh(gates[..., 3 * hidden :])
            state = show * torch.tanh(cell)
            every.append(state)
        return torch.cat(every, dim=1)


def running_attention(states: torch.Tensor, scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Attention pooled over the visits up to each visit, whatever comes later.

    context_k = context_(k-1) + a_k (h_k - context_(k-1)), a_k = exp(score_k - log sum_(j<=k) exp(score_j)) <= 1.

    Args:
        states: (S, M, H).
        scores: (S, M).
        sizes: (V,).
    Returns:
        (S, M, H); equals the masked softmax over each prefix, and can't overflow.
    """
    total = torch.full_like(scores[:, : sizes[0]], -math.inf)
    context = torch.zeros_like(states[:, : sizes[0]])
    every = []
    for size, state, score in zip(sizes, states.split(sizes, 1), scores.split(sizes, 1), strict=True):
        total = score if not every else torch.logaddexp(total[:, :size], score)
        context = torch.lerp(context[:, :size], state, (score - total).exp()[..., None])
        every.append(context)
    return torch.cat(every, dim=1)


# ---- Data as tensors -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Histories:
    """A table, prepared, arranged and cut at its landmarks."""

    visits: Visits
    landmarks: Landmarks
    linear: np.ndarray  # (R, P) float64: the inputs at each landmark row, for the link
    inputs: torch.Tensor  # (M, P)
    years: torch.Tensor  # (M,)
    rows: torch.Tensor  # (R,)

    @classmethod
    def of(cls, table: pd.DataFrame, prepare: Inputs, grid: Sequence[float]) -> "Histories":
        """From visits in memory's columns, sorted by subject and visit."""
        visits = Visits.of(table)
        cut = landmarks(table, visits, grid)
        prepared = prepare(table)[visits.order]  # (M, P)
        rows = visits.row(cut.subject, cut.visit)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            visits,
            cut,
            prepared[rows],
            torch.tensor(prepared, dtype=torch.float32, device=device),
            torch.tensor(years_since_last(table)[visits.order], dtype=torch.float32, device=device),
            torch.tensor(rows, device=device),
        )

    @property
    def sizes(self) -> list[int]:
        """(V,) subjects with a visit k."""
        return self.visits.sizes.tolist()


# ---- Training ------------------------------------------------------------------------------------
def fit(
    table: pd.DataFrame,
    validation: np.ndarray,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: Settings,
    progress: bool = False,
) -> tuple["Predictor", pd.DataFrame]:
    """Fit the link, then the T-LSTMs that correct it, then the baseline hazards.

    Args:
        table: visits of training and validation subjects, sorted by subject and visit.
        validation: (S, N) bool: which subjects, in sorted order, each seed is validated on.
        columns: features.
        grid: landmarks, years from baseline; empty: each subject's last visit.
        settings: of the model and its training.
        progress: show a bar on stderr.
    Returns:
        The predictor, and the history: a row an epoch.
    Raises:
        InputError: no event among those who are trained or validated on.
    """
    subjects = np.unique(table["subject"].to_numpy(str))
    trained = table[table["subject"].isin(subjects[~validation.all(axis=0)])].reset_index(drop=True)
    candidates = []
    for number in settings.components if any(map(IMAGE_FEATURE.fullmatch, columns)) else (0,):
        prepare = Inputs.fit(trained, columns, num_components=number)
        data = Histories.of(table, prepare, grid)
        splits = _Splits.of(data.landmarks, validation, settings.ties)
        candidates += [(*_link(data, splits, penalty), prepare, data) for penalty in settings.penalties]
    loss, link, prepare, data = min(candidates, key=lambda candidate: candidate[0])
    logger.info("link: %d inputs, validation loss %.4f", link.shape[1], loss)
    if not settings.link:
        link = np.zeros_like(link)
    network = TLSTM(data.inputs.shape[1], settings).to(data.inputs.device)
    epochs = settings.epochs if data.visits.count.max() > 1 else 0
    if epochs == 0:
        logger.warning("nobody has two visits: there is no history to learn from, so the model is a Cox model")
    history = _train(network, data, link, splits, settings, epochs, progress)
    predictor = Predictor(settings, tuple(grid), prepare, link, network)
    return predictor.calibrated(table, validation, settings.recalibrate), history


@dataclasses.dataclass(frozen=True)
class _Splits:
    """Rows and risk sets of the training and validation part of each seed."""

    train: list[np.ndarray]  # of each seed: rows
    train_sets: list[RiskSets]
    val: list[np.ndarray]
    val_sets: list[RiskSets]

    @classmethod
    def of(cls, rows: Landmarks, validation: np.ndarray, ties: Any) -> "_Splits":
        held = validation[:, rows.subject]  # (S, R)
        train, val = [np.flatnonzero(~row) for row in held], [np.flatnonzero(row) for row in held]
        for part, name in ((train, "training"), (val, "validation")):
            if not all(rows.event[chosen].any() for chosen in part):
                raise InputError(f"no event among the {name} subjects: nothing to learn from. Give them more subjects.")
        return cls(
            train, [_sets(rows[chosen], ties) for chosen in train], val, [_sets(rows[chosen], ties) for chosen in val]
        )


def _sets(rows: Landmarks, ties: Any) -> RiskSets:
    return risk_sets(rows.time, rows.event, rows.stratum, ties)


def _link(data: Histories, splits: _Splits, penalty: float) -> tuple[float, np.ndarray]:
    """Ridge Cox of each seed on its training rows: mean validation loss, coefficients (S, P)."""
    link = np.stack(
        [
            ridge_cox(data.linear[rows], sets, penalty)
            for rows, sets in zip(splits.train, splits.train_sets, strict=True)
        ]
    )
    return float(np.mean(_losses(torch.tensor(link @ data.linear.T), splits.val, splits.val_sets))), link


def _losses(log_hazard: torch.Tensor, rows: list[np.ndarray], sets: list[RiskSets]) -> list[float]:
    """Loss of each seed, from (S, R)."""
    return [float(cox_loss(seed[part], at_risk)) for seed, part, at_risk in zip(log_hazard, rows, sets, strict=True)]


def _train(network, data, link, splits, settings, epochs, progress) -> pd.DataFrame:
    """Train all seeds together; each keeps the weights of its lowest validation loss, epoch 0 included."""
    seeds, num_rows = len(link), len(data.landmarks)
    linear = torch.tensor(link @ data.linear.T, dtype=torch.float32, device=data.inputs.device)  # (S, R)
    flat = torch.tensor(np.concatenate([seed * num_rows + rows for seed, rows in enumerate(splits.train)]))
    chosen = [data.landmarks[rows] for rows in splits.train]
    num_strata = int(data.landmarks.stratum.max()) + 1
    sets = risk_sets(
        np.concatenate([rows.time for rows in chosen]),
        np.concatenate([rows.event for rows in chosen]),
        np.concatenate([seed * num_strata + rows.stratum for seed, rows in enumerate(chosen)]),
        settings.ties,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best = np.full(seeds, np.inf)
    best_epoch = np.zeros(seeds, int)
    kept = copy.deepcopy(network.state_dict())
    history = []
    torch.manual_seed(settings.seed)
    for epoch in tqdm(range(epochs + 1), desc="T-LSTM", unit="epoch", disable=not progress):
        network.eval()
        with torch.no_grad():
            log_hazard = linear + network(data.inputs, data.years, data.sizes, data.rows)[0]
        train_loss = _losses(log_hazard, splits.train, splits.train_sets)
        val_loss = np.array(_losses(log_hazard, splits.val, splits.val_sets))
        better = val_loss < best
        best, best_epoch = np.where(better, val_loss, best), np.where(better, epoch, best_epoch)
        for name, weights in network.state_dict().items():
            kept[name][better] = weights[better]
        history.append({"epoch": epoch, "train_loss": np.mean(train_loss), "val_loss": val_loss.mean()})
        if epoch == epochs or epoch - best_epoch.max() >= settings.patience:
            break
        network.train()
        optimizer.zero_grad()
        log_hazard = linear + network(data.inputs, data.years, data.sizes, data.rows)[0]
        cox_loss(log_hazard.flatten()[flat], sets).backward()
        optimizer.step()
    network.load_state_dict(kept)
    network.eval()
    logger.info("T-LSTM: best epochs %s, validation loss %.4f", best_epoch.tolist(), best.mean())
    return pd.DataFrame(history)


# ---- Prediction ----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Predictor:
    """Everything that a prediction needs; `save` and `load` keep it in a folder."""

    settings: Settings
    grid: tuple[float, ...]  # landmarks it was trained at; empty: last visits
    prepare: Inputs
    link: np.ndarray  # (S, P)
    network: TLSTM
    slope: float = 1.0  # recalibration of the log-hazard
    baselines: tuple[metrics.Baseline, ...] = ()  # one a landmark of the grid

    def predict(self, table: pd.DataFrame, at: Sequence[float] = (), *, years: Sequence[float]) -> pd.DataFrame:
        """Log-hazard, survival curve and attention of every subject at every landmark.

        Args:
            table: visits in memory's columns, sorted by subject and visit; `time` and `event` may be absent.
            at: landmarks, years from baseline; empty: each subject's last visit.
            years: (T,) after the landmark, of the survival curve.
        Returns:
            A row a subject and landmark at which it has a visit and is event-free: `subject, landmark, time,
            event, log_hazard, survival_<year>..., attention_<visit>...`; `time` is what is left. Attention
            is NaN after the landmark.
        Raises:
            InputError: a column that the model was trained on is absent.
        """
        absent = [name for name in self.prepare.columns if name not in table]
        if absent:
            raise InputError(f"expected the columns the model was trained on. Missing: {', '.join(absent)}.")
        data = Histories.of(table, self.prepare, at)
        rows = data.landmarks
        seeds, attention = self.seeds(data)
        log_hazard = self.slope * seeds.mean(axis=0)
        curves = np.empty((len(rows), len(years)))
        nearest = self._nearest(rows.at) if self.grid else np.zeros(len(rows), int)
        for number in np.unique(nearest):
            here = nearest == number
            curves[here] = metrics.survival(self.baselines[number], log_hazard[here], np.asarray(years))
        head = {
            "subject": data.visits.subject[rows.subject],
            "landmark": rows.at,
            "time": rows.time,
            "event": rows.event,
            "log_hazard": log_hazard,
        }
        names = [f"survival_{float(year)}" for year in years]
        names += [f"attention_{visit + 1}" for visit in range(attention.shape[1])]
        return pd.concat([pd.DataFrame(head), pd.DataFrame(np.hstack([curves, attention]), columns=names)], axis=1)

    def seeds(self, data: Histories) -> tuple[np.ndarray, np.ndarray]:
        """Log-hazard of each seed (S, R); attention on each visit, mean over the seeds (R, V)."""
        with torch.no_grad():
            correction, scores = self.network(data.inputs, data.years, data.sizes, data.rows)
        rows, visits = data.landmarks, data.visits
        steps = np.arange(len(visits.sizes))
        seen = steps <= rows.visit[:, None]  # (R, V)
        places = visits.row(rows.subject[:, None], np.minimum(steps, rows.visit[:, None]))
        if self.settings.pool == "last":
            attention = np.where(seen, (steps == rows.visit[:, None]).astype(float), np.nan)
        else:
            masked = np.where(seen, scores.double().cpu().numpy()[:, places], -np.inf)  # (S, R, V)
            attention = np.where(seen, scipy.special.softmax(masked, axis=-1).mean(axis=0), np.nan)
        return self.link @ data.linear.T + correction.double().cpu().numpy(), attention

    def _nearest(self, at: np.ndarray) -> np.ndarray:
        """(R,) number of the trained landmark nearest to each."""
        return np.abs(at[:, None] - np.asarray(self.grid)).argmin(axis=1)

    def calibrated(self, table: pd.DataFrame, validation: np.ndarray, recalibrate: bool) -> "Predictor":
        """The same with its baseline hazards and, if asked, the slope of its log-hazard on validation.

        Breslow's baseline at each landmark is of the subjects that some seed was trained on.
        """
        data = Histories.of(table, self.prepare, self.grid)
        rows, seeds = data.landmarks, self.seeds(data)[0]
        slope = _slope(seeds, validation[:, rows.subject], rows, self.settings.ties) if recalibrate else 1.0
        log_hazard = slope * seeds.mean(axis=0)
        trained = ~validation.all(axis=0)[rows.subject]
        baselines = []
        for stratum in range(max(len(self.grid), 1)):
            here = trained & (rows.stratum == stratum)
            baselines.append(metrics.breslow(log_hazard[here], rows.time[here], rows.event[here]))
        return dataclasses.replace(self, slope=slope, baselines=tuple(baselines))

    def save(self, folder: str | Path) -> None:
        """Write `model.pt` (weights only) and `model.json` (all else) into the folder."""
        described = {
            "format": FORMAT,
            "settings": dataclasses.asdict(self.settings),
            "grid": self.grid,
            "prepare": dataclasses.asdict(self.prepare),
            "link": self.link,
            "slope": self.slope,
            "baselines": [dataclasses.asdict(baseline) for baseline in self.baselines],
        }
        with written_whole(Path(folder) / "model.pt") as part:
            torch.save(self.network.state_dict(), part)
        write_json(Path(folder) / "model.json", described)


def _slope(seeds: np.ndarray, held: np.ndarray, rows: Landmarks, ties: Any) -> float:
    """Slope of a Cox model on the mean log-hazard of the seeds that were not trained on a row."""
    some = held.any(axis=0)
    mean = (seeds * held).sum(axis=0)[some] / held.sum(axis=0)[some]
    slope = float(ridge_cox(mean[:, None], _sets(rows[some], ties), SLOPE_PENALTY)[0])
    if slope <= 0:
        logger.warning("recalibration: slope %.2f on validation, so the log-hazard is left as it is", slope)
        return 1.0
    logger.info("recalibration: slope %.2f", slope)
    return slope


def load(folder: str | Path) -> Predictor:
    """Read what `Predictor.save` wrote.

    Raises:
        InputError: a file is absent, damaged or of another version.
    """
    folder = Path(folder)
    for name in ("model.json", "model.pt"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name}: expected a trained model, found no such file. Run python tlstm.py first."
            )
    described = read_json(folder / "model.json")
    if described.get("format") != FORMAT:
        raise InputError(f"{folder / 'model.json'}: expected format {FORMAT}, received {described.get('format')!r}.")
    try:
        return _restored(described, torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    except (KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{folder}: the model is damaged: {error}. Run python tlstm.py again.") from error


def _restored(described: dict[str, Any], weights: dict[str, torch.Tensor]) -> Predictor:
    """A predictor of what `save` wrote; raises ValueError or its kin where the parts don't fit."""
    settings = Settings(**described["settings"])
    prepare = Inputs.restored(described["prepare"])
    link = np.asarray(described["link"], float)
    num_inputs = prepare.num_inputs
    if link.shape != (settings.num_seeds, num_inputs):
        raise ValueError(f"link: expected shape {(settings.num_seeds, num_inputs)}, received {link.shape}")
    network = TLSTM(num_inputs, settings)
    network.load_state_dict(weights)
    if not all(values.isfinite().all() for values in network.state_dict().values()):
        raise ValueError("weights: expected finite numbers")
    grid = tuple(float(at) for at in described["grid"])
    baselines = tuple(
        metrics.Baseline(*(np.asarray(kept[name], float) for name in ("times", "log_cumulative_hazard")))
        for kept in described["baselines"]
    )
    if len(baselines) != max(len(grid), 1):
        raise ValueError(f"baselines: expected {max(len(grid), 1)}, received {len(baselines)}")
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Predictor(settings, grid, prepare, link, network, float(described["slope"]), baselines)


# ---- The command line ----------------------------------------------------------------------------
def main(arguments: list[str]) -> int:
    """Run stage 2; returns the exit code: 0 done, 2 the user can mend it, 1 the environment failed."""
    try:
        config = read_config(arguments, "tlstm.py")
        run(config)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, MemoryError) as error:
        print(f"tlstm.py stopped: {error}", file=sys.stderr)
        return 1
    return 0


def run(config: Config) -> None:
    """Train on the train and validation parts, predict all three, write the folder `tlstm`.

    Raises:
        InputError: the tables can't be used; nothing is written then.
    """
    parts = _parts(config)
    columns, problems = usable_columns(list(parts.values()))
    tables.refuse("Columns can't be used", problems, "Drop these columns.")
    learned = pd.concat([parts["train"], parts["val"]]).sort_values(["subject", "visit_time"], ignore_index=True)
    is_val = np.isin(np.unique(learned["subject"].to_numpy(str)), parts["val"]["subject"].to_numpy(str))
    validation = np.tile(is_val, (config.NUM_SEEDS, 1))  # (S, N)
    predictor, history = fit(
        learned, validation, columns, grid=config.LANDMARKS, settings=settings_of(config), progress=True
    )
    years = predictions.curve_years(config.HORIZONS)
    predicted = {name: predictor.predict(part, config.LANDMARKS, years=years) for name, part in parts.items()}
    found = predictions.evaluate_parts(
        predicted, horizons=config.HORIZONS, num_resamples=config.NUM_RESAMPLES, seed=config.SEED
    )
    folder = config.OUTPUT_DIR / "tlstm"
    predictor.save(folder)
    predictions.write_predictions(predicted, folder / "predictions.csv")
    with written_whole(folder / "history.csv") as part:
        history.to_csv(part, index=False)
    path = config.OUTPUT_DIR / "metrics.json"
    write_json(path, read_json(path) | {"tlstm": found})


def _parts(config: Config) -> dict[str, pd.DataFrame]:
    """The run's features, or FEATURES split by subject."""
    if config.FEATURES is not None:
        table = tables.read_features(config.FEATURES, time_unit=config.TIME_UNIT)
        return tables.split_subjects(
            table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
        )
    folder = config.OUTPUT_DIR / "features"
    paths = {name: folder / f"{name}.parquet" for name in tables.PARTS}
    absent = [str(path) for path in paths.values() if not path.is_file()]
    if absent:
        raise InputError(f"expected the features of a run, found no {', '.join(absent)}. Run python main.py first.")
    return tables.check_parts(
        {name: tables.read_features(path, time_unit=config.TIME_UNIT) for name, path in paths.items()}
    )


def settings_of(config: Config) -> Settings:
    """Stage 2's settings of a run's."""
    return Settings(
        hidden=config.HIDDEN,
        num_seeds=config.NUM_SEEDS,
        pool=config.POOL,
        link=config.LINK,
        dropout=config.TLSTM_DROPOUT,
        learning_rate=config.TLSTM_LEARNING_RATE,
        weight_decay=config.TLSTM_WEIGHT_DECAY,
        epochs=config.TLSTM_EPOCHS,
        patience=config.TLSTM_PATIENCE,
        penalties=config.PENALTIES,
        components=config.COMPONENTS,
        ties=config.TIES,
        seed=config.SEED,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
