"""Stage 2: a time-aware LSTM over a subject's visits gives a log-hazard and survival curves.

    python tlstm.py                                      the features of the last run
    python tlstm.py --FEATURES table.csv --FOLDS 5 --REPEATS 3 --LANDMARKS 0,3,5 --WINDOWS 7,5,3

All PyTorch is here. Shapes: S seeds side by side, M visits without padding (sequences.Visits),
R landmark rows, P inputs, H hidden. Direction: a higher log-hazard means an earlier event.
"""

import copy
import dataclasses
import hashlib
import io
import json
import logging
import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from torch import nn
from tqdm import tqdm

from cohort import tables
from cohort.splits import PARTS, check_parts, split_subjects
from config import Config, read_config
from runs.errors import InputError
from runs.files import read_json, write_json, written_whole
from runs.lock import lock_run
from runs.processes import exit_code, exit_process, stop_on_signals
from runs.threads import fix_threads
from survival import crossval
from survival.cox import RiskSets, risk_sets
from survival.evaluation import evaluate_parts
from survival.landmarks import Histories, Landmarks, landmark_grid
from survival.link import Split, fit_link, split_rows
from survival.metrics import EvaluationSettings
from survival.predictor import Predictor, curve_years, predict_by_visit, write_predictions
from survival.preparation import IMAGE_FEATURE, Preparation, usable_columns

FORMAT = 2  # of model.json
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        exit_process = np.repeat(sets.event_bounds[1:], np.diff(sets.bounds))
        ever = tensor(sets.next_event < exit_process)
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
    pool: Literal["attention", "last"] = "attention"
    link: bool = True
    time_aware: bool = True  # False: a plain LSTM
    dropout: float = 0.3
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    epochs: int = 200
    patience: int = 20
    penalties: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    components: tuple[int, ...] = (0, 4)
    recalibrate: bool = False
    ties: Literal["efron", "breslow"] = "efron"
    seed: int = 0


class TLSTM(nn.Module):
    """S time-aware LSTMs with additive attention, from different seeds, in one computation.

    Source: Baytas et al. (2017), KDD, eq. 1-9; attention: Yang et al. (2016), NAACL, eq. 5-7.
    Checked against a naive per-step reference.
    """

    def __init__(self, num_inputs: int, settings: Settings):
        super().__init__()
        seeds, hidden = settings.num_seeds, settings.hidden
        self.settings = settings
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
        pooled = states if self.settings.pool == "last" else running_attention(states, scores, sizes)
        return torch.bmm(self.dropout(pooled[:, rows]), self.head).squeeze(-1), scores

    def correct(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-hazards (S, R) and attention scores (S, M), None with POOL=last, as NumPy."""
        with torch.no_grad():
            correction, scores = self(*_tensors(data))
        attends = self.settings.pool == "attention"
        return correction.double().cpu().numpy(), scores.double().cpu().numpy() if attends else None

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
            if self.settings.time_aware:
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
    every: list[torch.Tensor] = []
    for size, state, score in zip(sizes, states.split(sizes, 1), scores.split(sizes, 1), strict=True):
        total = score if not every else torch.logaddexp(total[:, :size], score)
        context = torch.lerp(context[:, :size], state, (score - total).exp()[..., None])
        every.append(context)
    return torch.cat(every, dim=1)


# ---- Training ------------------------------------------------------------------------------------
def fit(
    table: pd.DataFrame,
    validation: np.ndarray,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: Settings,
    progress: bool = False,
) -> tuple[Predictor, pd.DataFrame]:
    """Fit the link, then the T-LSTMs that correct it, then the baseline hazards.

    Validation chooses the link's inputs (principal components, with the change since the first visit or
    without) and its penalty, then the T-LSTMs' epoch.

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
    trained = table[_is_trained(table, validation)].reset_index(drop=True)
    candidates = []
    for number in settings.components if any(map(IMAGE_FEATURE.fullmatch, columns)) else (0,):
        prepare = Preparation.fit(trained, columns, num_components=number)
        data = Histories.of(table, prepare, grid)
        splits = split_rows(data.landmarks, validation, settings.ties)
        for inputs in (data.last_values, data.inputs[data.rows]):  # without and with the change since the first visit
            links = [fit_link(inputs, splits, penalty) for penalty in settings.penalties]
            candidates += [(*found, prepare, data) for found in links]
    loss, link, prepare, data = min(candidates, key=lambda candidate: candidate[0])
    level = logging.INFO if progress else logging.DEBUG
    used = np.count_nonzero(link.any(axis=0))
    logger.log(level, "link: %d inputs, %d components, validation loss %.4f", used, len(prepare.components), loss)
    if prepare.logged:
        logger.log(level, "logarithms are taken of: %s", ", ".join(prepare.logged))
    if not settings.link:
        link = np.zeros_like(link)
    network = TLSTM(data.inputs.shape[1], settings).to(DEVICE)
    history = _train(network, data, link, splits, settings, progress)
    predictor = Predictor(prepare, tuple(grid), link, network)
    return predictor.calibrated(table, validation, recalibrate=settings.recalibrate, ties=settings.ties), history


