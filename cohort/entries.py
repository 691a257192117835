"""One scan's entry in the cache: found by a hash, measured if it is there, preprocessed and written if it is not."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cohort.extent import Extent
from cohort.grid import Grid, check_grid, grid_of
from cohort.measured import Measured, is_sound, measure
from cohort.scans import MAX_VOXELS, Scan, open_scan
from cohort.volume import image_of, preprocess
from runs.errors import InputError
from runs.files import written_whole
from runs.log import collected_warnings

VERSION = 3  # of the preprocessing; a change makes every entry anew
CACHED = np.float16  # of z-scores: an error of 0.002 at most below 4
DAMAGED = "its volume in the cache was cut short, or held numbers that are not finite; it is made anew"


@dataclass(frozen=True)
class Preprocessing:
    """What a preprocessed volume depends on, beside its scan."""

    shape: tuple[int, int, int]  # (X, Y, Z) voxels of the network's volumes
    resample: bool = False  # bring scans of another grid to the reference; else they are refused
    reference: Grid | None = None  # the grid that scans must have; None: the one that most of them have
    max_voxels: int = MAX_VOXELS  # of the largest scan that is not refused
    reference_name: str = "the other scans"  # whose grid `reference` is, in words
    usual: Extent | None = None  # what each brain should be like; None: the median of the table's


@dataclass(frozen=True)
class Stored:
    """What became of one scan: its cache entry, or why it is refused."""

    scan: Scan | None = None  # its header; None: it can't be read
    entry: Path | None = None
    resampled: bool = False  # from another grid
    measured: Measured | None = None  # of the entry; None: it has to be read, or made
    built: bool = False  # now; else it was there already
    notes: tuple[str, ...] = ()  # what there is to say of the scan
    error: InputError | None = None


def try_scan(work: Callable[..., Stored], *arguments: Any) -> Stored:
    """Do something with a scan, unless it is refused; an error is kept, so that all bad scans are named at once.

    Args:
        work: on one scan.
        arguments: of `work`; first the scan's path, or what has become of it so far.
    """
    if isinstance(arguments[0], Stored) and arguments[0].error:
        return arguments[0]
    try:
        return work(*arguments)
    except InputError as error:
        return Stored(error=error)


def open_entry(path: str, preprocessing: Preprocessing) -> Stored:
    """Read one scan's header.

    Args:
        path: of the scan.
        preprocessing: of its volume.
    Raises:
        InputError: as `scans.open_scan`.
    """
    scan = open_scan(path, preprocessing.max_voxels)
    return Stored(scan, notes=(scan.note,) if scan.note else ())


def find_entry(opened: Stored, *, folder: Path, preprocessing: Preprocessing) -> Stored:
    """Find where one scan's entry lies, by a hash of its file's bytes and of the preprocessing.

    Args:
        opened: of `open_entry`.
        folder: of the cache.
        preprocessing: of the volumes; `reference` is known.
    Raises:
        InputError: the scan lies on another grid than it should, or can't be read.
    """
    scan, reference = opened.scan, preprocessing.reference
    assert scan is not None
    if not preprocessing.resample and reference is not None:
        check_grid(grid_of(scan), reference, preprocessing.reference_name)
    target = reference if preprocessing.resample else None
    settings = [VERSION, preprocessing.shape, "" if target is None else target.key()]
    key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=20)
    try:
        with open(scan.path, "rb") as file:
            key.update(hashlib.file_digest(file, "blake2b").digest())
    except OSError as error:
        raise InputError(f"expected a NIfTI volume, can't read it: {error}") from error
    resampled = target is not None and not target.matches(grid_of(scan))
    return replace(opened, entry=folder / f"{key.hexdigest()}.npy", resampled=resampled)


def store_entry(found: Stored, *, preprocessing: Preprocessing) -> Stored:
    """Measure one scan's entry; preprocess the scan and write the entry, unless a sound one is there already.

    What Python warns of meanwhile becomes a note: this may be a process whose screen nobody sees.

    Args:
        found: of `find_entry`.
        preprocessing: of the volumes.
    Raises:
        InputError: the scan can't be used.
    """
    scan, entry = found.scan, found.entry
    assert scan is not None and entry is not None
    target = preprocessing.reference if preprocessing.resample else None
    box = (target or grid_of(scan)).resized(preprocessing.shape)
    if is_whole(entry, preprocessing.shape) and is_sound(volume := np.load(entry)):
        return replace(found, measured=measure(volume, box))
    notes = [*found.notes, *([DAMAGED] if entry.exists() else [])]
    try:
        with collected_warnings() as warned_of:
            volume = preprocess(image_of(scan), preprocessing.shape, target).astype(CACHED)
    except OSError as error:
        raise InputError(f"expected a NIfTI volume, can't read it: {error}") from error
    with written_whole(entry) as part:
        np.save(part, volume)
    return replace(found, built=True, measured=measure(volume, box), notes=(*notes, *warned_of))


def is_whole(entry: str | Path, shape: tuple[int, int, int]) -> bool:
    """Whether a cached volume is there whole; what a full disk or a failed copy has left is not.

    Args:
        entry: the file.
        shape: (X, Y, Z) voxels that it should have.
    """
    try:
        volume = np.load(entry, mmap_mode="r")
    except Exception:  # noqa: BLE001 - NumPy's readers of damaged files raise errors of a dozen kinds
        return False
    return volume.shape == shape and volume.dtype == CACHED


def is_usable(entry: str | Path, shape: tuple[int, int, int]) -> bool:
    """Whether a cached volume is there whole, and all its numbers are finite; it is read for that.

    Args:
        entry: the file.
        shape: (X, Y, Z) voxels that it should have.
    """
    return is_whole(entry, shape) and bool(np.isfinite(np.load(entry)).all())
