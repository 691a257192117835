"""The figures of a run, each drawn from tables and numbers alone; `report.py` reads the run and places them.

Colours are Okabe and Ito's, which the colour-blind can tell apart; lines differ in dashes too, so that they
survive a grey print. Nothing here touches matplotlib's global state.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from runs.files import written_whole

BLACK, GREY = "#000000", "#767676"
BLUE, VERMILION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
MINUS = "\N{MINUS SIGN}"
WIDTH = 6.9  # inches: the full width of a journal's page
STYLED = matplotlib.rc_context(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "figure.dpi": 100,
        "savefig.dpi": 200,
        "svg.hashsalt": "figures",  # the same ids in every run
        "svg.fonttype": "path",
    }
)
AHEAD = "years after the prediction"
LOSS = "loss (nats)"


@STYLED
def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name.svg` and `name.png` into the folder.

    Returns:
        The SVG's path.
    """
    for suffix in (".png", ".svg"):
        with written_whole(folder / (name + suffix)) as part:
            figure.savefig(part, metadata={"Date": None} if suffix == ".svg" else None)
    return folder / f"{name}.svg"


# ---- Training --------------------------------------------------------------------------------------------
@STYLED
def training(cnn: pd.DataFrame | None, tlstm: pd.DataFrame | None) -> Figure:
    """Losses and validation C-index by epoch, with the epoch whose weights were kept.

    Args:
        cnn: `epoch, loss, val_loss, val_c_index`; kept is the highest C-index, ties by loss. None: not trained.
        tlstm: `epoch, train_loss, val_loss`, means over the seeds; kept is the lowest `val_loss`. None: not trained.
    """
    figure = _figure(2.3 * ((cnn is not None) + (tlstm is not None)))
    rows = figure.subplots((cnn is not None) + (tlstm is not None), 3, squeeze=False)
    if cnn is not None:
        kept = cnn.sort_values(["val_c_index", "val_loss"], ascending=[False, True], kind="stable").iloc[0]
        epoch, best = cnn["epoch"], kept["epoch"]
        _course(rows[0, 0], epoch, cnn["loss"], best, BLUE, "one scan: training", LOSS)
        _course(rows[0, 1], epoch, cnn["val_loss"], best, VERMILION, "validation", LOSS)
        title = f"{kept['val_c_index']:.3f} at epoch {best:.0f}"
        _course(rows[0, 2], epoch, cnn["val_c_index"], best, VERMILION, title, "C-index")
    if tlstm is not None:
        epoch, best = tlstm["epoch"], tlstm.sort_values("val_loss", kind="stable")["epoch"].iloc[0]
        _course(rows[-1, 0], epoch, tlstm["train_loss"], best, BLUE, "history: training", LOSS)
        _course(rows[-1, 1], epoch, tlstm["val_loss"], best, VERMILION, f"validation: epoch {best:.0f}", LOSS)
        rows[-1, 2].set_axis_off()
    return figure


def _course(axes: Axes, epoch: pd.Series, values: pd.Series, kept: float, colour: str, title: str, label: str) -> None:
    axes.plot(epoch, values, color=colour, marker="o" if len(epoch) <= 30 else "", markersize=3)
    axes.axvline(kept, color=GREY, linestyle="--", linewidth=1)
    axes.plot(kept, values[epoch == kept], "o", color=colour, markersize=7, markeredgecolor="white")
    axes.set(xlabel="epoch", ylabel=label, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)


