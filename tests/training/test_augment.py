import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from training.augment import GREY_OVER_SD, Augmentation, augment, moved

ALL = Augmentation(shift=1.0, rotate=5.0, scale=0.1, flip=True, bias=0.2, gain=0.2, noise=0.1)
ONE_EACH = [Augmentation(**{name: getattr(ALL, name)}) for name in vars(ALL)]


@pytest.fixture
def volumes(rng):
    """Three brains: noise in a ball, 0 around it."""
    ball = ((np.indices((16, 18, 20)) - np.reshape([7.5, 8.5, 9.5], (3, 1, 1, 1))) ** 2).sum(0) < 36
    return (rng.normal(size=(3, 16, 18, 20)) * ball).astype(np.float32)[..., None]


def blob(size, width=9.0):
    """A Gaussian about the centre, its variance in square voxels."""
    centre = (size - 1) / 2
    return np.exp(-0.5 * ((np.indices((size,) * 3) - centre) ** 2).sum(0) / width).astype(np.float32)[..., None]


def seeds_of(*numbers):
    return np.array([[1, number] for number in numbers], np.int32)


@pytest.mark.parametrize("how", [ALL, *ONE_EACH])
def test_a_volume_changes_by_its_seed_alone(volumes, how):
    seeds = seeds_of(5, 6, 7)
    together = augment(volumes, seeds, how).numpy()
    np.testing.assert_array_equal(together[1:2], augment(volumes[1:2], seeds[1:2], how).numpy())
    np.testing.assert_array_equal(together, augment(volumes, seeds, how).numpy())
    changed = [np.abs(augment(volumes, seeds_of(n, n + 1, n + 2), how).numpy() - together).max() for n in (50, 60, 70)]
    assert max(changed) > 0.01 and np.isfinite(together).all()


def test_no_augmentation_is_none(volumes):
    assert augment(volumes, seeds_of(1, 2, 3), Augmentation()) is volumes


def test_one_change_does_not_depend_on_another(volumes):
    """With a gain besides, the same field, or the same noise, is seen, brightened."""
    for how in ({"bias": 0.2}, {"noise": 0.1}, {"rotate": 3.0}):
        alone = augment(volumes, seeds_of(1, 2, 3), Augmentation(**how)).numpy()
        gain = augment(volumes, seeds_of(1, 2, 3), Augmentation(gain=1e-9, **how)).numpy()
        np.testing.assert_allclose(gain, alone, atol=1e-6)
    shift = augment(volumes, seeds_of(1, 2, 3), Augmentation(shift=1.0)).numpy()
    turned = augment(volumes, seeds_of(1, 2, 3), Augmentation(shift=1.0, rotate=1e-5)).numpy()
    np.testing.assert_allclose(turned, shift, atol=1e-4)


def test_a_shift_moves_the_centre_of_mass():
    seen = []
    for seed in range(20):
        found = augment(blob(24)[None], seeds_of(seed), Augmentation(shift=2.0)).numpy()
        seen.append(np.array(ndimage.center_of_mass(found[0, ..., 0])) - 11.5)
    assert np.abs(seen).max() <= 2.001 and np.std(seen, axis=0).min() > 0.7 and np.abs(np.mean(seen)) < 0.5


def test_a_quarter_turn_is_numpy_s(rng):
    values = rng.normal(size=(7, 7, 7, 1)).astype(np.float32)
    for axis, turn in enumerate(([[1, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]])):
        axes = [(1, 2), (2, 0)][axis]
        found = moved(values, tf.constant(turn, tf.float32), tf.zeros(3)).numpy()
        np.testing.assert_allclose(found, np.rot90(values, 1, axes), atol=1e-5)


def test_a_move_equals_scipy_s(volumes, rng):
    matrix = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    shift = np.array([0.7, -1.3, 2.2])
    centre = (np.array(volumes.shape[1:4]) - 1) / 2
    back = np.linalg.inv(matrix)
    expected = ndimage.affine_transform(
        volumes[0, ..., 0], back, centre - back @ (centre + shift), order=1, mode="grid-constant"
    )
    found = moved(volumes[0], tf.constant(matrix, tf.float32), tf.constant(shift, tf.float32)).numpy()[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_rotation_stays_within_its_degrees():
    """A rod along X, turned: the angle of its main axis."""
    x, y, z = np.indices((31, 31, 31)) - 15.0
    rod = np.exp(-0.5 * ((x / 8) ** 2 + (y / 1.5) ** 2 + (z / 1.5) ** 2)).astype(np.float32)
    angles = []
    for seed in range(20):
        found = augment(rod[None, ..., None], seeds_of(seed), Augmentation(rotate=10.0)).numpy()[0, ..., 0]
        places = np.stack([x, y, z]).reshape(3, -1)
        axis = np.linalg.eigh((places * found.ravel()) @ places.T)[1][:, -1]
        angles.append(np.degrees(np.arctan2(axis[1:], axis[0] * np.ones(2))))
    angles = (np.array(angles) + 90) % 180 - 90
    assert np.abs(angles).max() <= 10.5 and np.abs(angles).max() > 7 and np.std(angles, axis=0).min() > 3


def test_a_scale_changes_the_size_alike_along_every_axis():
    size = []
    for seed in range(20):
        found = augment(blob(32)[None], seeds_of(seed), Augmentation(scale=0.2)).numpy()[0, ..., 0]
        places = (np.indices(found.shape) - 15.5).reshape(3, -1)
        size.append(np.sqrt((places**2 * found.ravel()).sum(1) / found.sum()) / 3)
    size = np.array(size)
    np.testing.assert_allclose(size, size[:, :1] * np.ones(3), rtol=1e-3)
    assert size.min() >= 0.79 and size.max() <= 1.22 and np.std(size) > 0.07


def test_a_bias_field_is_smooth_bounded_and_leaves_the_background():
    """A polynomial of the second degree on intensity, z + mean / sd."""
    brain = np.ones((12, 14, 16), np.float32)
    brain[0] = 0
    x, y, z = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in brain.shape], indexing="ij"))
    terms = np.stack([x * 0 + 1, x, y, z, x * y, y * z, z * x, x * x, y * y, z * z], 1)
    for seed in range(10):
        found = augment(brain[None, ..., None], seeds_of(seed), Augmentation(bias=0.3)).numpy()[0, ..., 0]
        assert (found[0] == 0).all()
        field = ((found - brain) / (brain + GREY_OVER_SD))[1:].ravel()
        assert 0.005 < np.abs(field).max() <= 0.3
        inside = (brain > 0).ravel()
        fitted = terms[inside] @ np.linalg.lstsq(terms[inside], field, rcond=None)[0]
        np.testing.assert_allclose(fitted, field, atol=1e-5)


def test_noise_is_in_the_brain_alone_and_as_strong_as_asked(volumes):
    brain, sizes = volumes[0] != 0, []
    for seed in range(40):
        added = augment(volumes[:1], seeds_of(seed), Augmentation(noise=0.5)).numpy()[0] - volumes[0]
        assert (added[~brain] == 0).all()
        sizes.append(added[brain].std())
    assert max(sizes) <= 0.55 and np.mean(sizes) == pytest.approx(0.25, abs=0.08)


def test_it_runs_in_a_compiled_graph(volumes):
    compiled = tf.function(lambda volumes, seeds: augment(volumes, seeds, ALL))
    found = compiled(tf.constant(volumes), tf.constant(seeds_of(5, 6, 7))).numpy()
    np.testing.assert_allclose(found, augment(volumes, seeds_of(5, 6, 7), ALL).numpy(), atol=1e-4)
