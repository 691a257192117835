"""One scan's way: NIfTI, checked and preprocessed once into a cache on disk, then read from there by `tf.data`.

`read_parts` and `preprocess_parts` read and check a whole run's input. TensorFlow is imported where it is used: the
processes that preprocess never need it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from nibabel.processing import resample_from_to
from tqdm import tqdm

from cohort import simulate, tables
from cohort.courses import History
from cohort.entries import CACHED, Preprocessing, Stored, find_entry, is_usable, open_entry, store_entry, try_scan
from cohort.extent import Extent, compare_extents, median_extent
from cohort.grid import Grid, commonest_grid, grid_of, read_grid
from cohort.measured import MeasuredVolumes, name_identical
from cohort.scans import EXAMPLES, found_instead, name_alike
from cohort.splits import PARTS, split_subjects
from cohort.teachers import no_teachers, who_can_teach
from config import Config
from runs.cluster import workers
from runs.errors import InputError, raise_if_any
from runs.files import fingerprint, remove_temporaries

MEND_SCANS = "Mend these files, or drop their rows from the table."
IDLE = 10  # seconds after which a process that preprocessed ends: it would hold its 140 MB for five minutes

logger = logging.getLogger(__name__)


# ---- A run's whole input -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Cohort:
    """The cohort's three parts and its teachers, with the preprocessed volume of every scan."""

    parts: dict[str, pd.DataFrame]  # train, val and test: a row a scan, with `nifti_path` and `cache_entry`
    cache: "Cache"
    simulated: Path | None  # folder of the simulated cohort; None: the user's own
    teachers: pd.DataFrame = field(default_factory=no_teachers)  # scans of subjects without an outcome

    @contextmanager
    def naming_lost_volumes(self) -> Iterator[None]:
        """Within this, an error that comes from volumes which the cache has lost meanwhile names their scans.

        What is left of them is removed, so that the next run makes them anew.

        Raises:
            OSError: volumes are gone, cut short, or hold numbers that are not finite.
        """
        try:
            yield
        except Exception as error:
            scans, shape = _concat(self.parts, self.teachers, "cache_entry"), self.cache.grid.shape
            lost = scans[[not is_usable(entry, shape) for entry in scans["cache_entry"]]]
            if lost.empty:
                raise
            for entry in map(Path, lost["cache_entry"]):
                entry.unlink(missing_ok=True)
            folder = Path(lost["cache_entry"].iloc[0]).parent
            raise OSError(f"{folder}: the volumes of {', '.join(lost['scan'])} can't be used any more") from error

    def fingerprint(self) -> str:
        """A hash of the tables and the volumes, wherever they lie."""
        teachers = [] if self.teachers.empty else [self.teachers]
        rows = [part.drop(columns=["nifti_path", "cache_entry"]) for part in (*self.parts.values(), *teachers)]
        names = [name for name in rows[0].columns if name not in tables.OUR_COLUMNS]  # of the covariates
        hashes = [pd.util.hash_pandas_object(part).to_numpy().tobytes() for part in rows]
        entries = [Path(entry).name for entry in _concat(self.parts, self.teachers, "cache_entry")["cache_entry"]]
        return fingerprint(*names, *hashes, *entries)

    def scans_to_learn_progress(self) -> pd.DataFrame:
        """The scans that progress is learned from: training subjects and teachers, a row a scan, without outcomes."""
        names = ["subject", "scan", "visit_time", "cache_entry"]
        return pd.concat([table[names] for table in (self.parts["train"], self.teachers) if len(table)])

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


def _concat(parts: Mapping[str, pd.DataFrame], teachers: pd.DataFrame, name: str) -> pd.DataFrame:
    """The ids of all scans, those of the teachers last, and one more column."""
    whole = [*(parts[part] for part in PARTS), *([] if teachers.empty else [teachers])]
    return pd.concat([table[["scan", name]] for table in whole])


