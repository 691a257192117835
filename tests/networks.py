"""A small random network, and gradients as TensorFlow gives them, for the tests of explanations."""

import keras
import numpy as np
import tensorflow as tf

from model import build_model


def random_network(shape: tuple[int, int, int]) -> keras.Model:
    """Random weights, with statistics of normalisation that are not the identity."""
    model = build_model(shape, width=4, seed=3)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


@tf.function
def _traced_gradient(model: keras.Model, volumes: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(volumes)
        log_hazard = model(volumes, training=False)
    return tape.gradient(log_hazard, volumes)


def plain_gradient(model: keras.Model, volumes: np.ndarray) -> np.ndarray:
    """d log-hazard / d voxel of each volume, (B, X, Y, Z, 1), with the stem as Keras computes it."""
    return _traced_gradient(model, tf.constant(volumes)).numpy()
