"""STAGE2: the stack, the link and the fallback as `tlstm.fit` gives them, saved, read back and run from the shell."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from samples import random_table

import tlstm
from cohort import tables
from cohort.splits import split_subjects
from config import Config
from survival import arms
from survival.link import inner_folds
from survival.stack import ALL_ARMS, StackedCorrection, Weights, weights_of

QUICK = dataclasses.replace(
    tlstm.Settings.of(Config()), num_seeds=2, hidden=4, epochs=3, components=(2,), penalties=(0.1,)
)
YEARS = (0.5, 1.0, 2.0)
COLUMNS = {
    "stage 1's": lambda table: table,
    "a column of numbers": lambda table: table[["subject", "visit_time", "time", "event", "lab"]],
    "missing values": lambda table: table.assign(lab=table["lab"].mask(table["lab"] < 0.5)),
    "one visit": lambda table: table[~table["subject"].duplicated()].reset_index(drop=True),
    "features that no component stands for": lambda table: table.drop(columns=["log_hazard", "lab"]),
}


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(arms, "MOST_TREES", 20)


def fitted(table, stage2, grid=(), **changes):
    settings = dataclasses.replace(QUICK, stage2=stage2, **changes)
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    validation = inner_folds(event, settings.num_seeds, np.random.default_rng(0))
    return tlstm.fit(table, validation, tables.feature_columns(table), grid=grid, settings=settings)


def with_every_arm(predictor):
    """The stack with a weight for every arm, whatever they earned."""
    weights = Weights(np.array([0.4, 0.3, 0.2, 0.6]), 9.0)
    return dataclasses.replace(predictor, network=dataclasses.replace(predictor.network, weights=weights))


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(("stage2", "grid"), [("stack", ()), ("stack", (0.5, 1.0)), ("link", ())])
def test_what_was_saved_is_read_back_and_predicts_the_same(rng, tmp_path, stage2, grid, columns):
    table = COLUMNS[columns](random_table(rng, num_subjects=60))
    changes = {"components": (0,)} if "no component" in columns else {}
    predictor, _ = fitted(table, stage2, grid, **changes)
    if stage2 == "stack":
        predictor = with_every_arm(predictor)
    tlstm.save(predictor, tmp_path)
    restored = tlstm.load(tmp_path)
    pd.testing.assert_frame_equal(restored.predict(table, years=YEARS), predictor.predict(table, years=YEARS))
    tlstm.save(restored, tmp_path / "again")
    for name in ("model.json", "model.pt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_visits_after_the_landmark_change_no_arm(rng):
    table = random_table(rng, num_subjects=60)
    predictor, _ = fitted(table, "stack")
    cut = table[table["visit_time"] <= 1.0].reset_index(drop=True)
    for arm in [with_every_arm(predictor), *predictor.arms.values()]:
        whole, seen = (arm.predict(visits, (1.0,), years=YEARS) for visits in (table, cut))
        pd.testing.assert_frame_equal(whole[seen.columns], seen, rtol=1e-6, atol=1e-6)


def test_a_prediction_does_not_depend_on_who_else_is_in_the_table(rng):
    table = random_table(rng, num_subjects=60)
    predictor = with_every_arm(fitted(table, "stack")[0])
    extreme = table.assign(subject="z" + table["subject"], lab=1e12, log_hazard=1e9)
    together = predictor.predict(pd.concat([table, extreme], ignore_index=True), years=YEARS)
    alone = predictor.predict(table, years=YEARS)
    of_table = together[together["subject"].isin(table["subject"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_table[alone.columns], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("wanted", "trained"), [(1, 5), (5, 5), (6, 10)])
def test_every_fold_is_held_out_by_as_many_networks(rng, wanted, trained):
    predictor, _ = fitted(random_table(rng, num_subjects=60), "stack", num_seeds=wanted)
    assert predictor.network.network.settings.num_seeds == trained


@pytest.mark.parametrize("stage2", ["stack", "link"])
def test_too_few_events_fall_back_to_one_link(rng, caplog, stage2):
    table = random_table(rng, num_subjects=40)
    few = table["subject"].isin(np.unique(table["subject"])[:9])
    predictor, history = fitted(table.assign(event=few), stage2)
    assert not isinstance(predictor.network, StackedCorrection) and not weights_of(predictor)
    assert "9 subjects with an event, fewer than 10" in caplog.text
    assert (len(history) > 1) == (stage2 == "stack")


@pytest.fixture
def run(rng, tmp_path):
    """Runs stage 2 on the features of 60 subjects; gives `metrics.json`."""

    def run_with(*arguments):
        parts = split_subjects(random_table(rng, num_subjects=60), test_ratio=0.25, val_train_ratio=0.25, seed=0)
        for name, part in parts.items():
            tables.write_table(part, tmp_path / "features" / f"{name}.parquet")
        quick = ("--TLSTM_EPOCHS=2", "--NUM_RESAMPLES=100", f"--OUTPUT_DIR={tmp_path}")
        assert tlstm.main([*quick, *arguments]) == 0
        return json.loads((tmp_path / "metrics.json").read_text())

    return run_with


def test_a_run_has_the_figures_of_every_arm(run, tmp_path):
    metrics = run()
    assert list(metrics["arms"]) == list(ALL_ARMS)
    for arm in metrics["arms"].values():
        assert arm["weight"] >= 0 and {"train", "val", "test"} < set(arm)
        assert set(arm["test"]) >= {"c_index", "auc", "ibs", "n"}
    predicted = pd.read_csv(tmp_path / "tlstm" / "predictions.csv")
    attention = predicted.filter(regex="attention_").sum(axis=1)
    np.testing.assert_allclose(attention, 1, atol=1e-6)  # of the T-LSTM, whatever its weight


def test_each_landmark_has_the_figures_of_every_arm(run):
    landmarks = run("--LANDMARKS=0.8,1.5")["landmarks"]
    assert {*landmarks} == {"0.8", "1.5"}
    assert all(list(figures["arms"]) == list(ALL_ARMS) for figures in landmarks.values())


@pytest.mark.parametrize("stage2", ["tlstm", "link"])
def test_without_a_stack_there_are_no_arms(run, stage2):
    assert "arms" in run()
    assert "arms" not in run(f"--STAGE2={stage2}")  # nor are there those of the run before
