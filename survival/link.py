"""The link of stage 2: a ridge Cox for each seed, chosen on validation, and the rows that each seed learns from.

The T-LSTM corrects the link's log-hazard. The ridge Cox itself stands in `cox`. Shapes: S seeds, N subjects, M visits,
R landmark rows, P inputs.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from cohort.splits import assign_folds
from runs.errors import InputError
from survival.cox import RiskSets, Ties, partial_likelihood_loss, ridge_cox, risk_sets
from survival.landmarks import Histories, Landmarks
from survival.preparation import IMAGE_FEATURE, Preparation

INNER_FOLDS = 5  # each seed is validated on one of so many parts of the training subjects


# ---- The rows of each seed -----------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Split:
    """The landmark rows that one seed is trained and validated on, with their risk sets."""

    train: np.ndarray  # (rows,) int, numbers of landmark rows
    train_sets: RiskSets
    val: np.ndarray  # (rows,) int
    val_sets: RiskSets


def split_rows(rows: Landmarks, validation: np.ndarray, ties: Ties) -> list[Split]:
    """Split the landmark rows once for each seed.

    Args:
        rows: R landmark rows.
        validation: (S, N) bool: the subjects that each seed is validated on.
        ties: how the risk sets treat tied events.
    Returns:
        S splits.
    Raises:
        InputError: the training or the validation rows of a seed have no event.
    """

    def part(is_chosen: np.ndarray, name: str) -> tuple[np.ndarray, RiskSets]:
        """Numbers of the chosen rows, of (R,) bool, and their risk sets."""
        sets = landmark_sets(rows[is_chosen], ties)
        if len(sets.event) == 0:
            raise InputError(f"no event among the {name} subjects at the landmarks. Give the part more subjects.")
        return np.flatnonzero(is_chosen), sets

    is_validated = validation[:, rows.subject]  # (S, R)
    return [Split(*part(~of_seed, "training"), *part(of_seed, "validation")) for of_seed in is_validated]


def inner_folds(subjects_event: np.ndarray, num_seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a fifth of the subjects for each seed to be validated on, stratified by event.

    Args:
        subjects_event: (N,) bool.
        num_seeds: S.
        rng: draws the folds, anew for every five seeds.
    Returns:
        (S, N) bool; five seeds in a row hold out every subject once.
    """
    folds = [assign_folds(subjects_event, INNER_FOLDS, rng) for _ in range(0, num_seeds, INNER_FOLDS)]
    return np.stack([folds[seed // INNER_FOLDS] == seed % INNER_FOLDS for seed in range(num_seeds)])


def landmark_sets(rows: Landmarks, ties: Ties) -> RiskSets:
    """Find the risk sets of R landmark rows; each landmark is a stratum of its own."""
    return risk_sets(rows.time, rows.event, rows.stratum, ties)


def stack_seeds(rows: Landmarks, splits: list[Split], ties: Ties) -> tuple[np.ndarray, RiskSets]:
    """Put the training rows of all seeds into one loss: a stratum belongs to one seed and one landmark.

    Args:
        rows: R landmark rows.
        splits: S of them.
        ties: how the risk sets treat tied events.
    Returns:
        (training rows of all seeds,) int, their places among log-hazards (S, R) flattened; their risk sets.
    """
    of_seeds = [rows[split.train] for split in splits]
    num_strata = int(rows.stratum.max()) + 1
    sets = risk_sets(
        np.concatenate([part.time for part in of_seeds]),
        np.concatenate([part.event for part in of_seeds]),
        np.concatenate([seed * num_strata + part.stratum for seed, part in enumerate(of_seeds)]),
        ties,
    )
    return np.concatenate([seed * len(rows) + split.train for seed, split in enumerate(splits)]), sets


# ---- The link ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """How the link is fitted. `config.py` explains the settings and holds their defaults."""

    penalties: tuple[float, ...]  # ridge penalties to choose from
    components: tuple[int, ...]  # numbers of principal components to choose from, if there are `feature_<n>` columns
    winsorise: float  # width of the fences of `Preparation.fit`; 0: none
    ties: Ties  # how the losses treat tied events


@dataclasses.dataclass(frozen=True)
class Link:
    """The ridge Cox of each seed, with the data that it was fitted on."""

    loss: float  # mean negative log partial likelihood per event on validation, averaged over the seeds
    coefficients: np.ndarray  # (S, P)
    prepare: Preparation
    data: Histories  # of training and validation subjects
    splits: list[Split]  # S


def choose_link(
    table: pd.DataFrame,
    validation: np.ndarray,
    columns: Sequence[str],
    *,
    grid: Sequence[float],
    settings: LinkSettings,
) -> Link:
    """Fit a link for every choice of inputs and penalty, and take the one with the lowest loss on validation.

    The inputs are the last values, with the change since the first visit or without.

    Args:
        table: M visits of the training and validation subjects, sorted by subject and visit.
        validation: (S, N) bool: which subjects, in sorted order, each seed is validated on.
        columns: names of the features.
        grid: landmarks, years from baseline; empty: each subject's last visit.
        settings: of the link.
    Returns:
        The link that was chosen.
    Raises:
        InputError: the training or the validation rows of a seed have no event.
    """

    def candidates() -> Iterator[Link]:
        """Every link that there is to choose from."""
        subject = table["subject"].to_numpy(str)
        is_trained = np.isin(subject, np.unique(subject)[~validation.all(axis=0)])  # (M,), by one seed or more
        trained = table[is_trained].reset_index(drop=True)
        has_images = any(map(IMAGE_FEATURE.fullmatch, columns))
        for num_components in settings.components if has_images else (0,):
            prepare = Preparation.fit(trained, columns, num_components=num_components, winsorise=settings.winsorise)
            data = Histories.of(table, prepare, grid)
            splits = split_rows(data.landmarks, validation, settings.ties)
            for inputs in (data.last_values, data.inputs[data.rows]):  # without and with the change
                for penalty in settings.penalties:
                    yield Link(*fit_link(inputs, splits, penalty), prepare, data, splits)

    return min(candidates(), key=lambda link: link.loss)


def fit_link(inputs: np.ndarray, splits: list[Split], penalty: float) -> tuple[float, np.ndarray]:
    """Fit the ridge Cox of each seed on its training rows.

    Args:
        inputs: (R, P) inputs at the landmark rows.
        splits: S of them.
        penalty: as in `ridge_cox`.
    Returns:
        Mean loss per event on the validation rows, averaged over the seeds; coefficients (S, P).
    """
    coefficients = np.stack([ridge_cox(inputs[split.train], split.train_sets, penalty) for split in splits])
    losses = [
        partial_likelihood_loss(inputs[split.val] @ of_seed, split.val_sets)
        for of_seed, split in zip(coefficients, splits, strict=True)
    ]
    return float(np.mean(losses)), coefficients
