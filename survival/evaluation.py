"""Every model of a run on the same split: stage 1, stage 2, their rivals and the truth, for `metrics.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.splits import PARTS
from survival import baselines
from survival.estimates import Reference
from survival.metrics import EvaluationSettings, Prediction, compare, evaluate
from survival.predictor import curve_years

MODEL_NAMES = {"cnn": "one scan (ResNet-18)", "tlstm": "history (stage 2)"}  # as tables and figures show them
ARM_NAMES = {"link": "link", "rich_link": "rich link", "boosted": "boosted Cox", "tlstm": "T-LSTM"}  # likewise
Predicted = Mapping[str, pd.DataFrame]  # predictions of train, val and test, a row a subject
Models = Mapping[str, Mapping[str, Predicted]]  # by kind (`stages`, `rivals`, `oracle`) and name


def evaluate_run(
    features: Mapping[str, pd.DataFrame],
    stage2: Predicted | None,
    settings: EvaluationSettings,
    *,
    truth: Path | None,
) -> dict[str, Any]:
    """Predict with every model of a run and evaluate the predictions.

    Args:
        features: feature tables of the parts, in memory's columns, a row a scan.
        stage2: predictions at each subject's last visit; None if stage 2 was not run.
        settings: horizons in years, resamples, seed.
        truth: `truth.csv` of the simulated cohort.
    Returns:
        As `evaluate_models`.
    """
    return evaluate_models(predict_all(features, stage2, settings, truth=truth), settings)


def predict_all(
    features: Mapping[str, pd.DataFrame],
    stage2: Predicted | None,
    settings: EvaluationSettings,
    *,
    truth: Path | None,
) -> Models:
    """Predict with every model of a run; the curves reach the last horizon.

    Args:
        features: feature tables of the parts, in memory's columns, a row a scan; without stage 1's `log_hazard`, what
            needs it is left out.
        stage2: predictions at each subject's last visit; None if stage 2 was not run.
        settings: horizons in years; no other setting is used.
        truth: `truth.csv` of the simulated cohort.
    Returns:
        By kind and name of the model, tables of predictions, a row a subject.
    """
    years = curve_years(settings.horizons)
    stage1 = {"cnn": baselines.predict_last_scan(features, years)} if "log_hazard" in features["train"] else {}
    return {
        "stages": stage1 | ({"tlstm": stage2} if stage2 is not None else {}),
        "rivals": baselines.predict_cox_models(features, years),
        "oracle": baselines.predict_from_truth(features, truth, years) if truth is not None else {},
    }


def evaluate_models(models: Models, settings: EvaluationSettings) -> dict[str, Any]:
    """Evaluate the predictions of every model.

    Args:
        models: of `predict_all`.
        settings: horizons in years, resamples, seed.
    Returns:
        `cnn` and `tlstm` by part, `baselines` on test, `oracle` (C-index on test). The test parts of `cnn` and
        `tlstm` also hold the `difference` from the rival with the highest C-index, on the same resamples.
    """
    stages, rivals, oracle = models["stages"], models["rivals"], models["oracle"]
    metrics: dict[str, Any] = {name: evaluate_parts(predicted, settings) for name, predicted in stages.items()}
    metrics["baselines"] = {name: {"test": _evaluate_test(predicted, settings)} for name, predicted in rivals.items()}
    if rivals:
        best = max(rivals, key=lambda name: metrics["baselines"][name]["test"]["c_index"]["value"] or 0.0)
        for name, predicted in stages.items():
            difference = _compare_on_test(predicted, rivals[best], settings)
            metrics[name]["test"]["difference"] = {"from": best, **difference}
    if oracle:
        metrics["oracle"] = {name: _evaluate_test(predicted, settings)["c_index"] for name, predicted in oracle.items()}
    return metrics


def tested_models(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name the models of a run as tables show them.

    Args:
        metrics: as in `metrics.json`, or those of one landmark.
    Returns:
        By name the figures on the test part: stage 1, stage 2, the arms of a stack with their weights, the rivals.
    """
    models = {shown: metrics[name]["test"] for name, shown in MODEL_NAMES.items() if "test" in metrics.get(name, {})}
    for name, arm in metrics.get("arms", {}).items():
        models[f"  its {ARM_NAMES[name]}, weight {arm['weight']:.2f}"] = arm["test"]
    return models | {name.replace("_", " "): rival["test"] for name, rival in metrics.get("baselines", {}).items()}


