"""The order of the stages: `python main.py` goes from NIfTI files to survival curves and their explanations."""

from runs.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # within the imports below, too

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cohort import tables
from cohort.measured import brain_volumes
from cohort.splits import PARTS, split_folds
from config import Config, read_config
from data import cache_folder, preprocess_parts, read_parts
from reporting.event_files import write_events
from reporting.explained import Explanations, check_background
from reporting.preflight import check_folds, check_tables
from reporting.terminal import closing_table, folds_table
from reporting.verify import verify
from runs.errors import InputError, raise_if_any
from runs.files import read_json, write_json
from runs.lock import lock_run
from runs.log import log_to
from runs.processes import exit_process, run_main, run_program
from runs.record import Record
from runs.stages import STAGES, Stage
from runs.threads import fix_threads
from survival import change
from survival.change_metrics import measure_change
from survival.cohort_words import log_cohort
from survival.evaluation import evaluate_run, predict_all, read_predictions
from survival.metrics import EvaluationSettings
from survival.pooling import evaluate_folds
from survival.screening import screen_columns
from training import crossfit
from training.progress import ProgressMap, figures_of_progress

if TYPE_CHECKING:  # TensorFlow is imported by the stages that need it: wrong settings and tables are told in a second
    from training.devices import Workers
    from training.stage1 import Stage1

OF_THE_WHOLE = {"COHORT_CSV", "FOLDS", "FEATURES", "PREDICT_CSV"}  # settings that a fold's run does not get

logger = logging.getLogger(__name__)


