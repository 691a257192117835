"""Progress: a second number for every scan, in years along the course that the brains of a cohort take.

It is learned from time alone. Between two visits of one training subject, progress should grow by the years between
them; no outcome enters, so a censored subject teaches as much as any other. The map from a volume to its progress is
linear, has no bias and is the same for every scan, so a difference of progress is that of two volumes. Only such
differences within a subject mean anything.

The map is a ridge regression on coarse, smoothed voxels, in its dual form. What a scanner that drifts could change is
projected out first: a bias field, a gain, a shift, a stretch, a blur of the mean brain. The penalty is the one whose
error is least when each subject in turn is left out, which the closed form gives exactly; the training subjects' own
progress comes from the map without them, since a map that has seen a subject gives it a slope of 1.

It is learned twice. At first every subject is taken to progress by a year a year. Then each is taken to progress at its
own pace, the slope that it has by the first map without it; the paces' mean is 1. What changes in all subjects alike,
as with a scanner, explains these worse than what changes at the subjects' own rates. `training/drift.py` tells where
even so progress may follow a scanner.

Shapes: N scans, V coarse voxels, (X, Y, Z) voxels of the network's volumes. Times are years.
"""

import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import linalg, ndimage
from tqdm import tqdm

from data import load_volume
from runs.errors import InputError
from runs.files import written_whole
from training.drift import Paces, find_drift

COARSE = 24  # voxels along the shortest axis of the coarse grid, about
SMOOTHING = 0.7  # standard deviation of the smoothing, coarse voxels
PENALTIES = 10.0 ** np.arange(-3.0, 3.5, 0.5)  # times the mean square of a centred scan; validation is not needed
PACES_PENALTY = 0.1  # likewise, where the drift alarm looks for groups: weaker drifts are seen than at 1
LEAST_NORM = 1e-6  # of a nuisance field beyond the others, as a share of its own size: a smaller rest is rounding
LEAST_TEACHERS = 2  # subjects with two visits
LEAST_AT_OWN_PACES = 20  # of them, for the second map: with 12, it was worse than the first as often as better
MAP = "progress.npz"  # in a training's folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProgressMap:
    """The frozen map: a scan's progress is the sum of `weights` times its volume."""

    weights: np.ndarray  # (X, Y, Z) float32, years along the course by z-score
    penalty: float  # that was chosen, one of PENALTIES
    error: float  # of the first map: left-out mean squared error of the years since the mean visit, over their variance
    left_out: dict[str, float]  # years of each training scan, by its id, by the map without its subject
    drift: dict[str, Any] | None  # of `find_drift`; None: the map was saved by a version without the alarm

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
            content,
            weights=self.weights,
            penalty=self.penalty,
            error=self.error,
            scans=np.array(scans),
            years=years,
            drift=json.dumps(self.drift),
        )
        with written_whole(path) as part:
            part.write_bytes(content.getbuffer())

    @classmethod
    def load(cls, path: Path) -> "ProgressMap":
        """Read what `save` wrote.

        Raises:
            InputError: the file is absent or damaged.
        """
        with reading(path, "a map of progress") as (saved, left_out):
            drift = json.loads(str(saved["drift"])) if "drift" in saved else None
            return cls(saved["weights"], float(saved["penalty"]), float(saved["error"]), left_out, drift)


@contextmanager
def reading(path: Path, what: str) -> Iterator[tuple[Any, dict[str, float]]]:
    """Read a file of progress; whatever fails within this is told as damage of the file.

    Args:
        path: of the file.
        what: it should hold, such as `a map of progress`.
    Yields:
        Its arrays by name; the years of each scan that it was learned from, left out.
    Raises:
        InputError: the file is absent or damaged.
    """
    try:
        saved = np.load(io.BytesIO(path.read_bytes()))
        yield saved, dict(zip(saved["scans"].tolist(), saved["years"].tolist(), strict=True))
    except Exception as error:
        raise InputError(f"{path}: expected {what}, can't read it: {error}. Run main.py again.") from error


def figures_of_progress(folder: Path, kind: str = "linear") -> dict[str, Any]:
    """What `metrics.json` tells of progress.

    Args:
        folder: of a training.
        kind: PROGRESS of its run.
    Returns:
        `error`, as in `ProgressMap`, and what `find_drift` tells: `alarm` is None, and `why` says it, where there is no
        map, or one that an earlier version has learned, or a network in its place.
    Raises:
        InputError: the map is damaged.
    """
    if not (folder / MAP).is_file():
        return {"error": None, "alarm": None, "why": "Too few subjects have two visits: there is no progress."}
    if kind == "network":
        return {"error": None, "alarm": None, "why": "A drift is looked for in the map of PROGRESS=linear alone."}
    learned = ProgressMap.load(folder / MAP)
    unknown = {"alarm": None, "why": "The map is of an earlier version, which did not look for a drift."}
    return {"error": learned.error, **(learned.drift or unknown)}


