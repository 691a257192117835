"""Measures of a map alone, by hand and against scikit-learn; randomisation on a network of two layers."""

import numpy as np
import pytest
from networks import random_network
from sklearn.metrics import roc_auc_score

from attribution.evidence import localisation, randomisation, share_outside, smooth


def test_localisation_by_hand(rng):
    values, truth = np.zeros((6, 5, 4)), np.zeros((6, 5, 4), bool)
    truth[0, 0, :2] = True
    brain = np.ones_like(truth)
    values[0, 0, 0], values[3, 0, 0] = -1.0, 3.0
    measured = localisation(values, truth, brain, (2.0, 1.0, 1.0))
    # of 2 x 118 pairs: the true -1 beats all but the 3; the true 0 ties with 117
    assert measured["auc"] == pytest.approx((117 + 117 / 2) / (2 * 118))
    assert measured["enrichment"] == pytest.approx((1 / 4) / (2 / 120))
    assert measured["peak_mm"] == 6.0
    noise = rng.normal(size=truth.shape)
    expected = roc_auc_score(truth.ravel(), np.abs(noise).ravel())
    assert localisation(noise, truth, brain, (1, 1, 1))["auc"] == pytest.approx(expected)


def test_localisation_looks_inside_the_brain_only(rng):
    values, truth = rng.normal(size=(6, 5, 4)), rng.uniform(size=(6, 5, 4)) > 0.7
    brain = np.zeros_like(truth)
    brain[:3] = True
    beyond = np.where(brain, values, 1e6)
    assert localisation(values, truth, brain, (1, 1, 1)) == localisation(beyond, truth, brain, (1, 1, 1))
    with pytest.raises(ValueError, match="some but not all"):
        localisation(values, np.zeros_like(truth), brain, (1, 1, 1))


def test_share_outside():
    values = np.array([1.0, -3.0, 0.0, 4.0])
    assert share_outside(values, np.array([True, False, True, True])) == pytest.approx(3 / 8)
    assert share_outside(np.zeros(4), np.zeros(4, bool)) == 0


def test_smoothing_keeps_the_sum_and_the_width():
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1
    blurred = smooth(point, (2.0, 2.0, 1.0), 8.0)
    assert blurred.sum() == pytest.approx(1, abs=1e-3)
    assert blurred[22, 20, 20] == pytest.approx(blurred[20, 20, 20] / 2, rel=1e-3)  # half its height 4 mm away
    assert blurred[20, 20, 24] == pytest.approx(blurred[20, 20, 20] / 2, rel=1e-3)


# ---- Randomisation ---------------------------------------------------------------------------------------------------


class Dense:
    """A layer of numbers."""

    def __init__(self, name, weights):
        self.name, self.weights = name, weights

    def get_weights(self):
        return [self.weights.copy()]

    def set_weights(self, weights):
        (self.weights,) = weights


class Sum:
    """A network whose map is the sum of its layers' weights."""

    def __init__(self, **weights):
        self.layers = [Dense(name, values) for name, values in weights.items()]

    def get_weights(self):
        return [weights for layer in self.layers for weights in layer.get_weights()]

    def set_weights(self, weights):
        for layer, values in zip(self.layers, weights, strict=True):
            layer.set_weights([values])

    def map(self):
        return sum(layer.weights for layer in self.layers)


def test_layers_are_permuted_from_the_output_down_and_put_back(rng):
    weights = {name: rng.normal(size=(5, 4, 3)) for name in ("stem_conv", "stem_norm", "head")}
    network, maps, brain = Sum(**weights), [], np.ones((5, 4, 3), bool)

    def make_map():
        maps.append(network.map())
        return maps[-1]

    curve = randomisation(network, make_map, network.map(), brain, layers=("head", "stem"), seed=0)
    assert list(curve) == ["trained", "head", "stem"] and curve["trained"] == pytest.approx(1)
    permuted = maps[1] - weights["stem_conv"] - weights["stem_norm"]  # the head alone
    np.testing.assert_allclose(np.sort(permuted, axis=None), np.sort(weights["head"], axis=None), atol=1e-12)
    assert np.abs(permuted - weights["head"]).max() > 0.1
    assert np.abs(maps[2] - maps[1]).max() > 0.1  # the stem too
    np.testing.assert_array_equal(network.map(), maps[0])


def test_a_constant_map_has_no_correlation():
    network, brain = Sum(head=np.arange(60.0).reshape(5, 4, 3)), np.ones((5, 4, 3), bool)
    curve = randomisation(network, network.map, np.ones((5, 4, 3)), brain, layers=("head",), seed=0)
    assert curve == {"trained": 0.0, "head": 0.0}


def test_weights_come_back_when_randomisation_is_interrupted():
    network, calls = random_network((16, 16, 16)), []
    before = network.get_weights()

    def interrupted():
        calls.append(network.get_weights())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.ones((16, 16, 16))

    with pytest.raises(KeyboardInterrupt):
        brain = np.ones((16, 16, 16), bool)
        randomisation(network, interrupted, np.ones((16, 16, 16)), brain, layers=("log_hazard", "stem"), seed=0)
    assert not all(np.array_equal(*pair) for pair in zip(before, calls[1], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(before, network.get_weights(), strict=True))
