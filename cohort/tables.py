"""The cohort table and the feature table, a row a scan: read, checked and written.

In memory a table has the columns `subject, scan, visit_time, time, event`, then `nifti_path`, `cache_entry` and columns
of numbers or text, and its times are years. On disk it has the user's columns `subjectid, imageid, visit_time, time,
convert_status`, and its times are in TIME_UNIT. The functions here translate between the two, and nothing else does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from cohort.competing import censor_competing
from cohort.decimals import Decimal
from cohort.faults import (
    cause_of_no_number,
    cause_of_states,
    cause_of_times,
    cause_of_two_outcomes,
    meant_as_numbers,
    row_faults,
)
from cohort.ids import id_key, similar_ids_fault
from cohort.late_visits import without_late_visits
from cohort.names import name_faults
from cohort.splits import PARTS, check_parts
from cohort.table_files import is_missing, read_rows
from cohort.teachers import COLUMNS, REFUSED_CAUSE, find_empty, log_left_out, teacher_faults
from cohort.volume_paths import find_volumes
from runs.errors import InputError, raise_if_any
from runs.files import written_whole

TimeUnit = Literal["years", "months", "days"]
Times = TypeVar("Times", pd.Series, pd.DataFrame)
PER_YEAR = {"years": 1.0, "months": 12.0, "days": 365.25}  # of each TIME_UNIT
ON_DISK = {  # the user's column, by its name in memory
    "subject": "subjectid",
    "scan": "imageid",
    "visit_time": "visit_time",
    "time": "time",
    "event": "convert_status",
}
OUR_COLUMNS = (*ON_DISK, "nifti_path", "cache_entry")  # in memory; never features
OUR_NAMES = (*ON_DISK.values(), "nifti_path")  # on disk
TEXT_COLUMNS = ("subjectid", "imageid", "nifti_path", "convert_status")  # on disk; read as they are written
STATES = {"true": 1.0, "false": 0.0}  # other programs' words for `convert_status` 1 and 0
LONGEST_FOLLOW_UP = 100.0  # years; a larger time is a calendar year or the number of a day
HUGE_EXPONENT = r"[eE][+-]?\d{4,}"
LARGEST_FEATURE = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a table is read where it can be read in more than one way: the settings of these names in config.py."""

    similar_ids: Literal["refuse", "allow"] = "refuse"  # ids that differ only in case, invisible signs or zeros
    decimal: Decimal = "auto"  # the sign before decimals
    late_visits: Literal["refuse", "drop"] = "refuse"  # at or after the event, or after the end of follow-up
    event_names: tuple[str, ...] = ()  # of `convert_status` 1, 2, ...; all but the first compete with it


AS_USUAL = Reading()


def reading_of(settings: Any) -> dict[str, Any]:
    """How a run reads its tables: the arguments `time_unit` and `reading` of the functions here.

    Args:
        settings: has the attributes TIME_UNIT and, in upper case, the names of `Reading`.
    """
    names = [field.name for field in dataclasses.fields(Reading)]
    reading = Reading(**{name: getattr(settings, name.upper()) for name in names})
    return {"time_unit": settings.TIME_UNIT, "reading": reading}


def to_years(times: Times, time_unit: TimeUnit) -> Times:
    """Times in years.

    Args:
        times: (N,) or a table of times, in `time_unit`.
        time_unit: years, months or days.
    """
    return times / PER_YEAR[time_unit]


def from_years(times: Times, time_unit: TimeUnit) -> Times:
    """Times in another unit, free of rounding noise.

    Args:
        times: (N,) or a table of times, in years.
        time_unit: of the result: years (returned as they are), months or days.
    """
    return times if time_unit == "years" else (times * PER_YEAR[time_unit]).round(9)


