"""SHAP and Grad-CAM: volumes in, signed maps out. A value above 0 raises the log-hazard, one below 0 lowers it.

`explain_scan` makes every map of one scan, with the evidence for it; `explain_cohort` makes the mean SHAP map of many
subjects. `reporting.brains` writes both.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # before TensorFlow is imported: off by default without AVX-512

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from attribution.cells import upsample
from attribution.evidence import Attribution, correlation, measure_maps, randomisation, share_outside, smooth
from attribution.gradients import TracedNetwork, check_volumes, chunk_size, stage_gradient, trace_network
from attribution.regions import Regions, deletion_insertion, region_shapley, sum_by_region
from model import RESNET_STAGES

RANDOMISED = ("log_hazard", *reversed(RESNET_STAGES), "stem")  # layers from the output down
COHORT_GRADIENTS = 32  # of each subject's SHAP map, where many are averaged
Engine = Literal["expected_gradients", "shap"]


@dataclass(frozen=True)
class ExplainSettings:
    """How one scan is explained. What has no default here is a setting of `config.py`, named beside it."""

    engine: Engine  # SHAP_ENGINE: our `expected_gradients`, or shap's own GradientExplainer
    num_gradients: int  # SHAP_NSAMPLES: gradients of the SHAP map
    seed: int  # SEED: of the SHAP map, of the orders of the regions, and of the permuted weights
    layer: str  # GRAD_CAM_LAYER: the stage of Grad-CAM, `stage1` ... `stage4`
    hires_layer: str  # HIRES_CAM_LAYER: the stage of HiResCAM
    shapley_background: int = 0  # SHAPLEY_BACKGROUND: scans for the regions' Shapley values; 0: no values
    randomisation_gradients: int = 16  # gradients of each randomised network's map; 0: leave that check out


@dataclass(frozen=True)
class Space:
    """What is known of the space that the volumes lie in, on the volumes' grid."""

    voxel_mm: Sequence[float]  # (3,) size of a voxel along each axis, mm
    truth: np.ndarray | None = None  # (X, Y, Z) bool, the voxels that matter; None: unknown
    regions: Regions | None = None  # to sum the SHAP map by, and to take out and put in; None: no table of regions


# ---- SHAP ----------------------------------------------------------------------------------------------------


