"""What a run prints at its end: the figures of every model on the test part, as a table of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from reporting.words import in_words
from survival.evaluation import tested_models

Metrics = Mapping[str, Any]  # of a run, as in metrics.json
NAME_WIDTH, MEAN_WIDTH = 24, 13  # characters of the first columns of the folds' table


def closing_table(metrics: Metrics) -> str:
    """The test part's figures of every model, as the last lines that a run prints.

    Args:
        metrics: of `evaluation.evaluate_models`; may be empty.
    Returns:
        A line a model: C-index with its 95 % interval, AUC at each horizon (years), integrated Brier score, and how
        far its C-index is from that of the best rival. Then the oracle's C-index, and the number of subjects.
    """
    models = tested_models(metrics)
    if not models:
        return "No stage has been evaluated."
    first = next(iter(models.values()))
    years = list(first["auc"])
    best = next((figures["difference"]["from"] for figures in models.values() if "difference" in figures), "the best")
    heads = ["test part", "C-index", "95 % interval", *(f"AUC {float(year):g} y" for year in years), "IBS"]
    rows = [[*heads, f"C less {in_words(best)}"]]
    rows += [_model_row(name, figures, years) for name, figures in models.items()]
    rows += [
        [f"oracle, {in_words(name)}", _value(estimate), _limits(estimate)]
        for name, estimate in metrics.get("oracle", {}).items()
    ]
    return "\n".join([*_align(rows), f"{first['n']} test subjects, {first['events']} of them with an event."])


def landmark_tables(landmarks: Mapping[str, Any]) -> str:
    """The figures of a run that predicts at landmarks, as the last lines that it prints.

    Args:
        landmarks: of `evaluation.evaluate_landmarks`, by year.
    Returns:
        For each landmark a line that names it, and its `closing_table`.
    """
    return "\n\n".join(
        f"Predicted at year {year}\n{closing_table({'tlstm': figures} | figures)}"
        for year, figures in landmarks.items()
    )


def folds_table(folds: Mapping[str, Any]) -> str:
    """The figures of a cross-validated pipeline, as the last lines that it prints.

    Args:
        folds: of `pooling.evaluate_folds`.
    Returns:
        `closing_table` of all held-out subjects; then a line a model with its C-index within each fold, their mean
        and standard deviation.
    """
    lines = [closing_table(folds["pooled"]), "", f"{'C-index within each fold':<{NAME_WIDTH}}  mean (sd)"]
    for name, figures in folds["mean"].items():
        each_fold = "  ".join(_fold_value(fold[name]["c_index"]) for fold in folds["each"])
        mean, sd = figures["c_index"]["value"], figures["c_index"]["sd"]
        mean_and_sd = "-" if mean is None else f"{mean:.3f} ({'-' if sd is None else f'{sd:.3f}'})"
        lines.append(f"{in_words(name):<{NAME_WIDTH}}  {mean_and_sd:<{MEAN_WIDTH}}  {each_fold}")
    return "\n".join(lines)


def _model_row(name: str, figures: Mapping[str, Any], years: Sequence[str]) -> list[str]:
    c_index, difference = figures["c_index"], ""
    if "difference" in figures:
        gain = figures["difference"]["c_index"]
        difference = f"{_value(gain, '+')} ({_limits(gain, '+')})"
    others = [_value(estimate) for estimate in (*(figures["auc"][year] for year in years), figures["ibs"])]
    return [name, _value(c_index), _limits(c_index), *others, difference]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell; a row may be shorter than the first one."""
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _value(estimate: Mapping[str, Any], sign: str = "") -> str:
    return "-" if estimate["value"] is None else f"{estimate['value']:{sign}.3f}"


def _limits(estimate: Mapping[str, Any], sign: str = "") -> str:
    return "-" if estimate["low"] is None else f"{estimate['low']:{sign}.3f} to {estimate['high']:{sign}.3f}"


def _fold_value(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"
