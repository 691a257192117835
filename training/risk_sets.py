"""The scans that stage 1 learns from, and the risk sets that an epoch goes through."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cohort.tables import time_left, visits_with_time_left
from loss import Outcome


@dataclass(frozen=True)
class Scans:
    """The scans of one part of the cohort, a row a scan, sorted by subject and visit."""

    entries: list[str]  # files of their preprocessed volumes
    scan: np.ndarray  # (N,) ids
    outcome: Outcome  # subject, visit_time, time left and event, (N,) each
    last: np.ndarray  # (N,) bool: the last scan of its subject here

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Scans":
        """From the table of a part; a scan at the end of its subject's follow-up has no target, so it is left out.

        Args:
            table: with `cache_entry`, sorted by subject and visit; times in years.
        Returns:
            Subjects numbered from 0 in the table's order.
        """
        table = visits_with_time_left(table)
        subject = pd.factorize(table["subject"])[0].astype(np.int32)
        outcome = Outcome(
            subject,
            table["visit_time"].to_numpy(np.float32),
            time_left(table).astype(np.float32),
            table["event"].to_numpy(bool),
        )
        last = np.append(subject[1:] != subject[:-1], True)
        return cls(table["cache_entry"].to_list(), table["scan"].to_numpy(), outcome, last)


def draw_risk_sets(scans: Scans, size: int, rng: np.random.Generator, *, smallest: int = 2) -> list[np.ndarray]:
    """The rows of each loss evaluation of an epoch: whole subjects, each once, the events spread evenly.

    All scans of a subject are in one risk set, each with the time left at its own visit.

    Args:
        scans: the training part.
        size: subjects per evaluation; the last risk set takes what is left, so it may be smaller.
        rng: draws the order.
        smallest: a last risk set of fewer subjects is joined to the one before.
    Returns:
        Arrays of rows; together they hold every row once.
    """
    event = scans.outcome.event[scans.last]  # (S,) of the subjects, in the order of their numbers
    place = np.empty(len(event))  # (S,) share 0 to 1 of the epoch
    for state in (True, False):
        members = rng.permutation(np.flatnonzero(event == state))
        place[members] = (np.arange(len(members)) + rng.random()) / max(1, len(members))
    order = np.argsort(place)
    subject = scans.outcome.subject
    rows_of = np.split(np.arange(len(subject)), np.flatnonzero(np.diff(subject)) + 1)
    begins = [begin for begin in range(0, len(order), size) if begin == 0 or len(order) - begin >= smallest]
    return [np.concatenate([rows_of[number] for number in chosen]) for chosen in np.split(order, begins[1:])]
