"""TODO: survival.pooling."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from runs.files import finite_or_none
from survival.evaluation import Models, evaluate_models
from survival.predictor import evaluate_parts


def evaluate_folds(
    folds: Sequence[Models], *, horizons: Sequence[float], num_resamples: int, seed: int
) -> dict[str, Any]:
    """Evaluate all held-out subjects together, and each fold by itself.

    Args:
        folds: the predictions of every model in each fold.
        horizons: years.
        num_resamples: of the bootstrap; it does not know how much another training would differ.
        seed: of the bootstrap.
    Returns:
        `pooled`: as `evaluate_models`, of the test parts; `each`: a fold's figures by model; `mean`: over the folds,
        `{"value", "sd", "folds"}`. Pooled, networks that were trained apart are compared: each fold's log-hazards are
        taken from their median in its training part. A fold's own C-index compares within it.
    """
    how: dict[str, Any] = {"horizons": horizons, "seed": seed}
    pooled = evaluate_models(pool(folds), num_resamples=num_resamples, **how)
    for name in folds[0]["stages"]:
        pooled[name] = {"test": pooled[name]["test"]}  # the training parts share their subjects
    each = [
        {
            f"oracle_{name}" if kind == "oracle" else name: _figures(
                evaluate_parts({part: model[part] for part in ("train", "test")}, num_resamples=2, **how)
            )
            for kind, models in fold.items()
            for name, model in models.items()
        }
        for fold in folds
    ]
    mean = {name: _mean([fold[name] for fold in each if name in fold]) for name in each[0]}
    return {"pooled": pooled, "each": each, "mean": mean}


def pool(folds: Sequence[Models]) -> Models:
    """Every model's predictions of all folds in one table a part, log-hazards from their fold's training median."""

    def centred(model: Mapping[str, pd.DataFrame], part: str) -> pd.DataFrame:
        return model[part].assign(log_hazard=model[part]["log_hazard"] - model["train"]["log_hazard"].median())

    return {
        kind: {
            name: {
                part: pd.concat([centred(fold[kind][name], part) for fold in folds], ignore_index=True)
                for part in ("train", "test")
            }
            for name in models
        }
        for kind, models in folds[0].items()
    }


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    test = found["test"]
    auc = {f"auc_{year}": estimate["value"] for year, estimate in test["auc"].items()}
    return {
        "n": test["n"],
        "events": test["events"],
        "c_index": test["c_index"]["value"],
        **auc,
        "ibs": test["ibs"]["value"],
    }


def _mean(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each figure over the folds that have it."""
    figures = pd.DataFrame(folds).drop(columns=["n", "events"]).astype(float)
    return {
        str(name): {
            "value": finite_or_none(column.mean()),
            "sd": finite_or_none(column.std()),
            "folds": int(column.count()),
        }
        for name, column in figures.items()
    }
