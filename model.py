"""The 3D ResNet-18: one registered volume in, one log-hazard out; every layer named.

Source: He et al. (2016), arXiv 1512.03385, in 3-D as in Aghajanian et al. (2025): 7x7x7 stride-2
stem, 3x3x3 max-pool, four stages of two basic blocks at WIDTH x 1, 2, 4, 8, global average pooling.
"""

import math
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: half the speed

import keras
import numpy as np
from keras import layers

STAGES = ("stage1", "stage2", "stage3", "stage4")
GROUPS = 8  # of channels, in group normalisation


def build_model(
    shape: tuple[int, int, int], *, width: int = 64, norm: str = "batch", dropout: float = 0.0, seed: int = 0
) -> keras.Model:
    """Build the network of stage 1.

    Args:
        shape: (X, Y, Z) voxels of a volume.
        width: channels of the first stage; the features are 8 * width.
        norm: `batch` as published, or `group`.
        dropout: rate between the features and the output.
        seed: of the initial weights and of dropout.
    Returns:
        A model (B, X, Y, Z, 1) float32 -> (B, 1) float32 log-hazard; higher = earlier event.
        Layers to find by name: `stem`, `stage1` ... `stage4`, `stage1_block1_conv1` ..., `features`, `log_hazard`.
        The output has no bias: it shifts every risk alike, so neither loss can learn it.
    Raises:
        ValueError: an unknown `norm`, or a volume smaller than 16 voxels along an axis.
    Source: the parameter count at width 64 is the published one, 33,170,113, less that bias.
    """
    if norm not in ("batch", "group"):
        raise ValueError(f"norm: expected 'batch' or 'group'. Received: {norm!r}")
    if min(shape) < 16:
        raise ValueError(f"shape: expected at least 16 voxels along every axis. Received: {shape}")
    rng = np.random.default_rng(seed)
    volume = keras.Input((*shape, 1), name="volume")  # (B, X, Y, Z, 1)
    x = _conv(volume, width, "stem_conv", kernel=7, stride=2, rng=rng)
    x = layers.ReLU(name="stem")(_norm(x, norm, "stem_norm"))
    x = layers.MaxPooling3D(3, strides=2, padding="same", name="stem_pool")(x)
    for index, stage in enumerate(STAGES):
        for block in (1, 2):
            stride = 2 if index > 0 and block == 1 else 1
            name = f"{stage}_block{block}"
            x = _block(x, width * 2**index, name, stride=stride, norm=norm, rng=rng)
        x = layers.Activation("linear", name=stage)(x)
    x = layers.GlobalAveragePooling3D(name="features", dtype="float32")(x)  # (B, 8 * width)
    x = layers.Dropout(dropout, seed=_draw(rng), name="dropout", dtype="float32")(x)
    log_hazard = layers.Dense(
        1, use_bias=False, kernel_initializer=_initial(rng, 0.1), name="log_hazard", dtype="float32"
    )(x)
    return keras.Model(volume, log_hazard, name="resnet18_3d")


def feature_model(model: keras.Model) -> keras.Model:
    """The same network with two outputs: features (B, 8 * width) and log-hazard (B, 1)."""
    return keras.Model(model.input, [model.get_layer("features").output, model.output], name="features_and_risk")


def _block(x, channels: int, name: str, *, stride: int, norm: str, rng: np.random.Generator):
    shortcut = x
    y = _conv(x, channels, f"{name}_conv1", stride=stride, rng=rng)
    y = layers.ReLU(name=f"{name}_relu1")(_norm(y, norm, f"{name}_norm1"))
    y = _norm(_conv(y, channels, f"{name}_conv2", rng=rng), norm, f"{name}_norm2")
    if stride > 1 or x.shape[-1] != channels:
        shortcut = _conv(x, channels, f"{name}_shortcut_conv", kernel=1, stride=stride, rng=rng)
        shortcut = _norm(shortcut, norm, f"{name}_shortcut_norm")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, shortcut]))


def _conv(x, channels: int, name: str, *, kernel: int = 3, stride: int = 1, rng: np.random.Generator):
    return layers.Conv3D(
        channels, kernel, strides=stride, padding="same", use_bias=False, kernel_initializer=_initial(rng), name=name
    )(x)


def _norm(x, norm: str, name: str):
    if norm == "group":
        return layers.GroupNormalization(math.gcd(GROUPS, x.shape[-1]), name=name)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def _initial(rng: np.random.Generator, scale: float = 2.0) -> keras.initializers.Initializer:
    """He's initial weights; the output's are smaller, so that the first risks are near 0."""
    return keras.initializers.VarianceScaling(scale, mode="fan_in", distribution="truncated_normal", seed=_draw(rng))


def _draw(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
