"""What each visit of a history is worth, by value and by region: one game, so that all three sum to the same.

The players are the values that stage 2 gets from stage 1 at each visit. A coalition is worth the log-hazard of the
history in which its members' values are the subject's own, and the others' those of a background scan, which is seen at
every visit. Covariates, missing indicators and times stay the subject's.

NumPy alone: stage 1 comes as functions of arrays. Shapes: V visits, G values of a visit (as in `preparation.Seen`), of
which P play, C outputs of stage 1, B background scans, D draws, R regions, T horizons. A value above 0 raises the
log-hazard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from attribution.games import Game, Played, play, standard_error
from attribution.regions import ELSEWHERE, Regions
from survival.estimates import survival_curves
from survival.landmarks import Histories
from survival.predictor import Predictor, attention_weights
from survival.preparation import IMAGE_FEATURE, Preparation

LEAST_GRADIENTS = 64  # of stage 1 at each visit: two for each of 32 background scans
UNATTRIBUTED = "unattributed"  # the part of the gap that the integrals miss
LEAST_DIFFERENCE = 0.05  # of its root mean square over visits and backgrounds; a smaller one damps a value's ratio
LEAST_GAP = 1e-6  # of the log-hazard; below it, the secant of the risk is taken over this step
CHUNK_HISTORIES = 2**13  # predicted at a time
IMAGE_GROUPS = {"log_hazard": "log-hazard of the scan", "progress": "progress of the scan"}
COMPONENTS = "image components"


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
    seed: int  # of the orders of the players, and of the positions on the paths from the background to the scans


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
    settings: HistorySettings,
) -> HistoryExplanation:
    """Explain the log-hazard of one subject at its last visit: by visit, by group of values, by region and visit.

    Args:
        predictor: stage 2.
        table: V visits of the subject in memory's columns, sorted; covariates, but no outputs of stage 1.
        volumes: (V, X, Y, Z, 1) float32, their scans.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        image_stage: stage 1, which reads the scans.
        settings: regions, horizons in years, and a seed.
    Returns:
        `visits` and `groups` of `HistoryWorth`. In `regions` a row for each region and visit: `label, region, visit,
        visit_time` (years), `log_hazard, risk_<horizon>...`; the rows `unattributed` (label -1) hold what the
        integrals miss, so that a visit's rows sum to its Shapley value. In `metrics` the log-hazard, its mean over the
        backgrounds, and `unattributed`: the visits' |unattributed| as a share of their |sums|, None if all are 0.
    Source: Erion et al. (2021), eq. 4, for stage 1; Chen et al. (2022), Nat Commun 13, 4512, for the chain of models.
    """
    names, prepare = image_stage.names, predictor.prepare
    outputs = image_stage.outputs(volumes).astype(float)  # (V, C)
    base_outputs = image_stage.outputs(background).astype(float)  # (B, C)
    others = table.iloc[[0] * len(background)].assign(subject=np.arange(len(background)))
    base = prepare.values(_with_outputs(others, names, base_outputs))  # (B, G)
    worth = play_history(predictor, _with_outputs(table, names, outputs), base, seed=settings.seed)
    weights = _weights(worth, prepare, names, outputs, base_outputs)
    effects = _integrate(volumes, background, weights, image_stage, settings.regions, settings.seed)  # (B, V, R)
    by_region, metrics = _region_by_visit(predictor, worth, effects, settings)
    return {"visits": worth.visits(), "groups": worth.groups(), "regions": by_region, "metrics": metrics}


# ---- The game ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HistoryWorth:
    """What each value at each visit is worth to the log-hazard."""

    played: Played  # players are the V visits' P values, one visit after the other
    names: list[str]  # (P,) group that each value belongs to
    visit_time: np.ndarray  # (V,) years from baseline
    attention: np.ndarray | None  # (V,) shares, NaN after the landmark; None: stage 2 does not attend

    @property
    def shapley(self) -> np.ndarray:
        """The values (D, B, V, P) of each draw against each background."""
        return self.played.shapley.reshape(*self.played.shapley.shape[:2], len(self.visit_time), -1)

    def visits(self) -> pd.DataFrame:
        """Sum over the values of each visit.

        Returns:
            A row a visit: `visit` from 1, `visit_time` (years), `shapley` (log-hazard; they sum to the log-hazard less
            the backgrounds' mean), `standard_error` of it (0: exact), and, where stage 2 attends, `attention` (a
            share).
        """
        columns = {"visit": np.arange(len(self.visit_time)) + 1, "visit_time": self.visit_time}
        columns |= _mean_and_error(self.shapley.sum(axis=-1))
        return pd.DataFrame(columns if self.attention is None else columns | {"attention": self.attention})

    def groups(self) -> pd.DataFrame:
        """Sum over the visits and over the values of each group.

        Returns:
            `group, num_values, shapley, standard_error` (log-hazard), with the same sum as `visits`.
        """
        names = list(dict.fromkeys(self.names))
        is_of = np.array([[name == group for group in names] for name in self.names])  # (P, groups)
        sums = self.shapley.sum(axis=-2) @ is_of
        return pd.DataFrame({"group": names, "num_values": is_of.sum(axis=0), **_mean_and_error(sums)})


def play_history(
    predictor: Predictor,
    table: pd.DataFrame,
    background: np.ndarray | None = None,
    *,
    seed: int = 0,
    landmark: float | None = None,
) -> HistoryWorth:
    """Shapley values of each value of each visit: the image's, or of a table without images all values.

    Args:
        predictor: stage 2.
        table: V visits of one subject with every feature, sorted.
        background: (B, G) values of other scans; None: the training mean.
        seed: of the orders of the players, if they are too many for all coalitions.
        landmark: years from baseline; None: the last visit. A visit after it is worth exactly 0.
    Returns:
        The values, beside the attention of the visits.
    """
    prepare, table = predictor.prepare, table.drop(columns=["time", "event"], errors="ignore").reset_index(drop=True)
    landmark = float(table["visit_time"].iloc[-1]) if landmark is None else landmark
    seen = table[table["visit_time"] <= landmark]
    names, columns = _players(prepare)
    background = np.zeros((1, len(_value_names(prepare)))) if background is None else background
    game = _log_hazards(predictor, seen, background[:, columns], columns, landmark)
    played = play(game, len(seen) * len(columns), len(background), seed=seed)
    unseen = np.zeros((*played.shapley.shape[:2], (len(table) - len(seen)) * len(columns)))
    played = Played(np.concatenate([played.shapley, unseen], axis=-1), played.everybody, played.nobody)
    attention = _attention(predictor, table, landmark)
    return HistoryWorth(played, names, table["visit_time"].to_numpy(float), attention)


def _value_names(prepare: Preparation) -> list[str]:
    """(G,) the column that each value of a visit comes from, and COMPONENTS."""
    own = [name for name in prepare.columns if not IMAGE_FEATURE.fullmatch(name)]
    return [*own, *[COMPONENTS] * len(prepare.components)]


def _players(prepare: Preparation) -> tuple[list[str], np.ndarray]:
    """(P,) the values that play: group and place among the G; the image's, or all if there are none of an image."""
    names = _value_names(prepare)
    of_image = [place for place, name in enumerate(names) if name == COMPONENTS or name in IMAGE_GROUPS]
    columns = np.array(of_image or range(len(names)))
    return [IMAGE_GROUPS.get(names[place], names[place]) for place in columns], columns


