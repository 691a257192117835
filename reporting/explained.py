"""Which scans of the test part are explained, and into which folder: `explain/<imageid>` and `explained_cohort`.

`main.py` imports this at its start, so TensorFlow and the pictures are imported where they are needed.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from attribution.histories import HistoryExplanation, HistorySettings, ImageStage, explain_history
from attribution.regions import Regions, check_parcels, has_midline, make_parcels, read_atlas
from cohort.grid import Grid
from cohort.scans import open_scan
from cohort.tables import visits_with_time_left
from config import Config
from data import Cohort, load_volume, load_volumes
from reporting.words import shorten
from runs.errors import raise_if_any
from runs.files import safe_name
from survival.evaluation import read_predictions

if TYPE_CHECKING:
    import keras

    from explain import Explanation
    from training.stage1 import ProgressModel

BY_RANK = {"highest": 1.0, "median": 0.5, "lowest": 0.0}  # names of EXPLAIN: quantiles of the predicted risk
BY_NAME = "asked for"  # why a scan is explained that EXPLAIN or SAMPLE_INDEX names
MOST_OF_SCAN = 50  # characters of a scan's id in a picture's title
PATH_COLUMNS = ["nifti_path", "cache_entry"]  # columns that stage 2 does not get
logger = logging.getLogger(__name__)


def check_choices(config: Config, test: pd.DataFrame) -> None:
    """Refuse to explain subjects or scans that the test part does not have, before hours of training.

    Args:
        config: EXPLAIN and SAMPLE_INDEX say which.
        test: the test part, a row a scan.
    Raises:
        InputError: names each of them.
    """
    problems = [
        f"EXPLAIN: expected {', '.join(BY_RANK)} or the id of a test subject, received {name!r}"
        for name in config.EXPLAIN
        if name not in BY_RANK and name not in set(test["subject"])
    ]
    problems += [
        f"SAMPLE_INDEX: expected 0 to {len(test) - 1}, received {row}"
        for row in config.SAMPLE_INDEX
        if row >= len(test)
    ]
    raise_if_any("Scans to explain are not in the test part", problems, "Name others, or change the split.")


def check_background(config: Config, cohort: Cohort) -> None:
    """Refuse, before hours of training, an atlas or a brain that gives no regions to explain by.

    Args:
        config: of the run.
        cohort: of the run; its volumes are (X, Y, Z) voxels of `cohort.cache.grid`.
    Raises:
        InputError: as `check_regions`, for the scans that SHAP explains against.
    """
    if "explain" in config.STAGES:
        check_regions(config.ATLAS, load_volumes(_background_entries(config, cohort)), cohort.cache.grid)


def check_regions(atlas: Path | None, volumes: np.ndarray, grid: Grid) -> None:
    """Refuse an atlas or a brain that gives no regions to explain by.

    Args:
        atlas: of the setting ATLAS; None: parcels.
        volumes: (B, X, Y, Z, 1); the brain is where one of them is not 0.
        grid: of the volumes.
    Raises:
        InputError: ATLAS is no label image in the scans' space, or the brain has fewer voxels than parcels.
    """
    brain = _brain(volumes)
    if atlas:
        read_atlas(atlas, brain, grid.affine)
    else:
        check_parcels(brain)


def _brain(volumes: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: where one of the volumes, (B, X, Y, Z, 1), has brain."""
    return (volumes != 0).any(axis=(0, -1))


def _background_entries(config: Config, cohort: Cohort) -> list[str]:
    """The cache entries of SHAP_BACKGROUND_SIZE training scans, drawn by SEED; of all, if there are no more."""
    entries = cohort.parts["train"]["cache_entry"]
    rng = np.random.default_rng(config.SEED)
    number = min(config.SHAP_BACKGROUND_SIZE, len(entries))
    return entries.iloc[np.sort(rng.choice(len(entries), size=number, replace=False))].to_list()


