"""Stage 2: a time-aware LSTM over a subject's visits gives a log-hazard and survival curves.

    python tlstm.py                                                  the features of the last run
    python tlstm.py --FEATURES table.csv --OUTPUT_DIR outputs-table  any table of visits
    python tlstm.py --FEATURES table.csv --OUTPUT_DIR outputs-table --FOLDS 5 --LANDMARKS 0,3,5 --WINDOWS 7,5,3

All PyTorch is here. It reads from top to bottom: network, loss, fit, saved model, command line. A higher log-hazard
means an earlier event. Times are years.

Shapes: N subjects; M visits of all subjects, without padding, in the order of `survival.landmarks.Visits`; V visits of
the longest history; R landmark rows, E of them with an event; P inputs of a visit; H width of the state; S seeds,
whose networks are trained side by side. `sizes` (V,) counts the subjects that have a visit k: the visits k of all
subjects are one slice of M.
"""

from runs.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # within the imports below, too

import copy
import dataclasses
import io
import logging
import math
import pickle
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from torch import nn
from tqdm import tqdm

from cohort import tables
from config import Config, read_config
from runs.errors import InputError
from runs.lock import lock_run
from runs.processes import exit_process, run_main
from runs.table_record import TableRecord, recorded
from runs.threads import fix_threads
from survival import crossval
from survival.arms import fit_arms
from survival.cohort_words import log_cohort
from survival.columns import usable_columns
from survival.cox import RiskSets
from survival.landmarks import Histories, Visits, cut_at_landmarks, landmark_grid
from survival.link import INNER_FOLDS, Link, LinkSettings, choose_link, split_rows, stack_seeds
from survival.outputs import merge_metrics, with_attention, write_predicted, write_splits
from survival.predictor import Correction, Predictor, curve_years, predict_by_visit
from survival.rivals import linear_rivals, predict_parts
from survival.saved_model import read_model, write_model
from survival.screening import screen_columns
from survival.stack import LEAST_EVENTS, StackedCorrection, fit_stack, weights_of
from survival.table_runs import compare_in_folds, read_feature_parts, stage2_figures

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAFE_SPREAD = 600.0  # float64 can sum exp over so wide a range of exponents; a wider one is summed in log space
OF_THE_NETWORK = ("dropout", "learning_rate", "weight_decay", "epochs", "patience")  # settings called TLSTM_...
NOT_A_MODEL = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError)
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(LinkSettings):
    """How stage 2 is built and trained. `config.py` explains the settings and holds their defaults."""

    stage2: Literal["stack", "tlstm", "link"]  # the arms together, the T-LSTM that corrects the link, the link arm
    hidden: int  # H
    num_seeds: int  # S
    pool: Literal["attention", "last"]  # how the states of the visits become one
    link: bool  # start from the ridge Cox
    time_aware: bool = True  # False: a plain LSTM, a rival; not a setting of the user
    dropout: float  # share of the pooled state, 0 to 1
    learning_rate: float  # of AdamW
    weight_decay: float  # of AdamW
    epochs: int  # at most
    patience: int  # epochs without a lower validation loss
    recalibrate: bool  # multiply the log-hazard by its slope on validation
    seed: int

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """Take stage 2's settings from a run's; the dropout is a share, the patience is in epochs."""
        names = {field.name: field.name.upper() for field in dataclasses.fields(cls) if field.name != "time_aware"}
        names |= {name: f"TLSTM_{names[name]}" for name in OF_THE_NETWORK}
        return cls(**{name: getattr(config, setting) for name, setting in names.items()})