def _log_hazards(
    predictor: Predictor, table: pd.DataFrame, background: np.ndarray, columns: np.ndarray, landmark: float
) -> Game:
    """The log-hazard at the landmark as a game of the values `columns` (P,) of V visits; `background` is (B, P)."""
    own, num_visits = predictor.prepare.values(table), len(table)  # (V, G)

    def predict(members: np.ndarray, of_background: np.ndarray) -> np.ndarray:
        values = np.tile(own, (len(members), 1, 1))  # (K, V, G)
        is_own = members.reshape(len(members), num_visits, len(columns))
        values[..., columns] = np.where(is_own, own[:, columns], background[of_background][:, None])
        subject = np.char.zfill(np.arange(len(members)).astype(str), 9).repeat(num_visits)
        histories = table.iloc[np.tile(np.arange(num_visits), len(members))].assign(subject=subject)
        flat = values.reshape(len(histories), -1)
        data = Histories.of(histories.reset_index(drop=True), predictor.prepare, (landmark,), values=flat)
        return predictor.log_hazard(data)[0]

    def in_chunks(members: np.ndarray, of_background: np.ndarray) -> np.ndarray:
        starts = range(0, len(members), CHUNK_HISTORIES)
        chunks = [slice(start, start + CHUNK_HISTORIES) for start in starts]
        return np.concatenate([predict(members[chunk], of_background[chunk]) for chunk in chunks])

    return in_chunks


def _attention(predictor: Predictor, table: pd.DataFrame, landmark: float) -> np.ndarray | None:
    """(V,) the share of each visit in the pooled state, NaN after the landmark; None without attention."""
    data = Histories.of(table.assign(subject="0"), predictor.prepare, (landmark,))
    scores = predictor.log_hazard(data)[1]
    return None if scores is None else attention_weights(scores, data)[0]


