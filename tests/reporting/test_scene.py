"""A slice in colour: signs, sides, places, and how the colours end."""

import numpy as np
import pytest
from brain_maps import AFFINE, SHAPE, bump, ellipsoid

from reporting import scene


@pytest.fixture
def volume(rng):
    return ellipsoid(rng)


def scene_of(volume, values):
    return scene.make_scene(volume, values, AFFINE, unit="log-hazard per voxel")


def redness(picture):
    """(height, width): above 0 red, below 0 blue, 0 grey."""
    return picture[..., 0].astype(int) - picture[..., 2]


def test_colours_end_at_the_percentile_of_the_brain(volume, rng):
    values = rng.normal(size=SHAPE).astype(np.float32)
    wanted = np.percentile(np.abs(values[volume != 0]), 99.5)
    values[volume == 0] = 1e6  # outside the brain it doesn't count
    assert scene_of(volume, values).limit == pytest.approx(wanted)


@pytest.mark.parametrize("plane", scene.PLANES)
def test_zero_is_transparent_and_the_outline_stays(volume, plane):
    first, last = scene_of(volume, np.zeros(SHAPE)).slices(plane)
    for index in np.linspace(first + 2, last - 2, 4).astype(int):
        picture = scene.draw_slice(scene_of(volume, np.zeros(SHAPE)), plane, index)
        assert not redness(picture).any() and not picture[0, 0].any()  # black outside the brain
        outline = (picture == scene.OUTLINE_COLOUR).all(axis=-1).sum()
        assert outline > 30
        covered = scene.draw_slice(scene_of(volume, np.ones(SHAPE)), plane, index)
        assert (covered == scene.OUTLINE_COLOUR).all(axis=-1).sum() > 0.95 * outline  # grey may be as bright by chance


@pytest.mark.parametrize("plane", ["axial", "coronal"])
@pytest.mark.parametrize("side", [-1, 1])
def test_left_is_left_and_red_raises(volume, plane, side):
    values = bump([side * 16, -6, 6], 5.0)
    index = {"axial": 9, "coronal": 13}[plane]  # z = 6 mm, y = -8 mm
    colour = redness(scene.draw_slice(scene_of(volume, values), plane, index))
    middle = colour.shape[1] // 2
    halves = [colour[:, :middle].max(), colour[:, middle:].max()]  # left of the page, right of the page
    assert halves[0 if side < 0 else 1] > 100 and halves[1 if side < 0 else 0] < 30
    lowered = redness(scene.draw_slice(scene_of(volume, -values), plane, index))
    assert lowered.min() < -100 and lowered.max() <= 5


def test_front_is_right_and_up_is_up_on_sagittal_slices(volume):
    colour = redness(scene.draw_slice(scene_of(volume, bump([2, 20, 24], 5.0)), "sagittal", 12))
    row, column = np.unravel_index(colour.argmax(), colour.shape)
    assert row < colour.shape[0] / 2 and column > colour.shape[1] / 2


def test_the_peak_and_the_slices_of_the_brain_are_found(volume):
    drawn = scene_of(volume, bump([-14, 12, 2], 4.0))
    assert drawn.peak() == (8, 18, 8)
    for plane, axis in scene.THROUGH.items():
        inside = np.flatnonzero(volume.any(axis=tuple({0, 1, 2} - {axis})))
        assert drawn.slices(plane) == (inside[0], inside[-1])
    np.testing.assert_allclose(drawn.voxel_mm, 4)
