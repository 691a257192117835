"""The boosted Cox: its steps against their definition, what it learns, and its file."""

import dataclasses
import json

import numpy as np
import pytest

from survival.boosting import BoostedCox
from survival.cox import cox_derivatives, expected_events, partial_likelihood_loss, risk_sets
from survival.estimates import concordance


def cohort(rng, num_rows=300, ties=False):
    """Rows whose hazard depends on a threshold of the first input, and on the next two both being high."""
    inputs = rng.normal(size=(num_rows, 5))
    log_hazard = 2.0 * (inputs[:, 0] > 0.5) + 2.0 * ((inputs[:, 1] > 0) & (inputs[:, 2] > 0))
    time = rng.exponential(np.exp(-log_hazard))
    censoring = rng.exponential(2.0, num_rows)
    event, time = time <= censoring, np.minimum(time, censoring)
    return inputs, np.ceil(time * 5) if ties else time, event, log_hazard


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_expected_events_are_the_gradient_of_the_loss(ties):
    rng = np.random.default_rng(0)
    _, time, event, _ = cohort(rng, 40, ties=True)
    sets, eta = risk_sets(time, event, rng.integers(0, 2, 40), ties), rng.normal(size=40)
    gradient = cox_derivatives(eta, np.eye(40), sets)[1] * event.sum()
    np.testing.assert_allclose(expected_events(eta, sets) - event, gradient, atol=1e-12)
    assert expected_events(eta, sets).sum() == pytest.approx(event.sum())


def test_it_learns_what_a_line_cannot():
    rng = np.random.default_rng(1)
    inputs, time, event, _ = cohort(rng, 1000)
    new, new_time, new_event, log_hazard = cohort(rng, 1000)
    model = BoostedCox.fit(inputs, event, risk_sets(time, event), num_trees=150)
    reached = concordance(model(new), new_time, new_event)
    assert reached > 0.95 * concordance(log_hazard, new_time, new_event)


def test_every_tree_lowers_the_loss_of_its_training():
    inputs, time, event, _ = cohort(np.random.default_rng(2), ties=True)
    sets = risk_sets(time, event)
    model = BoostedCox.fit(inputs, event, sets, num_trees=30)
    losses = [partial_likelihood_loss(log_hazard, sets) for log_hazard in model.staged(inputs)]
    assert (np.diff(losses) < 1e-9).all()


def test_the_first_trees_are_a_shorter_training():
    inputs, time, event, _ = cohort(np.random.default_rng(3))
    sets = risk_sets(time, event)
    longer = BoostedCox.fit(inputs, event, sets, num_trees=20)
    shorter = BoostedCox.fit(inputs, event, sets, num_trees=7)
    np.testing.assert_array_equal(longer.first(7)(inputs), shorter(inputs))
    np.testing.assert_array_equal(list(longer.staged(inputs))[6], shorter(inputs))


def test_the_order_of_the_rows_and_the_scale_of_an_input_do_not_matter():
    rng = np.random.default_rng(4)
    inputs, time, event, _ = cohort(rng)
    model = BoostedCox.fit(inputs, event, risk_sets(time, event), num_trees=20)
    order = rng.permutation(len(inputs))
    again = BoostedCox.fit(1024 * inputs[order], event[order], risk_sets(time[order], event[order]), num_trees=20)
    np.testing.assert_allclose(again(1024 * inputs), model(inputs), atol=1e-9)


def test_noise_alone_is_learned_slowly():
    rng = np.random.default_rng(5)
    inputs, (_, time, event, _) = rng.normal(size=(300, 5)), cohort(rng)
    assert BoostedCox.fit(inputs, event, risk_sets(time, event), num_trees=10)(inputs).std() < 0.25


def test_it_comes_back_from_its_file():
    inputs, time, event, _ = cohort(np.random.default_rng(6))
    model = BoostedCox.fit(inputs, event, risk_sets(time, event), num_trees=5)
    saved = json.loads(json.dumps(dataclasses.asdict(model), default=np.ndarray.tolist))
    restored = BoostedCox.from_json(saved, num_inputs=5)
    np.testing.assert_array_equal(restored(inputs), model(inputs))


@pytest.mark.parametrize(
    "change",
    [
        {"left": [[9] * 7] * 5},
        {"right": [[-1] * 7] * 5},
        {"column": [[5] * 7] * 5},
        {"value": [[float("nan")] * 7] * 5},
        {"threshold": [[0.0] * 3] * 5},
        {"value": [0.0]},
    ],
)
def test_what_is_no_tree_is_refused(change):
    inputs, time, event, _ = cohort(np.random.default_rng(7))
    model = BoostedCox.fit(inputs, event, risk_sets(time, event), num_trees=5)
    with pytest.raises(ValueError, match="trees"):
        BoostedCox.from_json(dataclasses.asdict(model) | change, num_inputs=5)
