"""A background that is not 0 is noticed, a brain without one is not blamed; brains are compared with the others'."""

import numpy as np
import pytest
from scipy import ndimage

from cohort.extent import Extent, compare_extents, find_background, measure_extent, median_extent
from cohort.grid import Grid

SHAPE = (40, 44, 42)
CENTRE = (np.array(SHAPE) - 1) / 2
INSIDE = sum(((np.indices(SHAPE).T - CENTRE).T[axis] / (0.37 * size)) ** 2 for axis, size in enumerate(SHAPE)) < 1


@pytest.fixture
def brain(rng):
    """Tissue of three greys with noise, 0 outside."""
    tissue = np.rint(ndimage.gaussian_filter(rng.normal(size=SHAPE), 2) * 8).clip(-1, 1) * 250 + 500
    return np.where(INSIDE, tissue + rng.normal(0, 20, SHAPE), 0).astype(np.float32)


BACKGROUNDS = {  # what lies outside the brain, and the value that is told
    "a CT's": (lambda brain, rng: brain - 1024, -1024),
    "tiny": (lambda brain, rng: np.where(INSIDE, brain, 1e-5), 0),
    "tiny in a corner of the scale": (lambda brain, rng: np.where(INSIDE, brain, -1e-5) / 1e6, 0),
    "z-scored as a whole": (lambda brain, rng: (brain - brain.mean()) / brain.std(), None),
    "scaled to -1 to 1": (lambda brain, rng: 2 * brain / brain.max() - 1, -1),
    "inverted": (lambda brain, rng: 1000 - brain, 1000),
    "air": (lambda brain, rng: np.where(INSIDE, brain, np.abs(rng.normal(0, 6, SHAPE))), None),
    "a spline's ringing": (lambda brain, rng: ndimage.shift(brain, 0.4, order=3), 0),
    "ringing of a turned brain": (lambda brain, rng: ndimage.rotate(brain, 11, order=3, reshape=False), 0),
    "within a margin of 0": (lambda brain, rng: np.pad(brain - 1024, 6), -1024),
    "on one side": (lambda brain, rng: np.where(np.indices(SHAPE)[2] < 30, brain + 77, brain), 77),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_that_is_not_0_is_found(brain, rng, name):
    spoil, expected = BACKGROUNDS[name]
    values = spoil(brain, rng).astype(np.float32)
    found = find_background(values)
    assert found is not None and found[1] > 0.25
    if expected is not None:
        assert found[0] == pytest.approx(expected, abs=1e-3)


SOUND = {
    "a brain": lambda brain: brain,
    "z-scores within the brain": lambda brain: np.where(INSIDE, (brain - 500) / 200, 0),
    "whole numbers": np.rint,
    "few greys": lambda brain: np.rint(brain / 100),
    "a brain that touches its box": lambda brain: brain[7:-7, 8:-8, 7:-7],
    "half a brain": lambda brain: brain[:, :22],
    "a cropped region": lambda brain: brain[15:25, 15:25, 15:25],
    "linearly resampled": lambda brain: ndimage.rotate(brain, 11, order=1, reshape=False),
    "ringing that was cut": lambda brain: np.where(INSIDE, ndimage.shift(brain, 0.4, order=3), 0),
    "an outlier": lambda brain: np.where(brain == brain.max(), 1e30, brain),
    "negative greys": lambda brain: -brain,
    "nothing": lambda brain: brain * 0,
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_volume_has_no_background_but_0(brain, name):
    assert find_background(SOUND[name](brain).astype(np.float32)) is None


def test_an_extent_is_in_millimetres(brain):
    affine = np.array([[2.0, 0, 0, -30], [0, 3, 0, 5], [0, 0, 1.5, 7], [0, 0, 0, 1]])
    extent = measure_extent(INSIDE, Grid(SHAPE, affine))
    assert extent.volume == pytest.approx(INSIDE.sum() * 9)
    np.testing.assert_allclose(extent.centre, affine[:3, :3] @ CENTRE + affine[:3, 3], atol=1e-9)
    assert Extent(4 / 3 * np.pi * 60**3, (0, 0, 0)).radius == pytest.approx(60)
    nothing = measure_extent(INSIDE * 0, Grid(SHAPE, affine))
    assert nothing.volume == 0 and nothing.centre == pytest.approx(extent.centre)


def compare(extents):
    return compare_extents(extents, median_extent(extents))


BALL = 4 / 3 * np.pi * 70**3  # mm^3


def test_a_brain_that_is_not_of_this_cohort_is_refused_and_an_unusual_one_named():
    sound = [Extent(BALL * share, (mm, 0.0, 0.0)) for share, mm in ((0.9, -3.0), (1.0, 0.0), (1.1, 2.0), (1.0, 1.0))]
    odd = [
        Extent(BALL, (0.0, 60.0, 0.0)),  # 60 mm off
        Extent(BALL * 2.4, (0.0, 0.0, 0.0)),  # a whole head
        Extent(BALL, (0.0, 0.0, -20.0)),
        Extent(BALL * 0.7, (0.0, 0.0, 0.0)),
    ]
    refused, named = compare([*sound, *sound, *odd])
    assert [bool(reason) for reason in refused] == [False] * 8 + [True, True, False, False]
    assert [bool(reason) for reason in named] == [False] * 10 + [True, True]
    assert "a brain whose centre lies 60 mm from the usual one" in refused[8]
    assert "2.40 times the usual size" in refused[9] and "strip the skull of all scans or of none" in refused[9]
    assert "20 mm" in named[10] and "0.70 times" in named[11]


def test_a_mouse_is_compared_in_its_own_size():
    mice = [Extent(450.0, (0.0, 0.0, 0.0))] * 5
    assert compare([*mice, Extent(450.0, (4.0, 0.0, 0.0))])[0][5] != ""


def test_few_scans_say_nothing_of_what_is_usual_unless_that_is_known():
    three = [Extent(BALL, (0.0, 0.0, 0.0))] * 2 + [Extent(BALL * 3, (90.0, 0.0, 0.0))]
    assert compare(three) == ([""] * 3, [""] * 3)
    assert compare([]) == ([], [])
    refused, _ = compare_extents(three, usual=three[0])
    assert [bool(reason) for reason in refused] == [False, False, True]
