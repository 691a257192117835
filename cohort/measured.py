"""What is known of a cache's volumes: one table in its folder, so that no start has to read all of them again.

A row holds for a file of the same size and time of change; any other file is measured anew.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cohort.extent import Extent, find_background, measure_extent
from cohort.grid import Grid
from cohort.scans import EXAMPLES, MOST_ALIKE
from runs.errors import InputError
from runs.files import fingerprint, read_json, write_json

MM3_A_ML = 1000.0
TABLE = "measured.json"  # in the cache's folder
VERSION = 1  # of what is measured; a change makes the table anew

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What is known of a stored volume."""

    extent: Extent  # of its brain
    digest: str  # of its numbers
    size: int = 0  # bytes of its file
    changed: int = 0  # time of its file's last change, nanoseconds


def is_sound(volume: np.ndarray) -> bool:
    """Whether a stored volume can be used: all numbers are finite, and its background is 0.

    Args:
        volume: (X, Y, Z) float16 z-scores, 0 outside the brain.
    """
    return bool(np.isfinite(volume).all()) and find_background(volume.astype(np.float32)) is None


def measure(volume: np.ndarray, grid: Grid) -> Measured:
    """Measure a stored volume.

    Args:
        volume: (X, Y, Z) float16 z-scores, 0 outside the brain.
        grid: of its voxels.
    """
    return Measured(measure_extent(volume, grid), fingerprint(np.ascontiguousarray(volume).tobytes()))


def brain_volumes(folder: Path, entries: Sequence[str]) -> np.ndarray:
    """The size of the brains of a cache.

    Args:
        folder: of the cache.
        entries: N files of volumes.
    Returns:
        (N,) ml of voxels that are not 0 on the network's grid; NaN where it is not known.
    """
    known = MeasuredVolumes(folder)
    rows = [known.get(Path(entry)) for entry in entries]
    return np.array([np.nan if row is None else row.extent.volume / MM3_A_ML for row in rows])


class MeasuredVolumes:
    """The table of a cache.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / TABLE
        self.rows = self._read()
        self.is_changed = False

    def get(self, entry: Path | None) -> Measured | None:
        """What is known of a stored volume; None if nothing is, or if its file has changed since.

        Args:
            entry: the volume's file; None: there is none.
        """
        row = self.rows.get(entry.name) if entry is not None else None
        return row if row is not None and entry is not None and _stamp(entry) == (row.size, row.changed) else None

    def add(self, entry: Path, measured: Measured) -> None:
        """Note what was measured of a volume's file as it lies there now.

        Args:
            entry: the file.
            measured: of `measure`.
        """
        size, changed = _stamp(entry) or (0, 0)
        self.rows[entry.name] = Measured(measured.extent, measured.digest, size, changed)
        self.is_changed = True

    def write(self) -> None:
        """Write what was added, with what other runs have added meanwhile; rows of files that are gone are left out."""
        if self.is_changed:
            rows = self._read() | self.rows
            volumes = {name: asdict(row) for name, row in rows.items() if (self.folder / name).exists()}
            write_json(self.path, {"version": VERSION, "volumes": volumes})

    def _read(self) -> dict[str, Measured]:
        """The rows of the table; none if there is no table, or none that can be used."""
        try:
            content = read_json(self.path)
            return ROWS.validate_python(content["volumes"]) if content.get("version") == VERSION else {}
        except (InputError, LookupError, ValidationError):
            logger.warning("%s is damaged, and made anew", self.path)
            return {}


ROWS = TypeAdapter(dict[str, Measured])


def _stamp(entry: Path) -> tuple[int, int] | None:
    """Size (bytes) and time of change (ns) of a file; None if there is none."""
    try:
        state = entry.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def name_identical(scans: Sequence[str], digests: Sequence[str]) -> list[str]:
    """A line for each volume that several scans hold: a copy under two names, as a rule.

    Args:
        scans: ids, with paths if that helps.
        digests: of each scan's volume.
    """
    scans_of: dict[str, list[str]] = {}
    for scan, digest in zip(scans, digests, strict=True):
        scans_of.setdefault(digest, []).append(scan)
    groups = [alike for alike in scans_of.values() if len(alike) > 1]
    lines = [
        f"{len(alike)} scans hold the same volume: {'; '.join(alike[:EXAMPLES])}{'; …' * (len(alike) > EXAMPLES)}. "
        "Look whether one was copied over another"
        for alike in groups[:MOST_ALIKE]
    ]
    if len(groups) > MOST_ALIKE:
        lines.append(f"so do {len(groups) - MOST_ALIKE} more groups of scans")
    return lines
