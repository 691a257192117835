"""The grid of a volume: where its voxels lie in space. Grids are read, compared and named here; volumes are resized."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from cohort.scans import MAX_VOXELS, Scan, open_scan
from runs.errors import InputError

ROUNDING = 1e-3  # voxels; a centre so close to the edge of a box lies on it
GRID_TOLERANCE = 1e-2  # mm; two affines that place no corner further apart are one space


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: the shape of an array and its affine to RAS millimetres."""

    shape: tuple[int, int, int]  # (X, Y, Z) voxels
    affine: np.ndarray  # (4, 4) voxel -> RAS mm

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def describe(self) -> str:
        """The shape, the voxels' size and the centre of the first voxel, in words: `4 x 4 x 4 voxels of ... mm`."""
        sizes = " x ".join(f"{size:.3g}" for size in self.voxel_mm)
        origin = ", ".join(f"{mm:.2f}" for mm in self.affine[:3, 3])
        return f"{' x '.join(map(str, self.shape))} voxels of {sizes} mm from ({origin})"

    def key(self) -> list[list[float]]:
        """Shape and affine to 0.001 mm. It is part of a resampled cache entry's name: a change makes it anew."""
        return [[float(size) for size in self.shape], *(self.affine[:3].round(3) + 0.0).tolist()]  # -0 becomes 0

    def matches(self, other: "Grid") -> bool:
        """Whether two grids have one shape and place every corner within GRID_TOLERANCE (mm)."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1])).reshape(4, -1)  # voxels, and 1
        apart = np.abs((self.affine - other.affine) @ corners).max()
        return self.shape == other.shape and bool(apart < GRID_TOLERANCE)

    def covers(self, other: "Grid") -> np.ndarray:
        """Which voxels of another grid have their centre in this one's box, (X, Y, Z) bool on `other`.

        The box reaches half a voxel beyond the centres of the outer voxels.
        """
        to_voxel = np.linalg.inv(self.affine) @ other.affine
        x, y, z = np.ogrid[tuple(slice(size) for size in other.shape)]
        within = np.ones(other.shape, bool)
        for axis, size in enumerate(self.shape):
            along = to_voxel[axis, 0] * x + to_voxel[axis, 1] * y + to_voxel[axis, 2] * z + to_voxel[axis, 3]  # voxels
            within &= (along >= -0.5 - ROUNDING) & (along <= size - 0.5 + ROUNDING)
        return within

    def resized(self, shape: tuple[int, int, int]) -> "Grid":
        """The grid of the same box, cut into `shape` (X, Y, Z) voxels."""
        step = np.divide(self.shape, shape)
        to_old = np.diag([*step, 1.0])
        to_old[:3, 3] = step / 2 - 0.5  # voxel 0 starts at the box's edge, half a voxel before its centre
        return Grid(shape, self.affine @ to_old)


def grid_of(image: Scan | SpatialImage) -> Grid:
    """The grid of an image once its axes are put in RAS order.

    Only the header is used: nibabel's `as_closest_canonical` would read the voxels too.

    Args:
        image: a scan or a nibabel image, (X, Y, Z), in any orientation.
    Returns:
        Its shape in voxels and its affine in mm, in RAS order.
    """
    orientation = nib.orientations.io_orientation(image.affine)
    x, y, z = np.asarray(image.shape)[np.argsort(orientation[:, 0])]
    affine = image.affine @ nib.orientations.inv_ornt_aff(orientation, image.shape)
    return Grid((int(x), int(y), int(z)), np.asarray(affine, float))


def read_grid(path: str | Path, max_voxels: int = MAX_VOXELS) -> Grid:
    """Read the grid of a NIfTI file in RAS order, from its header alone.

    Args:
        path: of the file.
        max_voxels: the largest volume that is not refused.
    Returns:
        Its shape in voxels and its affine in mm, in RAS order.
    Raises:
        InputError: as `scans.open_scan`.
    """
    return grid_of(open_scan(path, max_voxels))


def commonest_grid(grids: Sequence[Grid]) -> tuple[Grid, int]:
    """The grid that most scans lie on, and how many do; of two as common, the one that stands first.

    Args:
        grids: of the scans, one or more, in an order that depends on nothing but the scans, such as that of their ids.
    """
    corners = np.array([_corners(grid) for grid in grids])  # (N, 24) mm
    shapes = np.array([grid.shape for grid in grids])  # (N, 3)
    left = np.ones(len(grids), bool)
    best, most = 0, 0
    for row in range(len(grids)):
        if left[row]:
            alike = left & (shapes == shapes[row]).all(axis=1)
            alike &= np.abs(corners - corners[row]).max(axis=1) < GRID_TOLERANCE
            left &= ~alike
            if alike.sum() > most:
                best, most = row, int(alike.sum())
    return grids[best], most


def _corners(grid: Grid) -> np.ndarray:
    """(24,) mm: where the outer voxels' centres lie."""
    voxels = np.array(np.meshgrid(*[(0, size - 1) for size in grid.shape], [1])).reshape(4, -1)
    return (grid.affine @ voxels)[:3].ravel()


def check_grid(grid: Grid, reference: Grid, whose: str = "the other scans") -> None:
    """Refuse a scan that lies on another grid than it should.

    Args:
        grid: of the scan.
        reference: the grid that it should have, to GRID_TOLERANCE (mm).
        whose: the reference is, in words.
    Raises:
        InputError: they differ; describes both and says how to mend it.
    """
    if not reference.matches(grid):
        raise InputError(
            f"expected the grid of {whose}, {reference.describe()}, received {grid.describe()}; "
            "register the scans, or set RESAMPLE=on"
        )


def resize(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resample a volume linearly to another shape over the same box; beyond its outer voxels their values go on.

    New slices along Y and new rows along Z are each a weighted sum of two old ones; along X, a matrix product does the
    same. A NIfTI file stores X fastest, the network needs Z fastest, and the product changes that order as it goes.

    Args:
        values: (X, Y, Z) numbers.
        shape: (X, Y, Z) voxels wanted.
    Returns:
        `shape`, float32.
    """
    (y, y_share), (z, z_share) = (_neighbours(old, new) for old, new in zip(values.shape[1:], shape[1:], strict=True))
    slices = np.empty((shape[1], shape[2], values.shape[0]), np.float32)  # (Y, Z, old X)
    for new, old, share in zip(slices, y, y_share, strict=True):
        slab = values[:, old].T * (1 - share) + values[:, old + 1].T * share  # (old Z, old X)
        np.multiply(slab[z], 1 - z_share[:, None], out=new)
        new += slab[z + 1] * z_share[:, None]
    x, x_share = _neighbours(values.shape[0], shape[0])
    weights = np.zeros((shape[0], values.shape[0]), np.float32)  # (X, old X)
    weights[np.arange(shape[0]), x] = 1 - x_share
    weights[np.arange(shape[0]), x + 1] = x_share
    return (weights @ slices.reshape(-1, values.shape[0]).T).reshape(shape)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new voxel along one axis, (new,): the lower of its two old neighbours, and the share of the upper."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    lower = np.minimum(centre.astype(int), old - 2)
    return lower, (centre - lower).astype(np.float32)
