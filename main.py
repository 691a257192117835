"""The order of the stages: `python main.py` goes from NIfTI files to survival curves and their explanations."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to
from tqdm import tqdm

import crossfit
import folds
import simulate
import tables
import tracking
from config import Config, read_config
from data import Cache, build_cache, load_volume, load_volumes
from evaluation import closing_table, evaluate_run, read_predictions
from files import InputError, read_json, safe_name, write_json
from histories import HistoryExplanation, Stage1, explain_history
from processes import exit_code, run_program, stop_on_signals
from record import UPSTREAM, Record, digest, log_to, open_folder
from regions import Regions, make_parcels, read_atlas

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: half the speed
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no GPU is no error
# TensorFlow is imported by the stages that need it: wrong settings and tables are told in a second.

BY_RANK = {"highest": 1.0, "median": 0.5, "lowest": 0.0}  # names of EXPLAIN: quantiles of the predicted risk

logger = logging.getLogger(__name__)


class Pipeline:
    """One run: its settings, its folder, and its stages in their order."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = config.OUTPUT_DIR
        self.simulated: Path | None = None  # folder of the simulated cohort, if it is that

    def run(self) -> None:
        """Check the whole input, then do each stage that is asked for and not done yet.

        Raises:
            InputError: the settings or the input are wrong; then no file of an earlier run has been touched.
        """
        folds.check(self.config)
        open_folder(self.folder)
        self.parts, self.cache = self._read_input()
        if self.config.FOLDS:
            self.cross_validate()
            return
        self._check_choices()
        log_to(self.folder / "run.log")
        self.record = Record(self.config, self._digest_input(), self.cache.source)
        self._write_splits()
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

    def cross_validate(self) -> None:
        """The whole pipeline in each fold of the subjects, and the figures of all held-out subjects."""
        log_to(self.folder / "run.log")
        Record(self.config, self._digest_input(), self.cache.source).write()
        table = pd.concat(self.parts.values()).sort_values(["subject", "visit_time"], ignore_index=True)
        found = folds.cross_validate(self.config, table, truth=self._truth_table(), run=run_program)
        print(folds.as_text(found))
        print(f"\nThe figures are in {self.folder / 'metrics.json'}, each fold's run in {self.folder / 'folds'}")

    def train(self) -> None:
        """Stage 1: train the network; the best epoch on validation is kept in `cnn`."""
        folder = self.folder / "cnn"
        if not self.record.resumes("cnn"):
            shutil.rmtree(folder, ignore_errors=True)
        self._train_network(np.full(len(self.parts["train"]), True), folder)
        tracking.write_events(folder)

    def extract(self) -> None:
        """Write the features and the log-hazard of every scan of every part."""
        config, model = self.config, self._trained_model()
        features = {name: self._features(model, name) for name in tables.PARTS}
        if config.CROSS_FIT:
            folder = self.folder / "cnn" / "crossfit"
            if not self.record.resumes("features"):
                shutil.rmtree(folder, ignore_errors=True)
            features["train"] = crossfit.cross_fit(
                features, self._learn_anew, num_folds=config.CROSS_FIT, seed=config.SEED, folder=folder
            )
            tracking.write_events(folder)
        for name, table in features.items():
            tables.write_table(table, self.folder / "features" / f"{name}.parquet", time_unit=config.TIME_UNIT)

    def run_tlstm(self) -> None:
        """Stage 2, in a process of its own: TensorFlow holds a GPU until its process ends."""
        run_program("tlstm.py", self.config.model_dump(mode="json", exclude_none=True, exclude={"FEATURES", "FOLDS"}))
        tracking.write_events(self.folder / "tlstm")

    def explain(self) -> None:
        """SHAP and Grad-CAM of the chosen test scans, and the mean map of many test subjects."""
        config, grid, model = self.config, self.cache.grid, self._trained_model()
        background = self._background()
        brain = (background != 0).any(axis=(0, -1))
        parcels = read_atlas(config.ATLAS, brain, grid.affine) if config.ATLAS else make_parcels(brain, grid.affine)
        shutil.rmtree(self.folder / "explain", ignore_errors=True)  # of whom earlier settings chose
        for row, why in tqdm(self._explained(), desc="explaining", unit="scan"):
            self._explain_scan(row, why, model, background, parcels)
        if config.EXPLAIN_COHORT:
            self._explain_cohort(model, background, parcels)

    def report(self) -> None:
        """Evaluate every model on the same split, write the page, and print the table."""
        import report

        path = self.folder / "metrics.json"
        crossed = {name: found for name, found in read_json(path).items() if name in ("cv", "folds")}
        write_json(path, self._evaluate() | crossed)
        page = report.write_report(self.folder)
        print(closing_table(read_json(path)))
        print(f"\nEverything is in {self.folder}; begin with {page}")

    # ---- What the stages share ---------------------------------------------------------------------

    def _read_input(self) -> tuple[dict[str, pd.DataFrame], Cache]:
        """The three parts, and their scans' preprocessed volumes in the same order."""
        config = self.config
        if config.TRAIN_CSV is not None:
            paths = {name: getattr(config, f"{name.upper()}_CSV") for name in tables.PARTS}
            parts = tables.read_parts(paths, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
        else:
            cohort = config.COHORT_CSV or self._simulate()
            table = tables.read_cohort(cohort, mri_folder=config.MRI_FOLDER, time_unit=config.TIME_UNIT)
            parts = tables.split_subjects(
                table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
            )
        cache = build_cache(
            pd.concat([parts[name] for name in tables.PARTS]),
            shape=config.TARGET_SHAPE,
            folder=config.CACHE_DIR or self.folder / "cache",
            resample=config.RESAMPLE,
            jobs=config.NUM_WORKERS,
        )
        return parts, cache

    def _simulate(self) -> Path:
        """The embedded cohort of these settings, written if it is not there yet."""
        config = self.config
        strengths = f"nuisance-{config.SIM_NUISANCE:g}_effect-{config.SIM_EFFECT:g}"
        name = f"{config.SIM_SUBJECTS}-subjects_{strengths}_seed-{config.SEED}"
        self.simulated = self.folder / "simulated" / name
        return simulate.write_cohort(
            self.simulated,
            num_subjects=config.SIM_SUBJECTS,
            nuisance=config.SIM_NUISANCE,
            effect=config.SIM_EFFECT,
            seed=config.SEED,
            jobs=config.NUM_WORKERS,
        )

    def _write_splits(self) -> None:
        for name, part in self.parts.items():
            tables.write_table(part, self.folder / "splits" / f"{name}.csv", time_unit=self.config.TIME_UNIT)
            subjects = part.groupby("subject")["event"].first()
            logger.info("%s: %d subjects, %d with an event, %d scans", name, len(subjects), subjects.sum(), len(part))
        logger.info("volumes: %d preprocessed now, the others were in the cache", self.cache.num_built)

    def _unless_done(self, stage: str, do: Callable[[], None]) -> None:
        if self.record.is_done(stage):
            logger.info("%s: done already, with the same settings and input", stage)
            return
        self._require_above(stage)
        with self.record.doing(stage):
            do()

    def _require_above(self, stage: str) -> None:
        above = UPSTREAM[stage]
        if above is not None and not self.record.is_done(above):
            why = "; ".join(self.record.changes(above)) or "it was never finished"
            raise InputError(f"STAGES: {stage} needs the stage {above} of the same settings ({why}). Add it to STAGES.")

    def _entries(self, name: str) -> list[Path]:
        """The cache entries of a part's scans."""
        begin = sum(len(self.parts[part]) for part in tables.PARTS[: tables.PARTS.index(name)])
        return self.cache.entries[begin : begin + len(self.parts[name])]

    def _build_model(self, precision: str = "float32"):
        import tensorflow as tf

        from model import build_model

        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)  # stage 2 is another process on the same device
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
        model = self._build_model()
        model.load_weights((folder or self.folder / "cnn") / "best.weights.h5")
        return model

    def _train_network(self, rows: np.ndarray, folder: Path) -> None:
        """Train a network on some rows (N,) bool of the training part; the folder keeps it."""
        import train

        entries = [entry for entry, chosen in zip(self._entries("train"), rows, strict=True) if chosen]
        parts = {
            "train": train.Part.of(self.parts["train"][rows], entries),
            "val": train.Part.of(self.parts["val"], self._entries("val")),
        }
        options = {field.name: getattr(self.config, field.name.upper()) for field in fields(train.Options)}
        train.train(self._build_model(self.config.PRECISION), parts, train.Options(**options), folder)

    def _features(self, model, name: str) -> pd.DataFrame:
        """The feature table of a part."""
        import train

        table = self.parts[name].drop(columns="nifti_path")
        return train.extract_features(model, table, self._entries(name), batch_size=self.config.BATCH_SIZE)

    def _learn_anew(self, rows: np.ndarray, folder: Path) -> dict[str, pd.DataFrame]:
        """The features by a further network, trained on some rows of the training part."""
        self._train_network(rows, folder)
        model = self._trained_model(folder)
        return {name: self._features(model, name) for name in crossfit.LEARNED}

    def _evaluate(self) -> dict[str, Any]:
        paths = {name: self.folder / "features" / f"{name}.parquet" for name in tables.PARTS}
        predicted = self.folder / "tlstm" / "predictions.csv"
        by_landmark = {}
        if self.config.LANDMARKS and self.record.is_done("tlstm"):  # not at each last visit, as the others predict
            by_landmark = {"landmarks": read_json(self.folder / "metrics.json").get("landmarks")}
        return by_landmark | evaluate_run(
            {name: tables.read_features(path, time_unit=self.config.TIME_UNIT) for name, path in paths.items()},
            read_predictions(predicted) if self.record.is_done("tlstm") and not by_landmark else None,
            truth=self._truth_table(),
            horizons=self.config.HORIZONS,
            num_resamples=self.config.NUM_RESAMPLES,
            seed=self.config.SEED,
        )

    def _check_choices(self) -> None:
        """Whom EXPLAIN and SAMPLE_INDEX name must be in the test part: told before hours of training, as CROSS_FIT."""
        if self.config.CROSS_FIT:
            crossfit.deal_folds(self.parts["train"], self.config.CROSS_FIT, self.config.SEED)
        test = self.parts["test"]
        problems = [
            f"EXPLAIN: expected {', '.join(BY_RANK)} or the id of a test subject, received {name!r}"
            for name in self.config.EXPLAIN
            if name not in BY_RANK and name not in set(test["subject"])
        ]
        problems += [
            f"SAMPLE_INDEX: expected 0 to {len(test) - 1}, received {row}"
            for row in self.config.SAMPLE_INDEX
            if row >= len(test)
        ]
        tables.refuse("Scans to explain are not in the test part", problems, "Name others, or change the split.")

    def _explain_history(self, row: int, model, background: np.ndarray, regions: Regions) -> HistoryExplanation:
        """Stage 2, and both stages together, of a test subject's visits up to a row of the test part."""
        from gradients import compiled_outputs
        from tlstm import load

        test, config = self.parts["test"], self.config
        rows = [one for one in range(row + 1) if test["subject"].iloc[one] == test["subject"].iloc[row]]
        outputs, pull = compiled_outputs(model)
        names = [f"feature_{number + 1}" for number in range(model.get_layer("features").output.shape[-1])]
        train = read_predictions(self.folder / "tlstm" / "predictions.csv")["train"]
        return explain_history(
            load(self.folder / "tlstm"),
            test.iloc[rows].drop(columns="nifti_path"),
            load_volumes([self._entries("test")[one] for one in rows]),
            background,
            stage1=Stage1([*names, "log_hazard"], outputs, pull),
            regions=regions,
            horizons=config.HORIZONS,
            expected=float(train["log_hazard"].mean()),
            seed=config.SEED,
        )

    def _explain_scan(self, row: int, why: str, model, background: np.ndarray, parcels: Regions) -> None:
        """Every map of one test scan, and the history that ends with it, into `explain/<imageid>`."""
        import explain
        import pictures
        import timelines

        config, grid, scan = self.config, self.cache.grid, self.parts["test"].iloc[row]
        found = explain.explain_scan(
            model,
            load_volume(self._entries("test")[row]),
            background,
            engine=config.SHAP_ENGINE,
            steps=config.SHAP_NSAMPLES,
            seed=config.SEED,
            layer=config.GRAD_CAM_LAYER,
            hires_layer=config.HIRES_CAM_LAYER,
            voxel_mm=grid.voxel_mm,
            truth=self._truth(),
            regions=parcels,
        )
        history = self._explain_history(row, model, background, parcels)
        found["metrics"]["history"] = history["metrics"]
        folder, title = self.folder / "explain" / safe_name(scan["scan"]), f"{scan['scan']}, {why}"
        timelines.save_history(folder, history, title=title)
        image: Any = nib.load(scan["nifti_path"])
        pictures.save_explanation(
            folder,
            dict(found),
            affine=grid.affine,
            shape_native=image.shape,
            affine_native=image.affine,
            title=title,
        )

    def _explain_cohort(self, model, background: np.ndarray, parcels: Regions) -> None:
        """The mean map of test subjects spread over the risk, into `explained_cohort`."""
        import explain
        import pictures

        last = self._spread_over_risk(self.config.EXPLAIN_COHORT)
        scans = tqdm([(row["subject"], row["entry"]) for _, row in last.iterrows()], desc="explaining the cohort")
        cohort = explain.explain_cohort(
            model,
            ((subject, load_volume(entry)) for subject, entry in scans),
            background,
            voxel_mm=self.cache.grid.voxel_mm,
            regions=parcels,
            seed=self.config.SEED,
        )
        events = dict(zip(last["subject"], last["event"], strict=True))
        pictures.save_cohort(self.folder / "explained_cohort", cohort, affine=self.cache.grid.affine, event=events)

    def _background(self) -> np.ndarray:
        """(B, X, Y, Z, 1) training scans, drawn by SEED, against which SHAP explains."""
        pool, wanted = self._entries("train"), self.config.SHAP_BACKGROUND_SIZE
        if len(pool) < wanted:
            logger.warning("SHAP_BACKGROUND_SIZE: the training part has only %d scans of %d", len(pool), wanted)
        rng = np.random.default_rng(self.config.SEED)
        chosen = np.sort(rng.choice(len(pool), size=min(wanted, len(pool)), replace=False))
        return load_volumes([pool[row] for row in chosen])

    def _by_risk(self) -> pd.DataFrame:
        """The last scans of the test part, in the order of stage 2's risk; `row` is their place in it."""
        test = self.parts["test"]
        last = test.assign(row=range(len(test)), entry=list(map(str, self._entries("test")))).groupby("subject").tail(1)
        predicted = read_predictions(self.folder / "tlstm" / "predictions.csv")["test"]
        risk = predicted.groupby("subject")["log_hazard"].last()
        return last.assign(risk=last["subject"].map(risk)).sort_values("risk", kind="stable", ignore_index=True)

    def _spread_over_risk(self, number: int) -> pd.DataFrame:
        by_risk = self._by_risk()
        return by_risk.iloc[np.unique(np.linspace(0, len(by_risk) - 1, number).round().astype(int))]

    def _explained(self) -> list[tuple[int, str]]:
        """Rows of the test part to explain, and why."""
        by_risk = self._by_risk()
        row_of = dict(zip(by_risk["subject"], by_risk["row"], strict=True))
        for name, place in BY_RANK.items():
            row_of[name] = by_risk["row"].iloc[int(place * (len(by_risk) - 1))]
        chosen = {
            int(row_of[name]): f"{name} risk of the test part" if name in BY_RANK else "asked for"
            for name in self.config.EXPLAIN
        }
        return list((dict.fromkeys(self.config.SAMPLE_INDEX, "asked for") | chosen).items())

    def _truth_table(self) -> Path | None:
        """`truth.csv` of the simulated cohort; None if the truth is not known."""
        return self.simulated / "truth.csv" if self.simulated is not None else None

    def _truth(self) -> np.ndarray | None:
        """Where the atrophy is, on the network's grid; None if that is not known."""
        if self.simulated is None:
            return None
        labels = nib.load(self.simulated / "truth_regions.nii.gz")
        grid = self.cache.grid
        return np.isin(resample_from_to(labels, (grid.shape, grid.affine), order=0).dataobj, simulate.ATROPHY_LABELS)

    def _digest_input(self) -> str:
        """A hash of the tables and the volumes, wherever they lie."""
        rows = [part.drop(columns="nifti_path") for part in self.parts.values()]
        hashes = [pd.util.hash_pandas_object(part).to_numpy().tobytes() for part in rows]
        return digest(*hashes, *(entry.name for entry in self.cache.entries))


def main(arguments: list[str]) -> int:
    """Run the pipeline; returns the exit code of processes.exit_code."""

    def run() -> None:
        config = read_config(arguments)
        stop_on_signals(config.MAX_HOURS)
        Pipeline(config).run()

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
