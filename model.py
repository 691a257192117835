"""The 3D ResNet-18: one registered volume in, one log-hazard out; every layer named.

Source: He et al. (2016), arXiv 1512.03385, in 3-D as in Aghajanian et al. (2025): 7x7x7 stride-2
stem, 3x3x3 max-pool, four stages of two basic blocks at WIDTH x 1, 2, 4, 8, global average pooling.
"""

import math
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: half the speed

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

RESNET_STAGES = ("stage1", "stage2", "stage3", "stage4")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "float64")
SMALLEST = 4  # voxels: oneDNN's bfloat16 gradients of kernels are NaN on smaller volumes (TensorFlow 2.21, AVX-512)
GROUPS = 8  # of channels, in group normalisation


def build_model(
    shape: tuple[int, int, int],
    *,
    width: int = 64,
    norm: str = "batch",
    dropout: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Build the network of stage 1.

    Args:
        shape: (X, Y, Z) voxels of a volume.
        width: channels of the first stage; the features are 8 * width.
        norm: `batch` as published, or `group`.
        dropout: rate between the features and the output.
        precision: `float32`; `mixed_bfloat16` or `mixed_float16`, where weights, features and log-hazard stay in
            float32; or `float64`, all but the pooling, to check gradients with.
        seed: of the initial weights and of dropout.
    Returns:
        A model (B, X, Y, Z, 1) float32 -> (B, 1) log-hazard; higher = earlier event.
        Layers to find by name: `stem`, `stage1` ... `stage4`, `stage1_block1_conv1` ..., `features`, `log_hazard`.
        The output has no bias: it shifts every risk alike, so neither loss can learn it.
    Raises:
        ValueError: an unknown `norm` or `precision`, or a volume smaller than 16 voxels along an axis.
    Source: the parameter count at width 64 is the published one, 33,170,113, less that bias.
    """
    if norm not in ("batch", "group"):
        raise ValueError(f"norm: expected 'batch' or 'group'. Received: {norm!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}. Received: {precision!r}")
    if min(shape) < 16:
        raise ValueError(f"shape: expected at least 16 voxels along every axis. Received: {shape}")
    make = _Layers(norm, precision, np.random.default_rng(seed))
    head = "float64" if precision == "float64" else "float32"
    volume = keras.Input((*shape, 1), name="volume")  # (B, X, Y, Z, 1)
    x = make.conv(volume, width, "stem_conv", kernel=7, stride=2)
    x = make.relu(make.norm(x, "stem_norm"), "stem")
    pool = precision if precision == "mixed_bfloat16" else "float32"  # TensorFlow has no other kernel on a CPU
    x = layers.MaxPooling3D(3, strides=2, padding="same", name="stem_pool", dtype=pool)(x)
    for index, stage in enumerate(RESNET_STAGES):
        for block in (1, 2):
            x = make.block(x, width * 2**index, f"{stage}_block{block}", stride=2 if index > 0 and block == 1 else 1)
        x = layers.Activation("linear", name=stage, dtype=precision)(x)
    x = layers.GlobalAveragePooling3D(name="features", dtype=head)(x)  # (B, 8 * width)
    x = layers.Dropout(dropout, seed=_draw(make.rng), name="dropout", dtype=head)(x)
    log_hazard = layers.Dense(
        1, use_bias=False, kernel_initializer=_initial(make.rng, 0.1), name="log_hazard", dtype=head
    )(x)
    return keras.Model(volume, log_hazard, name="resnet18_3d")


def feature_model(model: keras.Model) -> keras.Model:
    """Make a model of the same network with two outputs: features (B, 8 * width) and log-hazard (B, 1).

    Args:
        model: of `build_model`.
    """
    return keras.Model(model.input, [model.get_layer("features").output, model.output], name="features_and_risk")


def segments(model: keras.Model) -> list[Callable[..., Any]]:
    """Cut the network after its stem and each of its stages, for training in less memory.

    Args:
        model: of `build_model`.
    Returns:
        Functions to call one after the other, each on the values of the one before and `training`. Only what passes
        between them is kept for the gradient; what is within a stage is computed once more.
    """
    ends = [model.input, *(model.get_layer(name).output for name in ("stem_pool", *RESNET_STAGES)), model.output]
    *stages, head = (keras.Model(begin, end) for begin, end in pairwise(ends))
    return [*map(_recomputed, stages), head]  # the head's dropout would drop other features if it were computed again


def _recomputed(piece: keras.Model) -> Callable[..., Any]:
    def call(values: tf.Tensor, training: bool) -> tf.Tensor:
        return tf.recompute_grad(lambda values: piece(values, training=training))(values)

    return call


class _Layers:
    """Makes the layers of one network: its normalisation, its precision, and the generator of its weights."""

    def __init__(self, norm: str, precision: str, rng: np.random.Generator):
        self.kind, self.precision, self.rng = norm, precision, rng

    def block(self, x: keras.KerasTensor, channels: int, name: str, *, stride: int) -> keras.KerasTensor:
        """A basic block: two 3x3x3 convolutions beside a shortcut, relu(F(x) + x)."""
        shortcut = x
        y = self.conv(x, channels, f"{name}_conv1", stride=stride)
        y = self.relu(self.norm(y, f"{name}_norm1"), f"{name}_relu1")
        y = self.norm(self.conv(y, channels, f"{name}_conv2"), f"{name}_norm2")
        if stride > 1 or x.shape[-1] != channels:
            shortcut = self.conv(x, channels, f"{name}_shortcut_conv", kernel=1, stride=stride)
            shortcut = self.norm(shortcut, f"{name}_shortcut_norm")
        return self.relu(layers.Add(name=f"{name}_add", dtype=self.precision)([y, shortcut]), f"{name}_relu2")

    def conv(
        self, x: keras.KerasTensor, channels: int, name: str, *, kernel: int = 3, stride: int = 1
    ) -> keras.KerasTensor:
        small = self.precision == "mixed_bfloat16" and min(x.shape[1:4]) < SMALLEST
        return layers.Conv3D(
            channels,
            kernel,
            strides=stride,
            padding="same",
            use_bias=False,
            kernel_initializer=_initial(self.rng),
            name=name,
            dtype="float32" if small else self.precision,
        )(x)

    def norm(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        if self.kind == "group":
            return layers.GroupNormalization(math.gcd(GROUPS, x.shape[-1]), name=name, dtype=self.precision)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name, dtype=self.precision)(x)

    def relu(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.ReLU(name=name, dtype=self.precision)(x)


def _initial(rng: np.random.Generator, scale: float = 2.0) -> keras.initializers.Initializer:
    """He's initial weights; the output's are smaller, so that the first risks are near 0."""
    return keras.initializers.VarianceScaling(scale, mode="fan_in", distribution="truncated_normal", seed=_draw(rng))


def _draw(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
