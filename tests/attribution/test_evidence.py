"""Measures of a map alone, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from attribution.evidence import localisation, share_outside, smooth


def test_localisation_by_hand(rng):
    values, truth = np.zeros((6, 5, 4)), np.zeros((6, 5, 4), bool)
    truth[0, 0, :2] = True
    brain = np.ones_like(truth)
    values[0, 0, 0], values[3, 0, 0] = -1.0, 3.0
    found = localisation(values, truth, brain, (2.0, 1.0, 1.0))
    # of 2 x 118 pairs: the true -1 beats all but the 3; the true 0 ties with 117
    assert found["auc"] == pytest.approx((117 + 117 / 2) / (2 * 118))
    assert found["enrichment"] == pytest.approx((1 / 4) / (2 / 120))
    assert found["peak_mm"] == 6.0
    noise = rng.normal(size=truth.shape)
    wanted = roc_auc_score(truth.ravel(), np.abs(noise).ravel())
    assert localisation(noise, truth, brain, (1, 1, 1))["auc"] == pytest.approx(wanted)


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
