"""TODO: training.risk_sets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.tables import time_left


@dataclass(frozen=True)
class Scans:
    """The scans of one part of the cohort, a row a scan."""

    entries: list[Path]  # their preprocessed volumes
    scan: np.ndarray  # (N,) ids
    subject: np.ndarray  # (N,) int32
    visit_time: np.ndarray  # (N,) float32 years
    time: np.ndarray  # (N,) float32 years left
    event: np.ndarray  # (N,) bool
    last: np.ndarray  # (N,) bool: the last scan of its subject

    @classmethod
    def of(cls, table: pd.DataFrame, entries: list[Path]) -> "Scans":
        """From a table, sorted by subject and visit, and its rows' cache entries."""
        subject = pd.factorize(table["subject"])[0].astype(np.int32)
        last = np.append(subject[1:] != subject[:-1], True)
        return cls(
            entries,
            table["scan"].to_numpy(),
            subject,
            table["visit_time"].to_numpy(np.float32),
            time_left(table).astype(np.float32),
            table["event"].to_numpy(bool),
            last,
        )

    @property
    def outcome(self) -> tuple[np.ndarray, ...]:
        """Subject, visit_time, time left and event, (N,) each: what the loss is of."""
        return self.subject, self.visit_time, self.time, self.event


def draw_risk_sets(part: Scans, size: int, rng: np.random.Generator, *, smallest: int = 2) -> list[np.ndarray]:
    """The rows of each loss evaluation of an epoch: whole subjects, each once, the events spread evenly.

    All scans of a subject are in one risk set, each with the time left at its own visit.

    Args:
        part: the training part.
        size: subjects per evaluation; the last one takes what is left, so it may be smaller.
        rng: of the order.
        smallest: a last set of fewer subjects is joined to the one before.
    Returns:
        Arrays of rows; together every row once.
    """
    event = part.event[part.last]  # (S,) of the subjects, in the order of their numbers
    place = np.empty(len(event))
    for kind in (True, False):
        members = rng.permutation(np.flatnonzero(event == kind))
        place[members] = (np.arange(len(members)) + rng.random()) / max(1, len(members))
    order = np.argsort(place)
    rows_of = np.split(np.arange(len(part.subject)), np.flatnonzero(np.diff(part.subject)) + 1)
    begins = [begin for begin in range(0, len(order), size) if begin == 0 or len(order) - begin >= smallest]
    return [np.concatenate([rows_of[subject] for subject in chosen]) for chosen in np.split(order, begins[1:])]
