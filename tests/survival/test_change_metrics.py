"""How well change is measured: the noise of a scan, the halves of a history, and the size of a trial."""

import numpy as np
import pandas as pd
import pytest

from survival import change_metrics
from survival.change import Lines, Moments
from survival.change_metrics import OF_LINES, OF_PAIRS, measure_change, trial_size

QUICK = {"num_resamples": 200, "seed": 0}


def measure(table, column="progress", **settings):
    """The figures of one column, without its name."""
    figures = measure_change(table, [column], **QUICK | settings)
    return {name: figure[column] if isinstance(figure, dict) else figure for name, figure in figures.items()}


def schedule(num_subjects, times, *, seed=0, mean=0.7, rate_sd=0.3, noise=0.1, bend=0.0, ratio=1.0):
    """Every subject at the same times; `bend` adds to each course bend x years^2."""
    rng = np.random.default_rng(seed)
    times = np.asarray(times, float)
    rates = ratio * mean + rate_sd * rng.normal(size=num_subjects)
    values = rng.normal(size=(num_subjects, 1)) + rates[:, None] * times + bend * times**2
    values += noise * rng.normal(size=values.shape)
    subject = np.repeat([f"s{number:05d}" for number in range(num_subjects)], len(times))
    return pd.DataFrame({"subject": subject, "visit_time": np.tile(times, num_subjects), "progress": values.ravel()})


# ---- The size of a trial
def test_the_size_of_a_trial_worked_by_hand():
    """2 (1.95996 + 0.84162)^2 = 15.6978; times (0.16 + 0.02 / 0.5) = 0.2, over (0.25 x 0.8)^2 = 0.04."""
    size = trial_size(np.array([0.8]), np.array([0.16]), np.array([0.02]), s_tt=0.5)
    assert size == pytest.approx(15.6978 * 0.2 / 0.04, rel=1e-5)


