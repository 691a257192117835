"""A user's columns on their way through stage 2 and its rivals: names of any kind, and text."""

import json

import numpy as np
import pandas as pd
import pytest
from feature_tables import feature_tables

import tlstm
from attribution.histories import play_history
from cohort import tables
from config import Config
from survival import baselines
from survival.link import inner_folds
from survival.predictor import curve_years

ODD = ["index", "level_0", "split", "landmark", "survival_2.0", "attention_1", "out_of_range", "part", "row", "risk"]
ODD += [
    "x[1]",
    "a+b",
    "Intercept",
    "_x",
    "1",
    "<b>",
    "Age",
    "age",
    "feature_x",
    "columns",
    "missing",
    "input_0",
    "C(z)",
]
FEW = dict(NUM_SEEDS=2, TLSTM_EPOCHS=3, NUM_RESAMPLES=100, PENALTIES=(0.1,), HIDDEN=4)


def write_visits(path, rng, columns):
    """80 subjects with 3 visits each, with columns of noise and of text; the hazard is in the first and in `sex`."""
    subject = np.repeat(np.arange(80), 3)
    values = {name: rng.normal(size=80)[subject] + 0.1 * rng.normal(size=240) for name in columns}
    sex, site = rng.choice(["F", "M"], 80), rng.choice(["Oslo", "Rome", "Bonn"], 80)
    risk = values[columns[0]][::3] + 2.0 * (sex == "M")
    time = np.round(1.1 + rng.exponential(3 * np.exp(-risk)), 3)
    table = pd.DataFrame({"subjectid": [f"s{n:02}" for n in subject], "visit_time": np.tile([0.0, 0.5, 1.0], 80)})
    table = table.assign(time=time[subject], convert_status=(rng.random(80) < 0.7).astype(int)[subject], **values)
    table["sex"], table["site"] = sex[subject], np.where(rng.random(240) < 0.1, "", site[subject])
    table.assign(note=[f"note {n}" for n in range(240)], flat=1.5).to_csv(path, index=False)
    return path


