"""The two tables, a row a scan: the cohort and the features. Read, checked, split, written.

In memory: `subject, scan, visit_time, time, event`, then `nifti_path` and numeric columns; times in years.
On disk: the user's `subjectid, imageid, visit_time, time, convert_status`; times in TIME_UNIT.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cohort.splits import PARTS, check_parts
from cohort.table_files import MISSING, read_rows
from runs.errors import InputError, raise_if_any
from runs.files import written_whole

TimeUnit = Literal["years", "months", "days"]
PER_YEAR = {"years": 1.0, "months": 12.0, "days": 365.25}
ON_DISK = {
    "subject": "subjectid",
    "scan": "imageid",
    "visit_time": "visit_time",
    "time": "time",
    "event": "convert_status",
}
OURS = (*ON_DISK, "nifti_path")
TEXT = ("subjectid", "imageid", "nifti_path", "convert_status")  # read as it is written
STATES = {"true": 1.0, "false": 0.0}  # what a table of another program may say for 1 and 0
LONGEST = 100.0  # years that a subject may be followed: a calendar year or the number of a day is none
HUGE = r"[eE][+-]?\d{4,}"
LARGEST = float(np.finfo(np.float32).max)  # of a feature
NUMBER = r"\s*[<>~]?[+-]?\d+([., ']\d{3})*([.,]\d+)?([eE][+-]?\d+)?\s*%?\s*"  # what its writer meant as a number
logger = logging.getLogger(__name__)


def read_cohort(path: str | Path, *, mri_folder: str | Path, time_unit: TimeUnit = "years") -> pd.DataFrame:
    """Read and check the table of scans.

    Args:
        path: CSV with `subjectid, imageid, visit_time, time, convert_status`, optionally `nifti_path`
            (relative to the CSV) and numeric covariates.
        mri_folder: holds `imageid.nii.gz` or `imageid.nii` where the table has no `nifti_path`.
        time_unit: of `visit_time` and `time`.
    Returns:
        The table in memory's columns and years, sorted by subject and visit; `nifti_path` is absolute.
    Raises:
        InputError: names every bad row, or every scan without a file.
    """
    path = Path(path)
    return _in_order(_checked(path, needed=ON_DISK, time_unit=time_unit, mri_folder=Path(mri_folder)))


def read_scans(path: str | Path, *, mri_folder: str | Path, time_unit: TimeUnit = "years") -> pd.DataFrame:
    """Read scans whose outcome is not known yet: as `read_cohort`, without `time` and `convert_status`.

    Raises:
        InputError: as `read_cohort`.
    """
    path = Path(path)
    needed = {name: ON_DISK[name] for name in ("subject", "scan", "visit_time")}
    unread = ("time", "convert_status")
    return _in_order(_checked(path, needed=needed, unread=unread, time_unit=time_unit, mri_folder=Path(mri_folder)))


def read_parts(
    paths: Mapping[str, str | Path], *, mri_folder: str | Path, time_unit: TimeUnit = "years"
) -> dict[str, pd.DataFrame]:
    """Read the user's own split: one cohort table for each of train, val and test.

    Raises:
        InputError: as `read_cohort` and `check_parts`.
    """
    return check_parts({part: read_cohort(paths[part], mri_folder=mri_folder, time_unit=time_unit) for part in PARTS})


def read_features(path: str | Path, *, time_unit: TimeUnit = "years") -> pd.DataFrame:
    """Read and check a table of visits with features; a feature may be missing, an outcome may not.

    Args:
        path: Parquet or CSV, a row a visit; `imageid` is optional, every other numeric column is a feature.
        time_unit: of `visit_time` and `time`.
    Returns:
        The table in memory's columns and years, sorted by subject and visit.
    Raises:
        InputError: names every bad row or column.
    """
    path = Path(path)
    needed = {name: column for name, column in ON_DISK.items() if name != "scan"}
    return _in_order(_checked(path, needed=needed, time_unit=time_unit))


def feature_columns(table: pd.DataFrame) -> list[str]:
    """The numeric columns that are neither ids nor outcomes, in the table's order."""
    return [name for name in table.columns if name not in OURS and pd.api.types.is_numeric_dtype(table[name])]


def last_visits(table: pd.DataFrame) -> pd.DataFrame:
    """A row a subject: the last visit, sorted by subject."""
    return _in_order(table).groupby("subject", sort=True).tail(1).reset_index(drop=True)


def time_left(table: pd.DataFrame) -> np.ndarray:
    """(N,) years from each visit to its subject's event or end of follow-up, free of rounding noise."""
    return np.round((table["time"] - table["visit_time"]).to_numpy(), 9)


def write_table(table: pd.DataFrame, path: str | Path, *, time_unit: TimeUnit = "years") -> None:
    """Write a table in the user's columns and unit, whole; Parquet or CSV by the name's suffix."""
    path = Path(path)
    table = table.copy()
    if time_unit != "years":
        table[["visit_time", "time"]] = (table[["visit_time", "time"]] * PER_YEAR[time_unit]).round(9)
    table["event"] = table["event"].astype(int)
    table = table.rename(columns=ON_DISK)
    with written_whole(path) as part:
        if path.suffix == ".parquet":
            table.to_parquet(part, index=False, write_page_checksum=True)  # so that a damaged file is known
        else:
            table.to_csv(part, index=False)


