"""Progress: a second number for every scan, in years along the course that the brains of a cohort take.

It is learned from time alone. Between two visits of one training subject, progress should grow by the years between
them; no outcome enters, so a censored subject teaches as much as any other. The map from a volume to its progress is
linear, has no bias and is the same for every scan, so a difference of progress is that of two volumes. Only such
differences within a subject mean anything.

The map is a ridge regression on coarse, smoothed voxels, in its dual form. What a scanner that drifts could change is
projected out first: a bias field, a gain, a shift, a stretch, a blur of the mean brain. The penalty is the one whose
error is least when each subject in turn is left out, which the closed form gives exactly; the training subjects' own
progress comes from the map without them, since a map that has seen a subject gives it a slope of 1.

Shapes: N scans, V coarse voxels, (X, Y, Z) voxels of the network's volumes. Times are years.
"""

import io
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from data import load_volume
from runs.errors import InputError
from runs.files import written_whole

COARSE = 24  # voxels along the shortest axis of the coarse grid, about
SMOOTHING = 0.7  # standard deviation of the smoothing, coarse voxels
PENALTIES = 10.0 ** np.arange(-3.0, 3.5, 0.5)  # times the mean square of a centred scan; validation is not needed
LEAST_NORM = 1e-6  # of a nuisance field beyond the others, as a share of its own size: a smaller rest is rounding
LEAST_TEACHERS = 2  # subjects with two visits
MAP = "progress.npz"  # in a training's folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProgressMap:
    """The frozen map: a scan's progress is the sum of `weights` times its volume."""

    weights: np.ndarray  # (X, Y, Z) float32, years along the course by z-score
    penalty: float  # that was chosen, one of PENALTIES
    error: float  # left-out mean squared error of the years since a subject's mean visit, over their variance
    left_out: dict[str, float]  # years of each training scan, by its id, by the map without its subject

    def __call__(self, entries: Iterable[str | Path]) -> np.ndarray:
        """Measure scans.

        Args:
            entries: N files of cached volumes.
        Returns:
            (N,) progress, years.
        """
        return np.array([np.vdot(self.weights, load_volume(entry)) for entry in entries], dtype=float)

    def of_volumes(self, volumes: np.ndarray) -> np.ndarray:
        """(B,) progress, years, of volumes (B, X, Y, Z, 1)."""
        return np.tensordot(volumes[..., 0], self.weights, 3)

    def gradient(self, volumes: np.ndarray) -> np.ndarray:
        """(B, X, Y, Z, 1): the weights, since progress is linear; d progress / d voxel of volumes of that shape."""
        return np.broadcast_to(self.weights[..., None], volumes.shape)

    def left_out_of(self, train: pd.DataFrame) -> np.ndarray:
        """(N,) progress of training scans, by their ids, each by the map that was learned without its subject."""
        return train["scan"].map(self.left_out).to_numpy(float)

    def save(self, path: Path) -> None:
        """Write the map, whole."""
        content, (scans, years) = io.BytesIO(), zip(*self.left_out.items(), strict=True)
        np.savez_compressed(
            content, weights=self.weights, penalty=self.penalty, error=self.error, scans=np.array(scans), years=years
        )
        with written_whole(path) as part:
            part.write_bytes(content.getbuffer())

    @classmethod
    def load(cls, path: Path) -> "ProgressMap":
        """Read what `save` wrote.

        Raises:
            InputError: the file is absent or damaged.
        """
        try:
            saved = np.load(io.BytesIO(path.read_bytes()))
            left_out = dict(zip(saved["scans"].tolist(), saved["years"].tolist(), strict=True))
            return cls(saved["weights"], float(saved["penalty"]), float(saved["error"]), left_out)
        except Exception as error:
            raise InputError(
                f"{path}: expected a map of progress, can't read it: {error}. Run main.py again."
            ) from error


