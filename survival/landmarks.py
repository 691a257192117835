"""The visits of a table without padding, and the landmarks at which each history is cut.

A landmark row is a pair (subject, landmark): what is known of the subject from its visits up to that time, and the
outcome that then follows. Nothing here sees a visit after the landmark. How the columns of a table become numbers
stands in `preparation`. Shapes: N subjects, M visits of all subjects, V visits of the longest history, R landmark
rows, P inputs. Times are years.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from runs.errors import raise_if_any
from survival.estimates import largest_below
from survival.preparation import Preparation, years_since_last

EVEN_ENDS = 1.0  # years; last visits that lie further apart may have been ended by the outcome
logger = logging.getLogger(__name__)


# ---- Visits --------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Visits:
    """All visits of N subjects in time-major order, the longest histories first, without padding.

    Visit k of the subject of rank r stands at row `starts[k] + r`, where `starts` is the running sum of `sizes`.
    """

    subject: np.ndarray  # (N,) ids, in the table's order
    rank: np.ndarray  # (N,) int, place of each subject among the histories, the longest first
    count: np.ndarray  # (N,) int, visits of each subject
    sizes: np.ndarray  # (V,) int, number of subjects that have a visit k
    order: np.ndarray  # (M,) int, row of the table that stands at each row here
    visit_time: np.ndarray  # (N, V) years from baseline; infinite where there is no visit

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Visits":
        """Arrange the visits of a table.

        Args:
            table: M visits in memory's columns, sorted by subject and visit.
        Returns:
            The arrangement of the (M,) visits.
        """
        subject, start, count = np.unique(table["subject"].to_numpy(str), return_index=True, return_counts=True)
        rank = np.empty(len(subject), int)
        longest_first = np.argsort(-count, kind="stable")
        rank[longest_first] = np.arange(len(subject))
        sizes = (count[:, None] > np.arange(count.max())).sum(axis=0)
        order = np.concatenate([start[longest_first[:size]] + step for step, size in enumerate(sizes)])
        visit_time = np.full((len(subject), count.max()), np.inf)
        visit_number = np.arange(len(table)) - np.repeat(start, count)
        visit_time[np.repeat(np.arange(len(subject)), count), visit_number] = table["visit_time"].to_numpy(float)
        return cls(subject, rank, count, sizes, order, visit_time)

    def row(self, subject: np.ndarray, visit: np.ndarray) -> np.ndarray:
        """Find the rows at which visits stand.

        Args:
            subject: (R,) int, numbers of the subjects.
            visit: (R,) int, numbers of their visits, counted from 0.
        Returns:
            (R,) int.
        """
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        return starts[visit] + self.rank[subject]


# ---- Landmarks -----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Landmarks:
    """R landmark rows: who is predicted, from which visit, and what then happened."""

    subject: np.ndarray  # (R,) int, number of the subject
    visit: np.ndarray  # (R,) int, number of the last visit up to the landmark
    year: np.ndarray  # (R,) the landmark, years from baseline
    stratum: np.ndarray  # (R,) int, number of the landmark in the grid; 0 everywhere if it is the last visit
    time: np.ndarray  # (R,) years left to the event or censoring; NaN where the table does not tell
    event: np.ndarray  # (R,) bool

    def __getitem__(self, rows: np.ndarray) -> "Landmarks":
        return Landmarks(
            subject=self.subject[rows],
            visit=self.visit[rows],
            year=self.year[rows],
            stratum=self.stratum[rows],
            time=self.time[rows],
            event=self.event[rows],
        )

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def num_events(self) -> int:
        """The subjects with an event; one that has several rows counts once."""
        return len(np.unique(self.subject[self.event]))


def cut_at_landmarks(table: pd.DataFrame, visits: Visits, grid: Sequence[float] = ()) -> Landmarks:
    """Cut every history at each landmark at which its subject is still event-free.

    Args:
        table: M visits; without `time` and `event`, everyone counts as event-free.
        visits: the same visits, arranged.
        grid: landmarks, years from baseline, ascending; empty: one landmark a subject, its last visit that has time
            left.
    Returns:
        (R,) rows, sorted by landmark, then subject. No subject has a landmark before its first visit.
    """
    if "time" in table:
        outcome = table.drop_duplicates("subject").sort_values("subject")
        time, event = outcome["time"].to_numpy(float), outcome["event"].to_numpy(bool)
    else:
        time, event = np.full(len(visits.subject), np.nan), np.zeros(len(visits.subject), bool)
    is_over = np.round(time[:, None] - visits.visit_time, 9) <= 0  # (N, V); so is a visit that is not there
    num_open = (np.isfinite(visits.visit_time) & ~is_over).sum(axis=1)
    last_visit = visits.visit_time[np.arange(len(visits.count)), np.maximum(num_open - 1, 0)]  # (N,)
    years = np.stack([np.full(len(last_visit), float(year)) for year in grid]) if len(grid) else last_visit[None]
    visit = np.stack([(visits.visit_time <= year[:, None]).sum(axis=1) - 1 for year in years])  # (landmarks, N)
    time_left = np.round(time - years, 9)  # free of rounding noise, as in cohort.tables.time_left
    stratum, subject = np.nonzero((visit >= 0) & ~(time_left <= 0))
    rows = (stratum, subject)
    return Landmarks(subject, visit[rows], years[rows], stratum, time_left[rows], event[subject])


@dataclasses.dataclass(frozen=True)
class Histories:
    """A table whose columns are prepared, whose visits are arranged, and whose histories are cut at landmarks."""

    visits: Visits
    landmarks: Landmarks
    inputs: np.ndarray  # (M, P) float64, in the order of `visits`
    years: np.ndarray  # (M,) years since the visit before; 0 at the first
    rows: np.ndarray  # (R,) int, where the last visit of each landmark row stands
    last_values: np.ndarray  # (R, P) inputs at the last visit of each landmark row, with every change set to 0

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        prepare: Preparation,
        grid: Sequence[float] = (),
        *,
        values: np.ndarray | None = None,
    ) -> "Histories":
        """Prepare, arrange and cut a table.

        Args:
            table: M visits in memory's columns, sorted by subject and visit.
            prepare: fitted on training subjects.
            grid: landmarks, years from baseline, as in `cut_at_landmarks`.
            values: (M, G) of the visits, to take instead of those that `prepare` finds in the table.
        Returns:
            The histories, with inputs (M, P).
        """
        visits = Visits.of(table)
        cut = cut_at_landmarks(table, visits, grid)
        inputs = prepare(table, values)[visits.order]
        rows = visits.row(cut.subject, cut.visit)
        last_values = inputs[rows]
        last_values[:, prepare.num_state :] = 0.0
        return cls(visits, cut, inputs, years_since_last(table)[visits.order], rows, last_values)


# ---- The grid that a model is trained at ---------------------------------------------------------
def landmark_grid(
    parts: Mapping[str, pd.DataFrame],
    wanted: Sequence[float],
    step: float,
    *,
    num_parts: int = 1,
    windows: Sequence[float] = (),
) -> tuple[float, ...]:
    """Choose the landmarks to train at: from 0 to the last wanted one in even steps, and the wanted ones.

    Args:
        parts: tables of visits by name.
        wanted: landmarks to predict at, years from baseline; empty: the last visits, so there is no grid.
        step: years between two landmarks.
        num_parts: as in `check_landmarks`.
        windows: as in `check_landmarks`.
    Returns:
        Ascending years.
    Raises:
        InputError: as `check_landmarks`.
    """
    check_landmarks(parts, wanted, num_parts=num_parts, windows=windows)
    if not wanted:
        _warn_of_uneven_ends(pd.concat(parts.values()))
        return ()
    return tuple(sorted({*np.arange(0.0, max(wanted), step).round(9).tolist(), *map(float, wanted)}))


def check_landmarks(
    parts: Mapping[str, pd.DataFrame], wanted: Sequence[float], *, num_parts: int = 1, windows: Sequence[float] = ()
) -> None:
    """Refuse landmarks with too few events after them, and windows that end after the follow-up.

    Args:
        parts: tables of visits by name.
        wanted: landmarks to predict at, years from baseline.
        num_parts: folds that each table is cut into; each fold needs an event after every wanted landmark.
        windows: years after each landmark that are evaluated; empty: none.
    Raises:
        InputError: names each landmark and window, and what the table bears.
    """
    problems = []
    for name, table in parts.items():
        for number, year in enumerate(wanted):
            rows = cut_at_landmarks(table, Visits.of(table), (year,))
            at_landmark, num_events = f"landmark {year:g} in the {name}: ", rows.event.sum()
            if num_events < num_parts:
                counts = f"{len(rows)} at risk, {num_events} with an event"
                problems.append(f"{at_landmark}{counts}; {_where_events_are(table, year)}")
            elif windows and windows[number] >= (follow_up := np.sort(rows.time)[-num_parts]):
                largest = largest_below(follow_up)
                problems.append(f"{at_landmark}window {windows[number]:g}; the largest that the data bear is {largest}")
    expected = f"{num_parts} or more with an event after each" + (", and as many beyond its window" if windows else "")
    names = "LANDMARKS and WINDOWS" if windows else "LANDMARKS"
    mend = "Choose other ones; they are years, whatever TIME_UNIT is."
    raise_if_any(f"{names}: expected {expected}", problems, mend)


def _where_events_are(table: pd.DataFrame, year: float) -> str:
    """Whether an earlier or a later landmark than this, in years, has more events after it."""
    converted = table[table["event"]].groupby("subject")[["visit_time", "time"]].min()
    if converted.empty:
        return "nobody has an event"
    if (converted["visit_time"] > year).sum() > (converted["time"] <= year).sum():
        return f"the first visits begin at {table['visit_time'].min():.2f} years: choose a later one"
    return f"the last event is at {converted['time'].max():.2f} years: choose an earlier one"


def _warn_of_uneven_ends(table: pd.DataFrame) -> None:
    """Warn if last visits lie years apart: the outcome may have ended the visits, and a prediction must not know it."""
    low, high = table.groupby("subject")["visit_time"].max().quantile([0.05, 0.95])
    if high - low > EVEN_ENDS:
        logger.warning(
            "the last visits lie %.1f years apart: if the outcome ended the visits, their times tell the outcome. "
            "Set LANDMARKS.",
            high - low,
        )
