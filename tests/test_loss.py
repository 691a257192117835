import numpy as np
import pytest
import tensorflow as tf
from lifelines import CoxPHFitter

import loss

TIES = ("efron", "breslow")


def naive_cox(risk, time, event, ties):
    """The definition, by loops, over `exp`."""
    total = 0.0
    for t in sorted(set(time[event])):
        at_risk = np.exp(risk[time >= t]).sum()
        dying = risk[(time == t) & event]
        for rank in range(len(dying)):
            share = rank / len(dying) if ties == "efron" else 0.0
            total += np.log(at_risk - share * np.exp(dying).sum())
        total -= dying.sum()
    return total / event.sum()


def naive_ranking(risk, time, event):
    pairs = [(i, j) for i in range(len(risk)) for j in range(len(risk)) if event[i] and time[i] < time[j]]
    return np.mean([np.log1p(np.exp(risk[j] - risk[i])) for i, j in pairs])


@pytest.fixture
def tied(rng):
    """40 scans at 8 times: many ties, among events and with censored scans."""
    return rng.normal(size=40), rng.integers(1, 9, 40).astype(float), rng.random(40) < 0.6


def gradient(function, risk, *rest, **kwargs):
    risk = tf.constant(risk)
    with tf.GradientTape() as tape:
        tape.watch(risk)
        value = function(risk, *rest, **kwargs)
    return float(value), tf.convert_to_tensor(tape.gradient(value, risk)).numpy()


def finite_differences(function, risk, step=1e-6):
    found = np.empty_like(risk)
    for i in range(len(risk)):
        moved = [risk + sign * step * (np.arange(len(risk)) == i) for sign in (1, -1)]
        found[i] = (float(function(tf.constant(moved[0]))) - float(function(tf.constant(moved[1])))) / (2 * step)
    return found


def test_cox_by_hand():
    """Events at 1 and 3 among times 1, 2, 3, 4 and risks 0: log 4 and log 2."""
    found = loss.cox_loss(np.zeros(4), [1.0, 2.0, 3.0, 4.0], [True, False, True, False])
    assert float(found) == pytest.approx((np.log(4) + np.log(2)) / 2)


def test_ranking_by_hand():
    """The pairs (1, 2), (1, 3), (1, 4), (3, 4), each of softplus 1."""
    found = loss.ranking_loss(np.arange(4.0) * [0, 1, 0, 1] + [0, 0, 0, -2], [1.0, 2, 3, 4], [True, False, True, False])
    assert float(found) == pytest.approx(np.mean(np.log1p(np.exp([1.0, 0.0, 1.0, 1.0]))))


@pytest.mark.parametrize("ties", TIES)
def test_cox_equals_its_definition(tied, ties):
    assert float(loss.cox_loss(*tied, ties=ties)) == pytest.approx(naive_cox(*tied, ties), abs=1e-12)


def test_cox_equals_lifelines(tied):
    """lifelines' log-likelihood of a fitted coefficient, Efron ties."""
    risk, time, event = tied
    import pandas as pd

    fit = CoxPHFitter().fit(pd.DataFrame({"x": risk, "time": time, "event": event}), "time", "event")
    fitted = fit.params_["x"] * (risk - risk.mean())
    assert float(loss.cox_loss(fitted, time, event)) == pytest.approx(-fit.log_likelihood_ / event.sum(), abs=1e-5)


@pytest.mark.parametrize("function", [loss.cox_loss, loss.ranking_loss])
def test_row_order_changes_nothing(tied, rng, function):
    value, slope = gradient(function, *tied)
    for _ in range(5):
        order = rng.permutation(40)
        mixed = gradient(function, *(values[order] for values in tied))
        assert mixed[0] == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose(mixed[1], slope[order], atol=1e-12)


