import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.datasets import load_lung
from lifelines.utils import restricted_mean_survival_time
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from survival.calibration import calibration_intercept, calibration_slope
from survival.estimates import (
    Baseline,
    Reference,
    breslow,
    concordance,
    hazard_ratio,
    kaplan_meier,
    restricted_mean,
    survival_curves,
    weighted_concordance,
)

ONE = np.ones((1, 4))


def subjects(seed, n=80, *, ties=False):
    """(risk, time, event): higher risk = earlier event; about half are censored."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    event_time, censored = rng.exponential(4 * np.exp(-risk)), rng.uniform(0.5, 8, n)
    time, event = np.minimum(event_time, censored), event_time <= censored
    return (np.round(risk, 1), np.ceil(time * 2) / 2, event) if ties else (risk, time, event)


def ones(time):
    return np.ones((1, len(time)))


# ---- Concordance
def test_concordance_by_hand():
    # comparable: (A,B) ahead, (A,C) tied, (A,D) behind, (C,D) behind
    risk, time, event = [2, 1, 2, 3], [1, 2, 3, 4], [True, False, True, True]
    assert concordance(risk, time, event) == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def naive_concordance(risk, time, event):
    num_ordered, num_pairs = 0.0, 0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                num_pairs += 1
                num_ordered += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return num_ordered / num_pairs


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_concordance_is_the_loop_over_pairs_and_scikit_survivals(seed, ties):
    risk, time, event = subjects(seed, ties=ties)
    ours = concordance(risk, time, event)
    assert ours == pytest.approx(naive_concordance(risk, time, event), abs=1e-12)
    assert ours == pytest.approx(concordance_index_censored(event, time, risk)[0], abs=1e-12)


def test_concordance_over_several_blocks_of_pairs(monkeypatch):
    risk, time, event = subjects(1, n=100)
    whole = concordance(risk, time, event)
    monkeypatch.setattr("survival.estimates.PAIR_BLOCK", 7)
    assert concordance(risk, time, event) == pytest.approx(whole, abs=1e-14)


def test_concordance_knows_ranks_alone():
    risk, time, event = subjects(2)
    whole, order = concordance(risk, time, event), np.random.default_rng(0).permutation(len(time))
    assert concordance(np.exp(risk) + 5, time, event) == pytest.approx(whole)
    assert concordance(risk[order], time[order], event[order]) == pytest.approx(whole)
    assert concordance(-risk, time, event) == pytest.approx(1 - whole)
    assert concordance(np.zeros_like(risk), time, event) == 0.5


@pytest.mark.parametrize(
    ("time", "event"),
    [([1.0], [True]), ([1.0, 2], [False, False]), ([2.0, 2], [True, True]), ([1.0, 2], [False, True])],
)
def test_concordance_without_a_comparable_pair_is_nan(time, event):
    assert np.isnan(concordance(np.arange(len(time)), time, event))


@pytest.mark.parametrize(
    ("risk", "time", "event", "message"),
    [([1.0, 2], [1.0], [True], "one shape"), ([], [], [], "N > 0"), ([np.nan, 1], [1.0, 2], [True, True], "finite")],
)
def test_wrong_arrays_are_refused(risk, time, event, message):
    with pytest.raises(ValueError, match=message):
        concordance(risk, time, event)


# ---- Weights: what the bootstrap stands on
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_repeated_subjects(seed):
    risk, time, event = subjects(seed, n=60, ties=True)
    weights = np.random.default_rng(seed).multinomial(60, np.full(60, 1 / 60), size=4).astype(float)
    high, outcome, until = risk > 0, time < 3, 3.0
    estimates = {
        "concordance": lambda w, i: weighted_concordance(w, risk[i], time[i], event[i]),
        "kaplan_meier": lambda w, i: kaplan_meier(w, time[i], event[i], np.array([1.0, 2.5, 9.0])),
        "restricted_mean": lambda w, i: restricted_mean(w, time[i], event[i], until),
        "slope": lambda w, i: calibration_slope(w, risk[i], outcome[i]),
        "intercept": lambda w, i: calibration_intercept(w, risk[i], outcome[i]),
    }
    for name, estimate in estimates.items():
        at_once = estimate(weights, np.arange(60))
        for row, drawn in zip(at_once, weights, strict=True):
            repeated = np.repeat(np.arange(60), drawn.astype(int))
            unweighted = estimate(np.ones((1, len(repeated))), repeated)[0]
            np.testing.assert_allclose(row, unweighted, atol=1e-8, err_msg=name)
    assert high.any()


# ---- Survival curves
def test_breslow_by_hand():
    baseline = breslow(np.log([1, 2, 3, 4]), [1, 2, 2, 3], [True, True, True, False])
    np.testing.assert_allclose(baseline.times, [1, 2])
    np.testing.assert_allclose(baseline.cumulative_hazard, [1 / 10, 1 / 10 + 2 / 9])
    curves = survival_curves(baseline, np.log([1, 3]), [0.5, 1, 1.9, 2, 9])
    np.testing.assert_allclose(curves[0], np.exp([0, -0.1, -0.1, -0.1 - 2 / 9, -0.1 - 2 / 9]))
    np.testing.assert_allclose(curves[1], curves[0] ** 3)


@pytest.mark.parametrize("ties", [False, True])
def test_breslow_is_lifelines(ties):
    risk, time, event = subjects(3, ties=ties)
    cox = CoxPHFitter().fit(pd.DataFrame({"time": time, "event": event, "risk": risk}), "time", "event")
    centred = cox.params_["risk"] * (risk - risk.mean())  # lifelines' baseline is that of the mean
    baseline = breslow(centred, time, event)
    expected = cox.baseline_cumulative_hazard_["baseline cumulative hazard"].loc[baseline.times]
    np.testing.assert_allclose(baseline.cumulative_hazard, expected, rtol=1e-9)


def test_curves_at_log_hazards_of_a_thousand():
    log_hazard = np.array([1000.0, -1000, 0])
    curves = survival_curves(breslow(log_hazard, [1, 2, 3], [True] * 3), log_hazard, [1, 2, 3])
    np.testing.assert_allclose(curves, [[np.exp(-1), 0, 0], [1, 1, 1], [1, np.exp(-1), np.exp(-2)]], atol=1e-12)


def test_a_shift_of_the_log_hazards_is_taken_up_by_the_baseline():
    risk, time, event = subjects(4)
    at = np.linspace(0.5, 6, 9)
    plain = survival_curves(breslow(risk, time, event), risk, at)
    np.testing.assert_allclose(survival_curves(breslow(risk + 700, time, event), risk + 700, at), plain, atol=1e-9)


def test_without_events_nobody_is_ever_at_risk():
    baseline = breslow([0.0, 1], [1, 2], [False, False])
    assert isinstance(baseline, Baseline) and not len(baseline.times)
    np.testing.assert_array_equal(survival_curves(baseline, [0.0, 1], [1, 5]), 1.0)


@pytest.mark.parametrize("ties", [False, True])
def test_kaplan_meier_and_its_area_are_lifelines(ties):
    _, time, event = subjects(5, ties=ties)
    fitted, at = KaplanMeierFitter().fit(time, event), np.array([0.25, 1, 2.5, 4, 7])
    np.testing.assert_allclose(kaplan_meier(ones(time), time, event, at)[0], fitted.predict(at), atol=1e-12)
    expected = restricted_mean_survival_time(fitted, t=4)
    assert restricted_mean(ones(time), time, event, 4.0)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_censoring_is_scikit_survivals(ties):
    _, time, event = subjects(6, ties=ties)
    sksurv = CensoringDistributionEstimator().fit(Surv.from_arrays(event, time))
    at = np.concatenate([np.linspace(0, time.max(), 40), time])
    np.testing.assert_allclose(Reference(time, event, 0.0).uncensored(at), sksurv.predict_proba(at), atol=1e-12)


def test_nobody_censored():
    np.testing.assert_array_equal(
        Reference(np.array([1.0, 2]), np.array([True, True]), 0.0).uncensored([0.5, 2, 9]), 1.0
    )


def test_the_reference_is_the_training_parts_table():
    _, time, event = subjects(8, n=5)
    reference = Reference.of(pd.DataFrame({"time": time, "event": event, "log_hazard": [3.0, -1, 0.5, 2, 9]}))
    np.testing.assert_array_equal(reference.time, time)
    np.testing.assert_array_equal(reference.event, event)
    assert reference.cut == 2 and reference.follow_up == time.max()


# ---- Hazard ratio
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_hazard_ratio_is_lifelines(seed, ties):
    risk, time, event = subjects(seed, ties=ties)
    table = pd.DataFrame({"time": time, "event": event, "high": (risk > 0).astype(float)})
    lifelines = CoxPHFitter().fit(table, "time", "event", fit_options={"precision": 1e-10}).hazard_ratios_["high"]
    assert hazard_ratio(ones(time), time, event, risk > 0)[0] == pytest.approx(lifelines, rel=1e-5)


def test_weighted_hazard_ratio_is_lifelines():
    risk, time, event = subjects(7)
    weights = np.random.default_rng(0).integers(1, 4, (3, len(time))).astype(float)
    table = pd.DataFrame({"time": time, "event": event, "high": (risk > 0).astype(float)})
    for ours, weight in zip(hazard_ratio(weights, time, event, risk > 0), weights, strict=True):
        fitted = CoxPHFitter().fit(table.assign(weight=weight), "time", "event", weights_col="weight", robust=True)
        assert ours == pytest.approx(fitted.hazard_ratios_["high"], rel=1e-5)


def test_the_lung_example_of_rs_survival_package():
    lung = load_lung()  # coxph(Surv(time, status) ~ sex, lung): exp(coef) 0.5880, concordance 0.579
    time, event = lung["time"].to_numpy(float), lung["status"].to_numpy(bool)
    woman = lung["sex"].to_numpy() == 2
    assert hazard_ratio(ones(time), time, event, woman)[0] == pytest.approx(0.5880, abs=5e-5)
    assert concordance(~woman, time, event) == pytest.approx(0.579, abs=5e-4)


@pytest.mark.parametrize(
    ("high", "event", "expected"),
    [
        ([True, True, False, False], [True] * 4, np.inf),  # everyone of the high group goes before the low group
        ([True, True, False, False], [True, True, False, False], np.inf),
        ([False, False, True, True], [True] * 4, 0.0),
        ([True] * 4, [True] * 4, np.nan),
        ([False] * 4, [True] * 4, np.nan),
        ([True, False, True, False], [False] * 4, np.nan),
    ],
)
def test_a_hazard_ratio_without_a_maximum(high, event, expected):
    ratio = hazard_ratio(ONE, np.array([1.0, 2, 3, 4]), np.array(event), np.array(high))
    np.testing.assert_array_equal(ratio, expected)
