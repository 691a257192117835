"""Volumes: NIfTI, checked and preprocessed once into a cache on disk, then read from there by `tf.data`.

TensorFlow is imported where it is used: the processes that preprocess never need it.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.filebasedimages import ImageFileError
from nibabel.processing import resample_from_to
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from files import InputError, written_whole
from tables import refuse

VERSION = 2  # of the preprocessing; a change makes every cache entry anew
CACHED = np.float16  # of z-scores: an error of 0.002 at most below 4
GRID_TOLERANCE = 1e-2  # mm: affines that differ by less are one space
UNSCALED = (1, 0)  # slope and intercept of a file whose numbers are the greys themselves
MOST_AFTER = 2**20  # bytes that may follow a volume in its file
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: the shape of an array and its affine to RAS millimetres."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4)

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def matches(self, other: "Grid") -> bool:
        """Whether two grids are one, to GRID_TOLERANCE at every corner."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1])).reshape(4, -1)[[1, 0, 2, 3]]
        apart = np.abs((self.affine - other.affine) @ corners).max()
        return self.shape == other.shape and bool(apart < GRID_TOLERANCE)

    def resized(self, shape: tuple[int, int, int]) -> "Grid":
        """The grid of the same box cut into `shape` voxels."""
        step = np.divide(self.shape, shape)
        to_old = np.diag([*step, 1.0])
        to_old[:3, 3] = step / 2 - 0.5  # voxel 0 starts at the box's edge, half a voxel before its centre
        return Grid(shape, self.affine @ to_old)


@dataclass(frozen=True)
class Cache:
    """Preprocessed volumes on disk: entry `i` belongs to row `i` of the table that it was built from."""

    entries: list[Path]
    source: Grid  # of the scans
    grid: Grid  # of the network's volumes
    num_built: int  # the others were there already


