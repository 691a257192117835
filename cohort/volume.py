"""One scan's voxels, made into what the network sees: z-scores within the brain on the network's grid, or refused."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from cohort.extent import find_background
from cohort.grid import Grid, grid_of, resize
from cohort.scans import MAX_VOXELS, Scan, open_scan, read_greys
from runs.errors import InputError

MOST_OUTSIDE = 0.25  # share of a brain that may lie outside the grid to which it is resampled
COARSEST = 2e-3  # z-scores: the most that float32 may round greys by


def read_image(path: str | Path, max_voxels: int = MAX_VOXELS) -> nib.Nifti1Image:
    """Read a NIfTI file with its grey values.

    Args:
        path: of the file.
        max_voxels: of the largest volume that is not refused.
    Raises:
        InputError: as `scans.open_scan` and `scans.read_greys`.
    """
    return image_of(open_scan(path, max_voxels))


def preprocess(image: Any, shape: tuple[int, int, int], grid: Grid | None = None) -> np.ndarray:
    """Make of a scan what the network sees.

    Args:
        image: nibabel image, 3-D, in any orientation.
        shape: (X, Y, Z) voxels wanted.
        grid: resample to it first; None: as the image lies.
    Returns:
        (X, Y, Z) float32 in RAS order; z-scored over its voxels that are not 0, which stay 0.
    Raises:
        InputError: empty, constant (as a whole, or once resized), not finite, with a background that is not 0, or with
            MOST_OUTSIDE of its brain outside `grid`.
    """
    image = nib.as_closest_canonical(image)
    outside = 0.0
    if grid is not None and not grid.matches(grid_of(image)):
        outside = _share_outside(image, grid)
        image = resample_from_to(image, (grid.shape, grid.affine), order=1)
        _check_outside(outside, 1.0)
    values = _greys(image)
    lowest, highest = values.min(), values.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = np.count_nonzero(~np.isfinite(values))
        raise InputError(f"expected finite values, received {bad} that are not finite in float32")
    grey = highest if highest != 0 else lowest
    if np.count_nonzero(values) == np.count_nonzero(values == grey) * (grey != 0):
        raise InputError(f"expected a brain, received {'nothing but 0' if grey == 0 else f'only {grey:g}'}")
    return _z_scores(resize(values, shape), largest=max(abs(float(lowest)), abs(float(highest))), outside=outside)


def _z_scores(values: np.ndarray, *, largest: float, outside: float) -> np.ndarray:
    """(X, Y, Z) float32 greys as z-scores over the voxels that are not 0, in place.

    Args:
        values: (X, Y, Z) on the network's grid.
        largest: magnitude of the scan's own greys.
        outside: share of the scan's brain that lies outside the grid it was resampled to.
    Raises:
        InputError: one grey, greys too close to each other, a background that is not 0, or too much outside.
    """
    shape, brain = values.shape, values != 0
    inside = values[brain]
    if len(inside) == 0 or inside.min() == inside.max():
        raise InputError(f"expected greys that differ at {' x '.join(map(str, shape))} voxels too, received one")
    mean, sd = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    float32 = np.finfo(np.float32)
    if sd < float32.tiny or largest * float32.eps > COARSEST * sd:
        raise InputError(f"expected greys that float32 can tell apart, received {largest:g} with a spread of {sd:g}")
    background = find_background(values)
    if background is not None:
        grey, share = background
        raise InputError(
            f"expected 0 outside the brain, received greys close to {grey:.4g} there ({share:.0%} of what is not 0), "
            "which would all count as brain. Set it to 0: strip the skull, or multiply by a brain mask"
        )
    _check_outside(outside, MOST_OUTSIDE)
    values[brain] = (inside - np.float32(mean)) / np.float32(sd)
    return values


def _share_outside(image: Any, grid: Grid) -> float:
    """Share of the voxels that are not 0 which lie outside the box of a grid."""
    brain = np.asarray(image.dataobj) != 0
    total = np.count_nonzero(brain)
    return 1 - np.count_nonzero(brain & grid.covers(grid_of(image))) / total if total else 0.0


def _check_outside(share: float, limit: float) -> None:
    if share >= limit:
        raise InputError(
            f"expected the brain within the reference grid, received {share:.0%} of it outside. Register the scan to "
            "the others' space, or give a REFERENCE that holds the brains of all"
        )


def image_of(scan: Scan) -> nib.Nifti1Image:
    """The image of a scan whose header is read: its greys, (X, Y, Z), and its affine."""
    return nib.Nifti1Image(read_greys(scan), scan.affine)


def _greys(image: Any) -> np.ndarray:
    """(X, Y, Z) whole numbers as they are, if float32 has them all; else in float32."""
    values = np.asarray(image.dataobj)
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)
