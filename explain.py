"""One scan explained: every map with the evidence that it shows what the network uses. `pictures.py` saves it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import keras
import numpy as np
import pandas as pd
from scipy import ndimage, stats
from tqdm import tqdm

from attribution.evidence import correlation, localisation, share_outside, smooth
from attribution.gradients import Gradients, chunk_size, compiled
from attribution.regions import Regions, deletion_insertion, region_shapley, sum_by_region
from model import STAGES
from runs.errors import InputError

RANDOMISED = ("log_hazard", *reversed(STAGES), "stem")  # top down, each with all above it


@dataclass(frozen=True)
class Attribution:
    """A SHAP map and what it says of its own error."""

    map: np.ndarray  # (X, Y, Z) float32, log-hazard per voxel; sums to about value - expected
    value: float  # f(volume)
    expected: float  # mean of f over the background
    outside_brain: float  # share of |map| on voxels that are 0 in the volume
    stability: float | None  # correlation of the maps from two disjoint halves of the background; None: unknown
    num_gradients: int

    @property
    def gap(self) -> float:
        """What the map should sum to: f(volume) - mean f(background)."""
        return self.value - self.expected

    @property
    def completeness_error(self) -> float:
        """|sum of the map - gap| as a share of |gap|; infinite if the gap is 0."""
        missed = abs(float(self.map.sum(dtype=np.float64)) - self.gap)
        return missed / abs(self.gap) if self.gap != 0 else float("inf")


# ---- SHAP ----------------------------------------------------------------------------------------------


def expected_gradients(
    model: keras.Model,
    volume: np.ndarray,
    background: np.ndarray,
    *,
    steps: int,
    seed: int = 0,
    progress: bool = False,
) -> Attribution:
    """SHAP values of the voxels: gradients along the lines from the background to the volume.

    phi = E_b E_a [(x - b) * df/dx at b + a (x - b)], with b each background equally often and a uniform on (0, 1).
    The positions a are an even grid on each background's line, and stratified over all lines together.

    Args:
        model: (B, X, Y, Z, 1) -> (B, 1).
        volume: (X, Y, Z, 1) float32.
        background: (B, X, Y, Z, 1) float32; never the explained subject.
        steps: gradients in all, rounded up to a multiple of the backgrounds.
        seed: the same seed gives the same map.
        progress: show a bar.
    Returns:
        The map and its errors.
    Raises:
        InputError: volumes of another shape than the model's, or no background.
    Source: Erion et al. (2021), Nat Mach Intell 3, 620, eq. 4. Checked against w * (x - mean b) on a linear model
    and against shap's GradientExplainer.
    """
    _check_volumes(model, volume, background)
    network = compiled(model)
    rounds = -(-steps // len(background))
    halves = _integrate(network, volume, background, rounds=rounds, seed=seed, progress=progress)
    brain = volume[..., 0] != 0
    values = halves.sum(axis=0).astype(np.float32)
    return Attribution(
        map=values,
        value=float(network.predict(volume[None])[0]),
        expected=float(network.predict(background).mean()),
        outside_brain=share_outside(values, brain),
        stability=correlation(*halves[:, brain]),
        num_gradients=rounds * len(background),
    )


def shap_gradients(
    model: keras.Model, volume: np.ndarray, background: np.ndarray, *, steps: int, seed: int = 0
) -> Attribution:
    """The same map from shap's own GradientExplainer, which draws backgrounds and positions at random.

    Args, Returns, Raises: as `expected_gradients`; `stability` is unknown.
    """
    import shap  # slow to import

    _check_volumes(model, volume, background)
    network = compiled(model)
    listed = keras.Model([model.input], model.output)  # shap hands its inputs over in a list
    explainer = shap.GradientExplainer(listed, background, batch_size=chunk_size(volume))
    values = explainer.shap_values(volume[None], nsamples=steps, rseed=seed)  # (1, X, Y, Z, 1, 1)
    values = np.asarray(values[0, ..., 0, 0], np.float32)
    return Attribution(
        map=values,
        value=float(network.predict(volume[None])[0]),
        expected=float(network.predict(background).mean()),
        outside_brain=share_outside(values, volume[..., 0] != 0),
        stability=None,
        num_gradients=steps,
    )


def _integrate(
    network: Gradients, volume: np.ndarray, background: np.ndarray, *, rounds: int, seed: int, progress: bool = False
) -> np.ndarray:
    """(2, X, Y, Z) float64: what the even and the odd backgrounds contribute to the map."""
    row, position = _draw_points(len(background), rounds, seed)  # (K,), (K,)
    sums = np.zeros((2, *volume.shape))
    size = chunk_size(volume)
    for start in tqdm(range(0, len(row), size), desc="SHAP", unit="chunk", leave=False, disable=not progress):
        rows, a = row[start : start + size], position[start : start + size, None, None, None, None]
        difference = volume - background[rows]  # (C, X, Y, Z, 1)
        gradient = network.gradient(background[rows] + a * difference).numpy()
        for half in (0, 1):
            of_half = rows % 2 == half
            sums[half] += np.einsum("c...,c...->...", gradient[of_half], difference[of_half], dtype=np.float64)
    return sums[..., 0] / len(row)


def _draw_points(num_background: int, rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(K,) row of the background and (K,) position on its line, K = num_background * rounds.

    Each line holds an even grid of `rounds` positions at an offset of its own; the offsets are stratified over the
    lines, so that all K positions together are stratified too.
    """
    rng = np.random.default_rng(seed)
    offset = (rng.permutation(num_background) + rng.uniform(size=num_background)) / num_background  # (B,)
    position = (np.arange(rounds)[:, None] + offset) / rounds  # (rounds, B)
    return np.tile(np.arange(num_background), rounds), position.ravel().astype(np.float32)


