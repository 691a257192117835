"""Volumes: NIfTI, checked and preprocessed once into a cache on disk, then read from there by `tf.data`.

TensorFlow is imported where it is used: the processes that preprocess never need it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from nibabel.processing import resample_from_to
from tqdm import tqdm

from cohort import simulate, tables
from cohort.grid import Grid, grid_of, read_grid, resize
from cohort.scans import MAX_VOXELS, Scan, open_scan, read_greys
from cohort.splits import PARTS, split_subjects
from config import Config
from runs.cluster import workers
from runs.errors import InputError, raise_if_any
from runs.files import fingerprint, remove_temporaries, written_whole

VERSION = 3  # of the preprocessing; a change makes every cache entry anew
CACHED = np.float16  # of z-scores: an error of 0.002 at most below 4
COARSEST = 2e-3  # z-scores: the most that float32 may round greys by


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
    raise_if_any("Scans can't be used", problems, "Mend these files, or drop their rows from the table.")
    assert reference is not None  # else every scan was refused
    entries = [entry for entry, _ in results]
    return Cache(entries, reference, reference.resized(shape), num_built=sum(built for _, built in results))


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
    if grid is not None and not grid.matches(grid_of(image)):
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
        grid = grid_of(scan)
        if not resample and reference is not None and not reference.matches(grid):
            return (
                f"expected the grid of the other scans, {reference.describe()}, received {grid.describe()}; "
                "register the scans, or set RESAMPLE=on"
            )
        settings = [VERSION, shape, reference.describe() if resample and reference is not None else ""]
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


IDLE = 10  # seconds after which a process that preprocessed ends: it would hold its 140 MB for five minutes


@dataclass(frozen=True)
class Cohort:
    """The cohort's three parts and their scans' preprocessed volumes, in the same order."""

    parts: dict[str, pd.DataFrame]
    cache: Cache
    simulated: Path | None  # folder of the simulated cohort, if it is that

    def entries(self, name: str) -> list[Path]:
        """The cache entries of a part's scans."""
        begin = sum(len(self.parts[part]) for part in PARTS[: PARTS.index(name)])
        return self.cache.entries[begin : begin + len(self.parts[name])]

    @contextmanager
    def naming_lost(self) -> Iterator[None]:
        """Within this, an error that comes of volumes which the cache has lost meanwhile names their scans.

        Raises:
            OSError: that happened.
        """
        try:
            yield
        except Exception as error:
            scans, shape = pd.concat(self.parts[name] for name in PARTS)["scan"], self.cache.grid.shape
            lost = [scan for scan, entry in zip(scans, self.cache.entries, strict=True) if not is_whole(entry, shape)]
            if not lost:
                raise
            where = self.cache.entries[0].parent
            raise OSError(f"{where}: the volumes of {', '.join(lost)} can't be read any more") from error

    def fingerprint(self) -> str:
        """A hash of the tables and the volumes, wherever they lie."""
        rows = [part.drop(columns="nifti_path") for part in self.parts.values()]
        hashes = [pd.util.hash_pandas_object(part).to_numpy().tobytes() for part in rows]
        return fingerprint(*hashes, *(entry.name for entry in self.cache.entries))

    def truth_table(self) -> Path | None:
        """`truth.csv` of the simulated cohort; None if the truth is not known."""
        return self.simulated / "truth.csv" if self.simulated is not None else None

    def truth(self) -> np.ndarray | None:
        """Where the atrophy is, (X, Y, Z) bool on the network's grid; None if that is not known."""
        if self.simulated is None:
            return None
        labels = nib.load(self.simulated / "truth_regions.nii.gz")
        grid = self.cache.grid
        return np.isin(resample_from_to(labels, (grid.shape, grid.affine), order=0).dataobj, simulate.ATROPHY_LABELS)


def load_cohort(config: Config) -> Cohort:
    """Read and check the whole input; simulate the embedded cohort, if it is that and not there yet.

    Raises:
        InputError: rows or scans that can't be used, all of them named.
    """
    simulated = simulated_folder(config)
    with parallel_config("loky", idle_worker_timeout=IDLE):
        if simulated is not None:
            simulate.write_cohort(
                simulated,
                num_subjects=config.SIM_SUBJECTS,
                nuisance=config.SIM_NUISANCE,
                effect=config.SIM_EFFECT,
                seed=config.SEED,
                jobs=config.NUM_WORKERS,
            )
        parts = read_tables(config)
        remove_temporaries(cache_folder(config))
        cache = build_cache(
            pd.concat([parts[name] for name in PARTS]),
            shape=config.TARGET_SHAPE,
            folder=cache_folder(config),
            resample=config.RESAMPLE,
            max_voxels=config.MAX_VOXELS,
            jobs=config.NUM_WORKERS,
            scheduler=config.SCHEDULER,
        )
    return Cohort(parts, cache, simulated)


def read_tables(config: Config) -> dict[str, pd.DataFrame]:
    """The three parts as the user's tables or the split have them.

    Raises:
        InputError: rows that can't be used, all of them named.
    """
    if config.TRAIN_CSV is not None:
        paths = {name: getattr(config, f"{name.upper()}_CSV") for name in PARTS}
        return tables.read_parts(paths, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
    simulated = simulated_folder(config)
    cohort = config.COHORT_CSV if simulated is None else simulated / "cohort.csv"
    assert cohort is not None
    table = tables.read_cohort(cohort, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
    return split_subjects(table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED)


def simulated_folder(config: Config) -> Path | None:
    """Where the embedded cohort of these settings lies, or will; None if the user's own cohort is read."""
    if config.COHORT_CSV is not None or config.TRAIN_CSV is not None:
        return None
    strengths = f"nuisance-{config.SIM_NUISANCE:g}_effect-{config.SIM_EFFECT:g}"
    name = f"{config.SIM_SUBJECTS}-subjects_{strengths}_seed-{config.SEED}"
    return config.OUTPUT_DIR / "simulated" / name


def cache_folder(config: Config) -> Path:
    """Where preprocessed volumes lie."""
    return config.CACHE_DIR or config.OUTPUT_DIR / "cache"
