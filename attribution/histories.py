"""Why a history has its log-hazard: Shapley values of visits and of groups of inputs, and region by visit.

NumPy alone: both networks come as functions of arrays. Shapes: V visits, P inputs of stage 2, C outputs of
stage 1, B backgrounds, R regions. Above 0 raises the log-hazard.
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

MOST_VISITS = 12  # 2^V coalitions
LEAST_GRADIENTS = 64  # of stage 1 at each visit: two a background of 32
UNATTRIBUTED = "unattributed"  # what the integrals miss of the gap
NODES, WEIGHTS = ((part + shift) / 2 for part, shift in zip(np.polynomial.legendre.leggauss(3), (1, 0), strict=True))
INPUT_STEP = 0.05  # of stage 2's standardised inputs: float32 rounding and curvature both err by about 1e-6
OUTPUT_STEP = 1e-4  # of stage 1's outputs, through the preparation in float64
LEAST_GAP = 1e-6  # of the log-hazard, below which a secant of the risk is a tangent
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage1:
    """Stage 1 as functions of arrays."""

    names: Sequence[str]  # (C,) columns of the feature table
    outputs: Callable[[np.ndarray], np.ndarray]  # (B, X, Y, Z, 1) -> (B, C)
    pull: Callable[[np.ndarray, np.ndarray], np.ndarray]  # and weights (B, C) -> gradient of their sum by voxel


class HistoryExplanation(TypedDict):
    """What `explain_history` returns and `timelines.save_history` writes."""

    visits: pd.DataFrame  # visits.csv
    groups: pd.DataFrame  # groups.csv
    regions: pd.DataFrame  # region_by_visit.csv
    metrics: dict[str, float | None]  # the sums, and how far the parts are from them


def explain_history(
    predictor: Predictor,
    table: pd.DataFrame,
    volumes: np.ndarray,
    background: np.ndarray,
    *,
    stage1: Stage1,
    regions: Regions,
    horizons: Sequence[float],
    expected: float,
    seed: int = 0,
) -> HistoryExplanation:
    """Explain the log-hazard of one subject at its last visit, by visit, by group of inputs, by region and visit.

    Args:
        predictor: stage 2.
        table: (V) visits of the subject in memory's columns, sorted; covariates, but no outputs of stage 1.
        volumes: (V, X, Y, Z, 1) float32, their scans.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        stage1: the network that reads them.
        regions: on the volumes' grid.
        horizons: years after the last visit at which the risk is explained too.
        expected: the log-hazard of somebody without a visit: the training subjects' mean.
        seed: of the positions on the paths.
    Returns:
        The tables of `visit_shapley`, `group_shapley` and `region_by_visit`, and their errors.
    """
    own = stage1.outputs(volumes)
    table = table.drop(columns=["time", "event"], errors="ignore").reset_index(drop=True)
    seen = pd.concat([table, pd.DataFrame(own.astype(float), columns=list(stage1.names))], axis=1)
    by_visit = visit_shapley(predictor, seen, expected=expected)
    by_group = group_shapley(predictor, seen)
    parts, errors = region_by_visit(
        predictor, table, volumes, background, stage1=stage1, regions=regions, horizons=horizons, seed=seed
    )
    return {"visits": by_visit, "groups": by_group, "regions": parts, "metrics": {"expected": expected, **errors}}


# ---- Shapley values by all coalitions ------------------------------------------------------------------
def shapley(worth: Callable[[np.ndarray], np.ndarray], num_players: int) -> np.ndarray:
    """Exact Shapley values.

    Args:
        worth: (K, n) bool, who takes part -> (K,).
        num_players: n; every one of the 2^n coalitions is asked for.
    Returns:
        (n,), which sum to worth(all) - worth(none).
    Source: Shapley (1953). Checked against the mean over all orders.
    """
    number = np.arange(2**num_players)
    members = (number[:, None] >> np.arange(num_players)) & 1 == 1  # (2^n, n)
    worths, size = worth(members), members.sum(axis=1)
    values = np.empty(num_players)
    for player in range(num_players):
        without = number[~members[:, player]]
        gain = worths[without | 1 << player] - worths[without]
        values[player] = (gain / (num_players * comb(num_players - 1, size[without]))).sum()
    return values


def visit_shapley(
    predictor: Predictor, table: pd.DataFrame, *, expected: float, landmark: float | None = None
) -> pd.DataFrame:
    """Shapley value of each visit beside its attention; an absent visit is taken out of the history.

    The others' changes and gaps are then counted as if it had never been; the landmark stays. A visit after the
    landmark was masked from the start, so its value is exactly 0.

    Args:
        predictor: stage 2.
        table: visits of one subject with every feature, sorted.
        expected: the log-hazard without any visit.
        landmark: years from baseline; None: the last visit.
    Returns:
        A row a visit: `visit` from 1, `visit_time` (years), `shapley` (log-hazard; they sum to the log-hazard less
        `expected`; NaN with more than MOST_VISITS visits) and `attention` (a share; NaN where there is none).
    """
    landmark = float(table["visit_time"].iloc[-1]) if landmark is None else landmark
    seen = (table["visit_time"] <= landmark).to_numpy()

    def worth(members: np.ndarray) -> np.ndarray:
        kept, place = np.unique(members & seen, axis=0, return_inverse=True)  # equal histories, equal worth
        some = np.flatnonzero(kept.any(axis=1))
        worths = np.full(len(kept), expected)
        if len(some):
            histories = pd.concat([table[kept[row]].assign(subject=f"{row:06d}") for row in some], ignore_index=True)
            worths[some] = predictor.predict(histories, (landmark,), years=())["log_hazard"]
        return worths[place.reshape(-1)]

    if len(table) > MOST_VISITS:
        logger.warning("%d visits: the Shapley values of more than %d are not computed", len(table), MOST_VISITS)
    values = shapley(worth, len(table)) if len(table) <= MOST_VISITS else np.full(len(table), np.nan)
    predicted = predictor.predict(table.assign(subject="0"), (landmark,), years=()).iloc[0]
    attention = [float(predicted.get(f"attention_{visit + 1}", np.nan)) for visit in range(len(table))]
    return pd.DataFrame(
        {
            "visit": np.arange(len(table)) + 1,
            "visit_time": table["visit_time"].to_numpy(float),
            "shapley": values,
            "attention": attention,
        }
    )


def group_shapley(predictor: Predictor, table: pd.DataFrame) -> pd.DataFrame:
    """Shapley value of each group of stage 2's inputs, over all visits; an absent group is at the training mean, 0.

    Args:
        predictor: stage 2.
        table: visits of one subject with every feature, sorted.
    Returns:
        `group, num_inputs, shapley` (log-hazard); they sum to the log-hazard less that of a history at the mean.
    """
    group = input_groups(predictor.prepare)
    names = list(dict.fromkeys(group))
    inputs = predictor.prepare(table)  # (V, P)
    place = np.array([names.index(name) for name in group])
    predict = _on_inputs(predictor, table)
    values = shapley(lambda members: predict(inputs * members[:, None, place]), len(names))
    return pd.DataFrame({"group": names, "num_inputs": np.bincount(place), "shapley": values})


def input_groups(prepare: Preparation) -> list[str]:
    """(P,) the group that each of stage 2's inputs belongs to."""
    known = {"log_hazard": "log-hazard of the scan"}
    values = [known.get(name, "covariates") for name in prepare.columns if not IMAGE_FEATURE.fullmatch(name)]
    values += ["image components"] * len(prepare.components)
    times = ["times of the visits"] * 2
    change = [f"{name}, change" if name in known.values() else name for name in values]
    return [*values, *["covariates"] * len(prepare.missing), *times, *change]


