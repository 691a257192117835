"""Rows that can't be used, in words: each by its number, or many of one fault as one line with the likely cause."""

from collections.abc import Hashable, Iterable, Sequence

import pandas as pd

MOST_LINES = 6  # rows of one fault that have a line each
NUM_EXAMPLES = 3  # rows that a line about more of them shows
DATE = r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b.*|\d{1,2}[- ][A-Za-z]{3}[- ]\d{2,4}\b.*"
LOCAL_NUMBER = r"[+-]?\d*([., '\u2019\u00a0\u202f]\d{3})*[.,]\d+"  # such as `6,5`, `1,495` or `1.495,2`
LOCAL_CAUSE = "Decimal commas, or signs between thousands? Then set DECIMAL=comma or DECIMAL=point"
WITH_UNIT = r"[<>~]?[+-]?\d+([.,]\d+)?\s*[^\W\d_%]+(/[^\W\d_]+)?"  # such as `3.5 ml`
MEANT_AS_NUMBER = r"[<>~]?[+\u2212\u2013-]?\d+([., ']\d{3})*([.,]\d+)?([eE][+-]?\d+)?\s*%?"  # such as `<5` or `1,070`
MOST_LEVELS = 10  # of a category such as `3T`; numbers with a unit have more values
CALENDAR_YEARS = (1900, 2100)
SERIAL_DAYS = (25_000, 60_000)  # what a spreadsheet program has for the dates from 1968 to 2064
LONGEST = 100.0  # years; a follow-up is not longer
OLDEST = 125.0  # years; ages are not higher


def row_fault(row: Hashable, fault: str, *received: object, verb: str = "received") -> str:
    """A line about one row that can't be used, such as `row 3: expected 6 fields, received 5`.

    Args:
        row: its line, as an editor shows it (Parquet: counted from 1).
        fault: what was expected, or what is wrong.
        received: the value in the row, if showing it helps.
        verb: what stands before that value.
    """
    return f"row {row}: {fault}" + "".join(f", {verb} {value!r}" for value in received)


def row_faults(
    rows: Iterable[tuple[Hashable, object]], fault: str, *, verb: str = "received", cause: str = ""
) -> list[str]:
    """Lines about the rows of one fault: a line each if they are few, else one with their number and some examples.

    Args:
        rows: the number of each bad row and the value in it.
        fault: what was expected, or what is wrong.
        verb: what stands before a value.
        cause: what has probably happened and how to mend it, a sentence; it ends the last line.
    Returns:
        No line if there is no bad row.
    """
    rows = list(rows)
    if not rows:
        return []
    if len(rows) <= MOST_LINES:
        lines = [row_fault(row, fault, value, verb=verb) for row, value in rows]
    else:
        first_row: dict[str, Hashable] = {}  # of each value, as it is shown
        for row, value in rows:
            first_row.setdefault(repr(value), row)
        examples = ", ".join(f"{value} (row {row})" for value, row in list(first_row.items())[:NUM_EXAMPLES])
        lines = [f"{len(rows)} rows: {fault}, {verb} {examples}" + (", …" if len(first_row) > NUM_EXAMPLES else "")]
    return [*lines[:-1], lines[-1] + (f". {cause}" if cause else "")]


# ---- Likely causes -----------------------------------------------------------------------------------
def cause_of_states(states: pd.Series, event_names: Sequence[str]) -> str:
    """The likely cause of wrong states.

    Args:
        states: (N,) text, the column `convert_status` where it is not empty.
        event_names: of the states 1, 2, ... that are expected; empty: 1 alone.
    Returns:
        A sentence, or nothing.
    """
    distinct = set(states.astype(str).str.strip().str.replace(r"\.0+$", "", regex=True).str.lower())
    if distinct == {"1", "2"}:
        return "Coded 1 for censored and 2 for the event, as in R? Then subtract 1 in every row"
    if distinct == {"-1", "1"}:
        return "Coded -1 for censored? Then write 0"
    if distinct <= {"0", "1", *map(str, range(2, 10))}:
        named = f"EVENT_NAMES={','.join([*event_names, 'another'])}" if event_names else "EVENT_NAMES=first,second"
        return (
            f"Numbers beyond 1 look like competing events: name them all, such as {named}, and those beyond 1 count as "
            "censored; or write 1 for the event, 0 for last seen without it"
        )
    if any(state.isalpha() for state in distinct - {"true", "false", "nan", "na"}):
        return "Words? Write 1 for the event at `time`, 0 for last seen without it"
    return ""


