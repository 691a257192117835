"""Every model over all folds of a cross-validation: the held-out subjects pooled, and each fold by itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from runs.files import finite_or_none
from survival.evaluation import Models, Predicted, evaluate_models, evaluate_parts
from survival.metrics import VALUE_ALONE, EvaluationSettings

POOLED = ("train", "test")  # parts


def evaluate_folds(folds: Sequence[Models], settings: EvaluationSettings) -> dict[str, Any]:
    """Evaluate all held-out subjects together, and each fold by itself.

    Networks that were trained apart have log-hazards on different scales. So that they can be pooled, the median of
    its fold's training part is subtracted from each. A fold's own C-index compares subjects of that fold only.

    Args:
        folds: of each fold, the predictions of every model.
        settings: horizons in years, resamples, seed. The bootstrap's intervals do not say how much another training
            would change the figures.
    Returns:
        `pooled`: as `evaluate_models`, of the test parts. `each`: a fold's figures by model. `mean`: over the folds,
        `{"value", "sd", "folds"}` of each model's figures.
    """
    pooled = evaluate_models(pool_folds(folds), settings)
    for name in folds[0]["stages"]:
        pooled[name] = {"test": pooled[name]["test"]}  # the training parts of the folds share subjects
    each = [_evaluate_fold(fold, settings) for fold in folds]
    mean = {name: _average([figures[name] for figures in each if name in figures]) for name in each[0]}
    return {"pooled": pooled, "each": each, "mean": mean}


def pool_folds(folds: Sequence[Models]) -> Models:
    """Put every model's predictions of all folds into one table for each of the parts `train` and `test`.

    Args:
        folds: of each fold, the predictions of every model, a row a subject.
    Returns:
        The same models; the median of its fold's training part is subtracted from each log-hazard.
    """
    return {
        kind: {
            name: {
                part: pd.concat([_centred(fold[kind][name], part) for fold in folds], ignore_index=True)
                for part in POOLED
            }
            for name in models
        }
        for kind, models in folds[0].items()
    }


def _centred(predicted: Predicted, part: str) -> pd.DataFrame:
    """The part's predictions, their log-hazards less the median of the training part."""
    table = predicted[part]
    return table.assign(log_hazard=table["log_hazard"] - predicted["train"]["log_hazard"].median())


def _evaluate_fold(fold: Models, settings: EvaluationSettings) -> dict[str, dict[str, Any]]:
    """The figures of every model on one fold's test part, without intervals."""
    without_intervals = dataclasses.replace(settings, num_resamples=VALUE_ALONE)
    return {
        f"oracle_{name}" if kind == "oracle" else name: _values(
            evaluate_parts({part: predicted[part] for part in POOLED}, without_intervals)["test"]
        )
        for kind, models in fold.items()
        for name, predicted in models.items()
    }


def _values(test: Mapping[str, Any]) -> dict[str, Any]:
    """The values alone of the figures that a fold shows."""
    auc = {f"auc_{year}": estimate["value"] for year, estimate in test["auc"].items()}
    return {
        "n": test["n"],
        "events": test["events"],
        "c_index": test["c_index"]["value"],
        **auc,
        "ibs": test["ibs"]["value"],
    }


def _average(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each figure over the folds that have it."""
    figures = pd.DataFrame(folds).drop(columns=["n", "events"]).astype(float)
    return {
        str(name): {
            "value": finite_or_none(column.mean()),
            "sd": finite_or_none(column.std()),
            "folds": int(column.count()),
        }
        for name, column in figures.items()
    }
