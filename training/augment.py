"""Random changes of training volumes, inside the compiled graph; what a volume becomes depends on its seed alone."""

import math
from dataclasses import dataclass

import tensorflow as tf

GREY_OVER_SD = 4.9  # mean grey of a brain over its standard deviation, as in the MNI152 T1 template at 1 mm


@dataclass(frozen=True)
class Augmentation:
    """How far a volume may change: what is drawn lies evenly between a limit and its negative; 0: not at all."""

    shift: float = 0.0  # along each axis, voxels; what comes in from outside is 0
    rotate: float = 0.0  # about each axis, degrees
    scale: float = 0.0  # of every axis alike, as a share
    flip: bool = False  # left and right, half of the time
    bias: float = 0.0  # of intensity by a smooth field, as a share
    gain: float = 0.0  # of the z-scores, as a share
    noise: float = 0.0  # largest standard deviation of what is added to each voxel of the brain, z-scores


def augment(volumes: tf.Tensor, seeds: tf.Tensor, limits: Augmentation) -> tf.Tensor:
    """Move, turn, mirror, brighten volumes and add noise to them, at random.

    Args:
        volumes: (B, X, Y, Z, 1) float32 z-scores, 0 outside the brain, which stays 0.
        seeds: (B, 2) int32; the same seed changes a volume the same way, whatever else is in the batch.
        limits: of the changes; a rotation and a scale are about the centre, in voxels.
    Returns:
        (B, X, Y, Z, 1) float32.
    """
    if limits == Augmentation():
        return volumes

    def change(volume_and_seed: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        volume, seed = volume_and_seed
        draws = tf.random.stateless_uniform((5,), seed, -1.0, 1.0)
        # each change has a seed of its own, so that its draws don't depend on whether there is another change
        pose, field, size, noise = (tf.random.experimental.stateless_fold_in(seed, number) for number in range(4))
        if limits.rotate > 0 or limits.scale > 0:
            volume = moved(volume, _pose(pose, limits), draws[:3] * limits.shift)
        elif limits.shift > 0:
            for axis in range(3):
                volume = _shifted(volume, draws[axis] * limits.shift, axis)
        if limits.flip:
            volume = tf.cond(draws[4] > 0, lambda: tf.reverse(volume, [0]), lambda: volume)
        brain = tf.cast(volume != 0, tf.float32)
        if limits.bias > 0:
            volume += limits.bias * _field(field, volume.shape) * (volume + GREY_OVER_SD) * brain
        volume *= 1 + limits.gain * draws[3]
        if limits.noise > 0:
            sd = limits.noise * tf.random.stateless_uniform((), size)
            volume += sd * tf.random.stateless_normal(volume.shape, noise) * brain
        return volume

    return tf.map_fn(change, (volumes, seeds), fn_output_signature=tf.TensorSpec(volumes.shape[1:], tf.float32))


def moved(volume: tf.Tensor, matrix: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """A volume after `matrix` about its centre and then a shift, linearly interpolated; 0 comes in from outside.

    Args:
        volume: (X, Y, Z, 1) float32.
        matrix: (3, 3) of voxels, that can be inverted.
        shift: (3,) voxels.
    Returns:
        (X, Y, Z, 1) float32.
    """
    size = volume.shape[:3]
    centre = (tf.constant(list(size), tf.float32) - 1) / 2
    voxels = tf.stack(tf.meshgrid(*[tf.range(n, dtype=tf.float32) for n in size], indexing="ij"), -1)  # (X, Y, Z, 3)
    source = tf.tensordot(voxels - centre - shift, tf.linalg.inv(matrix), axes=[[3], [1]]) + centre
    low = tf.floor(source)
    upper = source - low  # (X, Y, Z, 3) share of the upper neighbour
    flat = tf.reshape(volume, [-1])
    total = tf.zeros(size)
    for corner in range(8):
        step = tf.constant([corner >> 2 & 1, corner >> 1 & 1, corner & 1], tf.float32)
        at = low + step
        inside = tf.reduce_all((at >= 0) & (at <= 2 * centre), axis=-1)
        weight = tf.reduce_prod(tf.where(step > 0, upper, 1 - upper), axis=-1)
        x, y, z = tf.unstack(tf.cast(tf.clip_by_value(at, 0, 2 * centre), tf.int32), axis=-1)
        taken = tf.gather(flat, (x * size[1] + y) * size[2] + z)
        total += tf.where(inside, taken * weight, 0.0)
    return total[..., None]


def _pose(seed: tf.Tensor, limits: Augmentation) -> tf.Tensor:
    """(3, 3): a rotation about X, Y and Z in turn, and a scale."""
    draws = tf.random.stateless_uniform((4,), seed, -1.0, 1.0)
    matrix = tf.eye(3) * (1 + limits.scale * draws[3])
    for axis in range(3):
        angle = draws[axis] * limits.rotate * (math.pi / 180)
        cos, sin, second, third = tf.cos(angle), tf.sin(angle), (axis + 1) % 3, (axis + 2) % 3
        turn = tf.scatter_nd(
            [[axis, axis], [second, second], [third, third], [second, third], [third, second]],
            [1.0, cos, cos, -sin, sin],
            (3, 3),
        )
        matrix = turn @ matrix
    return matrix


def _field(seed: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """(X, Y, Z, 1): a random polynomial of the second degree that is nowhere beyond 1 or -1."""
    x, y, z = (
        tf.reshape(tf.linspace(-1.0, 1.0, n), [-1 if a == axis else 1 for a in range(4)])
        for axis, n in enumerate(shape[:3])
    )
    weights = tf.random.stateless_uniform((9,), seed, -1.0, 1.0)
    terms = (x, y, z, x * y, y * z, z * x, x * x, y * y, z * z)
    total = tf.add_n(
        [weight * (term + tf.zeros(shape)) for weight, term in zip(tf.unstack(weights), terms, strict=True)]
    )
    return total / tf.reduce_sum(tf.abs(weights))


def _shifted(volume: tf.Tensor, by: tf.Tensor, axis: int) -> tf.Tensor:
    """Shift (X, Y, Z, 1) by a fraction of voxels along an axis, linearly."""
    size = volume.shape[axis]
    source = tf.range(size, dtype=tf.float32) - by
    low = tf.floor(source)
    parts = []
    for index, weight in ((low, 1 - (source - low)), (low + 1, source - low)):
        inside = tf.cast((index >= 0) & (index <= size - 1), tf.float32)
        taken = tf.gather(volume, tf.cast(tf.clip_by_value(index, 0, size - 1), tf.int32), axis=axis)
        parts.append(taken * tf.reshape(weight * inside, [-1 if a == axis else 1 for a in range(4)]))
    return parts[0] + parts[1]
