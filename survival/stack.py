"""The arms of stage 2 that need no network, and the stack of all arms, weighted by what they tell of held-out subjects.

An arm is a model that gives a log-hazard at every landmark row. `link`: ridge Cox models on the last values, with the
change since the first visit or without, averaged. `rich_link`: the same on causal summaries of the history.
`boosted`: small trees on those. The stack is a sum of the arms with weights that are not negative.

Shapes: N subjects, M visits, R landmark rows, P inputs, C candidates of an arm, A arms. Times are years.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from survival.boosting import BoostedCox
from survival.cox import RiskSets, cox_derivatives, partial_likelihood_loss, ridge_cox
from survival.landmarks import Histories
from survival.link import LinkSettings, inner_folds, landmark_sets
from survival.preparation import IMAGE_FEATURE, Preparation, Scale
from survival.summaries import Summaries

ARMS = ("link", "rich_link", "boosted")
MOST_TREES, TREES_APART = 150, 10  # of the boosted arm, and between the numbers that are tried
LEAST_GAIN = 4.0  # twice the events times the held-out gain per event: a stack that gains less is not used
FOLDS = 5  # of the subjects, each held out once


# ---- The arms ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Arms:
    """The fitted arms, and all that their inputs are made with."""

    prepare: Preparation
    summaries: Summaries
    rich_scale: Scale  # of the state and the summaries together
    link: np.ndarray  # (P,) coefficients
    rich_link: np.ndarray  # (state and summaries,)
    boosted: BoostedCox

    def __call__(self, table: pd.DataFrame, grid: Sequence[float] = ()) -> tuple[Histories, np.ndarray]:
        """Every arm's log-hazard.

        Args:
            table: M visits in memory's columns, sorted by subject and visit.
            grid: landmarks, years from baseline, as in `cut_at_landmarks`.
        Returns:
            The histories with R landmark rows; (R, A) log-hazards in the order of ARMS.
        """
        inputs = _Inputs.of(table, self.prepare, self.summaries, grid)
        rich = self.rich_scale(inputs.rich)
        arms = (inputs.with_change @ self.link, rich @ self.rich_link, self.boosted(rich))
        return inputs.data, np.stack(arms, axis=1)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What the arms see at R landmark rows."""

    data: Histories
    with_change: np.ndarray  # (R, P) state and change at the last visit
    rich: np.ndarray  # (R, state and summaries), not scaled

    @classmethod
    def of(cls, table: pd.DataFrame, prepare: Preparation, summaries: Summaries, grid: Sequence[float]) -> "_Inputs":
        """Of a table of visits, cut at the landmarks of a grid."""
        data = Histories.of(table, prepare, grid)
        at_rows = data.visits.order[data.rows]  # rows of the table
        summed = summaries(prepare.values(table), table)[at_rows]
        with_change = data.inputs[data.rows]
        return cls(data, with_change, np.concatenate([with_change[:, : prepare.num_state], summed], axis=1))


# ---- Their candidates ------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Every model that an arm is made of, fitted on the same subjects."""

    prepare: Preparation
    summaries: Summaries
    rich_scale: Scale
    link: np.ndarray  # (C, P): number of components, change or not, penalty
    rich_link: np.ndarray  # (C', state and summaries): penalty
    boosted: BoostedCox  # the first 10, 20, ... trees of it

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        columns: Sequence[str],
        *,
        grid: Sequence[float],
        settings: LinkSettings,
    ) -> "_Candidates":
        """Fit all of them on every subject of the table."""
        prepare = Preparation.fit(table, columns, num_components=max(settings.components), winsorise=settings.winsorise)
        summaries = Summaries.fit(prepare.values(table), table)
        inputs = _Inputs.of(table, prepare, summaries, grid)
        rows = inputs.data.landmarks
        sets, rich_scale = landmark_sets(rows, settings.ties), Scale.fit(inputs.rich)
        rich = rich_scale(inputs.rich)
        link = []
        for is_seen in _choices_of_inputs(
            prepare, columns, settings.components
        ):  # an input that is 0 has a coefficient of 0
            link += [ridge_cox(inputs.with_change * is_seen, sets, penalty) for penalty in settings.penalties]
        rich_link = [ridge_cox(rich, sets, penalty) for penalty in settings.penalties]
        boosted = BoostedCox.fit(rich, rows.event, sets, num_trees=MOST_TREES)
        return cls(prepare, summaries, rich_scale, np.stack(link), np.stack(rich_link), boosted)

    def __call__(self, table: pd.DataFrame, grid: Sequence[float]) -> dict[str, np.ndarray]:
        """By arm, the (C, R) log-hazards of its candidates."""
        inputs = _Inputs.of(table, self.prepare, self.summaries, grid)
        rich = self.rich_scale(inputs.rich)
        staged = list(self.boosted.staged(rich))[TREES_APART - 1 :: TREES_APART]
        return {
            "link": self.link @ inputs.with_change.T,
            "rich_link": self.rich_link @ rich.T,
            "boosted": np.stack(staged),
        }