def count_teachers(train: pd.DataFrame) -> int:
    """The number of subjects with two visits or more, which progress is learned from, among `train`, a row a scan."""
    return int((train.groupby("subject").size() > 1).sum())


def fit_progress(train: pd.DataFrame, *, show: bool = False, tell: bool = True) -> ProgressMap:
    """Learn the map from subjects whose outcomes are not asked for.

    Args:
        train: N scans with `subject, scan, visit_time` (years) and `cache_entry`, files of volumes of one shape;
            LEAST_TEACHERS subjects or more have two.
        show: a bar on stderr.
        tell: log the error, and a warning if progress may follow a scanner.
    Returns:
        The map; O(N V + N^2) memory.
    """
    learned = learn_map(read_coarse(train["cache_entry"].to_list(), show=show), train)
    if tell:
        logger.info(
            "progress: learned from %d subjects with two scans or more; penalty %g of %g to %g; of a left-out "
            "subject's years between visits %.0f %% are explained",
            *(count_teachers(train), learned.penalty, PENALTIES[0], PENALTIES[-1], 100 * (1 - learned.error)),
        )
        assert learned.drift is not None
        level = logging.INFO if learned.drift["alarm"] is False else logging.WARNING
        logger.log(level, "drift of progress: %s", learned.drift["why"])
    return learned


def learn_map(scans: "CoarseScans", train: pd.DataFrame) -> ProgressMap:
    """Learn the map from coarse voxels.

    Args:
        scans: the N volumes; what a scanner may change is taken off their voxels in place.
        train: N scans, as for `fit_progress`; `cache_entry` is not read.
    Returns:
        The map.
    """
    grid, fields = scans.grid, scans.take_off_nuisance()
    voxels = scans.voxels
    ids, codes = np.unique(train["subject"].to_numpy(str), return_inverse=True)
    centred = _less_mean_of_subject(voxels, codes)
    years = _less_mean_of_subject(train[["visit_time"]].to_numpy(float), codes)[:, 0]
    ridge = _Ridge(centred @ centred.T, years, codes)
    penalty, error = ridge.choose()
    products = voxels @ centred.T
    dual, left_out = ridge.solve(penalty, products)
    drift = find_drift(left_out, years, codes, ridge.paces(ids))
    if count_teachers(train) >= LEAST_AT_OWN_PACES and error < 1:  # else the paces' mean may not be above 0
        dual, left_out = ridge.solve_at_own_paces(penalty, products)
    weights = grid.to_volume(centred.T @ dual - fields @ (fields.T @ (centred.T @ dual)))
    by_scan = dict(zip(train["scan"].astype(str), left_out.tolist(), strict=True))
    return ProgressMap(weights.astype(np.float32), penalty, error, by_scan, drift)


def read_coarse(entries: Sequence[str], *, show: bool = False) -> "CoarseScans":
    """Read scans onto the coarse grid.

    Args:
        entries: N files of cached volumes of one shape.
        show: a bar on stderr.
    """
    grid = CoarseGrid(load_volume(entries[0]).shape[:3])
    volumes = (load_volume(entry)[..., 0] for entry in tqdm(entries, desc="progress", unit="scan", disable=not show))
    return CoarseScans.of(grid, volumes, len(entries))


