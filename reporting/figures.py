"""The figures of a run, each drawn from tables and numbers alone; `page_figures` reads them and writes the captions.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. Lines differ in dashes too, so that they can
be told apart in a grey print. Nothing here changes matplotlib's global state.
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

from cohort.splits import PARTS
from reporting.words import interval, p_value, shorten
from runs.files import written_whole
from survival.estimands import read_curves

BLACK, GREY = "#000000", "#767676"
BLUE, VERMILION, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
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
        "text.parse_math": False,  # a `$` in an id is a `$`
        "svg.hashsalt": "figures",  # the same ids in every run
        "svg.fonttype": "path",
    }
)
AHEAD = "years after the prediction"
LOSS = "loss (nats)"
ATTENTION_COLUMN = "attention_"  # of a table of predictions, followed by the visit
FEW_EPOCHS = 30  # up to so many, each epoch has a marker
MOST_LABELS = 8  # visits that have room for a label of two words
NUM_INDIVIDUALS = 4
PLACES = ("highest risk", "upper third", "lower third", "lowest risk")  # of so many subjects
PART_COLOURS = dict(zip(PARTS, (BLUE, GREEN, VERMILION), strict=True))
BOX_WIDTH, BOX_HEIGHT = 0.42, 0.26  # of the cohort's boxes, shares of the panel


@STYLED
def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as `name.svg` and as `name.png`, 200 pixels an inch.

    Args:
        figure: drawn with the style of this module.
        folder: made if need be.
        name: of the two files.
    Returns:
        The path of the SVG.
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
        cnn: (epochs, 5) `epoch, loss, val_loss, val_c_index, kept`: the weights of the last epoch whose `kept` is 1
            were kept. None: stage 1 was not trained.
        tlstm: (epochs, 3) `epoch, train_loss, val_loss`, means over the seeds; the weights of the lowest `val_loss`
            were kept. None: stage 2 was not trained.
    Returns:
        A row of panels a stage, losses in nats.
    """
    num_stages = (cnn is not None) + (tlstm is not None)
    figure = _figure(2.3 * num_stages)
    rows = figure.subplots(num_stages, 3, squeeze=False)
    if cnn is not None:
        kept = _kept_epoch(cnn)
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


def _kept_epoch(cnn: pd.DataFrame) -> pd.Series:
    """The row of stage 1's history whose weights were kept; without `kept`, the highest C-index was, then the loss."""
    if "kept" in cnn:
        return cnn[cnn["kept"] == 1].iloc[-1]
    return cnn.sort_values(["val_c_index", "val_loss"], ascending=[False, True], kind="stable").iloc[0]


def _course(axes: Axes, epoch: pd.Series, values: pd.Series, kept: float, colour: str, title: str, label: str) -> None:
    axes.plot(epoch, values, color=colour, marker="o" if len(epoch) <= FEW_EPOCHS else "", markersize=3)
    axes.axvline(kept, color=GREY, linestyle="--", linewidth=1)
    axes.plot(kept, values[epoch == kept], "o", color=colour, markersize=7, markeredgecolor="white")
    axes.set(xlabel="epoch", ylabel=label, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)


# ---- Risk groups -----------------------------------------------------------------------------------------
@STYLED
def risk_groups(predicted: pd.DataFrame, metrics: Mapping[str, Any]) -> Figure:
    """Kaplan-Meier curves of the two risk groups with 95 % bands and the numbers at risk.

    Args:
        predicted: `time` (years), `event`, `log_hazard`, a row a subject of the test part.
        metrics: figures of that part: `risk_groups`, `hazard_ratio`.
    Returns:
        The curves over years; below them, the number of subjects at risk.
    """
    figure = _figure(3.7, width=4.9)
    axes, below = figure.subplots(2, 1, height_ratios=[5, 1], sharex=True)
    high = predicted["log_hazard"] > metrics["risk_groups"]["cut"]
    end = float(predicted["time"].max())
    ticks = [tick for tick in MaxNLocator(7, integer=True).tick_values(0, end) if 0 <= tick <= end]
    groups = (("low risk", ~high, BLUE, "-"), ("high risk", high, VERMILION, "--"))
    for row, (name, group, colour, dashes) in enumerate(groups):
        members = predicted[group]
        for tick in ticks:
            below.text(tick, -row, str((members["time"] >= tick).sum()), ha="center", va="center", color=colour)
        if not members.empty:
            _kaplan_meier(axes, members, colour, dashes, name)
    axes.set(xlim=(0, end * 1.02), ylim=(0, 1.03), xticks=ticks, ylabel="share free of the event")
    axes.tick_params(labelbottom=True)
    axes.set_xlabel(AHEAD)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.08))
    lines = [f"hazard ratio {interval(metrics['hazard_ratio'], 1)}"]
    if metrics["risk_groups"]["log_rank_p"] is not None:
        lines.append(f"log-rank {p_value(metrics['risk_groups']['log_rank_p'])}")
    axes.text(0.03, 0.04, "\n".join(lines), transform=axes.transAxes, fontsize=8)
    below.set(ylim=(-1.6, 0.6), title="at risk")
    below.set_yticks([0, -1], [name for name, *_ in groups])
    below.spines[:].set_visible(False)
    below.tick_params(length=0, pad=14, labelbottom=False)
    return figure


