"""Risk sets and the ridge Cox: naive twin, lifelines, invariants, edge cases."""

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from samples import naive_loss, survival_data

from survival import cox


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_loss_equals_the_naive_one(rng, ties):
    inputs, time, event, stratum = survival_data(rng)
    sets = cox.risk_sets(time, event, stratum, ties)
    assert cox.partial_likelihood_loss(inputs[:, 0], sets) == pytest.approx(
        naive_loss(inputs[:, 0], time, event, stratum, ties), abs=1e-12
    )


def test_loss_by_hand():
    """Times 1, 2, 3, 4 with events at 1 and 3 and equal risks: (log 4 + log 2) / 2."""
    sets = cox.risk_sets(np.array([3.0, 1.0, 4.0, 2.0]), np.array([True, True, False, False]))
    assert cox.partial_likelihood_loss(np.zeros(4), sets) == pytest.approx((np.log(4) + np.log(2)) / 2)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_derivatives_equal_finite_differences(rng, ties):
    inputs, time, event, stratum = survival_data(rng)
    sets = cox.risk_sets(time, event, stratum, ties)
    at, step = rng.normal(size=3) * 0.5, 1e-5
    _, gradient, hessian = cox.cox_derivatives(at, inputs, sets)
    for column, moved in enumerate(np.eye(3) * step):
        up, down = cox.cox_derivatives(at + moved, inputs, sets), cox.cox_derivatives(at - moved, inputs, sets)
        assert (up[0] - down[0]) / (2 * step) == pytest.approx(gradient[column], abs=1e-8)
        np.testing.assert_allclose((up[1] - down[1]) / (2 * step), hessian[column], atol=1e-7)


@pytest.mark.parametrize("strata", [False, True])
def test_ridge_equals_lifelines(rng, strata):
    inputs, time, event, stratum = survival_data(rng, num_rows=120)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0, ddof=1)  # lifelines standardises before it penalises
    table = pd.DataFrame(inputs, columns=list("abc")).assign(time=time, event=event, stratum=stratum)
    penalty = 0.2
    fitter = CoxPHFitter(penalizer=penalty * event.sum() / len(time), strata=["stratum"] if strata else None)
    fitter.fit(table if strata else table.drop(columns="stratum"), "time", "event")
    ours = cox.ridge_cox(inputs, cox.risk_sets(time, event, stratum if strata else None), penalty)
    np.testing.assert_allclose(ours, fitter.params_.to_numpy(), atol=2e-5, rtol=0)  # as exact as lifelines is


def test_row_order_changes_nothing(rng):
    inputs, time, event, stratum = survival_data(rng)
    shuffled = rng.permutation(len(time))
    before = cox.ridge_cox(inputs, cox.risk_sets(time, event, stratum), 0.1)
    after = cox.ridge_cox(inputs[shuffled], cox.risk_sets(time[shuffled], event[shuffled], stratum[shuffled]), 0.1)
    np.testing.assert_allclose(before, after, atol=1e-9)


def test_ridge_stays_finite_where_the_data_separate():
    """Without a penalty the coefficient would be infinite."""
    time = np.arange(1.0, 11.0)
    sets = cox.risk_sets(time, np.ones(10, bool))
    coefficient = cox.ridge_cox(-time[:, None] * 100, sets, 1e-3)
    assert np.isfinite(coefficient).all()
    assert coefficient[0] > 0


def test_no_event_gives_zero():
    assert cox.ridge_cox(np.ones((3, 2)), cox.risk_sets(np.ones(3), np.zeros(3, bool)), 0.1).tolist() == [0, 0]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="one shape"):
        cox.risk_sets(np.ones(3), np.ones(4, bool))
    with pytest.raises(ValueError, match="efron"):
        cox.risk_sets(np.ones(3), np.ones(3, bool), None, "exact")  # type: ignore[arg-type]


def test_a_step_too_far_is_no_better(rng):
    """Log-hazards that floats can't weigh have an infinite loss, so that a search turns back from them."""
    inputs = rng.normal(size=(60, 40))
    sets = cox.risk_sets(rng.exponential(np.exp(-3 * inputs[:, 0])), rng.random(60) < 0.3)
    assert cox.partial_likelihood_loss(1e4 * inputs[:, 0], sets) == np.inf
    coefficients = cox.ridge_cox(inputs, sets, 1e-6, start=np.full(40, 50.0))
    assert np.isfinite(coefficients).all()
    begin, end = (cox.partial_likelihood_loss(inputs @ beta, sets) for beta in (np.zeros(40), coefficients))
    assert end < begin