def test_ranking_equals_its_definition(tied):
    assert float(loss.ranking_loss(*tied)) == pytest.approx(naive_ranking(*tied), abs=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_cox_gradient(tied, ties):
    _, slope = gradient(loss.cox_loss, *tied, ties=ties)
    expected = finite_differences(lambda risk: loss.cox_loss(risk, *tied[1:], ties=ties), tied[0])
    np.testing.assert_allclose(slope, expected, atol=1e-8)


def test_ranking_gradient(tied):
    _, slope = gradient(loss.ranking_loss, *tied)
    expected = finite_differences(lambda risk: loss.ranking_loss(risk, *tied[1:]), tied[0])
    np.testing.assert_allclose(slope, expected, atol=1e-8)


def test_visit_order_gradient(tied):
    subject = np.repeat(np.arange(10), 4)
    _, slope = gradient(loss.visit_order_loss, tied[0], subject, tied[1])
    expected = finite_differences(lambda risk: loss.visit_order_loss(risk, subject, tied[1]), tied[0])
    np.testing.assert_allclose(slope, expected, atol=1e-8)


@pytest.mark.parametrize("function", [loss.cox_loss, loss.ranking_loss])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_risks_stay_finite(tied, function, dtype):
    for factor in (1000.0, -1000.0):
        value, slope = gradient(function, (np.sign(tied[0]) * factor).astype(dtype), *tied[1:])
        assert np.isfinite(value) and np.isfinite(slope).all()
    shifted = gradient(function, (tied[0] + 1000).astype(np.float64), *tied[1:])[0]
    assert shifted == pytest.approx(gradient(function, tied[0], *tied[1:])[0], abs=1e-9)


def test_both_pull_an_early_event_up(tied):
    """Direction: a higher risk of the one who has the event first lowers the loss."""
    time, event = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    for function in (loss.cox_loss, loss.ranking_loss):
        _, slope = gradient(function, np.zeros(3), time, event)
        assert slope[0] < 0 < slope[2]


def test_visit_order_pulls_the_later_visit_up():
    value, slope = gradient(loss.visit_order_loss, np.zeros(4), [0, 0, 1, 1], [0.0, 1.0, 1.0, 0.0])
    assert value == pytest.approx(np.log(2))
    assert (np.sign(slope) == [1, -1, -1, 1]).all()


def test_a_duplicated_batch_has_the_same_ranking_loss(tied):
    twice = [np.tile(values, 2) for values in tied]
    assert float(loss.ranking_loss(*twice)) == pytest.approx(float(loss.ranking_loss(*tied)), abs=1e-12)


def test_the_cox_loss_does_not_grow_with_the_batch(rng):
    """Per event: ten times the scans add log 10 to the risk sets, not a factor of ten."""
    risk, time = rng.normal(size=400), rng.permutation(400.0 * np.arange(1, 401))
    small = float(loss.cox_loss(risk[:40], time[:40], np.ones(40, bool)))
    large = float(loss.cox_loss(risk, time, np.ones(400, bool)))
    assert large - small == pytest.approx(np.log(10), abs=0.5)


@pytest.mark.parametrize("ties", TIES)
def test_everyone_tied_and_dying(ties):
    """3 events at one time, risks 0: log 3! by Efron, 3 log 3 by Breslow; a third of it an event."""
    value, slope = gradient(loss.cox_loss, np.zeros(3), np.ones(3), np.ones(3, bool), ties=ties)
    assert value == pytest.approx((np.log(6) if ties == "efron" else 3 * np.log(3)) / 3)
    np.testing.assert_allclose(slope, 0, atol=1e-12)


@pytest.mark.parametrize("function", [loss.cox_loss, loss.ranking_loss])
@pytest.mark.parametrize("size", [1, 3])
def test_nobody_with_an_event_is_0_with_a_gradient_of_0(function, size):
    value, slope = gradient(function, np.arange(float(size)), np.arange(1.0, size + 1), np.zeros(size, bool))
    assert value == 0 and (slope == 0).all()


def test_half_precision_is_raised_to_single():
    risk = tf.constant([0.1, 0.2, 0.3], tf.bfloat16)
    found = loss.cox_loss(risk, [1.0, 2.0, 3.0], [True, True, False])
    assert found.dtype == tf.float32


def test_shapes_that_differ_are_refused():
    for function in (loss.cox_loss, loss.ranking_loss, loss.visit_order_loss):
        with pytest.raises(ValueError, match=r"expected three arrays of one shape.*\(3,\), \(2,\)"):
            function(np.zeros(3), np.ones(2), np.ones(3, bool))
        with pytest.raises(ValueError, match="expected three arrays"):
            function(np.zeros((3, 1)), np.ones((3, 1)), np.ones((3, 1), bool))
    with pytest.raises(ValueError, match="'efron' or 'breslow'"):
        loss.cox_loss(np.zeros(2), np.ones(2), np.ones(2, bool), ties="exact")
