"""Subjects without an outcome: their scans teach progress beside those of the training subjects, and nothing else.

`convert_status` is empty in every row of such a subject. No more of its rows is used than COLUMNS, so that nothing can
take them for scans with an outcome, and no part of the split holds them.
"""

import logging
from pathlib import Path

import pandas as pd

from cohort.faults import row_faults
from cohort.table_files import is_missing

COLUMNS = ("subject", "scan", "visit_time", "nifti_path")  # in memory
IN_PART = "convert_status: expected an outcome, as in other rows of the subject"
IN_PART_CAUSE = "Fill it in, or leave it empty in all rows of a subject, whose scans then teach progress alone"
REFUSED_CAUSE = "Empty? Only TRAIN_CSV or COHORT_CSV may hold subjects without an outcome"
logger = logging.getLogger(__name__)


def no_teachers() -> pd.DataFrame:
    """The table of no subject without an outcome."""
    return pd.DataFrame(columns=[*COLUMNS, "cache_entry"])


def find_empty(table: pd.DataFrame) -> pd.Series:
    """Find the rows without an outcome.

    Args:
        table: N rows of a cohort, their `event` as it is written, if the table has it.
    Returns:
        (N,) bool; `event` is empty or holds a mark that stands for no value.
    """
    return is_missing(table["event"]) if "event" in table else pd.Series(False, table.index)


def teacher_faults(table: pd.DataFrame, empty: pd.Series) -> list[str]:
    """Tell what is wrong of the rows without an outcome.

    Args:
        table: N rows with `subject` and, if any of them is empty, `event`.
        empty: (N,) bool, of `find_empty`.
    Returns:
        Lines about subjects with an outcome in some of their rows only, and about a table in which nobody has one.
    """
    if not empty.any():
        return []
    if empty.all():
        return [f"convert_status: empty in all {len(table)} rows; subjects without an outcome can't be all there are"]
    in_part = empty & ~empty.groupby(table["subject"]).transform("all")
    return row_faults(table.loc[in_part, "event"].items(), IN_PART, cause=IN_PART_CAUSE)


def log_left_out(teachers: pd.DataFrame, path: Path) -> None:
    """Log how many subjects without an outcome a table of features has, in which they can teach nothing.

    Args:
        teachers: their rows, with `subject`.
        path: of the table.
    """
    if len(teachers):
        logger.warning(
            "%s: %d subjects without an outcome are left out, with their %d visits: `convert_status` is empty",
            *(path, teachers["subject"].nunique(), len(teachers)),
        )


def who_can_teach(teachers: pd.DataFrame, *, is_progress_learned: bool) -> pd.DataFrame:
    """The subjects without an outcome who are of use: two scans are needed to teach; the log counts the others.

    Args:
        teachers: a row a scan, with COLUMNS.
        is_progress_learned: PROGRESS is not off.
    Returns:
        Their rows.
    """
    if not is_progress_learned and len(teachers):
        logger.warning(
            "%d subjects without an outcome are left out, with their %d scans: `convert_status` is empty, and with "
            "PROGRESS=off there is nothing that they could teach",
            *(teachers["subject"].nunique(), len(teachers)),
        )
        return teachers.iloc[:0]
    is_alone = ~teachers["subject"].duplicated(keep=False)
    if is_alone.any():
        logger.warning(
            "%d subjects without an outcome are left out: they have one scan, and two are needed to teach progress",
            is_alone.sum(),
        )
    return teachers[~is_alone].reset_index(drop=True)
