"""Events that compete with the one that is predicted: who has one can't have the other any more."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

logger = logging.getLogger(__name__)


def censor_competing(table: pd.DataFrame, names: Sequence[str], path: Path) -> pd.Series:
    """Count competing events as the end of follow-up, and say how many subjects have which.

    The hazard is then that of the first event alone (its cause-specific hazard).

    Args:
        table: N visits with `subject` and `event`: 0 last seen without any, 1 the event, 2 and more a competing one.
        names: of the events 1, 2, ...; as many as there are, or none where there is but one.
        path: of the table's file, for the log.
    Returns:
        (N,) bool, the event was seen.
    """
    counts = table.drop_duplicates("subject")["event"].value_counts()
    competing = [
        f"{counts[state]} subjects with {name} (convert_status {state})"
        for state, name in enumerate(names, 1)
        if state > 1 and state in counts
    ]
    if competing:
        logger.warning(
            "%s: EVENT_NAMES: %s count as censored at `time`. The curves then show when %s would come if nothing else "
            "could happen before, which overstates its risk",
            *(path, ", ".join(competing), names[0]),
        )
    return table["event"] == 1
