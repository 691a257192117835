"""A trained run and scans of new subjects: their risk and their survival curves.

python predict.py --OUTPUT_DIR outputs --PREDICT_CSV new.csv     writes outputs/predictions/new.csv

The run's record gives every setting that a prediction depends on, so new scans are read, preprocessed and predicted as
those of the run were. The settings of FOR_THIS_PREDICTION alone may differ: where things lie, and what computes.
"""

from runs.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # within the imports below, too

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.extent import Extent
from cohort.grid import Grid
from cohort.names import OF_STAGE_1
from cohort.tables import ON_DISK, OUR_COLUMNS, read_scans, reading_of
from config import Config, read_config
from data import Preprocessing, build_cache, cache_folder
from runs.errors import InputError, raise_if_any
from runs.files import read_json, why_unwritable, written_whole
from runs.manifest import RECORD, FileEntry, RunRecord, damage_lines, find_damage, read_record
from runs.processes import exit_process, run_main
from runs.record import LEFT_BY, hash_results
from runs.stages import BY_CONTENT
from runs.threads import fix_threads
from survival.change import MEASURE, POPULATION_FILE, RATES, Lines, Population
from survival.cohort_words import log_cohort
from survival.predictor import curve_years
from survival.preparation import Preparation
from survival.ranges import by_subject, find_out_of_range, lines_of

FOR_THIS_PREDICTION = (
    *("OUTPUT_DIR", "PREDICT_CSV", "MRI_FOLDER", "DECIMAL", "SIMILAR_IDS"),
    *("CACHE_DIR", "NUM_WORKERS", "SCHEDULER", "MAX_HOURS"),
)
MOST_SHOWN = 5  # subjects whose rate is on the screen
SHOWN = ("TIME_UNIT", "RESAMPLE", "MAX_VOXELS", "MRI_FOLDER")  # settings that say how the new table and scans are read
logger = logging.getLogger(__name__)


def predict(asked: Config) -> Path:
    """Predict from each new subject's visits up to the last.

    Args:
        asked: OUTPUT_DIR is the trained run; PREDICT_CSV the new scans; MRI_FOLDER, unless it is set, the run's.
    Returns:
        The CSV: `subjectid, landmark` (years, the last visit), `log_hazard, survival_<t>…, attention_1…`; where the run
        has progress, `rate, rate_low, rate_high` (years of progress a year, with a 95 % interval); `out_of_range` (what
        of a subject lies beyond the training subjects; empty: nothing).
    Raises:
        InputError: no finished run, or not as it was; settings that contradict it; columns that its model needs are
            absent; scans that can't be used, or not of the run's space.
    """
    if asked.PREDICT_CSV is None:
        raise InputError("PREDICT_CSV: expected a table of new scans, received nothing.")
    trained, grid, usual = _read_run(asked.OUTPUT_DIR)
    config = _settings_of_run(trained, asked)
    path = config.OUTPUT_DIR / "predictions" / f"{asked.PREDICT_CSV.stem}.csv"
    if why := why_unwritable(path.parent):
        raise InputError(f"OUTPUT_DIR: {why}. Let the user of this program write into it, or move what lies there.")
    table = read_scans(asked.PREDICT_CSV, mri_folder=config.MRI_FOLDER, **reading_of(config))
    _check_columns(table, config, asked.PREDICT_CSV)
    last = table.groupby("subject")["visit_time"].max()
    years = f"{last.min():.2f} to {last.max():.2f} years"
    log_cohort({"new scans": table}, time_unit=config.TIME_UNIT)
    logger.info("%d subjects, %d scans; each is predicted from the last visit, %s", len(last), len(table), years)
    table, cache = build_cache(
        table,
        Preprocessing(
            config.TARGET_SHAPE,
            resample=config.RESAMPLE,
            reference=grid,
            max_voxels=config.MAX_VOXELS,
            reference_name="the run's scans",
            usual=usual,
        ),
        folder=cache_folder(config),
        jobs=config.NUM_WORKERS,
        scheduler=config.SCHEDULER,
    )
    cache.log()
    predicted = _predict_table(config, _features(config, table))
    with written_whole(path) as part:
        predicted.drop(columns=["time", "event"]).rename(columns=ON_DISK).to_csv(part, index=False)
    return path