def build_cache(
    table: pd.DataFrame,
    *,
    shape: tuple[int, int, int],
    folder: str | Path,
    reference: Grid | None = None,
    resample: bool = False,
    jobs: int = -1,
) -> Cache:
    """Check, preprocess and store every scan of a table; what is stored already is not done again.

    Args:
        table: with `scan` and `nifti_path`.
        shape: (X, Y, Z) voxels of the network's volumes.
        folder: of the cache; an entry's name is a hash of the file's bytes and these settings, so runs may share it.
        reference: the grid that scans must have; None: the first scan's.
        resample: bring scans of another grid to the reference; else they are refused.
        jobs: processes; -1: one a core.
    Returns:
        The entries, in the table's order, and their common grid.
    Raises:
        InputError: names every scan that is unreadable, not 3-D, empty, constant, not finite or on another grid.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    grids = (_readable_grid(path) for path in table["nifti_path"])
    reference = reference or next((grid for grid in grids if grid is not None), None)
    tasks = (delayed(_store)(path, folder, shape, reference, resample) for path in table["nifti_path"])
    done = Parallel(n_jobs=jobs, return_as="generator")(tasks)
    results = list(tqdm(done, total=len(table), desc="preprocessing", unit="scan"))
    problems = [
        f"{scan}: {path}: {result}"
        for scan, path, result in zip(table["scan"], table["nifti_path"], results, strict=True)
        if isinstance(result, str)
    ]
    refuse("Scans can't be used", problems, "Mend these files, or drop their rows from the table.")
    assert reference is not None  # else every scan was refused
    entries = [entry for entry, _ in results]
    return Cache(entries, reference, reference.resized(shape), num_built=sum(built for _, built in results))


def read_grid(path: str | Path) -> Grid:
    """The grid of a NIfTI file after its axes are put in RAS order, from its header alone.

    Raises:
        InputError: unreadable, not 3-D, or an affine that is singular or not finite.
    """
    return _grid(_open(path))


def read_image(path: str | Path) -> Any:
    """A NIfTI image whose header is sound; a packed one is read whole, once, to the checksum at its end.

    Raises:
        InputError: unreadable, not 3-D, not grey, an affine that is singular, or more in the file than its header says.
        OSError, EOFError, zlib.error: packed, and damaged.
    """
    image = _open(path)
    if not str(path).endswith(".gz"):
        return image
    packed, size = image.dataobj, image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    with gzip.open(path) as file:
        content = file.read(size)
        if len(file.read(MOST_AFTER)) == MOST_AFTER:
            raise InputError(f"expected {size} bytes by its header, received over {MOST_AFTER} more")
    values = np.ndarray(packed.shape, packed.dtype, content, packed.offset, order=packed.order)
    if (packed.slope, packed.inter) != UNSCALED:
        values = values * np.float32(packed.slope) + np.float32(packed.inter)
    return type(image)(values, image.affine, image.header)


def load_volume(entry: str | Path) -> np.ndarray:
    """One cached volume: (X, Y, Z, 1) float32."""
    return np.asarray(np.load(entry, mmap_mode="r"), np.float32)[..., None]


def load_volumes(entries: Sequence[Path]) -> np.ndarray:
    """Cached volumes, all in memory: (B, X, Y, Z, 1) float32."""
    return np.stack([load_volume(entry) for entry in entries])


def preprocess(image: Any, shape: tuple[int, int, int], grid: Grid | None = None) -> np.ndarray:
    """A scan as the network sees it.

    Args:
        image: nibabel image, 3-D, in any orientation.
        shape: (X, Y, Z) voxels wanted.
        grid: resample to it first; None: as the image lies.
    Returns:
        (X, Y, Z) float32 in RAS order; z-scored over its voxels that are not 0, which stay 0.
    Raises:
        InputError: empty, constant (as a whole, or once resized), or not finite.
    """
    image = nib.as_closest_canonical(image)
    if grid is not None and not grid.matches(_grid(image)):
        image = resample_from_to(image, (grid.shape, grid.affine), order=1)
    values = _greys(image)
    lowest, highest = values.min(), values.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise InputError(f"expected finite values, received {np.count_nonzero(~np.isfinite(values))} that are not")
    grey = highest if highest != 0 else lowest
    if np.count_nonzero(values) == np.count_nonzero(values == grey) * (grey != 0):
        raise InputError(f"expected a brain, received {'nothing but 0' if grey == 0 else f'only {grey:g}'}")
    values = resize(values, shape)
    brain = values != 0
    inside = values[brain]
    if len(inside) == 0 or inside.min() == inside.max():
        raise InputError(f"expected greys that differ at {' x '.join(map(str, shape))} voxels too, received one")
    mean, sd = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    values[brain] = (inside - np.float32(mean)) / np.float32(sd)
    return values


def resize(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Linear resampling of (X, Y, Z) numbers to `shape` over the same box, in float32; edges are held.

    Two slices make a new one along Y, two rows a new one along Z, and a matrix product does X: a NIfTI file has X
    fastest, the network Z, so the product turns the array over as it goes.
    """
    (y, y_share), (z, z_share) = (_neighbours(old, new) for old, new in zip(values.shape[1:], shape[1:], strict=True))
    slices = np.empty((shape[1], shape[2], values.shape[0]), np.float32)  # (Y, Z, old X)
    for new, old, share in zip(slices, y, y_share, strict=True):
        slab = values[:, old].T * (1 - share) + values[:, old + 1].T * share  # (old Z, old X)
        np.multiply(slab[z], 1 - z_share[:, None], out=new)
        new += slab[z + 1] * z_share[:, None]
    x, x_share = _neighbours(values.shape[0], shape[0])
    weights = np.zeros((shape[0], values.shape[0]), np.float32)
    weights[np.arange(shape[0]), x] = 1 - x_share
    weights[np.arange(shape[0]), x + 1] = x_share
    return (weights @ slices.reshape(-1, values.shape[0]).T).reshape(shape)