def read_parts(config: Config) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Read the three parts, as the user's tables or the split have them, and the subjects without an outcome.

    The embedded cohort is simulated first, if that is meant and it is not there yet.

    Args:
        config: of the run.
    Returns:
        `{"train", "val", "test"}`, a row a scan, times in years; and those of no part, who teach progress, likewise.
    Raises:
        InputError: rows that can't be used, all of them named.
    """
    reading = tables.reading_of(config)
    if config.TRAIN_CSV is not None:
        paths = {name: getattr(config, f"{name.upper()}_CSV") for name in PARTS}
        parts, teachers = tables.read_parts(paths, mri_folder=config.MRI_FOLDER, **reading)
    else:
        if config.COHORT_CSV is not None:
            table, teachers = tables.read_cohort(config.COHORT_CSV, mri_folder=config.MRI_FOLDER, **reading)
        else:
            table, teachers = _read_simulated(config)
        parts = split_subjects(
            table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
        )
    return parts, who_can_teach(teachers, is_progress_learned=config.PROGRESS != "off")


def _read_simulated(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of the embedded cohort, in years whatever TIME_UNIT is."""
    folder = simulated_folder(config)
    assert folder is not None
    with parallel_config("loky", idle_worker_timeout=IDLE):
        table = simulate.write_cohort(
            folder,
            num_subjects=config.SIM_SUBJECTS,
            nuisance=config.SIM_NUISANCE,
            effect=config.SIM_EFFECT,
            seed=config.SEED,
            history=simulated_history(config),
            jobs=config.NUM_WORKERS,
        )
    return tables.read_cohort(table, mri_folder=folder)


def preprocess_parts(config: Config, parts: dict[str, pd.DataFrame], teachers: pd.DataFrame) -> Cohort:
    """Check and preprocess the scan of every row.

    Args:
        config: of the run.
        parts: of `read_parts`.
        teachers: of `read_parts`.
    Returns:
        All of them with their volumes.
    Raises:
        InputError: scans that can't be used, all of them named.
    """
    remove_temporaries(cache_folder(config))
    with parallel_config("loky", idle_worker_timeout=IDLE):
        whole, cache = build_cache(
            _concat(parts, teachers, "nifti_path"),
            Preprocessing(
                config.TARGET_SHAPE,
                resample=config.RESAMPLE,
                reference=read_reference(config),
                max_voxels=config.MAX_VOXELS,
                reference_name="REFERENCE",
            ),
            folder=cache_folder(config),
            jobs=config.NUM_WORKERS,
            scheduler=config.SCHEDULER,
        )
    if cache.num_different == 1:
        raise InputError(
            f"All {len(whole)} scans hold the same volume, so the network would give them one value: nothing can be "
            f"learned. Look at the files that the table names, such as {whole['nifti_path'].iloc[0]}."
        )
    entry_of = dict(zip(whole["scan"], whole["cache_entry"], strict=True))
    parts = {name: part.assign(cache_entry=part["scan"].map(entry_of)) for name, part in parts.items()}
    teachers = teachers.assign(cache_entry=teachers["scan"].map(entry_of))
    return Cohort(parts, cache, simulated_folder(config), teachers)


def read_reference(config: Config) -> Grid | None:
    """The grid of REFERENCE; None if it is unset.

    Args:
        config: of the run.
    Raises:
        InputError: the file can't be read.
    """
    if config.REFERENCE is None:
        return None
    try:
        return read_grid(config.REFERENCE, config.MAX_VOXELS)
    except InputError as error:
        raise InputError(f"REFERENCE: {config.REFERENCE}: {error}{found_instead(config.REFERENCE)}") from error


def simulated_folder(config: Config) -> Path | None:
    """The folder of the embedded cohort of these settings, there or not yet; None if the user's own cohort is read."""
    if config.COHORT_CSV is not None or config.TRAIN_CSV is not None:
        return None
    strengths = f"nuisance-{config.SIM_NUISANCE:g}_effect-{config.SIM_EFFECT:g}"
    name = f"{config.SIM_SUBJECTS}-subjects_{strengths}_seed-{config.SEED}"
    if config.SIM_HISTORY != "linear":
        name += f"_{config.SIM_HISTORY}"
    if config.SIM_VISITS is not None:
        name += "_visits-{}-{}".format(*config.SIM_VISITS)
    return config.OUTPUT_DIR / "simulated" / name


