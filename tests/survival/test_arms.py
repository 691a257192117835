"""The arms: what is held out, what each can express, and how the link's candidates and families are weighted."""

import numpy as np
import pandas as pd
import pytest

from survival import arms as arms_module
from survival.arms import ARMS, fit_arms
from survival.landmarks import Histories
from survival.link import LinkSettings


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


def fit(table, columns=("x",), grid=(), components=(0,), judges=None, **options):
    """Fitted arms and what is held out; everybody judges unless said."""
    judges = np.ones(table["subject"].nunique(), bool) if judges is None else judges
    return fit_arms(table, columns, judges=judges, grid=grid, settings=settings(components, **options), seed=0)


def predict(arms, table, grid=()):
    """(R, 3) log-hazards of a table by arms."""
    data = Histories.of(table, arms.prepare, grid)
    return arms(data.inputs[data.rows])


def with_images(table, rng, number=6):
    """The table with so many image features, the first three of which follow the column x."""
    noise = rng.normal(size=(len(table), number))
    noise[:, :3] += table[["x"]].to_numpy()
    return pd.concat([table, pd.DataFrame(noise, columns=[f"feature_{n + 1}" for n in range(number)])], axis=1)


def test_the_arms_predict_as_their_candidates_do(monkeypatch):
    """With one candidate of each, an arm is that model; the coefficients come back from all subjects."""
    monkeypatch.setattr(arms_module, "MOST_TREES", 10)
    table = cohort("last", 60, np.random.default_rng(0))
    arms, held_out = fit(table, penalties=(0.1,))
    candidates = arms_module._Candidates.fit(table, ["x"], grid=(), settings=settings(penalties=(0.1,)))(held_out.data)
    log_hazards = predict(arms, table)
    assert log_hazards.shape == held_out.log_hazards.shape == (60, len(ARMS))
    np.testing.assert_allclose(log_hazards[:, 1], candidates["rich_link"][0], atol=1e-9)
    np.testing.assert_allclose(log_hazards[:, 2], candidates["boosted"][0], atol=1e-9)
    low, high = candidates["link"].min(axis=0), candidates["link"].max(axis=0)
    assert ((low - 1e-9 <= log_hazards[:, 0]) & (log_hazards[:, 0] <= high + 1e-9)).all()


def test_a_held_out_subject_has_no_part_in_its_own_log_hazard():
    """Another outcome of one subject changes the arms, but not what the folds without the subject gave it."""
    table = cohort("last", 60, np.random.default_rng(1))
    changed = table.copy()
    changed.loc[changed["subject"] == "s0007", "time"] += 5.0
    (_, before), (_, after) = fit(table), fit(changed)
    row = int(np.flatnonzero(before.data.visits.subject[before.data.landmarks.subject] == "s0007")[0])
    # the candidates' weights see every held-out subject; the boosted arm's number of trees is the same here
    assert after.log_hazards[row, 2] == pytest.approx(before.log_hazards[row, 2], abs=1e-12)
    assert not np.allclose(after.log_hazards, before.log_hazards)


def test_every_subject_is_in_one_fold():
    _, held_out = fit(cohort("last", 61, np.random.default_rng(9)))
    assert (held_out.folds.sum(axis=0) == 1).all() and held_out.folds.sum(axis=1).max() <= 14


@pytest.mark.parametrize("components", [(0,), (2,), (0, 2), (0, 4, 30)])
def test_components_stand_for_the_image_features(components):
    rng = np.random.default_rng(2)
    table = with_images(cohort("last", 80, rng), rng)
    columns = [f"feature_{number}" for number in range(1, 7)]
    arms, held_out = fit(table, ["x", *columns], components=components)
    assert np.isfinite(held_out.log_hazards).all()
    if components == (0,):
        other = table.assign(**{name: -table[name] for name in columns})
        np.testing.assert_allclose(predict(arms, other), predict(arms, table), atol=1e-9)


def test_what_a_family_does_not_read_has_no_coefficient():
    rng = np.random.default_rng(3)
    table = with_images(cohort("last", 80, rng), rng).rename(columns={"x": "log_hazard"})
    table["progress"] = table["visit_time"] + rng.normal(size=len(table))
    columns = ["log_hazard", "progress", *(f"feature_{number}" for number in range(1, 7))]
    options = {"grid": (), "settings": settings((0, 2), (0.1,))}
    candidates = arms_module._Candidates.fit(table, columns, **options)
    state, values = candidates.prepare.num_state, candidates.prepare.num_values
    reads = candidates.link[:, :values] != 0
    by_family = {tuple(reads[candidates.family == number].any(axis=0)) for number in range(4)}
    one, other, both, all_of_them = (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 1)
    assert by_family == {one, other, both, all_of_them}
    changes, slopes = candidates.link[:, state : state + values], candidates.link[:, state + values :]
    assert not (changes.any(axis=1) & slopes.any(axis=1)).any()
    assert (changes.any(axis=1).sum(), slopes.any(axis=1).sum()) == (8, 8)  # a third of 24 each
    assert (candidates.link[:, state - 2 : state].any(axis=1).sum()) == 12  # half of them see times


def test_the_judges_weigh_the_families():
    """A column that gives away the training subjects' outcomes counts for what the judges, who are new to it, say."""
    rng = np.random.default_rng(4)
    table = cohort("last", 200, rng).rename(columns={"x": "progress"})
    is_judge = rng.uniform(size=200) < 0.4
    of_visit = dict(zip(np.unique(table["subject"]), is_judge, strict=True))
    is_new = table["subject"].map(of_visit).to_numpy()
    leaked = 4.0 * table["event"] - table["time"] + 0.1 * rng.normal(size=len(table))
    table["log_hazard"] = np.where(is_new, rng.normal(size=len(table)), (leaked - leaked.mean()) / leaked.std())
    columns = ["log_hazard", "progress"]
    by_all, by_judges = (fit(table, columns, judges=judges)[0] for judges in (np.ones(200, bool), is_judge))
    level = [abs(arms.link[0]) for arms in (by_all, by_judges)]
    assert level[0] > 0.5 and level[1] < 0.2 * level[0]


def test_landmarks_of_a_grid_are_strata():
    grid = (0.0, 1.0, 2.0)
    table = cohort("last", 80, np.random.default_rng(8))
    arms, held_out = fit(table, grid=grid)
    assert held_out.log_hazards.shape == predict(arms, table, grid).shape == (len(held_out.data.landmarks), len(ARMS))
    assert set(held_out.data.landmarks.stratum) == {0, 1, 2}
    assert held_out.num_events <= table.groupby("subject")["event"].first().sum()
