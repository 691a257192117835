"""What stage 1 hands to stage 2, and the gradient of any weighted sum of it."""

import numpy as np
import tensorflow as tf

from attribution.gradients import compiled_outputs
from model import build_model, feature_model


def test_outputs_and_their_weighted_gradient(rng):
    model = build_model((16, 16, 16), width=4, norm="group")
    outputs, pull = compiled_outputs(model)
    volumes = rng.normal(size=(2, 16, 16, 16, 1)).astype(np.float32)
    features, log_hazard = (part.numpy() for part in feature_model(model)(volumes, training=False))
    np.testing.assert_allclose(outputs(volumes), np.concatenate([features, log_hazard], axis=1), atol=1e-5)

    weights = rng.normal(size=(2, features.shape[1] + 1)).astype(np.float32)
    gradient = pull(volumes, weights)
    with tf.GradientTape() as tape:  # the network as Keras has it, without the folded stem
        tape.watch(given := tf.constant(volumes))
        total = tf.reduce_sum(tf.concat(feature_model(model)(given, training=False), axis=1) * weights)
    expected = tape.gradient(total, given).numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(pull(volumes[1:], weights[1:])[0], gradient[1], atol=1e-5)  # each volume by itself