# ---- Risk groups -----------------------------------------------------------------------------------------
@STYLED
def risk_groups(predicted: pd.DataFrame, found: Mapping[str, Any]) -> Figure:
    """Kaplan-Meier curves of the two risk groups with 95 % bands and the numbers at risk.

    Args:
        predicted: `time, event, log_hazard`, a row a subject of the test part.
        found: that part's figures: `risk_groups`, `hazard_ratio`.
    """
    figure = _figure(3.7, width=4.9)
    axes, below = figure.subplots(2, 1, height_ratios=[5, 1], sharex=True)
    high = predicted["log_hazard"] > found["risk_groups"]["cut"]
    end = float(predicted["time"].max())
    ticks = [tick for tick in MaxNLocator(7, integer=True).tick_values(0, end) if 0 <= tick <= end]
    groups = (("low risk", ~high, BLUE, "-"), ("high risk", high, VERMILION, "--"))
    for row, (name, group, colour, dashes) in enumerate(groups):
        members = predicted[group]
        for tick in ticks:
            below.text(tick, -row, str((members["time"] >= tick).sum()), ha="center", va="center", color=colour)
        if members.empty:
            continue
        curve = KaplanMeierFitter().fit(members["time"], members["event"])
        line, band = curve.survival_function_.iloc[:, 0], curve.confidence_interval_
        axes.step(line.index, line, where="post", color=colour, linestyle=dashes, label=name)
        axes.fill_between(band.index, band.iloc[:, 0], band.iloc[:, 1], step="post", color=colour, alpha=0.15, lw=0)
        censored = members.loc[~members["event"], "time"]
        axes.plot(censored, curve.predict(censored), "|", color=colour, markersize=5)
    axes.set(xlim=(0, end * 1.02), ylim=(0, 1.03), xticks=ticks, ylabel="share free of the event")
    axes.tick_params(labelbottom=True)
    axes.set_xlabel(AHEAD)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.08))
    told = [f"hazard ratio {interval(found['hazard_ratio'], 1)}"]
    if found["risk_groups"]["log_rank_p"] is not None:
        told.append(f"log-rank {p_value(found['risk_groups']['log_rank_p'])}")
    axes.text(0.03, 0.04, "\n".join(told), transform=axes.transAxes, fontsize=8)
    below.set(ylim=(-1.6, 0.6), title="at risk")
    below.set_yticks([0, -1], [name for name, *_ in groups])
    below.spines[:].set_visible(False)
    below.tick_params(length=0, pad=14, labelbottom=False)
    return figure


