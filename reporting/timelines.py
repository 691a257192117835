"""The explanation of a subject's history on disk: by region and visit, by visit, by group of values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attribution.histories import UNATTRIBUTED, HistoryExplanation
from reporting.figures import BLACK, BLUE, GREY, STYLED, VERMILION
from reporting.words import shorten
from runs.files import written_whole

NUM_ROWS = 12  # regions drawn, by their largest effects on the log-hazard
MOST_OF_NAME, MOST_OF_TITLE = 40, 80  # characters of a region or a group, and of the heading
OTHERS, SUM = "all other regions", "sum: worth of the visit"


def save_history(folder: str | Path, history: HistoryExplanation, *, title: str) -> list[Path]:
    """Write the explanation of a history into `explain/<imageid>/`.

    Args:
        folder: made if need be.
        history: of `histories.explain_history`; effects on the log-hazard, and on the risk, 0 to 1, by horizon.
        title: of the picture, such as the scan's id and why it was chosen.
    Returns:
        The files `region_by_visit.csv`, `visits.csv`, `groups.csv`, `region_by_visit.png`.
    """
    folder = Path(folder)
    tables = {
        "region_by_visit.csv": history["regions"],
        "visits.csv": history["visits"],
        "groups.csv": history["groups"],
    }
    written = []
    for name, table in tables.items():
        written.append(folder / name)
        with written_whole(written[-1]) as part:
            table.to_csv(part, index=False)
    written.append(folder / "region_by_visit.png")
    _save(draw_history(history, title), written[-1])
    return written


@STYLED
def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as part:
        figure.savefig(part, dpi=130)


@STYLED
def draw_history(history: HistoryExplanation, title: str) -> Figure:
    """Region by visit for the log-hazard and each horizon's risk; below them visits, groups of values and attention.

    A column of the log-hazard's panel sums to its visit's bar. The visits' bars and the groups' have the same sum.

    Args:
        history: of `histories.explain_history`; effects on the log-hazard, and on the risk, 0 to 1, by horizon.
        title: begins the heading.
    """
    table, visits, groups = history["regions"], history["visits"], history["groups"]
    outcomes = [str(name) for name in table if name == "log_hazard" or str(name).startswith("risk_")]
    figure = Figure((4 + len(outcomes) * max(1.6, 0.5 * table["visit"].max()), 6.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[5, 2])
    above, below = halves
    panels = above.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
    for axes, outcome in zip(panels, outcomes, strict=True):
        _heatmap(axes, largest(table, outcome), visits["visit_time"], outcome)
    above.suptitle(_heading(history, title), fontsize=9)
    ticks = [f"visit {visit}" for visit in visits["visit"]]
    left, middle, *right = below.subplots(1, 3 if "attention" in visits else 2)
    middle.sharex(left)
    _bars(left, ticks, visits, "worth of each visit")
    _bars(middle, list(groups["group"]), groups, "worth of each value, over all visits")
    for axes in right:
        axes.barh(ticks, visits["attention"].fillna(0), color=GREY)
        axes.set(title="attention (a weight, not a worth)", xlabel="share of the pooled state", xlim=(0, 1))
        axes.invert_yaxis()
    return figure


def largest(table: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """The effects of the most important regions by visit, of all others together, and the unattributed ones.

    Args:
        table: `region, visit, log_hazard` and the outcome, a row a region and visit.
        outcome: `log_hazard` or `risk_<years>`.
    Returns:
        (NUM_ROWS + 2, V), fewer rows if there are fewer regions; the regions of the largest effects on the log-hazard,
        whatever the outcome, so that the panels have the same rows.
    """
    wide = table.pivot_table(index="region", columns="visit", values=outcome, aggfunc="sum")
    size = table.assign(size=table["log_hazard"].abs()).groupby("region")["size"].sum().drop(UNATTRIBUTED)
    chosen = size.sort_values(ascending=False, kind="stable").index[:NUM_ROWS]
    rows = wide.loc[chosen]
    rows.loc[OTHERS] = wide.drop([*chosen, UNATTRIBUTED]).sum()
    rows.loc[UNATTRIBUTED] = wide.loc[UNATTRIBUTED]
    return rows


def _heading(history: HistoryExplanation, title: str) -> str:
    metrics = history["metrics"]
    share = metrics["unattributed"]
    missed = "no visit has an effect" if share is None else f"{share:.1%} of the visits' effects unattributed"
    value, base = metrics["log_hazard"], metrics["background_log_hazard"]
    assert value is not None and base is not None
    return (
        f"{shorten(title, MOST_OF_TITLE)}: what each region at each visit is worth; red raises, blue lowers\n"
        f"log-hazard {value:.2f}, with the brains of the background {base:.2f}: the difference of {value - base:+.2f} "
        f"is shared out; {missed}"
    )


def _heatmap(axes: Axes, rows: pd.DataFrame, years: pd.Series, outcome: str) -> None:
    """Draw the effects (R, V) as colours with their numbers, and their sums; `years` are the visits', from baseline."""
    scale, digits = (1, 2) if outcome == "log_hazard" else (100, 1)
    values = scale * rows.to_numpy()
    limit = np.abs(values).max() or 1.0
    sums = np.full((1, len(years)), np.nan)  # drawn as numbers without a colour
    axes.imshow(np.concatenate([values, sums]), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(np.concatenate([values, values.sum(axis=0, keepdims=True)])):
        is_sum = row == len(rows)
        colour = "white" if abs(value) > 0.6 * limit and not is_sum else "black"
        weight = "bold" if is_sum else "normal"
        text = f"{round(value, digits) + 0.0:+.{digits}f}"  # no -0.0
        axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour, weight=weight)
    name = "log-hazard" if scale == 1 else f"risk within {float(outcome.removeprefix('risk_')):g} years"
    axes.set(title=f"{name}\n({'nats' if scale == 1 else 'percentage points'})", xlabel="visit, years from baseline")
    axes.set_xticks(range(len(years)), [f"{visit + 1}\n{year:.1f}" for visit, year in enumerate(years)])
    names = [shorten(str(name), MOST_OF_NAME) for name in (*rows.index, SUM)]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.axhline(NUM_ROWS - 0.5 if len(rows) == NUM_ROWS + 2 else len(rows) - 2.5, color=GREY, linewidth=0.8)
    axes.axhline(len(rows) - 0.5, color=BLACK, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _bars(axes: Axes, names: Sequence[str], table: pd.DataFrame, title: str) -> None:
    """A bar for each row's `shapley`, with its number; a line over its standard error, if it has one."""
    values, errors = table["shapley"], table["standard_error"]
    colours = [VERMILION if value > 0 else BLUE for value in values]
    bars = axes.barh(range(len(names)), values, xerr=errors if errors.any() else None, color=colours)
    axes.bar_label(bars, [f"{round(value, 2) + 0.0:+.2f}" for value in values], padding=3, fontsize=7)
    axes.margins(x=0.25)
    axes.set_yticks(range(len(names)), [shorten(name, MOST_OF_NAME) for name in names])
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(title=title, xlabel="log-hazard, with standard errors" if errors.any() else "log-hazard")
    axes.invert_yaxis()
