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

VERSION = 1  # of the preprocessing; a change makes every cache entry anew
CACHED = np.float16  # of z-scores: an error of 0.002 at most below 4
GRID_TOLERANCE = 1e-2  # mm: affines that differ by less are one space
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
        InputError: empty, constant, or not finite.
    """
    image = nib.as_closest_canonical(image)
    if grid is not None and not grid.matches(_grid(image)):
        image = resample_from_to(image, (grid.shape, grid.affine), order=1)
    values = np.asarray(image.dataobj, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"expected finite values, received {np.count_nonzero(~np.isfinite(values))} that are not")
    greys = np.unique(values[values != 0])[:2]
    if len(greys) < 2:
        raise InputError(f"expected a brain, received {'nothing but 0' if len(greys) == 0 else f'only {greys[0]:g}'}")
    values = resize(values, shape)
    brain = values != 0
    inside = values[brain].astype(np.float64)
    values[brain] = (inside - inside.mean()) / inside.std()
    return values


def resize(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Linear resampling of (X, Y, Z) to `shape` over the same box, a matrix product an axis; edges are held."""
    for axis, (old, new) in enumerate(zip(values.shape, shape, strict=True)):
        if old != new:
            values = np.moveaxis(np.tensordot(_weights(old, new), values, axes=(1, axis)), 0, axis)
    return np.array(values, np.float32, order="C")


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


def augment(volumes, seeds, *, shift: float, gain: float, flip: bool):
    """Shift, brighten and mirror volumes at random, inside the graph.

    Args:
        volumes: (B, X, Y, Z, 1) float32 tensor.
        seeds: (B, 2) int32; the same seed changes a volume the same way, whatever else happens.
        shift: largest along each axis, voxels; what comes in from outside is 0.
        gain: largest change of intensity, as a share.
        flip: mirror left and right, half of the time.
    Returns:
        (B, X, Y, Z, 1) float32 tensor.
    """
    import tensorflow as tf

    def one(arguments):
        volume, seed = arguments
        draws = tf.random.stateless_uniform((5,), seed, -1.0, 1.0)
        for axis in range(3):
            if shift > 0:
                volume = _shifted(volume, draws[axis] * shift, axis)
        if flip:
            volume = tf.cond(draws[4] > 0, lambda: tf.reverse(volume, [0]), lambda: volume)
        return volume * (1 + gain * draws[3])

    if shift == 0 and gain == 0 and not flip:
        return volumes
    return tf.map_fn(one, (volumes, seeds), fn_output_signature=tf.TensorSpec(volumes.shape[1:], tf.float32))


def _shifted(volume, by, axis: int):
    """Shift (X, Y, Z, 1) by a fraction of voxels along an axis, linearly."""
    import tensorflow as tf

    size = volume.shape[axis]
    source = tf.range(size, dtype=tf.float32) - by
    low = tf.floor(source)
    parts = []
    for index, weight in ((low, 1 - (source - low)), (low + 1, source - low)):
        inside = tf.cast((index >= 0) & (index <= size - 1), tf.float32)
        taken = tf.gather(volume, tf.cast(tf.clip_by_value(index, 0, size - 1), tf.int32), axis=axis)
        parts.append(taken * tf.reshape(weight * inside, [-1 if a == axis else 1 for a in range(4)]))
    return parts[0] + parts[1]


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
        values = preprocess(_read_whole(image, path), shape, reference if resample else None)
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


def _read_whole(image: Any, path: str) -> Any:
    """The image with its data in memory, a packed file read to its end: its checksum stands there."""
    if not path.endswith(".gz"):
        return image
    size = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    with gzip.open(path) as file:
        content = file.read(size)
        if len(file.read(MOST_AFTER)) == MOST_AFTER:
            raise InputError(f"expected {size} bytes by its header, received over {MOST_AFTER} more")
    return type(image).from_bytes(content)


def _grid(image: Any) -> Grid:
    image = nib.as_closest_canonical(image)
    x, y, z = image.shape
    return Grid((int(x), int(y), int(z)), np.asarray(image.affine, float))


def _words(grid: Grid) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_mm)
    origin = ", ".join(f"{mm:.2f}" for mm in grid.affine[:3, 3])
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm from ({origin})"


def _weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32: each new voxel's two old neighbours, by the distance of their centres."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(centre.astype(int), old - 2)
    weights = np.zeros((new, old), np.float32)
    weights[np.arange(new), low] = 1 - (centre - low)
    weights[np.arange(new), low + 1] = centre - low
    return weights
