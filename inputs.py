"""What a run reads: its tables, its volumes and, of the simulated cohort, the truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import parallel_config
from nibabel.processing import resample_from_to

import simulate
import tables
from config import Config
from data import Cache, build_cache, is_whole
from files import remove_temporaries
from record import digest

IDLE = 10  # seconds after which a process that preprocessed ends: it would hold its 140 MB for five minutes


@dataclass(frozen=True)
class Inputs:
    """The cohort's three parts and their scans' preprocessed volumes, in the same order."""

    parts: dict[str, pd.DataFrame]
    cache: Cache
    simulated: Path | None  # folder of the simulated cohort, if it is that

    def entries(self, name: str) -> list[Path]:
        """The cache entries of a part's scans."""
        begin = sum(len(self.parts[part]) for part in tables.PARTS[: tables.PARTS.index(name)])
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
            scans, shape = pd.concat(self.parts[name] for name in tables.PARTS)["scan"], self.cache.grid.shape
            lost = [scan for scan, entry in zip(scans, self.cache.entries, strict=True) if not is_whole(entry, shape)]
            if not lost:
                raise
            where = self.cache.entries[0].parent
            raise OSError(f"{where}: the volumes of {', '.join(lost)} can't be read any more") from error

    def digest(self) -> str:
        """A hash of the tables and the volumes, wherever they lie."""
        rows = [part.drop(columns="nifti_path") for part in self.parts.values()]
        hashes = [pd.util.hash_pandas_object(part).to_numpy().tobytes() for part in rows]
        return digest(*hashes, *(entry.name for entry in self.cache.entries))

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


def read_inputs(config: Config) -> Inputs:
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
            pd.concat([parts[name] for name in tables.PARTS]),
            shape=config.TARGET_SHAPE,
            folder=cache_folder(config),
            resample=config.RESAMPLE,
            max_voxels=config.MAX_VOXELS,
            jobs=config.NUM_WORKERS,
            scheduler=config.SCHEDULER,
        )
    return Inputs(parts, cache, simulated)


def read_tables(config: Config) -> dict[str, pd.DataFrame]:
    """The three parts as the user's tables or the split have them.

    Raises:
        InputError: rows that can't be used, all of them named.
    """
    if config.TRAIN_CSV is not None:
        paths = {name: getattr(config, f"{name.upper()}_CSV") for name in tables.PARTS}
        return tables.read_parts(paths, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
    simulated = simulated_folder(config)
    cohort = config.COHORT_CSV if simulated is None else simulated / "cohort.csv"
    assert cohort is not None
    table = tables.read_cohort(cohort, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
    return tables.split_subjects(
        table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
    )


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
