"""What is told of columns before training: marks for missing values, clipped cells, leaks; and nothing of noise."""

import numpy as np
import pandas as pd
import pytest
from programs import run

import tlstm
from cohort.tables import feature_columns, read_features, write_table
from runs.files import ROOT
from survival.screening import find_marks, screen_columns, warn_of_leaks, warn_of_values


def visits(rng, num_subjects=120, share=0.5):
    """1 to 4 visits a subject, half a year apart, with outcomes that no column tells."""
    num_visits = rng.integers(1, 5, num_subjects)
    time = num_visits * 0.5 + rng.exponential(3.0, num_subjects)
    event = np.zeros(num_subjects, bool)
    event[rng.permutation(num_subjects)[: int(share * num_subjects)]] = True
    subject = np.repeat(np.arange(num_subjects), num_visits)
    place = np.concatenate([np.arange(count) for count in num_visits])
    return pd.DataFrame(
        {
            "subject": [f"s{number:04d}" for number in subject],
            "visit_time": 0.5 * place,
            "time": time[subject],
            "event": event[subject],
            "noise": rng.normal(size=len(subject)),
        }
    )


# ---- Marks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mark", "others"),
    [
        (-9999, (20.5, 61.0, 33.2)),
        (-1, (4, 12, 19, 25, 30)),
        (-9, (0, 1, 2, 3)),
        (-9, (0, 17, 55)),
        (-999, (-2.5, 0.3, 1.8)),
        (99, (12, 19, 25, 30)),
        (999, (80, 120, 199)),
        (8888, (0.5, 3.5, 120.0)),
        (1e30, (0.1, 0.2)),
        (-32768, (100, 2000)),
        (2147483647, (5, 6)),
    ],
)
@pytest.mark.parametrize("times", [3, 7])
def test_a_number_that_stands_for_a_missing_value_is_found(mark, others, times):
    assert find_marks(pd.Series([*others, np.nan] * 3 + [mark] * times, dtype=float)) == {mark: times}


def test_several_marks_of_a_column_are_found_and_counted():
    values = pd.Series([20.0, 35.0, 50.0, -9999.0, 999.0, 999.0, np.nan])
    assert find_marks(values) == {-9999: 1, 999: 2}


@pytest.mark.parametrize(
    "values",
    [
        tuple(range(100)),  # a scale that ends with 99
        (55, 62, 70, 78, 84, 99),
        (-1, 0, 1, 1, 0),  # codes
        (-1, -1, 0, 1, 1),
        (-3, -2, -1, 0, 1, 2, 5, 9),
        (-1, 0, 0, 0, 1, 1, 2, 3, 4),  # the end of a tail
        (120, 999, 450, 1800),
        (-9, -4, -1, 3),
        (99, 99),
        (),
    ],
)
def test_an_ordinary_number_is_no_mark(values):
    assert find_marks(pd.Series(values, dtype=float)) == {}


def test_values_are_named_with_their_counts_and_fences(rng, caplog):
    table = visits(rng)
    table["age"] = rng.uniform(60, 80, len(table))
    table["lab"] = np.exp(rng.normal(size=len(table)))
    table.loc[[3, 8], "age"], table.loc[5, "lab"] = 7e8, -777.0
    warn_of_values(table, table, ["noise", "age", "lab"], winsorise=10.0)
    marks, clipped, logged = (record.getMessage() for record in caplog.records)
    assert marks.startswith(f"lab: -777 (1 of {len(table)} cells): far from the other values")
    assert clipped.startswith("age: beyond ") and clipped.endswith(f"2 of {len(table)} cells: 7e+08")
    assert logged == f"lab: its logarithm is taken, so what is not above 0 counts as missing, 1 of {len(table)} cells"


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_fences_are_of_the_training_part_and_every_part_is_looked_at(rng, caplog, part):
    parts = {name: visits(rng) for name in ("train", "val", "test")}
    parts[part].loc[0, "noise"] = -54321.0
    screen_columns(parts, ["noise"], landmarks=(), winsorise=10.0)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.endswith(f"1 of {sum(map(len, parts.values()))} cells: -5.432e+04")


def test_without_fences_and_without_columns_nothing_is_said(rng, caplog):
    table = visits(rng).assign(far=lambda table: np.where(table.index == 4, 7e8, table["noise"]))
    warn_of_values(table, table, ["far"], winsorise=0.0)
    warn_of_values(table, table, [], winsorise=10.0)
    assert not caplog.records


