"""Cross-validation of the whole pipeline: each fold of the subjects is the test part of a run of its own.

OUTPUT_DIR/folds/<k> is a run's folder like any other, and a process of its own; what is finished there is not repeated.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tables
from config import Config
from evaluation import Models, closing_table, evaluate_models, predict_all, read_predictions
from files import InputError, finite_or_none, read_json, write_json
from linear import stratified_folds
from predictions import evaluate_parts

NEEDED = ("cnn", "features", "tlstm")  # stages without which there is nothing to evaluate
NOT_PASSED_ON = {"COHORT_CSV", "FOLDS", "FEATURES", "PREDICT_CSV"}

logger = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Refuse settings that mean nothing in a cross-validation of the whole pipeline, if FOLDS asks for one.

    Raises:
        InputError: names each.
    """
    if not config.FOLDS:
        return
    absent = [stage for stage in NEEDED if stage not in config.STAGES]
    problems = [
        problem
        for wrong, problem in (
            (config.FOLDS == 1, "FOLDS: expected 2 or more, received 1"),
            (
                config.TRAIN_CSV is not None,
                "TRAIN_CSV, VAL_CSV, TEST_CSV: expected unset, since the folds are the split",
            ),
            (absent, f"STAGES: expected {', '.join(NEEDED)} among them, missing {', '.join(absent)}"),
            (config.SAMPLE_INDEX, "SAMPLE_INDEX: expected unset, since each fold has its own test part"),
            (config.LANDMARKS, "LANDMARKS: expected unset; `python tlstm.py --FEATURES` cross-validates landmarks"),
        )
        if wrong
    ]
    tables.refuse("The pipeline can't be cross-validated", problems, "Change these settings, or unset FOLDS.")


def cross_validate(
    config: Config, table: pd.DataFrame, *, truth: Path | None, run: Callable[[str, Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Run the pipeline in each fold, evaluate all held-out subjects, and put that into `metrics.json` as `folds`.

    Args:
        config: of the whole; `check` has passed.
        table: the cohort, in memory's columns, sorted by subject and visit.
        truth: `truth.csv` of the simulated cohort.
        run: `run(program, settings)` runs a program of ours, and raises if that fails.
    Returns:
        As `evaluate`.
    Raises:
        InputError: a fold would have a part without an event; nothing was run then.
    """
    split = split_folds(table, config.FOLDS, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED)
    folders = [config.OUTPUT_DIR / "folds" / str(number + 1) for number in range(config.FOLDS)]
    for folder, parts in zip(folders, split, strict=True):
        logger.info("fold %s of %d: %s", folder.name, config.FOLDS, folder)
        for name, part in parts.items():
            tables.write_table(part, folder / "input" / f"{name}.csv", time_unit=config.TIME_UNIT)
        elsewhere = set(table["subject"]) - set(parts["test"]["subject"])
        run("main.py", fold_settings(config, folder, elsewhere))
    models = []
    for folder in folders:
        paths = {name: folder / "features" / f"{name}.parquet" for name in tables.PARTS}
        features = {name: tables.read_features(path, time_unit=config.TIME_UNIT) for name, path in paths.items()}
        stage2 = read_predictions(folder / "tlstm" / "predictions.csv")
        models.append(predict_all(features, stage2, truth=truth, horizons=config.HORIZONS))
    found = evaluate(models, horizons=config.HORIZONS, num_resamples=config.NUM_RESAMPLES, seed=config.SEED)
    path = config.OUTPUT_DIR / "metrics.json"
    write_json(path, read_json(path) | {"folds": found})
    return found


def split_folds(
    table: pd.DataFrame, num_folds: int, *, val_train_ratio: float, seed: int
) -> list[dict[str, pd.DataFrame]]:
    """The parts of each fold: whole subjects, stratified by event; everyone is in the test part once.

    Args:
        table: cohort table in memory's columns.
        num_folds: of the subjects.
        val_train_ratio: share of the subjects of the other folds in the validation part.
        seed: of the folds.
    Returns:
        `{"train", "val", "test"}` of each fold.
    Raises:
        InputError: a part would have no event.
    """
    event = table.groupby("subject", sort=True)["event"].first()
    if event.sum() < num_folds:
        raise InputError(f"FOLDS: expected at most {event.sum()}, the subjects with an event. Received: {num_folds}")
    rng = np.random.default_rng(seed)
    fold_of = stratified_folds(event.to_numpy(bool), num_folds, rng)
    split = []
    for fold in range(num_folds):
        part_of = pd.Series("train", event.index).mask(fold_of == fold, "test")
        for state in (True, False):
            others = rng.permutation(event.index[(fold_of != fold) & (event == state)].to_numpy(dtype=object))
            part_of[others[: round(val_train_ratio * len(others))]] = "val"
        part = table["subject"].map(part_of)
        split.append(tables.check_parts({name: table[part == name].reset_index(drop=True) for name in tables.PARTS}))
    return split


def fold_settings(config: Config, folder: Path, elsewhere: set[str]) -> dict[str, Any]:
    """The settings of one fold's run: those of the whole, its own split and folder, one cache for all.

    Args:
        config: of the whole.
        folder: of the fold; `input` in it holds its tables.
        elsewhere: subjects who are not in its test part: whom EXPLAIN names of them, another fold explains.
    Returns:
        Settings as JSON has them.
    """
    return config.model_dump(mode="json", exclude_none=True, exclude=NOT_PASSED_ON) | {
        "OUTPUT_DIR": str(folder),
        "CACHE_DIR": str(config.CACHE_DIR or config.OUTPUT_DIR / "cache"),
        "EXPLAIN": [name for name in config.EXPLAIN if name not in elsewhere],
        **{f"{part.upper()}_CSV": str(folder / "input" / f"{part}.csv") for part in tables.PARTS},
    }


def evaluate(folds: Sequence[Models], *, horizons: Sequence[float], num_resamples: int, seed: int) -> dict[str, Any]:
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


def as_text(found: Mapping[str, Any]) -> str:
    """The figures of `evaluate` as lines for a terminal."""
    lines = [closing_table(found["pooled"]), "", f"{'C-index within each fold':<24}  mean (sd)"]
    for name, figures in found["mean"].items():
        each = "  ".join(
            "  -  " if fold[name]["c_index"] is None else f"{fold[name]['c_index']:.3f}" for fold in found["each"]
        )
        mean, sd = (figures["c_index"][key] for key in ("value", "sd"))
        told = "-" if mean is None else f"{mean:.3f} ({'-' if sd is None else f'{sd:.3f}'})"
        lines.append(f"{name.replace('_', ' '):<24}  {told:<13}  {each}")
    return "\n".join(lines)


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