# ---- Grad-CAM --------------------------------------------------------------------------------------------


def gradcam(model: keras.Model, volume: np.ndarray, layer: str) -> np.ndarray:
    """Classic Grad-CAM without its ReLU, which would erase what lowers the risk.

    Args:
        model: of `model.build_model`.
        volume: (X, Y, Z, 1) float32.
        layer: one of `stage1` ... `stage4`.
    Returns:
        (X, Y, Z) float32: sum over channels of activation times the channel's mean gradient, upsampled linearly.
        `np.maximum(map, 0)` is the published form.
    Raises:
        InputError: an unknown stage, or a volume of another shape than the model's.
    Source: Selvaraju et al. (2017), eq. 1 and 2.
    """
    activation, gradient = stage_gradient(model, volume, layer)
    return _upsample(activation @ gradient.mean(axis=(0, 1, 2)), volume.shape[:3], layer)


def hirescam(model: keras.Model, volume: np.ndarray, layer: str) -> np.ndarray:
    """Signed HiResCAM: each cell by its own gradient, so that the map shows what the network computed.

    Args, Raises: as `gradcam`.
    Returns:
        (X, Y, Z) float32: sum over channels of activation times gradient, upsampled linearly. At `stage4`, under
        global average pooling and a linear output, the cells sum to the log-hazard, and Grad-CAM is the same map.
    Source: Draelos and Carin (2020), arXiv 2011.08891, eq. 3.
    """
    activation, gradient = stage_gradient(model, volume, layer)
    return _upsample((activation * gradient).sum(axis=-1), volume.shape[:3], layer)