# ---- Leaks ---------------------------------------------------------------------------------------
LEAKS = {
    "the outcome's time": lambda table, rng: 365.25 * table["time"],
    "the time in tiny units": lambda table, rng: 1e-12 * table["time"],
    "the time that is left": lambda table, rng: table["time"] - table["visit_time"],
    "the row's number after sorting": lambda table, rng: -table["time"].rank(method="first"),
    "its logarithm with noise": lambda table, rng: np.log(table["time"]) + 0.01 * rng.normal(size=len(table)),
    "the status": lambda table, rng: table["event"].astype(float),
    "the status as text": lambda table, rng: np.where(table["event"], "converted", "stable"),
    "a date of death": lambda table, rng: table["time"].where(table["event"]),
    "a cause of death as text": lambda table, rng: pd.Series("heart", table.index).where(table["event"]),
    "a date of censoring": lambda table, rng: table["noise"].where(~table["event"]),
    "a drop in those with the event": lambda table, rng: (
        table["noise"].groupby(table["subject"]).transform("first") - table["event"] * table["visit_time"]
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
@pytest.mark.parametrize("landmarks", [(), (0.5, 1.0)])
def test_a_column_that_tells_the_outcome_is_named(rng, caplog, kind, landmarks):
    table = visits(rng, num_subjects=300)
    table["told"] = LEAKS[kind](table, rng)
    warn_of_leaks(table, ["noise", "told"], landmarks)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "The outcome may stand in the column told: " in line
    assert "C 0.9" in line or "C 1.000" in line or "for all" in line


@pytest.mark.parametrize("num_events", [15, 40, 100])
def test_noise_is_never_named(rng, caplog, num_events):
    """Also measured on 200 tables of 20 columns of ten kinds: no alarm, and no C beyond .84."""
    for _ in range(4):
        table = visits(rng, num_subjects=2 * num_events)
        of_subject = pd.factorize(table["subject"])[0]
        for number in range(5):
            table[f"normal_{number}"] = rng.normal(size=len(table))
            table[f"fixed_{number}"] = rng.normal(size=len(table))[of_subject]
            table[f"rare_{number}"] = (rng.random(len(table)) < 0.03)[of_subject].astype(float)
            table[f"seldom_{number}"] = table["noise"].where(rng.random(len(table)) < 0.1)
        columns = [name for name in table.columns if name not in ("subject", "visit_time", "time", "event")]
        for landmarks in ((), (0.5, 1.0)):
            warn_of_leaks(table, columns, landmarks)
    assert not caplog.records


def test_a_strong_predictor_is_no_leak(rng, caplog):
    risk = rng.normal(size=200)
    time = rng.exponential(np.exp(-2 * risk))
    table = pd.DataFrame({"subject": [f"s{number:03d}" for number in range(200)], "visit_time": 0.0, "time": time})
    warn_of_leaks(table.assign(event=True, risk=risk), ["risk"])  # C about .85
    assert not caplog.records


def test_few_events_order_themselves_by_chance(rng, caplog):
    table = visits(rng, num_subjects=200, share=9 / 200)
    warn_of_leaks(table.assign(told=table["time"]), ["told"])
    assert not caplog.records
    warn_of_leaks(table.assign(told=table["event"].astype(float)), ["told"])  # not by chance
    assert "is one and the same for all" in caplog.text


@pytest.mark.parametrize("num_subjects", [6, 16])
def test_two_small_groups_differ_by_chance(rng, caplog, num_subjects):
    table = visits(rng, num_subjects=num_subjects)
    warn_of_leaks(table.assign(told=table["event"].astype(float)), ["told"])
    assert not caplog.records


def test_what_stage_1_learned_from_these_outcomes_is_left_out(rng, caplog):
    table = visits(rng)
    names = ["log_hazard", "progress", "feature_3"]
    warn_of_leaks(table.assign(**dict.fromkeys(names, -table["time"])), names)
    assert not caplog.records


@pytest.mark.parametrize(("share", "num_events"), [(0.01, 50), (0.9, 250), (0.151, 189)])
def test_of_a_large_table_some_subjects_of_either_outcome_are_looked_at(rng, caplog, share, num_events):
    table = visits(rng, num_subjects=5000, share=share)
    warn_of_leaks(table.assign(told=table["time"]), ["noise", "told"])
    assert f"subjects, {num_events} with an event" in caplog.text and "column told" in caplog.text


@pytest.mark.parametrize("landmarks", [(), (0.0, 3.0, 5.0)])
def test_a_real_table_is_as_it_should_be(caplog, landmarks):
    table = read_features(ROOT / "examples" / "pbc2.csv")
    screen_columns({"train": table}, feature_columns(table), landmarks=landmarks, winsorise=10.0)
    assert not caplog.records


# ---- The programs --------------------------------------------------------------------------------
def warnings_of(log):
    return [line for line in log.read_text().splitlines() if " WARNING survival.screening: " in line]


@pytest.mark.parametrize("more", [(), ("--LANDMARKS", "0.5"), ("--FOLDS", "2", "--LANDMARKS", "0.5", "--WINDOWS", "2")])
def test_stage_2_names_leaks_and_far_cells_once_in_its_log(rng, tmp_path, more):
    table = visits(rng).assign(told=lambda table: 12 * table["time"] + 1)
    table.loc[0, "noise"] = 8.5e9
    write_table(table, tmp_path / "t.csv")
    quick = ("--TLSTM_EPOCHS", "2", "--NUM_SEEDS", "2", "--NUM_RESAMPLES", "100", "--OUTPUT_DIR", str(tmp_path / "o"))
    assert tlstm.main(["--FEATURES", str(tmp_path / "t.csv"), *quick, *more]) == 0
    far, leak = warnings_of(tmp_path / "o" / "run.log")
    assert "noise: beyond " in far and far.endswith(f"(WINSORISE=10), 1 of {len(table)} cells: 8.5e+09")
    assert "The outcome may stand in the column told: " in leak


def test_a_cohorts_covariates_are_looked_at_before_stage_1(cohort, tmp_path):
    table = pd.read_csv(cohort / "cohort.csv")
    table["nifti_path"] = [str(cohort / path) for path in table["nifti_path"]]
    table["memory"] = np.arange(len(table)) % 17 + 12.0
    table.loc[3, "memory"] = -9999
    table.to_csv(tmp_path / "c.csv", index=False)
    small = ("--TARGET_SHAPE=16,16,16", "--NUM_WORKERS=1", "--TEST_RATIO=0.25", "--VAL_TRAIN_RATIO=0.25")
    paths = (f"--COHORT_CSV={tmp_path / 'c.csv'}", f"--OUTPUT_DIR={tmp_path / 'o'}")
    done = run(*small, *paths, "--STAGES=features", "--WINSORISE=0")
    assert done.returncode == 2 and "needs the stage cnn" in done.stderr
    (mark,) = warnings_of(tmp_path / "o" / "run.log")
    assert f"memory: -9999 (1 of {len(table)} cells): far from the other values" in mark