def count_teachers(train: pd.DataFrame) -> int:
    """The number of subjects with two visits or more, which progress is learned from, among `train`, a row a scan."""
    return int((train.groupby("subject").size() > 1).sum())


def fit_progress(train: pd.DataFrame, *, show: bool = False) -> ProgressMap:
    """Learn the map from training subjects.

    Args:
        train: N scans with `subject, scan, visit_time` (years) and `cache_entry`, files of volumes of one shape;
            LEAST_TEACHERS subjects or more have two.
        show: a bar on stderr.
    Returns:
        The map; O(N V + N^2) memory.
    """
    codes = np.unique(train["subject"].to_numpy(str), return_inverse=True)[1]
    grid, voxels, fields = read_coarse(train["cache_entry"].to_list(), show=show)
    centred = _less_mean_of_subject(voxels, codes)
    years = _less_mean_of_subject(train[["visit_time"]].to_numpy(float), codes)[:, 0]
    ridge = _Ridge(centred @ centred.T, years, codes)
    penalty, error = ridge.choose()
    dual, left_out = ridge.solve(penalty, voxels @ centred.T)
    weights = grid.to_volume(centred.T @ dual - fields @ (fields.T @ (centred.T @ dual)))
    logger.info(
        "progress: penalty %g of %g to %g; of a left-out subject's years between visits %.0f %% are explained",
        *(penalty, PENALTIES[0], PENALTIES[-1], 100 * (1 - error)),
    )
    by_scan = dict(zip(train["scan"].astype(str), left_out.tolist(), strict=True))
    return ProgressMap(weights.astype(np.float32), penalty, error, by_scan)


def read_coarse(entries: Sequence[str], *, show: bool = False) -> tuple["CoarseGrid", np.ndarray, np.ndarray]:
    """Read scans onto the coarse grid, less what a scanner may change.

    Args:
        entries: N files of cached volumes of one shape.
        show: a bar on stderr.
    Returns:
        The grid; (N, V) float64, their coarse voxels without the nuisance fields of their mean; (V, K) these fields.
    """
    grid = CoarseGrid(load_volume(entries[0]).shape[:3])
    voxels = np.empty((len(entries), grid.size))  # (N, V)
    brain = np.zeros(grid.size)  # number of scans with a brain there
    for row, entry in enumerate(tqdm(entries, desc="progress", unit="scan", disable=not show)):
        volume = load_volume(entry)[..., 0]
        voxels[row] = grid.of_volume(volume)
        brain += grid.of_volume(volume != 0)
    fields = _nuisance_fields(*(total.reshape(grid.shape) / len(voxels) for total in (voxels.sum(axis=0), brain)))
    voxels -= (voxels @ fields) @ fields.T
    return grid, voxels, fields


