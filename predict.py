"""A trained run and scans of new subjects: their risk and their survival curves.

python predict.py --OUTPUT_DIR outputs --PREDICT_CSV new.csv     writes outputs/predictions/new.csv
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.grid import Grid
from cohort.tables import ON_DISK, read_scans
from config import Config, read_config
from data import Preprocessing, build_cache, cache_folder
from runs.errors import InputError, raise_if_any
from runs.files import written_whole
from runs.manifest import RECORD, damage_lines, find_damage, read_record
from runs.processes import exit_process, run_main
from runs.threads import fix_threads
from survival.predictor import curve_years


def predict(config: Config) -> Path:
    """Predict from each new subject's visits up to the last.

    Args:
        config: OUTPUT_DIR is the trained run; PREDICT_CSV the new scans; how to preprocess is the run's.
    Returns:
        The CSV: `subjectid, landmark` (years, the last visit), `log_hazard, survival_<t>…, attention_1…`.
    Raises:
        InputError: no finished run, or not as it was; scans that can't be used, or not of the run's space.
    """
    if config.PREDICT_CSV is None:
        raise InputError("PREDICT_CSV: expected a table of new scans, received nothing.")
    trained, grid = _read_run(config.OUTPUT_DIR)
    table = read_scans(config.PREDICT_CSV, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
    table, _ = build_cache(
        table,
        Preprocessing(trained.TARGET_SHAPE, resample=config.RESAMPLE, reference=grid, max_voxels=config.MAX_VOXELS),
        folder=cache_folder(config),
        jobs=config.NUM_WORKERS,
        scheduler=config.SCHEDULER,
    )
    features = _features(config.OUTPUT_DIR, trained, table)
    from tlstm import load

    predicted = load(config.OUTPUT_DIR / "tlstm").predict(features, (), years=curve_years(trained.HORIZONS))
    path = config.OUTPUT_DIR / "predictions" / f"{config.PREDICT_CSV.stem}.csv"
    with written_whole(path) as part:
        predicted.drop(columns=["time", "event"]).rename(columns=ON_DISK).to_csv(part, index=False)
    return path


def _read_run(folder: Path) -> tuple[Config, Grid]:
    """The settings of a finished run, and the grid of its scans.

    Raises:
        InputError: there is no finished run, its files are damaged, or its record can't be read.
    """
    record = read_record(folder)
    stages = record.get("stages", {})
    if not all(stage in stages and stages[stage]["done"] for stage in ("cnn", "tlstm")):
        raise InputError(f"OUTPUT_DIR: expected a finished run, found none in {folder}. Run main.py first.")
    try:
        damage = find_damage(folder, stages["cnn"].get("files", {}) | stages["tlstm"].get("files", {}))
        raise_if_any(
            f"{folder} is not as its run left it", damage_lines(damage), "Run main.py again, which makes them anew."
        )
        x, y, z = map(int, record["grid"]["shape"])
        affine = np.array(record["grid"]["affine"], float)
        if affine.shape != (4, 4):
            raise ValueError(f"expected an affine of 4 x 4, received {affine.shape}")
        return Config(**record["settings"]), Grid((x, y, z), affine)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / RECORD}: expected the record of a run, received another: {error!r}. Run main.py again."
        ) from error


def _features(folder: Path, trained: Config, table: pd.DataFrame) -> pd.DataFrame:
    """The feature table of new scans by the network of a run."""
    from training.stage1 import Stage1

    stage1 = Stage1(trained, fix_threads(folder))
    stage1.load(folder / "cnn")
    return stage1.features(table)


def main(arguments: list[str]) -> int:
    """Predict.

    Args:
        arguments: of the command line.
    Returns:
        The exit code of `processes.exit_code`.
    """
    return run_main(partial(read_config, arguments, "predict.py"), lambda config: print(f"Written: {predict(config)}"))


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
