"""TODO: cohort.grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cohort.scans import MAX_VOXELS, open_scan

GRID_TOLERANCE = 1e-2  # mm: affines that differ by less are one space


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: the shape of an array and its affine to RAS millimetres."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4)

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def matches(self, other: "Grid") -> bool:
        """Whether two grids are one, to GRID_TOLERANCE at every corner."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1])).reshape(4, -1)[[1, 0, 2, 3]]
        apart = np.abs((self.affine - other.affine) @ corners).max()
        return self.shape == other.shape and bool(apart < GRID_TOLERANCE)

    def resized(self, shape: tuple[int, int, int]) -> "Grid":
        """The grid of the same box cut into `shape` voxels."""
        step = np.divide(self.shape, shape)
        to_old = np.diag([*step, 1.0])
        to_old[:3, 3] = step / 2 - 0.5  # voxel 0 starts at the box's edge, half a voxel before its centre
        return Grid(shape, self.affine @ to_old)


def read_grid(path: str | Path, max_voxels: int = MAX_VOXELS) -> Grid:
    """The grid of a NIfTI file after its axes are put in RAS order, from its header alone.

    Raises:
        InputError: as `nifti.open_scan`.
    """
    return grid_of(open_scan(path, max_voxels))


def resize(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Linear resampling of (X, Y, Z) numbers to `shape` over the same box, in float32; edges are held.

    Two slices make a new one along Y, two rows a new one along Z, and a matrix product does X: a NIfTI file has X
    fastest, the network Z, so the product turns the array over as it goes.
    """
    (y, y_share), (z, z_share) = (_neighbours(old, new) for old, new in zip(values.shape[1:], shape[1:], strict=True))
    slices = np.empty((shape[1], shape[2], values.shape[0]), np.float32)  # (Y, Z, old X)
    for new, old, share in zip(slices, y, y_share, strict=True):
        slab = values[:, old].T * (1 - share) + values[:, old + 1].T * share  # (old Z, old X)
        np.multiply(slab[z], 1 - z_share[:, None], out=new)
        new += slab[z + 1] * z_share[:, None]
    x, x_share = _neighbours(values.shape[0], shape[0])
    weights = np.zeros((shape[0], values.shape[0]), np.float32)
    weights[np.arange(shape[0]), x] = 1 - x_share
    weights[np.arange(shape[0]), x + 1] = x_share
    return (weights @ slices.reshape(-1, values.shape[0]).T).reshape(shape)


def grid_of(image: Any) -> Grid:
    """Of a nibabel image or a Scan, from its header alone: `as_closest_canonical` would read the voxels too."""
    turned = nib.orientations.io_orientation(image.affine)
    x, y, z = np.asarray(image.shape)[np.argsort(turned[:, 0])]
    affine = image.affine @ nib.orientations.inv_ornt_aff(turned, image.shape)
    return Grid((int(x), int(y), int(z)), np.asarray(affine, float))


def _words(grid: Grid) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_mm)
    origin = ", ".join(f"{mm:.2f}" for mm in grid.affine[:3, 3])
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm from ({origin})"


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis, of each new voxel: the lower of its two old neighbours, and the share of the upper."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(centre.astype(int), old - 2)
    return low, (centre - low).astype(np.float32)