# ---- The run ---------------------------------------------------------------------------------------
def _read_run(folder: Path) -> tuple[Config, Grid, Extent | None]:
    """The settings of a finished run, the grid of its scans, and their usual brain; None if the run did not know it.

    Raises:
        InputError: there is no finished run, its files are damaged, its stages are of different settings, or its record
            can't be read.
    """
    record = read_record(folder)
    stages = record.get("stages", {})
    if not all(stage in stages and stages[stage]["done"] for stage in ("cnn", "tlstm")):
        raise InputError(f"OUTPUT_DIR: expected a finished run, found none in {folder}. Run main.py first.")
    try:
        of_rates = {name: file for name, file in _files(record, "features").items() if name == POPULATION_FILE}
        damage = find_damage(folder, _files(record, "cnn") | _files(record, "tlstm") | of_rates)
        raise_if_any(
            f"{folder} is not as its run left it", damage_lines(damage), "Run main.py again, which makes them anew."
        )
        settings = record["settings"] | _needs_of_stages(record, folder)
        x, y, z = map(int, record["grid"]["shape"])
        affine = np.array(record["grid"]["affine"], float)
        if affine.shape != (4, 4):
            raise ValueError(f"expected an affine of 4 x 4, received {affine.shape}")
        usual = record["grid"].get("usual_brain")
        brain = None if usual is None else Extent(float(usual["volume"]), _three(usual["centre"]))
        return Config(**settings), Grid((x, y, z), affine), brain
    except InputError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / RECORD}: expected the record of a run, received another: {error!r}. Run main.py again."
        ) from error


def _files(record: RunRecord, name: str) -> dict[str, FileEntry]:
    """The files that a stage has left, by their path in the run's folder; none if it was not done."""
    stages = record.get("stages", {})
    return stages[name].get("files", {}) if name in stages else {}


def _three(numbers: Any) -> tuple[float, float, float]:
    """Three coordinates of the record, mm."""
    x, y, z = map(float, numbers)
    return x, y, z