def _checked(
    path: Path,
    *,
    needed: Mapping[str, str],
    unread: Sequence[str] = (),
    time_unit: TimeUnit,
    mri_folder: Path | None = None,
) -> pd.DataFrame:
    """The table in memory's columns and years; raises once, with every bad row."""
    table, problems = read_rows(path, text=TEXT)
    table = table.drop(columns=[*unread], errors="ignore")
    absent = [column for column in needed.values() if column not in table]
    if absent or (table.empty and not problems):
        raise InputError(
            f"{path}: expected the columns {', '.join(needed.values())} and a row or more. "
            f"Missing: {', '.join(absent) or 'rows'}. Found: {', '.join(map(str, table.columns)) or 'nothing'}."
        )
    table = table.rename(columns={column: name for name, column in ON_DISK.items() if column in table})
    problems += _bad_ids(table) + _bad_times(table, time_unit) + _bad_visits(table) + _bad_numbers(table)
    if mri_folder is not None:
        problems += _find_volumes(table, path, mri_folder)
    raise_if_any(f"{path}: rows can't be used", problems, f"Fix these rows of {path}, or drop them.")
    if "event" in table:
        table["event"] = table["event"].astype(bool)
        table["time"] /= PER_YEAR[time_unit]
    table["visit_time"] /= PER_YEAR[time_unit]
    text = [name for name in table.columns.difference([*OURS], sort=False) if table[name].dtype == object]
    if text:
        logger.warning("%s: not numeric, so not used: %s", path, ", ".join(map(str, text)))
    return table.drop(columns=text)


def _numbers(column: pd.Series) -> pd.Series:
    """A column in floats; NaN where there is no number."""
    if column.dtype == object:  # pandas 2.3 reads beyond its memory at an exponent of many digits
        column = column.where(~column.astype(str).str.contains(HUGE))
    return pd.to_numeric(column, errors="coerce").astype(float)


def _bad_ids(table: pd.DataFrame) -> list[str]:
    """Make ids text without blanks around it, in place; the rows without one."""
    problems = []
    for name in table.columns.intersection(["subject", "scan"]):
        table[name] = table[name].fillna("").astype(str).str.strip()
        problems += _rows(table, table[name].isin(MISSING), f"{ON_DISK[name]}: expected an id", shown=name)
    return problems


def _bad_times(table: pd.DataFrame, time_unit: TimeUnit) -> list[str]:
    """Make times and states numbers, in place; the rows where that fails."""
    problems = []
    for name in table.columns.intersection(["visit_time", "time", "event"], sort=False):
        values = _numbers(table[name])
        if name == "event":
            values = values.fillna(table[name].astype(str).str.strip().str.lower().map(STATES))
            problems += _rows(table, ~values.isin([0, 1]), "convert_status: expected 0 or 1", shown=name)
        else:
            problems += _rows(table, ~(values >= 0) | np.isinf(values), f"{name}: expected a number >= 0", shown=name)
            late = np.isfinite(values) & (values > LONGEST * PER_YEAR[time_unit])
            expected = f"{name}: expected {time_unit} since the subject's baseline, {LONGEST:g} years at most"
            problems += _rows(table, late, expected, shown=name)
        table[name] = values
    return problems


def _bad_visits(table: pd.DataFrame) -> list[str]:
    """Rows that contradict each other or time itself; each with its row."""
    problems = []
    if "event" in table:
        late = (table["visit_time"] >= table["time"]) & (table["time"] >= 0)
        problems += _rows(table, late, "a visit at or after the subject's `time`", shown="visit_time")
        outcomes = table.groupby("subject")[["time", "event"]].transform("nunique")
        problems += _rows(table, (outcomes > 1).any(axis=1), "one subject with two outcomes", shown="subject")
    twice = table.duplicated(["subject", "visit_time"], keep=False)
    problems += _rows(table, twice, "two visits of one subject at one time", shown="subject")
    if "scan" in table:
        problems += _rows(table, table.duplicated("scan", keep=False), "imageid stands twice", shown="scan")
    return problems


def _rows(table: pd.DataFrame, bad: Any, what: str, shown: str | None = None, verb: str = "received") -> list[str]:
    received = table.loc[bad, shown].map(lambda value: f", {verb} {value!r}") if shown else [""] * int(bad.sum())
    return [f"row {row}: {what}{value}" for row, value in zip(table.index[bad], received, strict=True)]


def _bad_numbers(table: pd.DataFrame) -> list[str]:
    """Make the other columns numbers, in place, but for text; the rows with a number misspelt or too large."""
    problems = []
    for name in table.columns.difference([*OURS], sort=False):
        values = _numbers(table[name])
        misspelt = values.isna() & table[name].notna()
        meant = table.loc[misspelt, name].astype(str).str.fullmatch(NUMBER)
        if misspelt.sum() > len(table) / 2 and meant.mean() < 0.5:
            continue  # text; the caller says that it is not used
        large = values.abs() > LARGEST
        problems += _rows(table, misspelt | large, f"{name}: expected a number or nothing", shown=name)
        table[name] = values
    return problems


def _find_volumes(table: pd.DataFrame, path: Path, folder: Path) -> list[str]:
    """Set `nifti_path`, absolute, in place; the rows without a file."""
    if "nifti_path" in table:
        table["nifti_path"] = [str(path.parent.absolute() / str(volume)) for volume in table["nifti_path"]]
    else:
        plain = table["scan"].map(lambda scan: Path(scan).name == scan and "\0" not in scan)
        if not plain.all():
            return _rows(table, ~plain, "imageid: expected a plain file name, or a `nifti_path`", shown="scan")
        table["nifti_path"] = [_either(folder.absolute(), scan) for scan in table["scan"]]
    absent = ~table["nifti_path"].map(os.path.isfile)
    return _rows(table, absent, "expected a file", shown="nifti_path", verb="found none at")


def _either(folder: Path, scan: str) -> str:
    """`scan.nii` if only that is there, else `scan.nii.gz`."""
    packed, plain = folder / f"{scan}.nii.gz", folder / f"{scan}.nii"
    return str(plain if plain.is_file() and not packed.is_file() else packed)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["subject", "visit_time"], kind="stable").reset_index(drop=True)
