"""The arms and their stack: what is held out, what each can express, and when the stack is used."""

import numpy as np
import pandas as pd
import pytest

from survival import stack
from survival.cox import risk_sets
from survival.estimates import concordance
from survival.link import LinkSettings, landmark_sets
from survival.stack import ARMS, fit_arms, stack_arms


def settings(components=(0,), penalties=(0.03, 0.3)):
    return LinkSettings(penalties=penalties, components=components, winsorise=0.0, ties="efron")


def cohort(kind, num_subjects, rng):
    """Irregular visits of one column whose last value, or whose highest value, drives the hazard after the last."""
    rows = []
    for subject in range(num_subjects):
        years = np.append(0, np.sort(rng.uniform(0.2, 3, rng.integers(1, 6))))
        values = np.cumsum(rng.normal(0, 0.9, len(years)))
        risk = 1.5 * (values[-1] if kind == "last" else values.max())
        left, seen = rng.exponential(3 * np.exp(-risk)) + 0.01, rng.uniform(1, 8)
        outcome = (years[-1] + min(left, seen), left <= seen)
        rows += [(f"s{subject:04}", year, *outcome, value) for year, value in zip(years, values, strict=True)]
    return pd.DataFrame(rows, columns=["subject", "visit_time", "time", "event", "x"])


def fit(table, columns=("x",), grid=(), components=(0,)):
    return fit_arms(table, columns, grid=grid, settings=settings(components), seed=0)


def with_images(table, rng, number=6):
    """The table with so many image features, the first three of which follow the column x."""
    noise = rng.normal(size=(len(table), number))
    noise[:, :3] += table[["x"]].to_numpy()
    return pd.concat([table, pd.DataFrame(noise, columns=[f"feature_{n + 1}" for n in range(number)])], axis=1)


def test_the_arms_predict_as_their_candidates_do(monkeypatch):
    """With one candidate of each, an arm is that model; the coefficients come back from all subjects."""
    monkeypatch.setattr(stack, "MOST_TREES", 10)
    table = cohort("last", 60, np.random.default_rng(0))
    arms, _ = fit_arms(table, ["x"], grid=(), settings=settings(penalties=(0.1,)), seed=0)
    options = {"grid": (), "settings": settings(penalties=(0.1,))}
    candidates = stack._Candidates.fit(table, ["x"], **options)(table, ())
    data, log_hazards = arms(table)
    assert log_hazards.shape == (len(data.landmarks), len(ARMS))
    np.testing.assert_allclose(log_hazards[:, 1], candidates["rich_link"][0], atol=1e-9)
    np.testing.assert_allclose(log_hazards[:, 2], candidates["boosted"][0], atol=1e-9)
    low, high = candidates["link"].min(axis=0), candidates["link"].max(axis=0)
    assert ((low - 1e-9 <= log_hazards[:, 0]) & (log_hazards[:, 0] <= high + 1e-9)).all()


def test_a_held_out_subject_has_no_part_in_its_own_log_hazard():
    """Another outcome of one subject changes the arms, but not what the folds without the subject gave it."""
    table = cohort("last", 60, np.random.default_rng(1))
    changed = table.copy()
    someone = changed["subject"] == "s0007"
    changed.loc[someone, "time"] += 5.0
    data, _ = fit(table)[0](table)
    row = int(np.flatnonzero(data.visits.subject[data.landmarks.subject] == "s0007")[0])
    before, after = fit(table)[1], fit(changed)[1]
    # the candidates' weights see every held-out subject; the boosted arm's number of trees is the same here
    assert after[row, 2] == pytest.approx(before[row, 2], abs=1e-12)
    assert not np.allclose(after, before)


@pytest.mark.parametrize("components", [(0,), (2,), (0, 2), (0, 4, 30)])
def test_components_stand_for_the_image_features(components):
    rng = np.random.default_rng(2)
    table = with_images(cohort("last", 80, rng), rng)
    columns = [f"feature_{number}" for number in range(1, 7)]
    arms, held_out = fit(table, ["x", *columns], components=components)
    assert np.isfinite(held_out).all()
    if components == (0,):
        other = table.assign(**{name: -table[name] for name in columns})
        np.testing.assert_allclose(arms(other)[1], arms(table)[1], atol=1e-9)


def test_without_a_component_or_a_change_their_coefficients_are_0():
    rng = np.random.default_rng(3)
    table = with_images(cohort("last", 80, rng), rng)
    columns = ["x", *(f"feature_{number}" for number in range(1, 7))]
    options = {"grid": (), "settings": settings((0, 2), (0.1,))}
    candidates = stack._Candidates.fit(table, columns, **options)
    state = candidates.prepare.num_state
    plain, with_change, with_both = candidates.link[0], candidates.link[1], candidates.link[3]
    assert not plain[state:].any() and not plain[1:3].any() and plain[0] != 0
    assert with_change[state] != 0 and not with_change[state + 1 :].any()
    assert with_both[1:3].all() and with_both[state + 1 :].all()


def test_the_stack_sees_what_the_last_value_does_not():
    rng = np.random.default_rng(4)
    table, new = cohort("highest", 300, rng), cohort("highest", 400, rng)
    arms, held_out = fit(table)
    rows = arms(table)[0].landmarks
    chosen = stack_arms(held_out, landmark_sets(rows, "efron"), int(rows.event.sum()))
    data, log_hazards = arms(new)
    link, stacked = (
        concordance(values, data.landmarks.time, data.landmarks.event)
        for values in (log_hazards[:, 0], log_hazards @ chosen.weights)
    )
    assert chosen.is_used and chosen.gain > stack.LEAST_GAIN
    assert stacked > link + 0.02


def test_arms_that_earn_nothing_have_no_weight():
    rng = np.random.default_rng(5)
    risk, noise = rng.normal(size=(2, 200))
    time = rng.exponential(np.exp(-risk))
    sets = risk_sets(time, np.ones(200, bool))
    chosen = stack_arms(np.stack([risk, noise], axis=1), sets, 200)
    assert not chosen.is_used and chosen.weights.tolist() == [1, 0]


def test_the_weights_are_those_of_a_cox_model_of_the_arms():
    rng = np.random.default_rng(6)
    arms = rng.normal(size=(2000, 2))
    time = rng.exponential(np.exp(-(0.5 * arms[:, 0] + 1.2 * arms[:, 1])))
    chosen = stack_arms(arms, risk_sets(time, np.ones(2000, bool)), 2000)
    assert chosen.is_used
    np.testing.assert_allclose(chosen.weights, [0.5, 1.2], atol=0.1)


def test_a_weight_is_never_negative():
    rng = np.random.default_rng(7)
    risk, other = rng.normal(size=(2, 500))
    time = rng.exponential(np.exp(-risk))
    chosen = stack_arms(np.stack([0.2 * risk, -risk + other], axis=1), risk_sets(time, np.ones(500, bool)), 500)
    assert (chosen.weights >= 0).all() and chosen.is_used  # the scale of the first arm is mended


def test_landmarks_of_a_grid_are_strata():
    table = cohort("last", 80, np.random.default_rng(8))
    arms, held_out = fit(table, grid=(0.0, 1.0, 2.0))
    data, log_hazards = arms(table, (0.0, 1.0, 2.0))
    assert held_out.shape == log_hazards.shape == (len(data.landmarks), len(ARMS))
    assert set(data.landmarks.stratum) == {0, 1, 2}
