"""The log-hazard of stage 1 and its gradients as functions of volumes: traced once, and cheap on a CPU."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # without it the stem's gradient is 100 times slower

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from model import RESNET_STAGES, feature_model
from runs.errors import InputError

CHUNK_VOXELS = 2**19  # voxels in memory at a time: 4 volumes of 48x56x48, 1 of 128x128x128


@dataclass(frozen=True)
class TracedNetwork:
    """A network as functions of volumes, each traced once. They use the weights that the network has when called."""

    predict: Callable[[np.ndarray], np.ndarray]  # (B, X, Y, Z, 1) -> (B,) log-hazard
    gradient: Callable[[np.ndarray], tf.Tensor]  # (B, X, Y, Z, 1) -> the same shape: d log-hazard / d voxel
    stages: Callable[[np.ndarray], dict[str, tuple[tf.Tensor, tf.Tensor]]]
    # (B, X, Y, Z, 1) -> of every stage its activation and the log-hazard's gradient there, (B, x, y, z, C) each


@functools.lru_cache(maxsize=1)
def trace_network(model: keras.Model) -> TracedNetwork:
    """Trace a network's functions at the first call, and keep them until another network is asked for.

    Args:
        model: (B, X, Y, Z, 1) -> (B, 1) log-hazard, with layers called `stage1` ... `stage4` for `stages`.
    Returns:
        Functions of any number of volumes; `predict` cuts them into chunks by itself.
    """
    forward = _with_folded_stem(model)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)]

    @tf.function(input_signature=signature)
    def log_hazards(volumes: tf.Tensor) -> tf.Tensor:
        return tf.cast(forward(volumes), tf.float32)[:, 0]

    def predict(volumes: np.ndarray) -> np.ndarray:
        size = chunk_size(volumes[0])
        return np.concatenate([log_hazards(volumes[at : at + size]).numpy() for at in range(0, len(volumes), size)])

    @tf.function(input_signature=signature)
    def gradient(volumes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(volumes)
            log_hazard = forward(volumes)
        return tape.gradient(log_hazard, volumes)

    @tf.function(input_signature=signature)
    def stages(volumes: tf.Tensor) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        outputs = keras.Model(model.input, [*[model.get_layer(name).output for name in RESNET_STAGES], model.output])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(volumes)
            *activations, log_hazard = outputs(volumes, training=False)
        gradients = tape.gradient(log_hazard, activations)
        return dict(zip(RESNET_STAGES, zip(activations, gradients, strict=True), strict=True))

    return TracedNetwork(predict, gradient, stages)


def stage_gradient(model: keras.Model, volume: np.ndarray, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """A stage's activation A and the log-hazard's gradient dy/dA there.

    Args:
        model: of `model.build_model`.
        volume: (X, Y, Z, 1) float32.
        layer: one of `stage1` ... `stage4`.
    Returns:
        Two (x, y, z, C) float32, over the stage's cells and channels.
    Raises:
        InputError: an unknown stage, or a volume of another shape than the model's.
    """
    if layer not in RESNET_STAGES:
        raise InputError(f"GRAD_CAM_LAYER: expected one of {', '.join(RESNET_STAGES)}. Received: {layer!r}")
    check_volumes(model, volume, volume[None])
    activation, gradient = trace_network(model).stages(volume[None])[layer]
    return activation.numpy()[0].astype(np.float32), gradient.numpy()[0].astype(np.float32)


def check_volumes(model: keras.Model, volume: np.ndarray, background: np.ndarray) -> None:
    """Refuse volumes that the network can't read.

    Args:
        model: with an input (B, X, Y, Z, 1).
        volume: expected (X, Y, Z, 1).
        background: expected (B, X, Y, Z, 1), B at least 1.
    Raises:
        InputError: another shape, or no background.
    """
    expected = tuple(model.input_shape[1:])
    if tuple(volume.shape) != expected or tuple(background.shape[1:]) != expected or len(background) == 0:
        raise InputError(
            f"Explanation: expected a volume {expected} as the model was trained on, and at least one such volume as "
            f"background. Received: {tuple(volume.shape)} and {tuple(background.shape)}. Set TARGET_SHAPE as trained."
        )


def _with_folded_stem(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Compute the network's stride-2 stem as a stride-1 convolution over blocks of 2x2x2 voxels.

    The kernel and the result are the same, but on a CPU the gradient with respect to the volume is 3 times cheaper.
    A network without such a stem is returned as it is.
    """
    names = [layer.name for layer in model.layers]
    if "stem_conv" not in names or (stem := model.get_layer("stem_conv")).strides != (2, 2, 2):
        return functools.partial(model, training=False)
    rest = keras.Model(stem.output, model.output)
    sizes, width = model.input_shape[1:4], stem.kernel_size[0]
    half = (width + 1) // 2  # blocks that a kernel spans
    num_out = [-(-size // 2) for size in sizes]  # nx, ny, nz: what the stem puts out
    before = [max((out - 1) * 2 + width - size, 0) // 2 for out, size in zip(num_out, sizes, strict=True)]
    blocks = [out + half - 1 for out in num_out]  # bx, by, bz
    margins = [(low, 2 * count - size - low) for low, count, size in zip(before, blocks, sizes, strict=True)]

    def forward(volumes: tf.Tensor) -> tf.Tensor:
        x = tf.cast(volumes[..., 0], stem.compute_dtype)  # (B, X, Y, Z)
        x = tf.pad(x, [(0, 0), *margins])  # (B, 2 bx, 2 by, 2 bz)
        x = tf.reshape(x, (-1, blocks[0], 2, blocks[1], 2, blocks[2], 2))
        x = tf.reshape(tf.transpose(x, (0, 1, 3, 5, 2, 4, 6)), (-1, *blocks, 8))  # (B, bx, by, bz, 8)
        kernel = tf.pad(tf.cast(stem.kernel, stem.compute_dtype), [(0, 2 * half - width)] * 3 + [(0, 0)] * 2)
        kernel = tf.reshape(kernel, (half, 2, half, 2, half, 2, -1))
        kernel = tf.reshape(tf.transpose(kernel, (0, 2, 4, 1, 3, 5, 6)), (half, half, half, 8, -1))
        return rest(tf.nn.conv3d(x, kernel, (1, 1, 1, 1, 1), "VALID"), training=False)  # from (B, nx, ny, nz, C)

    return forward


def chunk_size(volume: np.ndarray) -> int:
    """How many volumes of the size of this one, (X, Y, Z, 1), are held in memory at a time."""
    return max(1, CHUNK_VOXELS // volume.size)


@functools.lru_cache(maxsize=1)
def trace_outputs(
    model: keras.Model,
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Trace what stage 1 hands to stage 2, and the gradient of any weighted sum of it.

    Args:
        model: of `model.build_model`.
    Returns:
        `outputs`: (B, X, Y, Z, 1) -> (B, F + 1), the F features, then the log-hazard.
        `gradient_of_weighted_outputs`: (B, X, Y, Z, 1) and weights (B, F + 1) -> (B, X, Y, Z, 1), the gradient of each
        volume's own weighted sum of outputs.
    """
    forward = _with_folded_stem(feature_model(model))
    volumes_like = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)

    @tf.function(input_signature=[volumes_like])
    def joined(volumes: tf.Tensor) -> tf.Tensor:
        return tf.concat([tf.cast(output, tf.float32) for output in forward(volumes)], axis=1)

    @tf.function(input_signature=[volumes_like, tf.TensorSpec((None, None), tf.float32)])
    def gradient(volumes: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(volumes)
            total = tf.reduce_sum(joined(volumes) * weights)
        return tape.gradient(total, volumes)

    def in_chunks(function: Callable[..., tf.Tensor], *arrays: np.ndarray) -> np.ndarray:
        size = chunk_size(arrays[0][0])
        starts = range(0, len(arrays[0]), size)
        return np.concatenate([function(*(array[at : at + size] for array in arrays)).numpy() for at in starts])

    return functools.partial(in_chunks, joined), functools.partial(in_chunks, gradient)
