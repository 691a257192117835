import dataclasses

import numpy as np
import pandas as pd
import pytest
from feature_tables import predictions

from survival.estimates import concordance
from survival.evaluation import evaluate_models, evaluate_parts
from survival.metrics import EvaluationSettings
from survival.pooling import evaluate_folds, pool_folds

SETTINGS = EvaluationSettings((1.0, 2.0), num_resamples=100, seed=0)
SIZES = {"train": 60, "test": 20}


def part_of(rng, fold, part):
    """Subjects with a risk that is often right."""
    risk = rng.normal(size=SIZES[part])
    time = 1.0 + rng.exponential(2 * np.exp(-risk)) + 0.01
    event = rng.random(len(risk)) < 0.7
    names = [f"{part}{fold}_{number}" for number in range(len(risk))]
    return pd.DataFrame({"subject": names, "time": time, "event": event}), risk


@pytest.fixture
def folds(rng):
    """Three folds; each fold's networks have log-hazards on a scale of their own."""
    folds = []
    for fold in range(3):
        parts = {part: part_of(rng, fold, part) for part in SIZES}

        def model(noise, parts=parts, fold=fold):
            return {
                part: predictions(subjects, 10 * fold + risk + noise * rng.normal(size=len(risk)), SETTINGS.horizons)
                for part, (subjects, risk) in parts.items()
            }

        folds.append(
            {
                "stages": {"cnn": model(1.0), "tlstm": model(0.3)},
                "rivals": {"cox_last_slope": model(0.8)},
                "oracle": {"longitudinal": model(0.0)},
            }
        )
    return folds


def c_index(table):
    return concordance(table["log_hazard"], table["time"], table["event"])


def test_pooled_log_hazards_are_less_their_folds_training_median(folds):
    pooled = pool_folds(folds)
    assert {kind: list(models) for kind, models in pooled.items()} == {
        "stages": ["cnn", "tlstm"],
        "rivals": ["cox_last_slope"],
        "oracle": ["longitudinal"],
    }
    for part, size in SIZES.items():
        table = pooled["stages"]["cnn"][part]
        assert len(table) == 3 * size and table.index.tolist() == list(range(3 * size))
        for number, fold in enumerate(folds):
            model = fold["stages"]["cnn"]
            rows = table[table["subject"].isin(model[part]["subject"])]
            centred = model[part]["log_hazard"] - np.median(model["train"]["log_hazard"])
            np.testing.assert_array_equal(rows["log_hazard"], centred, err_msg=str(number))
            np.testing.assert_array_equal(rows["survival_1.0"], model[part]["survival_1.0"])


def test_pooled_figures_are_of_every_held_out_subject(folds):
    figures = evaluate_folds(folds, SETTINGS)["pooled"]
    assert set(figures) == {"cnn", "tlstm", "baselines", "oracle"} and set(figures["cnn"]) == {"test"}
    everyone = pool_folds(folds)["stages"]["cnn"]["test"]
    assert figures["cnn"]["test"]["n"] == 60 and figures["cnn"]["test"]["events"] == everyone["event"].sum()
    assert figures["cnn"]["test"]["c_index"]["value"] == pytest.approx(c_index(everyone))
    assert figures["tlstm"]["test"] == evaluate_models(pool_folds(folds), SETTINGS)["tlstm"]["test"]


def test_a_folds_scale_does_not_matter(folds):
    shifted = [
        {kind: {name: _shifted(model, 100 * number) for name, model in models.items()} for kind, models in fold.items()}
        for number, fold in enumerate(folds)
    ]
    plain, moved = (evaluate_folds(each, SETTINGS) for each in (folds, shifted))
    for name in ("cnn", "tlstm"):
        value = moved["pooled"][name]["test"]["c_index"]["value"]
        assert value == pytest.approx(plain["pooled"][name]["test"]["c_index"]["value"])
    assert moved["mean"] == plain["mean"]


def _shifted(model, shift):
    return {part: table.assign(log_hazard=table["log_hazard"] + shift) for part, table in model.items()}


def test_each_fold_is_evaluated_by_itself(folds):
    each = evaluate_folds(folds, SETTINGS)["each"]
    assert [list(figures) for figures in each] == [["cnn", "tlstm", "cox_last_slope", "oracle_longitudinal"]] * 3
    for fold, figures in zip(folds, each, strict=True):
        model = fold["stages"]["tlstm"]
        test = evaluate_parts(model, dataclasses.replace(SETTINGS, num_resamples=50))["test"]
        assert figures["tlstm"] == {
            "n": 20,
            "events": int(model["test"]["event"].sum()),
            "c_index": c_index(model["test"]),
            "auc_1.0": test["auc"]["1.0"]["value"],
            "auc_2.0": test["auc"]["2.0"]["value"],
            "ibs": test["ibs"]["value"],
        }


def test_the_mean_is_over_the_folds_that_have_the_figure(folds):
    result = evaluate_folds(folds, SETTINGS)
    values = [figures["cnn"]["c_index"] for figures in result["each"]]
    assert result["mean"]["cnn"]["c_index"] == {
        "value": pytest.approx(np.mean(values)),
        "sd": pytest.approx(np.std(values, ddof=1)),
        "folds": 3,
    }
    for fold in folds[1:]:
        for part in SIZES:
            fold["stages"]["cnn"][part]["event"] = False
    censored = evaluate_folds(folds, SETTINGS)
    assert censored["each"][1]["cnn"]["c_index"] is None
    assert censored["mean"]["cnn"]["c_index"] == {"value": pytest.approx(values[0]), "sd": None, "folds": 1}
