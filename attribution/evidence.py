"""What can be said for or against a map: measures of maps alone, without the network."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, stats

SMOOTHING_MM = 8.0  # full width at half maximum, before a voxel map is drawn or held against the truth


def share_outside(values: np.ndarray, brain: np.ndarray) -> float:
    """Share of |map| outside the brain; 0 for a map of zeros."""
    mass = np.abs(values, dtype=np.float64)
    return float(mass[~brain].sum() / total) if (total := mass.sum()) > 0 else 0.0


def smooth(values: np.ndarray, voxel_mm: Sequence[float], fwhm: float = SMOOTHING_MM) -> np.ndarray:
    """A map under a Gaussian of `fwhm` mm, signs kept: neighbours of opposite sign cancel, as noise does."""
    sigma = fwhm / np.sqrt(8 * np.log(2)) / np.asarray(voxel_mm, float)
    return ndimage.gaussian_filter(np.asarray(values, np.float32), sigma, mode="constant")


def localisation(
    values: np.ndarray, truth: np.ndarray, brain: np.ndarray, voxel_mm: Sequence[float]
) -> dict[str, float]:
    """How well |map| finds the voxels that are known to matter.

    Args:
        values: (X, Y, Z) map, smoothed if it is a voxel map.
        truth: (X, Y, Z) bool.
        brain: (X, Y, Z) bool; what lies outside is not looked at.
        voxel_mm: size of a voxel along each axis.
    Returns:
        `auc` of |map| for truth against the rest of the brain; `enrichment`, the share of |map| in the truth over the
        truth's share of the brain; `peak_mm` from the largest |map| to the nearest true voxel, 0 within it.
    Raises:
        ValueError: the truth is empty or all of the brain.
    """
    inside = truth[brain]
    if not inside.any() or inside.all():
        raise ValueError("truth: expected some but not all voxels of the brain")
    mass = np.abs(values[brain], dtype=np.float64)
    num_true, num_other = np.count_nonzero(inside), np.count_nonzero(~inside)
    ranks = stats.rankdata(mass)
    auc = (ranks[inside].sum() - num_true * (num_true + 1) / 2) / (num_true * num_other)
    distance = ndimage.distance_transform_edt(~(truth & brain), sampling=voxel_mm)
    return {
        "auc": float(auc),
        "enrichment": float(mass[inside].sum() / mass.sum() / inside.mean()) if mass.any() else 0.0,
        "peak_mm": float(distance[brain][mass.argmax()]),
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation of two maps; None if either is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else None
