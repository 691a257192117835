"""TODO: survival.landmarks."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from runs.errors import raise_if_any
from survival.preparation import Preparation, years_since_last

logger = logging.getLogger(__name__)
EVEN_ENDS = 1.0  # years between the last visits of subjects who were followed alike


# ---- Visits: ragged, stored step by step ---------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Visits:
    """All visits of N subjects in time-major order, the longest histories first, and no padding.

    Visit k of the subject of rank r stands at row `starts[k] + r`; `sizes[k]` subjects have a visit k.
    """

    subject: np.ndarray  # (N,) ids, in the table's order
    rank: np.ndarray  # (N,) place of each subject among the histories, longest first
    count: np.ndarray  # (N,) visits
    sizes: np.ndarray  # (V,) subjects with a visit k
    order: np.ndarray  # (M,) row of the table that stands at each row here
    visit_time: np.ndarray  # (N, V) years from baseline; infinite where there is no visit

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Visits":
        """Arrange the visits of a table that is sorted by subject and visit."""
        subject, start, count = np.unique(table["subject"].to_numpy(str), return_index=True, return_counts=True)
        rank = np.empty(len(subject), int)
        longest_first = np.argsort(-count, kind="stable")
        rank[longest_first] = np.arange(len(subject))
        sizes = (count[:, None] > np.arange(count.max())).sum(axis=0)
        order = np.concatenate([start[longest_first[:size]] + step for step, size in enumerate(sizes)])
        visit_time = np.full((len(subject), count.max()), np.inf)
        within = np.arange(len(table)) - np.repeat(start, count)
        visit_time[np.repeat(np.arange(len(subject)), count), within] = table["visit_time"].to_numpy(float)
        return cls(subject, rank, count, sizes, order, visit_time)

    def row(self, subject: np.ndarray, visit: np.ndarray) -> np.ndarray:
        """Where visit `visit` of subject number `subject` stands; both (R,) int."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        return starts[visit] + self.rank[subject]


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """Rows (subject, landmark): who is predicted, from which visit, and what then happened."""

    subject: np.ndarray  # (R,) number of the subject
    visit: np.ndarray  # (R,) number of the last visit up to the landmark
    year: np.ndarray  # (R,) when, from baseline
    stratum: np.ndarray  # (R,) number of the landmark in the grid; 0 everywhere if it is the last visit
    time: np.ndarray  # (R,) years left to the event or censoring; NaN where the table does not tell
    event: np.ndarray  # (R,) bool

    def __getitem__(self, rows: np.ndarray) -> "Landmarks":
        return Landmarks(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.subject)


def landmarks(table: pd.DataFrame, visits: Visits, grid: Sequence[float] = ()) -> Landmarks:
    """Cut every history at each landmark of the grid at which its subject is still event-free.

    Args:
        table: visits; without `time` and `event`, everyone counts as event-free.
        visits: the same, arranged.
        grid: years from baseline, ascending; empty: one landmark a subject, its last visit.
    Returns:
        The rows, by landmark, then subject. Nobody is at a landmark before the first visit.
    """
    if "time" in table:
        outcome = table.drop_duplicates("subject").sort_values("subject")
        time, event = outcome["time"].to_numpy(float), outcome["event"].to_numpy(bool)
    else:
        time, event = np.full(len(visits.subject), np.nan), np.zeros(len(visits.subject), bool)
    last = visits.visit_time[np.arange(len(visits.count)), visits.count - 1]
    ats = np.stack([np.full(len(last), float(at)) for at in grid]) if len(grid) else last[None]  # (L, N)
    visit = np.stack([(visits.visit_time <= at[:, None]).sum(axis=1) - 1 for at in ats])  # (L, N)
    left = np.round(time - ats, 9)  # free of rounding noise, as in tables.time_left
    stratum, subject = np.nonzero((visit >= 0) & ~(left <= 0))
    rows = (stratum, subject)
    return Landmarks(subject, visit[rows], ats[rows], stratum, left[rows], event[subject])


@dataclasses.dataclass(frozen=True)
class Histories:
    """A table, prepared, arranged and cut at its landmarks."""

    visits: Visits
    landmarks: Landmarks
    inputs: np.ndarray  # (M, P) float64
    years: np.ndarray  # (M,) since the visit before
    rows: np.ndarray  # (R,) where the last visit of each landmark row stands
    last_values: np.ndarray  # (R, P) inputs of the last visit of each landmark row, 0 for the change

    @classmethod
    def of(cls, table: pd.DataFrame, prepare: Preparation, grid: Sequence[float] = ()) -> "Histories":
        """From visits in memory's columns, sorted by subject and visit; `grid` as in `landmarks`."""
        visits = Visits.of(table)
        cut = landmarks(table, visits, grid)
        inputs = prepare(table)[visits.order]
        rows = visits.row(cut.subject, cut.visit)
        last_values = inputs[rows]
        last_values[:, prepare.num_state :] = 0.0
        return cls(visits, cut, inputs, years_since_last(table)[visits.order], rows, last_values)


def landmark_grid(
    parts: Mapping[str, pd.DataFrame], wanted: Sequence[float], step: float, *, num_parts: int = 1
) -> tuple[float, ...]:
    """Landmarks to train at: from 0 to the last one wanted in steps, and those wanted.

    Args:
        parts: tables by name.
        wanted: landmarks, years from baseline; empty: the last visits, so no grid.
        step: years.
        num_parts: folds that each part is cut into; each needs an event.
    Returns:
        Ascending years.
    Raises:
        InputError: a part has too few events among those at risk at a landmark that is wanted.
    """
    problems = []
    for name, table in parts.items():
        for year in wanted:
            cut = landmarks(table, Visits.of(table), (year,))
            if cut.event.sum() < num_parts:
                problems.append(f"landmark {year:g} in the {name}: {len(cut)} at risk, {cut.event.sum()} with an event")
    raise_if_any(f"LANDMARKS: expected {num_parts} or more with an event after each", problems, "Choose earlier ones.")
    if not wanted:
        _warn_of_uneven_ends(pd.concat(parts.values()))
        return ()
    return tuple(sorted({*np.arange(0.0, max(wanted), step).round(9).tolist(), *map(float, wanted)}))


def _warn_of_uneven_ends(table: pd.DataFrame) -> None:
    """Last visits years apart may have been ended by the outcome, which a prediction must not know."""
    low, high = table.groupby("subject")["visit_time"].max().quantile([0.05, 0.95])
    if high - low > EVEN_ENDS:
        logger.warning(
            "the last visits lie %.1f years apart: if the outcome ended the visits, they tell it. Set LANDMARKS.",
            high - low,
        )
