"""The arms: what is held out, what each can express, and how the link's candidates and families are weighted."""

import numpy as np
import pandas as pd
import pytest
from arm_samples import cohort, fit, predict, settings

from survival import arms as arms_module
from survival.arms import ARMS
from survival.cox import risk_sets
from survival.preparation import Preparation


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


def test_a_held_out_subject_has_no_part_in_its_own_log_hazard(monkeypatch):
    """Another outcome of one subject changes the arms, but not what the folds without the subject gave it."""
    monkeypatch.setattr(arms_module, "MOST_TREES", 10)  # one candidate: its weights see every held-out subject
    table = cohort("last", 60, np.random.default_rng(1))
    changed = table.copy()
    changed.loc[changed["subject"] == "s0007", "time"] += 5.0
    (_, before), (_, after) = fit(table), fit(changed)
    row = int(np.flatnonzero(before.data.visits.subject[before.data.landmarks.subject] == "s0007")[0])
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
    values = candidates.prepare.num_values
    reads = candidates.link[:, :values] != 0
    by_family = {tuple(reads[candidates.family == number].any(axis=0)) for number in range(4)}
    one, other, both, all_of_them = (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 1)
    assert by_family == {one, other, both, all_of_them}
    unread = np.array(
        [
            row[~reads[candidates.family == family].any(axis=0)]
            for row, family in zip(
                candidates.link[:, candidates.prepare.num_state :][:, :values], candidates.family, strict=True
            )
        ],
        dtype=object,
    )
    assert not any(changes.any() for changes in unread)


def test_a_candidate_sees_changes_or_slopes_or_neither_with_times_or_without():
    table = cohort("last", 40, np.random.default_rng(3)).assign(y=1.0)
    table.loc[3, "y"] = np.nan
    prepare = Preparation.fit(table, ["x", "y"], num_components=0, summarise=True)
    state, values = prepare.num_state, prepare.num_values
    choices = np.stack(arms_module._choices_of_inputs(prepare, np.array([True, False])))
    assert choices.shape == (6, prepare.num_inputs) and len(np.unique(choices, axis=0)) == 6
    assert choices[:, 0].all() and not choices[:, 1].any() and choices[:, 2].all()  # the value, not the other; missing
    assert choices[:, state - 2 : state].sum(axis=0).tolist() == [3, 3]
    changes, summaries = choices[:, state : state + values], choices[:, state + values :]
    assert changes.sum(axis=0).tolist() == [2, 0]
    assert summaries.sum(axis=0).tolist() == [2] + [0] * (summaries.shape[1] - 1)  # the slope of the first value


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
    assert level[0] > 0.5 and level[1] < 0.5 * level[0]


def test_landmarks_of_a_grid_are_strata():
    grid = (0.0, 1.0, 2.0)
    table = cohort("last", 80, np.random.default_rng(8))
    arms, held_out = fit(table, grid=grid)
    assert held_out.log_hazards.shape == predict(arms, table, grid).shape == (len(held_out.data.landmarks), len(ARMS))
    assert set(held_out.data.landmarks.stratum) == {0, 1, 2}
    assert held_out.data.landmarks.num_events <= table.groupby("subject")["event"].first().sum()


def test_a_model_whose_log_hazards_no_float_can_compare_has_no_weight():
    rng = np.random.default_rng(10)
    risk = rng.normal(size=50)
    sets = risk_sets(rng.exponential(np.exp(-risk)), np.ones(50, bool))
    weights = arms_module._weights(np.stack([risk, 1e6 * risk, -1e6 * risk]), sets, 50)
    assert np.isfinite(weights).all() and weights[0] > 0.999