@pytest.mark.parametrize(("rate_sd", "noise"), [(0.4, 0.1), (0.2, 0.3)])
def test_trials_of_that_size_succeed_in_80_of_100(rate_sd, noise):
    """2,000 simulated trials: each arm's subjects at 0, 0.6 and 1.3 years, treated ones 25 % slower, a two-sided z."""
    times = np.array([0, 0.6, 1.3])
    s_tt = ((times - times.mean()) ** 2).sum()
    number = int(np.ceil(trial_size(np.array([0.7]), np.array([rate_sd**2]), np.array([noise**2]), s_tt=s_tt)[0]))
    slopes = []
    for seed, ratio in enumerate((1.0, 0.75)):
        table = schedule(2000 * number, times, seed=seed, rate_sd=rate_sd, noise=noise, ratio=ratio)
        slopes.append(Lines.of(table.assign(subject=np.repeat(np.arange(len(table) // 3), 3)), "progress").slope)
    untreated, treated = (of_arm.reshape(2000, number) for of_arm in slopes)
    error = np.sqrt((untreated.var(axis=1, ddof=1) + treated.var(axis=1, ddof=1)) / number)
    power = np.mean(np.abs(untreated.mean(axis=1) - treated.mean(axis=1)) > 1.959964 * error)
    assert 0.77 < power < 0.83


def test_the_size_is_of_the_median_subjects_visits():
    longer = schedule(100, [0, 1, 2, 3, 4], seed=1).replace("^s", "t", regex=True)
    table = pd.concat([schedule(150, [0, 0.5, 1]), longer])
    figures, moments = measure(table), Moments.of(Lines.of(table, "progress"), np.ones((1, 250)))
    size = trial_size(moments.mean, moments.rate_variance, moments.noise_variance, s_tt=0.5)
    assert figures["sample_size"]["value"] == pytest.approx(size[0])
    assert (figures["visits"], figures["years"]) == (3, 1.0)


def test_a_rate_that_may_be_0_needs_a_trial_of_any_size():
    size = measure(schedule(60, [0, 1, 2], mean=0.03, rate_sd=0.5))["sample_size"]
    assert size["value"] > 0 and size["high"] is None and "one limit of the interval is infinite" in size["note"]


def test_a_measure_that_falls_needs_the_trial_of_one_that_grows():
    table = schedule(60, [0, 1, 2])
    grows, falls = measure(table)["sample_size"], measure(table.assign(progress=-table["progress"]))["sample_size"]
    assert falls == pytest.approx(grows)


# ---- Repeatability
@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_the_noise_is_from_the_lines_where_no_visits_are_near(noise):
    figures = measure(schedule(500, [0, 0.5, 1.1, 1.5], noise=noise))["repeatability"]
    assert (figures["source"], figures["pairs"]) == (OF_LINES, 0)
    assert figures["within_sd"]["low"] < noise < figures["within_sd"]["high"]
    coefficient = 1.959964 * np.sqrt(2) * figures["within_sd"]["value"]
    assert figures["coefficient"]["value"] == pytest.approx(coefficient)
    assert figures["years"]["value"] == pytest.approx(coefficient / 0.7, rel=0.05)


def test_visits_that_are_near_show_the_noise_without_the_bend():
    """A bend of the courses is noise to a line, and none to two scans of one week."""
    table = schedule(400, [0, 0.02, 1, 2], noise=0.1, bend=1.0)
    figures = measure(table)["repeatability"]
    assert (figures["source"], figures["pairs"]) == (OF_PAIRS, 400)
    assert figures["within_sd"]["value"] == pytest.approx(0.1, rel=0.1)
    assert measure(table[table["visit_time"] != 0.02])["repeatability"]["within_sd"]["value"] > 0.3


def test_a_few_near_visits_do_not_replace_the_lines():
    near = schedule(9, [0, 0.1, 1]).replace("^s", "near", regex=True)
    figures = measure(pd.concat([schedule(50, [0, 0.7, 1.4]), near]))["repeatability"]
    assert (figures["source"], figures["pairs"]) == (OF_LINES, 0)


# ---- Halves
@pytest.mark.parametrize(("times", "seed"), [([0, 0.5, 1.1], 1), ([0, 0.4, 0.9, 1.5], 2), ([0, 0.3, 0.7, 1.1, 1.4], 3)])
def test_halves_of_straight_courses_agree_as_expected(times, seed):
    figures = measure(schedule(3000, times, seed=seed))["consistency"]
    assert figures["correlation"]["value"] == pytest.approx(figures["expected"]["value"], abs=0.05)
    assert figures["icc"]["value"] == pytest.approx(figures["correlation"]["value"], abs=0.02)
    assert (figures["subjects"], figures["left_out"]) == (3000, 0)


def test_a_common_acceleration_lowers_the_agreement_not_the_correlation():
    straight, bent = (measure(schedule(500, [0, 0.5, 1, 1.5], bend=bend))["consistency"] for bend in (0.0, 0.5))
    assert bent["correlation"]["value"] == pytest.approx(straight["correlation"]["value"])
    assert bent["icc"]["value"] < 0.7 * straight["icc"]["value"]


def test_rates_that_change_lower_the_correlation_below_the_expected():
    table = schedule(1000, [0, 0.5, 1, 1.5], noise=0.02)
    own_bend = np.repeat(np.random.default_rng(8).normal(scale=0.6, size=1000), 4) * (table["visit_time"] - 1).clip(0)
    figures = measure(table.assign(progress=table["progress"] + own_bend))["consistency"]
    assert figures["correlation"]["high"] < figures["expected"]["low"]


def test_the_agreement_is_that_of_an_analysis_of_variance(rng):
    """Mean squares of a table of 2 columns, sum by sum."""
    slopes = rng.normal(size=(12, 1)) + rng.normal(scale=0.6, size=(12, 2)) + [0, 0.4]
    table = schedule(12, [0, 1, 2, 3])
    table["progress"] = np.concatenate([[0, first, first, first + second] for first, second in slopes])
    of_rows, of_columns, grand = slopes.mean(axis=1), slopes.mean(axis=0), slopes.mean()
    between = 2 * ((of_rows - grand) ** 2).sum() / 11
    columns = 12 * ((of_columns - grand) ** 2).sum()
    rest = ((slopes - of_rows[:, None] - of_columns + grand) ** 2).sum() / 11
    figures = measure(table)["consistency"]
    assert figures["icc"]["value"] == pytest.approx((between - rest) / (between + rest + 2 * (columns - rest) / 12))
    assert figures["correlation"]["value"] == pytest.approx(np.corrcoef(slopes.T)[0, 1])


def test_halves_that_are_too_short_are_counted():
    table = pd.concat([schedule(30, [0, 0.1, 1]), schedule(30, [0, 1, 2], seed=1).replace("^s", "t", regex=True)])
    figures = measure(table)["consistency"]
    assert (figures["subjects"], figures["left_out"]) == (30, 30)


# ---- Resamples
def test_a_resample_is_a_table_of_its_subjects(monkeypatch):
    """The figures under weights are those of a table in which subjects stand so often."""
    table, counts = schedule(12, [0, 0.5, 1.2, 1.9], seed=5), np.array([2, 0, 1, 1, 3, 0, 1, 1, 1, 1, 0, 1])
    names = table["subject"].unique()
    copies = [
        table[table["subject"] == name].assign(subject=f"{name}_{copy}")
        for name, count in zip(names, counts, strict=True)
        for copy in range(count)
    ]
    expected = measure(pd.concat(copies, ignore_index=True))
    monkeypatch.setattr(change_metrics, "draw_resamples", lambda *_: counts[None].astype(float))
    resampled = measure(table)
    for of_one in (
        lambda figures: figures["rate"]["mean"],
        lambda figures: figures["rate"]["sd"],
        lambda figures: figures["repeatability"]["within_sd"],
        lambda figures: figures["repeatability"]["years"],
        lambda figures: figures["consistency"]["correlation"],
        lambda figures: figures["consistency"]["expected"],
        lambda figures: figures["consistency"]["icc"],
        lambda figures: figures["sample_size"],
    ):
        assert of_one(resampled)["low"] == of_one(resampled)["high"] == pytest.approx(of_one(expected)["value"])


def test_intervals_hold_the_truth():
    covered = 0
    for seed in range(40):
        mean = measure(schedule(80, [0, 0.6, 1.3], seed=seed))["rate"]["mean"]
        covered += mean["low"] <= 0.7 <= mean["high"]
    assert covered >= 34


# ---- What can't be told
def whys(figures):
    """Every reason in a column's figures, at any depth."""
    if "why" in figures:
        return {figures["why"]}
    return set().union(*(whys(each) for each in figures.values() if isinstance(each, dict)))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (lambda table: 1234567.1, change_metrics.CONSTANT),
        (lambda table: table.groupby("subject").ngroup() / 3, change_metrics.CONSTANT),
        (lambda table: np.where(table.index == 5, 1499.9, 1500.0), change_metrics.CONSTANT),
        (lambda table: table["progress"].where(table.index != 4), change_metrics.UNKNOWN),
    ],
)
def test_a_column_without_a_rate_says_why_everywhere(values, why):
    table = schedule(20, [0, 0.1, 1, 2])
    figures = measure(table.assign(other=values(table)), "other")
    assert whys(figures) == {why} and figures["sample_size"]["value"] is None


def test_one_visit_tells_nothing_and_two_tell_no_noise():
    table = schedule(40, [0, 0.6, 1.3])
    single, two = (measure(table[table["visit_time"] <= last]) for last in (0, 0.6))
    assert whys(single) == {change_metrics.NO_RATE} and (single["two_visits"], single["years"]) == (0, None)
    assert two["repeatability"]["within_sd"]["why"] == change_metrics.NO_NOISE
    assert two["consistency"]["icc"]["why"] == change_metrics.NO_HALVES
    assert two["sample_size"]["note"] == change_metrics.NOT_APART == two["rate"]["sd"]["note"]
    slopes = Lines.of(table[table["visit_time"] <= 0.6], "progress").slope
    expected = trial_size(slopes.mean(), slopes.var(ddof=1), np.zeros(1), s_tt=1.0)
    assert two["sample_size"]["value"] == pytest.approx(expected[0])


def test_one_subject_has_a_noise_and_no_spread():
    figures = measure(schedule(1, [0, 0.6, 1.3]))
    assert figures["sample_size"]["why"] == change_metrics.NO_VALUE == figures["rate"]["sd"]["why"]
    assert figures["repeatability"]["within_sd"]["value"] > 0


def test_two_subjects_have_every_figure():
    figures = measure(schedule(2, [0, 0.6, 1.3]))
    assert whys(figures) == set() and figures["subjects"] == 2