def simulated_history(config: Config) -> History:
    """The visits of the embedded cohort, and the course of the atrophy over them."""
    return History(config.SIM_HISTORY, config.SIM_VISITS)


def cache_folder(config: Config) -> Path:
    """Where preprocessed volumes lie."""
    return config.CACHE_DIR or config.OUTPUT_DIR / "cache"


# ---- The cache ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cache:
    """What the preprocessed volumes on disk have in common."""

    source: Grid  # of the scans
    grid: Grid  # of the network's volumes
    num_built: int  # volumes that were preprocessed now; the others were there already
    usual: Extent | None = None  # the median brain, in size and place; None: too few scans to tell
    num_resampled: int = 0  # scans that lay on another grid than `source`
    num_different: int = 0  # volumes that differ from each other
    notes: tuple[str, ...] = ()  # the scans' grid, and how many were resampled to it, a line each
    warnings: tuple[str, ...] = ()  # what is unusual of some scans, by name, a line each

    def log(self) -> None:
        """Log how many volumes were built, the scans' grid, and the scans of which something is unusual."""
        logger.info("volumes: %d preprocessed now, the others were in the cache", self.num_built)
        for note in self.notes:
            logger.info(note)
        for warning in self.warnings:
            logger.warning(warning)


def build_cache(
    table: pd.DataFrame,
    preprocessing: Preprocessing,
    *,
    folder: str | Path,
    jobs: int = -1,
    scheduler: str | None = None,
) -> tuple[pd.DataFrame, Cache]:
    """Check, preprocess and store every scan of a table; what is stored already is not done again.

    Several processes, on several machines, may build one folder at once.

    Args:
        table: with `scan` and `nifti_path`.
        preprocessing: the shape, the grid and the limits of the volumes.
        folder: of the cache; an entry's name is a hash of the file's bytes and of the preprocessing, so runs share it.
        jobs: processes here; -1: one a core.
        scheduler: of a Dask cluster whose workers preprocess instead; see `cluster.workers`.
    Returns:
        The table with `cache_entry`, the file of each scan's volume; and what the volumes have in common.
    Raises:
        InputError: names every scan that is unreadable, not 3-D, too large, empty, constant, not finite or on another
            grid, whose background is not 0, or whose brain lies elsewhere than the others'.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    paths, named = table["nifti_path"].to_list(), preprocessing.reference_name
    stored = [try_scan(open_entry, path, preprocessing) for path in paths]
    reference, origin = preprocessing.reference, f"the grid of {named}"
    if reference is None:
        reference, origin = find_reference(table, [grid_of(result.scan) if result.scan else None for result in stored])
        named = Preprocessing.reference_name
    chosen = replace(preprocessing, reference=reference, reference_name=named)
    stored = _store_all(stored, folder, chosen, jobs, scheduler)
    scans = [f"{scan}: {path}" for scan, path in zip(table["scan"], paths, strict=True)]
    problems = [(scan, str(result.error)) for scan, result in zip(scans, stored, strict=True) if result.error]
    measured = [result.measured for result in stored if result.measured is not None]  # of the sound scans
    sound = [scan for scan, result in zip(scans, stored, strict=True) if result.measured]
    extents = [each.extent for each in measured]
    usual = preprocessing.usual or median_extent(extents)
    refused, unusual = compare_extents(extents, usual)
    problems += _with_words(sound, refused)
    raise_if_any("Scans can't be used", name_alike(problems), MEND_SCANS, len(problems))
    assert reference is not None  # else every scan was refused
    resampled = table["scan"][[result.resampled for result in stored]].to_list()
    of_headers = [(scan, note) for scan, result in zip(scans, stored, strict=True) for note in result.notes]
    digests = [each.digest for each in measured]
    warnings = [*name_alike(_with_words(scans, unusual) + of_headers), *name_identical(scans, digests)]
    notes = [f"grid of the scans: {reference.describe()}, {origin}"]
    if resampled:
        words = f"{len(resampled)} of {len(table)} scans were resampled to it from another grid, such as"
        notes.append(f"{words} {', '.join(map(str, resampled[:EXAMPLES]))}")
    cache = Cache(
        source=reference,
        grid=reference.resized(chosen.shape),
        num_built=sum(result.built for result in stored),
        usual=usual,
        num_resampled=len(resampled),
        num_different=len(set(digests)),
        notes=tuple(notes),
        warnings=tuple(warnings),
    )
    return table.assign(cache_entry=[str(result.entry) for result in stored]), cache


def find_reference(table: pd.DataFrame, grids: Sequence[Grid | None]) -> tuple[Grid | None, str]:
    """The grid that most scans have, whatever their order in the table; of two as common, that of the first id.

    Args:
        table: with `scan`, a row a scan.
        grids: of each scan; None where it can't be read.
    Returns:
        The grid, None if no scan can be read; and how many have it, in words.
    """
    readable = [
        grid for _, grid in sorted(zip(table["scan"].astype(str), grids, strict=True), key=itemgetter(0)) if grid
    ]
    if not readable:
        return None, ""
    reference, number = commonest_grid(readable)
    return reference, f"which {number} of {len(grids)} scans have"


def _with_words(scans: Sequence[str], words: Sequence[str]) -> list[tuple[str, str]]:
    """The scans of which something is said, with that."""
    return [(scan, said) for scan, said in zip(scans, words, strict=True) if said]


def _store_all(
    stored: list[Stored], folder: Path, preprocessing: Preprocessing, jobs: int, scheduler: str | None
) -> list[Stored]:
    """Find each scan's entry, and read or make those of which nothing is known; what is known then is written."""
    known = MeasuredVolumes(folder)
    find = partial(find_entry, folder=folder, preprocessing=preprocessing)
    in_threads = Parallel(n_jobs=jobs, backend="threading")  # a hash of a file needs no process of its own
    stored = in_threads(delayed(try_scan)(find, opened) for opened in stored)
    stored = [replace(result, measured=known.get(result.entry)) for result in stored]
    missing = [row for row, result in enumerate(stored) if not (result.measured or result.error)]
    store = partial(store_entry, preprocessing=preprocessing)
    with workers(scheduler) as portable:
        tasks = (delayed(portable(partial(try_scan, store, stored[row])))() for row in missing)
        done = Parallel(n_jobs=jobs, return_as="generator")(tasks)
        bar = tqdm(done, total=len(missing), desc="preprocessing", unit="scan", disable=not missing)
        for row, result in zip(missing, bar, strict=True):
            stored[row] = result
            if result.entry is not None and result.measured is not None:
                known.add(result.entry, result.measured)
    known.write()
    return stored