def _is_trained(table: pd.DataFrame, validation: np.ndarray) -> np.ndarray:
    """(M,) bool: visits of the subjects that some seed is trained on."""
    subjects = np.unique(table["subject"].to_numpy(str))
    return np.isin(table["subject"].to_numpy(str), subjects[~validation.all(axis=0)])


def _train(network, data, link, splits, settings, progress) -> pd.DataFrame:
    """Train all seeds together; keep the weights of the epoch of the lowest mean validation loss.

    Epoch 0 is the link alone. One epoch for all seeds: the mean of their losses is less noisy than each.
    """
    epochs = settings.epochs
    if len(data.visits.sizes) == 1:
        logger.warning("nobody has two visits: there is no history to learn from, so this is a Cox model")
        epochs = 0
    tensors = _tensors(data)
    linear = torch.tensor(link @ data.inputs[data.rows].T, dtype=torch.float32, device=DEVICE)  # (S, R)
    flat, sets = _side_by_side(data.landmarks, splits, settings.ties)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, kept, history = 0, copy.deepcopy(network.state_dict()), []
    torch.manual_seed(settings.seed)
    for epoch in tqdm(range(epochs + 1), desc="T-LSTM", unit="epoch", disable=not progress):
        network.eval()
        with torch.no_grad():
            log_hazard = linear + network(*tensors)[0]  # (S, R)
        val_loss = [float(cox_loss(own[part.val], part.val_sets)) for own, part in zip(log_hazard, splits, strict=True)]
        train_loss = float(cox_loss(log_hazard.flatten()[flat], sets))
        history.append({"epoch": epoch, "train_loss": train_loss, "val_loss": float(np.mean(val_loss))})
        if history[-1]["val_loss"] < history[best]["val_loss"]:
            best, kept = epoch, copy.deepcopy(network.state_dict())
        if epoch - best >= settings.patience:
            break
        network.train()
        optimizer.zero_grad()
        cox_loss((linear + network(*tensors)[0]).flatten()[flat], sets).backward()
        optimizer.step()
    network.load_state_dict(kept)
    network.eval()
    level = logging.INFO if progress else logging.DEBUG
    logger.log(level, "T-LSTM: best epoch %d, validation loss %.4f", best, history[best]["val_loss"])
    return pd.DataFrame(history)


def _tensors(data: Histories) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """What the network takes."""
    inputs = torch.tensor(data.inputs, dtype=torch.float32, device=DEVICE)
    years = torch.tensor(data.years, dtype=torch.float32, device=DEVICE)
    return inputs, years, data.visits.sizes.tolist(), torch.tensor(data.rows, device=DEVICE)


def _side_by_side(rows: Landmarks, splits: list[Split], ties: Any) -> tuple[torch.Tensor, RiskSets]:
    """All seeds' training rows in one loss: where they stand in (S, R) flattened, and their risk sets."""
    chosen = [rows[split.train] for split in splits]
    num_strata = int(rows.stratum.max()) + 1
    sets = risk_sets(
        np.concatenate([part.time for part in chosen]),
        np.concatenate([part.event for part in chosen]),
        np.concatenate([seed * num_strata + part.stratum for seed, part in enumerate(chosen)]),
        ties,
    )
    flat = np.concatenate([seed * len(rows) + split.train for seed, split in enumerate(splits)])
    return torch.tensor(flat, device=DEVICE), sets


