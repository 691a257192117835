"""The traced functions of a network against plain TensorFlow, and against finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import plain_gradient, random_network

from attribution.gradients import stage_gradient, trace_network, trace_outputs
from model import build_model, feature_model


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 20, 23), (19, 18, 16)])
def test_folded_stem_changes_neither_value_nor_gradient(rng, shape):
    model = build_model(shape, width=4, seed=1)
    volumes = rng.normal(size=(2, *shape, 1)).astype(np.float32)
    network = trace_network(model)
    np.testing.assert_allclose(network.predict(volumes), model(volumes, training=False).numpy()[:, 0], rtol=2e-5)
    expected = plain_gradient(model, volumes)
    assert np.abs(network.gradient(volumes).numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_stage_gradient_by_finite_differences(rng):
    network = random_network((16, 20, 17))
    volume = rng.normal(size=(16, 20, 17, 1)).astype(np.float32)
    rest = keras.Model(network.get_layer("stage2").output, network.output)
    activation, gradient = stage_gradient(network, volume, "stage2")
    step = 1e-3 * gradient / np.linalg.norm(gradient)
    up, down = (float(rest(activation[None] + sign * step)[0, 0]) for sign in (1, -1))
    assert (up - down) / 2e-3 == pytest.approx(np.linalg.norm(gradient), rel=2e-2)


def test_outputs_and_their_weighted_gradient(rng):
    model = build_model((16, 16, 16), width=4, norm="group")
    outputs, gradient_of_weighted_outputs = trace_outputs(model)
    volumes = rng.normal(size=(2, 16, 16, 16, 1)).astype(np.float32)
    features, log_hazard = (part.numpy() for part in feature_model(model)(volumes, training=False))
    np.testing.assert_allclose(outputs(volumes), np.concatenate([features, log_hazard], axis=1), atol=1e-5)

    weights = rng.normal(size=(2, features.shape[1] + 1)).astype(np.float32)
    gradient = gradient_of_weighted_outputs(volumes, weights)
    with tf.GradientTape() as tape:  # the network as Keras has it, without the folded stem
        tape.watch(given := tf.constant(volumes))
        total = tf.reduce_sum(tf.concat(feature_model(model)(given, training=False), axis=1) * weights)
    expected = tape.gradient(total, given).numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())  # of float32, on any processor
    alone = gradient_of_weighted_outputs(volumes[1:], weights[1:])[0]
    np.testing.assert_allclose(alone, gradient[1], atol=1e-5)  # each volume by itself