# ---- Region by visit, through both stages ----------------------------------------------------------------
def region_by_visit(
    predictor: Predictor,
    table: pd.DataFrame,
    volumes: np.ndarray,
    background: np.ndarray,
    *,
    stage1: Stage1,
    regions: Regions,
    horizons: Sequence[float],
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """How much each region at each visit moves the final log-hazard, and the risk at each horizon.

    Against each background scan, seen at every visit in the place of the subject's: stage 2's slopes, integrated from
    the background's outputs of stage 1 to the subject's, weigh the gradients of stage 1, integrated from the
    background to the scan. Covariates and times stay the subject's. The risk's share is the log-hazard's times the
    secant of the risk.

    Args: as `explain_history`.
    Returns:
        A row a region and visit: `label, region, visit, visit_time, log_hazard, risk_<horizon>...`. The rows
        `unattributed` (label -1) hold what the integrals miss, so that a column sums to f(x) - mean f(background).
        The log-hazard, its mean over the backgrounds, and `unattributed`: the visits' |unattributed| over their |sums|,
        None if all are 0.
    Source: Erion et al. (2021), eq. 4, for stage 1; Chen et al. (2022), Nat Commun 13, 4512, for the chain of models.
    """
    own, others = (stage1.outputs(part).astype(float) for part in (volumes, background))  # (V, C), (B, C)
    inputs = _prepared(predictor.prepare, table, stage1.names, own[None])[0]
    base = _prepared(predictor.prepare, table, stage1.names, np.repeat(others[:, None], len(own), axis=1))
    predict = _on_inputs(predictor, table)
    value, values = float(predict(inputs[None])[0]), predict(base)  # (), (B,)
    slopes = _mean_slopes(predict, inputs, base)  # (B, V, P)
    weights = np.einsum("bwp,vcwp->bvc", slopes, _jacobian(predictor.prepare, table, stage1.names, own))
    parts = _integrate(volumes, background, weights, stage1, regions, seed)  # (B, V, R)
    due = np.einsum("bvc,bvc->bv", weights, own - others[:, None])
    due += ((value - values) - due.sum(axis=1))[:, None] / len(own)  # of stage 2's own integral: about 1e-5
    parts = np.concatenate([parts, (due - parts.sum(axis=-1))[..., None]], axis=-1)
    found = {"log_hazard": parts.mean(axis=0)}
    risk = _risk(predictor, float(table["visit_time"].iloc[-1]), horizons)
    gap = np.where(np.abs(value - values) < LEAST_GAP, LEAST_GAP, value - values)
    secants = (risk(values + gap) - risk(values)) / gap[:, None]  # (B, T)
    for year, secant in zip(horizons, secants.T, strict=True):
        found[f"risk_{float(year)}"] = np.einsum("b,bvr->vr", secant, parts) / len(parts)
    missed, effect = np.abs(found["log_hazard"][:, -1]).sum(), np.abs(found["log_hazard"].sum(axis=1)).sum()
    share = float(missed / effect) if effect > LEAST_GAP else None
    told = {"log_hazard": value, "background_log_hazard": float(values.mean()), "unattributed": share}
    return _as_table(found, table, regions), told


def _as_table(found: dict[str, np.ndarray], table: pd.DataFrame, regions: Regions) -> pd.DataFrame:
    """Arrays (V, R + 1) as rows, the visits of a region together."""
    labels, names = [0, *regions.names, -1], [ELSEWHERE, *regions.names.values(), UNATTRIBUTED]
    num_visits = len(table)
    columns: dict[str, Any] = {
        "label": np.repeat(labels, num_visits),
        "region": np.repeat(names, num_visits),
        "visit": np.tile(np.arange(num_visits) + 1, len(names)),
        "visit_time": np.tile(table["visit_time"].to_numpy(float), len(names)),
    }
    return pd.DataFrame(columns | {name: values.T.ravel() for name, values in found.items()})


def _integrate(
    volumes: np.ndarray,
    background: np.ndarray,
    weights: np.ndarray,
    stage1: Stage1,
    regions: Regions,
    seed: int,
) -> np.ndarray:
    """(B, V, R) of each background: stage 1's weighted gradients on its lines to the scans, by region.

    A line holds an even grid of positions, its offset stratified over the backgrounds, at each visit anew.
    """
    rng = np.random.default_rng(seed)
    strata = np.stack([rng.permutation(len(background)) for _ in volumes], axis=1)  # (B, V)
    offset = (strata + rng.uniform(size=strata.shape)) / len(background)
    rounds = -(-LEAST_GRADIENTS // len(background))
    labels, keys = regions.labels.ravel(), [0, *regions.names]
    parts = np.empty((*strata.shape, len(keys)))
    for row, other in enumerate(background):
        difference = volumes - other  # (V, X, Y, Z, 1)
        gradient = np.zeros_like(difference)
        for step in range(rounds):
            position = ((step + offset[row]) / rounds).astype(np.float32)[:, None, None, None, None]
            gradient += stage1.pull(other + position * difference, weights[row].astype(np.float32)) / rounds
        found = gradient * difference
        for visit, values in enumerate(found):
            parts[row, visit] = np.bincount(labels, values.ravel().astype(float), minlength=max(keys) + 1)[keys]
    return parts


def _on_inputs(predictor: Predictor, table: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Stage 2 at the last visit as a function of its inputs, (N, V, P) -> (N,), at the times of this history."""
    times, gaps = table["visit_time"].to_numpy(float), years_since_last(table.assign(subject="0"))

    def predict(inputs: np.ndarray) -> np.ndarray:
        number, num_visits = inputs.shape[:2]
        who = np.arange(number)
        visits = Visits(
            subject=who,
            rank=who,
            count=np.full(number, num_visits),
            sizes=np.full(num_visits, number),
            order=np.arange(number * num_visits).reshape(number, num_visits).T.ravel(),
            visit_time=np.tile(times, (number, 1)),
        )
        last, unknown = np.full(number, num_visits - 1), np.full(number, np.nan)
        cut = Landmarks(who, last, np.full(number, times[-1]), np.zeros(number, int), unknown, unknown > 0)
        rows = visits.row(who, last)
        flat = inputs.transpose(1, 0, 2).reshape(number * num_visits, -1)
        data = Histories(visits, cut, flat, np.repeat(gaps, number), rows, flat[rows])
        return predictor.slope * predictor.seeds(data)[0].mean(axis=0)

    return predict


def _prepared(prepare: Preparation, table: pd.DataFrame, names: Sequence[str], outputs: np.ndarray) -> np.ndarray:
    """(N, V, P) inputs of stage 2 with these outputs (N, V, C) of stage 1 in the history of `table`."""
    number, num_visits, _ = outputs.shape
    rows = np.tile(np.arange(num_visits), number)
    images = pd.DataFrame(outputs.reshape(number * num_visits, -1), columns=list(names))
    others = table.drop(columns=list(names), errors="ignore").iloc[rows].reset_index(drop=True)
    whole = pd.concat([others, images], axis=1).assign(subject=np.repeat(np.arange(number), num_visits))
    return prepare(whole).reshape(number, num_visits, -1)


def _jacobian(prepare: Preparation, table: pd.DataFrame, names: Sequence[str], own: np.ndarray) -> np.ndarray:
    """(V, C, V, P): stage 2's inputs by stage 1's outputs (V, C); the preparation is affine in them."""
    found = []
    for visit in range(len(own)):
        step = np.zeros((own.shape[1], *own.shape))
        step[np.arange(own.shape[1]), visit, np.arange(own.shape[1])] = OUTPUT_STEP
        up, down = (_prepared(prepare, table, names, own + sign * step) for sign in (1, -1))
        found.append((up - down) / (2 * OUTPUT_STEP))
    return np.stack(found)


def _mean_slopes(predict: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, base: np.ndarray) -> np.ndarray:
    """(B, V, P) slopes of stage 2, averaged over the lines from each base (B, V, P) to the inputs (V, P)."""
    step = INPUT_STEP * np.eye(inputs.size).reshape(-1, *inputs.shape)  # (V P, V, P)
    slopes = np.zeros(base.shape)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        points = (base + node * (inputs - base))[:, None]  # (B, 1, V, P)
        up, down = (predict((points + sign * step).reshape(-1, *inputs.shape)) for sign in (1, -1))
        slopes += weight * ((up - down) / (2 * INPUT_STEP)).reshape(base.shape)
    return slopes


def _risk(predictor: Predictor, landmark: float, horizons: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """The risk at each horizon as a function of the log-hazard, (N,) -> (N, T), by the baseline of the landmark."""
    nearest = int(np.abs(landmark - np.array(predictor.grid)).argmin()) if predictor.grid else 0
    baseline = predictor.baselines[nearest]
    return lambda log_hazard: 1 - survival_curves(baseline, log_hazard, np.asarray(horizons, float))
