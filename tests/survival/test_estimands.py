import numpy as np
import pandas as pd
import pytest

from survival.bootstrap import Estimand
from survival.estimands import Estimands, Prediction, read_curves
from survival.estimates import Reference

GRID = np.array([1.0, 2.0, 3.0])
ONE = np.ones((1, 4))


def four_subjects(**changes):
    arrays = {
        "log_hazard": [2.0, 1.0, -1.0, 0.0],
        "time": [0.5, 1.5, 4.0, 5.0],
        "event": [True, True, True, False],
        "survival": np.array([[0.4, 0.2, 0.1], [0.7, 0.5, 0.4], [0.9, 0.8, 0.7], [0.8, 0.7, 0.6]]),
        "grid": GRID,
    }
    return Prediction(**arrays | changes)


def estimands(horizons=(1.0, 3.0), reference=None, **changes):
    reference = reference or Reference(np.array([1.0, 2.0, 3.0, 6.0]), np.array([True, True, True, False]), 0.5)
    return Estimands(four_subjects(**changes), reference, horizons)


def value(estimand):
    return estimand.values(ONE)[0]


# ---- Predictions
def test_a_prediction_is_read_from_a_table_of_predictions():
    expected = four_subjects()
    table = pd.DataFrame({"subject": list("abcd"), "log_hazard": expected.log_hazard, "event": expected.event})
    table = table.assign(time=expected.time, attention_1=1.0)
    table = table.assign(**{f"survival_{year}": expected.survival[:, i] for i, year in enumerate(GRID)})
    prediction = Prediction.of(table)
    for name in ("log_hazard", "time", "event", "survival", "grid"):
        np.testing.assert_array_equal(getattr(prediction, name), getattr(expected, name))
    np.testing.assert_array_equal(read_curves(table)[1][:, 1], table["survival_2.0"])
    np.testing.assert_array_equal(prediction.survival_at(3.0), table["survival_3.0"])


def test_a_prediction_is_made_of_arrays():
    prediction = four_subjects(event=[1, 1, 1, 0])
    assert prediction.time.dtype == float and prediction.event.dtype == bool


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": [1.0]}, "one shape"),
        ({"log_hazard": [np.nan, 0, 0, 0]}, "finite"),
        ({"survival": np.ones((4, 2))}, r"expected shape \(4, 3\). Received: \(4, 2\)"),
        ({"survival": np.full((4, 3), -0.1)}, "probabilities"),
        ({"grid": [1.0, 1.0, 3.0]}, "ascending"),
    ],
)
def test_what_is_no_prediction_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        four_subjects(**change)


def test_a_horizon_must_be_on_the_grid():
    with pytest.raises(ValueError, match=r"contain the horizons \(1.5,\)"):
        estimands(horizons=(1.5,))


# ---- Estimands by hand: nobody of the training part is censored before 6 years, so every weight 1/G is 1
def test_each_estimand_by_hand():
    # comparable pairs (ranks by risk a > b > d > c): ab, ac, ad, bc, bd agree, cd does not
    assert value(estimands().c_index()) == pytest.approx(5 / 6)
    assert value(estimands().uno_c()) == pytest.approx(1.0)  # up to 3 years: the pairs of a and b
    assert value(estimands().auc(1.0)) == value(estimands().auc(3.0)) == 1.0
    errors = np.array([0.4**2 + 0.3**2 + 0.1**2 + 0.2**2, 0.2**2 + 0.5**2 + 0.2**2 + 0.3**2]) / 4
    last = (0.1**2 + 0.4**2 + 0.3**2 + 0.4**2) / 4
    assert value(estimands().brier(1.0)) == pytest.approx(errors[0])
    assert value(estimands().brier(3.0)) == pytest.approx(last)
    assert value(estimands().ibs()) == pytest.approx((errors[0] / 2 + errors[1] + last / 2) / 2)
    # the high-risk group is a and b, with the follow-up of b
    assert estimands().compared_until == 1.5
    assert value(estimands().rmst_difference()) == pytest.approx(1.5 - (0.5 + 0.5 * 1.0))
    assert value(estimands().hazard_ratio()) == np.inf
    assert value(estimands().observed_risk(np.array([0, 1, 2, 3]), 2.0)) == pytest.approx(0.5)


def test_a_reason_comes_instead_of_values():
    short = Reference(np.array([0.5, 1.2]), np.array([True, False]), 0.5)
    largest = "the largest horizon that the data bear is 1.19 years"
    unknown = f"past the training part's follow-up (1.20 years): its censoring is unknown; {largest}"
    at_three = estimands(reference=short)
    for estimand in (at_three.auc(3.0), at_three.brier(3.0), at_three.calibration_slope(3.0)):
        assert estimand == Estimand(None, unknown)
    too_few = "fewer than two of the 3 grid points are within the follow-up"
    assert at_three.uno_c() == at_three.ibs() == Estimand(None, too_few)
    nobody = estimands(log_hazard=[0.0, 0, 0, 0])
    assert nobody.rmst_difference() == Estimand(None, "the high-risk group is empty")
    assert estimands().observed_risk(np.array([3]), 6.0) == Estimand(None, "the group's follow-up ends at 5.00 years")


def test_the_note_says_where_the_follow_up_ends():
    shorter = estimands(time=[0.5, 1.5, 2.5, 2.9])
    assert shorter.uno_c().note == "up to 2 years, where the follow-up ends"
    assert estimands().uno_c().note is None


@pytest.mark.parametrize(("longest", "largest"), [(2.9, 2.89), (3.0, 2.99), (2.504, 2.5)])
def test_the_brier_score_is_not_integrated_over_a_part_of_the_grid(longest, largest):
    """It would stand under a horizon that it does not reach; the horizon named instead has a value."""
    times = [0.5, 1.5, 2.5, longest]
    ends = f"nobody was followed beyond 3 years (longest: {longest:.2f})"
    assert estimands(time=times).ibs() == Estimand(
        None, f"{ends}; the largest horizon that the data bear is {largest} years"
    )
    shorter = np.array([1.0, 2.0, largest])
    assert value(estimands(horizons=(largest,), time=times, grid=shorter).ibs()) > 0


def test_clipped_risks_are_noted():
    certain = four_subjects().survival.copy()
    certain[0] = 0.0
    estimand = estimands(survival=certain).calibration_intercept(1.0)
    assert estimand.note == "1 predicted risks held to within 1e-06 of 0 or 1"
