import numpy as np
import pytest

from survival.bootstrap import Estimand, draw_resamples, estimate

SUBJECTS = np.array([1.0, 2, 3, 4])


def mean(weights):
    return weights @ SUBJECTS / weights.sum(axis=1)


def test_every_resample_has_as_many_subjects():
    resamples = draw_resamples(7, 50, seed=1)
    assert resamples.shape == (50, 7) and (resamples.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(resamples, draw_resamples(7, 50, seed=1))
    assert (resamples != draw_resamples(7, 50, seed=2)).any()


def test_the_interval_is_that_of_the_resamples():
    resamples = draw_resamples(4, 200, seed=0)
    result = estimate(Estimand(mean, why=None), resamples)
    low, high = np.quantile(mean(resamples), [0.025, 0.975], method="inverted_cdf")
    assert result == {"value": 2.5, "low": low, "high": high}


def test_without_values_there_is_the_reason():
    resamples = draw_resamples(4, 10, seed=0)
    nothing = {"value": None, "low": None, "high": None, "why": "nobody"}
    assert estimate(Estimand(None, "nobody", "a note"), resamples) == nothing
    assert estimate(Estimand(lambda weights: np.full(len(weights), np.nan), "nobody"), resamples) == nothing


def test_an_infinite_value_has_a_reason_and_an_infinite_limit_a_note():
    resamples = draw_resamples(4, 100, seed=0)
    infinite = estimate(Estimand(lambda weights: np.full(len(weights), np.inf), "infinite: why"), resamples)
    assert infinite == {"value": None, "low": None, "high": None, "why": "infinite: why"}
    limit = estimate(
        Estimand(lambda weights: np.where(weights[:, 0] > 1, np.inf, mean(weights)), "infinite"), resamples
    )
    assert limit["value"] == 2.5 and limit["high"] is None and limit["note"] == "one limit of the interval is infinite"


def test_resamples_without_a_value_are_left_out_and_counted():
    resamples = draw_resamples(4, 100, seed=0)
    partial = Estimand(lambda weights: np.where(weights[:, 0] > 1, np.nan, mean(weights)), None, "up to 2 years")
    left_out = int((resamples[:, 0] > 1).sum())
    result = estimate(partial, resamples)
    assert result["note"] == f"up to 2 years; {left_out} of 100 resamples have no value and are left out"
    assert result["low"] == np.quantile(mean(resamples[resamples[:, 0] <= 1]), 0.025, method="inverted_cdf")


def test_a_difference_is_taken_under_the_same_weights():
    resamples = draw_resamples(4, 100, seed=0)
    first, second = Estimand(mean, "why", "note"), Estimand(lambda weights: mean(weights) - 1, "other", "other")
    assert estimate(first.minus(second), resamples) == {"value": 1.0, "low": 1.0, "high": 1.0, "note": "note"}


@pytest.mark.parametrize("lacking", ["first", "second"])
def test_a_difference_from_nothing_is_nothing(lacking):
    some, nothing = Estimand(mean, "why"), Estimand(None, "why not")
    difference = nothing.minus(some) if lacking == "first" else some.minus(nothing)
    assert difference.values is None and difference.why == ("why not" if lacking == "first" else "why")
