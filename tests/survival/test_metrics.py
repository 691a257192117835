import dataclasses
import json
import subprocess
import sys
import time as clock

import numpy as np
import pytest
import torch
from lifelines.statistics import logrank_test
from scipy.stats import binomtest
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.util import Surv

from survival.estimates import Reference, breslow, concordance, survival_curves
from survival.metrics import EvaluationSettings, Prediction, compare, evaluate, over_time

GRID = np.arange(0.25, 5.01, 0.25)
HORIZONS = (2.0, 3.0, 5.0)
SETTINGS = EvaluationSettings(HORIZONS, num_resamples=100, seed=0)
MANY = dataclasses.replace(SETTINGS, num_resamples=1000)


def simulate(seed, n=120, *, ties=False, slope=1.0):
    """(log_hazard, time, event): the log-hazard is the true one and noise."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    event_time, censored = rng.exponential(4 * np.exp(-slope * truth)), rng.uniform(0.5, 9, n)
    time, event = np.minimum(event_time, censored), event_time <= censored
    if ties:
        time = np.ceil(time * 4) / 4
    return truth + 0.5 * rng.normal(size=n), time, event


def study(seed=0, n=120, *, ties=False):
    """The predictions for a part of n subjects, and the training part of 300."""
    train_risk, train_time, train_event = simulate(seed + 1000, 300, ties=ties)
    log_hazard, time, event = simulate(seed, n, ties=ties)
    curves = survival_curves(breslow(train_risk, train_time, train_event), log_hazard, GRID)
    reference = Reference(train_time, train_event, float(np.median(train_risk)))
    return Prediction(log_hazard, time, event, curves, GRID), reference


def planted(log_hazard, time, event, *, cut=0.0, reference=None):
    """The figures of curves exp(-0.2 t exp(log_hazard)) on a part made by hand."""
    log_hazard = np.asarray(log_hazard, float)
    curves = np.exp(-np.exp(log_hazard)[:, None] * GRID * 0.2)
    reference = reference or Reference(np.linspace(0.1, 8, 50), np.arange(50) % 2 == 0, cut)
    settings = dataclasses.replace(SETTINGS, num_resamples=200)
    figures = evaluate(Prediction(log_hazard, time, event, curves, GRID), reference, settings)
    json.dumps(figures, allow_nan=False)
    return figures


def estimates(figures):
    """Every {"value", "low", "high"} within, by path."""
    if isinstance(figures, list):
        return {k: e for i, item in enumerate(figures) for k, e in estimates({str(i): item}).items()}
    if not isinstance(figures, dict):
        return {}
    if "value" in figures:
        return {"": figures}
    return {f"{name}/{path}": e for name, item in figures.items() for path, e in estimates(item).items()}


# ---- Against other libraries
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_figure_is_scikit_survivals(seed, ties):
    prediction, reference = study(seed, ties=ties)
    log_hazard, time, event = prediction.log_hazard, prediction.time, prediction.event
    figures = evaluate(prediction, reference, SETTINGS)
    train = Surv.from_arrays(reference.event, reference.time)
    # scikit-survival refuses times past the training part's; after the last horizon they make no difference
    part = Surv.from_arrays(event & (time <= 5.01), np.minimum(time, 5.01))
    at_horizons = prediction.survival[:, np.isin(GRID, HORIZONS)]

    assert figures["n"] == 120 and figures["events"] == event.sum()
    c_index = concordance_index_censored(event, time, log_hazard)[0]
    assert figures["c_index"]["value"] == pytest.approx(c_index, abs=1e-9)
    uno_c = concordance_index_ipcw(train, part, log_hazard, tau=5)[0]
    assert figures["uno_c"]["value"] == pytest.approx(uno_c, abs=1e-9)
    auc = cumulative_dynamic_auc(train, part, log_hazard, HORIZONS)[0]
    np.testing.assert_allclose([e["value"] for e in figures["auc"].values()], auc, atol=1e-9)
    brier = brier_score(train, part, at_horizons, HORIZONS)[1]
    np.testing.assert_allclose([e["value"] for e in figures["brier"].values()], brier, atol=1e-9)
    # a subject censored at 0 adds nothing but its share: scikit-survival wants no grid point before the first time
    part = np.append(part, Surv.from_arrays([False], [0.0]))
    curves = np.vstack([prediction.survival, np.ones(len(GRID))])
    ibs = integrated_brier_score(train, part, curves, GRID) * len(part) / len(time)
    assert figures["ibs"]["value"] == pytest.approx(ibs, abs=1e-9)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # as torchsurv is imported
@pytest.mark.parametrize("ties", [False, True])
def test_every_figure_is_torchsurvs(ties):
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    prediction, _ = study(3, ties=ties)
    figures = evaluate(prediction, Reference(prediction.time, prediction.event, 0.0), SETTINGS)

    def tensor(array):
        return torch.tensor(np.asarray(array, np.float32))

    risk, event = tensor(prediction.log_hazard), torch.tensor(prediction.event)
    times, at = tensor(prediction.time), tensor(HORIZONS)
    weight, weight_at = get_ipcw(event, times), get_ipcw(event, times, at)
    uno_c = ConcordanceIndex()(risk, event, times, weight=weight, tmax=torch.tensor(5.0))
    assert figures["uno_c"]["value"] == pytest.approx(float(uno_c), abs=1e-5)
    auc = [
        float(Auc()(risk, event, times, new_time=at[i : i + 1], weight=weight, weight_new_time=weight_at[i : i + 1]))
        for i in range(3)
    ]
    np.testing.assert_allclose([e["value"] for e in figures["auc"].values()], auc, atol=1e-5)
    curves = tensor(prediction.survival[:, np.isin(GRID, HORIZONS)])
    brier = BrierScore()(curves, event, times, new_time=at, weight=weight, weight_new_time=weight_at)
    np.testing.assert_allclose([e["value"] for e in figures["brier"].values()], brier, atol=1e-5)


def test_log_rank_is_lifelines():
    prediction, reference = study(4)
    time, event = prediction.time, prediction.event
    groups = evaluate(prediction, reference, SETTINGS)["risk_groups"]
    high = prediction.log_hazard > reference.cut
    log_rank_p = logrank_test(time[high], time[~high], event[high], event[~high]).p_value
    assert groups["log_rank_p"] == pytest.approx(log_rank_p)
    assert groups["high"] == {"n": int(high.sum()), "events": int(event[high].sum())}
    assert groups["low"]["n"] + groups["high"]["n"] == 120


# ---- By hand
def test_brier_by_hand():
    # G of the training part: censored at 1.5 of 4 -> 2/3 after it (3 at risk, one censored)
    reference = Reference(np.array([1.0, 1.5, 3, 4]), np.array([True, False, True, True]), 0.0)
    curves = np.array([[0.5, 0.2], [0.8, 0.6], [0.9, 0.7]])
    prediction = Prediction([1, 0, -1], [0.5, 1.8, 2.5], [True, False, True], curves, np.array([1.0, 2]))
    figures = evaluate(prediction, reference, dataclasses.replace(SETTINGS, horizons=(1.0, 2.0)))
    first = (0.5**2 + 0.2**2 + 0.1**2) / 3  # G = 1
    second = (0.2**2 + 0 + 0.3**2 / (2 / 3)) / 3  # the second subject was censored before
    assert figures["brier"]["1.0"]["value"] == pytest.approx(first)
    assert figures["brier"]["2.0"]["value"] == pytest.approx(second)
    assert figures["ibs"]["value"] == pytest.approx((first + second) / 2)
    assert figures["auc"]["1.0"]["value"] == 1


def test_calibration_groups_are_deciles_with_kaplan_meier():
    prediction, reference = study(5, 200)
    groups = evaluate(prediction, reference, SETTINGS)["calibration"]["2.0"]["groups"]
    predicted = [group["predicted"] for group in groups]
    assert [group["n"] for group in groups] == [20] * 10 and predicted == sorted(predicted)
    assert sum(group["events"] for group in groups) == prediction.event.sum()
    assert groups[0]["observed"]["value"] < groups[-1]["observed"]["value"]
    assert all(group["observed"]["low"] <= group["observed"]["value"] <= group["observed"]["high"] for group in groups)


def test_a_group_without_events_has_exact_limits():
    time = np.concatenate([np.full(9, 6.0), [2.0], np.full(10, 1.0)])
    figures = planted(np.repeat([-2.0, 2.0], 10), time, np.repeat([False, True], 10))
    nobody, everyone = (group["observed"] for group in figures["calibration"]["3.0"]["groups"])
    limit = binomtest(0, 9).proportion_ci().high  # the tenth was censored before
    assert (nobody["value"], nobody["low"], nobody["high"]) == (0, 0, pytest.approx(limit))
    limit = binomtest(10, 10).proportion_ci().low
    assert (everyone["value"], everyone["low"], everyone["high"]) == (1, pytest.approx(limit), 1)
    assert "nobody of 9" in nobody["note"] and "everyone of 10" in everyone["note"]


def test_predictions_of_certainty_are_clipped_and_counted():
    prediction, reference = study(6)
    survival = np.where(np.arange(120)[:, None] < 3, 1.0, prediction.survival)
    figures = evaluate(dataclasses.replace(prediction, survival=survival), reference, SETTINGS)
    assert figures["calibration"]["3.0"]["slope"]["note"].startswith("3 predicted risks held")


# ---- Bootstrap
def test_the_resamples_at_once_are_a_loop_over_resamples():
    prediction, reference = study(7, 60)
    at_once = estimates(evaluate(prediction, reference, dataclasses.replace(SETTINGS, seed=3)))
    rows = []
    for drawn in np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=100):
        i = np.repeat(np.arange(60), drawn)
        arrays = (prediction.log_hazard[i], prediction.time[i], prediction.event[i], prediction.survival[i])
        figures = evaluate(Prediction(*arrays, GRID), reference, dataclasses.replace(SETTINGS, num_resamples=1))
        rows.append({path: estimate["value"] for path, estimate in estimates(figures).items()})
    for path in ("c_index/", "uno_c/", "auc/2.0/", "auc/3.0/", "brier/2.0/", "calibration/3.0/slope/"):
        values = np.array([row[path] for row in rows], float)
        low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        assert (at_once[path]["low"], at_once[path]["high"]) == pytest.approx((low, high), abs=1e-7), path


def test_the_same_seed_gives_the_same_intervals():
    prediction, reference = study(8)
    first, same, other = (evaluate(prediction, reference, dataclasses.replace(SETTINGS, seed=s)) for s in (1, 1, 2))
    assert first == same
    assert first["c_index"]["value"] == other["c_index"]["value"] and first["c_index"] != other["c_index"]


def test_a_thousand_resamples_of_a_thousand_subjects_take_seconds():
    """Far less than a thousand times the figures of one sample."""
    prediction, reference = study(9, 1000)
    start = clock.process_time()
    evaluate(prediction, reference, dataclasses.replace(MANY, num_resamples=1))
    of_one = clock.process_time() - start
    figures = evaluate(prediction, reference, MANY)
    assert clock.process_time() - start - of_one < 60 * of_one
    assert all(estimate["low"] <= estimate["value"] <= estimate["high"] for estimate in estimates(figures).values())


@pytest.mark.slow
def test_intervals_of_c_cover_it():
    truth = np.mean([concordance(*simulate(10_000 + i, 4000)) for i in range(20)])
    covered = 0
    for seed in range(500):
        prediction, reference = study(seed, 100)
        prediction = dataclasses.replace(prediction, survival=prediction.survival[:, [7]], grid=GRID[[7]])
        settings = EvaluationSettings((2.0,), num_resamples=1000, seed=seed)
        estimate = evaluate(prediction, reference, settings)["c_index"]
        covered += estimate["low"] <= truth <= estimate["high"]
    assert 0.93 <= covered / 500 <= 0.97


# ---- Direction, and planted wrong models
def test_higher_risk_means_an_earlier_event_in_every_figure():
    prediction, reference = study(10, 200)
    right = evaluate(prediction, reference, SETTINGS)
    order = np.argsort(prediction.log_hazard)
    upside_down = np.empty_like(prediction.survival)
    upside_down[order] = prediction.survival[order[::-1]]
    flipped = dataclasses.replace(prediction, log_hazard=-prediction.log_hazard, survival=upside_down)
    wrong = evaluate(flipped, dataclasses.replace(reference, cut=-reference.cut), SETTINGS)
    for name in ("c_index", "uno_c"):
        assert right[name]["value"] > 0.65 and wrong[name]["value"] == pytest.approx(1 - right[name]["value"])
    for year in ("2.0", "3.0", "5.0"):
        assert wrong["auc"][year]["value"] == pytest.approx(1 - right["auc"][year]["value"])
        assert wrong["brier"][year]["value"] > right["brier"][year]["value"]
        assert wrong["calibration"][year]["slope"]["value"] < 0 < right["calibration"][year]["slope"]["value"]
    assert wrong["ibs"]["value"] > right["ibs"]["value"]
    assert (
        wrong["hazard_ratio"]["value"] == pytest.approx(1 / right["hazard_ratio"]["value"])
        and right["hazard_ratio"]["low"] > 1
    )
    assert wrong["rmst_difference"]["value"] == pytest.approx(-right["rmst_difference"]["value"])
    assert right["rmst_difference"]["low"] > 0


def test_a_constant_risk_is_worth_a_half():
    figures = planted([0.5] * 20, np.linspace(0.5, 7, 20), [True, False] * 10)
    for estimate in (figures["c_index"], figures["uno_c"], *figures["auc"].values()):
        assert (estimate["value"], estimate["low"], estimate["high"]) == (0.5, 0.5, 0.5)
    assert "the same prediction" in figures["calibration"]["2.0"]["slope"]["why"]
    assert figures["calibration"]["2.0"]["intercept"]["value"] is not None
    assert figures["hazard_ratio"]["why"] == figures["rmst_difference"]["why"] == figures["risk_groups"]["why"]
    assert figures["hazard_ratio"]["why"] == "the low-risk group is empty"


def test_a_risk_group_is_empty():
    figures = planted(np.linspace(-3, -1, 20), np.linspace(7, 0.5, 20), [True, False] * 10)
    assert figures["hazard_ratio"] == {"value": None, "low": None, "high": None, "why": "the high-risk group is empty"}
    assert figures["risk_groups"]["log_rank_p"] is None and figures["c_index"]["value"] is not None


def test_a_perfect_separation_has_an_infinite_hazard_ratio():
    figures = planted(np.linspace(2, -2, 20), np.linspace(1, 7, 20), [True] * 10 + [False] * 10)
    assert figures["c_index"]["value"] == 1
    assert figures["hazard_ratio"]["value"] is None and figures["hazard_ratio"]["why"].startswith("infinite: no event")
    assert (
        planted(np.linspace(-2, 2, 20), np.linspace(1, 7, 20), [True] * 10 + [False] * 10)["hazard_ratio"]["value"] == 0
    )


# ---- Little data
@pytest.mark.parametrize(
    ("log_hazard", "time", "event"),
    [
        ([1.0], [3.0], [True]),
        ([1.0], [3.0], [False]),
        ([1.0, 2, 3], [3.0, 4, 6], [False] * 3),
        ([1.0, 2, -1], [3.0] * 3, [True] * 3),
        ([1.0, 2, -1], [0.1] * 3, [True] * 3),
        ([1.0, -1, 2, 0.5], [9.0, 9, 9, 1], [False, False, False, True]),
    ],
)
def test_what_cannot_be_computed_says_why(log_hazard, time, event):
    for path, estimate in estimates(planted(log_hazard, time, event)).items():
        assert (estimate["value"] is None) is bool(estimate.get("why")), path
        assert None not in (estimate["low"], estimate["high"]) or estimate["value"] is None or estimate["note"], path


def test_the_reasons():
    alone = planted([1.0], [3.0], [True])
    assert alone["c_index"]["why"] == "no comparable pair: nobody outlived an event"
    longest = "nobody was followed beyond 3 years (longest: 3.00)"
    assert alone["auc"]["3.0"]["why"] == f"{longest}; the largest horizon that the data bear is 2.99 years"
    censored = planted([1.0, 2, -3], [3.5, 4, 6], [False] * 3)
    assert censored["auc"]["2.0"]["why"] == "nobody had the event within 2 years"
    assert censored["hazard_ratio"]["why"] == "no events"
    assert "same outcome" in censored["calibration"]["2.0"]["slope"]["why"]


def test_past_the_training_follow_up_nothing_is_estimated():
    log_hazard, time, event = simulate(11)
    short = Reference(np.linspace(0.1, 2.6, 30), np.arange(30) % 3 > 0, 0.0)
    figures = planted(log_hazard, time, event, reference=short)
    assert figures["auc"]["2.0"]["value"] and figures["brier"]["2.0"]["value"]
    for year in ("3.0", "5.0"):
        for estimate in (figures["auc"][year], figures["brier"][year], figures["calibration"][year]["slope"]):
            assert "past the training part's follow-up (2.60 years)" in estimate["why"]
    assert figures["uno_c"]["note"] == "up to 2.5 years, where the follow-up ends"
    assert figures["ibs"]["value"] is None
    assert figures["ibs"]["why"].endswith("the largest horizon that the data bear is 2.59 years")
    assert figures["c_index"]["value"] == concordance(log_hazard, time, event)


def test_resamples_without_a_value_are_counted():
    figures = planted([1.0, -1, 2, 0.5], [4.0, 2, 6, 1], [True, False, False, True])
    assert "of 200 resamples have no value" in figures["c_index"]["note"]


# ---- Two models, and over time
def test_a_difference_is_paired():
    prediction, reference = study(12, 150)
    noise = np.random.default_rng(0).normal(size=150)
    noisy = dataclasses.replace(prediction, log_hazard=prediction.log_hazard + noise)
    difference = compare(prediction, noisy, reference, MANY)
    alone = [evaluate(model, reference, MANY)["c_index"] for model in (prediction, noisy)]
    assert difference["c_index"]["value"] == pytest.approx(alone[0]["value"] - alone[1]["value"])
    unpaired = np.hypot(*(estimate["high"] - estimate["low"] for estimate in alone))
    assert difference["c_index"]["high"] - difference["c_index"]["low"] < 0.8 * unpaired
    assert difference["c_index"]["low"] > 0 and set(difference["auc"]) == {"2.0", "3.0", "5.0"}
    assert difference["ibs"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_model_does_not_differ_from_itself():
    prediction, reference = study(13)
    for path, estimate in estimates(compare(prediction, prediction, reference, SETTINGS)).items():
        assert (estimate["value"], estimate["low"], estimate["high"]) == (0, 0, 0), path


def test_both_models_are_compared_on_the_outcomes_of_the_first():
    prediction, reference = study(13)
    rounded = dataclasses.replace(prediction, time=prediction.time.round(1), event=~prediction.event)
    alike = compare(prediction, rounded, reference, SETTINGS)
    assert alike == compare(prediction, prediction, reference, SETTINGS)
    fewer, _ = study(13, 60)
    with pytest.raises(ValueError, match="one shape"):
        compare(prediction, fewer, reference, SETTINGS)


def test_what_two_models_lack_they_lack_with_a_reason():
    reference = Reference(np.array([9.0, 8]), np.array([True, False]), 0.0)
    prediction = Prediction(np.array([1.0, 2]), [2.5, 2.6], [False, False], np.full((2, len(GRID)), 0.5), GRID)
    difference = compare(prediction, prediction, reference, SETTINGS)
    assert difference["auc"]["3.0"]["why"].startswith("nobody was followed") and difference["c_index"]["why"]


def test_over_time_passes_through_the_horizons():
    prediction, reference = study(14)
    figures = evaluate(prediction, reference, SETTINGS)
    curve = over_time(prediction, reference, num_resamples=SETTINGS.num_resamples, seed=SETTINGS.seed)
    assert [float(year) for year in curve["auc"]] == GRID.tolist()
    for name in ("auc", "brier"):
        assert {year: curve[name][year] for year in figures[name]} == figures[name]


# ---- The contract
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizons": (2.0, 3.1)}, r"grid: expected years that contain the horizons \(2.0, 3.1\)"),
        ({"grid": GRID[::-1]}, "grid: expected ascending"),
        ({"survival": np.ones((3, 3))}, r"expected shape \(120, 20\). Received: \(3, 3\)"),
        ({"survival": np.full((120, 20), 1.1)}, "expected probabilities"),
        ({"survival": np.full((120, 20), np.nan)}, "expected probabilities"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    prediction, reference = study()
    change = dict(change)
    settings = dataclasses.replace(SETTINGS, horizons=change.pop("horizons", HORIZONS))
    with pytest.raises(ValueError, match=message):
        evaluate(dataclasses.replace(prediction, **change), reference, settings)


def test_the_import_is_light():
    code = "import sys, survival.metrics; "
    code += "print([m for m in ('torch', 'lifelines', 'scipy', 'pandas') if m in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