def _mean_and_error(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of sums (D, B, N) of Shapley values, (N,) each."""
    return {"shapley": sums.mean(axis=(0, 1)), "standard_error": standard_error(sums)}


# ---- Effects of region by visit, through both stages -----------------------------------------------------------


def _region_by_visit(
    predictor: Predictor, worth: HistoryWorth, effects: np.ndarray, settings: HistorySettings
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """The table of effects (B, V, R) on the log-hazard and on the risk at each horizon, and its metrics.

    The rows `unattributed` hold what the effects miss of the visits' worth. The effect on a risk is the effect on the
    log-hazard times the secant of the risk between the background and the subject.
    """
    value, base_values = worth.played.everybody, worth.played.nobody  # f(x) (), f(x') (B,)
    due = worth.shapley.mean(axis=0).sum(axis=-1)  # (B, V) what a visit's effects should sum to
    effects = np.concatenate([effects, (due - effects.sum(axis=-1))[..., None]], axis=-1)  # (B, V, R + 1)
    means = {"log_hazard": effects.mean(axis=0)}  # (V, R + 1)
    risk = _risk(predictor, float(worth.visit_time[-1]), settings.horizons)
    gap = np.where(np.abs(value - base_values) < LEAST_GAP, LEAST_GAP, value - base_values)
    secants = (risk(base_values + gap) - risk(base_values)) / gap[:, None]  # (B, T)
    for year, secant in zip(settings.horizons, secants.T, strict=True):
        means[f"risk_{float(year)}"] = np.einsum("b,bvr->vr", secant, effects) / len(effects)
    metrics = {
        "log_hazard": value,
        "background_log_hazard": float(base_values.mean()),
        "unattributed": _unattributed_share(means["log_hazard"]),
    }
    return _as_table(means, worth.visit_time, settings.regions), metrics


def _unattributed_share(effects: np.ndarray) -> float | None:
    """Of effects (V, R + 1): |unattributed|, the last column, summed over visits, as a share of the |visits' sums|."""
    missed, total = np.abs(effects[:, -1]).sum(), np.abs(effects.sum(axis=1)).sum()
    return float(missed / total) if total > LEAST_GAP else None


def _as_table(effects: dict[str, np.ndarray], visit_time: np.ndarray, regions: Regions) -> pd.DataFrame:
    """Arrays (V, R + 1) as columns of a table, the visits of a region one after the other."""
    labels, names = [0, *regions.names, -1], [ELSEWHERE, *regions.names.values(), UNATTRIBUTED]
    num_visits = len(visit_time)
    columns: dict[str, Any] = {
        "label": np.repeat(labels, num_visits),
        "region": np.repeat(names, num_visits),
        "visit": np.tile(np.arange(num_visits) + 1, len(names)),
        "visit_time": np.tile(visit_time, len(names)),
    }
    return pd.DataFrame(columns | {name: values.T.ravel() for name, values in effects.items()})


def _weights(
    worth: HistoryWorth, prepare: Preparation, names: Sequence[str], outputs: np.ndarray, base_outputs: np.ndarray
) -> np.ndarray:
    """(B, V, C) weights of stage 1's outputs: their integrated gradients share out the worth of each visit's values.

    A value is a function of one weighted sum of the outputs, and the weight of this sum is the value's worth by unit of
    its difference. Where scan and background hardly differ, a jump of stage 2 would make that ratio huge, so it is
    damped: what the regions then miss is unattributed.

    Args:
        worth: of the history.
        prepare: of stage 2.
        names: (C,) of the outputs.
        outputs: (V, C) of the subject's scans.
        base_outputs: (B, C) of the background scans.
    """
    shapley = worth.shapley.mean(axis=0)  # (B, V, P)
    sums = _sums_of_outputs(prepare, names)  # (P, C)
    difference = (outputs - base_outputs[:, None]) @ sums.T  # (B, V, P)
    least = LEAST_DIFFERENCE * np.sqrt((difference**2).mean(axis=(0, 1)))  # (P,)
    square = np.maximum(difference**2, least**2)
    ratio = np.divide(shapley * difference, square, out=np.zeros_like(shapley), where=square > 0)
    return ratio @ sums


def _sums_of_outputs(prepare: Preparation, names: Sequence[str]) -> np.ndarray:
    """(P, C): weights of the sum of stage 1's outputs that each playing value is a function of; 0 of a covariate."""
    weight = dict(zip(names, np.eye(len(names)), strict=True))
    is_feature = [IMAGE_FEATURE.fullmatch(name) is not None for name in prepare.columns]
    features = [weight[name] for name in prepare.columns if IMAGE_FEATURE.fullmatch(name)]
    components = prepare.components * prepare.scale.factor[is_feature] @ np.reshape(features, (-1, len(names)))
    columns = [name for name in _value_names(prepare) if name != COMPONENTS]
    own = [weight.get(name, np.zeros(len(names))) for name in columns]
    return np.concatenate([np.reshape(own, (-1, len(names))), components])[_players(prepare)[1]]


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


def _with_outputs(table: pd.DataFrame, names: Sequence[str], outputs: np.ndarray) -> pd.DataFrame:
    """The rows of a table with these outputs (N, C) of stage 1 in its columns."""
    others = table.drop(columns=list(names), errors="ignore").reset_index(drop=True)
    return pd.concat([others, pd.DataFrame(outputs, columns=list(names))], axis=1)


def _risk(predictor: Predictor, landmark: float, horizons: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """The risk at each horizon as a function of the log-hazard, (N,) -> (N, T), by the baseline of the landmark."""
    (nearest,) = predictor.nearest_baseline(np.array([landmark]))
    baseline = predictor.baselines[nearest]
    return lambda log_hazard: 1 - survival_curves(baseline, log_hazard, np.asarray(horizons, float))
