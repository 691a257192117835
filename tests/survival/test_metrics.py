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
from survival.metrics import compare, evaluate, over_time

GRID = np.arange(0.25, 5.01, 0.25)
HORIZONS = (2.0, 3.0, 5.0)


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
    """What `evaluate` takes: a part of n subjects, its curves, and the training part of 300."""
    train_risk, train_time, train_event = simulate(seed + 1000, 300, ties=ties)
    log_hazard, time, event = simulate(seed, n, ties=ties)
    curves = survival_curves(breslow(train_risk, train_time, train_event), log_hazard, GRID)
    reference = Reference(train_time, train_event, float(np.median(train_risk)))
    return log_hazard, time, event, {"survival": curves, "grid": GRID, "horizons": HORIZONS, "reference": reference}


def planted(log_hazard, time, event, *, cut=0.0, reference=None):
    """The figures of curves exp(-0.2 t exp(log_hazard)) on a part made by hand."""
    log_hazard = np.asarray(log_hazard, float)
    curves = np.exp(-np.exp(log_hazard)[:, None] * GRID * 0.2)
    reference = reference or Reference(np.linspace(0.1, 8, 50), np.arange(50) % 2 == 0, cut)
    found = evaluate(
        log_hazard, time, event, survival=curves, grid=GRID, horizons=HORIZONS, reference=reference, num_resamples=200
    )
    json.dumps(found, allow_nan=False)
    return found


def estimates(found):
    """Every {"value", "low", "high"} within, by path."""
    if isinstance(found, list):
        return {k: e for i, item in enumerate(found) for k, e in estimates({str(i): item}).items()}
    if not isinstance(found, dict):
        return {}
    if "value" in found:
        return {"": found}
    return {f"{name}/{path}": e for name, item in found.items() for path, e in estimates(item).items()}


# ---- Against other libraries
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_figure_is_scikit_survivals(seed, ties):
    log_hazard, time, event, given = study(seed, ties=ties)
    found = evaluate(log_hazard, time, event, **given, num_resamples=100)
    train = Surv.from_arrays(given["reference"].event, given["reference"].time)
    # scikit-survival refuses times past the training part's; after the last horizon they make no difference
    part = Surv.from_arrays(event & (time <= 5.01), np.minimum(time, 5.01))
    at_horizons = given["survival"][:, np.isin(GRID, HORIZONS)]

    assert found["n"] == 120 and found["events"] == event.sum()
    assert found["c_index"]["value"] == pytest.approx(concordance_index_censored(event, time, log_hazard)[0], abs=1e-9)
    assert found["uno_c"]["value"] == pytest.approx(concordance_index_ipcw(train, part, log_hazard, tau=5)[0], abs=1e-9)
    theirs = cumulative_dynamic_auc(train, part, log_hazard, HORIZONS)[0]
    np.testing.assert_allclose([e["value"] for e in found["auc"].values()], theirs, atol=1e-9)
    theirs = brier_score(train, part, at_horizons, HORIZONS)[1]
    np.testing.assert_allclose([e["value"] for e in found["brier"].values()], theirs, atol=1e-9)
    # a subject censored at 0 adds nothing but its share: scikit-survival wants no grid point before the first time
    part = np.append(part, Surv.from_arrays([False], [0.0]))
    curves = np.vstack([given["survival"], np.ones(len(GRID))])
    theirs = integrated_brier_score(train, part, curves, GRID) * len(part) / len(time)
    assert found["ibs"]["value"] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # as torchsurv is imported
@pytest.mark.parametrize("ties", [False, True])
def test_every_figure_is_torchsurvs(ties):
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    log_hazard, time, event, given = study(3, ties=ties)
    given["reference"] = Reference(time, event, 0.0)
    found = evaluate(log_hazard, time, event, **given, num_resamples=100)

    def tensor(array):
        return torch.tensor(np.asarray(array, np.float32))

    risk, seen, times, at = tensor(log_hazard), torch.tensor(event), tensor(time), tensor(HORIZONS)
    weight, weight_at = get_ipcw(seen, times), get_ipcw(seen, times, at)
    theirs = ConcordanceIndex()(risk, seen, times, weight=weight, tmax=torch.tensor(5.0))
    assert found["uno_c"]["value"] == pytest.approx(float(theirs), abs=1e-5)
    theirs = [
        float(Auc()(risk, seen, times, new_time=at[i : i + 1], weight=weight, weight_new_time=weight_at[i : i + 1]))
        for i in range(3)
    ]
    np.testing.assert_allclose([e["value"] for e in found["auc"].values()], theirs, atol=1e-5)
    curves = tensor(given["survival"][:, np.isin(GRID, HORIZONS)])
    theirs = BrierScore()(curves, seen, times, new_time=at, weight=weight, weight_new_time=weight_at)
    np.testing.assert_allclose([e["value"] for e in found["brier"].values()], theirs, atol=1e-5)