def expected_gradients(
    model: keras.Model,
    volume: np.ndarray,
    background: np.ndarray,
    *,
    num_gradients: int,
    seed: int,
    progress: bool = False,
) -> Attribution:
    """SHAP values of the voxels: gradients along the lines from the background to the volume.

    phi(x) = E_x' E_alpha [(x - x') * df/dx at x' + alpha (x - x')], eq. 4: x' is each background equally often, alpha
    is uniform on (0, 1). The alphas are an even grid on each background's line, and stratified over all lines together.

    Args:
        model: (B, X, Y, Z, 1) -> (B, 1) log-hazard.
        volume: (X, Y, Z, 1) float32, x.
        background: (B, X, Y, Z, 1) float32, x'; never the explained subject.
        num_gradients: in all; rounded up to a multiple of B.
        seed: the same seed gives the same map.
        progress: show a bar.
    Returns:
        The map and its errors.
    Raises:
        InputError: volumes of another shape than the model's, or no background.
    Source: Erion et al. (2021), Nat Mach Intell 3, 620, eq. 4. Checked against w * (x - mean x') on a linear model
    and against shap's GradientExplainer.
    """
    check_volumes(model, volume, background)
    rounds = -(-num_gradients // len(background))
    network = trace_network(model)
    halves = _integrate(network, volume, background, rounds=rounds, seed=seed, progress=progress)
    stability = correlation(*halves[:, volume[..., 0] != 0])
    shap_map = halves.sum(axis=0).astype(np.float32)
    return _attribution(network, volume, background, shap_map, stability, rounds * len(background))


def shap_gradients(
    model: keras.Model, volume: np.ndarray, background: np.ndarray, *, num_gradients: int, seed: int
) -> Attribution:
    """The same map from shap's own GradientExplainer, which draws x' and alpha at random.

    Args, Raises: as `expected_gradients`.
    Returns:
        The map, (X, Y, Z) log-hazard per voxel, and its errors; `stability` is unknown.
    """
    import shap  # slow to import

    check_volumes(model, volume, background)
    network = trace_network(model)
    listed = keras.Model([model.input], model.output)  # shap passes its inputs in a list
    explainer = shap.GradientExplainer(listed, background, batch_size=chunk_size(volume))
    values = explainer.shap_values(volume[None], nsamples=num_gradients, rseed=seed)  # (1, X, Y, Z, 1, 1)
    shap_map = np.asarray(values[0, ..., 0, 0], np.float32)
    return _attribution(network, volume, background, shap_map, None, num_gradients)


def shap_randomisation(
    model: keras.Model,
    volume: np.ndarray,
    background: np.ndarray,
    reference: np.ndarray,
    *,
    num_gradients: int,
    seed: int,
) -> dict[str, float]:
    """Compare a SHAP map with the SHAP maps of ever more randomised networks.

    Args:
        model: trained; its weights are put back at the end.
        volume: (X, Y, Z, 1) float32.
        background: (B, X, Y, Z, 1) float32; no more than `num_gradients` of them are used.
        reference: (X, Y, Z), the trained network's map.
        num_gradients: of each map; rounded up to a multiple of the backgrounds used.
        seed: of the permutations; the maps use the next one.
    Returns:
        Spearman correlations, -1 to 1, of `evidence.randomisation`: `trained`, then each of RANDOMISED.
    Raises:
        InputError: volumes of another shape than the model's, or no background.
    """
    check_volumes(model, volume, background)
    network, background = trace_network(model), background[:num_gradients]
    rounds = -(-num_gradients // len(background))

    def make_map() -> np.ndarray:
        return _integrate(network, volume, background, rounds=rounds, seed=seed + 1).sum(axis=0)

    return randomisation(model, make_map, reference, volume[..., 0] != 0, layers=RANDOMISED, seed=seed)


def _attribution(
    network: TracedNetwork,
    volume: np.ndarray,
    background: np.ndarray,
    shap_map: np.ndarray,
    stability: float | None,
    num_gradients: int,
) -> Attribution:
    """A SHAP map (X, Y, Z) with what it should sum to."""
    return Attribution(
        map=shap_map,
        value=float(network.predict(volume[None])[0]),
        expected=float(network.predict(background).mean()),
        outside_brain=share_outside(shap_map, volume[..., 0] != 0),
        stability=stability,
        num_gradients=num_gradients,
    )


def _integrate(
    network: TracedNetwork,
    volume: np.ndarray,
    background: np.ndarray,
    *,
    rounds: int,
    seed: int,
    progress: bool = False,
) -> np.ndarray:
    """(2, X, Y, Z) float64: what the even and the odd backgrounds contribute to the map."""
    rows, alphas = _draw_points(len(background), rounds, seed)  # (K,), (K,)
    sums = np.zeros((2, *volume.shape))
    size = chunk_size(volume)
    for start in tqdm(range(0, len(rows), size), desc="SHAP", unit="chunk", leave=False, disable=not progress):
        row, alpha = rows[start : start + size], alphas[start : start + size, None, None, None, None]
        difference = volume - background[row]  # x - x', (C, X, Y, Z, 1)
        gradient = network.gradient(background[row] + alpha * difference).numpy()  # df/dx at x' + alpha (x - x')
        for half in (0, 1):
            in_half = row % 2 == half
            sums[half] += np.einsum("c...,c...->...", gradient[in_half], difference[in_half], dtype=np.float64)
    return sums[..., 0] / len(rows)  # E over x' and alpha


def _draw_points(num_background: int, rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(K,) rows of the background, x', and (K,) alphas, the positions on their lines; K = num_background * rounds.

    Each line holds an even grid of `rounds` positions at an offset of its own; the offsets are stratified over the
    lines, so that all K positions together are stratified too.
    """
    rng = np.random.default_rng(seed)
    offset = (rng.permutation(num_background) + rng.uniform(size=num_background)) / num_background  # (B,)
    alphas = (np.arange(rounds)[:, None] + offset) / rounds  # (rounds, B)
    return np.tile(np.arange(num_background), rounds), alphas.ravel().astype(np.float32)


# ---- Grad-CAM ------------------------------------------------------------------------------------------------


def gradcam(model: keras.Model, volume: np.ndarray, layer: str) -> np.ndarray:
    """Classic Grad-CAM without its ReLU, which would erase what lowers the risk.

    Args:
        model: of `model.build_model`.
        volume: (X, Y, Z, 1) float32.
        layer: one of `stage1` ... `stage4`.
    Returns:
        (X, Y, Z) float32, log-hazard per cell: the channels' activations, each weighted by its mean gradient, summed
        and upsampled linearly. `np.maximum(map, 0)` is the published form.
    Raises:
        InputError: an unknown stage, or a volume of another shape than the model's.
    Source: Selvaraju et al. (2017), eq. 1 and 2.
    """
    activation, gradient = stage_gradient(model, volume, layer, setting="GRAD_CAM_LAYER")  # A, dy/dA
    weights = gradient.mean(axis=(0, 1, 2))  # alpha_k = mean of dy/dA^k over the cells, eq. 1; (C,)
    return _upsample(activation @ weights, volume, layer)  # sum_k alpha_k A^k, eq. 2


def hirescam(model: keras.Model, volume: np.ndarray, layer: str) -> np.ndarray:
    """Signed HiResCAM: each cell is weighted by its own gradient, so that the map shows what the network computed.

    Args, Raises: as `gradcam`.
    Returns:
        (X, Y, Z) float32, log-hazard per cell: activation times gradient, summed over channels and upsampled linearly.
        At `stage4`, under global average pooling and a linear output, the cells sum to the log-hazard, and Grad-CAM is
        the same map.
    Source: Draelos and Carin (2020), arXiv 2011.08891, eq. 3.
    """
    activation, gradient = stage_gradient(model, volume, layer, setting="HIRES_CAM_LAYER")  # A, dy/dA
    return _upsample((activation * gradient).sum(axis=-1), volume, layer)  # sum_k dy/dA^k * A^k, eq. 3


def _upsample(cells: np.ndarray, volume: np.ndarray, layer: str) -> np.ndarray:
    """(x, y, z) cells of a stage to (X, Y, Z) float32."""
    return upsample(cells, volume.shape[:3], RESNET_STAGES.index(layer) + 1)


# ---- One scan, with every map and the evidence for it -----------------------------------------------------------


class Explanation(TypedDict):
    """What `explain_scan` returns and `reporting.brains.save_explanation` writes."""

    volume: np.ndarray  # (X, Y, Z) float32 as the network saw it
    maps: dict[str, np.ndarray]  # (X, Y, Z) float32 signed: shap, gradcam, hirescam
    origin: dict[str, str]  # of each map: the method in words, with its resolution
    regions: pd.DataFrame | None  # regions.csv: of `regions.sum_by_region`, with `shapley` where it was asked for
    metrics: dict[str, Any]  # explain/<imageid>/metrics.json


def explain_scan(
    model: keras.Model, volume: np.ndarray, background: np.ndarray, settings: ExplainSettings, space: Space
) -> Explanation:
    """Every map of one scan, with the evidence for it.

    Args:
        model: of `model.build_model`, trained.
        volume: (X, Y, Z, 1) float32, 0 outside the brain.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        settings: which maps are made, how exactly, and how they are tested.
        space: voxel size in mm, and the truth and the regions if there are any.
    Returns:
        The maps and the metrics of `explain/<imageid>/metrics.json`.
    Raises:
        InputError: an unknown stage, or volumes of another shape than the model's.
    """
    engine = shap_gradients if settings.engine == "shap" else expected_gradients
    attribution = engine(model, volume, background, num_gradients=settings.num_gradients, seed=settings.seed)
    maps = {
        "shap": attribution.map,
        "gradcam": gradcam(model, volume, settings.layer),
        "hirescam": hirescam(model, volume, settings.hires_layer),
    }
    metrics = measure_maps(attribution, maps, volume[..., 0] != 0, space.truth, space.voxel_mm)
    metrics["shap"]["engine"] = settings.engine
    metrics["gradcam"]["layer"], metrics["hirescam"]["layer"] = settings.layer, settings.hires_layer
    if num_gradients := settings.randomisation_gradients:
        metrics["randomisation"] = shap_randomisation(
            model, volume, background, attribution.map, num_gradients=num_gradients, seed=settings.seed
        )
    table = None
    if space.regions is not None:
        table, scores = _explain_regions(model, volume, background, attribution.map, space.regions, settings)
        metrics["shap"] |= scores
    origin = {
        "shap": f"SHAP, {attribution.num_gradients} gradients against {len(background)} scans",
        "gradcam": f"Grad-CAM, {settings.layer}, {_resolution(model, settings.layer)}",
        "hirescam": f"HiResCAM, {settings.hires_layer}, {_resolution(model, settings.hires_layer)}",
    }
    return {"volume": volume[..., 0], "maps": maps, "origin": origin, "regions": table, "metrics": metrics}


def _explain_regions(
    model: keras.Model,
    volume: np.ndarray,
    background: np.ndarray,
    shap_map: np.ndarray,
    regions: Regions,
    settings: ExplainSettings,
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """The map's sums by region, with Shapley values if asked for; what deletion and insertion by region give."""
    predict, table = trace_network(model).predict, sum_by_region(shap_map, regions)
    sums, seed = table.set_index("label")["attribution"], settings.seed
    scores = deletion_insertion(predict, volume, background.mean(axis=0), regions, sums, seed=seed)
    if settings.shapley_background:
        shapley = region_shapley(predict, volume, background[: settings.shapley_background], regions, seed=seed)
        table["shapley"] = table["label"].map(shapley)
    return table, scores


def _resolution(model: keras.Model, layer: str) -> str:
    return "x".join(str(n) for n in model.get_layer(layer).output.shape[1:4]) + " cells"


# ---- Many subjects -------------------------------------------------------------------------------------------


class CohortExplanation(TypedDict):
    """What `explain_cohort` returns and `reporting.brains.save_cohort` writes."""

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
    seed: int,
    num_gradients: int = COHORT_GRADIENTS,
) -> CohortExplanation:
    """The mean SHAP map of many subjects, and where their maps agree in sign.

    Args:
        model: of `model.build_model`, trained.
        scans: of each subject its id and one volume (X, Y, Z, 1) float32, all in one space; read one at a time.
        background: (B, X, Y, Z, 1) float32, scans of other subjects.
        voxel_mm: (3,) size of a voxel along each axis, mm.
        regions: by which each subject's map is summed.
        seed: of the maps.
        num_gradients: a subject.
    Returns:
        Maps that are smoothed before they are averaged or their signs counted: neither is about single voxels.
    Raises:
        ValueError: no subject.
    """
    shape = model.input_shape[1:4]
    volume, mean, signs = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    tables = {}
    for subject, scan in scans:
        shap_map = expected_gradients(model, scan, background, num_gradients=num_gradients, seed=seed).map
        tables[subject] = sum_by_region(shap_map, regions)
        smoothed = smooth(shap_map, voxel_mm) * (scan[..., 0] != 0)
        volume, mean, signs = volume + scan[..., 0], mean + smoothed, signs + np.sign(smoothed)
    if not tables:
        raise ValueError("scans: expected at least one subject")
    volume, mean, signs = (np.asarray(total / len(tables), np.float32) for total in (volume, mean, signs))
    return {"volume": volume, "mean": mean, "consistency": signs, "num_subjects": len(tables), "tables": tables}
