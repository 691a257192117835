"""Where progress is read: the map's weights times the mean change of the training brains, with the evidence for it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attribution.evidence import SMOOTHING_MM, correlation, localisation, share_outside, smooth
from attribution.regions import Regions, sum_by_region
from data import Cohort, load_volume
from reporting.brains import write_mosaic, write_nifti
from reporting.scene import make_scene
from runs.files import write_json, written_whole

if TYPE_CHECKING:
    from training.progress import ProgressMap

UNIT = "years of progress a year, per voxel"
TITLE = f"Where progress is read: weights times the mean change of the training subjects, smoothed {SMOOTHING_MM:g} mm"
SIGN = "Red adds to the mean rate, blue takes from it"

NUM_SHUFFLES = 100

logger = logging.getLogger(__name__)


def write_progress_map(folder: Path, cohort: Cohort, progress: "ProgressMap", regions: Regions, *, seed: int) -> None:
    """Write where progress is read, unless it is there already.

    Args:
        folder: made if need be; gets `map.nii.gz`, the weights times the mean change a year, which sums to the training
            subjects' mean rate; `weights.nii.gz`; `map.png`; `regions.csv`; and last `metrics.json`.
        cohort: of the run; its volumes are (X, Y, Z) voxels of `cohort.cache.grid`.
        progress: the map, of the training part of this cohort.
        regions: on the same grid.
        seed: of the shuffled visit times.
    """
    from training.progress import fit_progress

    if (folder / "metrics.json").exists():
        return
    train, grid, weights = cohort.parts["train"], cohort.cache.grid, progress.weights
    mean, change = _mean_change(train)
    values = weights * change
    for name, array, unit in (("map", values, UNIT), ("weights", weights, "years of progress by z-score")):
        about = ("years/year/voxel" if name == "map" else "years/z-score", f"{name} of progress: {unit}")
        write_nifti(folder / f"{name}.nii.gz", array, grid.affine, native=grid, about=about)
    scene = make_scene(mean, smooth(values, grid.voxel_mm), grid.affine, unit=UNIT)
    write_mosaic(folder / "map.png", scene, TITLE, SIGN)
    with written_whole(folder / "regions.csv") as part:
        sum_by_region(values, regions).to_csv(part, index=False)
    logger.info("progress is learned once more, with shuffled visit times: it should explain next to nothing then")
    shuffled = fit_progress(_shuffle_visits(train, np.random.default_rng(seed)), tell=False)
    write_json(folder / "metrics.json", _evidence(progress, shuffled, change, mean != 0, cohort))


def _mean_change(train: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The mean volume (X, Y, Z) of the training scans, and the change a year about each subject's own mean."""
    centred = train["visit_time"] - train.groupby("subject")["visit_time"].transform("mean")
    mean, change = np.zeros((2, *load_volume(train["cache_entry"].iloc[0]).shape[:3]))
    for entry, years in zip(train["cache_entry"], centred, strict=True):
        volume = load_volume(entry)[..., 0]
        mean += volume
        change += years * volume
    return mean / len(train), change / float((centred**2).sum())


def _shuffle_visits(train: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The same scans, sorted by subject, with the visit times of each subject in another order.

    Of NUM_SHUFFLES orders the one is taken that has least to do with the true order over all subjects: in a small
    cohort, a single one often keeps some of it.
    """
    subject, years = pd.factorize(train["subject"])[0], train["visit_time"].to_numpy(float)
    centred = (years - train.groupby("subject")["visit_time"].transform("mean")).to_numpy()
    orders = [np.lexsort((rng.random(len(years)), subject)) for _ in range(NUM_SHUFFLES)]
    best = min(orders, key=lambda order: abs(centred @ centred[order]))
    return train.assign(visit_time=years[best])


def _evidence(
    progress: "ProgressMap", shuffled: "ProgressMap", change: np.ndarray, brain: np.ndarray, cohort: Cohort
) -> dict[str, Any]:
    """Measures of the map, of its two factors, and of the map that was learned from shuffled visit times.

    Returns:
        `map`, `weights`, `change`, `shuffled`: `localisation` of each, smoothed, where the truth is known. Of the map,
        `sum` (the mean rate, years a year) and the share `outside_brain`; of `weights` and `shuffled`, which share of a
        left-out subject's years between visits they explain. Of `shuffled`, the weights and `map_localisation`, of
        their product with the mean change; and `correlation` with the weights.
    """
    values, other = progress.weights * change, shuffled.weights * change
    evidence: dict[str, Any] = {
        "map": {"sum": float(values.sum()), "outside_brain": share_outside(values, brain)},
        "weights": {"explained": 1 - progress.error},
        "change": {},
        "shuffled": {
            "sum": float(other.sum()),
            "explained": 1 - shuffled.error,
            "correlation": correlation(progress.weights[brain], shuffled.weights[brain]),
        },
    }
    truth, voxel_mm = cohort.truth(), cohort.cache.grid.voxel_mm
    if truth is not None:
        maps = {"map": values, "weights": progress.weights, "change": change, "shuffled": shuffled.weights}
        for name, array in maps.items():
            evidence[name]["localisation"] = localisation(smooth(array, voxel_mm), truth, brain, voxel_mm)
        of_product = localisation(smooth(other, voxel_mm), truth, brain, voxel_mm)
        evidence["shuffled"]["map_localisation"] = of_product
    return evidence