# ---- Kept in a folder ----------------------------------------------------------------------------
def save(predictor: Predictor, folder: str | Path) -> None:
    """Write `model.pt` (weights only) and `model.json` (all else) into the folder."""
    assert isinstance(predictor.network, TLSTM)
    folder, settings = Path(folder), dataclasses.asdict(predictor.network.settings)
    weights = io.BytesIO()  # PyTorch's own writer does not tell that the disk is full
    torch.save(predictor.network.state_dict(), weights)
    with written_whole(folder / "model.pt") as part:
        part.write_bytes(weights.getbuffer())
    described = json.loads(json.dumps({"settings": settings, **predictor.described()}, default=np.ndarray.tolist))
    write_json(
        folder / "model.json", {"format": FORMAT, "digests": _digests(described, weights.getvalue()), **described}
    )


def load(folder: str | Path) -> Predictor:
    """Read what `save` wrote; `load(folder).predict(table, years=...)` predicts.

    Raises:
        InputError: names the file that is absent, damaged or of another version.
    """
    folder = Path(folder)
    for name in ("model.json", "model.pt"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: expected a trained model, found none. Run python tlstm.py first.")
    kept = read_json(folder / "model.json")
    if kept.pop("format", None) != FORMAT:
        raise InputError(f"{folder / 'model.json'}: expected format {FORMAT}. Run python tlstm.py again.")
    told, weights = kept.pop("digests", None), (folder / "model.pt").read_bytes()
    for name, digest in _digests(kept, weights).items():
        if not isinstance(told, dict) or told.get(name) != digest:
            raise InputError(f"{folder / name}: damaged: it is not what was saved. Run python tlstm.py again.")
    try:
        predictor, network = _restored(kept, torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(f"{folder}: the model is damaged: {error}. Run python tlstm.py again.") from error
    return dataclasses.replace(predictor, network=network.to(DEVICE).eval())


def _restored(kept: dict[str, Any], weights: dict[str, torch.Tensor]) -> tuple[Predictor, TLSTM]:
    """The predictor and its network; what does not fit raises an error of one kind or another."""
    settings = TypeAdapter(Settings).validate_python(kept["settings"])
    expected = (settings.num_seeds, settings.hidden, 4 * settings.hidden)
    if tuple(weights["recurrent"].shape) != expected:  # before so large a network is made
        raise ValueError(f"recurrent: expected {expected}, received {tuple(weights['recurrent'].shape)}")
    predictor = Predictor.restored(kept, num_seeds=settings.num_seeds)
    network = TLSTM(predictor.prepare.num_inputs, settings)
    network.load_state_dict(weights)
    if not all(part.isfinite().all() for part in network.parameters()):
        raise ValueError("expected finite weights")
    return predictor, network


def _digests(described: dict[str, Any], weights: bytes) -> dict[str, str]:
    """By which a flipped bit is known; a number would often stay a number."""
    contents = {"model.json": json.dumps(described, sort_keys=True).encode(), "model.pt": weights}
    return {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in contents.items()}


# ---- The command line ----------------------------------------------------------------------------
def main(arguments: list[str]) -> int:
    """Run stage 2; returns the exit code of processes.exit_code."""

    def work() -> None:
        config = read_config(arguments, "tlstm.py")
        stop_on_signals(config.MAX_HOURS)
        with lock_run(config.OUTPUT_DIR):
            torch.set_num_threads(fix_threads(config.OUTPUT_DIR))
            torch.use_deterministic_algorithms(True, warn_only=True)  # what a GPU has no other way for, it says
            cross_validate(config) if config.FOLDS else run(config)

    return exit_code(work)


def run(config: Config) -> None:
    """Train on the train and validation parts, predict all three, write the folder `tlstm`.

    Raises:
        InputError: the tables can't be used; nothing is written then.
    """
    parts = _parts(config)
    columns = usable_columns(parts)
    learned = pd.concat([parts["train"], parts["val"]]).sort_values(["subject", "visit_time"], ignore_index=True)
    is_val = np.isin(np.unique(learned["subject"].to_numpy(str)), parts["val"]["subject"].to_numpy(str))
    validation = np.tile(is_val, (config.NUM_SEEDS, 1))  # (S, N)
    grid = landmark_grid(parts, config.LANDMARKS, config.LANDMARK_STEP)
    predictor, history = fit(learned, validation, columns, grid=grid, settings=settings_of(config), progress=True)
    years = curve_years(config.HORIZONS)
    predicted = {name: predictor.predict(part, config.LANDMARKS, years=years) for name, part in parts.items()}

    def evaluated(landmark: float | None) -> dict[str, dict]:
        chosen = {
            name: part if landmark is None else part[part["landmark"] == landmark] for name, part in predicted.items()
        }
        return evaluate_parts(chosen, EvaluationSettings(config.HORIZONS, config.NUM_RESAMPLES, config.SEED))

    found: dict[str, Any] = (
        {"landmarks": {f"{landmark:g}": evaluated(landmark) for landmark in config.LANDMARKS}}
        if config.LANDMARKS
        else {"tlstm": evaluated(None)}
    )
    folder = config.OUTPUT_DIR / "tlstm"
    save(predictor, folder)
    everyone = pd.concat([part.assign(split=name) for name, part in predicted.items()], ignore_index=True)
    write_predictions(everyone, folder / "predictions.csv")
    if not config.LANDMARKS:
        by_visit = predict_by_visit(predictor, parts["test"], years)
        write_predictions(by_visit.assign(split="test"), folder / "by_visit.csv")
    _write_csv(history, folder / "history.csv")
    _merge_metrics(config, found)


def cross_validate(config: Config) -> None:
    """Compare the model with its rivals on FEATURES, write the folder `cv` and print a table.

    Raises:
        InputError: the settings or the table can't be used; nothing is written then.
    """
    if config.FEATURES is None or config.FOLDS == 1 or not 0 < len(config.LANDMARKS) == len(config.WINDOWS):
        raise InputError(
            "FOLDS: expected 2 or more, a table FEATURES, LANDMARKS, and as many WINDOWS. Received: "
            f"FOLDS {config.FOLDS}, FEATURES {config.FEATURES}, LANDMARKS {config.LANDMARKS}, WINDOWS {config.WINDOWS}"
        )
    table = tables.read_features(config.FEATURES, time_unit=config.TIME_UNIT)
    columns = usable_columns({"table": table})
    grid = landmark_grid({"table": table}, config.LANDMARKS, config.LANDMARK_STEP, num_parts=config.FOLDS)
    histories: list[pd.DataFrame] = []

    def arm(settings: Settings) -> crossval.Fit:
        def fitted(train: pd.DataFrame, validation: np.ndarray) -> crossval.Predict:
            predictor, history = fit(train, validation, columns, grid=grid, settings=settings)
            histories.append(history.assign(fit=len(histories) + 1, time_aware=settings.time_aware))
            return lambda visits, landmark, years: predictor.predict(visits, (landmark,), years=years)

        return fitted

    settings = settings_of(config)
    arms = {
        crossval.OURS: arm(settings),
        "baseline_cox": crossval.linear_arm(columns, config.PENALTIES, (), baseline_only=True),
        "locf_cox": crossval.linear_arm(columns, config.PENALTIES, ()),
        "linear_supermodel": crossval.linear_arm(columns, config.PENALTIES, grid),
        "lstm": arm(dataclasses.replace(settings, time_aware=False)),
    }
    plan = crossval.Plan(config.LANDMARKS, config.WINDOWS, config.FOLDS, config.REPEATS, config.NUM_SEEDS, config.SEED)
    figures, predicted = crossval.compare_models(table, arms, plan, progress=True)
    summary = crossval.summarise(figures)
    folder = config.OUTPUT_DIR / "cv"
    _write_csv(figures, folder / "figures.csv")
    _write_csv(pd.concat(histories), folder / "history.csv")
    write_predictions(predicted, folder / "predictions.csv")
    crossval.draw_curves(predicted, folder / "curves.png")
    _merge_metrics(config, {"cv": summary})
    print(crossval.as_text(summary))


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with written_whole(path) as part:
        table.to_csv(part, index=False)


def _merge_metrics(config: Config, found: dict[str, Any]) -> None:
    path = config.OUTPUT_DIR / "metrics.json"
    write_json(path, read_json(path) | found)


def _parts(config: Config) -> dict[str, pd.DataFrame]:
    """The run's features, or FEATURES split by subject."""
    if config.FEATURES is not None:
        table = tables.read_features(config.FEATURES, time_unit=config.TIME_UNIT)
        return split_subjects(
            table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
        )
    folder = config.OUTPUT_DIR / "features"
    paths = {name: folder / f"{name}.parquet" for name in PARTS}
    absent = [str(path) for path in paths.values() if not path.is_file()]
    if absent:
        raise InputError(f"expected the features of a run, found no {', '.join(absent)}. Run python main.py first.")
    return check_parts({name: tables.read_features(path, time_unit=config.TIME_UNIT) for name, path in paths.items()})


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
        recalibrate=config.RECALIBRATE,
        ties=config.TIES,
        seed=config.SEED,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    exit_process(main(sys.argv[1:]))
