"""The stack: how the arms are weighted, when they are not, and what its parts add up to."""

import numpy as np
import pytest
from arm_samples import cohort, fit

from survival.arms import ARMS
from survival.boosting import BoostedCox
from survival.cox import risk_sets
from survival.estimates import concordance
from survival.landmarks import Histories
from survival.stack import LEAST_GAIN, StackedCorrection, Weights, fit_stack, stack_arms, stacked, weights_of


class Zeros:
    """A network whose log-hazard is a number for everybody, with even attention."""

    def __init__(self, number=0.0):
        self.number = number

    def correct(self, data):
        return np.full((5, len(data.landmarks)), self.number), np.zeros((5, len(data.years)))


def fitted(table, **options):
    arms, held_out = fit(table, **options)
    of_network = np.zeros(len(held_out.data.landmarks))
    return arms, held_out, fit_stack(arms, held_out, Zeros(), of_network, grid=(), recalibrate=False)


def test_the_stack_sees_what_the_last_value_does_not():
    rng = np.random.default_rng(4)
    table, new = cohort("highest", 300, rng), cohort("highest", 400, rng)
    _, _, predictor = fitted(table)
    data = Histories.of(new, predictor.prepare)
    link, whole = (
        concordance(one.log_hazard(data)[0], data.landmarks.time, data.landmarks.event)
        for one in (predictor.arms["link"], predictor)
    )
    assert predictor.network.weights.gain > LEAST_GAIN
    assert whole > link + 0.02


def test_a_stack_is_the_weighted_sum_of_its_arms():
    rng = np.random.default_rng(10)
    table = cohort("highest", 120, rng)
    arms, held_out = fit(table)
    weights = Weights(np.array([0.2, 0.5, 0.7, 0.3]), 9.0)
    data = held_out.data
    log_hazard, scores = stacked(arms, Zeros(2.0), weights, ()).log_hazard(data)
    expected = arms(data.inputs[data.rows]) @ weights.of_arms[:3] + 0.3 * 2.0
    np.testing.assert_allclose(log_hazard, expected, atol=1e-9)
    assert scores.shape == (5, len(data.years))


def test_a_network_without_weight_is_not_asked():
    table = cohort("last", 120, np.random.default_rng(11))
    arms, held_out = fit(table)
    predictor = stacked(arms, None, Weights(np.array([1.0, 0, 0, 0]), 0.0), ())
    log_hazard, scores = predictor.log_hazard(held_out.data)
    np.testing.assert_allclose(log_hazard, held_out.data.inputs[held_out.data.rows] @ arms.link, atol=1e-9)
    assert scores is None
    assert "attention_1" not in fitted(table)[2].predict(table, (), years=(1.0,))


def test_every_arm_has_curves_of_its_own():
    table = cohort("highest", 150, np.random.default_rng(12))
    _, _, predictor = fitted(table)
    assert list(predictor.arms) == [*ARMS, "tlstm"] == list(weights_of(predictor))
    curves = {name: arm.predict(table, (), years=(1.0,))["survival_1.0"] for name, arm in predictor.arms.items()}
    assert curves["link"].std() > 0.05 and curves["tlstm"].std() < 1e-12
    assert not np.allclose(curves["link"], curves["boosted"])


def test_arms_that_earn_nothing_have_no_weight():
    rng = np.random.default_rng(5)
    risk, noise = rng.normal(size=(2, 200))
    time = rng.exponential(np.exp(-risk))
    chosen = stack_arms(np.stack([risk, noise], axis=1), risk_sets(time, np.ones(200, bool)), 200)
    assert chosen.gain < LEAST_GAIN and chosen.of_arms.tolist() == [1, 0]


def test_the_weights_are_those_of_a_cox_model_of_the_arms():
    rng = np.random.default_rng(6)
    arms = rng.normal(size=(2000, 2))
    time = rng.exponential(np.exp(-(0.5 * arms[:, 0] + 1.2 * arms[:, 1])))
    chosen = stack_arms(arms, risk_sets(time, np.ones(2000, bool)), 2000)
    assert chosen.gain > 500
    np.testing.assert_allclose(chosen.of_arms, [0.5, 1.2], atol=0.1)


@pytest.mark.parametrize("num_subjects", [60, 200])
def test_the_weights_are_shrunk_to_the_first_arm(num_subjects):
    rng = np.random.default_rng(13)
    arms = rng.normal(size=(num_subjects, 2))
    time = rng.exponential(np.exp(-(0.6 * arms[:, 0] + 0.6 * arms[:, 1])))
    sets = risk_sets(time, np.ones(num_subjects, bool))
    chosen = stack_arms(arms, sets, num_subjects)
    twice = stack_arms(arms, sets, 10**9 * num_subjects)  # as if the gain were endless: not shrunk
    share = 1 - LEAST_GAIN / chosen.gain
    assert 0 < share < 1
    np.testing.assert_allclose(chosen.of_arms, [1, 0] + share * (twice.of_arms - [1, 0]), atol=1e-6)


def test_a_weight_is_never_negative():
    rng = np.random.default_rng(7)
    risk, other = rng.normal(size=(2, 500))
    time = rng.exponential(np.exp(-risk))
    chosen = stack_arms(np.stack([0.2 * risk, -risk + other], axis=1), risk_sets(time, np.ones(500, bool)), 500)
    assert (chosen.of_arms >= 0).all() and chosen.of_arms[0] > 1  # the scale of the first arm is mended


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"of_arms": [1.0, 0.0], "gain": 0.0}},
        {"weights": {"of_arms": [1.0, 0.0, float("nan"), 0.0], "gain": 0.0}},
        {"boosted": {}},
    ],
)
def test_what_is_no_stack_is_refused(change):
    leaf = np.full((1, 7), -1), np.zeros((1, 7)), *[np.arange(7)[None]] * 2, np.zeros((1, 7))
    saved = StackedCorrection(Weights(np.array([1.0, 0, 0, 0]), 0.0), BoostedCox(*leaf), Zeros()).to_json()
    assert StackedCorrection.from_json(saved, Zeros(), num_inputs=3).weights.of_arms.tolist() == [1, 0, 0, 0]
    with pytest.raises((KeyError, TypeError, ValueError)):
        StackedCorrection.from_json(saved | change, Zeros(), num_inputs=3)
