"""Visits at or after the end of what is known of a subject: refused, or left out and counted."""

import logging
from pathlib import Path

import pandas as pd

from cohort.faults import cause_of_late_visits, row_faults
from runs.errors import InputError

AT_EVENT = "a visit at or after the subject's `time`"
AFTER_END = "a visit after the end of the subject's follow-up, `time`"
logger = logging.getLogger(__name__)


def without_late_visits(
    table: pd.DataFrame, left: pd.Series, path: Path, *, drop: bool
) -> tuple[pd.DataFrame, list[str]]:
    """The table without visits that come too late, if they are to be dropped; else their faults.

    Too late is a visit at or after its subject's event, or after the end of follow-up. A censored subject's last visit
    may lie at the end: it is part of the history, and counted in the log.

    Args:
        table: N visits with `subject, visit_time, time, event`; `event` is 0 where the subject was last seen without
            any event, 1 or more where one was seen, and neither where it is wrong.
        left: (N,) years from each visit to its subject's `time`, free of rounding noise.
        path: of the table's file, for the log.
        drop: leave late visits out and count them in the log.
    Returns:
        The table, and the lines about its late visits.
    Raises:
        InputError: no visit would be left.
    """
    event, left = table["event"] >= 1, left.where(table["time"] >= 0)
    after_event, after_end = event & (left <= 0), ~event & (left < 0)
    late = after_event | after_end
    is_censored = ~late & (table["event"] == 0)
    _log_visits_at_the_end(table[is_censored], left[is_censored], path)
    if drop:
        return _drop(table, after_event, after_end, path), []
    cause = cause_of_late_visits(late)
    faults = row_faults(table.loc[after_event, "visit_time"].items(), AT_EVENT, cause=cause)
    return table, faults + row_faults(table.loc[after_end, "visit_time"].items(), AFTER_END, cause=cause)


def _drop(table: pd.DataFrame, after_event: pd.Series, after_end: pd.Series, path: Path) -> pd.DataFrame:
    """The table without these visits, (N,) bool each; logs how many they are, and how many subjects have no other."""
    late = after_event | after_end
    if not late.any():
        return table
    kept = table[~late].copy()
    if kept.empty:
        raise InputError(f"{path}: every visit is at or after its subject's `time`. Check `visit_time` and `time`.")
    logger.warning(
        "%s: LATE_VISITS=drop leaves out %d visits: %d at or after their subject's event, %d after the end of the "
        "follow-up; %d subjects have no other visit",
        *(path, late.sum(), after_event.sum(), after_end.sum()),
        table["subject"].nunique() - kept["subject"].nunique(),
    )
    return kept


def _log_visits_at_the_end(table: pd.DataFrame, left: pd.Series, path: Path) -> None:
    """Log how many visits have no time left, and how many subjects no other; `left` is in years, a row a visit."""
    at_end = table.loc[left == 0, "subject"]
    if len(at_end):
        alone = len(set(at_end) - set(table.loc[left > 0, "subject"]))
        logger.info(
            "%s: %d last visits of censored subjects lie at `time`: part of their histories, not predicted at; "
            "%d of these subjects have no earlier visit, so they are in no figure",
            *(path, len(at_end), alone),
        )
