"""The file of each scan that a table names: by its `nifti_path`, or by its id in a folder."""

import os
from pathlib import Path

import pandas as pd

from cohort.faults import row_faults
from cohort.scans import found_instead
from cohort.table_files import is_missing


def find_volumes(table: pd.DataFrame, path: Path, folder: Path) -> list[str]:
    """Set `nifti_path`, absolute, in place; the faults of rows without a file.

    Args:
        table: N rows with `scan`, and perhaps `nifti_path`, relative to the table's file.
        path: of that file.
        folder: holds `scan.nii.gz` or `scan.nii` where the table has no `nifti_path`.
    Returns:
        A line each, or one for many rows.
    """
    if "nifti_path" in table:
        if (blank := is_missing(table["nifti_path"])).any():
            return row_faults(table.loc[blank, "nifti_path"].items(), "nifti_path: expected the path of a scan")
        table["nifti_path"] = [str(path.parent.absolute() / str(volume).strip()) for volume in table["nifti_path"]]
    else:
        plain = table["scan"].map(lambda scan: Path(scan).name == scan and "\0" not in scan)
        if not plain.all():
            fault = "imageid: expected a plain file name, or a `nifti_path`"
            return row_faults(table.loc[~plain, "scan"].items(), fault)
        table["nifti_path"] = [_volume_path(folder.absolute(), scan) for scan in table["scan"]]
    absent = table.loc[~table["nifti_path"].map(os.path.isfile), "nifti_path"]
    instead = [found_instead(path) for path in absent]
    nowhere = "Not one is there: check MRI_FOLDER, or nifti_path, which begins at the table's folder"
    cause = nowhere if len(absent) == len(table) and not any(instead) else ""
    faults = row_faults(absent.items(), "expected a file", verb="found none at", cause=cause)
    if len(faults) == len(instead):
        return [fault + file for fault, file in zip(faults, instead, strict=True)]
    return [*faults[:-1], faults[-1] + next(filter(None, instead), "")]  # many rows are one line: with one remedy


def _volume_path(folder: Path, scan: str) -> str:
    """`scan.nii` if only that is there, else `scan.nii.gz`."""
    packed, plain = folder / f"{scan}.nii.gz", folder / f"{scan}.nii"
    return str(plain if plain.is_file() and not packed.is_file() else packed)