def _kaplan_meier(axes: Axes, members: pd.DataFrame, colour: str, dashes: str, label: str) -> None:
    """Draw the curve of a group with its 95 % band, and a tick where a subject was last seen."""
    curve = KaplanMeierFitter().fit(members["time"], members["event"])
    line, band = curve.survival_function_.iloc[:, 0], curve.confidence_interval_
    axes.step(line.index, line, where="post", color=colour, linestyle=dashes, label=label)
    axes.fill_between(band.index, band.iloc[:, 0], band.iloc[:, 1], step="post", color=colour, alpha=0.15, lw=0)
    censored = members.loc[~members["event"], "time"]
    axes.plot(censored, curve.predict(censored), "|", color=colour, markersize=5)


# ---- Calibration and time --------------------------------------------------------------------------------
@STYLED
def calibration(metrics: Mapping[str, Any]) -> Figure:
    """Observed against predicted risk at each horizon, in groups of predicted risk.

    Args:
        metrics: figures of a part: `calibration`, by horizon (years).
    Returns:
        A panel a horizon; both axes are probabilities, 0 to 1.
    """
    horizons = list(metrics["calibration"].items())
    figure = _figure(2.75, width=min(WIDTH, 0.4 + 2.2 * len(horizons)))
    panels = figure.subplots(1, len(horizons), squeeze=False, sharey=True)[0]
    for axes, (year, figures) in zip(panels, horizons, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for group in figures["groups"]:
            observed = group["observed"]
            if observed["value"] is None:
                continue
            x, y = group["predicted"], observed["value"]
            axes.plot([x, x], [observed["low"], observed["high"]], color=BLUE, linewidth=1, clip_on=False)
            axes.plot(x, y, "o", color=BLUE, markersize=5, clip_on=False)
        lines = [f"{name} {interval(figures[name])}" for name in ("slope", "intercept")]
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
        curves: of `metrics.over_time`: estimates by year.
        without_model: Brier scores by year of one curve for everyone, the training part's Kaplan-Meier.
        horizons: years to mark.
    Returns:
        A panel each, over years after the prediction.
    """
    figure = _figure(2.7)
    left, right = figure.subplots(1, 2)
    _band(left, curves["auc"], BLUE, "-", "history (stage 2)")
    left.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    left.text(1, 0.5, "chance", color=GREY, fontsize=8, ha="right", va="bottom", transform=left.get_yaxis_transform())
    left.set(ylim=(min(0.4, left.get_ylim()[0]), 1), ylabel="AUC", title="discrimination (higher is better)")
    _band(right, without_model, GREY, "--", "the same curve for everyone", band=False)
    _band(right, curves["brier"], BLUE, "-", "history (stage 2)")
    right.set(ylim=(0, None), ylabel="Brier score", title="error (lower is better)")
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set(xlabel=AHEAD, xlim=(0, None))
        for year in horizons:
            axes.axvline(year, color="0.85", linewidth=0.8, zorder=0)
    return figure


def _band(axes: Axes, by_year: Mapping[str, Any], colour: str, dashes: str, label: str, *, band: bool = True) -> None:
    """Draw the estimates that have a value, with their 95 % band."""
    known = {float(year): estimate for year, estimate in by_year.items() if estimate["value"] is not None}
    years = list(known)
    axes.plot(years, [estimate["value"] for estimate in known.values()], dashes, color=colour, label=label)
    if band:
        low, high = ([estimate[end] for estimate in known.values()] for end in ("low", "high"))
        axes.fill_between(years, low, high, color=colour, alpha=0.15, linewidth=0)


# ---- Subjects --------------------------------------------------------------------------------------------
@STYLED
def individuals(predicted: pd.DataFrame, visits: Mapping[str, Sequence[float]]) -> Figure:
    """Survival curves of four subjects from the highest to the lowest risk, a curve for each landmark of theirs.

    Args:
        predicted: `subject, landmark, time, event, log_hazard, survival_<year>...` of the test part; times in years.
        visits: of each subject, years from baseline.
    Returns:
        A panel a subject, over years from baseline.
    """
    last = predicted.sort_values("landmark").groupby("subject").tail(1).sort_values("log_hazard", ascending=False)
    shown = last.iloc[np.unique(np.linspace(0, len(last) - 1, NUM_INDIVIDUALS).round().astype(int))]
    ahead = np.array([0.0, *read_curves(shown)[0]])  # (1 + T,) years
    end = float(max((shown["landmark"] + shown["time"]).max(), (shown["landmark"]).max() + ahead[-1]))
    figure = _figure(2.4)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, (place, (_, subject)) in zip(panels, enumerate(shown.iterrows()), strict=True):
        rows = predicted[predicted["subject"] == subject["subject"]].sort_values("landmark")
        curves = enumerate(zip(rows["landmark"], read_curves(rows)[1], strict=True), start=1)
        for number, (landmark, survival) in curves:
            axes.plot(landmark + ahead, [1.0, *survival], color=BLUE, alpha=number / len(rows))
        if times := visits.get(subject["subject"]):  # matplotlib cannot lay out an empty line that is not clipped
            axes.plot(times, np.full(len(times), 0.02), "^", color=BLACK, markersize=4, clip_on=False)
        _mark_outcome(axes, subject, end)
        title = PLACES[place] if len(shown) == NUM_INDIVIDUALS else ""
        axes.set(xlim=(0, 1.03 * end), ylim=(0, 1.12), xlabel="years from baseline")
        axes.set_title(f"{shorten(subject['subject'])}\n{title}".strip(), fontsize=8)
    panels[0].set_ylabel("predicted share free\nof the event")
    return figure


def _mark_outcome(axes: Axes, subject: pd.Series, end: float) -> None:
    """A vertical line where the subject's event came, or where it was last seen; `end` is that of the axis, years."""
    until = subject["landmark"] + subject["time"]
    colour, word = (VERMILION, "event") if subject["event"] else (GREY, "last seen")
    axes.axvline(until, color=colour, linestyle="--" if subject["event"] else ":", linewidth=1.2)
    side = "right" if until > end / 2 else "left"
    axes.text(until, 1.05, f" {word} ", color=colour, ha=side, in_layout=False)


@STYLED
def attention(predicted: pd.DataFrame, cut: float) -> Figure:
    """Attention weights by visit, counted back from the last, of the two risk groups.

    Args:
        predicted: `log_hazard, attention_<visit>...` of the test part, a row a subject; NaN where there is no visit.
        cut: log-hazard above which a subject is of the high-risk group.
    Returns:
        Two boxes a visit: shares of the attention, 0 to 1.
    """
    names = [name for name in predicted.columns if name.startswith(ATTENTION_COLUMN)]
    weights = predicted[names].to_numpy(float)  # (N, V)
    num_visits = (~np.isnan(weights)).sum(axis=1)  # (N,)
    most = weights.shape[1]
    from_last = [weights[np.arange(len(weights)), np.maximum(num_visits - 1 - step, 0)] for step in range(most)]
    high = (predicted["log_hazard"] > cut).to_numpy()
    figure = _figure(2.7, width=min(WIDTH, 2.2 + 0.9 * most))
    axes = figure.subplots()
    for group, colour, offset, label in ((~high, BLUE, -0.18, "low risk"), (high, VERMILION, 0.18, "high risk")):
        for step, values in enumerate(from_last):
            members = values[group & (num_visits > step)]
            if len(members):
                _box(axes, members, offset - step, colour, label if step == 0 else None)
    if len(set(num_visits)) == 1:
        _mark_even_share(axes, 1 / num_visits[0])
    axes.set(xlabel="visit", ylabel="share of the attention", ylim=(0, 1))
    before = " before" if most <= MOST_LABELS else ""
    axes.set_xticks([-step for step in range(most)], ["last", *(f"{step}{before}" for step in range(1, most))])
    if not before:
        axes.set_xlabel("visit, counted back from the last")
    axes.legend(loc="upper left")
    return figure


def _box(axes: Axes, values: np.ndarray, position: float, colour: str, label: str | None) -> None:
    boxes = axes.boxplot(
        values,
        positions=[position],
        widths=0.3,
        patch_artist=True,
        medianprops={"color": BLACK},
        boxprops={"facecolor": colour, "alpha": 0.5, "edgecolor": colour},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
    )
    if label is not None:
        boxes["boxes"][0].set_label(label)


def _mark_even_share(axes: Axes, share: float) -> None:
    """A dotted line at the weight that each visit would have if all had the same."""
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1)
    whole_width = axes.get_yaxis_transform()
    axes.text(1, share, "even", color=GREY, fontsize=8, va="bottom", ha="right", transform=whole_width)


