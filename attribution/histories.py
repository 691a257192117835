"""Why a history has its log-hazard: Shapley values of visits and of groups of inputs, and effects of region by visit.

NumPy alone: both networks come as functions of arrays. Shapes: V visits, P inputs of stage 2, C outputs of stage 1,
B background scans, R regions, T horizons. A value above 0 raises the log-hazard.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pandas as pd
from scipy.special import comb

from attribution.regions import ELSEWHERE, Regions
from survival.estimates import survival_curves
from survival.landmarks import Histories, Landmarks, Visits
from survival.predictor import Predictor
from survival.preparation import IMAGE_FEATURE, Preparation, years_since_last

MOST_VISITS = 12  # of which all 2^V coalitions are computed
LEAST_GRADIENTS = 64  # of stage 1 at each visit: two for each of 32 background scans
UNATTRIBUTED = "unattributed"  # the part of the gap that the integrals miss
NODES, WEIGHTS = ((part + shift) / 2 for part, shift in zip(np.polynomial.legendre.leggauss(3), (1, 0), strict=True))
INPUT_STEP = 0.05  # of stage 2's standardised inputs: float32 rounding and curvature both err by about 1e-6
OUTPUT_STEP = 1e-4  # of stage 1's outputs, through the preparation in float64
LEAST_GAP = 1e-6  # of the log-hazard; below it, the secant of the risk is taken over this step
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStage:
    """Stage 1 as functions of arrays."""

    names: Sequence[str]  # (C,) columns of the feature table
    outputs: Callable[[np.ndarray], np.ndarray]  # (B, X, Y, Z, 1) -> (B, C)
    gradient_of_weighted_outputs: Callable[[np.ndarray, np.ndarray], np.ndarray]
    # (B, X, Y, Z, 1) and weights (B, C) -> (B, X, Y, Z, 1): d (weighted sum of a volume's outputs) / d voxel

    def with_progress(
        self, progress: Callable[[np.ndarray], np.ndarray], gradient_of_progress: Callable[[np.ndarray], np.ndarray]
    ) -> "ImageStage":
        """The same with one more output, `progress`.

        Args:
            progress: (B, X, Y, Z, 1) -> (B,) years.
            gradient_of_progress: (B, X, Y, Z, 1) -> the same shape: d progress / d voxel.
        """

        def outputs(volumes: np.ndarray) -> np.ndarray:
            """Those of the network, then progress."""
            return np.concatenate([self.outputs(volumes), progress(volumes)[:, None]], axis=1)

        def gradient(volumes: np.ndarray, of_outputs: np.ndarray) -> np.ndarray:
            """That of the network, and that of progress."""
            of_network = self.gradient_of_weighted_outputs(volumes, of_outputs[:, :-1])
            return of_network + of_outputs[:, -1].reshape(-1, 1, 1, 1, 1) * gradient_of_progress(volumes)

        return ImageStage([*self.names, "progress"], outputs, gradient)


@dataclass(frozen=True)
class HistorySettings:
    """What the effects of region by visit are computed for."""

    regions: Regions  # on the volumes' grid
    horizons: Sequence[float]  # (T,) years after the last visit at which the risk is explained, beside the log-hazard
    seed: int  # of the positions on the paths from the background to the scans


class HistoryExplanation(TypedDict):
    """What `explain_history` returns and `reporting.timelines.save_history` writes."""

    visits: pd.DataFrame  # visits.csv
    groups: pd.DataFrame  # groups.csv
    regions: pd.DataFrame  # region_by_visit.csv
    metrics: dict[str, float | None]  # the log-hazards, and the share of the effects that is unattributed


def explain_history(
    predictor: Predictor,
    table: pd.DataFrame,
    volumes: np.ndarray,
    background: np.ndarray,
    *,
    image_stage: ImageStage,
    expected: float,
    settings: HistorySettings,
) -> HistoryExplanation:
    """Explain the log-hazard of one subject at its last visit: by visit, by group of inputs, by region and visit.

    Args:
        predictor: stage 2.
        table: V visits of the subject in memory's columns, sorted; covariates, but no outputs of stage 1.
        volumes: (V, X, Y, Z, 1) float32, their scans.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        image_stage: stage 1, which reads the scans.
        expected: the log-hazard of somebody without a visit: the training subjects' mean.
        settings: regions, horizons in years, and a seed.
    Returns:
        The tables of `visit_shapley`, `group_shapley` and `region_by_visit`, and the metrics of the last one.
    """
    outputs = image_stage.outputs(volumes)  # (V, C)
    table = table.drop(columns=["time", "event"], errors="ignore").reset_index(drop=True)
    with_outputs = pd.concat([table, pd.DataFrame(outputs.astype(float), columns=list(image_stage.names))], axis=1)
    by_visit = visit_shapley(predictor, with_outputs, expected=expected)
    by_group = group_shapley(predictor, with_outputs)
    by_region, metrics = region_by_visit(
        predictor, table, volumes, background, image_stage=image_stage, settings=settings
    )
    return {"visits": by_visit, "groups": by_group, "regions": by_region, "metrics": {"expected": expected, **metrics}}


# ---- Shapley values by all coalitions ------------------------------------------------------------------------


def shapley(coalition_value: Callable[[np.ndarray], np.ndarray], num_players: int) -> np.ndarray:
    """Exact Shapley values.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S)); the factor is
    1 / (n * binomial(n - 1, |S|)).

    Args:
        coalition_value: v: (K, n) bool, who takes part in each of K coalitions -> (K,).
        num_players: n; v is computed for every one of the 2^n coalitions.
    Returns:
        (n,), which sum to v(all) - v(nobody).
    Source: Shapley (1953). Checked against the mean over all orders.
    """
    number = np.arange(2**num_players)
    members = (number[:, None] >> np.arange(num_players)) & 1 == 1  # (2^n, n)
    value, size = coalition_value(members), members.sum(axis=1)  # v(S), |S|
    phi = np.empty(num_players)
    for player in range(num_players):
        without = number[~members[:, player]]  # the S without i
        gain = value[without | 1 << player] - value[without]  # v(S + i) - v(S)
        phi[player] = (gain / (num_players * comb(num_players - 1, size[without]))).sum()
    return phi


def visit_shapley(
    predictor: Predictor, table: pd.DataFrame, *, expected: float, landmark: float | None = None
) -> pd.DataFrame:
    """Shapley value of each visit beside its attention; an absent visit is taken out of the history.

    The changes and gaps of the other visits are then computed as if it had never been; the landmark stays. A visit
    after the landmark is masked from the start, so its value is exactly 0.

    Args:
        predictor: stage 2.
        table: V visits of one subject with every feature, sorted.
        expected: the log-hazard without any visit.
        landmark: years from baseline; None: the last visit.
    Returns:
        A row a visit: `visit` from 1, `visit_time` (years), `shapley` (log-hazard; they sum to the log-hazard less
        `expected`; NaN with more than MOST_VISITS visits) and `attention` (a share; NaN where there is none).
    """
    landmark = float(table["visit_time"].iloc[-1]) if landmark is None else landmark
    visible = (table["visit_time"] <= landmark).to_numpy()

    def coalition_value(members: np.ndarray) -> np.ndarray:
        """(K, V) bool -> (K,) log-hazard of the history that consists of these visits."""
        distinct, place = np.unique(members & visible, axis=0, return_inverse=True)  # equal ones are predicted once
        not_empty = np.flatnonzero(distinct.any(axis=1))
        value = np.full(len(distinct), expected)
        if len(not_empty):
            cut = [table[distinct[row]].assign(subject=f"{row:06d}") for row in not_empty]
            histories = pd.concat(cut, ignore_index=True)
            value[not_empty] = predictor.predict(histories, (landmark,), years=())["log_hazard"]
        return value[place.reshape(-1)]

    num_visits = len(table)
    if num_visits > MOST_VISITS:
        logger.warning("%d visits: the Shapley values of more than %d are not computed", num_visits, MOST_VISITS)
    phi = shapley(coalition_value, num_visits) if num_visits <= MOST_VISITS else np.full(num_visits, np.nan)
    predicted = predictor.predict(table.assign(subject="0"), (landmark,), years=()).iloc[0]
    attention = [float(predicted.get(f"attention_{visit + 1}", np.nan)) for visit in range(num_visits)]
    visit, visit_time = np.arange(num_visits) + 1, table["visit_time"].to_numpy(float)
    return pd.DataFrame({"visit": visit, "visit_time": visit_time, "shapley": phi, "attention": attention})


def group_shapley(predictor: Predictor, table: pd.DataFrame) -> pd.DataFrame:
    """Shapley value of each group of stage 2's inputs, over all visits; an absent group is at the training mean, 0.

    Args:
        predictor: stage 2.
        table: V visits of one subject with every feature, sorted.
    Returns:
        `group, num_inputs, shapley` (log-hazard); they sum to the log-hazard less that of a history at the mean.
    """
    group = input_groups(predictor.prepare)
    names = list(dict.fromkeys(group))
    inputs = predictor.prepare(table)  # (V, P)
    place = np.array([names.index(name) for name in group])  # (P,)
    predict = _log_hazard_of_inputs(predictor, table)
    phi = shapley(lambda members: predict(inputs * members[:, None, place]), len(names))
    return pd.DataFrame({"group": names, "num_inputs": np.bincount(place), "shapley": phi})


def input_groups(prepare: Preparation) -> list[str]:
    """(P,) the group that each of stage 2's inputs belongs to."""
    known = {"log_hazard": "log-hazard of the scan", "progress": "progress of the scan"}
    values = [known.get(name, "covariates") for name in prepare.columns if not IMAGE_FEATURE.fullmatch(name)]
    values += ["image components"] * len(prepare.components)
    times = ["times of the visits"] * 2
    change = [f"{name}, change" if name in known.values() else name for name in values]
    return [*values, *["covariates"] * len(prepare.missing), *times, *change]


