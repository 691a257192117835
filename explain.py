"""One scan explained: every map with the evidence that it shows what the network uses. `pictures.py` saves it."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

import keras
import numpy as np
import pandas as pd

from attribution import Attribution, expected_gradients, gradcam, hirescam, randomisation, shap_gradients
from evidence import localisation, share_outside, smooth
from gradients import compiled
from regions import Regions, deletion_insertion, region_shapley, sum_by_region

Engine = Literal["expected_gradients", "shap"]


class Explanation(TypedDict):
    """What `explain_scan` returns and `pictures.save_explanation` writes."""

    volume: np.ndarray  # (X, Y, Z) float32 as the network saw it
    maps: dict[str, np.ndarray]  # (X, Y, Z) float32 signed: shap, gradcam, hirescam
    origin: dict[str, str]  # of each map: the method in words, with its resolution
    regions: pd.DataFrame | None  # regions.csv: of `regions.sum_by_region`, with `shapley` where it was asked for
    metrics: dict[str, Any]  # explain/<imageid>/metrics.json


def explain_scan(
    model: keras.Model,
    volume: np.ndarray,
    background: np.ndarray,
    *,
    engine: Engine = "expected_gradients",
    steps: int = 128,
    seed: int = 0,
    layer: str = "stage4",
    hires_layer: str = "stage2",
    voxel_mm: Sequence[float] = (1.0, 1.0, 1.0),
    truth: np.ndarray | None = None,
    regions: Regions | None = None,
    shapley_background: int = 0,
    randomisation_steps: int = 16,
    progress: bool = False,
) -> Explanation:
    """Every map of one scan, with the evidence for it.

    Args:
        model: of `model.build_model`, trained.
        volume: (X, Y, Z, 1) float32, 0 outside the brain.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        engine: our `expected_gradients`, or shap's own GradientExplainer.
        steps: gradients of the SHAP map.
        seed: of the SHAP map and of the randomised networks.
        layer: the stage of the classic Grad-CAM.
        hires_layer: the stage of HiResCAM.
        voxel_mm: size of a voxel along each axis.
        truth: (X, Y, Z) bool, where an explanation must point, if that is known.
        regions: by which the SHAP map is summed, and taken out and put back.
        shapley_background: so many of the background for the regions' Shapley values, 2 passes a region each; 0: none.
        randomisation_steps: gradients of each randomised network's map; 0: leave that test out.
        progress: show a bar of the SHAP map's gradients.
    Returns:
        The maps and the metrics of `explain/<imageid>/metrics.json`.
    Raises:
        InputError: an unknown stage, or volumes of another shape than the model's.
    """
    if engine == "shap":
        attribution = shap_gradients(model, volume, background, steps=steps, seed=seed)
    else:
        attribution = expected_gradients(model, volume, background, steps=steps, seed=seed, progress=progress)
    maps = {
        "shap": attribution.map,
        "gradcam": gradcam(model, volume, layer),
        "hirescam": hirescam(model, volume, hires_layer),
    }
    metrics = _measure(attribution, maps, volume[..., 0] != 0, truth, voxel_mm)
    metrics["shap"]["engine"] = engine
    metrics["gradcam"]["layer"], metrics["hirescam"]["layer"] = layer, hires_layer
    if randomisation_steps:
        metrics["randomisation"] = randomisation(
            model, volume, background, attribution.map, steps=randomisation_steps, seed=seed
        )
    table = None
    if regions is not None:
        predict, table = compiled(model).predict, sum_by_region(attribution.map, regions)
        scores = table.set_index("label")["attribution"]
        metrics["shap"] |= deletion_insertion(predict, volume, background.mean(axis=0), regions, scores, seed=seed)
        if shapley_background:
            shapley = region_shapley(predict, volume, background[:shapley_background], regions, seed=seed)
            table["shapley"] = table["label"].map(shapley)
    origin = {
        "shap": f"SHAP, {attribution.num_gradients} gradients against {len(background)} scans",
        "gradcam": f"Grad-CAM, {layer}, {_resolution(model, layer)}",
        "hirescam": f"HiResCAM, {hires_layer}, {_resolution(model, hires_layer)}",
    }
    return {"volume": volume[..., 0], "maps": maps, "origin": origin, "regions": table, "metrics": metrics}


def _measure(
    attribution: Attribution,
    maps: dict[str, np.ndarray],
    brain: np.ndarray,
    truth: np.ndarray | None,
    voxel_mm: Sequence[float],
) -> dict[str, Any]:
    """What each map alone says of itself; the SHAP map is smoothed before it is held against the truth."""
    metrics: dict[str, Any] = {name: {"outside_brain": share_outside(values, brain)} for name, values in maps.items()}
    metrics["shap"] |= {
        "num_gradients": attribution.num_gradients,
        "log_hazard": attribution.value,
        "expected_log_hazard": attribution.expected,
        "completeness_error": attribution.completeness_error if attribution.gap else None,
        "stability": attribution.stability,
    }
    if truth is not None:
        for name, values in (maps | {"shap": smooth(attribution.map, voxel_mm)}).items():
            metrics[name]["localisation"] = localisation(values, truth, brain, voxel_mm)
    return metrics


class Cohort(TypedDict):
    """What `explain_cohort` returns and `pictures.save_cohort` writes."""

    volume: np.ndarray  # (X, Y, Z) float32, the mean of the explained scans
    mean: np.ndarray  # (X, Y, Z) float32, log-hazard per voxel
    consistency: np.ndarray  # (X, Y, Z) float32, -1 ... 1: share of subjects above 0 less the share below
    num_subjects: int
    tables: dict[str, pd.DataFrame]  # of each subject, by region


def explain_cohort(
    model: keras.Model,
    scans: Iterable[tuple[str, np.ndarray]],
    background: np.ndarray,
    *,
    voxel_mm: Sequence[float],
    regions: Regions,
    steps: int = 32,
    seed: int = 0,
) -> Cohort:
    """The mean SHAP map of many subjects, and where their maps agree in sign.

    Args:
        model: of `model.build_model`, trained.
        scans: of each subject its id and one volume (X, Y, Z, 1) float32, all in one space; read one at a time.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        voxel_mm: size of a voxel along each axis.
        regions: by which each subject's map is summed.
        steps: gradients a subject.
        seed: of the maps.
    Returns:
        Maps smoothed before they are averaged or their signs counted: neither is about single voxels.
    Raises:
        ValueError: no subject.
    """
    shape = model.input_shape[1:4]
    volume, mean, signs = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    tables = {}
    for subject, scan in scans:
        found = expected_gradients(model, scan, background, steps=steps, seed=seed).map
        tables[subject] = sum_by_region(found, regions)
        smoothed = smooth(found, voxel_mm) * (scan[..., 0] != 0)
        volume, mean, signs = volume + scan[..., 0], mean + smoothed, signs + np.sign(smoothed)
    if not tables:
        raise ValueError("scans: expected at least one subject")
    volume, mean, signs = (np.asarray(total / len(tables), np.float32) for total in (volume, mean, signs))
    return {"volume": volume, "mean": mean, "consistency": signs, "num_subjects": len(tables), "tables": tables}


def _resolution(model: keras.Model, layer: str) -> str:
    return "x".join(str(n) for n in model.get_layer(layer).output.shape[1:4]) + " cells"
