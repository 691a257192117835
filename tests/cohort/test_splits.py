import numpy as np
import pandas as pd
import pytest

from cohort.splits import PARTS, assign_folds, check_parts, split_folds, split_subjects
from runs.errors import InputError


def cohort_of(num_subjects, subjects_per_event=3):
    """Two visits a subject; every third subject has an event, or every other one."""
    return pd.DataFrame(
        [(f"s{i}", f"s{i}v{v}", v, 9.0, i % subjects_per_event == 0) for i in range(num_subjects) for v in (0, 1)],
        columns=["subject", "scan", "visit_time", "time", "event"],
    )


def test_subjects_are_split_never_scans():
    table = cohort_of(60)
    parts = split_subjects(table, test_ratio=0.25, val_train_ratio=0.2, seed=1)
    subjects = {name: set(part["subject"]) for name, part in parts.items()}
    assert {name: len(ids) for name, ids in subjects.items()} == {"train": 36, "val": 9, "test": 15}
    assert set.union(*subjects.values()) == set(table["subject"])
    assert sum(len(part) for part in parts.values()) == len(table)
    assert [part.groupby("subject")["event"].first().sum() for part in parts.values()] == [12, 3, 5]


def test_a_split_is_of_its_seed_and_not_of_the_row_order():
    table = cohort_of(60)
    ratios = {"test_ratio": 0.25, "val_train_ratio": 0.2}
    first = split_subjects(table, **ratios, seed=1)["test"]["subject"]
    mixed = split_subjects(table.sample(frac=1, random_state=0), **ratios, seed=1)["test"]["subject"]
    other = split_subjects(table, **ratios, seed=2)["test"]["subject"]
    assert set(first) == set(mixed) != set(other)


def test_a_subject_in_two_parts_is_refused():
    table = cohort_of(12)
    parts = {"train": table, "val": table[table["subject"] == "s3"], "test": cohort_of(1).replace("s0", "z")}
    with pytest.raises(InputError) as error:
        check_parts(parts)
    assert "subject 's3' is in train and val" in str(error.value)
    assert "scan 's3v0' is in train and val" in str(error.value)


def test_a_part_without_an_event_is_refused():
    table = cohort_of(12)
    parts = {"train": table, "val": table.assign(event=False, subject="v", scan="v"), "test": table.iloc[:0]}
    with pytest.raises(InputError, match="the val part has no event"):
        check_parts(parts)


def test_everyone_is_tested_once_and_whole():
    cohort = cohort_of(42, subjects_per_event=2)
    split = split_folds(cohort, 3, val_train_ratio=0.25, seed=0)
    tested = pd.concat([parts["test"] for parts in split])
    assert sorted(tested["scan"]) == sorted(cohort["scan"])
    for parts in split:
        subjects = {name: set(part["subject"]) for name, part in parts.items()}
        assert {name: len(ids) for name, ids in subjects.items()} == {"train": 20, "val": 8, "test": 14}
        assert {name: part["event"].mean() for name, part in parts.items()} == dict.fromkeys(PARTS, 0.5)
        assert set.union(*subjects.values()) == set(cohort["subject"])
        assert sum(len(part) for part in parts.values()) == len(cohort)
    again, other = (split_folds(cohort, 3, val_train_ratio=0.25, seed=seed) for seed in (0, 1))
    assert again[0]["test"].equals(split[0]["test"]) and not other[0]["test"].equals(split[0]["test"])


def test_more_folds_than_events_are_refused():
    cohort = cohort_of(42, subjects_per_event=2)
    with pytest.raises(InputError, match="FOLDS: expected at most 21, the subjects with an event"):
        split_folds(cohort, 22, val_train_ratio=0.25, seed=0)


def test_folds_share_events_and_others_evenly(rng):
    event = np.arange(50) % 3 == 0  # 17 of 50
    fold = assign_folds(event, 4, rng)
    assert sorted(np.bincount(fold[event])) == [4, 4, 4, 5]
    assert sorted(np.bincount(fold[~event])) == [8, 8, 8, 9]
    assert not np.array_equal(fold, assign_folds(event, 4, rng))
