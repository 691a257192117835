"""Evidence and sanity checks: what speaks for or against a map. NumPy alone: a network comes as an argument."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import ndimage, stats

SMOOTHING_MM = 8.0  # full width at half maximum of the Gaussian over a voxel map that is drawn or compared with truth
LEAST_GAP = 1e-5  # of two log-hazards, as a share of the larger or of 1: less is float32's rounding in the network
NO_GAP = "the log-hazard is that of the background: there is nothing to explain"


@dataclass(frozen=True)
class Attribution:
    """A SHAP map with the figures that tell its error."""

    map: np.ndarray  # (X, Y, Z) float32, log-hazard per voxel; sums to about value - expected
    value: float  # f(x), the log-hazard of the volume
    expected: float  # E f(x'), the mean log-hazard of the background
    outside_brain: float  # share of |map| on voxels that are 0 in the volume
    stability: float | None  # correlation of the maps from two disjoint halves of the background; None: unknown
    num_gradients: int

    @property
    def gap(self) -> float:
        """What the map should sum to: f(x) - E f(x'), log-hazard."""
        return self.value - self.expected

    @property
    def completeness_error(self) -> float | None:
        """|sum of the map - gap| as a share of |gap|; None if there is no gap."""
        if not has_gap(self.value, self.expected):
            return None
        return abs(float(self.map.sum(dtype=np.float64)) - self.gap) / abs(self.gap)


def has_gap(value: float, expected: float) -> bool:
    """Whether two log-hazards differ by more than the network's rounding, so that shares of the gap mean something.

    Args:
        value: of a volume, log-hazard.
        expected: of what it is compared with, log-hazard.
    """
    return abs(value - expected) > LEAST_GAP * max(abs(value), abs(expected), 1.0)


# ---- Measures of a map alone ---------------------------------------------------------------------------------


def share_outside(values: np.ndarray, brain: np.ndarray) -> float:
    """Share of |map| outside the brain.

    Args:
        values: (X, Y, Z) signed map.
        brain: (X, Y, Z) bool.
    Returns:
        0 to 1; 0 for a map of zeros.
    """
    mass = np.abs(values, dtype=np.float64)
    return float(mass[~brain].sum() / total) if (total := mass.sum()) > 0 else 0.0


def smooth(values: np.ndarray, voxel_mm: Sequence[float], fwhm: float = SMOOTHING_MM) -> np.ndarray:
    """Smooth a signed map with a Gaussian: neighbours of opposite sign cancel, as noise does.

    Args:
        values: (X, Y, Z) map.
        voxel_mm: (3,) size of a voxel along each axis, mm.
        fwhm: full width at half maximum, mm.
    Returns:
        (X, Y, Z) float32.
    """
    sigma = fwhm / np.sqrt(8 * np.log(2)) / np.asarray(voxel_mm, float)  # in voxels
    return ndimage.gaussian_filter(np.asarray(values, np.float32), sigma, mode="constant")


def localisation(
    values: np.ndarray, truth: np.ndarray, brain: np.ndarray, voxel_mm: Sequence[float]
) -> dict[str, float | None]:
    """How well |map| finds the voxels that are known to matter.

    Args:
        values: (X, Y, Z) map, smoothed if it is a voxel map.
        truth: (X, Y, Z) bool: the voxels that matter.
        brain: (X, Y, Z) bool; voxels outside are left out.
        voxel_mm: (3,) size of a voxel along each axis, mm.
    Returns:
        `auc` of |map| for truth against the rest of the brain; `enrichment`, the share of |map| in the truth divided
        by the truth's share of the brain; `peak_mm` from the largest |map| to the nearest true voxel, 0 within it. The
        last two are None for a map of zeros.
    Raises:
        ValueError: the truth is empty or all of the brain.
    Source: the AUC is Mann and Whitney's U / (n1 n0). Checked against scikit-learn.
    """
    inside = truth[brain]  # (P,) bool
    if not inside.any() or inside.all():
        raise ValueError("truth: expected some but not all voxels of the brain")
    mass = np.abs(values[brain], dtype=np.float64)  # (P,)
    num_true, num_other = np.count_nonzero(inside), np.count_nonzero(~inside)  # n1, n0
    ranks = stats.rankdata(mass)
    auc = (ranks[inside].sum() - num_true * (num_true + 1) / 2) / (num_true * num_other)
    distance = ndimage.distance_transform_edt(~(truth & brain), sampling=voxel_mm)  # (X, Y, Z) mm
    return {
        "auc": float(auc),
        "enrichment": float(mass[inside].sum() / mass.sum() / inside.mean()) if mass.any() else None,
        "peak_mm": float(distance[brain][mass.argmax()]) if mass.any() else None,
    }


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of two maps, (P,) each; None if either is constant."""
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else None


def measure_maps(
    attribution: Attribution,
    maps: Mapping[str, np.ndarray],
    brain: np.ndarray,
    truth: np.ndarray | None,
    voxel_mm: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """Measure every map of one scan.

    Args:
        attribution: the SHAP map, with its errors.
        maps: (X, Y, Z) signed, by name; `shap` is that map.
        brain: (X, Y, Z) bool.
        truth: (X, Y, Z) bool, the voxels that matter; None: unknown.
        voxel_mm: (3,) size of a voxel along each axis, mm.
    Returns:
        By map, then by measure, as in `explain/<imageid>/metrics.json`. Before it is compared with the truth, the SHAP
        map is smoothed. `completeness_error` is None if there is no gap; `why` says so.
    """
    metrics: dict[str, dict[str, Any]] = {
        name: {"outside_brain": share_outside(values, brain)} for name, values in maps.items()
    }
    metrics["shap"] |= {
        "num_gradients": attribution.num_gradients,
        "log_hazard": attribution.value,
        "expected_log_hazard": attribution.expected,
        "completeness_error": attribution.completeness_error,
        "stability": attribution.stability,
    }
    if attribution.completeness_error is None:
        metrics["shap"]["why"] = NO_GAP
    if truth is not None:
        for name, values in {**maps, "shap": smooth(attribution.map, voxel_mm)}.items():
            metrics[name]["localisation"] = localisation(values, truth, brain, voxel_mm)
    return metrics


# ---- Does the map show the network, or only the image? --------------------------------------------------------


class HasWeights(Protocol):
    """Weights that can be read and set."""

    def get_weights(self) -> list[np.ndarray]:
        """Copies of all the weights, arrays of any shape."""

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Replace all the weights by arrays of the same shapes."""


class Layer(HasWeights, Protocol):
    """A layer with a name, such as Keras has."""

    @property
    def name(self) -> str:
        """The layer's name."""


class Network(HasWeights, Protocol):
    """A network with layers: a `keras.Model` is one."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Its layers, in any order."""


def randomisation(
    network: Network,
    make_map: Callable[[], np.ndarray],
    reference: np.ndarray,
    brain: np.ndarray,
    *,
    layers: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """Compare a map with the maps of the same network, randomised layer by layer from the output down.

    At each step the weights of one more layer are permuted; those above it stay permuted. A map that hardly changes
    shows the image, not what the network learned.

    Args:
        network: trained; its weights are put back at the end, after an error too.
        make_map: () -> (X, Y, Z), the map of `network` with the weights that it has when called.
        reference: (X, Y, Z), the trained network's map.
        brain: (X, Y, Z) bool; the maps are compared inside it.
        layers: names from the output down; `stem` stands for all layers called `stem` or `stem_...`.
        seed: of the permutations.
    Returns:
        Spearman correlations of the signed maps, -1 to 1: `trained`, which is below 1 only by the map's own noise,
        then each of `layers`. 0 where a map is constant.
    Source: Adebayo et al. (2018), arXiv 1810.03292, cascading randomisation.
    """
    rng = np.random.default_rng(seed)
    curve = {"trained": _rank_correlation(make_map()[brain], reference[brain])}
    trained = network.get_weights()
    try:
        for name in layers:
            _permute_weights(network, name, rng)
            curve[name] = _rank_correlation(make_map()[brain], reference[brain])
    finally:
        network.set_weights(trained)  # the network itself was permuted: a copy would have to be traced again
    return curve


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two maps, (P,) each; 0 if either is constant."""
    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    return 0.0 if constant else float(stats.spearmanr(first, second).statistic)


def _permute_weights(network: Network, name: str, rng: np.random.Generator) -> None:
    """Shuffle each array of weights of the layers called `name` or `name_...`."""
    for layer in network.layers:
        if layer.name == name or layer.name.startswith(f"{name}_"):
            weights = layer.get_weights()
            layer.set_weights([rng.permutation(weight.ravel()).reshape(weight.shape) for weight in weights])
