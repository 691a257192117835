"""A network's log-hazard and its gradients, for `explain.py`: traced once, and cheap on a CPU."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # without it the stem's gradient is 100 times slower
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model import STAGES, feature_model

CHUNK_VOXELS = 2**19  # of the volumes in memory at a time: 4 of 48x56x48, 1 of 128x128x128


@dataclass(frozen=True)
class Gradients:
    """A network's functions in the graph, traced once; they read the weights as they are when called."""

    predict: Callable[[Any], np.ndarray]  # (B, X, Y, Z, 1) -> (B,)
    gradient: Callable[[Any], tf.Tensor]  # (B, X, Y, Z, 1) -> the same: of each volume's own log-hazard
    stages: Callable[[Any], dict[str, tuple[tf.Tensor, tf.Tensor]]]  # -> activation and gradient of every stage


@functools.lru_cache(maxsize=1)
def compiled(model: keras.Model) -> Gradients:
    """The functions of a network, built on the first call and kept until another network's are asked for."""
    forward = _with_folded_stem(model)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)]

    @tf.function(input_signature=signature)
    def run(volumes):
        return tf.cast(forward(volumes), tf.float32)[:, 0]

    def predict(volumes):
        size = chunk_size(volumes[0])
        return np.concatenate([run(volumes[at : at + size]).numpy() for at in range(0, len(volumes), size)])

    @tf.function(input_signature=signature)
    def gradient(volumes):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(volumes)
            log_hazard = forward(volumes)
        return tape.gradient(log_hazard, volumes)

    @tf.function(input_signature=signature)
    def stages(volumes):
        outputs = keras.Model(model.input, [*[model.get_layer(name).output for name in STAGES], model.output])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(volumes)
            *activations, log_hazard = outputs(volumes, training=False)
        gradients = tape.gradient(log_hazard, activations)
        return dict(zip(STAGES, zip(activations, gradients, strict=True), strict=True))

    return Gradients(predict, gradient, stages)


def _with_folded_stem(model: keras.Model) -> Callable[[Any], Any]:
    """The network, its stride-2 stem computed as a stride-1 convolution over 2x2x2 blocks of voxels.

    The same kernel and the same numbers, but on a CPU the gradient with respect to the volume is 3 times cheaper.
    A network without such a stem is returned as it is.
    """
    names = [layer.name for layer in model.layers]
    if "stem_conv" not in names or (stem := model.get_layer("stem_conv")).strides != (2, 2, 2):
        return functools.partial(model, training=False)
    rest = keras.Model(stem.output, model.output)
    sizes, width = model.input_shape[1:4], stem.kernel_size[0]
    half = (width + 1) // 2  # blocks that a kernel spans
    num_out = [-(-size // 2) for size in sizes]
    before = [max((out - 1) * 2 + width - size, 0) // 2 for out, size in zip(num_out, sizes, strict=True)]
    blocks = [out + half - 1 for out in num_out]
    margins = [(low, 2 * count - size - low) for low, count, size in zip(before, blocks, sizes, strict=True)]

    def forward(volumes):
        x = tf.cast(volumes[..., 0], stem.compute_dtype)
        x = tf.pad(x, [(0, 0), *margins])  # (B, 2 nx, 2 ny, 2 nz)
        x = tf.reshape(x, (-1, blocks[0], 2, blocks[1], 2, blocks[2], 2))
        x = tf.reshape(tf.transpose(x, (0, 1, 3, 5, 2, 4, 6)), (-1, *blocks, 8))
        kernel = tf.pad(tf.cast(stem.kernel, stem.compute_dtype), [(0, 2 * half - width)] * 3 + [(0, 0)] * 2)
        kernel = tf.reshape(kernel, (half, 2, half, 2, half, 2, -1))
        kernel = tf.reshape(tf.transpose(kernel, (0, 2, 4, 1, 3, 5, 6)), (half, half, half, 8, -1))
        return rest(tf.nn.conv3d(x, kernel, (1, 1, 1, 1, 1), "VALID"), training=False)

    return forward


def chunk_size(volume: np.ndarray) -> int:
    """Volumes of this size to hold in memory at a time."""
    return max(1, CHUNK_VOXELS // volume.size)


@functools.lru_cache(maxsize=1)
def compiled_outputs(model: keras.Model) -> tuple[Callable[[Any], np.ndarray], Callable[[Any, Any], np.ndarray]]:
    """All that stage 1 hands to stage 2, and the gradient of any weighted sum of it.

    Returns:
        (B, X, Y, Z, 1) -> (B, F + 1): the features, then the log-hazard; and, given weights (B, F + 1) besides, the
        gradient of each volume's own weighted sum, (B, X, Y, Z, 1).
    """
    forward = _with_folded_stem(feature_model(model))
    volumes_like = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)

    @tf.function(input_signature=[volumes_like])
    def joined(volumes):
        return tf.concat([tf.cast(part, tf.float32) for part in forward(volumes)], axis=1)

    @tf.function(input_signature=[volumes_like, tf.TensorSpec((None, None), tf.float32)])
    def gradient(volumes, weights):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(volumes)
            total = tf.reduce_sum(joined(volumes) * weights)
        return tape.gradient(total, volumes)

    def in_chunks(run, *arrays):
        size = chunk_size(arrays[0][0])
        starts = range(0, len(arrays[0]), size)
        return np.concatenate([run(*(part[at : at + size] for part in arrays)).numpy() for at in starts])

    return functools.partial(in_chunks, joined), functools.partial(in_chunks, gradient)
