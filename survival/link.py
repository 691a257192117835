"""TODO: survival.link."""

import dataclasses

import numpy as np

from cohort.splits import assign_folds
from runs.errors import InputError
from survival.cox import RiskSets, Ties, partial_likelihood_loss, ridge_cox, risk_sets
from survival.landmarks import Landmarks

INNER_FOLDS = 5


# ---- The link: a ridge Cox for each seed, its penalty chosen on validation -----------------------
@dataclasses.dataclass(frozen=True)
class Split:
    """Landmark rows that one seed is trained and validated on, with their risk sets."""

    train: np.ndarray  # rows
    train_sets: RiskSets
    val: np.ndarray
    val_sets: RiskSets


def split_rows(rows: Landmarks, validation: np.ndarray, ties: Ties = "efron") -> list[Split]:
    """One split a seed.

    Args:
        rows: R landmark rows.
        validation: (S, N) bool: the subjects that each seed is validated on.
        ties: of the risk sets.
    Returns:
        S splits.
    Raises:
        InputError: a part has no event.
    """

    def part(chosen: np.ndarray, name: str) -> tuple[np.ndarray, RiskSets]:
        sets = landmark_sets(rows[chosen], ties)
        if len(sets.event) == 0:
            raise InputError(f"no event among the {name} subjects at the landmarks. Give the part more subjects.")
        return np.flatnonzero(chosen), sets

    held = validation[:, rows.subject]  # (S, R)
    return [Split(*part(~row, "training"), *part(row, "validation")) for row in held]


def landmark_sets(rows: Landmarks, ties: Ties = "efron") -> RiskSets:
    """Risk sets within each landmark."""
    return risk_sets(rows.time, rows.event, rows.stratum, ties)


def fit_link(inputs: np.ndarray, splits: list[Split], penalty: float) -> tuple[float, np.ndarray]:
    """The ridge Cox of each seed on its training rows.

    Args:
        inputs: (R, P) at the landmark rows.
        splits: S of them.
        penalty: as in `ridge_cox`.
    Returns:
        Mean loss on the validation rows; coefficients (S, P).
    """
    link = np.stack([ridge_cox(inputs[split.train], split.train_sets, penalty) for split in splits])
    losses = [
        partial_likelihood_loss(inputs[split.val] @ own, split.val_sets)
        for own, split in zip(link, splits, strict=True)
    ]
    return float(np.mean(losses)), link


def inner_folds(subjects_event: np.ndarray, num_seeds: int, rng: np.random.Generator) -> np.ndarray:
    """A validation fifth for each seed, stratified by event; five seeds hold out everyone once.

    Args:
        subjects_event: (N,) bool.
        num_seeds: S.
        rng: draws the folds, anew for every five seeds.
    Returns:
        (S, N) bool.
    """
    folds = [assign_folds(subjects_event, INNER_FOLDS, rng) for _ in range(0, num_seeds, INNER_FOLDS)]
    return np.stack([folds[seed // INNER_FOLDS] == seed % INNER_FOLDS for seed in range(num_seeds)])
