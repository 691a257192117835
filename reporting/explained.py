"""Which scans of the test part are explained, and into which folder: `explain/<imageid>` and `explained_cohort`."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from attribution.histories import HistoryExplanation, HistorySettings, ImageStage, explain_history
from attribution.regions import Regions, make_parcels, read_atlas
from cohort.scans import open_scan
from config import Config
from data import Cohort, load_volume, load_volumes
from runs.errors import raise_if_any
from runs.files import safe_name
from survival.evaluation import read_predictions

BY_RANK = {"highest": 1.0, "median": 0.5, "lowest": 0.0}  # names of EXPLAIN: quantiles of the predicted risk
logger = logging.getLogger(__name__)


def check_choices(config: Config, test: pd.DataFrame) -> None:
    """Refuse to explain whom the test part does not have: told before hours of training.

    Args:
        config: EXPLAIN and SAMPLE_INDEX say whom.
        test: the test part.
    Raises:
        InputError: names each.
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


class Explanations:
    """The explanations of one run.

    Args:
        config: of the run; stage 2 has left its predictions and its model in OUTPUT_DIR.
        inputs: of the run.
        model: the trained network of stage 1.
    """

    def __init__(self, config: Config, inputs: Cohort, model):
        self.config, self.inputs, self.model = config, inputs, model
        self.folder, self.test, self.entries = config.OUTPUT_DIR, inputs.parts["test"], inputs.entries("test")
        self.background = self._background()
        self.regions = self._regions()

    def write(self) -> None:
        """Write every chosen scan's folder, then the cohort's; not what a stopped run has written whole already."""
        for row, why in tqdm(self._chosen(), desc="explaining", unit="scan"):
            folder = self.folder / "explain" / safe_name(self.test["scan"].iloc[row])
            if not (folder / "metrics.json").exists():  # the last file of it
                self._explain_scan(row, why, folder)
        folder = self.folder / "explained_cohort"
        if self.config.EXPLAIN_COHORT and not (folder / "regions.csv").exists():
            self._explain_cohort(folder)

    def _explain_scan(self, row: int, why: str, folder: Path) -> None:
        """Every map of one test scan, and the history that ends with it."""
        import explain
        from reporting import brains, timelines

        config, grid, scan = self.config, self.inputs.cache.grid, self.test.iloc[row]
        found = explain.explain_scan(
            self.model,
            load_volume(self.entries[row]),
            self.background,
            explain.ExplainSettings(
                engine=config.SHAP_ENGINE,
                num_gradients=config.SHAP_NSAMPLES,
                seed=config.SEED,
                layer=config.GRAD_CAM_LAYER,
                hires_layer=config.HIRES_CAM_LAYER,
            ),
            explain.Space(grid.voxel_mm, self.inputs.truth(), self.regions),
        )
        history = self._explain_history(row)
        found["metrics"]["history"] = history["metrics"]
        title = f"{scan['scan']}, {why}"
        timelines.save_history(folder, history, title=title)
        native = open_scan(scan["nifti_path"], config.MAX_VOXELS)
        brains.save_explanation(
            folder,
            dict(found),
            affine=grid.affine,
            shape_native=native.shape,
            affine_native=native.affine,
            title=title,
        )

    def _explain_history(self, row: int) -> HistoryExplanation:
        """Stage 2, and both stages together, of a test subject's visits up to a row of the test part."""
        from attribution.gradients import trace_outputs
        from tlstm import load

        subject = self.test["subject"]
        rows = [one for one in range(row + 1) if subject.iloc[one] == subject.iloc[row]]
        outputs, gradient_of_weighted_outputs = trace_outputs(self.model)
        names = [f"feature_{number + 1}" for number in range(self.model.get_layer("features").output.shape[-1])]
        train = read_predictions(self.folder / "tlstm" / "predictions.csv")["train"]
        return explain_history(
            load(self.folder / "tlstm"),
            self.test.iloc[rows].drop(columns="nifti_path"),
            load_volumes([self.entries[one] for one in rows]),
            self.background,
            image_stage=ImageStage([*names, "log_hazard"], outputs, gradient_of_weighted_outputs),
            expected=float(train["log_hazard"].mean()),
            settings=HistorySettings(self.regions, self.config.HORIZONS, self.config.SEED),
        )

    def _explain_cohort(self, folder: Path) -> None:
        """The mean map of test subjects spread over the risk."""
        import explain
        from reporting import brains

        last = self._spread_over_risk(self.config.EXPLAIN_COHORT)
        scans = tqdm([(row["subject"], row["entry"]) for _, row in last.iterrows()], desc="explaining the cohort")
        cohort = explain.explain_cohort(
            self.model,
            ((subject, load_volume(entry)) for subject, entry in scans),
            self.background,
            voxel_mm=self.inputs.cache.grid.voxel_mm,
            regions=self.regions,
            seed=self.config.SEED,
        )
        events = dict(zip(last["subject"], last["event"], strict=True))
        brains.save_cohort(folder, cohort, affine=self.inputs.cache.grid.affine, event=events)

    def _background(self) -> np.ndarray:
        """(B, X, Y, Z, 1) training scans, drawn by SEED, against which SHAP explains."""
        pool, wanted = self.inputs.entries("train"), self.config.SHAP_BACKGROUND_SIZE
        if len(pool) < wanted:
            logger.warning("SHAP_BACKGROUND_SIZE: the training part has only %d scans of %d", len(pool), wanted)
        rng = np.random.default_rng(self.config.SEED)
        chosen = np.sort(rng.choice(len(pool), size=min(wanted, len(pool)), replace=False))
        return load_volumes([pool[row] for row in chosen])

    def _regions(self) -> Regions:
        """Of ATLAS; without one, parcels of where a background scan has brain."""
        brain, affine = (self.background != 0).any(axis=(0, -1)), self.inputs.cache.grid.affine
        return read_atlas(self.config.ATLAS, brain, affine) if self.config.ATLAS else make_parcels(brain, affine)

    def _by_risk(self) -> pd.DataFrame:
        """The last scans of the test part, in the order of stage 2's risk; `row` is their place in it."""
        placed = self.test.assign(row=range(len(self.test)), entry=list(map(str, self.entries)))
        last = placed.groupby("subject").tail(1)
        predicted = read_predictions(self.folder / "tlstm" / "predictions.csv")["test"]
        risk = predicted.groupby("subject")["log_hazard"].last()
        return last.assign(risk=last["subject"].map(risk)).sort_values("risk", kind="stable", ignore_index=True)

    def _spread_over_risk(self, number: int) -> pd.DataFrame:
        by_risk = self._by_risk()
        return by_risk.iloc[np.unique(np.linspace(0, len(by_risk) - 1, number).round().astype(int))]

    def _chosen(self) -> list[tuple[int, str]]:
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
