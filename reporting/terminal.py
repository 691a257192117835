"""TODO: reporting.terminal."""

from collections.abc import Mapping
from typing import Any

from survival.evaluation import MODEL_NAMES


def folds_table(found: Mapping[str, Any]) -> str:
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


def closing_table(metrics: Mapping[str, Any]) -> str:
    """The test part's figures of every model, a line each, as text."""
    models = {MODEL_NAMES[name]: metrics[name]["test"] for name in MODEL_NAMES if name in metrics}
    models |= {name.replace("_", " "): found["test"] for name, found in metrics.get("baselines", {}).items()}
    if not models:
        return "No stage has been evaluated."
    first = next(iter(models.values()))
    years = list(first["auc"])
    heads = ["test part", "C-index", "95 % interval", *(f"AUC {float(year):g} y" for year in years), "IBS"]
    best = next((found["difference"]["from"] for found in models.values() if "difference" in found), "the best")
    rows = [[*heads, f"C less {best.replace('_', ' ')}"]]
    for name, found in models.items():
        figures = [found["c_index"], *(found["auc"][year] for year in years), found["ibs"]]
        c_index, *others = [_told(figure["value"]) for figure in figures]
        gain = found["difference"]["c_index"] if "difference" in found else None
        difference = f"{_told(gain['value'], '+')} ({_interval(gain, '+')})" if gain else ""
        rows.append([name, c_index, _interval(found["c_index"]), *others, difference])
    for name, estimate in metrics.get("oracle", {}).items():
        rows.append([f"oracle, {name.replace('_', ' ')}", _told(estimate["value"]), _interval(estimate)])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([*lines, f"{first['n']} test subjects, {first['events']} of them with an event."])


def _told(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _interval(estimate: Mapping[str, Any], sign: str = "") -> str:
    return "-" if estimate["low"] is None else f"{estimate['low']:{sign}.3f} to {estimate['high']:{sign}.3f}"