def make_dataset(entries: Sequence[Path], shape: tuple[int, int, int], batches: Sequence[np.ndarray]):
    """Cached volumes in batches of given rows, read ahead while the last batch is used.

    Args:
        entries: of `build_cache`.
        shape: (X, Y, Z) of a volume.
        batches: for each batch the rows of `entries` that it holds; they may differ in number.
    Returns:
        A `tf.data.Dataset` of (B, X, Y, Z, 1) float32; only the batches in flight are in memory.
    """
    import tensorflow as tf

    def load(rows):
        volumes = tf.numpy_function(
            lambda rows: load_volumes([entries[row] for row in rows]), [rows], tf.float32, stateful=False
        )
        return tf.ensure_shape(volumes, (None, *shape, 1))

    dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([list(map(int, rows)) for rows in batches]))
    return dataset.map(load).prefetch(2)


def _store(
    path: str, folder: Path, shape: tuple[int, int, int], reference: Grid | None, resample: bool
) -> tuple[Path, bool] | str:
    """One scan's entry and whether it was built now; or why the scan is refused."""
    try:
        image = _open(path)
        grid = _grid(image)
        if not resample and reference is not None and not reference.matches(grid):
            return (
                f"expected the grid of the other scans, {_words(reference)}, received {_words(grid)}; "
                "register the scans, or set RESAMPLE=on"
            )
        settings = [VERSION, shape, _words(reference) if resample and reference is not None else ""]
        key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=20)
        with open(path, "rb") as file:
            key.update(hashlib.file_digest(file, "blake2b").digest())
        entry = folder / f"{key.hexdigest()}.npy"
        if entry.exists():
            return entry, False
        values = preprocess(read_image(path), shape, reference if resample else None)
    except InputError as error:
        return str(error)
    except UNREADABLE as error:
        return f"expected a NIfTI volume, can't read it: {error}"
    with written_whole(entry) as part:
        np.save(part, values.astype(CACHED))
    return entry, True


def _readable_grid(path: str) -> Grid | None:
    try:
        return read_grid(path)
    except InputError:
        return None  # `_store` says why


def _open(path: str | Path) -> Any:
    """A NIfTI image whose header is sound; its data is not read yet."""
    try:
        image: Any = nib.load(path)
    except UNREADABLE as error:
        raise InputError(f"expected a NIfTI volume, can't read it: {error}") from error
    if len(image.shape) != 3 or min(image.shape) < 2:
        raise InputError(f"expected a 3-D volume, received shape {tuple(image.shape)}")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"expected a grey value per voxel, received {image.get_data_dtype()}")
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("expected an affine that can be inverted, received one that is singular or not finite")
    return image


def _greys(image: Any) -> np.ndarray:
    """(X, Y, Z) greys as they are stored, if that is in whole numbers that float32 has too; else in float32."""
    stored, data = image.get_data_dtype(), image.dataobj
    scaling = getattr(data, "slope", 1), getattr(data, "inter", 0)
    exact = stored.kind in "iu" and stored.itemsize <= 2 and scaling == UNSCALED
    return np.asarray(data, None if exact else np.float32)


def _grid(image: Any) -> Grid:
    """From the header alone: `as_closest_canonical` would read the voxels too."""
    turned = nib.orientations.io_orientation(image.affine)
    x, y, z = np.asarray(image.shape)[np.argsort(turned[:, 0])]
    affine = image.affine @ nib.orientations.inv_ornt_aff(turned, image.shape)
    return Grid((int(x), int(y), int(z)), np.asarray(affine, float))


def _words(grid: Grid) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_mm)
    origin = ", ".join(f"{mm:.2f}" for mm in grid.affine[:3, 3])
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm from ({origin})"


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis, of each new voxel: the lower of its two old neighbours, and the share of the upper."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(centre.astype(int), old - 2)
    return low, (centre - low).astype(np.float32)