def _choices_of_inputs(prepare: Preparation, columns: Sequence[str], components: Sequence[int]) -> list[np.ndarray]:
    """(P,) bool each: with so many principal components, with the change since the first visit and without."""
    num_own = sum(IMAGE_FEATURE.fullmatch(name) is None for name in columns)
    place = np.arange(prepare.num_inputs)
    is_change = place >= prepare.num_state
    component = np.where(is_change, place - prepare.num_state, place) - num_own  # its number, from 0
    is_component = (component >= 0) & (component < len(prepare.components))
    numbers = sorted({min(number, len(prepare.components)) for number in components})
    is_seen = [~is_component | (component < number) for number in numbers]
    return [choice for seen in is_seen for choice in (seen & ~is_change, seen)]


# ---- Fit -------------------------------------------------------------------------------------------
def fit_arms(
    table: pd.DataFrame,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: LinkSettings,
    seed: int,
) -> tuple[Arms, np.ndarray]:
    """Fit the arms on all subjects, their candidates weighted by what they told of held-out ones.

    The candidates of a ridge Cox are averaged with weights exp(-events * held-out loss per event); of the boosted Cox
    the number of trees with the least held-out loss is taken.

    Args:
        table: M visits of the subjects to learn from, sorted by subject and visit.
        columns: names of the features.
        grid: landmarks, years from baseline; empty: each subject's last visit.
        settings: penalties, numbers of components and ties, as the link has them.
        seed: of the folds.
    Returns:
        The arms; (R, A) their log-hazards of the table's own landmark rows, each from subjects without it.
    """
    fit = partial(_Candidates.fit, columns=columns, grid=grid, settings=settings)
    whole = fit(table)
    rows = Histories.of(table, whole.prepare, grid).landmarks
    held_out = {name: np.empty((len(every), len(rows))) for name, every in whole(table, grid).items()}
    of_table = table["subject"].to_numpy(str)
    subjects, event = np.unique(of_table), table.groupby("subject")["event"].first().to_numpy(bool)
    for fold in inner_folds(event, FOLDS, np.random.default_rng(seed)):
        is_out = np.isin(of_table, subjects[fold])
        others = fit(table[~is_out].reset_index(drop=True))
        for name, log_hazards in others(table[is_out].reset_index(drop=True), grid).items():
            held_out[name][:, fold[rows.subject]] = log_hazards
    sets, num_events = landmark_sets(rows, settings.ties), len(np.unique(rows.subject[rows.event]))
    losses = {name: _losses(log_hazards, sets) for name, log_hazards in held_out.items()}
    weights = {name: _weights(losses[name], num_events) for name in ("link", "rich_link")}
    num_trees = int(np.argmin(losses["boosted"]))
    arms = Arms(
        whole.prepare,
        whole.summaries,
        whole.rich_scale,
        weights["link"] @ whole.link,
        weights["rich_link"] @ whole.rich_link,
        whole.boosted.first(TREES_APART * (num_trees + 1)),
    )
    of_arms = (*(weights[name] @ held_out[name] for name in weights), held_out["boosted"][num_trees])
    return arms, np.stack(of_arms, axis=1)


def _losses(log_hazards: np.ndarray, sets: RiskSets) -> np.ndarray:
    """(C,) mean loss per event of candidates (C, R)."""
    return np.array([partial_likelihood_loss(of_one, sets) for of_one in log_hazards])


def _weights(losses: np.ndarray, num_events: int) -> np.ndarray:
    """(C,) weights of candidates, which sum to 1, by their likelihood of held-out subjects."""
    likelihood = np.exp(-num_events * (losses - losses.min()))
    return likelihood / likelihood.sum()


# ---- The stack -------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Stack:
    """How the arms are summed up, and why."""

    weights: np.ndarray  # (A,) >= 0; the first arm alone where the others did not earn theirs
    gain: float  # twice the events times the held-out gain per event over the first arm, a likelihood ratio
    is_used: bool  # whether the gain was enough


def stack_arms(held_out: np.ndarray, sets: RiskSets, num_events: int) -> Stack:
    """Find the weights with which the arms' held-out log-hazards tell most.

    Args:
        held_out: (R, A) log-hazards, each from subjects without the row's; the first arm is the one to fall back on.
        sets: risk sets of the rows.
        num_events: subjects with an event among them.
    Returns:
        The stack. An arm of which more would be better than all has a weight above 1: the scale of the risk is learned
        too.
    """
    first = np.eye(held_out.shape[1])[0]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The held-out loss and its gradient (A,)."""
        return cox_derivatives(weights, held_out, sets)[:2]

    best = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(first)).x
    gain = 2 * num_events * (loss(first)[0] - loss(best)[0])
    is_used = bool(gain > LEAST_GAIN)
    return Stack(best if is_used else first, float(gain), is_used)