def cause_of_times(cells: pd.Series, unit: str, per_year: dict[str, float]) -> str:
    """The likely cause of times that are no numbers, negative or too long.

    Args:
        cells: (N,) the wrong cells of one column, text or numbers.
        unit: of times in the table.
        per_year: of each unit.
    Returns:
        A sentence, or nothing.
    """
    text = cells.astype(str).str.strip()
    since = f"write {unit} since the subject's baseline"
    if _most(text.str.fullmatch(DATE)):
        return f"Dates? Then {since}"
    if _most(text.str.fullmatch(LOCAL_NUMBER) & text.str.contains(",")):
        return LOCAL_CAUSE
    if _most(text.str.fullmatch(WITH_UNIT)):
        return "Numbers with a unit? Then write the number alone"
    numbers = pd.to_numeric(text, errors="coerce")
    if _most(numbers < 0):
        return "Visits before the baseline? Then count from the subject's first visit"
    if _most(numbers.between(*CALENDAR_YEARS) & (unit == "years")):
        return f"Calendar years? Then {since}"
    if _most(numbers.between(*SERIAL_DAYS)):
        return f"Dates, as a spreadsheet program numbers them? Then {since}"
    ages = f"Ages? Then {since}. " if _most(numbers / per_year[unit] <= OLDEST) else ""
    for other in ("months", "days"):
        if per_year[other] > per_year[unit] and numbers.max() / per_year[other] <= LONGEST:
            return f"{ages}In {other}? Then set TIME_UNIT={other}"
    return ages.rstrip(" .")


def cause_of_late_visits(is_late: pd.Series) -> str:
    """The likely cause of visits at or after `time`; `is_late` is (N,) bool of the whole table."""
    if _most(is_late):
        return "`visit_time` in another unit than `time`, or the two swapped?"
    return "LATE_VISITS=drop leaves such visits out"


def cause_of_two_outcomes(table: pd.DataFrame) -> str:
    """The likely cause of subjects with two outcomes.

    Args:
        table: their rows, `subject, visit_time, time, event`.
    Returns:
        A sentence, or nothing.
    """
    spread = (table["time"] + table["visit_time"]).groupby(table["subject"]).agg(lambda end: end.max() - end.min())
    if _most(spread < 1e-3 * table["time"].abs().max()):
        return "Does `time` count from each visit? It counts from the subject's baseline, the same in all rows"
    times = table.groupby("subject")["time"]
    if (times.min() == times.max()).all():
        return "`convert_status` says how the subject's follow-up ended, the same in all rows, not the state at a visit"
    return "`time` and `convert_status` are the subject's, the same in all rows"


def meant_as_numbers(cells: pd.Series) -> bool:
    """Whether the cells, (N,), of a column without a number are mostly misspelt numbers, so that it is no text."""
    text = cells.astype(str).str.strip()
    has_unit = text.str.fullmatch(WITH_UNIT) & (text.nunique() > MOST_LEVELS)
    return bool((text.str.fullmatch(MEANT_AS_NUMBER) | has_unit).mean() >= 0.5)


def cause_of_no_number(cells: pd.Series) -> str:
    """The likely cause of cells, (N,), that are no numbers in a column of numbers."""
    text = cells.astype(str).str.strip()
    if _most(text.str.fullmatch(LOCAL_NUMBER)):
        return LOCAL_CAUSE
    if _most(text.str.fullmatch(WITH_UNIT)):
        return "Numbers with a unit? Then write the number alone"
    if _most(text.str.match("[\u2212\u2013]")):
        return "Another sign than - for minus? Then write -"
    if _most(text.str.match("#")):
        return "Errors of a spreadsheet program? Then leave these cells empty"
    if _most(text.str.fullmatch(r"[<>~].*")):
        return "Below or above a limit? Then write the limit, or leave the cell empty"
    return "A missing value is an empty cell or NA; a column of text holds no number"


def _most(true: pd.Series) -> bool:
    """Whether more than half of the values, (N,) bool, are true."""
    return bool(true.fillna(False).astype(bool).mean() > 0.5)