def stage_gradient(model: keras.Model, volume: np.ndarray, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """A stage's activation and the log-hazard's gradient there: two (x, y, z, C) float32.

    Raises:
        InputError: an unknown stage, or a volume of another shape than the model's.
    """
    if layer not in STAGES:
        raise InputError(f"GRAD_CAM_LAYER: expected one of {', '.join(STAGES)}. Received: {layer!r}")
    _check_volumes(model, volume, volume[None])
    activation, gradient = compiled(model).stages(volume[None])[layer]
    return activation.numpy()[0].astype(np.float32), gradient.numpy()[0].astype(np.float32)


def _upsample(cells: np.ndarray, shape: Sequence[int], layer: str) -> np.ndarray:
    """(x, y, z) cells to (X, Y, Z) float32, linearly between the cells' centres; held beyond the outermost ones."""
    at = [_cell_at(size, layer) for size in shape]
    return ndimage.map_coordinates(cells, np.meshgrid(*at, indexing="ij"), output=np.float32, order=1, mode="nearest")


def _cell_at(size: int, layer: str) -> np.ndarray:
    """(size,) where each voxel of an axis lies among a stage's cells, by the centre of what a cell looks at.

    Padding `same` moves that centre, and a block's convolution and its shortcut do not agree on it: their mean is
    taken. HiResCAM's AUC and mass over chance, mean of 5 networks by 20 simulated scans, against cells placed at the
    middle of the voxels that they cover: stage 1 .79 and 4.9 (.82, 5.4), stage 2 .83 and 3.1 (.82, 2.7), stage 3 .80
    and 1.8 (.78, 1.8).
    """
    cells, stride, first = size, 1, np.float64(0)
    for kernels in ((7,), (3,), *[(3, 1)] * STAGES.index(layer)):  # stem, max-pool, then a block's two paths
        out = -(-cells // 2)
        margins = [max((out - 1) * 2 + kernel - cells, 0) // 2 for kernel in kernels]
        first += stride * np.mean([(kernel - 1) / 2 - margin for kernel, margin in zip(kernels, margins, strict=True)])
        cells, stride = out, 2 * stride
    return (np.arange(size) - first) / stride


# ---- Is it the network, or only the image? ----------------------------------------------------------------------


def randomisation(
    model: keras.Model, volume: np.ndarray, background: np.ndarray, reference: np.ndarray, *, steps: int, seed: int = 0
) -> dict[str, float]:
    """Spearman correlation with `reference` of the SHAP maps of ever more randomised networks.

    From the output down to the stem, each layer's weights are permuted at random, with all above it. A map that hardly
    changes shows the image, not what the network learned.

    Args:
        model: trained; its weights are put back at the end.
        volume: (X, Y, Z, 1) float32.
        background: (B, X, Y, Z, 1) float32.
        reference: (X, Y, Z) the trained network's map.
        steps: gradients a map.
        seed: of the permutations.
    Returns:
        A correlation of the signed maps inside the brain: `trained`, what the map's own noise leaves of 1, then each
        of RANDOMISED, top down. 0 where a map is constant.
    Source: Adebayo et al. (2018), arXiv 1810.03292, cascading randomisation.
    """
    _check_volumes(model, volume, background)
    network, background = compiled(model), background[:steps]
    rounds = -(-steps // len(background))
    rng = np.random.default_rng(seed)
    brain = volume[..., 0] != 0

    def likeness() -> float:
        values = _integrate(network, volume, background, rounds=rounds, seed=seed + 1).sum(axis=0)[brain]
        constant = np.ptp(values) == 0 or np.ptp(reference[brain]) == 0
        return 0.0 if constant else float(stats.spearmanr(values, reference[brain]).statistic)

    curve = {"trained": likeness()}
    trained = model.get_weights()
    try:
        for name in RANDOMISED:
            _permute(model, name, rng)
            curve[name] = likeness()
    finally:
        model.set_weights(trained)  # the network itself was permuted: a copy would be traced anew
    return curve


def _permute(model: keras.Model, name: str, rng: np.random.Generator) -> None:
    """Shuffle each weight of the layers called `name` or `name_...`."""
    for layer in model.layers:
        if layer.name == name or layer.name.startswith(f"{name}_"):
            weights = layer.get_weights()
            layer.set_weights([rng.permutation(weight.ravel()).reshape(weight.shape) for weight in weights])


def _check_volumes(model: keras.Model, volume: np.ndarray, background: np.ndarray) -> None:
    wanted = tuple(model.input_shape[1:])
    if tuple(volume.shape) != wanted or tuple(background.shape[1:]) != wanted or len(background) == 0:
        raise InputError(
            f"Explanation: expected a volume {wanted} as the model was trained on, and at least one such volume as "
            f"background. Received: {tuple(volume.shape)} and {tuple(background.shape)}. Set TARGET_SHAPE as trained."
        )


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


class CohortExplanation(TypedDict):
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
) -> CohortExplanation:
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
