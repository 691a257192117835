import numpy as np
import pandas as pd
import pytest
from feature_tables import feature_tables, predictions

from survival import evaluation
from survival.estimates import Reference, concordance
from survival.metrics import EvaluationSettings, Prediction, compare, evaluate
from survival.predictor import curve_years, write_predictions

SETTINGS = EvaluationSettings((1.0, 2.0), num_resamples=100, seed=0)


@pytest.fixture
def features(rng):
    return feature_tables(rng)


@pytest.fixture
def stage2(features, rng):
    """Predictions of a history that knows the slope, the rows of each part in an order of their own."""
    tables = {}
    for part, table in features.items():
        first, last = (table.groupby("subject").nth(row).reset_index(drop=True) for row in (0, -1))
        log_hazard = last["log_hazard"] + 3 * (last["log_hazard"] - first["log_hazard"])
        tables[part] = predictions(last, log_hazard, SETTINGS.horizons).sample(frac=1, random_state=0)
    return tables


@pytest.fixture
def truth(features, tmp_path):
    scans = pd.concat(features.values())
    known = pd.DataFrame({"imageid": scans["scan"], "atrophy": scans["log_hazard"], "log_hazard": -scans["time"]})
    known.to_csv(tmp_path / "truth.csv", index=False)
    return tmp_path / "truth.csv"


def test_every_part_is_evaluated_with_the_training_part_as_reference(stage2):
    parts = {part: stage2[part] for part in ("train", "test")}
    figures = evaluation.evaluate_parts(parts, SETTINGS)
    train, test = parts["train"], parts["test"]
    survival = test[[f"survival_{year}" for year in curve_years(SETTINGS.horizons)]].to_numpy()
    expected = evaluate(
        Prediction(
            test["log_hazard"].to_numpy(),
            test["time"].to_numpy(),
            test["event"].to_numpy(),
            survival,
            curve_years(SETTINGS.horizons),
        ),
        Reference(train["time"].to_numpy(), train["event"].to_numpy(), float(np.median(train["log_hazard"]))),
        SETTINGS,
    )
    assert figures["test"] == expected
    assert set(figures) == {"train", "test"}


def test_each_landmark_is_evaluated_by_itself(stage2):
    later = {part: table.assign(landmark=2.0, log_hazard=-table["log_hazard"]) for part, table in stage2.items()}
    both = {part: pd.concat([stage2[part], later[part]], ignore_index=True) for part in stage2}
    figures = evaluation.evaluate_landmarks(both, {}, (1.0, 2.0), SETTINGS, arms={}, weights={})
    assert figures == {
        "1": evaluation.evaluate_parts(stage2, SETTINGS) | {"baselines": {}},
        "2": evaluation.evaluate_parts(later, SETTINGS) | {"baselines": {}},
    }


def test_rivals_are_evaluated_at_the_same_landmark(stage2):
    """At year 1 the rival is ours turned round, at year 2 it is ours: the difference is 2 C - 1, and 0."""
    later = {part: table.assign(landmark=2.0) for part, table in stage2.items()}
    turned = {part: table.assign(log_hazard=-table["log_hazard"]) for part, table in stage2.items()}
    ours, rival = (
        {part: pd.concat([first[part], later[part]], ignore_index=True) for part in stage2}
        for first in (stage2, turned)
    )
    figures = evaluation.evaluate_landmarks(ours, {"rival": rival}, (1.0, 2.0), SETTINGS, arms={}, weights={})
    c_index = figures["1"]["test"]["c_index"]["value"]
    assert figures["1"]["baselines"]["rival"]["test"]["c_index"]["value"] == pytest.approx(1 - c_index)
    assert figures["1"]["test"]["difference"]["from"] == "rival"
    assert figures["1"]["test"]["difference"]["c_index"]["value"] == pytest.approx(2 * c_index - 1)
    assert figures["2"]["test"]["difference"]["c_index"]["value"] == 0