# ---- Effects of region by visit, through both stages -----------------------------------------------------------


def region_by_visit(
    predictor: Predictor,
    table: pd.DataFrame,
    volumes: np.ndarray,
    background: np.ndarray,
    *,
    image_stage: ImageStage,
    settings: HistorySettings,
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """How much each region at each visit moves the final log-hazard, and the risk at each horizon.

    The subject is compared with each background scan, seen at every visit in place of the subject's own. Stage 2's
    slopes, integrated from the background's outputs of stage 1 to the subject's, are the weights of stage 1's
    gradients, integrated from the background to the scan. Covariates and times stay the subject's. The effect on a risk
    is the effect on the log-hazard times the secant of the risk.

    Args: as `explain_history`.
    Returns:
        A row a region and visit: `label, region, visit, visit_time` (years), `log_hazard, risk_<horizon>...`. The rows
        `unattributed` (label -1) hold what the integrals miss, so that a column sums to f(x) - mean f(background).
        Besides the log-hazard, its mean over the backgrounds, and `unattributed`: the visits' |unattributed| as a share
        of their |sums|, None if all are 0.
    Source: Erion et al. (2021), eq. 4, for stage 1; Chen et al. (2022), Nat Commun 13, 4512, for the chain of models.
    """
    names, prepare = image_stage.names, predictor.prepare
    outputs, base_outputs = (
        image_stage.outputs(part).astype(float) for part in (volumes, background)
    )  # (V, C), (B, C)
    inputs = _prepared(prepare, table, names, outputs[None])[0]  # (V, P)
    base = _prepared(prepare, table, names, np.repeat(base_outputs[:, None], len(outputs), axis=1))  # (B, V, P)
    predict = _log_hazard_of_inputs(predictor, table)
    value, base_values = float(predict(inputs[None])[0]), predict(base)  # f(x) (), f(x') (B,)
    slopes = _mean_slopes(predict, inputs, base)  # (B, V, P)
    weights = np.einsum("bwp,vcwp->bvc", slopes, _jacobian(prepare, table, names, outputs))  # chain rule
    effects = _integrate(volumes, background, weights, image_stage, settings.regions, settings.seed)  # (B, V, R)
    due = np.einsum("bvc,bvc->bv", weights, outputs - base_outputs[:, None])  # what a visit's effects should sum to
    due += ((value - base_values) - due.sum(axis=1))[:, None] / len(outputs)  # error of stage 2's integral, about 1e-5
    effects = np.concatenate([effects, (due - effects.sum(axis=-1))[..., None]], axis=-1)  # (B, V, R + 1)
    means = {"log_hazard": effects.mean(axis=0)}  # (V, R + 1)
    risk = _risk(predictor, float(table["visit_time"].iloc[-1]), settings.horizons)
    gap = np.where(np.abs(value - base_values) < LEAST_GAP, LEAST_GAP, value - base_values)
    secants = (risk(base_values + gap) - risk(base_values)) / gap[:, None]  # (B, T)
    for year, secant in zip(settings.horizons, secants.T, strict=True):
        means[f"risk_{float(year)}"] = np.einsum("b,bvr->vr", secant, effects) / len(effects)
    metrics = {
        "log_hazard": value,
        "background_log_hazard": float(base_values.mean()),
        "unattributed": _unattributed_share(means["log_hazard"]),
    }
    return _as_table(means, table, settings.regions), metrics


def _unattributed_share(effects: np.ndarray) -> float | None:
    """Of effects (V, R + 1): |unattributed|, the last column, summed over visits, as a share of the |visits' sums|."""
    missed, total = np.abs(effects[:, -1]).sum(), np.abs(effects.sum(axis=1)).sum()
    return float(missed / total) if total > LEAST_GAP else None


def _as_table(effects: dict[str, np.ndarray], table: pd.DataFrame, regions: Regions) -> pd.DataFrame:
    """Arrays (V, R + 1) as columns of a table, the visits of a region one after the other."""
    labels, names = [0, *regions.names, -1], [ELSEWHERE, *regions.names.values(), UNATTRIBUTED]
    num_visits = len(table)
    columns: dict[str, Any] = {
        "label": np.repeat(labels, num_visits),
        "region": np.repeat(names, num_visits),
        "visit": np.tile(np.arange(num_visits) + 1, len(names)),
        "visit_time": np.tile(table["visit_time"].to_numpy(float), len(names)),
    }
    return pd.DataFrame(columns | {name: values.T.ravel() for name, values in effects.items()})


def _integrate(
    volumes: np.ndarray,
    background: np.ndarray,
    weights: np.ndarray,
    image_stage: ImageStage,
    regions: Regions,
    seed: int,
) -> np.ndarray:
    """(B, V, R): stage 1's weighted gradients on the lines from each background to the scans, summed by region.

    A line holds an even grid of positions. Its offset is stratified over the backgrounds, for each visit by itself.
    """
    rng = np.random.default_rng(seed)
    strata = np.stack([rng.permutation(len(background)) for _ in volumes], axis=1)  # (B, V)
    offset = (strata + rng.uniform(size=strata.shape)) / len(background)
    rounds = -(-LEAST_GRADIENTS // len(background))
    labels, keys = regions.labels.ravel(), [0, *regions.names]
    effects = np.empty((*strata.shape, len(keys)))
    for row, other in enumerate(background):
        difference = volumes - other  # x - x', (V, X, Y, Z, 1)
        gradient = np.zeros_like(difference)
        row_weights = weights[row].astype(np.float32)  # (V, C)
        for step in range(rounds):
            alpha = ((step + offset[row]) / rounds).astype(np.float32)[:, None, None, None, None]
            gradient += image_stage.gradient_of_weighted_outputs(other + alpha * difference, row_weights) / rounds
        by_voxel = gradient * difference  # (x - x') E_alpha dg/dx
        for visit, values in enumerate(by_voxel):
            effects[row, visit] = np.bincount(labels, values.ravel().astype(float), minlength=max(keys) + 1)[keys]
    return effects


def _log_hazard_of_inputs(predictor: Predictor, table: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Stage 2 at the last visit as a function of its inputs, (N, V, P) -> (N,), at the times of this history."""
    times, gaps = table["visit_time"].to_numpy(float), years_since_last(table.assign(subject="0"))

    def predict(inputs: np.ndarray) -> np.ndarray:
        number, num_visits = inputs.shape[:2]  # N, V
        subjects = np.arange(number)
        visits = Visits(
            subject=subjects,
            rank=subjects,
            count=np.full(number, num_visits),
            sizes=np.full(num_visits, number),
            order=np.arange(number * num_visits).reshape(number, num_visits).T.ravel(),
            visit_time=np.tile(times, (number, 1)),
        )
        last, unknown = np.full(number, num_visits - 1), np.full(number, np.nan)
        cut = Landmarks(subjects, last, np.full(number, times[-1]), np.zeros(number, int), unknown, unknown > 0)
        rows = visits.row(subjects, last)
        flat = inputs.transpose(1, 0, 2).reshape(number * num_visits, -1)  # (V N, P), in the order of Visits
        data = Histories(visits, cut, flat, np.repeat(gaps, number), rows, flat[rows])
        return predictor.log_hazard(data)[0]

    return predict


def _prepared(prepare: Preparation, table: pd.DataFrame, names: Sequence[str], outputs: np.ndarray) -> np.ndarray:
    """(N, V, P) inputs of stage 2 with these outputs (N, V, C) of stage 1 in the history of `table`."""
    number, num_visits, _ = outputs.shape
    rows = np.tile(np.arange(num_visits), number)
    images = pd.DataFrame(outputs.reshape(number * num_visits, -1), columns=list(names))
    others = table.drop(columns=list(names), errors="ignore").iloc[rows].reset_index(drop=True)
    whole = pd.concat([others, images], axis=1).assign(subject=np.repeat(np.arange(number), num_visits))
    return prepare(whole).reshape(number, num_visits, -1)


def _jacobian(prepare: Preparation, table: pd.DataFrame, names: Sequence[str], outputs: np.ndarray) -> np.ndarray:
    """(V, C, V, P): d stage 2's inputs / d stage 1's outputs (V, C); the preparation is affine in them."""
    num_outputs, by_visit = outputs.shape[1], []
    for visit in range(len(outputs)):
        step = np.zeros((num_outputs, *outputs.shape))
        step[np.arange(num_outputs), visit, np.arange(num_outputs)] = OUTPUT_STEP
        up, down = (_prepared(prepare, table, names, outputs + sign * step) for sign in (1, -1))
        by_visit.append((up - down) / (2 * OUTPUT_STEP))
    return np.stack(by_visit)


def _mean_slopes(predict: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, base: np.ndarray) -> np.ndarray:
    """(B, V, P) slopes of stage 2, averaged over the lines from each base (B, V, P) to the inputs (V, P)."""
    step = INPUT_STEP * np.eye(inputs.size).reshape(-1, *inputs.shape)  # (V P, V, P)
    slopes = np.zeros(base.shape)
    for node, weight in zip(NODES, WEIGHTS, strict=True):  # Gauss-Legendre
        points = (base + node * (inputs - base))[:, None]  # (B, 1, V, P)
        up, down = (predict((points + sign * step).reshape(-1, *inputs.shape)) for sign in (1, -1))
        slopes += weight * ((up - down) / (2 * INPUT_STEP)).reshape(base.shape)
    return slopes


def _risk(predictor: Predictor, landmark: float, horizons: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """The risk at each horizon as a function of the log-hazard, (N,) -> (N, T), by the baseline of the landmark."""
    (nearest,) = predictor.nearest_baseline(np.array([landmark]))
    baseline = predictor.baselines[nearest]
    return lambda log_hazard: 1 - survival_curves(baseline, log_hazard, np.asarray(horizons, float))
