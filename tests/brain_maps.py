"""A small brain of noise and maps over it, for the tests of pictures."""

import nibabel as nib
import numpy as np

SHAPE = (24, 28, 20)
AFFINE = np.array([[4.0, 0, 0, -46], [0, 4, 0, -60], [0, 0, 4, -30], [0, 0, 0, 1]])


def millimetres(shape, affine):
    """Where each voxel lies, (X, Y, Z, 3)."""
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def bump(centre, width=9.0, shape=SHAPE, affine=AFFINE):
    """A Gaussian in millimetres."""
    return np.exp(-0.5 * ((millimetres(shape, affine) - centre) ** 2).sum(axis=-1) / width**2).astype(np.float32)


def ellipsoid(rng):
    """An ellipsoid of noise, 0 outside."""
    inside = (((millimetres(SHAPE, AFFINE) - [0, -6, 8]) / [38, 46, 32]) ** 2).sum(axis=-1) < 1
    return np.where(inside, rng.normal(size=SHAPE), 0).astype(np.float32)