# ---- The ridge ---------------------------------------------------------------------------------------
class _Ridge:
    """A ridge regression without a bias in its dual form, with each subject left out in closed form.

    Args:
        kernel: (N, N) products of centred scans.
        years: (N,) since the subject's mean visit.
        codes: (N,) numbers of the subjects.
    """

    def __init__(self, kernel: np.ndarray, years: np.ndarray, codes: np.ndarray):
        self.years, self.codes, self.scale = years, codes, np.trace(kernel) / len(kernel)
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

    def solve_at_own_paces(self, penalty: float, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `solve`, for the years times each subject's pace; a subject's left-out values know nothing of it."""
        inverse, _ = self._inverse(penalty)
        paces = self._paces_without_two(penalty)  # (S, S)
        without = paces - np.diag(np.diag(paces))  # a subject that is left out has no years
        squares = np.bincount(self.codes, self.years**2)
        scaled = without / ((without @ squares) / (squares.sum() - squares))[:, None]
        duals = inverse @ (scaled[:, self.codes] * self.years).T  # (N, S)
        values, through = np.empty_like(self.years), products @ inverse
        for number, rows in enumerate(self.subjects):
            block = np.ix_(rows, rows)
            own = np.linalg.solve(inverse[block], duals[rows, number])
            values[rows] = products[rows] @ duals[:, number] - through[block] @ own
        mean = np.diag(paces) @ squares / squares.sum()
        return inverse @ (np.diag(paces)[self.codes] / mean * self.years), values

    def _paces_without_two(self, penalty: float) -> np.ndarray:
        """(S, S) the slope of subject j by the coefficients without subjects i and j; on the diagonal, without i."""
        inverse, dual = self._inverse(penalty)
        squares = np.bincount(self.codes, self.years**2)
        slopes = np.zeros((len(self.subjects), len(self.subjects)))
        visits = np.array([len(rows) for rows in self.subjects])
        for size in np.unique(visits):
            numbers = np.flatnonzero((visits == size) & (squares > 0))
            each = np.array([self.subjects[number] for number in numbers], int).reshape(-1, size)  # rows of each
            blocks = inverse[each[:, :, None], each[:, None, :]]
            for i, rows in enumerate(self.subjects):
                share = np.linalg.solve(inverse[np.ix_(rows, rows)], inverse[rows])  # (G_BB)^-1 G_B, of the rows B of i
                apart = numbers != i
                left = blocks - np.einsum("bsm,bsn->smn", share[:, each], inverse[rows][:, each])
                left[~apart] = blocks[~apart]
                rest = dual[each] - apart[:, None] * (dual[rows] @ share)[each]
                residuals = np.linalg.solve(left, rest[..., None])[..., 0]
                slopes[i, numbers] = 1 - np.sum(self.years[each] * residuals, axis=1) / squares[numbers]
        return slopes

    def paces(self, ids: np.ndarray) -> Paces:
        """Where subjects go in the two directions of change that other subjects foretell best.

        With unit vectors u_i of a subject's years and M = U' G U, the pace of subject i that the others foretell, from
        theirs, is a product with R = I - M_ij / (M_ii M_jj)^1/2: an eigenvector of R near 1 is a direction that many
        share, one near 0 is a subject's own noise.

        Args:
            ids: (S,) of the subjects, by their numbers.
        """
        teachers = [rows for rows in self.subjects if self.years[rows].any()]
        sizes = np.array([np.linalg.norm(self.years[rows]) for rows in teachers])
        units = np.stack([self.years[rows] @ self.vectors[rows] for rows in teachers]) / sizes[:, None]  # (S, N)
        products = (units / (np.maximum(self.values, 0.0) + PACES_PENALTY * self.scale)) @ units.T  # M
        own = np.sqrt(np.diag(products))
        last = len(own) - 1
        vectors = linalg.eigh(np.eye(len(own)) - products / np.outer(own, own), subset_by_index=(last - 1, last))[1]
        weights = (own * sizes) ** 2
        names = ids[[self.codes[rows[0]] for rows in teachers]]
        return Paces(vectors / np.sqrt(weights)[:, None], weights, names)

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


@dataclass(frozen=True)
class CoarseScans:
    """Volumes on the coarse grid."""

    grid: CoarseGrid
    voxels: np.ndarray  # (N, V)
    brain: np.ndarray  # (V,) share of the scans whose brain is there

    @classmethod
    def of(cls, grid: CoarseGrid, volumes: Iterable[np.ndarray], number: int) -> "CoarseScans":
        """Bring N volumes (X, Y, Z) to the grid; they are read once, one at a time."""
        voxels, brain = np.empty((number, grid.size)), np.zeros(grid.size)
        for row, volume in enumerate(volumes):
            voxels[row] = grid.of_volume(volume)
            brain += grid.of_volume(volume != 0)
        return cls(grid, voxels, brain / number)

    def take_off_nuisance(self) -> np.ndarray:
        """Take the nuisance fields of the scans' mean off the voxels, in place, and give the fields (V, K)."""
        shape = self.grid.shape
        fields = _nuisance_fields(self.voxels.mean(axis=0).reshape(shape), self.brain.reshape(shape))
        np.subtract(self.voxels, (self.voxels @ fields) @ fields.T, out=self.voxels)
        return fields


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
