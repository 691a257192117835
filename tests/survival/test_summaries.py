"""Causal summaries of a history against naive ones, visit by visit."""

import numpy as np
import pandas as pd
import pytest

from survival.summaries import NAMES, Summaries


def visits_of(rng, num_subjects=30, most=6, noise=0.3):
    """Two columns: a line with the subject's own slope, and noise; irregular visits."""
    rows = []
    for subject in range(num_subjects):
        slope, years = rng.normal(1, 0.5), np.sort(rng.uniform(0, 4, rng.integers(1, most + 1)))
        rows += [(f"s{subject:02}", year, slope * year + noise * rng.normal(), rng.normal()) for year in years]
    table = pd.DataFrame(rows, columns=["subject", "visit_time", "x", "y"])
    return table[["subject", "visit_time"]], table[["x", "y"]].to_numpy()


def naive(summaries, values, table):
    """The same by a loop over visits and columns, by NumPy's own least squares."""
    rows = []
    for at in range(len(table)):
        so_far = (table["subject"] == table["subject"][at]) & (table.index <= at)
        years, known = table["visit_time"][so_far].to_numpy(), values[so_far]
        row = []
        for column in range(values.shape[1]):
            own, mean, trust = known[:, column], summaries.mean_slope[column], summaries.trust[column]
            slopes = []
            for t, v in ((years, own), (years[-2:], own[-2:])):
                s_tt, s_tv = ((t - t.mean()) ** 2).sum(), ((t - t.mean()) * (v - v.mean())).sum()
                slopes.append(mean + trust * (s_tv - mean * s_tt) / (trust * s_tt + 1))
            spread = summaries.log_spread[column]
            if len(own) > 2:
                residuals = own - np.polyval(np.polyfit(years, own, 1), years)
                spread = np.log(np.sqrt((residuals**2).sum() / (len(own) - 2)))
            steps = np.diff(own, prepend=own[:1])
            largest = len(own) - 1 - int(np.abs(steps)[::-1].argmax())  # the latest of equal ones
            row += [*slopes, own.max(), own.min(), own.mean(), spread, steps[largest], years[-1] - years[largest]]
        rows.append([*row, np.log(len(years))])
    return np.array(rows)


def test_summaries_are_those_of_a_loop_over_visits():
    table, values = visits_of(np.random.default_rng(0))
    summaries = Summaries.fit(values, table)
    assert summaries(values, table).shape == (len(table), 2 * len(NAMES) + 1)
    np.testing.assert_allclose(summaries(values, table), naive(summaries, values, table), rtol=1e-7, atol=1e-7)


def test_a_later_visit_changes_no_earlier_summary():
    table, values = visits_of(np.random.default_rng(1))
    summaries = Summaries.fit(values, table)
    whole = summaries(values, table)
    earlier = table["subject"].duplicated(keep="last").to_numpy()  # all but each subject's last visit
    alone = summaries(values[earlier], table[earlier].reset_index(drop=True))
    np.testing.assert_allclose(alone, whole[earlier], rtol=1e-9, atol=1e-9)


def test_the_trust_is_the_variance_of_the_slopes_over_the_noise():
    table, values = visits_of(np.random.default_rng(2), num_subjects=4000, noise=0.3)
    summaries = Summaries.fit(values, table)
    assert summaries.mean_slope[0] == pytest.approx(1, abs=0.05)
    assert summaries.trust[0] == pytest.approx(0.5**2 / 0.3**2, rel=0.15)
    assert summaries.trust[1] < 0.02  # noise alone has no slopes of its own


def test_a_shrunken_slope_is_nearer_to_the_true_one():
    rng = np.random.default_rng(3)
    table, values = visits_of(rng, num_subjects=500, most=3, noise=0.8)
    slopes = Summaries.fit(values, table)(values, table)[:, 0]
    plain = Summaries(np.zeros(2), np.full(2, 1e9), np.zeros(2), np.array(-np.inf), np.array(np.inf))(values, table)[
        :, 0
    ]
    truth = np.random.default_rng(3)
    true = []
    for _ in range(500):  # drawn as in visits_of
        slope, count = truth.normal(1, 0.5), truth.integers(1, 4)
        truth.uniform(0, 4, count)
        truth.normal(size=2 * count)
        true.append(slope)
    last = ~table["subject"].duplicated(keep="last").to_numpy()
    assert np.square(slopes[last] - true).mean() < 0.7 * np.square(plain[last] - true).mean()


@pytest.mark.parametrize("visits", [1, 2])
def test_histories_that_tell_no_slope_give_the_mean(visits):
    table = pd.DataFrame({"subject": np.repeat(["a", "b", "c"], visits), "visit_time": np.tile(range(visits), 3) * 1.0})
    values = np.arange(3.0 * visits)[:, None]
    summaries = Summaries.fit(values, table)
    assert np.isfinite(summaries(values, table)).all()
    assert (summaries(values, table)[:, 0] == summaries.mean_slope[0]).all()


def test_no_summary_lies_beyond_the_training_subjects():
    table, values = visits_of(np.random.default_rng(4))
    summaries = Summaries.fit(values, table)
    inside = summaries(values, table)
    far = pd.DataFrame({"subject": ["z", "z", "z"], "visit_time": [0.0, 1e-6, 30.0]})
    beyond = summaries(np.array([[0.0, 0.0], [50.0, -50.0], [1e6, 1e6]]), far)
    assert (beyond >= inside.min(axis=0)).all() and (beyond <= inside.max(axis=0)).all()
