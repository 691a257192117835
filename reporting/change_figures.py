"""The figures of change: how the rates of subjects differ, and the lines of some of them. In the style of `figures`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from reporting.figures import BLACK, BLUE, GREY, SKY, STYLED, VERMILION, WIDTH
from reporting.words import interval, shorten
from survival.change import MEASURE, Population, Z

ROWS, COLUMNS = 2, 4  # of the panels of single subjects
SHOWN = (0.002, 0.998)  # quantiles of the courses that the axis reaches at least
INK = 40.0  # courses that would be drawn opaque; more are drawn lighter


@STYLED
def courses_and_rates(change: pd.DataFrame, visits: pd.DataFrame, population: Population) -> Figure:
    """The courses of all subjects, and their rates in order.

    Args:
        change: of `change_table`, in memory's columns: a row a subject, with rates; some with two visits.
        visits: `subject, visit_time` (years) and MEASURE of the same subjects, sorted by subject and visit.
        population: of the training subjects.
    Returns:
        Left, progress since the first visit; right, each subject's rate with its interval, from the slowest, and its
        own slope.
    """
    figure = Figure((WIDTH, 2.9), layout="constrained")
    courses, ordered = figure.subplots(1, 2)
    by_subject = visits[["visit_time", MEASURE]].groupby(visits["subject"], sort=False)
    since = visits[["visit_time", MEASURE]] - by_subject.transform("first")
    paths = [path.to_numpy() for _, path in since.groupby(visits["subject"], sort=False) if len(path) > 1]
    opacity = float(np.clip(INK / len(paths), 0.15, 0.8))
    courses.add_collection(LineCollection(paths, colors=BLUE, alpha=opacity, linewidths=0.8))
    end, (low, high) = float(since["visit_time"].max()), np.quantile(since[MEASURE], SHOWN)
    reach = Z * population.noise
    bottom = min(low, 0) - 3 * reach
    courses.plot([0, end], [0, population.mean_rate * end], color=BLACK, label="mean rate, training part")
    bar = courses.errorbar(0.95 * end, bottom + 1.5 * reach, reach, color=VERMILION, capsize=3)
    bar.set_label("noise of a scan, 95 %")
    courses.set(xlim=(0, end), ylim=(bottom, high + 3 * reach))
    courses.set(xlabel="years since the first visit", ylabel="progress since then, years", title="courses")
    courses.legend(loc="upper left")
    _rates_in_order(ordered, change.sort_values("rate", kind="stable"), population.mean_rate)
    return figure


def _rates_in_order(axes: Axes, change: pd.DataFrame, mean_rate: float) -> None:
    """Rates of the subjects of a sorted table, with their intervals and own slopes."""
    order = np.arange(1, len(change) + 1)
    reach = [change["rate"] - change["rate_low"], change["rate_high"] - change["rate"]]
    rates = axes.errorbar(order, change["rate"], reach, fmt=".", color=BLUE, ecolor=(SKY, 0.5), markersize=3)
    rates.set_label("rate, with 95 % interval")
    axes.plot(order, change["own_slope"], ".", color=GREY, markersize=2.5, zorder=2.5, label="own slope")
    axes.axhline(mean_rate, color=BLACK, linestyle="--", linewidth=1)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="subjects, from the slowest", ylabel="years of progress a year", title="rates")
    axes.legend(loc="upper left")


@STYLED
def lines(change: pd.DataFrame, visits: pd.DataFrame, population: Population) -> Figure:
    """The lines of some subjects, from the slowest to the fastest.

    Args:
        change: as for `courses_and_rates`; those with one visit are left out.
        visits: as for `courses_and_rates`.
        population: of the training subjects.
    Returns:
        A panel a subject, over years from baseline: progress about the mean of its visits, with the noise of a scan,
        its own least-squares line, and the line of its rate with the interval.
    """
    ranked = change[change["num_visits"] > 1].sort_values("rate", kind="stable")
    rows = np.unique(np.linspace(0, len(ranked) - 1, ROWS * COLUMNS).round().astype(int))
    times = {subject: group for subject, group in visits.groupby("subject", sort=False)}
    figure = Figure((WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(ROWS, COLUMNS, sharex=True, sharey=True)
    for axes in panels.flat[len(rows) :]:
        axes.set_axis_off()
    for axes, (_, subject) in zip(panels.flat, ranked.iloc[rows].iterrows(), strict=False):
        _line(axes, subject, times[subject["subject"]], population.noise)
    panels[0, 0].legend(loc="upper left")
    figure.supxlabel("years from baseline", fontsize=9)
    figure.supylabel("progress about the subject's mean, years", fontsize=9)
    return figure


def _line(axes: Axes, subject: pd.Series, visits: pd.DataFrame, noise: float) -> None:
    """One subject's visits, its own line, and the line of its rate."""
    years, values = visits["visit_time"].to_numpy(float), visits[MEASURE].to_numpy(float)
    t = years - years.mean()
    low, high = np.sort([subject["rate_low"] * t, subject["rate_high"] * t], axis=0)
    axes.fill_between(years, low, high, color=SKY, alpha=0.35, linewidth=0)
    axes.plot(years, subject["rate"] * t, color=BLUE, label="rate")
    axes.plot(years, subject["own_slope"] * t, "--", color=GREY, linewidth=1.2, label="own line")
    axes.errorbar(years, values - values.mean(), Z * noise, fmt="o", color=BLACK, markersize=3, linewidth=0.8)
    rate = {"value": subject["rate"], "low": subject["rate_low"], "high": subject["rate_high"]}
    axes.set_title(f"{shorten(subject['subject'])}\n{interval(rate)}", fontsize=8)
