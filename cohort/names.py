"""Names of columns: which of the user's would be taken for one of ours.

Columns of the user's may have any other name; blanks and signs that can't be seen are tidied.
"""

import re
from collections.abc import Iterable, Sequence

from cohort.ids import id_key

OF_STAGE_1 = re.compile(r"log_hazard|progress|feature_\d+")  # columns that stage 1 makes of a scan
IN_MEMORY = ("subject", "scan", "event", "cache_entry")  # ours, which no file has under this name
CONTROL_SIGNS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def tidy_name(name: str) -> str:
    """A column's name on one line: without control signs, with single blanks, and none around it."""
    return " ".join(CONTROL_SIGNS.sub(" ", name).split())


def name_faults(names: Iterable[str], ours: Sequence[str], *, of_scans: bool) -> list[str]:
    """Find the columns of the user's that would be taken for one of ours.

    Args:
        names: of a table's columns, as they stand in its file.
        ours: names that columns in a file have a meaning by.
        of_scans: the table is of scans, so stage 1 adds columns to it; else it may hold stage 1's own.
    Returns:
        A line for each such column: a name of ours in memory, one that stage 1 gives, or one that differs from ours
        only in case, blanks, underscores or signs that can't be seen.
    """
    faults = []
    for name in names:
        if name in IN_MEMORY:
            faults.append(f"{name}: this program has a column of its own of this name")
        elif of_scans and OF_STAGE_1.fullmatch(name):
            faults.append(f"{name}: stage 1 makes a column of this name")
        elif name not in ours and (meant := [other for other in ours if _key(name) == _key(other)]):
            faults.append(f"{name!r}: differs from `{meant[0]}` only in case, blanks, `_` or signs that can't be seen")
    return faults


def _key(name: str) -> str:
    """What spellings of one name have in common."""
    return re.sub(r"[\s_]", "", id_key(name))
