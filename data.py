"""Volumes: NIfTI, checked and preprocessed once into a cache on disk, then read from there by `tf.data`.

TensorFlow is imported where it is used: the processes that preprocess never need it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.processing import resample_from_to
from tqdm import tqdm

from cluster import workers
from files import InputError, written_whole
from nifti import MAX_VOXELS, Scan, open_scan, read_greys
from tables import refuse

VERSION = 3  # of the preprocessing; a change makes every cache entry anew
CACHED = np.float16  # of z-scores: an error of 0.002 at most below 4
GRID_TOLERANCE = 1e-2  # mm: affines that differ by less are one space
COARSEST = 2e-3  # z-scores: the most that float32 may round greys by


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
    max_voxels: int = MAX_VOXELS,
    jobs: int = -1,
    scheduler: str | None = None,
) -> Cache:
    """Check, preprocess and store every scan of a table; what is stored already is not done again.

    Several processes, on several machines, may build one folder at once; each begins at another row, so that every
    scan is done about once.

    Args:
        table: with `scan` and `nifti_path`.
        shape: (X, Y, Z) voxels of the network's volumes.
        folder: of the cache; an entry's name is a hash of the file's bytes and these settings, so runs may share it.
        reference: the grid that scans must have; None: the first scan's.
        resample: bring scans of another grid to the reference; else they are refused.
        max_voxels: the largest scan that is not refused.
        jobs: processes here; -1: one a core.
        scheduler: of a Dask cluster whose workers preprocess instead; see `cluster.workers`.
    Returns:
        The entries, in the table's order, and their common grid.
    Raises:
        InputError: names every scan that is unreadable, not 3-D, too large, empty, constant, not finite or on another
            grid.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    paths = table["nifti_path"].to_list()
    grids = (_readable_grid(path, max_voxels) for path in paths)
    reference = reference or next((grid for grid in grids if grid is not None), None)
    store = partial(_store, folder=folder, shape=shape, reference=reference, resample=resample, max_voxels=max_voxels)
    with workers(scheduler) as portable:
        tasks = (delayed(portable(store))(path) for path in paths)
        done = Parallel(n_jobs=jobs, return_as="generator")(tasks)
        results = list(tqdm(done, total=len(table), desc="preprocessing", unit="scan"))
    problems = [
        f"{scan}: {path}: {result}"
        for scan, path, result in zip(table["scan"], paths, results, strict=True)
        if isinstance(result, str)
    ]
    refuse("Scans can't be used", problems, "Mend these files, or drop their rows from the table.")
    assert reference is not None  # else every scan was refused
    entries = [entry for entry, _ in results]
    return Cache(entries, reference, reference.resized(shape), num_built=sum(built for _, built in results))


def read_grid(path: str | Path, max_voxels: int = MAX_VOXELS) -> Grid:
    """The grid of a NIfTI file after its axes are put in RAS order, from its header alone.

    Raises:
        InputError: as `nifti.open_scan`.
    """
    return _grid(open_scan(path, max_voxels))


def read_image(path: str | Path, max_voxels: int = MAX_VOXELS) -> nib.Nifti1Image:
    """A NIfTI file with its greys in memory.

    Raises:
        InputError: as `nifti.open_scan` and `nifti.read_greys`.
    """
    return _image(open_scan(path, max_voxels))


def is_whole(entry: str | Path, shape: tuple[int, int, int]) -> bool:
    """Whether a cached volume of this shape is there; what a full disk or a failed copy left is made anew."""
    try:
        volume = np.load(entry, mmap_mode="r")
    except Exception:  # noqa: BLE001 - NumPy's readers of damaged files raise errors of a dozen kinds
        return False
    return volume.shape == shape and volume.dtype == CACHED


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
        bad = np.count_nonzero(~np.isfinite(values))
        raise InputError(f"expected finite values, received {bad} that are not finite in float32")
    grey = highest if highest != 0 else lowest
    if np.count_nonzero(values) == np.count_nonzero(values == grey) * (grey != 0):
        raise InputError(f"expected a brain, received {'nothing but 0' if grey == 0 else f'only {grey:g}'}")
    values = resize(values, shape)
    brain = values != 0
    inside = values[brain]
    if len(inside) == 0 or inside.min() == inside.max():
        raise InputError(f"expected greys that differ at {' x '.join(map(str, shape))} voxels too, received one")
    mean, sd = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    float32, largest = np.finfo(np.float32), max(abs(float(lowest)), abs(float(highest)))
    if sd < float32.tiny or largest * float32.eps > COARSEST * sd:
        raise InputError(f"expected greys that float32 can tell apart, received {largest:g} with a spread of {sd:g}")
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

    def stack(rows):
        volumes = np.empty((len(rows), *shape), CACHED)
        for volume, row in zip(volumes, rows, strict=True):
            volume[...] = np.load(entries[row])
        return volumes

    def read(rows):
        return tf.numpy_function(stack, [rows], CACHED, stateful=False)

    def widen(volumes):  # by TensorFlow: NumPy takes four times as long
        return tf.ensure_shape(tf.cast(volumes, tf.float32)[..., None], (None, *shape, 1))

    dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([list(map(int, rows)) for rows in batches]))
    return dataset.map(read).prefetch(1).map(widen)


def _store(
    path: str, *, folder: Path, shape: tuple[int, int, int], reference: Grid | None, resample: bool, max_voxels: int
) -> tuple[Path, bool] | str:
    """One scan's entry and whether it was built now; or why the scan is refused."""
    try:
        scan = open_scan(path, max_voxels)
        grid = _grid(scan)
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
        if is_whole(entry, shape):
            return entry, False
        values = preprocess(_image(scan), shape, reference if resample else None)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"expected a NIfTI volume, can't read it: {error}"
    with written_whole(entry) as part:
        np.save(part, values.astype(CACHED))
    return entry, True


def _readable_grid(path: str, max_voxels: int) -> Grid | None:
    try:
        return read_grid(path, max_voxels)
    except InputError:
        return None  # `_store` says why


def _image(scan: Scan) -> nib.Nifti1Image:
    return nib.Nifti1Image(read_greys(scan), scan.affine)


def _greys(image: Any) -> np.ndarray:
    """(X, Y, Z) whole numbers as they are, if float32 has them all; else in float32."""
    values = np.asarray(image.dataobj)
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _grid(image: Any) -> Grid:
    """Of a nibabel image or a Scan, from its header alone: `as_closest_canonical` would read the voxels too."""
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