# ---- The network ---------------------------------------------------------------------------------
class TLSTM(nn.Module):
    """S time-aware LSTMs with additive attention, from different seeds, in one computation.

    The names of the parameters are the keys of `model.pt`.

    Source: T-LSTM: Baytas et al. (2017), KDD, the equations of the T-LSTM unit; attention: Yang et al. (2016), NAACL,
    eq. 5-7. Checked against a naive per-step reference.
    """

    def __init__(self, num_inputs: int, settings: Settings):
        super().__init__()
        seeds, hidden = settings.num_seeds, settings.hidden
        self.settings = settings
        self.dropout = nn.Dropout(settings.dropout)
        generators = [torch.Generator().manual_seed(settings.seed * 1000 + seed) for seed in range(seeds)]

        def drawn(*shape: int) -> nn.Parameter:
            """A parameter (S, *shape), drawn as in torch.nn.LSTM."""
            bound = 1 / math.sqrt(hidden)
            of_seeds = [torch.empty(shape).uniform_(-bound, bound, generator=generator) for generator in generators]
            return nn.Parameter(torch.stack(of_seeds))

        self.input = drawn(num_inputs, 4 * hidden)  # W_i, W_f, W_o, W_c side by side
        self.recurrent = drawn(hidden, 4 * hidden)  # U_i, U_f, U_o, U_c
        self.bias = drawn(1, 4 * hidden)  # b_i, b_f, b_o, b_c
        self.short = drawn(hidden, hidden)  # W_d
        self.short_bias = drawn(1, hidden)  # b_d
        self.attend = drawn(hidden, hidden)  # W_w
        self.attend_bias = drawn(1, hidden)  # b_w
        self.context = drawn(hidden, 1)  # u_w
        self.head = drawn(hidden, 1)  # from the pooled state to the log-hazard
        if settings.link:  # the correction of the link starts at 0
            nn.init.zeros_(self.head)

    def forward(
        self, inputs: torch.Tensor, years: torch.Tensor, sizes: Sequence[int], rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the log-hazards of the landmark rows.

        Args:
            inputs: (M, P).
            years: (M,) since the visit before; 0 at the first.
            sizes: (V,) number of subjects that have a visit k.
            rows: (R,) int, where the last visit of each landmark row stands.
        Returns:
            (S, R) log-hazards; (S, M) attention scores, whose softmax over the visits of a history gives their weights.
        """
        states = self.states(inputs, years, sizes)  # h_t, (S, M, H)
        hidden = torch.tanh(torch.baddbmm(self.attend_bias, states, self.attend))  # u_t = tanh(W_w h_t + b_w), eq. 5
        scores = torch.bmm(hidden, self.context).squeeze(-1)  # u_t' u_w, (S, M)
        pooled = states if self.settings.pool == "last" else attention(states, scores, sizes)  # (S, M, H)
        return torch.bmm(self.dropout(pooled[:, rows]), self.head).squeeze(-1), scores

    def states(self, inputs: torch.Tensor, years: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Run the recurrence over all histories at once.

        Args:
            inputs: (M, P), x_t.
            years: (M,) since the visit before; 0 at the first.
            sizes: (V,) number of subjects that have a visit k.
        Returns:
            (S, M, H) the state h_t after each visit, which has seen that visit and the earlier ones.
        """
        seeds, hidden = self.short.shape[:2]
        projected = torch.matmul(inputs, self.input) + self.bias  # W x_t + b, (S, M, 4H), of all visits at once
        discount = (1 / torch.log(math.e + years) - 1)[:, None]  # g(dt) - 1, (M, 1), with g(dt) = 1 / log(e + dt)
        memory = state = inputs.new_zeros(seeds, sizes[0], hidden)  # C_0, h_0
        all_states = []
        for size, gates, lost in zip(sizes, projected.split(sizes, 1), discount.split(sizes), strict=True):
            memory, state = memory[:, :size], state[:, :size]  # of the subjects that have this visit
            if self.settings.time_aware:
                memory = self.decompose(memory, lost)  # C*_{t-1}
            gates = torch.baddbmm(gates, state, self.recurrent)  # W x_t + U h_{t-1} + b
            input_gate, forget_gate, output_gate = gates[..., : 3 * hidden].sigmoid().chunk(3, dim=-1)  # i_t, f_t, o_t
            candidate = torch.tanh(gates[..., 3 * hidden :])  # C~_t
            memory = forget_gate * memory + input_gate * candidate  # C_t = f_t C*_{t-1} + i_t C~_t
            state = output_gate * torch.tanh(memory)  # h_t = o_t tanh(C_t)
            all_states.append(state)
        return torch.cat(all_states, dim=1)

    def decompose(self, memory: torch.Tensor, discount: torch.Tensor) -> torch.Tensor:
        """Split the memory into a short-term part C^S and a long-term part C - C^S, and discount the short-term part.

        Args:
            memory: (S, subjects, H), C_{t-1}.
            discount: (subjects, 1), g(dt) - 1, where dt are the years since the visit before; 0 loses nothing.
        Returns:
            (S, subjects, H) the adjusted memory C*_{t-1}.
        """
        short_term = torch.tanh(torch.baddbmm(self.short_bias, memory, self.short))  # C^S_{t-1} = tanh(W_d C + b_d)
        return memory + discount * short_term  # C* = (C - C^S) + g(dt) C^S = C + (g(dt) - 1) C^S

    def correct(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute the correction of the link, as NumPy arrays.

        Args:
            data: histories with R landmark rows.
        Returns:
            Log-hazards (S, R); attention scores (S, M), None with POOL=last.
        """
        with torch.no_grad():
            correction, scores = self(*_tensors(data))
        attends = self.settings.pool == "attention"
        return correction.double().cpu().numpy(), scores.double().cpu().numpy() if attends else None


def attention(states: torch.Tensor, scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Pool the visits up to each visit by additive attention; later visits have no part in it.

    The softmax over a growing history is a running mean: s_k = s_{k-1} + a_k (h_k - s_{k-1}) with
    a_k = exp(score_k - log sum_{j<=k} exp(score_j)) <= 1.

    Args:
        states: (S, M, H), h_k.
        scores: (S, M), u_k' u_w.
        sizes: (V,) number of subjects that have a visit k.
    Returns:
        (S, M, H) s_k = sum_{j<=k} alpha_j h_j; equals the masked softmax over each history, and can't overflow.
    Source: Yang et al. (2016), NAACL, eq. 6-7.
    """
    total = torch.full_like(scores[:, : sizes[0]], -math.inf)  # log sum_{j<=k} exp(score_j)
    context = torch.zeros_like(states[:, : sizes[0]])  # s_0
    contexts: list[torch.Tensor] = []
    for size, state, score in zip(sizes, states.split(sizes, 1), scores.split(sizes, 1), strict=True):
        total = score if not contexts else torch.logaddexp(total[:, :size], score)
        weight = (score - total).exp()[..., None]  # a_k, which is alpha_k of the history up to k (eq. 6)
        context = torch.lerp(context[:, :size], state, weight)  # s_k (eq. 7)
        contexts.append(context)
    return torch.cat(contexts, dim=1)


def _tensors(data: Histories) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """The arguments of the network: inputs (M, P), years (M,), sizes (V,), rows (R,)."""
    inputs = torch.tensor(data.inputs, dtype=torch.float32, device=DEVICE)
    years = torch.tensor(data.years, dtype=torch.float32, device=DEVICE)
    return inputs, years, data.visits.sizes.tolist(), torch.tensor(data.rows, device=DEVICE)


# ---- The loss ------------------------------------------------------------------------------------
def stratified_cox_loss(log_hazard: torch.Tensor, sets: RiskSets) -> torch.Tensor:
    """Mean negative Cox partial log-likelihood per event, stratified, ties as `sets` treats them.

    loss = 1/E sum_i [ log( sum_{j in R_i} exp(eta_j) - f_i sum_{k in D_i} exp(eta_k) ) - eta_i ], with the symbols of
    `survival.cox`.

    Args:
        log_hazard: (R,) float, eta; higher = earlier event; in the order of the rows that `sets` was made from.
        sets: `survival.cox.risk_sets(time, event, stratum, ties)`, made once for many losses.
    Returns:
        Scalar in the precision of `log_hazard`; 0, still attached to the graph, without an event.
    Source: Cox (1972); Efron (1977). Checked against lifelines and torchsurv.
    """
    return _StratifiedCox.apply(log_hazard, sets)


class _StratifiedCox(torch.autograd.Function):
    """The loss and its gradient in closed form, in float64 and log space: O(R) memory."""

    @staticmethod
    def forward(ctx: Any, log_hazard: torch.Tensor, sets: RiskSets) -> torch.Tensor:
        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, device=log_hazard.device)

        if len(sets.event) == 0:
            ctx.save_for_backward(torch.zeros_like(log_hazard))
            return log_hazard.sum() * 0
        order, event, last, tie = tensor(sets.order), tensor(sets.event), tensor(sets.last), tensor(sets.tie)
        eta = log_hazard.double()[order]  # (R,)
        at_risk = _log_running_sum(eta, sets.bounds)[last]  # log sum_{j in R_i} exp(eta_j), (E,)
        fraction = tensor(sets.fraction)  # f_i
        relative = (eta[event] - at_risk).exp()  # exp(eta_i) / sum_{j in R_i} exp(eta_j), (E,) <= 1
        tied = eta.new_zeros(sets.num_ties).index_add_(0, tie, relative)[tie]  # the same, summed over D_i
        term = at_risk + torch.log1p(-fraction * tied)  # log( sum_{R_i} exp(eta_j) - f_i sum_{D_i} exp(eta_k) )
        loss = (term - eta[event]).mean()
        # E d loss / d eta_j: exp(eta_j - term_i), summed over the events i at which row j is at risk ...
        summed = _log_running_sum(-term.flip(0), len(term) - sets.event_bounds[::-1]).flip(0)  # log sum_i exp(-term_i)
        end_of_stratum = np.repeat(sets.event_bounds[1:], np.diff(sets.bounds))
        ever_at_risk = tensor(sets.next_event < end_of_stratum)
        log_gradient = eta + summed[tensor(np.minimum(sets.next_event, len(term) - 1))]
        gradient = log_gradient.exp().where(ever_at_risk, eta.new_zeros(()))
        # ... less, for an event, its Efron shares in its own tie, and 1
        share = eta.new_zeros(sets.num_ties).index_add_(0, tie, fraction / (1 - fraction * tied))[tie]
        gradient[event] -= relative * share + 1
        gradient /= len(term)
        ctx.save_for_backward(torch.empty_like(gradient).index_copy_(0, order, gradient).to(log_hazard.dtype))
        return loss.to(log_hazard.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None


def _log_running_sum(x: torch.Tensor, bounds: np.ndarray) -> torch.Tensor:
    """Log of the running sum of exp(x), (R,) float64, which begins anew at each of `bounds`."""
    sums = []
    for part in x.tensor_split(torch.as_tensor(bounds[1:-1])):
        if len(part) == 0:
            continue
        low, high = part.aminmax()
        is_narrow = bool(high - low < SAFE_SPREAD)
        sums.append((part - high).exp().cumsum(0).log() + high if is_narrow else part.logcumsumexp(0))
    return torch.cat(sums)


# ---- Fit -----------------------------------------------------------------------------------------
def fit(
    table: pd.DataFrame,
    validation: np.ndarray,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: Settings,
    progress: bool = False,
) -> tuple[Predictor, pd.DataFrame]:
    """Fit stage 2 as the setting `stage2` says, with its baseline hazards.

    Args:
        table: M visits of the training and validation subjects, sorted by subject and visit.
        validation: (S, N) bool: which subjects, in sorted order, each seed is validated on.
        columns: names of the features.
        grid: landmarks, years from baseline; empty: each subject's last visit.
        settings: of the model and its training.
        progress: show a bar on stderr, and log what was chosen.
    Returns:
        The predictor, and the history of the T-LSTM: a row an epoch.
    Raises:
        InputError: the training or the validation subjects of a seed have no event.
    """
    if settings.stage2 != "tlstm":
        rows = cut_at_landmarks(table, Visits.of(table), grid)
        if rows.num_events >= LEAST_EVENTS:
            return _fit_arms(table, validation, columns, grid=grid, settings=settings, progress=progress)
        epochs = settings.epochs if settings.stage2 == "stack" else 0
        message = "%d subjects with an event, fewer than %d: too few to weigh the arms, so validation chooses one link"
        logger.warning(message, rows.num_events, LEAST_EVENTS)
        settings = dataclasses.replace(settings, stage2="tlstm", epochs=epochs)
    return _fit_corrected_link(table, validation, columns, grid=grid, settings=settings, progress=progress)


def _fit_arms(
    table: pd.DataFrame,
    validation: np.ndarray,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: Settings,
    progress: bool,
) -> tuple[Predictor, pd.DataFrame]:
    """Fit the arms on all subjects, and weigh them by what they say of each fold of subjects without having seen it.

    The T-LSTMs are trained side by side, each without one fold. They read the last values, changes and summaries.
    """
    judges = np.asarray(validation.any(axis=0))
    arms, held_out = fit_arms(table, columns, judges=judges, grid=grid, settings=settings, seed=settings.seed)
    rows, ties, recalibrate = held_out.data.landmarks, settings.ties, settings.recalibrate
    if settings.stage2 == "link":
        link = Predictor(arms.prepare, tuple(grid), arms.link[None])
        history = pd.DataFrame(columns=["epoch", "train_loss", "val_loss"])
        return link.calibrated_on(held_out.log_hazards[:, 0], rows, ties=ties, recalibrate=recalibrate), history
    out = np.tile(held_out.folds, (-(-settings.num_seeds // INNER_FOLDS), 1))  # (S, N)
    settings = dataclasses.replace(settings, num_seeds=len(out), link=False)
    network = TLSTM(arms.prepare.num_inputs, settings).to(DEVICE)
    no_link = np.zeros((settings.num_seeds, arms.prepare.num_inputs))
    begin = Link(math.nan, no_link, arms.prepare, held_out.data, split_rows(rows, out, ties))
    history = _train(network, begin, progress=progress)
    of_network = np.average(network.correct(held_out.data)[0], axis=0, weights=out[:, rows.subject])
    predictor = fit_stack(arms, held_out, network, of_network, grid=grid, recalibrate=recalibrate)
    named = ", ".join(f"{name} {weight:.2f}" for name, weight in weights_of(predictor).items())
    logger.log(_level(progress), "stack: the arms' weights are: %s", named)
    return predictor, history


def _fit_corrected_link(
    table: pd.DataFrame,
    validation: np.ndarray,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: Settings,
    progress: bool,
) -> tuple[Predictor, pd.DataFrame]:
    """Fit the link, then the T-LSTMs that correct it, then the baseline hazards.

    Validation chooses the link's inputs (the number of principal components; with the change since the first visit or
    without) and its penalty, then the T-LSTMs' epoch.
    """
    level = _level(progress)
    link = choose_link(table, validation, columns, grid=grid, settings=settings)
    num_used, num_components = np.count_nonzero(link.coefficients.any(axis=0)), len(link.prepare.components)
    logger.log(level, "link: %d inputs, %d components, validation loss %.4f", num_used, num_components, link.loss)
    if link.prepare.logged:
        logger.log(level, "logarithms are taken of: %s", ", ".join(link.prepare.logged))
    if not settings.link:
        link = dataclasses.replace(link, coefficients=np.zeros_like(link.coefficients))
    network = TLSTM(link.data.inputs.shape[1], settings).to(DEVICE)
    history = _train(network, link, progress=progress)
    predictor = Predictor(link.prepare, tuple(grid), link.coefficients, network)
    return predictor.calibrated(link.data, validation, ties=settings.ties, recalibrate=settings.recalibrate), history


def _level(progress: bool) -> int:
    """Of the lines about what was chosen: a fit among many does not show them."""
    return logging.INFO if progress else logging.DEBUG


def _train(network: TLSTM, link: Link, *, progress: bool) -> pd.DataFrame:
    """Train all seeds together; keep the weights of the epoch with the lowest mean validation loss.

    Epoch 0 is the link alone. All seeds stop at one epoch: the mean of their losses is less noisy than each loss.

    Returns: `epoch, train_loss, val_loss`, losses per event, a row an epoch.
    """
    settings, data, splits = network.settings, link.data, link.splits
    epochs = settings.epochs
    if len(data.visits.sizes) == 1:
        logger.warning("nobody has two visits: there is no history to learn from, so this is a Cox model")
        epochs = 0
    tensors = _tensors(data)
    linear = torch.tensor(link.coefficients @ data.inputs[data.rows].T, dtype=torch.float32, device=DEVICE)  # (S, R)
    places, sets = stack_seeds(data.landmarks, splits, settings.ties)  # of the training rows in (S, R) flattened
    flat = torch.tensor(places, device=DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, best_weights, history = 0, copy.deepcopy(network.state_dict()), []
    torch.manual_seed(settings.seed)
    for epoch in tqdm(range(epochs + 1), desc="T-LSTM", unit="epoch", disable=not progress):
        network.eval()
        with torch.no_grad():
            log_hazard = linear + network(*tensors)[0]  # (S, R)
        val_losses = [
            float(stratified_cox_loss(of_seed[split.val], split.val_sets))
            for of_seed, split in zip(log_hazard, splits, strict=True)
        ]
        train_loss = float(stratified_cox_loss(log_hazard.flatten()[flat], sets))
        history.append({"epoch": epoch, "train_loss": train_loss, "val_loss": float(np.mean(val_losses))})
        if history[-1]["val_loss"] < history[best]["val_loss"]:
            best, best_weights = epoch, copy.deepcopy(network.state_dict())
        if epoch - best >= settings.patience:
            break
        network.train()
        optimizer.zero_grad()
        stratified_cox_loss((linear + network(*tensors)[0]).flatten()[flat], sets).backward()
        optimizer.step()
    network.load_state_dict(best_weights)
    network.eval()
    logger.log(_level(progress), "T-LSTM: best epoch %d, validation loss %.4f", best, history[best]["val_loss"])
    return pd.DataFrame(history)


# ---- The saved model -----------------------------------------------------------------------------
def save(predictor: Predictor, folder: str | Path) -> None:
    """Write `model.pt` (weights only) and `model.json` (everything else).

    Args:
        predictor: its network is a TLSTM, or a stack's correction with one, or None.
        folder: to write to.
    Raises:
        WriteError: the disk is full, or the folder read-only.
    """
    stack = predictor.network if isinstance(predictor.network, StackedCorrection) else None
    network = stack.network if stack is not None else predictor.network
    assert network is None or isinstance(network, TLSTM)
    weights = io.BytesIO()  # PyTorch's own writer does not report that the disk is full
    torch.save(network.state_dict() if network is not None else {}, weights)
    settings = dataclasses.asdict(network.settings) if network is not None else None
    parts = {"settings": settings, "stack": stack.to_json() if stack is not None else None}
    write_model(Path(folder), parts | predictor.to_json(), weights.getvalue())


def load(folder: str | Path) -> Predictor:
    """Read what `save` wrote; `load(folder).predict(table, years=...)` predicts.

    Args:
        folder: with `model.json` and `model.pt`.
    Returns:
        The predictor, its network ready to predict; `years` of `predict` are years after the landmark.
    Raises:
        InputError: names the file that is absent, damaged or of another version.
    """
    model, weights = read_model(Path(folder))
    try:
        return _restore(model, torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
    except NOT_A_MODEL as error:
        raise InputError(f"{folder}: the model is damaged: {error}. Run python tlstm.py again.") from error


def _restore(model: dict[str, Any], weights: dict[str, torch.Tensor]) -> Predictor:
    """Build the predictor with its network; what does not fit raises one of NOT_A_MODEL."""
    if model["settings"] is None:
        return Predictor.from_json(model, num_seeds=1)
    unknown = {"winsorise": 0.0, "stage2": "tlstm"}  # to a model that was saved before there were these settings
    settings = TypeAdapter(Settings).validate_python(unknown | model["settings"])
    expected = (settings.num_seeds, settings.hidden, 4 * settings.hidden)
    if tuple(weights["recurrent"].shape) != expected:  # checked before a network of a wrong, huge size is built
        raise ValueError(f"recurrent: expected {expected}, received {tuple(weights['recurrent'].shape)}")
    stack = model.get("stack")
    predictor = Predictor.from_json(model, num_seeds=settings.num_seeds if stack is None else 1)
    network = TLSTM(predictor.prepare.num_inputs, settings)
    network.load_state_dict(weights)
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError("expected finite weights")
    whole: Correction = network.to(DEVICE).eval()
    if stack is not None:
        whole = StackedCorrection.from_json(stack, whole, num_inputs=predictor.prepare.num_inputs)
    return dataclasses.replace(predictor, network=whole)


# ---- The command line ----------------------------------------------------------------------------
def main(arguments: list[str]) -> int:
    """Run stage 2.

    Args:
        arguments: of the command line.
    Returns:
        The exit code, as `runs.processes.exit_code`.
    """

    def work(config: Config) -> None:
        with lock_run(config.OUTPUT_DIR):
            torch.set_num_threads(threads := fix_threads(config.OUTPUT_DIR))
            torch.use_deterministic_algorithms(True, warn_only=True)  # warns where a GPU has no such operation
            do = partial(compare_in_folds, models_of=partial(models_of, config)) if config.FOLDS else run
            if (record := do(config, threads)) is not None:
                from reporting.table_report import report_table  # slow to import

                report_table(record)

    return run_main(partial(read_config, arguments, "tlstm.py"), work)


def run(config: Config, threads: int) -> TableRecord | None:
    """Train on the train and validation parts, predict all three parts, write the folder `tlstm`.

    Args:
        config: the run's settings; LANDMARKS and HORIZONS are years.
        threads: of the run.
    Returns:
        The record of a run on the table FEATURES; None: the features are those of a run of `main.py`.
    Raises:
        InputError: the tables can't be used; nothing is written then.
    """
    parts = read_feature_parts(config)
    log_cohort(parts, time_unit=config.TIME_UNIT, landmarks=config.LANDMARKS, horizons=config.HORIZONS)
    columns = usable_columns(parts)
    learned = pd.concat([parts["train"], parts["val"]]).sort_values(["subject", "visit_time"], ignore_index=True)
    is_val = np.isin(np.unique(learned["subject"].to_numpy(str)), parts["val"]["subject"].to_numpy(str))
    validation = np.tile(is_val, (config.NUM_SEEDS, 1))  # (S, N)
    grid, settings = landmark_grid(parts, config.LANDMARKS, config.LANDMARK_STEP), Settings.of(config)
    with recorded(config, "tlstm", pd.concat(parts.values()), threads) as record:
        screen_columns(parts, columns.used, landmarks=config.LANDMARKS, winsorise=config.WINSORISE)
        predictor, history = fit(learned, validation, columns.used, grid=grid, settings=settings, progress=True)
        predictor.prepare.coding.warn_of_unseen(parts)
        years = curve_years(config.HORIZONS)

        def predict(predictor: Predictor) -> dict[str, pd.DataFrame]:
            """Predict every part."""
            return {name: predictor.predict(part, config.LANDMARKS, years=years) for name, part in parts.items()}

        predicted, of_arms = predict(predictor), {name: predict(arm) for name, arm in predictor.arms.items()}
        by_visit = None if config.LANDMARKS else predict_by_visit(predictor, parts["test"], years)
        save(predictor, config.OUTPUT_DIR / "tlstm")
        shown = with_attention(predicted, of_arms.get("tlstm", predicted))
        write_predicted(config.OUTPUT_DIR / "tlstm", shown, by_visit, history)
        rivals = linear_rivals(columns.used, config.PENALTIES, grid, winsorise=config.WINSORISE)
        used = {name: part.filter([*tables.OUR_COLUMNS, *columns.used]) for name, part in parts.items()}
        figures = stage2_figures(
            *(config, used),
            predicted=predicted,
            arms=of_arms,
            weights=weights_of(predictor),
            rivals=lambda: predict_parts(rivals, learned, validation, parts, config.LANDMARKS, years),
        )
        if record is not None:
            write_splits(config.OUTPUT_DIR / "splits", parts, config.TIME_UNIT)
        figures["columns"] = columns.as_json()
        merge_metrics(config.OUTPUT_DIR, figures, beside=None if record is None else ("cv",))
    return record


def models_of(config: Config, columns: Sequence[str], grid: Sequence[float]) -> dict[str, crossval.Model]:
    """Make the models of a cross-validation by name: ours, its rivals, the link alone."""
    settings, last = Settings.of(config), crossval.LastFit()

    def fitted(settings: Settings) -> crossval.Model:
        def fit_network(train: pd.DataFrame, validation: np.ndarray) -> crossval.Trained:
            predictor, history = fit(train, validation, columns, grid=grid, settings=settings)
            last.keep(train, predictor)
            return crossval.Trained.of(predictor, history)

        return fit_network

    def link(train: pd.DataFrame, validation: np.ndarray) -> crossval.Trained:
        alone = fitted(dataclasses.replace(settings, stage2="link"))
        return last.arm("link", train) or alone(train, validation)

    return {
        crossval.OUR_MODEL: fitted(settings),
        **linear_rivals(columns, config.PENALTIES, grid, winsorise=config.WINSORISE),
        "link": link,
        "lstm": fitted(dataclasses.replace(settings, stage2="tlstm", time_aware=False)),
    }


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