def test_log_rank_is_lifelines():
    log_hazard, time, event, given = study(4)
    groups = evaluate(log_hazard, time, event, **given, num_resamples=100)["risk_groups"]
    high = log_hazard > given["reference"].cut
    theirs = logrank_test(time[high], time[~high], event[high], event[~high]).p_value
    assert groups["log_rank_p"] == pytest.approx(theirs)
    assert groups["high"] == {"n": int(high.sum()), "events": int(event[high].sum())}
    assert groups["low"]["n"] + groups["high"]["n"] == 120


# ---- By hand
def test_brier_by_hand():
    # G of the training part: censored at 1.5 of 4 -> 2/3 after it (3 at risk, one censored)
    reference = Reference(np.array([1.0, 1.5, 3, 4]), np.array([True, False, True, True]), 0.0)
    curves = np.array([[0.5, 0.2], [0.8, 0.6], [0.9, 0.7]])
    given = {"survival": curves, "grid": np.array([1.0, 2]), "horizons": (1.0, 2.0), "reference": reference}
    found = evaluate([1, 0, -1], [0.5, 1.8, 2.5], [True, False, True], **given, num_resamples=100)
    first = (0.5**2 + 0.2**2 + 0.1**2) / 3  # G = 1
    second = (0.2**2 + 0 + 0.3**2 / (2 / 3)) / 3  # the second subject was censored before
    assert found["brier"]["1.0"]["value"] == pytest.approx(first)
    assert found["brier"]["2.0"]["value"] == pytest.approx(second)
    assert found["ibs"]["value"] == pytest.approx((first + second) / 2)
    assert found["auc"]["1.0"]["value"] == 1


def test_calibration_groups_are_deciles_with_kaplan_meier():
    log_hazard, time, event, given = study(5, 200)
    groups = evaluate(log_hazard, time, event, **given, num_resamples=100)["calibration"]["2.0"]["groups"]
    predicted = [group["predicted"] for group in groups]
    assert [group["n"] for group in groups] == [20] * 10 and predicted == sorted(predicted)
    assert sum(group["events"] for group in groups) == event.sum()
    assert groups[0]["observed"]["value"] < groups[-1]["observed"]["value"]
    assert all(group["observed"]["low"] <= group["observed"]["value"] <= group["observed"]["high"] for group in groups)


def test_a_group_without_events_has_exact_limits():
    time = np.concatenate([np.full(9, 6.0), [2.0], np.full(10, 1.0)])
    found = planted(np.repeat([-2.0, 2.0], 10), time, np.repeat([False, True], 10))
    nobody, everyone = (group["observed"] for group in found["calibration"]["3.0"]["groups"])
    limit = binomtest(0, 9).proportion_ci().high  # the tenth was censored before
    assert (nobody["value"], nobody["low"], nobody["high"]) == (0, 0, pytest.approx(limit))
    limit = binomtest(10, 10).proportion_ci().low
    assert (everyone["value"], everyone["low"], everyone["high"]) == (1, pytest.approx(limit), 1)
    assert "nobody of 9" in nobody["note"] and "everyone of 10" in everyone["note"]


def test_predictions_of_certainty_are_held_and_counted():
    log_hazard, time, event, given = study(6)
    given["survival"] = np.where(np.arange(120)[:, None] < 3, 1.0, given["survival"])
    found = evaluate(log_hazard, time, event, **given, num_resamples=100)
    assert found["calibration"]["3.0"]["slope"]["note"].startswith("3 predicted risks held")