def evaluate_parts(parts: Predicted, settings: EvaluationSettings) -> dict[str, dict]:
    """Evaluate one model's predictions for each part, with the training part as reference.

    Args:
        parts: `train` and others, as `Predictor.predict` gives them for last visits or for one landmark; a row a
            subject.
        settings: horizons in years, resamples, seed.
    Returns:
        The figures of `metrics.evaluate` by part.
    """
    reference = Reference.of(parts["train"])
    return {name: evaluate(Prediction.of(table), reference, settings) for name, table in parts.items()}


def evaluate_arms(
    arms: Mapping[str, Predicted], weights: Mapping[str, float], settings: EvaluationSettings
) -> dict[str, dict]:
    """Evaluate the arms of a stack, each alone.

    Args:
        arms: by name, `train` and others, as for `evaluate_parts`.
        weights: of the arms in the stack.
        settings: horizons in years, resamples, seed.
    Returns:
        By arm the figures of each part, and its `weight`.
    """
    return {name: {**evaluate_parts(parts, settings), "weight": weights[name]} for name, parts in arms.items()}


def evaluate_landmarks(
    stage2: Predicted,
    rivals: Mapping[str, Predicted],
    landmarks: Sequence[float],
    settings: EvaluationSettings,
    *,
    arms: Mapping[str, Predicted],
    weights: Mapping[str, float],
) -> dict[str, dict[str, dict]]:
    """Evaluate stage 2, its arms and its rivals at one landmark after another.

    Args:
        stage2: `train` and others, as `Predictor.predict` gives them for several landmarks.
        rivals: likewise of each rival, by name.
        landmarks: years from baseline.
        settings: horizons in years, resamples, seed.
        arms: as `stage2`, by each arm of the stack alone; empty: there is no stack.
        weights: of the arms.
    Returns:
        By landmark the figures of `evaluate_parts`, those of the rivals on test as `baselines`, and `arms`.
    """
    figures = {}
    for landmark in landmarks:
        models: Models = {
            "stages": {"tlstm": _at_landmark(stage2, landmark)},
            "rivals": {name: _at_landmark(predicted, landmark) for name, predicted in rivals.items()},
            "oracle": {},
        }
        evaluated = evaluate_models(models, settings)
        here = {name: _at_landmark(predicted, landmark) for name, predicted in arms.items()}
        of_arms = {"arms": evaluate_arms(here, weights, settings)} if arms else {}
        figures[f"{landmark:g}"] = evaluated["tlstm"] | {"baselines": evaluated["baselines"]} | of_arms
    return figures


def _at_landmark(predicted: Predicted, landmark: float) -> Predicted:
    return {part: table[table["landmark"] == landmark].reset_index(drop=True) for part, table in predicted.items()}


def read_predictions(path: Path) -> dict[str, pd.DataFrame]:
    """Read stage 2's predictions.

    Args:
        path: `predictions.csv`, times in years.
    Returns:
        By part, a table in memory's columns, a row a subject and landmark.
    """
    table = pd.read_csv(path, dtype={"subjectid": str}, keep_default_na=False, na_values=[""])
    table = table.rename(columns={"subjectid": "subject", "convert_status": "event"}).astype({"event": bool})
    return {part: table[table["split"] == part].reset_index(drop=True) for part in PARTS}


def _evaluate_test(predicted: Predicted, settings: EvaluationSettings) -> dict[str, Any]:
    return evaluate_parts({part: predicted[part] for part in ("train", "test")}, settings)["test"]


def _compare_on_test(ours: Predicted, rival: Predicted, settings: EvaluationSettings) -> dict[str, Any]:
    """The difference of two models on the test part, their rows sorted into one order."""
    first, second = (
        Prediction.of(predicted["test"].sort_values("subject", ignore_index=True)) for predicted in (ours, rival)
    )
    return compare(first, second, Reference.of(ours["train"]), settings)
