"""The order of the stages: `python main.py` goes from NIfTI files to survival curves and their explanations."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: half the speed
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no GPU is no error
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort import tables
from cohort.splits import PARTS, split_folds
from config import Config, read_config
from data import load_cohort
from reporting.event_files import write_events
from reporting.explained import Explanations, check_choices
from reporting.terminal import closing_table, folds_table
from reporting.verify import verify
from runs.errors import InputError, raise_if_any
from runs.files import read_json, write_json
from runs.lock import lock_run
from runs.log import log_to
from runs.processes import exit_code, exit_process, run_program, stop_on_signals
from runs.record import Record
from runs.stages import READS
from runs.threads import fix_threads
from survival.evaluation import evaluate_run, predict_all, read_predictions
from survival.pooling import evaluate_folds
from training import crossfit

logger = logging.getLogger(__name__)


class Pipeline:
    """One run: its settings, its folder, and its stages in their order."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = config.OUTPUT_DIR

    def run(self) -> None:
        """Check the whole input, then do each stage that is asked for and not done yet.

        Raises:
            InputError: the settings or the input are wrong; then no file of an earlier run has been touched.
        """
        check_folds(self.config)
        Record(self.config).refuse_changes()
        self.threads = fix_threads(self.folder)
        self.workers = self._join() if self.config.DISTRIBUTE == "multi_worker" else None
        if self.workers and not self.workers.is_first:
            self.help_to_train(self.workers)
            return
        with lock_run(self.folder):
            self.run_stages()

    def run_stages(self) -> None:
        """Read the input, then do each stage."""
        self.inputs = load_cohort(self.config)
        if self.config.FOLDS:
            self.cross_validate()
            return
        if self.config.CROSS_FIT:
            crossfit.deal_folds(self.inputs.parts["train"], self.config.CROSS_FIT, self.config.SEED)
        check_choices(self.config, self.inputs.parts["test"])
        log_to(self.folder / "run.log")
        self.record = Record(self.config, self.inputs.digest(), self.inputs.cache.source, self.threads)
        self.record.refuse_changes()
        self._write_splits()
        self._call_workers()
        for stage, do in (
            ("cnn", self.train),
            ("features", self.extract),
            ("tlstm", self.run_tlstm),
            ("explain", self.explain),
        ):
            if stage in self.config.STAGES:
                self._unless_done(stage, do)
        if "report" in self.config.STAGES:
            self._require_above("report")
            self.report()
            self.record.finish("report", {"done": True})

    def help_to_train(self, workers) -> None:
        """What another worker than the first does: it trains with it, and writes nothing but its cache.

        Raises:
            InputError: its settings or its input are not those of the first.
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        with workers.together():
            wanted = json.loads(workers.tell(b""))
        if not wanted:
            logger.info("stage 1 is done already, with the same settings and input")
            return
        self.inputs = load_cohort(self.config)
        own = Record(self.config, self.inputs.digest()).needs("cnn")
        if differing := sorted(name for name in own | wanted if own.get(name) != wanted.get(name)):
            raise InputError(
                f"This worker's settings or input are not the first one's: {', '.join(differing)}. Give every worker "
                "the same command and the same files."
            )
        with self.inputs.naming_lost():
            self._train_network(np.full(len(self.inputs.parts["train"]), True), self.folder / "cnn")

    def cross_validate(self) -> None:
        """The whole pipeline in each fold of the subjects, and the figures of all held-out subjects."""
        log_to(self.folder / "run.log")
        Record(self.config, self.inputs.digest(), self.inputs.cache.source, self.threads).write()
        table = pd.concat(self.inputs.parts.values()).sort_values(["subject", "visit_time"], ignore_index=True)
        found = cross_validate(self.config, table, truth=self.inputs.truth_table(), run=run_program)
        print(folds_table(found))
        print(f"\nThe figures are in {self.folder / 'metrics.json'}, each fold's run in {self.folder / 'folds'}")

    def loop(self) -> None:
        """Stage 1: train the network; the best epoch on validation is kept in `cnn`."""
        folder = self.folder / "cnn"
        self._train_network(np.full(len(self.inputs.parts["train"]), True), folder)
        write_events(folder)

    def extract(self) -> None:
        """Write the features and the log-hazard of every scan of every part."""
        config, model = self.config, self._trained_model()
        features = {name: self._features(model, name) for name in PARTS}
        if config.CROSS_FIT:
            folder = self.folder / "cnn" / "crossfit"
            features["train"] = crossfit.cross_fit(
                features, self._learn_anew, num_folds=config.CROSS_FIT, seed=config.SEED, folder=folder
            )
            write_events(folder)
        for name, table in features.items():
            tables.write_table(table, self.folder / "features" / f"{name}.parquet", time_unit=config.TIME_UNIT)

    def run_tlstm(self) -> None:
        """Stage 2, in a process of its own: TensorFlow holds a GPU until its process ends."""
        run_program("tlstm.py", self.config.model_dump(mode="json", exclude_none=True, exclude={"FEATURES", "FOLDS"}))
        write_events(self.folder / "tlstm")

    def explain(self) -> None:
        """SHAP and Grad-CAM of the chosen test scans, and the mean map of many test subjects."""
        Explanations(self.config, self.inputs, self._trained_model()).write()

    def page(self) -> None:
        """Evaluate every model on the same split, write the page, and print the table."""
        from reporting import page

        damage = self.record.damage()
        raise_if_any("The page can't be made", damage, "Add these stages to STAGES: what is damaged is done anew.")
        path = self.folder / "metrics.json"
        crossed = {name: found for name, found in read_json(path).items() if name in ("cv", "folds")}
        write_json(path, self._evaluate() | crossed)
        page = page.write_report(self.folder)
        print(closing_table(read_json(path)))
        print(f"\nEverything is in {self.folder}; begin with {page}")

    # ---- What the stages share ---------------------------------------------------------------------

    def _write_splits(self) -> None:
        for name, part in self.inputs.parts.items():
            tables.write_table(part, self.folder / "splits" / f"{name}.csv", time_unit=self.config.TIME_UNIT)
            subjects = part.groupby("subject")["event"].first()
            logger.info("%s: %d subjects, %d with an event, %d scans", name, len(subjects), subjects.sum(), len(part))
        logger.info("volumes: %d preprocessed now, the others were in the cache", self.inputs.cache.num_built)

    def _unless_done(self, stage: str, do: Callable[[], None]) -> None:
        if self.record.is_done(stage):
            logger.info("%s: done already, with the same settings and input", stage)
            return
        self._require_above(stage)
        with self.record.doing(stage), self.inputs.naming_lost():
            do()

    def _require_above(self, stage: str) -> None:
        for above in READS[stage]:
            if not self.record.is_done(above):
                why = "; ".join(self.record.changes(above)) or "it was never finished"
                raise InputError(
                    f"STAGES: {stage} needs the stage {above} of the same settings ({why}). Add it to STAGES."
                )

    def _join(self):
        """The devices and workers that train stage 1."""
        from training.devices import join, start_tensorflow

        start_tensorflow(threads=self.threads, seed=self.config.SEED)
        return join(self.config.DISTRIBUTE, self.config.DEVICES)

    def _call_workers(self) -> None:
        """Tell the other workers what stage 1 is to be trained with, or that it is done."""
        if self.workers:
            wanted = "cnn" in self.config.STAGES and not self.record.is_done("cnn")
            with self.workers.together():
                self.workers.tell(json.dumps(self.record.needs("cnn") if wanted else {}).encode())

    def _build_model(self, precision: str = "float32"):
        from model import build_model
        from training.devices import start_tensorflow

        start_tensorflow(threads=self.threads, seed=self.config.SEED)
        config = self.config
        return build_model(
            config.TARGET_SHAPE,
            width=config.WIDTH,
            norm=config.NORM,
            dropout=config.DROPOUT_RATE,
            precision=precision,
            seed=config.SEED,
        )

    def _trained_model(self, folder: Path | None = None):
        from training.weights import load_weights

        model = self._build_model()
        load_weights(model, (folder or self.folder / "cnn") / "best.weights.h5")
        return model

    def _train_network(self, rows: np.ndarray, folder: Path) -> None:
        """Train a network on some rows (N,) bool of the training part; the folder keeps it."""
        from training import loop
        from training.risk_sets import Scans
        from training.steps import Options

        workers = self.workers or self._join()
        with workers.together(), workers.strategy.scope():
            model = self._build_model(self.config.PRECISION)
        entries = [entry for entry, chosen in zip(self.inputs.entries("train"), rows, strict=True) if chosen]
        parts = {
            "train": Scans.of(self.inputs.parts["train"][rows], entries),
            "val": Scans.of(self.inputs.parts["val"], self.inputs.entries("val")),
        }
        options = Options.of(self.config)
        saving = {"workers": workers, "save_seconds": self.config.SAVE_SECONDS}
        loop.train(model, parts, options, folder, **saving)

    def _features(self, model, name: str) -> pd.DataFrame:
        """The feature table of a part."""
        from training.features import extract_features

        table = self.inputs.parts[name].drop(columns="nifti_path")
        return extract_features(model, table, self.inputs.entries(name), batch_size=self.config.BATCH_SIZE)

    def _learn_anew(self, rows: np.ndarray, folder: Path) -> dict[str, pd.DataFrame]:
        """The features by a further network, trained on some rows of the training part."""
        self._train_network(rows, folder)
        model = self._trained_model(folder)
        return {name: self._features(model, name) for name in crossfit.LEARNED}

    def _evaluate(self) -> dict[str, Any]:
        paths = {name: self.folder / "features" / f"{name}.parquet" for name in PARTS}
        predicted = self.folder / "tlstm" / "predictions.csv"
        by_landmark = {}
        if self.config.LANDMARKS and self.record.is_done("tlstm"):  # not at each last visit, as the others predict
            by_landmark = {"landmarks": read_json(self.folder / "metrics.json").get("landmarks")}
        return by_landmark | evaluate_run(
            {name: tables.read_features(path, time_unit=self.config.TIME_UNIT) for name, path in paths.items()},
            read_predictions(predicted) if self.record.is_done("tlstm") and not by_landmark else None,
            truth=self.inputs.truth_table(),
            horizons=self.config.HORIZONS,
            num_resamples=self.config.NUM_RESAMPLES,
            seed=self.config.SEED,
        )


def main(arguments: list[str]) -> int:
    """Run the pipeline; returns the exit code of processes.exit_code."""

    def run() -> None:
        config = read_config(arguments)
        stop_on_signals(config.MAX_HOURS)
        verify(config) if config.VERIFY else Pipeline(config).run()

    return exit_code(run)


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))


NEEDED = ("cnn", "features", "tlstm")  # stages without which there is nothing to evaluate
NOT_PASSED_ON = {"COHORT_CSV", "FOLDS", "FEATURES", "PREDICT_CSV"}


def check_folds(config: Config) -> None:
    """Refuse settings that mean nothing in a cross-validation of the whole pipeline, if FOLDS asks for one.

    Raises:
        InputError: names each.
    """
    if not config.FOLDS:
        return
    absent = [stage for stage in NEEDED if stage not in config.STAGES]
    problems = [
        problem
        for wrong, problem in (
            (config.FOLDS == 1, "FOLDS: expected 2 or more, received 1"),
            (
                config.TRAIN_CSV is not None,
                "TRAIN_CSV, VAL_CSV, TEST_CSV: expected unset, since the folds are the split",
            ),
            (absent, f"STAGES: expected {', '.join(NEEDED)} among them, missing {', '.join(absent)}"),
            (config.SAMPLE_INDEX, "SAMPLE_INDEX: expected unset, since each fold has its own test part"),
            (config.LANDMARKS, "LANDMARKS: expected unset; `python tlstm.py --FEATURES` cross-validates landmarks"),
        )
        if wrong
    ]
    raise_if_any("The pipeline can't be cross-validated", problems, "Change these settings, or unset FOLDS.")


def cross_validate(
    config: Config, table: pd.DataFrame, *, truth: Path | None, run: Callable[[str, Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Run the pipeline in each fold, evaluate all held-out subjects, and put that into `metrics.json` as `folds`.

    Args:
        config: of the whole; `check` has passed.
        table: the cohort, in memory's columns, sorted by subject and visit.
        truth: `truth.csv` of the simulated cohort.
        run: `run(program, settings)` runs a program of ours, and raises if that fails.
    Returns:
        As `evaluate`.
    Raises:
        InputError: a fold would have a part without an event; nothing was run then.
    """
    split = split_folds(table, config.FOLDS, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED)
    folders = [config.OUTPUT_DIR / "folds" / str(number + 1) for number in range(config.FOLDS)]
    for folder, parts in zip(folders, split, strict=True):
        logger.info("fold %s of %d: %s", folder.name, config.FOLDS, folder)
        for name, part in parts.items():
            tables.write_table(part, folder / "input" / f"{name}.csv", time_unit=config.TIME_UNIT)
        elsewhere = set(table["subject"]) - set(parts["test"]["subject"])
        run("main.py", fold_settings(config, folder, elsewhere))
    models = []
    for folder in folders:
        paths = {name: folder / "features" / f"{name}.parquet" for name in PARTS}
        features = {name: tables.read_features(path, time_unit=config.TIME_UNIT) for name, path in paths.items()}
        stage2 = read_predictions(folder / "tlstm" / "predictions.csv")
        models.append(predict_all(features, stage2, truth=truth, horizons=config.HORIZONS))
    found = evaluate_folds(models, horizons=config.HORIZONS, num_resamples=config.NUM_RESAMPLES, seed=config.SEED)
    path = config.OUTPUT_DIR / "metrics.json"
    write_json(path, read_json(path) | {"folds": found})
    return found


def fold_settings(config: Config, folder: Path, elsewhere: set[str]) -> dict[str, Any]:
    """The settings of one fold's run: those of the whole, its own split and folder, one cache for all.

    Args:
        config: of the whole.
        folder: of the fold; `input` in it holds its tables.
        elsewhere: subjects who are not in its test part: whom EXPLAIN names of them, another fold explains.
    Returns:
        Settings as JSON has them.
    """
    return config.model_dump(mode="json", exclude_none=True, exclude=NOT_PASSED_ON) | {
        "OUTPUT_DIR": str(folder),
        "CACHE_DIR": str(config.CACHE_DIR or config.OUTPUT_DIR / "cache"),
        "EXPLAIN": [name for name in config.EXPLAIN if name not in elsewhere],
        **{f"{part.upper()}_CSV": str(folder / "input" / f"{part}.csv") for part in PARTS},
    }