# ---- From the cache to the network -------------------------------------------------------------------
def load_volume(entry: str | Path) -> np.ndarray:
    """Read one cached volume: (X, Y, Z, 1) float32 z-scores, 0 outside the brain."""
    return np.asarray(np.load(entry, mmap_mode="r"), np.float32)[..., None]


def load_volumes(entries: Sequence[str | Path]) -> np.ndarray:
    """Read cached volumes into memory: (B, X, Y, Z, 1) float32 z-scores, 0 outside the brain."""
    return np.stack([load_volume(entry) for entry in entries])


def make_dataset(entries: Sequence[str | Path], shape: tuple[int, int, int], batches: Sequence[np.ndarray]) -> Any:
    """Make a dataset of cached volumes in batches of given rows; it reads ahead while the last batch is used.

    Args:
        entries: files of cached volumes.
        shape: (X, Y, Z) of a volume.
        batches: for each batch the rows of `entries` that it holds; they may differ in number.
    Returns:
        A `tf.data.Dataset` of (B, X, Y, Z, 1) float32; only the batches in flight are in memory.
    """
    import tensorflow as tf

    def stack(rows: np.ndarray) -> np.ndarray:
        volumes = np.empty((len(rows), *shape), CACHED)
        for volume, row in zip(volumes, rows, strict=True):
            volume[...] = np.load(entries[row])
        return volumes

    def read(rows: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(stack, [rows], CACHED, stateful=False)

    def widen(volumes: tf.Tensor) -> tf.Tensor:  # by TensorFlow: NumPy takes four times as long
        return tf.ensure_shape(tf.cast(volumes, tf.float32)[..., None], (None, *shape, 1))

    dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([list(map(int, rows)) for rows in batches]))
    return dataset.map(read).prefetch(1).map(widen)
