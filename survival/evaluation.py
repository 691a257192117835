"""Every model of a run on the same split: what goes into `metrics.json`, and the table at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohort.splits import PARTS
from survival import baselines
from survival.estimates import Reference
from survival.metrics import compare
from survival.predictor import curve_years, curves, evaluate_parts

NAMES = {"cnn": "one scan (ResNet-18)", "tlstm": "history (T-LSTM)"}
Predicted = Mapping[str, pd.DataFrame]  # predictions of train, val and test, a row a subject
Models = Mapping[str, Mapping[str, Predicted]]  # by name, as `stages`, `baselines` and `oracle`


def evaluate_run(
    features: Mapping[str, pd.DataFrame],
    stage2: Predicted | None,
    *,
    truth: Path | None,
    horizons: Sequence[float],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Evaluate stage 1, stage 2, the baselines and, where it is known, the truth.

    Args:
        features: feature tables of the parts, in memory's columns.
        stage2: predictions at each subject's last visit; None if stage 2 was not run.
        truth: `truth.csv` of the simulated cohort.
        horizons: years.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    Returns:
        As `evaluate_models`.
    """
    models = predict_all(features, stage2, truth=truth, horizons=horizons)
    return evaluate_models(models, horizons=horizons, num_resamples=num_resamples, seed=seed)


def predict_all(
    features: Mapping[str, pd.DataFrame], stage2: Predicted | None, *, truth: Path | None, horizons: Sequence[float]
) -> Models:
    """The predictions of every model; arguments as of `evaluate_run`."""
    years = curve_years(horizons)
    return {
        "stages": {"cnn": baselines.one_scan(features, years)} | ({"tlstm": stage2} if stage2 is not None else {}),
        "baselines": baselines.cox_models(features, years),
        "oracle": baselines.oracle(features, truth, years) if truth is not None else {},
    }


def evaluate_models(models: Models, *, horizons: Sequence[float], num_resamples: int, seed: int) -> dict[str, Any]:
    """Evaluate the predictions of every model.

    Args:
        models: of `predict_all`.
        horizons: years.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    Returns:
        `cnn` and `tlstm` by part, `baselines` on test, `oracle` (C-index on test); the test parts of `cnn` and
        `tlstm` also hold the `difference` from the baseline with the highest C-index, on the same resamples.
    """
    how: dict[str, Any] = {"horizons": horizons, "num_resamples": num_resamples, "seed": seed}
    stages, rivals, known = models["stages"], models["baselines"], models["oracle"]
    found: dict[str, Any] = {name: evaluate_parts(predicted, **how) for name, predicted in stages.items()}
    found["baselines"] = {name: {"test": _on_test(predicted, how)} for name, predicted in rivals.items()}
    best = max(rivals, key=lambda name: found["baselines"][name]["test"]["c_index"]["value"] or 0.0)
    for name, predicted in stages.items():
        found[name]["test"]["difference"] = {"from": best, **_difference(predicted, rivals[best], how)}
    if known:
        found["oracle"] = {name: _on_test(predicted, how)["c_index"] for name, predicted in known.items()}
    return found


def read_predictions(path: Path) -> dict[str, pd.DataFrame]:
    """Stage 2's predictions by part, in memory's columns."""
    table = pd.read_csv(path, dtype={"subjectid": str}, keep_default_na=False, na_values=[""])
    table = table.rename(columns={"subjectid": "subject", "convert_status": "event"}).astype({"event": bool})
    return {part: table[table["split"] == part].reset_index(drop=True) for part in PARTS}


def _on_test(predicted: Predicted, how: dict[str, Any]) -> dict[str, Any]:
    return evaluate_parts({part: predicted[part] for part in ("train", "test")}, **how)["test"]


def _difference(ours: Predicted, theirs: Predicted, how: dict[str, Any]) -> dict[str, Any]:
    """Of two models on the test part, their rows brought into one order."""
    one, other = (predicted["test"].sort_values("subject", ignore_index=True) for predicted in (ours, theirs))
    train = ours["train"]
    (years, first), (_, second) = curves(one), curves(other)
    return compare(
        (one["log_hazard"].to_numpy(), first),
        (other["log_hazard"].to_numpy(), second),
        one["time"].to_numpy(),
        one["event"].to_numpy(),
        grid=years,
        horizons=tuple(how["horizons"]),
        reference=Reference(train["time"].to_numpy(), train["event"].to_numpy(), float(np.median(train["log_hazard"]))),
        num_resamples=how["num_resamples"],
        seed=how["seed"],
    )
