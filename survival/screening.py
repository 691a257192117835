"""What looks wrong in the columns of a table of visits: it is told before a model is trained, and nothing is refused.

Values: numbers that stand for a missing value, and cells that winsorising moves. Leaks: columns that tell the outcome
by themselves, as if it stood in them. Shapes: M visits, N subjects.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.stats import hypergeom, rankdata

from survival.estimates import concordance
from survival.landmarks import Visits, cut_at_landmarks
from survival.preparation import IMAGE_FEATURE, Preparation

MARKS = (
    *(-1.0, -7.0, -8.0, -9.0, -77.0, -88.0, -99.0, -777.0, -888.0, -999.0, -7777.0, -8888.0, -9999.0, -99999.0),
    *(-(2.0**15), -(2.0**31), -1e30, 99.0, 888.0, 999.0, 8888.0, 9999.0, 99999.0, 999999.0, 2.0**31 - 1, 1e20, 1e30),
)  # numbers that other programs write for a missing value
LEAST_LEVELS = 5  # of the other values, for -1 to be a mark: fewer are codes, such as -1, 0, 1
STAGE1_OUTPUTS = {"log_hazard", "progress"}  # learned from the training subjects' outcomes, so they may tell them
ALARMING_C = 0.95  # of a column alone, in either order
LEAST_EVENTS = 10  # that a C rests on; with fewer, noise reaches any C
ALARMING_SHARE = 0.5  # of one group of subjects that differs from the one value of the other group
LEAST_CHANCE = 1e-6  # that a column without knowledge differs so between the groups; a smaller one is alarming
MOST_SUBJECTS = 250  # with the event, and without, that a leak is looked for in
NUM_EXAMPLES = 3  # values that a line shows
logger = logging.getLogger(__name__)


def screen_columns(
    parts: Mapping[str, pd.DataFrame], columns: Sequence[str], *, landmarks: Sequence[float], winsorise: float
) -> None:
    """Name what looks wrong in the columns of a split table; leaks are looked for in the training part alone.

    Args:
        parts: tables of visits by name, sorted by subject and visit; `train` is one of them.
        columns: names of the features.
        landmarks: years from baseline at which subjects are predicted; empty: at their last visits.
        winsorise: width of the fences, as in `Preparation.fit`; 0: none.
    """
    warn_of_values(parts["train"], pd.concat(parts.values(), ignore_index=True), columns, winsorise=winsorise)
    warn_of_leaks(parts["train"], columns, landmarks)


# ---- Values --------------------------------------------------------------------------------------
def warn_of_values(train: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str], *, winsorise: float) -> None:
    """Name the columns with numbers that stand for a missing value, and the cells that winsorising moves.

    Args:
        train: visits of the training subjects, sorted by subject and visit; the fences come from them.
        table: M visits whose cells are looked at.
        columns: names of the features; text and the features of stage 1 are left out.
        winsorise: width of the fences, as in `Preparation.fit`; 0: none.
    """
    columns = [name for name in columns if is_numeric_dtype(table[name]) and not IMAGE_FEATURE.fullmatch(name)]
    for name in columns:
        if marks := find_marks(table[name]):
            counts = ", ".join(f"{mark:g} ({count} of {len(table)} cells)" for mark, count in marks.items())
            logger.warning(
                "%s: %s: far from the other values. A mark for a missing value? Leave these cells empty.",
                *(name, counts),
            )
    if not columns:
        return
    prepare = Preparation.fit(train, columns, num_components=0, winsorise=winsorise)
    are_clipped = prepare.are_clipped(table)
    for name in are_clipped.columns[are_clipped.any()]:
        cells = table.loc[are_clipped[name], name]
        values = ", ".join(f"{value:.4g}" for value in cells.unique()[:NUM_EXAMPLES])
        more = ", …" if cells.nunique() > NUM_EXAMPLES else ""
        logger.warning(
            "%s: beyond %.4g or %.4g a value counts as that (WINSORISE=%g), %d of %d cells: %s%s",
            *(name, *prepare.fences_of(name), winsorise, len(cells), len(table), values, more),
        )
    for name in prepare.logged:
        if num_wrong := int((table[name] <= 0).sum()):
            logger.warning(
                "%s: its logarithm is taken, so what is not above 0 counts as missing, %d of %d cells",
                *(name, num_wrong, len(table)),
            )


def find_marks(values: pd.Series) -> dict[float, int]:
    """Find the numbers of a column that look like marks for a missing value.

    A mark is further from the other values than these are from each other, or the only negative number. A -1 is the
    only negative number and more frequent than the lowest of the others.

    Args:
        values: (M,) numbers; NaN where a value is missing.
    Returns:
        In how many cells each mark stands.
    """
    are_marks = values.isin(MARKS)
    others, counts = values[~are_marks].dropna(), values[are_marks].value_counts().sort_index()
    return {float(mark): int(count) for mark, count in counts.items() if _is_apart(float(mark), count, others)}  # type: ignore[arg-type]


def _is_apart(mark: float, count: int, others: pd.Series) -> bool:
    """Whether a mark that stands in so many cells lies apart from the other values."""
    if others.empty:
        return False
    low, high = others.min(), others.max()
    if mark == -1:  # it may be the end of a tail, which thins out
        return low >= 0 and count >= (others == low).sum() and others.nunique() >= LEAST_LEVELS
    return max(low - mark, mark - high) > high - low or mark < 0 <= low


# ---- Leaks ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Moment:
    """A visit of each subject, and what happened after it."""

    name: str
    rows: np.ndarray  # (N,) int, rows of the table
    time: np.ndarray  # (N,) years left to the event or censoring
    event: np.ndarray  # (N,) bool

    def of_some(self) -> "_Moment":
        """The moment with MOST_SUBJECTS subjects at most of either outcome, evenly spaced."""
        groups = [np.flatnonzero(self.event), np.flatnonzero(~self.event)]
        some = np.concatenate([group[:: -(-len(group) // MOST_SUBJECTS) or 1] for group in groups])
        return _Moment(self.name, self.rows[some], self.time[some], self.event[some])


def warn_of_leaks(train: pd.DataFrame, columns: Sequence[str], landmarks: Sequence[float] = ()) -> None:
    """Name every column that tells the training subjects' outcomes by itself.

    What is looked at: the value at the first and at the last visit (or the last one up to each landmark), its change
    between them, and whether it is missing. Columns of stage 1 are left out: it has learned these outcomes.

    Args:
        train: visits of the training subjects with their outcomes, sorted by subject and visit.
        columns: names of the features.
        landmarks: years from baseline at which subjects are predicted; empty: at their last visits.
    """
    columns = [name for name in columns if name not in STAGE1_OUTPUTS and not IMAGE_FEATURE.fullmatch(name)]
    table = train.reset_index(drop=True)
    moments = [moment.of_some() for moment in _moments(table, landmarks)]
    subject = pd.factorize(table["subject"])[0]
    for name in columns:
        by_subject = _as_numbers(table[name]).groupby(subject, sort=False)
        last = by_subject.ffill()
        quantities = {
            "its value": last.to_numpy(),
            "its change since the first visit": (last - by_subject.transform("first")).to_numpy(),
            "that it is missing": table[name].isna().to_numpy(float),
        }
        for moment, (quantity, values) in ((moment, pair) for moment in moments for pair in quantities.items()):
            if finding := _what_it_tells(values[moment.rows], moment.time, moment.event):
                logger.warning(
                    "The outcome may stand in the column %s: %s %s %s. Leave the column out if it was not known then.",
                    *(name, quantity, moment.name, finding),
                )
                break


def _moments(table: pd.DataFrame, landmarks: Sequence[float]) -> list[_Moment]:
    """The first visits, and the last ones that have time left or, at each landmark, the last ones up to it."""
    start = np.unique(table["subject"].to_numpy(str), return_index=True)[1]  # (N,) row of each first visit
    first = table.iloc[start]
    time_left = (first["time"] - first["visit_time"]).to_numpy(float)
    moments = [_Moment("at the first visit", start, time_left, first["event"].to_numpy(bool))]
    cut = cut_at_landmarks(table, Visits.of(table), landmarks)
    for stratum in np.unique(cut.stratum):
        rows = cut[cut.stratum == stratum]
        name = f"at the landmark {rows.year[0]:g}" if len(landmarks) else "at the last visit"
        moments.append(_Moment(name, start[rows.subject] + rows.visit, rows.time, rows.event))
    return moments


def _as_numbers(values: pd.Series) -> pd.Series:
    """A column in floats; text as the numbers of its levels in order."""
    if is_numeric_dtype(values):
        return values.astype(float)
    return values.astype(str).rank(method="dense").where(values.notna())


def _what_it_tells(values: np.ndarray, time: np.ndarray, event: np.ndarray) -> str:
    """In words, how values (N,) tell the outcomes almost perfectly; empty if they don't."""
    levels = pd.factorize(values, use_na_sentinel=False)[0]  # a missing value is a level, too
    for is_own, group, other in ((event, "with", "without"), (~event, "without", "with")):
        own, others = levels[is_own], levels[~is_own]
        if not len(own) or (own != own[0]).any():
            continue
        num_differing = int((others != own[0]).sum())
        chance = hypergeom.pmf(0, len(values), len(own), num_differing)  # that nobody of the one group differs
        if num_differing >= ALARMING_SHARE * len(others) and chance < LEAST_CHANCE:
            return (
                f"is one and the same for all {len(own)} {group} the event, and differs for {num_differing} of "
                f"{len(others)} {other} it"
            )
    known = np.isfinite(values)
    if event[known].sum() < LEAST_EVENTS:
        return ""
    c_index = concordance(rankdata(values[known]), time[known], event[known])
    which, c_index = ("earlier", c_index) if c_index > 0.5 else ("later", 1 - c_index)
    if not c_index > ALARMING_C:
        return ""
    over = f"{known.sum()} training subjects, {event[known].sum()} with an event"
    return f"orders the outcomes alone (the higher, the {which} the event; C {c_index:.3f} over {over})"