# ---- The cohort ------------------------------------------------------------------------------------------
@STYLED
def cohort(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """From all scans to the parts; the visits a subject, and the follow-up.

    Args:
        parts: by part `subject, time` (years from baseline), `event`, a row a scan; or a row a visit without `scan`.
    Returns:
        Three panels; the follow-up is in years.
    """
    figure = _figure(2.9)
    flow, bars, follow_up = figure.subplots(1, 3, width_ratios=[1.6, 1, 1.2])
    _flow(flow, parts)
    whole = pd.concat(parts.values())
    columns = {"visits": ("time", "size"), "time": ("time", "first"), "event": ("event", "first")}
    per_subject = whole.groupby("subject").agg(**columns)
    counts = per_subject["visits"].value_counts().sort_index()
    bars.bar(counts.index, counts, color=SKY, edgecolor=BLUE, width=0.8)
    bars.set(xlabel="visits of a subject", ylabel="subjects", title="visits")
    bars.set_xlim(counts.index.min() - 1, counts.index.max() + 1)
    bars.xaxis.set_major_locator(MaxNLocator(integer=True))
    edges = np.linspace(0, math.ceil(per_subject["time"].max()), 13)
    times = [per_subject.loc[per_subject["event"], "time"], per_subject.loc[~per_subject["event"], "time"]]
    shown = follow_up.hist(times, edges, stacked=True, color=[VERMILION, "white"], edgecolor=BLACK, linewidth=0.6)
    follow_up.legend(shown[2], ["event", "last seen"])
    follow_up.set(xlabel="years from baseline", ylabel="subjects", title="follow-up")
    return figure


def _flow(axes: Axes, parts: Mapping[str, pd.DataFrame]) -> None:
    """Boxes: all subjects, and arrows from them to the parts."""
    _count_box(axes, 0, 0.37, "read", pd.concat(parts.values()), BLACK)
    for number, (part, colour) in enumerate(PART_COLOURS.items()):
        y = 0.74 - 0.37 * number
        _count_box(axes, 0.6, y, "validation" if part == "val" else part, parts[part], colour)
        axes.annotate("", (0.58, y + 0.13), (0.44, 0.5), arrowprops={"arrowstyle": "-|>", "color": BLACK, "lw": 0.8})
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.03), title="cohort")
    axes.set_axis_off()


def _count_box(axes: Axes, x: float, y: float, name: str, table: pd.DataFrame, colour: str) -> None:
    """A box with the numbers of subjects, events and scans of a table, a row a scan, or of visits without scans."""
    event = table.groupby("subject")["event"].first()
    rows = "scans" if "scan" in table else "visits"
    text = f"{name}\n{len(event)} subjects\n{int(event.sum())} events\n{len(table)} {rows}"
    style = "round,pad=0.02"
    axes.add_patch(FancyBboxPatch((x, y), BOX_WIDTH, BOX_HEIGHT, boxstyle=style, fc="white", ec=colour, lw=1.2))
    axes.text(x + BOX_WIDTH / 2, y + BOX_HEIGHT / 2, text, ha="center", va="center", fontsize=7)


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure((width, height), layout="constrained")