def _needs_of_stages(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The settings that the two stages were trained with; the record's others are those of the last command.

    Raises:
        InputError: stage 1 was trained anew after stage 2, with another setting, input or result; names each.
    """
    cnn, tlstm = (record["stages"][name].get("needs", {}) for name in ("cnn", "tlstm"))
    problems = [
        f"{name}: {was} for stage 2, {cnn[name]} for stage 1"
        for name, was in tlstm.items()
        if name in cnn and cnn[name] != was
    ]
    need, results = f"{LEFT_BY} cnn", hash_results(record["stages"], "cnn")
    if tlstm.get(need, results) != results:
        problems.append(f"{need}: stage 1 was trained anew since")
    mend = "Run main.py again with STAGES=cnn,features,tlstm, so that stage 2 learns from this stage 1."
    raise_if_any(f"{folder}: stage 2 was trained on the features of another stage 1", problems, mend)
    names = Config.model_fields.keys() - BY_CONTENT.keys()  # the grid of the run's REFERENCE is in the record
    return {name: value for name, value in (cnn | tlstm).items() if name in names}


def _settings_of_run(trained: Config, asked: Config) -> Config:
    """The settings of a prediction: the run's, but for FOR_THIS_PREDICTION.

    Raises:
        InputError: names each setting of the command line that contradicts the run.
    """
    problems = [
        f"{name}: the run has {_shown(trained, name)}, received {_shown(asked, name)}"
        for name in Config.model_fields
        if name in asked.model_fields_set and name not in FOR_THIS_PREDICTION
        if getattr(asked, name) != getattr(trained, name)
    ]
    raise_if_any(
        f"Settings contradict the run in {asked.OUTPUT_DIR}",
        problems,
        "Leave them out: new scans are read and predicted with the run's settings. A table in another unit of time has "
        "to be converted first.",
    )
    own = {name: getattr(asked, name) for name in FOR_THIS_PREDICTION}
    if "MRI_FOLDER" not in asked.model_fields_set:
        del own["MRI_FOLDER"]
    config = trained.model_copy(update=own)
    logger.info("settings of the run: %s", ", ".join(f"{name} {_shown(config, name)}" for name in SHOWN))
    return config


def _shown(config: Config, name: str) -> str:
    """A setting as one types it."""
    value = getattr(config, name)
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ---- The prediction ----------------------------------------------------------------------------------
def _check_columns(table: pd.DataFrame, config: Config, path: Path) -> None:
    """Refuse a table without a column that the model needs, before a scan is preprocessed.

    Raises:
        InputError: names each column.
    """
    model = config.OUTPUT_DIR / "tlstm" / "model.json"
    try:
        prepare = Preparation.from_json(read_json(model)["prepare"])
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{model}: expected a trained model, received another. Run main.py again.") from error
    problems = [
        f"{name}: the model was trained on it; found no column of "
        f"{'text' if name in prepare.coding.levels else 'numbers'} of that name"
        for name in prepare.absent_from(table)
        if not OF_STAGE_1.fullmatch(name)
    ]
    raise_if_any(f"{path}: columns can't be used", problems, "Add these columns.")
    unused = [name for name in table.columns if name not in (*OUR_COLUMNS, *prepare.needed)]
    if unused:
        logger.info("%s: not used, since the model was not trained on them: %s", path, ", ".join(unused))


def _features(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """The feature table of new scans by the network of a run."""
    from training.stage1 import Stage1

    stage1 = Stage1(config, fix_threads(config.OUTPUT_DIR))
    stage1.load(config.OUTPUT_DIR / "cnn")
    return stage1.features(table)


def _predict_table(config: Config, features: pd.DataFrame) -> pd.DataFrame:
    """The predictions from a table of features, with rates and what lies beyond training; both on the screen too."""
    from tlstm import load

    predictor = load(config.OUTPUT_DIR / "tlstm")
    predicted = predictor.predict(features, (), years=curve_years(config.HORIZONS))
    if MEASURE in features:
        rates = _rates(config.OUTPUT_DIR / POPULATION_FILE, features)
        predicted = predicted.merge(rates, on="subject", validate="one_to_one")
    found = find_out_of_range(predictor, features)
    for line in lines_of(found, len(predicted)):
        logger.warning("out of range: %s", line)
    if found.empty:
        logger.info("nothing of the %d subjects lies beyond the training subjects", len(predicted))
    return predicted.assign(out_of_range=by_subject(found, predicted["subject"]))


def _rates(path: Path, features: pd.DataFrame) -> pd.DataFrame:
    """Each subject's rate of progress, as far as its visits and the training subjects tell it.

    Args:
        path: of what the training subjects tell; without the file there are no rates, and a warning says so.
        features: of the new scans.
    Returns:
        `subject` and RATES, a row a subject.
    """
    lines = Lines.of(features, MEASURE)
    if not path.is_file():
        logger.warning("no rates of progress: the run's training subjects did not tell how rates differ (no %s)", path)
        return pd.DataFrame({"subject": lines.subject}).assign(**dict.fromkeys(RATES, np.nan))
    rates = Population.load(path).rates(lines).assign(subject=lines.subject)
    for subject, rate, low, high in rates[["subject", *RATES]].head(MOST_SHOWN).itertuples(index=False):
        logger.info("%s: rate %.2f (%.2f to %.2f) years of progress a year", subject, rate, low, high)
    if len(rates) > MOST_SHOWN:
        logger.info("… and the rates of %d more subjects", len(rates) - MOST_SHOWN)
    if num_single := int((lines.num_visits == 1).sum()):
        logger.info("%d of %d subjects have one visit: their rate is the training subjects'", num_single, len(rates))
    return rates


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