def test_a_run_has_every_model_and_each_part_of_the_stages(features, stage2, truth):
    metrics = evaluation.evaluate_run(features, stage2, SETTINGS, truth=truth)
    assert list(metrics) == ["cnn", "tlstm", "baselines", "oracle"]
    assert set(metrics["cnn"]) == set(metrics["tlstm"]) == {"train", "val", "test"}
    assert set(metrics["baselines"]) == {"cox_last", "cox_last_slope", "elastic_net_features"}
    assert all(set(figures) == {"test"} for figures in metrics["baselines"].values())
    assert set(metrics["oracle"]) == {"last_scan", "longitudinal"}
    assert metrics["oracle"]["longitudinal"]["value"] == 1.0  # the truth here is the time itself
    assert metrics["oracle"]["last_scan"]["value"] == metrics["cnn"]["test"]["c_index"]["value"]
    test = stage2["test"]
    expected = concordance(test["log_hazard"], test["time"], test["event"])
    assert metrics["tlstm"]["test"]["c_index"]["value"] == pytest.approx(expected)


def test_the_difference_is_from_the_best_rival_subject_by_subject(features, stage2):
    models = evaluation.predict_all(features, stage2, SETTINGS, truth=None)
    metrics = evaluation.evaluate_models(models, SETTINGS)
    c_index = {name: figures["test"]["c_index"]["value"] for name, figures in metrics["baselines"].items()}
    best = max(c_index, key=c_index.get)
    for name in ("cnn", "tlstm"):
        difference = metrics[name]["test"]["difference"]
        assert difference["from"] == best
        gain = metrics[name]["test"]["c_index"]["value"] - c_index[best]
        assert difference["c_index"]["value"] == pytest.approx(gain)
    ours, rival = (table.sort_values("subject") for table in (stage2["test"], models["rivals"][best]["test"]))
    expected = compare(Prediction.of(ours), Prediction.of(rival), Reference.of(stage2["train"]), SETTINGS)
    assert metrics["tlstm"]["test"]["difference"] == {"from": best, **expected}


def test_without_stage_2_and_without_a_truth(features):
    metrics = evaluation.evaluate_run(features, None, SETTINGS, truth=None)
    assert list(metrics) == ["cnn", "baselines"]


@pytest.mark.parametrize("columns", [["lab"], ["lab", "feature_1", "feature_2"], ["feature_1", "feature_2"]])
def test_a_table_without_stage_1_is_compared_with_what_its_columns_allow(features, stage2, rng, columns):
    tables = {
        part: table.drop(columns=[name for name in table if name.startswith("feature_") or name == "log_hazard"])
        for part, table in features.items()
    }
    tables = {
        part: table.assign(**{name: rng.normal(size=len(table)) for name in columns}) for part, table in tables.items()
    }
    metrics = evaluation.evaluate_run(tables, stage2, SETTINGS, truth=None)
    assert list(metrics) == ["tlstm", "baselines"]
    expected = {"lab": "covariates", "feature_1": "elastic_net_features"}
    assert set(metrics["baselines"]) == {expected[name] for name in columns if name in expected}
    assert metrics["tlstm"]["test"]["difference"]["from"] in metrics["baselines"]


def test_predictions_are_read_as_they_were_written(stage2, tmp_path):
    everyone = pd.concat([table.assign(split=part) for part, table in stage2.items()])
    everyone["subject"] = everyone["subject"].replace({"test000": "007", "test001": "NA"})
    write_predictions(everyone, tmp_path / "predictions.csv")
    read = evaluation.read_predictions(tmp_path / "predictions.csv")
    assert list(read) == ["train", "val", "test"]
    for part, table in stage2.items():
        np.testing.assert_allclose(read[part]["log_hazard"], table["log_hazard"], rtol=1e-14)
        assert read[part]["event"].dtype == bool and read[part]["event"].tolist() == table["event"].tolist()
    assert {"007", "NA"} <= set(read["test"]["subject"])