class Explanations:
    """The explanations of one run: of chosen scans of the test part, and of many test subjects together.

    Args:
        config: of the run; stage 2 has left its predictions and its model in OUTPUT_DIR.
        cohort: of the run; its volumes are (X, Y, Z) voxels of `cohort.cache.grid`.
        model: the trained network of stage 1.
        progress: what gives a scan its progress; None: PROGRESS was off.
    """

    def __init__(self, config: Config, cohort: Cohort, model: "keras.Model", progress: "ProgressModel | None" = None):
        self.config, self.cohort, self.model, self.progress = config, cohort, model, progress
        self.folder, self.test = config.OUTPUT_DIR, cohort.parts["test"]
        self.background = self._draw_background()
        self.regions = self._make_regions()

    def write(self) -> None:
        """Write a folder for each chosen scan, then the cohort's; a folder that is whole already is left as it is."""
        for row, reason in tqdm(self._choose(), desc="explaining", unit="scan"):
            folder = self.folder / "explain" / safe_name(self.test["scan"].iloc[row])
            if not (folder / "metrics.json").exists():  # the last file of it
                self._explain_scan(row, reason, folder)
        folder = self.folder / "explained_cohort"
        if self.config.EXPLAIN_COHORT and not (folder / "regions.csv").exists():
            self._explain_cohort(folder)

    # ---- One scan
    def _explain_scan(self, row: int, reason: str, folder: Path) -> None:
        """Write the maps of a scan, given by its row of the test part, and the history that ends with it."""
        from reporting import brains, timelines

        scan = self.test.iloc[row]
        explanation, history = self._make_maps(scan), self._explain_history(row)
        explanation["metrics"]["history"] = history["metrics"]
        title = f"{shorten(scan['scan'], MOST_OF_SCAN)}, {reason}"
        timelines.save_history(folder, history, title=title)
        file = open_scan(scan["nifti_path"], self.config.MAX_VOXELS)
        native = Grid(file.shape, file.affine)
        brains.save_explanation(folder, explanation, grid=self.cohort.cache.grid, native=native, title=title)

    def _make_maps(self, scan: pd.Series) -> "Explanation":
        """Every map of a scan, a row of the test part, with the evidence for it."""
        import explain

        settings = explain.ExplainSettings(
            engine=self.config.SHAP_ENGINE,
            num_gradients=self.config.SHAP_NSAMPLES,
            seed=self.config.SEED,
            layer=self.config.GRAD_CAM_LAYER,
            hires_layer=self.config.HIRES_CAM_LAYER,
            shapley_background=self.config.SHAPLEY_BACKGROUND,
        )
        space = explain.Space(self.cohort.cache.grid.voxel_mm, self.cohort.truth(), self.regions)
        return explain.explain_scan(self.model, load_volume(scan["cache_entry"]), self.background, settings, space)

    def _explain_history(self, row: int) -> HistoryExplanation:
        """Stage 2, and both stages together, of a subject's visits up to a row of the test part."""
        from attribution.gradients import trace_outputs
        from tlstm import load

        until = self.test.iloc[: row + 1]
        visits = until[until["subject"] == self.test["subject"].iloc[row]]
        outputs, gradient_of_weighted_outputs = trace_outputs(self.model)
        names = [f"feature_{number + 1}" for number in range(self.model.get_layer("features").output.shape[-1])]
        image_stage = ImageStage([*names, "log_hazard"], outputs, gradient_of_weighted_outputs)
        if self.progress is not None:
            image_stage = image_stage.with_progress(self.progress.of_volumes, self.progress.gradient)
        return explain_history(
            load(self.folder / "tlstm"),
            visits.drop(columns=PATH_COLUMNS),
            load_volumes(visits["cache_entry"].to_list()),
            self.background,
            image_stage=image_stage,
            settings=HistorySettings(self.regions, self.config.HORIZONS, self.config.SEED),
        )

    # ---- Many subjects
    def _explain_cohort(self, folder: Path) -> None:
        """Write the mean map of test subjects spread over the risk."""
        import explain
        from reporting import brains

        last = self._spread_over_risk(self.config.EXPLAIN_COHORT)
        scans = list(zip(last["subject"], last["cache_entry"], strict=True))
        cohort = explain.explain_cohort(
            self.model,
            ((subject, load_volume(entry)) for subject, entry in tqdm(scans, desc="explaining the cohort")),
            self.background,
            voxel_mm=self.cohort.cache.grid.voxel_mm,
            regions=self.regions,
            seed=self.config.SEED,
        )
        event = dict(zip(last["subject"], last["event"], strict=True))
        brains.save_cohort(folder, cohort, grid=self.cohort.cache.grid, event=event)

    # ---- What a map is compared with, and summed by
    def _draw_background(self) -> np.ndarray:
        """(B, X, Y, Z, 1) training scans against which SHAP explains."""
        entries, wanted = _background_entries(self.config, self.cohort), self.config.SHAP_BACKGROUND_SIZE
        if len(entries) < wanted:
            logger.warning("SHAP_BACKGROUND_SIZE: the training part has only %d scans of %d", len(entries), wanted)
        return load_volumes(entries)

    def _make_regions(self) -> Regions:
        """The regions of ATLAS; without one, parcels of the voxels where a background scan has brain."""
        brain, affine = _brain(self.background), self.cohort.cache.grid.affine
        if self.config.ATLAS:
            return read_atlas(self.config.ATLAS, brain, affine)
        if not has_midline(brain, affine):
            logger.warning("x = 0 mm is not amid the brains, so no region is called left or right")
        return make_parcels(brain, affine)

    # ---- The choice of scans
    def _choose(self) -> list[tuple[int, str]]:
        """The rows of the test part to explain, each with the reason."""
        by_risk = self._last_scans_by_risk()
        row_of = dict(zip(self.test["subject"], range(len(self.test)), strict=True))  # of whoever has no time left
        row_of |= dict(zip(by_risk["subject"], by_risk["row"], strict=True))
        for name, quantile in BY_RANK.items():
            row_of[name] = by_risk["row"].iloc[int(quantile * (len(by_risk) - 1))]
        chosen = {
            int(row_of[name]): f"{name} risk of the test part" if name in BY_RANK else BY_NAME
            for name in self.config.EXPLAIN
        }
        return list((dict.fromkeys(self.config.SAMPLE_INDEX, BY_NAME) | chosen).items())

    def _spread_over_risk(self, number: int) -> pd.DataFrame:
        """So many of the test part's last scans, evenly spread over the order of their subjects' risk."""
        by_risk = self._last_scans_by_risk()
        return by_risk.iloc[np.unique(np.linspace(0, len(by_risk) - 1, number).round().astype(int))]

    def _last_scans_by_risk(self) -> pd.DataFrame:
        """The last scan of each test subject, in the order of stage 2's risk; `row` is its place in the test part."""
        last = visits_with_time_left(self.test.assign(row=range(len(self.test)))).groupby("subject").tail(1)
        predicted = read_predictions(self.folder / "tlstm" / "predictions.csv")["test"]
        risk = predicted.groupby("subject")["log_hazard"].last()
        return last.assign(risk=last["subject"].map(risk)).sort_values("risk", kind="stable", ignore_index=True)