# ---- The ridge ---------------------------------------------------------------------------------------
class _Ridge:
    """A ridge regression without a bias in its dual form, with each subject left out in closed form.

    Args:
        kernel: (N, N) products of centred scans.
        years: (N,) since the subject's mean visit.
        codes: (N,) numbers of the subjects.
    """

    def __init__(self, kernel: np.ndarray, years: np.ndarray, codes: np.ndarray):
        self.years, self.scale = years, np.trace(kernel) / len(kernel)
        self.values, self.vectors = np.linalg.eigh(kernel)
        order = np.argsort(codes, kind="stable")
        self.subjects = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)  # rows of each

    def choose(self) -> tuple[float, float]:
        """The penalty of PENALTIES with the least left-out error, and that error over the years' variance."""
        errors = [np.sum(self._left_out_residuals(penalty) ** 2) for penalty in PENALTIES]
        best = int(np.argmin(errors))
        return float(PENALTIES[best]), float(errors[best] / np.sum(self.years**2))

    def solve(self, penalty: float, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The dual coefficients, and what each scan gets from the coefficients learned without its subject.

        With the inverse G = (K + p I)^-1 and a = G y, those without the subject's rows B are a - G_B (G_BB)^-1 a_B.

        Args:
            penalty: p, in units of the mean of the kernel's diagonal.
            products: (N, N) of each scan, not centred, with each centred one.
        Returns:
            (N,) a; (N,) left-out values.
        """
        inverse, dual = self._inverse(penalty)
        values, through = products @ dual, products @ inverse
        for rows in self.subjects:
            values[rows] -= through[np.ix_(rows, rows)] @ np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
        return dual, values

    def _inverse(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        inverse = (self.vectors / (np.maximum(self.values, 0.0) + penalty * self.scale)) @ self.vectors.T
        return inverse, inverse @ self.years

    def _left_out_residuals(self, penalty: float) -> np.ndarray:
        """(N,) years less what the coefficients without the subject give: (G_BB)^-1 a_B."""
        inverse, dual = self._inverse(penalty)
        residuals = np.empty_like(dual)
        for rows in self.subjects:
            residuals[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
        return residuals


def _less_mean_of_subject(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(N, F) less each subject's mean over its scans."""
    total = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(total, codes, values)
    return values - (total / np.bincount(codes)[:, None])[codes]


# ---- The coarse grid -----------------------------------------------------------------------------------
class CoarseGrid:
    """Blocks of voxels, averaged and smoothed; a linear operation whose transpose brings weights back.

    Args:
        shape: (X, Y, Z) of a volume.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.full = shape
        self.block = max(1, round(min(shape) / COARSE))  # voxels along each axis of a block
        self.shape = tuple(-(-size // self.block) for size in shape)
        self.size = math.prod(self.shape)  # V

    def of_volume(self, volume: np.ndarray) -> np.ndarray:
        """(V,) float64 of a volume (X, Y, Z); what a block has beyond the volume is 0."""
        padding = [(0, coarse * self.block - size) for coarse, size in zip(self.shape, self.full, strict=True)]
        x, y, z = self.shape
        blocks = np.pad(volume.astype(float), padding).reshape(x, self.block, y, self.block, z, self.block)
        return _smooth(blocks.mean(axis=(1, 3, 5))).ravel()

    def to_volume(self, weights: np.ndarray) -> np.ndarray:
        """(X, Y, Z) weights of voxels that give the same sums as these weights (V,) of the coarse grid."""
        fine = _smooth(weights.reshape(self.shape)) / self.block**3
        for axis in range(3):
            fine = np.repeat(fine, self.block, axis=axis)
        return fine[tuple(slice(size) for size in self.full)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Smoothed (x, y, z); 0 beyond the edge, so that the operation is its own transpose."""
    return ndimage.gaussian_filter(values, SMOOTHING, mode="constant")


# ---- What a scanner may change -------------------------------------------------------------------------
def _nuisance_fields(mean: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """What drifts of a scanner would add to the mean brain, as orthonormal columns (V, K).

    A gain and a contrast (the mean, its square, an offset in the brain), a bias field (mean and offset times linear and
    quadratic places), a shift and a stretch (gradients, and gradients times places), a blur (the Laplacian).

    Args:
        mean: (x, y, z) mean of the training volumes on the coarse grid.
        brain: (x, y, z) share of them whose brain is there.
    """
    places = np.meshgrid(*(np.linspace(-1, 1, size) for size in mean.shape), indexing="ij")
    polynomials = [*places, *(places[i] * places[j] for i in range(3) for j in range(i, 3))]
    gradients = np.gradient(mean)
    fields = [mean, mean**2, brain, ndimage.laplace(mean)]
    fields += [image * polynomial for image in (mean, brain) for polynomial in polynomials]
    fields += gradients
    fields += [gradient * place for gradient in gradients for place in places]
    columns = np.stack([field.ravel() / max(np.linalg.norm(field), np.finfo(float).tiny) for field in fields], axis=1)
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > LEAST_NORM * sizes[0]]