class Pipeline:
    """One run: its settings, its folder, and its stages in their order.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, config.OUTPUT_DIR

    def run(self) -> None:
        """Check the whole input, then do each stage that is asked for and not done yet.

        Raises:
            InputError: the settings or the input are wrong; then no file of an earlier run has been touched.
        """
        check_folds(self.config)
        self._record_of(None).refuse_changes()
        self.threads = fix_threads(self.folder)
        self.workers = self.stage1.join() if self.config.DISTRIBUTE == "multi_worker" else None
        if self.workers and not self.workers.is_first:
            self.help_to_train(self.workers)
            return
        with lock_run(self.folder):
            self.run_stages()

    def run_stages(self) -> None:
        """Read the input, then do each stage."""
        parts, teachers = read_parts(self.config)
        check_tables(self.config, parts)
        log_cohort(
            parts,
            teachers=teachers,
            time_unit=self.config.TIME_UNIT,
            landmarks=self.config.LANDMARKS,
            horizons=self.config.HORIZONS,
        )
        self.cohort = preprocess_parts(self.config, parts, teachers)
        if self.config.FOLDS:
            self.cross_validate()
            return
        check_background(self.config, self.cohort)
        self.record = self._record_of(self.cohort.fingerprint())
        self.record.refuse_changes()
        self.record.refuse_folders(self.config.STAGES)
        log_to(self.folder / "run.log")
        self._write_splits()
        parts, config = self.cohort.parts, self.config
        columns = tables.feature_columns(parts["train"])
        screen_columns(parts, columns, landmarks=config.LANDMARKS, winsorise=config.WINSORISE)
        self._call_workers()
        for stage in STAGES.values():
            if stage.name in self.config.STAGES:
                self._run_stage(stage)

    def help_to_train(self, workers: "Workers") -> None:
        """What another worker than the first does: it trains with it, and writes nothing but its cache.

        Args:
            workers: of this training.
        Raises:
            InputError: this worker's settings or input are not those of the first.
        """
        with workers.report_lost_worker():
            wanted = json.loads(workers.broadcast(b""))
        if not wanted:
            logger.info("stage 1 is done already, with the same settings and input")
            return
        self.cohort = preprocess_parts(self.config, *read_parts(self.config))
        own = self._record_of(self.cohort.fingerprint()).needs("cnn")
        if differing := sorted(name for name in own | wanted if own.get(name) != wanted.get(name)):
            raise InputError(
                f"This worker's settings or input are not the first one's: {', '.join(differing)}. Give every worker "
                "the same command and the same files."
            )
        with self.cohort.naming_lost_volumes():
            self.stage1.train(self.cohort.parts, self.folder / "cnn")

    def cross_validate(self) -> None:
        """Run the whole pipeline in each fold of the subjects, and print the figures of all held-out subjects."""
        log_to(self.folder / "run.log")
        self._record_of(self.cohort.fingerprint()).write()
        table = pd.concat(self.cohort.parts.values()).drop(columns="cache_entry")
        table = table.sort_values(["subject", "visit_time"], ignore_index=True)
        truth, teachers = self.cohort.truth_table(), self.cohort.teachers.drop(columns="cache_entry")
        figures = cross_validate(self.config, table, teachers=teachers, truth=truth, run=run_program)
        print(folds_table(figures))
        print(f"\nThe figures are in {self.folder / 'metrics.json'}, each fold's run in {self.folder / 'folds'}")

    # ---- The stages, by their function in the table STAGES -----------------------------------------

    def train(self) -> None:
        """Stage 1: train the network, keep the weights of one epoch in `cnn`, and learn progress."""
        folder = self.folder / "cnn"
        self.stage1.train(self.cohort.parts, folder)
        self.stage1.learn_progress(self.cohort.scans_to_learn_progress(), folder)
        write_events(folder)

    def extract_features(self) -> None:
        """Write the features and the log-hazard of every scan of every part, and every subject's change."""
        config = self.config
        self.stage1.load(self.folder / "cnn")
        features = {name: self.stage1.features(self.cohort.parts[name], learned=name == "train") for name in PARTS}
        if config.CROSS_FIT:
            folder = self.folder / "cnn" / "crossfit"
            features["train"] = crossfit.cross_fit(
                features, self._learn_anew, num_folds=config.CROSS_FIT, seed=config.SEED, folder=folder
            )
            write_events(folder)
        for name, table in features.items():
            tables.write_table(table, self.folder / "features" / f"{name}.parquet", time_unit=config.TIME_UNIT)
        if change.MEASURE in features["train"]:
            change.write_change(self.folder, features)

    def train_tlstm(self) -> None:
        """Stage 2, in a process of its own: TensorFlow holds a GPU until its process ends."""
        run_program("tlstm.py", self.config.model_dump(mode="json", exclude_none=True, exclude={"FEATURES", "FOLDS"}))
        write_events(self.folder / "tlstm")

    def explain(self) -> None:
        """Write SHAP and Grad-CAM of the chosen test scans, the mean map of many, and where progress is read."""
        from reporting.progress_map import write_progress_map

        model, progress = self.stage1.load(self.folder / "cnn"), self.stage1.progress
        explanations = Explanations(self.config, self.cohort, model, progress)
        explanations.write()
        if isinstance(progress, ProgressMap):
            folder = self.folder / "explained_progress"
            write_progress_map(folder, self.cohort, progress, explanations.regions, seed=self.config.SEED)
        elif progress is not None:
            logger.info("where progress is read is shown for PROGRESS=linear alone")

    def report(self) -> None:
        """Evaluate every model on the same split, write the page, and print the table."""
        from reporting.page import write_report

        damage = self.record.damage()
        raise_if_any("The page can't be made", damage, "Add these stages to STAGES: what is damaged is done anew.")
        path = self.folder / "metrics.json"
        of_others = ("cv", "folds", *(("arms", "columns") if self.record.is_done("tlstm") else ()))
        lasting = {name: figures for name, figures in read_json(path).items() if name in of_others}
        features = _read_features(self.config, self.folder)
        write_json(path, self._evaluate(features) | {"change": self._measure_change(features["test"])} | lasting)
        page = write_report(self.folder)
        print(closing_table(read_json(path)))
        print(f"\nEverything is in {self.folder}; begin with {page}")

    # ---- What the stages share ---------------------------------------------------------------------

    @cached_property
    def stage1(self) -> "Stage1":
        """The network of stage 1; it imports TensorFlow."""
        from training.stage1 import Stage1

        return Stage1(self.config, self.threads)

    def _record_of(self, inputs: str | None) -> Record:
        """The run's record with the input of this fingerprint; None: not read yet, so it can't be written."""
        settings = self.config.model_dump(mode="json")
        if inputs is None:
            return Record(self.folder, settings)
        grid = self.cohort.cache.source
        place: dict[str, Any] = {
            "shape": grid.shape,
            "affine": grid.affine,
            "resampled": self.cohort.cache.num_resampled,
        }
        if self.cohort.cache.usual is not None:
            place["usual_brain"] = asdict(self.cohort.cache.usual)
        return Record(self.folder, settings, inputs=inputs, grid=place, threads=self.threads)

    def _run_stage(self, stage: Stage) -> None:
        """Do a stage, unless it is done already with the same settings and input."""
        do: Callable[[], None] = getattr(self, stage.function)
        if not stage.always and self.record.is_done(stage.name):
            logger.info("%s: done already, with the same settings and input", stage.name)
            if others := self.record.made_otherwise(stage.name):
                logger.info("%s: was made by other versions: %s", stage.name, ", ".join(others))
            return
        self.record.require(stage.needs, by=stage.name)
        logger.info("%s: begins", stage.name)
        if stage.always:
            do()
            self.record.finish(stage.name, {"done": True})
        else:
            with self.record.running(stage.name), self.cohort.naming_lost_volumes():
                do()
        logger.info("%s: done", stage.name)

    def _write_splits(self) -> None:
        for name, part in self.cohort.parts.items():
            rows, path = part.drop(columns="cache_entry"), self.folder / "splits" / f"{name}.csv"
            tables.write_table(rows, path, time_unit=self.config.TIME_UNIT)
            event = part.groupby("subject")["event"].first()
            logger.info("%s: %d subjects, %d with an event, %d scans", name, len(event), event.sum(), len(part))
        teachers, path = self.cohort.teachers.drop(columns="cache_entry"), self.folder / "splits" / "teachers.csv"
        if teachers.empty:
            path.unlink(missing_ok=True)  # of a run that had some
        else:
            tables.write_table(teachers, path, time_unit=self.config.TIME_UNIT)
        self.cohort.cache.log()

    def _call_workers(self) -> None:
        """Tell the other workers what stage 1 is to be trained with, or that it is done."""
        if self.workers:
            wanted = "cnn" in self.config.STAGES and not self.record.is_done("cnn")
            with self.workers.report_lost_worker():
                self.workers.broadcast(json.dumps(self.record.needs("cnn") if wanted else {}).encode())

    def _learn_anew(self, rows: np.ndarray, folder: Path) -> dict[str, pd.DataFrame]:
        """The features by a further network, trained on some rows (N,) bool of the training part."""
        parts = self.cohort.parts
        self.stage1.train(parts | {"train": parts["train"][rows]}, folder)
        self.stage1.load(folder)
        return {name: self.stage1.features(parts[name]) for name in crossfit.LEARNED}

    def _evaluate(self, features: dict[str, pd.DataFrame]) -> dict[str, Any]:
        by_landmark = {}
        if self.config.LANDMARKS and self.record.is_done("tlstm"):  # not at each last visit, as the others predict
            by_landmark = {"landmarks": read_json(self.folder / "metrics.json").get("landmarks")}
        has_last_visits = self.record.is_done("tlstm") and not by_landmark
        kind, folder = self.config.PROGRESS, self.folder / "cnn"
        progress = {} if kind == "off" else {"progress": figures_of_progress(folder, kind)}
        evaluated = evaluate_run(
            features,
            read_predictions(self.folder / "tlstm" / "predictions.csv") if has_last_visits else None,
            truth=self.cohort.truth_table(),
            settings=evaluation_settings(self.config),
        )
        return by_landmark | progress | evaluated

    def _measure_change(self, test: pd.DataFrame) -> dict[str, Any]:
        """How well the test part's scans measure change, by stage 1 and by the brain's size; where progress is read."""
        scans = self.cohort.parts["test"]
        volumes = brain_volumes(cache_folder(self.config), scans["cache_entry"].to_list())
        test = test.assign(brain_volume=test["scan"].map(dict(zip(scans["scan"], volumes, strict=True))))
        measures = [name for name in (change.MEASURE, "log_hazard", "brain_volume") if name in test]
        figures = measure_change(test, measures, num_resamples=self.config.NUM_RESAMPLES, seed=self.config.SEED)
        evidence = self.folder / "explained_progress" / "metrics.json"
        return figures | {"map": read_json(evidence) if self.record.is_done("explain") else {}}