# ---- Calibration and time --------------------------------------------------------------------------------
@STYLED
def calibration(found: Mapping[str, Any]) -> Figure:
    """Observed against predicted risk at each horizon, in groups of predicted risk.

    Args:
        found: a part's figures: `calibration`.
    """
    horizons = list(found["calibration"].items())
    figure = _figure(2.75, width=min(WIDTH, 0.4 + 2.2 * len(horizons)))
    panels = figure.subplots(1, len(horizons), squeeze=False, sharey=True)[0]
    for axes, (year, at) in zip(panels, horizons, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for group in at["groups"]:
            observed = group["observed"]
            if observed["value"] is None:
                continue
            x, y = group["predicted"], observed["value"]
            axes.plot([x, x], [observed["low"], observed["high"]], color=BLUE, linewidth=1, clip_on=False)
            axes.plot(x, y, "o", color=BLUE, markersize=5, clip_on=False)
        lines = [f"{name} {interval(at[name])}" for name in ("slope", "intercept")]
        axes.text(0.03, 1, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=7)
        axes.set(xlim=(0, 1), ylim=(0, 1.22), title=f"within {float(year):g} years", xlabel="predicted risk")
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.spines["left"].set_bounds(0, 1)
    panels[0].set_ylabel("observed risk\n(1 - Kaplan-Meier)")
    return figure


@STYLED
def over_time(curves: Mapping[str, Any], without_model: Mapping[str, Any], horizons: Sequence[float]) -> Figure:
    """AUC and Brier score by time, with 95 % bands.

    Args:
        curves: of `metrics.over_time`.
        without_model: the Brier scores of one curve for everyone, the training part's Kaplan-Meier.
        horizons: years to mark.
    """
    figure = _figure(2.7)
    left, right = figure.subplots(1, 2)
    _band(left, curves["auc"], BLUE, "-", "history (T-LSTM)")
    left.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    left.text(1, 0.5, "chance", color=GREY, fontsize=8, ha="right", va="bottom", transform=left.get_yaxis_transform())
    left.set(ylim=(min(0.4, left.get_ylim()[0]), 1), ylabel="AUC", title="discrimination (higher is better)")
    _band(right, without_model, GREY, "--", "the same curve for everyone", band=False)
    _band(right, curves["brier"], BLUE, "-", "history (T-LSTM)")
    right.set(ylim=(0, None), ylabel="Brier score", title="error (lower is better)")
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set(xlabel=AHEAD, xlim=(0, None))
        for year in horizons:
            axes.axvline(year, color="0.85", linewidth=0.8, zorder=0)
    return figure


def _band(axes: Axes, by_year: Mapping[str, Any], colour: str, dashes: str, label: str, *, band: bool = True) -> None:
    known = {float(year): at for year, at in by_year.items() if at["value"] is not None}
    years = list(known)
    axes.plot(years, [at["value"] for at in known.values()], dashes, color=colour, label=label)
    if band:
        low, high = ([at[end] for at in known.values()] for end in ("low", "high"))
        axes.fill_between(years, low, high, color=colour, alpha=0.15, linewidth=0)


# ---- Subjects --------------------------------------------------------------------------------------------
@STYLED
def individuals(predicted: pd.DataFrame, visits: Mapping[str, Sequence[float]]) -> Figure:
    """Survival curves of four subjects from the highest to the lowest risk; one a landmark where there are several.

    Args:
        predicted: `subject, landmark, time, event, log_hazard, survival_<t>...` of the test part, years.
        visits: of each subject, years from baseline.
    """
    last = predicted.sort_values("landmark").groupby("subject").tail(1).sort_values("log_hazard", ascending=False)
    shown = last.iloc[np.unique(np.linspace(0, len(last) - 1, 4).round().astype(int))]
    names = [name for name in predicted.columns if name.startswith("survival_")]
    ahead = np.array([0.0, *(float(name.removeprefix("survival_")) for name in names)])
    end = float(max((shown["landmark"] + shown["time"]).max(), (shown["landmark"]).max() + ahead[-1]))
    figure = _figure(2.4)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, (place, (_, subject)) in zip(panels, enumerate(shown.iterrows()), strict=True):
        rows = predicted[predicted["subject"] == subject["subject"]].sort_values("landmark")
        for number, (_, row) in enumerate(rows.iterrows(), start=1):
            line = [1.0, *row[names]]
            axes.plot(row["landmark"] + ahead, line, color=BLUE, alpha=number / len(rows))
        if seen := visits.get(subject["subject"]):  # matplotlib cannot lay out an empty line that is not clipped
            axes.plot(seen, np.full(len(seen), 0.02), "^", color=BLACK, markersize=4, clip_on=False)
        until = subject["landmark"] + subject["time"]
        colour, word = (VERMILION, "event") if subject["event"] else (GREY, "last seen")
        axes.axvline(until, color=colour, linestyle="--" if subject["event"] else ":", linewidth=1.2)
        side = "right" if until > end / 2 else "left"
        axes.text(until, 1.05, f" {word} ", color=colour, ha=side, in_layout=False)
        title = ("highest risk", "upper third", "lower third", "lowest risk")[place] if len(shown) == 4 else ""
        axes.set(xlim=(0, 1.03 * end), ylim=(0, 1.12), xlabel="years from baseline")
        axes.set_title(f"{shorten(subject['subject'])}\n{title}".strip(), fontsize=8)
    panels[0].set_ylabel("predicted share free\nof the event")
    return figure


@STYLED
def attention(predicted: pd.DataFrame, cut: float) -> Figure:
    """Attention weights by visit, counted back from the last, of the two risk groups.

    Args:
        predicted: `log_hazard, attention_<visit>...` of the test part; NaN where there is no visit.
        cut: log-hazard above which a subject is of the high-risk group.
    """
    names = [name for name in predicted.columns if name.startswith("attention_")]
    weights = predicted[names].to_numpy(float)
    number = (~np.isnan(weights)).sum(axis=1)  # (N,) visits
    high = (predicted["log_hazard"] > cut).to_numpy()
    back = [weights[np.arange(len(weights)), np.maximum(number - 1 - step, 0)] for step in range(weights.shape[1])]
    labels = ["last", *(f"{step} before" for step in range(1, weights.shape[1]))]
    figure = _figure(2.7, width=min(WIDTH, 2.2 + 0.9 * weights.shape[1]))
    axes = figure.subplots()
    for group, colour, offset, label in ((~high, BLUE, -0.18, "low risk"), (high, VERMILION, 0.18, "high risk")):
        for step, values in enumerate(back):
            seen = values[group & (number > step)]
            if not len(seen):
                continue
            boxes = axes.boxplot(
                seen,
                positions=[-step + offset],
                widths=0.3,
                patch_artist=True,
                medianprops={"color": BLACK},
                boxprops={"facecolor": colour, "alpha": 0.5, "edgecolor": colour},
                flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
            )
            if step == 0:
                boxes["boxes"][0].set_label(label)
    if len(set(number)) == 1:
        axes.axhline(1 / number[0], color=GREY, linestyle=":", linewidth=1)
        axes.text(
            1,
            1 / number[0],
            "even",
            color=GREY,
            fontsize=8,
            va="bottom",
            ha="right",
            transform=axes.get_yaxis_transform(),
        )
    axes.set(xlabel="visit", ylabel="share of the attention", ylim=(0, 1))
    axes.set_xticks([-step for step in range(len(labels))], labels)
    axes.legend(loc="upper left")
    return figure


# ---- The cohort ------------------------------------------------------------------------------------------
@STYLED
def cohort(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """From all scans to the parts; visits a subject, and follow-up.

    Args:
        parts: train, val and test: `subject, time` (years from baseline), `event`, a row a scan.
    """
    figure = _figure(2.9)
    flow, bars, follow = figure.subplots(1, 3, width_ratios=[1.6, 1, 1.2])
    _flow(flow, parts)
    whole = pd.concat(parts.values())
    per_subject = whole.groupby("subject").agg(
        visits=("time", "size"), time=("time", "first"), event=("event", "first")
    )
    counts = per_subject["visits"].value_counts().sort_index()
    bars.bar(counts.index, counts, color=SKY, edgecolor=BLUE, width=0.8)
    bars.set(xlabel="visits of a subject", ylabel="subjects", title="visits")
    bars.set_xlim(counts.index.min() - 1, counts.index.max() + 1)
    bars.xaxis.set_major_locator(MaxNLocator(integer=True))
    edges = np.linspace(0, math.ceil(per_subject["time"].max()), 13)
    kinds = [per_subject.loc[per_subject["event"], "time"], per_subject.loc[~per_subject["event"], "time"]]
    shown = follow.hist(kinds, edges, stacked=True, color=[VERMILION, "white"], edgecolor=BLACK, linewidth=0.6)
    follow.legend(shown[2], ["event", "last seen"])
    follow.set(xlabel="years from baseline", ylabel="subjects", title="follow-up")
    return figure


def _flow(axes: Axes, parts: Mapping[str, pd.DataFrame]) -> None:
    """Boxes: everyone, then the parts."""

    def told(table: pd.DataFrame, name: str) -> str:
        subjects = table.groupby("subject")["event"].first()
        return f"{name}\n{len(subjects)} subjects\n{int(subjects.sum())} events\n{len(table)} scans"

    def box(x: float, y: float, text: str, colour: str) -> None:
        axes.add_patch(FancyBboxPatch((x, y), 0.42, 0.26, boxstyle="round,pad=0.02", fc="white", ec=colour, lw=1.2))
        axes.text(x + 0.21, y + 0.13, text, ha="center", va="center", fontsize=7)

    box(0, 0.37, told(pd.concat(parts.values()), "read"), BLACK)
    for number, (name, colour) in enumerate((("train", BLUE), ("val", GREEN), ("test", VERMILION))):
        y = 0.74 - 0.37 * number
        box(0.6, y, told(parts[name], {"val": "validation"}.get(name, name)), colour)
        axes.annotate("", (0.58, y + 0.13), (0.44, 0.5), arrowprops={"arrowstyle": "-|>", "color": BLACK, "lw": 0.8})
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.03), title="cohort")
    axes.set_axis_off()


# ---- Words -----------------------------------------------------------------------------------------------
def interval(estimate: Mapping[str, Any], digits: int = 2) -> str:
    """`0.81 (0.74 to 0.88)`; a dash where there is no value."""
    if estimate["value"] is None:
        return "infinite" if str(estimate.get("why", "")).startswith("infinite") else "-"
    low, high = (
        f"{estimate[end]:.{digits}f}" if estimate[end] is not None else infinite
        for end, infinite in (("low", "-∞"), ("high", "∞"))
    )
    return f"{estimate['value']:.{digits}f} ({low} to {high})".replace("-", MINUS)


def p_value(p: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def shorten(name: str, most: int = 18) -> str:
    """A name that fits over a panel; `$` is not to open matplotlib's mathematics."""
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure((width, height), layout="constrained")