# ---- Bootstrap
def test_the_resamples_at_once_are_a_loop_over_resamples():
    log_hazard, time, event, given = study(7, 60)
    found = estimates(evaluate(log_hazard, time, event, **given, num_resamples=100, seed=3))
    rows = []
    for drawn in np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=100):
        i = np.repeat(np.arange(60), drawn)
        one = evaluate(log_hazard[i], time[i], event[i], **given | {"survival": given["survival"][i]}, num_resamples=1)
        rows.append({path: estimate["value"] for path, estimate in estimates(one).items()})
    for path in ("c_index/", "uno_c/", "auc/2.0/", "auc/3.0/", "brier/2.0/", "calibration/3.0/slope/"):
        values = np.array([row[path] for row in rows], float)
        low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        assert (found[path]["low"], found[path]["high"]) == pytest.approx((low, high), abs=1e-7), path


def test_the_same_seed_gives_the_same_intervals():
    log_hazard, time, event, given = study(8)
    one, same, other = (evaluate(log_hazard, time, event, **given, num_resamples=100, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one["c_index"]["value"] == other["c_index"]["value"] and one["c_index"] != other["c_index"]


def test_a_thousand_resamples_of_a_thousand_subjects_take_seconds():
    log_hazard, time, event, given = study(9, 1000)
    start = clock.process_time()
    found = evaluate(log_hazard, time, event, **given)
    assert clock.process_time() - start < 10
    assert all(estimate["low"] <= estimate["value"] <= estimate["high"] for estimate in estimates(found).values())


@pytest.mark.slow
def test_intervals_of_c_cover_it():
    truth = np.mean([concordance(*simulate(10_000 + i, 4000)) for i in range(20)])
    covered = 0
    for seed in range(500):
        log_hazard, time, event, given = study(seed, 100)
        given |= {"survival": given["survival"][:, [7]], "grid": GRID[[7]], "horizons": (2.0,)}
        estimate = evaluate(log_hazard, time, event, **given, seed=seed)["c_index"]
        covered += estimate["low"] <= truth <= estimate["high"]
    assert 0.93 <= covered / 500 <= 0.97


# ---- Direction, and planted wrong models
def test_higher_risk_means_an_earlier_event_in_every_figure():
    log_hazard, time, event, given = study(10, 200)
    right = evaluate(log_hazard, time, event, **given, num_resamples=100)
    order = np.argsort(log_hazard)
    upside_down = np.empty_like(given["survival"])
    upside_down[order] = given["survival"][order[::-1]]
    flipped = Reference(given["reference"].time, given["reference"].event, -given["reference"].cut)
    wrong = evaluate(
        -log_hazard, time, event, **given | {"survival": upside_down, "reference": flipped}, num_resamples=100
    )
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
    found = planted([0.5] * 20, np.linspace(0.5, 7, 20), [True, False] * 10)
    for estimate in (found["c_index"], found["uno_c"], *found["auc"].values()):
        assert (estimate["value"], estimate["low"], estimate["high"]) == (0.5, 0.5, 0.5)
    assert "the same prediction" in found["calibration"]["2.0"]["slope"]["why"]
    assert found["calibration"]["2.0"]["intercept"]["value"] is not None
    assert found["hazard_ratio"]["why"] == found["rmst_difference"]["why"] == found["risk_groups"]["why"]
    assert found["hazard_ratio"]["why"] == "the low-risk group is empty"


def test_a_risk_group_is_empty():
    found = planted(np.linspace(-3, -1, 20), np.linspace(7, 0.5, 20), [True, False] * 10)
    assert found["hazard_ratio"] == {"value": None, "low": None, "high": None, "why": "the high-risk group is empty"}
    assert found["risk_groups"]["log_rank_p"] is None and found["c_index"]["value"] is not None


def test_a_perfect_separation_has_an_infinite_hazard_ratio():
    found = planted(np.linspace(2, -2, 20), np.linspace(1, 7, 20), [True] * 10 + [False] * 10)
    assert found["c_index"]["value"] == 1
    assert found["hazard_ratio"]["value"] is None and found["hazard_ratio"]["why"].startswith("infinite: no event")
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
    assert alone["auc"]["3.0"]["why"] == "nobody was followed beyond 3 years (longest: 3.00)"
    censored = planted([1.0, 2, -3], [3.5, 4, 6], [False] * 3)
    assert censored["auc"]["2.0"]["why"] == "nobody had the event within 2 years"
    assert censored["hazard_ratio"]["why"] == "no events"
    assert "same outcome" in censored["calibration"]["2.0"]["slope"]["why"]


def test_past_the_training_follow_up_nothing_is_estimated():
    log_hazard, time, event = simulate(11)
    short = Reference(np.linspace(0.1, 2.6, 30), np.arange(30) % 3 > 0, 0.0)
    found = planted(log_hazard, time, event, reference=short)
    assert found["auc"]["2.0"]["value"] and found["brier"]["2.0"]["value"]
    for year in ("3.0", "5.0"):
        for estimate in (found["auc"][year], found["brier"][year], found["calibration"][year]["slope"]):
            assert "past the training part's follow-up (2.60 years)" in estimate["why"]
    assert found["ibs"]["note"] == found["uno_c"]["note"] == "up to 2.5 years, where the follow-up ends"
    assert found["c_index"]["value"] == concordance(log_hazard, time, event)


def test_resamples_without_a_value_are_counted():
    found = planted([1.0, -1, 2, 0.5], [4.0, 2, 6, 1], [True, False, False, True])
    assert "of 200 resamples have no value" in found["c_index"]["note"]


# ---- Two models, and over time
def test_a_difference_is_paired():
    log_hazard, time, event, given = study(12, 150)
    noisy = log_hazard + np.random.default_rng(0).normal(size=150)
    curves = given.pop("survival")
    found = compare((log_hazard, curves), (noisy, curves), time, event, **given)
    alone = [evaluate(risk, time, event, survival=curves, **given)["c_index"] for risk in (log_hazard, noisy)]
    assert found["c_index"]["value"] == pytest.approx(alone[0]["value"] - alone[1]["value"])
    unpaired = np.hypot(*(estimate["high"] - estimate["low"] for estimate in alone))
    assert found["c_index"]["high"] - found["c_index"]["low"] < 0.8 * unpaired
    assert found["c_index"]["low"] > 0 and set(found["auc"]) == {"2.0", "3.0", "5.0"}
    assert found["ibs"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_model_does_not_differ_from_itself():
    log_hazard, time, event, given = study(13)
    model = (log_hazard, given.pop("survival"))
    for path, estimate in estimates(compare(model, model, time, event, **given, num_resamples=100)).items():
        assert (estimate["value"], estimate["low"], estimate["high"]) == (0, 0, 0), path


def test_what_two_models_lack_they_lack_with_a_reason():
    given = {
        "grid": GRID,
        "horizons": HORIZONS,
        "reference": Reference(np.array([9.0, 8]), np.array([True, False]), 0.0),
    }
    model = (np.array([1.0, 2]), np.full((2, len(GRID)), 0.5))
    found = compare(model, model, [2.5, 2.6], [False, False], **given, num_resamples=100)
    assert found["auc"]["3.0"]["why"].startswith("nobody was followed") and found["c_index"]["why"]


def test_over_time_passes_through_the_horizons():
    log_hazard, time, event, given = study(14)
    found = evaluate(log_hazard, time, event, **given, num_resamples=100)
    curve = over_time(
        log_hazard, time, event, survival=given["survival"], grid=GRID, reference=given["reference"], num_resamples=100
    )
    assert [float(year) for year in curve["auc"]] == GRID.tolist()
    for name in ("auc", "brier"):
        assert {year: curve[name][year] for year in found[name]} == found[name]


# ---- The contract
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizons": (2.0, 3.1)}, "grid: expected ascending years with the horizons"),
        ({"grid": GRID[::-1]}, "grid: expected ascending"),
        ({"survival": np.ones((3, 3))}, r"expected shape \(120, 20\). Received: \(3, 3\)"),
        ({"survival": np.full((120, 20), 1.1)}, "expected probabilities"),
        ({"survival": np.full((120, 20), np.nan)}, "expected probabilities"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    log_hazard, time, event, given = study()
    with pytest.raises(ValueError, match=message):
        evaluate(log_hazard, time, event, **given | change)


def test_the_import_is_light():
    code = "import sys, survival.metrics; "
    code += "print([m for m in ('torch', 'lifelines', 'scipy', 'pandas') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
