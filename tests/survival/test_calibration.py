import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from survival.calibration import calibration_intercept, calibration_slope, d_calibration

ONE = np.ones((1, 4))


def test_slope_and_intercept_are_scikit_learns():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=300) * 2
    outcome, weight = rng.random(300) < 1 / (1 + np.exp(-(0.7 * logit - 0.4))), rng.uniform(0, 3, 300)
    sklearn = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, None], outcome, sample_weight=weight)
    assert calibration_slope(weight[None], logit, outcome)[0] == pytest.approx(sklearn.coef_[0, 0], rel=1e-5)
    intercept = calibration_intercept(weight[None], logit, outcome)[0]
    predicted = 1 / (1 + np.exp(-(logit + intercept)))  # at the maximum as many events are predicted as seen
    assert (weight * predicted).sum() == pytest.approx((weight * outcome).sum())


def test_right_predictions_have_slope_one_and_intercept_zero():
    rng = np.random.default_rng(1)
    logit = rng.normal(size=40_000)
    outcome = rng.random(40_000) < 1 / (1 + np.exp(-logit))
    weights = np.ones((1, 40_000))
    assert calibration_slope(weights, logit, outcome)[0] == pytest.approx(1, abs=0.04)
    assert calibration_intercept(weights, logit, outcome)[0] == pytest.approx(0, abs=0.04)
    assert calibration_slope(weights, 2 * logit, outcome)[0] == pytest.approx(0.5, abs=0.02)  # too extreme
    assert calibration_intercept(weights, logit - 1, outcome)[0] == pytest.approx(1, abs=0.04)  # too low


@pytest.mark.parametrize(
    ("outcome", "logit", "expected"),
    [
        ([False, False, True, True], [-1, 0, 1, 2], np.inf),
        ([True, True, False, False], [-1, 0, 1, 2], -np.inf),
        ([True] * 4, [-1, 0, 1, 2], np.nan),
        ([True, False, True, False], [1, 1, 1, 1], np.nan),
    ],
)
def test_a_slope_without_a_maximum(outcome, logit, expected):
    slope = calibration_slope(ONE, np.array(logit, float), np.array(outcome))
    np.testing.assert_array_equal(slope, expected)


@pytest.mark.parametrize("outcome", [[True] * 4, [False] * 4])
def test_an_intercept_without_two_outcomes(outcome):
    assert np.isnan(calibration_intercept(ONE, np.array([-1.0, 0, 1, 2]), np.array(outcome))).all()


def test_d_calibration_by_hand():
    # survival 1 - t/10: at 0.5 and 9.5 events fall into the last and the first tenth; censored at survival 0.25
    # spreads .1/.25, .1/.25, .05/.25 over the lowest three; alive at the end of the grid (survival 0.2): half, half
    grid, time = np.array([4.0, 8]), np.array([0.5, 9.5, 7.5, 9])
    curves = np.tile(1 - grid / 10, (4, 1))
    result = d_calibration(curves, grid, time, np.array([True, False, False, True]))
    counts = np.array([0.5 + 0.4 + 0.5, 0.5 + 0.4 + 0.5, 0.2, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(np.array(result["bins"]) * 4, counts, atol=1e-12)
    assert result["statistic"] == pytest.approx((((counts - 0.4) ** 2) / 0.4).sum())


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (3.0, False)])
def test_d_calibration_finds_curves_that_are_wrong(factor, right):
    rng, grid = np.random.default_rng(2), np.linspace(0.05, 8, 160)
    hazard = np.exp(rng.normal(size=600)) * 0.3
    event_time, censored = rng.exponential(1 / hazard), rng.uniform(1, 12, 600)
    curves = np.exp(-factor * hazard[:, None] * grid)
    result = d_calibration(curves, grid, np.minimum(event_time, censored), event_time <= censored)
    assert (result["p"] > 0.05) is right
    assert sum(result["bins"]) == pytest.approx(1)