def run_here(folder, path, *arguments):
    few = [f"--{name}={','.join(map(str, value)) if name == 'PENALTIES' else value}" for name, value in FEW.items()]
    return tlstm.main([f"--FEATURES={path}", f"--OUTPUT_DIR={folder}", *few, *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, and its table."""
    folder = tmp_path_factory.mktemp("run")
    path = write_visits(folder / "t.csv", np.random.default_rng(5), ODD)
    assert run_here(folder / "o", path) == 0
    return folder / "o", path


def test_what_is_used_coded_and_not_used_stands_in_the_metrics(trained):
    folder, _ = trained
    columns = json.loads((folder / "metrics.json").read_text())["columns"]
    assert columns["used"] == [*ODD, "sex", "site"]
    assert columns["coded"] == {"sex": ["F", "M"], "site": ["Bonn", "Oslo", "Rome"]}
    assert columns["unused"] == {
        "note": "text of 240 different values, such as 'note 0'",
        "flat": "one value, 1.5",
    }


def test_a_model_of_any_names_and_of_text_is_loaded_and_predicts_the_same(trained):
    folder, path = trained
    expected = pd.read_csv(folder / "tlstm" / "predictions.csv").set_index("subjectid")["log_hazard"]
    predicted = tlstm.load(folder / "tlstm").predict(tables.read_features(path), years=(2.0,)).set_index("subject")
    np.testing.assert_allclose(predicted["log_hazard"][expected.index], expected, atol=1e-6)


@pytest.mark.parametrize("levels", [("F", "M"), ("no", "yes")])
def test_text_tells_what_its_numbers_would(tmp_path, rng, levels):
    """Coded by hand, the same column gives the same predictions."""
    table = tables.read_features(write_visits(tmp_path / "t.csv", rng, ["lab"]))
    settings = tlstm.Settings.of(Config(**FEW))
    validation = inner_folds(table.drop_duplicates("subject")["event"].to_numpy(bool), 2, np.random.default_rng(0))

    def predicted(sex):
        visits = table.assign(sex=sex)
        predictor, _ = tlstm.fit(visits, validation, ["lab", "sex", "site"], grid=(), settings=settings)
        return predictor.predict(visits, years=(2.0,))

    is_male = table["sex"] == "M"
    pd.testing.assert_frame_equal(predicted(np.where(is_male, *levels[::-1])), predicted(is_male.astype(float)))


def test_odd_names_and_text_are_cross_validated(trained, capsys):
    folder, path = trained
    arguments = ["--FOLDS=2", "--LANDMARKS=1", "--WINDOWS=2", "--LANDMARK_STEP=1"]
    assert run_here(folder.parent / "cv", path, *arguments) == 0
    columns = json.loads((folder.parent / "cv" / "metrics.json").read_text())["columns"]
    assert columns["used"] == [*ODD, "sex", "site"] and "linear_supermodel" in capsys.readouterr().out


def test_a_history_with_text_is_explained(trained):
    folder, path = trained
    predictor, table = tlstm.load(folder / "tlstm"), tables.read_features(path)
    visits = table[table["subject"] == "s00"].drop(columns=["time", "event"]).reset_index(drop=True)
    log_hazard = predictor.predict(visits, years=())["log_hazard"][0]
    worth = play_history(predictor, visits)
    groups, gap = worth.groups(), log_hazard - worth.played.nobody[0]
    assert worth.visits()["shapley"].sum() == pytest.approx(gap, abs=1e-9)
    assert groups["group"].tolist() == list(predictor.prepare.columns) and "sex=M" in groups["group"].tolist()
    assert groups["shapley"].sum() == pytest.approx(gap, abs=1e-9) and abs(gap) > 1e-3


# ---- The rivals ----------------------------------------------------------------------------------------
def with_text(rng, **columns):
    """Feature tables of three parts with further columns, drawn for each subject."""
    parts = feature_tables(rng)
    for table in parts.values():
        subject = table["subject"].factorize()[0]
        for name, values in columns.items():
            table[name] = rng.choice(np.array(values, dtype=object), subject.max() + 1)[subject]
    return parts


def covariates_model(parts):
    return baselines.predict_cox_models(parts, curve_years((2.0,))).get("covariates")


def test_the_rival_of_covariates_sees_text_of_odd_names_as_numbers(rng):
    parts = with_text(rng, **{"Intercept": ["yes", "no"], "feature_x": ["a", "b", "c", None], "flat": [1.0]})
    by_hand = {
        part: table.drop(columns=["Intercept", "flat"]).assign(i=(table["Intercept"] == "yes") * 1.0)
        for part, table in parts.items()
    }
    ours, expected = covariates_model(parts)["test"], covariates_model(by_hand)["test"]
    np.testing.assert_allclose(ours["log_hazard"], expected["log_hazard"], atol=1e-8)
    assert ours["log_hazard"].nunique() > 2


@pytest.mark.parametrize("columns", [{"flat": [2.0]}, {"note": [f"n{n}" for n in range(50)]}, {"empty": [np.nan]}])
def test_without_a_covariate_that_can_be_used_there_is_no_such_rival(rng, columns):
    assert covariates_model(with_text(rng, **columns)) is None


@pytest.mark.parametrize("column", ["log_hazard", "feature_2"])
def test_inputs_of_the_rivals_that_do_not_vary_are_left_out(rng, column):
    """The slope of everyone with one visit is 0; a constant feature is none."""
    parts = {
        part: table.drop_duplicates("subject").reset_index(drop=True) for part, table in feature_tables(rng).items()
    }
    if column == "feature_2":
        parts = {part: table.assign(feature_2=0.0, feature_1=0.0) for part, table in parts.items()}
    models = baselines.predict_cox_models(parts, curve_years((2.0,)))
    assert list(models) == ["cox_last", "cox_last_slope", "elastic_net_features"][: 2 if column == "feature_2" else 3]
    assert np.isfinite(models["cox_last_slope"]["test"]["log_hazard"]).all()
