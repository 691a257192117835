"""A cohort in words, told before anything is computed from it, so that a wrong unit or a lost visit is seen at once.

Shapes: N subjects, M visits. Times are years.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cohort.tables import PER_YEAR, TimeUnit
from survival.columns import find_columns
from survival.estimates import Reference, largest_below
from survival.landmarks import Visits, cut_at_landmarks
from survival.preparation import IMAGE_FEATURE

LIKELY_GAPS = (7 / 365.25, 5.0)  # years between two visits, in the median
LIKELY_FOLLOW_UP = 40.0  # years after the first visit, at most
LEAST_AGE = 18.0  # years; first visits that are later in the median are ages
logger = logging.getLogger(__name__)


def log_cohort(
    parts: Mapping[str, pd.DataFrame],
    *,
    teachers: pd.DataFrame | None = None,
    time_unit: TimeUnit,
    landmarks: Sequence[float] = (),
    horizons: Sequence[float] = (),
) -> None:
    """Log what `tell_cohort` says of a cohort.

    Args:
        parts: as for `tell_cohort`.
        teachers: as for `tell_cohort`.
        time_unit: as for `tell_cohort`.
        landmarks: as for `tell_cohort`.
        horizons: as for `tell_cohort`.
    Raises:
        InputError: as `tell_cohort`.
    """
    lines, warnings = tell_cohort(parts, teachers=teachers, time_unit=time_unit, landmarks=landmarks, horizons=horizons)
    for line in lines:
        logger.info(line)
    for line in warnings:
        logger.warning(line)


def tell_cohort(
    parts: Mapping[str, pd.DataFrame],
    *,
    teachers: pd.DataFrame | None = None,
    time_unit: TimeUnit,
    landmarks: Sequence[float],
    horizons: Sequence[float],
) -> tuple[list[str], list[str]]:
    """Tell of a cohort what it is, and what is unlikely of it.

    Args:
        parts: tables of visits in memory's columns, by name, sorted by subject and visit; outcomes may be absent.
        teachers: visits of subjects without an outcome, who are in no part.
        time_unit: that the tables were read in.
        landmarks: years from baseline at which to predict; empty: the last visits.
        horizons: years after the landmark at which figures are given.
    Returns:
        The lines of `describe_cohort`, and one about the teachers; and those of `unlikely_times` and
        `horizons_not_borne`.
    Raises:
        InputError: as `describe_cohort`.
    """
    table = pd.concat(parts.values()).sort_values(["subject", "visit_time"], ignore_index=True)
    return [*describe_cohort(table, landmarks), *_teachers(teachers)], [
        *unlikely_times(table, time_unit),
        *horizons_not_borne(parts, landmarks, horizons),
    ]


def describe_cohort(table: pd.DataFrame, landmarks: Sequence[float] = ()) -> list[str]:
    """Tell who is in a cohort, for how long, and who is left out at a landmark.

    Args:
        table: M visits in memory's columns, sorted by subject and visit; outcomes may be absent.
        landmarks: years from baseline at which to predict.
    Returns:
        A line each about subjects, follow-up, visits and covariates, and one for each landmark; without outcomes, about
        subjects and visits.
    Raises:
        InputError: as `find_columns`.
    """
    counts = table.groupby("subject").size()
    num_visits = f"{counts.min()} to {counts.max()} a subject, median {counts.median():g}"
    lines = [f"cohort: {len(counts)} subjects, {len(table)} visits, {num_visits}"]
    if "time" not in table:
        return [*lines, _visits(table)]
    return [
        *lines,
        _follow_up(table),
        _visits(table),
        _covariates(table),
        *(_at_landmark(table, year) for year in landmarks),
    ]


def _follow_up(table: pd.DataFrame) -> str:
    outcomes = table.drop_duplicates("subject")
    time, event = outcomes["time"].to_numpy(float), outcomes["event"].to_numpy(bool)
    ends = np.unique(time[~event])
    is_half = Reference(time, event, cut=0.0).uncensored(ends) <= 0.5  # reverse Kaplan-Meier
    median = f"{ends[is_half][0]:.3g} years" if is_half.any() else "not reached"
    to_event = f", median time to it {np.median(time[event]):.3g} years" if event.any() else ""
    return (
        f"follow-up: median {median} (reverse Kaplan-Meier), longest {time.max():.3g} years; "
        f"{event.sum()} subjects with an event{to_event}; {(~event).sum()} censored"
    )


def _visits(table: pd.DataFrame) -> str:
    gaps, first = gaps_between_visits(table), table.groupby("subject")["visit_time"].min()
    apart = "no subject has two"
    if len(gaps):
        apart = f"median gap {np.median(gaps):.3g} years, {gaps.min():.3g} to {gaps.max():.3g}"
    late = first[first > 0]
    if late.empty:
        return f"visits: {apart}"
    return f"visits: {apart}; {len(late)} subjects have their first one after 0, up to {late.max():.3g} years"


def _teachers(teachers: pd.DataFrame | None) -> list[str]:
    if teachers is None or teachers.empty:
        return []
    num_subjects = teachers["subject"].nunique()
    return [f"without an outcome: {num_subjects} subjects, {len(teachers)} visits, which teach progress and no more"]


def _covariates(table: pd.DataFrame) -> str:
    columns = find_columns({"cohort": table})
    unused = {name: why for name, why in columns.unused.items() if not IMAGE_FEATURE.fullmatch(name)}
    left_out = "; not used: " + ", ".join(f"{name} ({why})" for name, why in unused.items()) if unused else ""
    return f"covariates: {', '.join(columns.used_in_words()) or 'none'}{left_out}"


def _at_landmark(table: pd.DataFrame, year: float) -> str:
    rows = cut_at_landmarks(table, Visits.of(table), (year,))
    subjects = table.groupby("subject")[["visit_time", "time"]].min()
    is_over = np.round(subjects["time"] - year, 9) <= 0
    return (
        f"landmark {year:g} years: {len(rows)} subjects at risk, {rows.event.sum()} with an event; left out: "
        f"{is_over.sum()} whose event or follow-up came before, {(~is_over & (subjects['visit_time'] > year)).sum()} "
        "without a visit by then"
    )


def gaps_between_visits(table: pd.DataFrame) -> np.ndarray:
    """(M - N,) years between each visit and the one before of the same subject; `table` has N subjects."""
    return table.groupby("subject")["visit_time"].diff().dropna().to_numpy()


# ---- What is unlikely ----------------------------------------------------------------------------
def unlikely_times(table: pd.DataFrame, time_unit: TimeUnit) -> list[str]:
    """Tell of times that are probably in another unit, or ages.

    Args:
        table: M visits, times in years.
        time_unit: that they were read in.
    Returns:
        A line for each fault, with its remedy.
    """
    first_visit = table.groupby("subject")["visit_time"].transform("min")
    if (middle := first_visit.median()) > LEAST_AGE:
        return [
            f"the first visits are at {middle:.3g} years in the median, from {first_visit.min():.3g} to "
            f"{first_visit.max():.3g}. Ages? `visit_time` and `time` count from each subject's first visit: subtract "
            "the age there, and give it as a covariate"
        ]
    gaps = gaps_between_visits(table)
    gap = float(np.median(gaps)) if len(gaps) else None
    longest = float((table["time"] - first_visit).max()) if "time" in table else None
    if _is_likely(gap, longest, 1.0):
        return []
    units = [unit for unit, per_year in PER_YEAR.items() if _is_likely(gap, longest, PER_YEAR[time_unit] / per_year)]
    seen = [f"visits are {gap:.2g} years apart in the median"] if gap is not None else []
    seen += [f"the follow-up lasts up to {longest:.3g} years"] if longest is not None else []
    remedy = f"In {units[0]}? Then set TIME_UNIT={units[0]}" if units else "Check the times and TIME_UNIT"
    return [f"{' and '.join(seen)}, read as {time_unit}: that is unlikely. {remedy}"]


def _is_likely(gap: float | None, longest: float | None, factor: float) -> bool:
    """Whether a median gap and a longest follow-up, years, are likely once they are multiplied by a factor."""
    low, high = LIKELY_GAPS
    return (gap is None or low <= gap * factor <= high) and (longest is None or longest * factor <= LIKELY_FOLLOW_UP)


def horizons_not_borne(
    parts: Mapping[str, pd.DataFrame], landmarks: Sequence[float], horizons: Sequence[float]
) -> list[str]:
    """Tell of horizons at which some part has no figures, since it or the training part was not followed so long.

    Args:
        parts: tables of visits with outcomes.
        landmarks: years from baseline; empty: the last visits.
        horizons: years after the landmark.
    Returns:
        A line for each landmark with such horizons, with the largest that the data bear.
    """
    lines = []
    grids: list[tuple[float, ...]] = [(year,) for year in landmarks] or [()]
    for grid in grids:
        follow_up = {
            name: cut_at_landmarks(part, Visits.of(part), grid).time.max(initial=0) for name, part in parts.items()
        }
        shortest = min(follow_up, key=follow_up.__getitem__)
        beyond = [f"{horizon:g}" for horizon in horizons if horizon >= follow_up[shortest]]
        if beyond and follow_up[shortest] > 0:  # a landmark with nobody at risk is refused
            since = f"landmark {grid[0]:g}" if grid else "the last visits"
            lines.append(
                f"HORIZONS: {', '.join(beyond)} years after {since} lie beyond the follow-up of the {shortest} part, "
                f"so figures are missing; the largest that the data bear is {largest_below(follow_up[shortest])} years"
            )
    return lines