def read_cohort(
    path: str | Path,
    *,
    mri_folder: str | Path,
    time_unit: TimeUnit = "years",
    reading: Reading = AS_USUAL,
    may_teach: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read and check a table of scans with known outcomes, and of some whose subject has none.

    Args:
        path: CSV with `subjectid, imageid, visit_time, time, convert_status`, optionally `nifti_path`
            (relative to the CSV) and covariates: numbers or text.
        mri_folder: holds `imageid.nii.gz` or `imageid.nii` where the table has no `nifti_path`.
        time_unit: of `visit_time` and `time`.
        reading: what is done where a table can be read in more than one way.
        may_teach: `convert_status` may be empty, in all rows of a subject.
    Returns:
        The table in memory's columns and years, sorted by subject and visit; `nifti_path` is absolute. And the scans
        of subjects without an outcome, likewise, in `teachers.COLUMNS` alone.
    Raises:
        InputError: names every bad row, and every scan without a file.
    """
    table, teachers = _read_checked(
        Path(path), needed=ON_DISK, time_unit=time_unit, reading=reading, folder=mri_folder, may_teach=may_teach
    )
    return _sort_visits(table), _sort_visits(teachers[[*COLUMNS]])


def read_scans(
    path: str | Path, *, mri_folder: str | Path, time_unit: TimeUnit = "years", reading: Reading = AS_USUAL
) -> pd.DataFrame:
    """Read and check a table of scans whose outcome is not known yet.

    Args:
        path: as for `read_cohort`; `time` and `convert_status` are ignored if they are there.
        mri_folder: as for `read_cohort`.
        time_unit: of `visit_time`.
        reading: as for `read_cohort`.
    Returns:
        As `read_cohort`, without `time` and `event`; `visit_time` in years.
    Raises:
        InputError: as `read_cohort`.
    """
    path, outcome = Path(path), ("time", "event")
    needed = {name: column for name, column in ON_DISK.items() if name not in outcome}
    ignored = [ON_DISK[name] for name in outcome]
    table, _ = _read_checked(
        path, needed=needed, ignored=ignored, time_unit=time_unit, reading=reading, folder=mri_folder
    )
    return _sort_visits(table)


def read_parts(
    paths: Mapping[str, str | Path],
    *,
    mri_folder: str | Path,
    time_unit: TimeUnit = "years",
    reading: Reading = AS_USUAL,
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Read the user's own split: one cohort table for each of train, val and test.

    That of train alone may hold subjects without an outcome.

    Args:
        paths: of the three tables, by part.
        mri_folder: as for `read_cohort`.
        time_unit: of `visit_time` and `time`.
        reading: as for `read_cohort`.
    Returns:
        By part, the table in memory's columns and years; and the scans of subjects without an outcome.
    Raises:
        InputError: as `read_cohort` and `check_parts`.
    """
    read = partial(read_cohort, mri_folder=mri_folder, time_unit=time_unit, reading=reading)
    tables = {part: read(paths[part], may_teach=part == "train") for part in PARTS}
    parts, teachers = {part: table for part, (table, _) in tables.items()}, tables["train"][1]
    return check_parts(parts, teachers=teachers, similar_ids=reading.similar_ids), teachers


def read_features(path: str | Path, *, time_unit: TimeUnit = "years", reading: Reading = AS_USUAL) -> pd.DataFrame:
    """Read and check a table of visits with features, which may be missing.

    Subjects without an outcome are left out, and counted in the log.

    Args:
        path: Parquet or CSV, a row a visit; `imageid` is optional, every other column is a feature, numbers or text.
        time_unit: of `visit_time` and `time`.
        reading: as for `read_cohort`.
    Returns:
        The table in memory's columns and years, sorted by subject and visit.
    Raises:
        InputError: names every bad row or column.
    """
    path = Path(path)
    needed = {name: column for name, column in ON_DISK.items() if name != "scan"}
    table, without_outcome = _read_checked(path, needed=needed, time_unit=time_unit, reading=reading)
    log_left_out(without_outcome, path)
    return _sort_visits(table)


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as it is, whole, without its index.

    Args:
        table: of any columns and rows.
        path: of the CSV.
    """
    with written_whole(path) as part:
        table.to_csv(part, index=False)


def write_table(table: pd.DataFrame, path: str | Path, *, time_unit: TimeUnit = "years") -> None:
    """Write a table in the user's columns and unit, whole.

    Args:
        table: in memory's columns and years, a row a scan; `time` and `event` may be absent, or NaN.
        path: of the file; `.parquet`, or any other suffix for CSV.
        time_unit: of `visit_time` and `time` in the file.
    Raises:
        WriteError: the disk is full, or the folder read-only.
    """
    path = Path(path)
    table = table.copy()
    for name in table.columns.intersection(["visit_time", "time"]):
        table[name] = from_years(table[name], time_unit)
    if "event" in table:
        table["event"] = table["event"].astype("Int64" if table["event"].isna().any() else int)
    table = table.rename(columns=ON_DISK)
    with written_whole(path) as part:
        if path.suffix == ".parquet":
            table.to_parquet(part, index=False, write_page_checksum=True)  # so that damage is noticed
        else:
            table.to_csv(part, index=False)


def feature_columns(table: pd.DataFrame) -> list[str]:
    """The numeric columns of a table (a row a scan) that are not in OUR_COLUMNS, in the table's order."""
    return [name for name in table.columns if name not in OUR_COLUMNS and pd.api.types.is_numeric_dtype(table[name])]


def visits_with_time_left(table: pd.DataFrame) -> pd.DataFrame:
    """The visits that something can be predicted at, in the table's order, with their index.

    A censored subject's last visit may lie at the end of the follow-up: it belongs to the history, and no time is left.
    Where outcomes are not known, all visits are.
    """
    return table[time_left(table) > 0] if "time" in table else table


def last_visits(table: pd.DataFrame) -> pd.DataFrame:
    """The last visit of each subject that has time left: a row a subject, sorted by subject."""
    return _sort_visits(visits_with_time_left(table)).groupby("subject", sort=True).tail(1).reset_index(drop=True)


def time_left(table: pd.DataFrame) -> np.ndarray:
    """(N,) years from each visit to its subject's event or end of follow-up, free of rounding noise."""
    return np.round((table["time"] - table["visit_time"]).to_numpy(), 9)


def _read_checked(
    path: Path,
    *,
    needed: Mapping[str, str],
    ignored: Sequence[str] = (),
    time_unit: TimeUnit,
    reading: Reading,
    folder: str | Path | None = None,
    may_teach: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of subjects with an outcome, or of all if none is needed, and the others; raises once for all bad rows.

    Both are in memory's columns and years.
    """
    table, problems = read_rows(path, text=TEXT_COLUMNS, decimal=reading.decimal)
    table = table.drop(columns=[*ignored], errors="ignore")
    _check_names(table, path, needed, of_scans=folder is not None, has_rows=bool(len(table) or problems))
    table = table.rename(columns={column: name for name, column in ON_DISK.items() if column in table})
    problems += _clean_ids(table, reading)
    empty = find_empty(table)
    problems += teacher_faults(table, empty) if may_teach else []
    problems += _parse_outcomes(table, time_unit, reading.event_names, empty, may_teach=may_teach)
    if "event" in table:
        with np.errstate(over="ignore"):  # a time that is too long is named
            left = to_years(table["time"] - table["visit_time"], time_unit).round(9)
        table, faults = without_late_visits(table, left, path, drop=reading.late_visits == "drop")
        problems += faults
    problems += _contradictions(table) + _parse_features(table)
    if folder is not None:
        problems += find_volumes(table, path, Path(folder))
    raise_if_any(f"{path}: rows can't be used", problems, f"Fix these rows of {path}, or drop them.")
    for name in table.columns.intersection(["visit_time", "time"]):
        table[name] = to_years(table[name], time_unit)
    empty = empty[table.index]
    table, others = table[~empty].copy(), table[empty]
    if "event" in table:
        table["event"] = censor_competing(table, reading.event_names, path)
    return table, others


def _check_names(table: pd.DataFrame, path: Path, needed: Mapping[str, str], *, of_scans: bool, has_rows: bool) -> None:
    """Refuse a table without a column of `needed` or without rows, or with a column that would be taken for ours.

    Raises:
        InputError: names every such column.
    """
    names = [str(name) for name in table.columns]
    faults = name_faults(names, OUR_NAMES, of_scans=of_scans)
    absent = [column for column in needed.values() if column not in names]
    if absent or not has_rows:
        raise InputError(
            f"{path}: expected the columns {', '.join(needed.values())} and a row or more. "
            f"Missing: {', '.join(absent) or 'rows'}. Found: {', '.join(names) or 'nothing'}."
            + "".join(f"\n  {fault}" for fault in faults)
        )
    raise_if_any(f"{path}: columns can't be used", faults, "Rename these columns, or drop them.")


def _clean_ids(table: pd.DataFrame, reading: Reading) -> list[str]:
    """Turn ids into text without blanks around it, in place; the faults of rows without an id, or with another's."""
    problems = []
    for name in table.columns.intersection(["subject", "scan"]):
        table[name] = table[name].fillna("").astype(str).str.strip()
        absent = is_missing(table[name]) | (table[name].map(id_key) == "")
        problems += _row_faults(table, absent, f"{ON_DISK[name]}: expected an id", shown=name)
        if reading.similar_ids == "refuse":
            first_rows = table.loc[~absent, name].drop_duplicates()
            problems += similar_ids_fault(ON_DISK[name], {value: f"row {row}" for row, value in first_rows.items()})
    return problems


def _parse_outcomes(
    table: pd.DataFrame, time_unit: TimeUnit, event_names: Sequence[str], empty: pd.Series, *, may_teach: bool
) -> list[str]:
    """Turn times and states into numbers, in place; the faults of rows where they are none, or out of range.

    A state may be missing in the rows `empty`, (N,) bool, if their subjects may teach; their `time` is not used then.
    """
    problems, teaches = [], empty & may_teach
    for name in table.columns.intersection(["visit_time", "time", "event"], sort=False):
        values, not_needed = _to_numbers(table[name]), teaches & is_missing(table[name]) & (name != "visit_time")
        if name == "event":
            values = values.fillna(table[name].astype(str).str.strip().str.lower().map(STATES))
            highest = max(len(event_names), 1)
            wrong = ~values.isin(range(highest + 1)) & ~not_needed
            coded = table.loc[~empty, name]
            cause = cause_of_states(coded, event_names) if (wrong & ~empty).any() else REFUSED_CAUSE
            expected = f"expected 0 {'or' if highest == 1 else 'to'} {highest}"
            problems += _row_faults(table, wrong, f"convert_status: {expected}", shown=name, cause=cause)
        else:
            wrong = (~(values >= 0) | np.isinf(values)) & ~not_needed
            cause = cause_of_times(table.loc[wrong, name], time_unit, PER_YEAR)
            problems += _row_faults(table, wrong, f"{name}: expected a number >= 0", shown=name, cause=cause)
            too_long = np.isfinite(values) & (values > LONGEST_FOLLOW_UP * PER_YEAR[time_unit])
            expected = f"expected {time_unit} since the subject's baseline, {LONGEST_FOLLOW_UP:g} years at most"
            cause = cause_of_times(values[too_long], time_unit, PER_YEAR)
            problems += _row_faults(table, too_long, f"{name}: {expected}", shown=name, cause=cause)
        table[name] = values if name == "visit_time" else values.mask(teaches)
    return problems


def _contradictions(table: pd.DataFrame) -> list[str]:
    """The faults of rows that contradict each other."""
    problems = []
    if "event" in table:
        outcomes = table.groupby("subject")[["time", "event"]].transform("nunique")
        differing = (outcomes > 1).any(axis=1)
        cause = cause_of_two_outcomes(table[differing]) if differing.any() else ""
        problems += _row_faults(table, differing, "one subject with two outcomes", shown="subject", cause=cause)
    same_visit = table.duplicated(["subject", "visit_time"], keep=False)
    problems += _row_faults(table, same_visit, "two visits of one subject at one time", shown="subject")
    if "scan" in table:
        problems += _row_faults(table, table.duplicated("scan", keep=False), "imageid stands twice", shown="scan")
    return problems


def _parse_features(table: pd.DataFrame) -> list[str]:
    """Turn the other columns into numbers, in place; the faults of rows whose number is misspelt or too large.

    A column stays text if it holds no number, and its cells were not meant as such.
    """
    problems = []
    for name in table.columns.difference([*OUR_COLUMNS], sort=False):
        values = _to_numbers(table[name])
        if table[name].dtype == object:
            values = values.fillna(table[name].astype(str).str.strip().str.lower().map(STATES))
        misspelt = values.isna() & table[name].notna()
        if misspelt.any() and values.isna().all() and not meant_as_numbers(table.loc[misspelt, name]):
            continue
        wrong = misspelt | (values.abs() > LARGEST_FEATURE)
        cause = cause_of_no_number(table.loc[misspelt, name]) if misspelt.any() else ""
        problems += _row_faults(table, wrong, f"{name}: expected a number or nothing", shown=name, cause=cause)
        table[name] = values
    return problems


def _to_numbers(column: pd.Series) -> pd.Series:
    """A column in floats; NaN where there is no number."""
    if column.dtype == object:  # pandas 2.3 reads beyond its memory at an exponent of many digits
        column = column.where(~column.astype(str).str.contains(HUGE_EXPONENT))
    return pd.to_numeric(column, errors="coerce").astype(float)


def _row_faults(
    table: pd.DataFrame, bad: pd.Series, fault: str, *, shown: str, verb: str = "received", cause: str = ""
) -> list[str]:
    """The lines about the bad rows, with what they hold in the column `shown`."""
    return row_faults(table.loc[bad, shown].items(), fault, verb=verb, cause=cause)


def _sort_visits(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["subject", "visit_time"], kind="stable").reset_index(drop=True)
