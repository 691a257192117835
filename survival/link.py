"""The link of stage 2: a ridge Cox for each seed, and the rows that each seed is trained and validated on.

The T-LSTM corrects the link's log-hazard. The ridge Cox itself stands in `cox`. Shapes: S seeds, N subjects,
R landmark rows, P inputs.
"""

import dataclasses

import numpy as np

from cohort.splits import assign_folds
from runs.errors import InputError
from survival.cox import RiskSets, Ties, partial_likelihood_loss, ridge_cox, risk_sets
from survival.landmarks import Landmarks

INNER_FOLDS = 5  # each seed is validated on one of so many parts of the training subjects


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


def landmark_sets(rows: Landmarks, ties: Ties) -> RiskSets:
    """Find the risk sets of R landmark rows; each landmark is a stratum of its own."""
    return risk_sets(rows.time, rows.event, rows.stratum, ties)


def fit_link(inputs: np.ndarray, splits: list[Split], penalty: float) -> tuple[float, np.ndarray]:
    """Fit the ridge Cox of each seed on its training rows.

    Args:
        inputs: (R, P) inputs at the landmark rows.
        splits: S of them.
        penalty: as in `ridge_cox`.
    Returns:
        Mean loss per event on the validation rows, averaged over the seeds; coefficients (S, P).
    """
    link = np.stack([ridge_cox(inputs[split.train], split.train_sets, penalty) for split in splits])
    losses = [
        partial_likelihood_loss(inputs[split.val] @ coefficients, split.val_sets)
        for coefficients, split in zip(link, splits, strict=True)
    ]
    return float(np.mean(losses)), link


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
