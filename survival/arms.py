"""The arms of stage 2 that need no network: each gives a log-hazard at every landmark row.

`link`: ridge Cox models on the last values, averaged: with their change since the first visit, with their slope, or
with neither; with the times of the visits or without. `rich_link`: ridge Cox models on the last values and all
summaries of the history. `boosted`: small trees on those.

The link's models form families by what they read of stage 1: all columns with so many principal components, or one of
`log_hazard` and `progress` without the other. What stage 1 learned from the outcomes of subjects looks better on these
than on new ones; so families are weighted by the subjects alone that stage 1 has not learned from.

Shapes: N subjects, M visits, R landmark rows, P inputs, C candidates of an arm. Times are years.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from survival.boosting import BoostedCox
from survival.cox import RiskSets, Ties, partial_likelihood_loss, ridge_cox
from survival.landmarks import Histories
from survival.link import INNER_FOLDS, LinkSettings, inner_folds, landmark_sets
from survival.preparation import IMAGE_FEATURE, Preparation
from survival.summaries import NAMES

ARMS = ("link", "rich_link", "boosted")
MOST_TREES, TREES_APART = 150, 10  # of the boosted arm, and between the numbers that are tried
OF_STAGE_1 = ("log_hazard", "progress")  # columns that tell of one thing: one of them may do


@dataclasses.dataclass(frozen=True)
class Arms:
    """The fitted arms, on the inputs (R, P) of the last visit of each landmark row."""

    prepare: Preparation  # of a table of visits to the inputs
    link: np.ndarray  # (P,) coefficients
    rich_link: np.ndarray  # (P,)
    boosted: BoostedCox

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Every arm's log-hazards, (R, 3) in the order of ARMS, of inputs (R, P)."""
        return np.stack([inputs @ self.link, inputs @ self.rich_link, self.boosted(inputs)], axis=1)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What the arms say of the subjects that they were fitted on, each fold's by models without them."""

    folds: np.ndarray  # (INNER_FOLDS, N) bool: the subjects of each fold
    log_hazards: np.ndarray  # (R, 3)
    data: Histories  # of all subjects
    sets: RiskSets  # of its R rows
    ties: Ties  # how these treat tied events


def fit_arms(
    table: pd.DataFrame,
    columns: Sequence[str],
    *,
    judges: np.ndarray,
    grid: Sequence[float],
    settings: LinkSettings,
    seed: int,
) -> tuple[Arms, HeldOut]:
    """Fit the arms on all subjects, their candidates weighted by what they told of held-out ones.

    The candidates of a ridge Cox, and the families of the link, are averaged with weights exp(-events * held-out loss
    per event); of the boosted Cox the number of trees with the least held-out loss is taken.

    Args:
        table: M visits of the subjects to learn from, sorted by subject and visit.
        columns: names of the features.
        judges: (N,) bool: the subjects, in sorted order, that weight the families.
        grid: landmarks, years from baseline; empty: each subject's last visit.
        settings: penalties, numbers of components and ties.
        seed: of the folds.
    Returns:
        The arms, and what they say of the table's own subjects while these are held out.
    """
    fit = partial(_Candidates.fit, columns=columns, grid=grid, settings=settings)
    whole = fit(table)
    data = Histories.of(table, whole.prepare, grid)
    rows = data.landmarks
    held_out = {name: np.empty((len(every), len(rows))) for name, every in whole(data).items()}
    of_table = table["subject"].to_numpy(str)
    subjects = np.unique(of_table)
    event = np.isin(np.arange(len(subjects)), rows.subject[rows.event])  # of a row, or there is no more to predict
    folds = inner_folds(event, INNER_FOLDS, np.random.default_rng(seed))
    for fold in folds:
        is_out = np.isin(of_table, subjects[fold])
        others = fit(table[~is_out].reset_index(drop=True))
        without = Histories.of(table[is_out].reset_index(drop=True), others.prepare, grid)
        for name, log_hazards in others(without).items():
            held_out[name][:, fold[rows.subject]] = log_hazards
    draft = HeldOut(folds, np.empty((len(rows), 0)), data, landmark_sets(rows, settings.ties), settings.ties)
    link, held_link = _weigh_families(whole, held_out["link"], draft, judges)
    weights = _weights(held_out["rich_link"], draft.sets, rows.num_events)
    num_trees = int(np.argmin([partial_likelihood_loss(of_one, draft.sets) for of_one in held_out["boosted"]]))
    arms = Arms(whole.prepare, link, weights @ whole.rich_link, whole.boosted.first(TREES_APART * (num_trees + 1)))
    of_arms = (held_link, weights @ held_out["rich_link"], held_out["boosted"][num_trees])
    return arms, dataclasses.replace(draft, log_hazards=np.stack(of_arms, axis=1))


