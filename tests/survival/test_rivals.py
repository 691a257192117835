"""The linear rivals: what they see, and what is predicted with them."""

import numpy as np
import pytest
from samples import random_table

from survival import rivals
from survival.link import inner_folds

COLUMNS = ["log_hazard", "lab"]


def test_baseline_rival_ignores_later_visits(rng):
    table = random_table(rng, num_subjects=60)
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    validation = inner_folds(event, 2, rng)
    predict = rivals.linear_rival(COLUMNS, (0.1,), (), baseline_only=True)(table, validation).predict
    changed = table.copy()
    changed.loc[table["subject"].duplicated(), COLUMNS] = 5.0
    before, after = (predict(visits, 1.0, np.array([1.0]))["log_hazard"] for visits in (table, changed))
    np.testing.assert_array_equal(before, after)
    last = rivals.linear_rival(COLUMNS, (0.1,), ())(table, validation).predict
    assert not np.allclose(
        last(table, 1.0, np.array([1.0]))["log_hazard"], last(changed, 1.0, np.array([1.0]))["log_hazard"]
    )


def test_the_linear_rivals_are_named_and_see_what_they_may(rng):
    table = random_table(rng, num_subjects=60)
    validation = inner_folds(table.drop_duplicates("subject")["event"].to_numpy(bool), 2, rng)
    alone = {
        "baseline_cox": rivals.linear_rival(COLUMNS, (0.1,), (), baseline_only=True),
        "locf_cox": rivals.linear_rival(COLUMNS, (0.1,), ()),
        "linear_supermodel": rivals.linear_rival(COLUMNS, (0.1,), (0.5, 1.0), with_change=True),
    }
    named = rivals.linear_rivals(COLUMNS, (0.1,), (0.5, 1.0))
    assert list(named) == list(alone)
    for name in named:
        log_hazards = [
            fit(table, validation).predict(table, 1.0, np.array([1.0]))["log_hazard"]
            for fit in (named[name], alone[name])
        ]
        np.testing.assert_array_equal(*log_hazards)


@pytest.mark.parametrize("landmarks", [(1.0,), (0.5, 1.0)])
def test_every_part_is_predicted_at_every_landmark(rng, landmarks):
    table = random_table(rng, num_subjects=60)
    validation = inner_folds(table.drop_duplicates("subject")["event"].to_numpy(bool), 2, rng)
    parts = {"train": table, "test": random_table(rng, num_subjects=20)}
    predicted = rivals.predict_parts(
        rivals.linear_rivals(COLUMNS, (0.1,), (0.5, 1.0)), table, validation, parts, landmarks, np.array([1.0, 2.0])
    )
    assert list(predicted) == ["baseline_cox", "locf_cox", "linear_supermodel"]
    alone = rivals.linear_rival(COLUMNS, (0.1,), ())(table, validation).predict
    for part, visits in parts.items():
        of_part = predicted["locf_cox"][part]
        assert set(of_part["landmark"]) == set(landmarks) and "survival_2.0" in of_part
        expected = alone(visits, 1.0, np.array([1.0, 2.0]))["log_hazard"]
        np.testing.assert_array_equal(of_part.loc[of_part["landmark"] == 1.0, "log_hazard"], expected)


def test_a_rival_that_cannot_be_trained_at_a_landmark_is_left_out_with_a_warning(rng, caplog):
    """No validation subject has an event after year 1: a model of that year has none to choose its penalty by."""
    table = random_table(rng, num_subjects=60)
    names = np.unique(table["subject"])
    validation = np.tile(np.isin(names, names[:15]), (2, 1))
    early = table["subject"].isin(names[:6]) & ~table["subject"].duplicated()
    table = table[early | ~table["subject"].isin(names[:6])].reset_index(drop=True)
    early = table["subject"].isin(names[:6])
    table.loc[early, ["visit_time", "time"]] = [0.1, 0.9]
    table["event"] = early | (table["event"] & ~table["subject"].isin(names[:15]))
    predicted = rivals.predict_parts(
        rivals.linear_rivals(COLUMNS, (0.1,), (0.5, 1.0)), table, validation, {"test": table}, (1.0,), np.array([1.0])
    )
    assert list(predicted) == ["linear_supermodel"]
    left_out = [
        message.split(" is left out")[0] for message in caplog.messages if "left out of the comparison" in message
    ]
    assert left_out == ["baseline_cox", "locf_cox"]