def evaluation_settings(config: Config) -> EvaluationSettings:
    """How a run's models are evaluated."""
    return EvaluationSettings(tuple(config.HORIZONS), num_resamples=config.NUM_RESAMPLES, seed=config.SEED)


def _read_features(config: Config, folder: Path) -> dict[str, pd.DataFrame]:
    """The feature tables of a run's folder, by part."""
    paths = {name: folder / "features" / f"{name}.parquet" for name in PARTS}
    return {name: tables.read_features(path, **tables.reading_of(config)) for name, path in paths.items()}


# ---- Cross-validation of the whole pipeline -----------------------------------------------------------
def cross_validate(
    config: Config,
    table: pd.DataFrame,
    *,
    teachers: pd.DataFrame,
    truth: Path | None,
    run: Callable[[str, Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Run the pipeline in each fold, evaluate all held-out subjects, and put that into `metrics.json` as `folds`.

    OUTPUT_DIR/folds/<k> is a run's folder like any other, and a process of its own; what is finished there is not
    repeated.

    Args:
        config: of the whole; `check_folds` has passed.
        table: the cohort, a row a scan, in memory's columns and years, sorted by subject and visit.
        teachers: scans of subjects without an outcome, likewise; they teach in every fold.
        truth: `truth.csv` of the simulated cohort.
        run: `run(program, settings)` runs a program of ours, and raises if that fails.
    Returns:
        As `evaluate_folds`.
    Raises:
        InputError: a fold would have a part without an event; nothing was run then.
    """
    split = split_folds(table, config.FOLDS, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED)
    folders = [config.OUTPUT_DIR / "folds" / str(number + 1) for number in range(config.FOLDS)]
    for folder, parts in zip(folders, split, strict=True):
        logger.info("fold %s of %d: %s", folder.name, config.FOLDS, folder)
        for name, part in parts.items():
            rows = part if name != "train" or teachers.empty else pd.concat([part, teachers])
            tables.write_table(rows, folder / "input" / f"{name}.csv", time_unit=config.TIME_UNIT)
        elsewhere = set(table["subject"]) - set(parts["test"]["subject"])
        run("main.py", fold_settings(config, folder, elsewhere))
    settings, models = evaluation_settings(config), []
    for folder in folders:
        stage2 = read_predictions(folder / "tlstm" / "predictions.csv")
        models.append(predict_all(_read_features(config, folder), stage2, truth=truth, settings=settings))
    figures = evaluate_folds(models, settings)
    path = config.OUTPUT_DIR / "metrics.json"
    write_json(path, read_json(path) | {"folds": figures})
    return figures


def fold_settings(config: Config, folder: Path, elsewhere: set[str]) -> dict[str, Any]:
    """The settings of one fold's run: those of the whole, its own split and folder, one cache for all.

    Args:
        config: of the whole.
        folder: of the fold; `input` in it holds its tables.
        elsewhere: subjects who are not in its test part: whom EXPLAIN names of them, another fold explains.
    Returns:
        Settings as JSON has them.
    """
    return config.model_dump(mode="json", exclude_none=True, exclude=OF_THE_WHOLE) | {
        "OUTPUT_DIR": str(folder),
        "CACHE_DIR": str(cache_folder(config)),
        "DECIMAL": "auto",  # of the tables that were written for it
        "EXPLAIN": [name for name in config.EXPLAIN if name not in elsewhere],
        **{f"{part.upper()}_CSV": str(folder / "input" / f"{part}.csv") for part in PARTS},
    }


# ---- The command line ---------------------------------------------------------------------------------
def main(arguments: list[str]) -> int:
    """Run the pipeline.

    Args:
        arguments: of the command line.
    Returns:
        The exit code of `processes.exit_code`.
    """
    return run_main(
        partial(read_config, arguments), lambda config: verify(config) if config.VERIFY else Pipeline(config).run()
    )


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