def _weigh_families(
    whole: "_Candidates", held_out: np.ndarray, all_rows: HeldOut, judges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average the link's candidates, (C, R) held out: within families by all rows, then the families by the judges'.

    Returns: (P,) coefficients; (R,) held-out log-hazards.
    """
    coefficients, log_hazards = [], []
    for number in np.unique(whole.family):
        of_family = whole.family == number
        weights = _weights(held_out[of_family], all_rows.sets, all_rows.data.landmarks.num_events)
        coefficients.append(weights @ whole.link[of_family])
        log_hazards.append(weights @ held_out[of_family])
    by_family, judged = np.stack(log_hazards), judges[all_rows.data.landmarks.subject]
    if not judged.any():
        judged = np.ones_like(judged)
    rows = all_rows.data.landmarks[judged]
    weights = _weights(by_family[:, judged], landmark_sets(rows, all_rows.ties), rows.num_events)
    return weights @ np.stack(coefficients), weights @ by_family


# ---- Their candidates ------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Every model that an arm is made of, fitted on the same subjects."""

    prepare: Preparation
    link: np.ndarray  # (C, P): choice of inputs, penalty
    family: np.ndarray  # (C,) int, of each of these
    rich_link: np.ndarray  # (C', P): penalty
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
        most = max(settings.components)
        prepare = Preparation.fit(table, columns, num_components=most, winsorise=settings.winsorise, summarise=True)
        data = Histories.of(table, prepare, grid)
        rows, inputs = data.landmarks, data.inputs[data.rows]
        sets = landmark_sets(rows, settings.ties)

        def ridges(choices: Sequence[np.ndarray]) -> np.ndarray:
            """(C, P) coefficients for each choice of inputs, (P,) bool, and each penalty; 0 for an input not chosen."""
            fits = np.zeros((len(choices), len(settings.penalties), inputs.shape[1]))
            for of_choice, is_seen in zip(fits, choices, strict=True):
                seen, beta = inputs[:, is_seen], np.zeros(np.count_nonzero(is_seen))
                for row, penalty in zip(of_choice, settings.penalties, strict=True):
                    row[is_seen] = beta = ridge_cox(seen, sets, penalty, start=beta) if len(beta) else beta
            return fits.reshape(-1, inputs.shape[1])

        families = [_choices_of_inputs(prepare, of_values) for of_values in _families(prepare, settings.components)]
        number = np.repeat(np.arange(len(families)), [len(choices) * len(settings.penalties) for choices in families])
        is_rich = _is_rich(prepare)
        trees = BoostedCox.fit(np.where(is_rich, inputs, 0.0), rows.event, sets, num_trees=MOST_TREES)
        return cls(prepare, ridges([*itertools.chain(*families)]), number, ridges([is_rich]), trees)

    def __call__(self, data: Histories) -> dict[str, np.ndarray]:
        """By arm, the (C, R) log-hazards of its candidates."""
        inputs = data.inputs[data.rows]
        staged = list(self.boosted.staged(inputs))[TREES_APART - 1 :: TREES_APART]
        return {"link": self.link @ inputs.T, "rich_link": self.rich_link @ inputs.T, "boosted": np.stack(staged)}


def _is_rich(prepare: Preparation) -> np.ndarray:
    """(P,) bool: the state and the summaries; the change since the first visit says no more."""
    place = np.arange(prepare.num_inputs)
    return (place < prepare.num_state) | (place >= prepare.num_state + prepare.num_values)


def _families(prepare: Preparation, components: Sequence[int]) -> list[np.ndarray]:
    """(G,) bool each, without repeats: the values of a visit that the candidates of a family read."""
    names = [name for name in prepare.columns if not IMAGE_FEATURE.fullmatch(name)]
    own, num_components = np.ones(len(names), bool), len(prepare.components)
    families = [np.append(own, np.arange(num_components) < most) for most in components]
    if {*OF_STAGE_1} <= {*names}:
        no_component = np.zeros(num_components, bool)
        families += [np.append([name != absent for name in names], no_component) for absent in OF_STAGE_1]
    return list(np.unique(families, axis=0))


def _choices_of_inputs(prepare: Preparation, is_read: np.ndarray) -> list[np.ndarray]:
    """(P,) bool each: the inputs that one candidate sees of the values (G,) bool that its family reads."""
    is_time = np.arange(prepare.num_state - len(is_read)) >= prepare.num_state - len(is_read) - 2  # after indicators
    is_slope = np.append(np.outer(is_read, np.arange(len(NAMES)) == 0), False)
    nothing = (np.zeros_like(is_read), np.zeros_like(is_slope))
    changes = (nothing, (is_read, nothing[1]), (nothing[0], is_slope))
    return [
        np.concatenate([is_read, ~is_time | sees_times, *change])
        for sees_times, change in itertools.product((True, False), changes)
    ]


def _weights(log_hazards: np.ndarray, sets: RiskSets, num_events: int) -> np.ndarray:
    """(C,) weights of held-out log-hazards (C, R), which sum to 1, by their likelihood."""
    losses = np.array([partial_likelihood_loss(of_one, sets) for of_one in log_hazards])
    likelihood = np.exp(-num_events * (losses - losses.min())) if np.isfinite(losses).any() else np.ones_like(losses)
    return likelihood / likelihood.sum()
