"""The page's section on change: how well it is measured, each subject's line, and where progress is read."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from reporting import change_figures
from reporting.page_figures import PageFigure
from reporting.run_folder import RunFolder
from reporting.words import MINUS, interval
from survival.change import TABLE
from survival.change_metrics import OF_PAIRS, SHORT

MEASURES = {"progress": "progress, years", "log_hazard": "log-hazard", "brain_volume": "brain volume, ml"}
ROWS = (  # of the table, in the order of `_estimates`
    *("mean rate, a year", "spread of the true rates (standard deviation)", "noise of a scan (standard deviation)"),
    *("change beyond the noise of two scans, in years of the mean rate", "rates of the two halves: correlation"),
    *("… if every course were straight", "… intraclass correlation", "subjects an arm to see 25 % slowing"),
)
FOLDER = "explained_progress"  # of the stage explain
MOST_REGIONS = 6
LEAST_DRAWN = 2  # subjects with two visits
CAPTIONS = {
    "courses": (
        "Test part. Left: progress of every subject since the first visit; the bar shows what the noise of one scan "
        "alone makes of it. Right: the rate of each subject, its own slope shrunken to the training subjects' mean "
        "(dashed) as far as the noise says, with the 95 % interval of its true rate."
    ),
    "lines": (
        "Test subjects from the slowest to the fastest. Points: scans, with the noise of a scan (95 %). Dashed: the "
        "subject's own least-squares line. Blue: its rate, written above, with the 95 % interval."
    ),
}


class Inlines(Protocol):
    """Takes pictures into the page while there is room."""

    def uri(self, path: Path) -> str | None:
        """A picture as a data URI; None if there is no room for it."""


def draw_change(run: RunFolder) -> Iterator[PageFigure]:
    """Draw the figures of the section, if the run has rates of two test subjects.

    Args:
        run: what the run's folder holds.
    Yields:
        One figure at a time, not saved yet.
    """
    if run.change is None or run.progress is None or run.population is None:
        return
    test = run.change[run.change["split"] == "test"]
    if (test["num_visits"] > 1).sum() < LEAST_DRAWN:
        return
    drawn = (
        ("courses", "Courses and rates", change_figures.courses_and_rates),
        ("lines", "Lines of some subjects", change_figures.lines),
    )
    for name, title, draw in drawn:
        figure = draw(test, run.progress, run.population)
        yield PageFigure(f"change_{name}", title, CAPTIONS[name], figure, section="change")


def change_section(run: RunFolder, inlined: Inlines) -> dict[str, Any] | None:
    """What the section shows besides its figures.

    Args:
        run: what the run's folder holds.
        inlined: takes the picture of the map.
    Returns:
        `measures`, the columns of a table, its `rows`, `notes` to it, `words` about it, each a list; `map`, or None.
        None: the run has not measured change.
    """
    figures = run.metrics.get("change")
    if figures is None:
        return None
    columns, notes = {}, []
    for measure in figures["rate"]:
        name, mean = MEASURES.get(measure, measure), figures["rate"][measure]["mean"]
        if mean["value"] is None:
            notes.append(f"Left out: {name.split(',')[0]}, since {mean['why']}.")
            continue
        estimates = _estimates(figures, measure)
        columns[name] = [_cell(estimate, digits) for estimate, digits in estimates]
        notes += [f"{name.split(',')[0].capitalize()}: {text}." for text in _remarks(estimates)]
    words = [*_words(figures), *_about_rates(run)]
    rows = list(zip(ROWS, *columns.values(), strict=True)) if columns else []
    return {
        "measures": list(columns),
        "rows": rows,
        "notes": notes,
        "words": words,
        "map": _map(run.folder / FOLDER, figures["map"], inlined),
    }


def _estimates(figures: Mapping[str, Any], measure: str) -> list[tuple[Mapping[str, Any], int]]:
    """The estimates of a measure in the order of ROWS, each with its digits after the point."""
    rate, noise = figures["rate"][measure], figures["repeatability"][measure]
    halves, size = figures["consistency"][measure], dict(figures["sample_size"][measure])
    size |= {end: math.ceil(size[end]) for end in ("value", "low", "high") if size[end] is not None}
    return [
        *((rate[name], 2) for name in ("mean", "sd")),
        *((noise[name], 2) for name in ("within_sd", "years")),
        *((halves[name], 2) for name in ("correlation", "expected", "icc")),
        (size, 0),
    ]


def _cell(estimate: Mapping[str, Any], digits: int) -> tuple[str, str]:
    """An estimate's value and its interval, as the table shows them."""
    value, _, limits = interval(estimate, digits).partition(" ")
    return value, limits


def _remarks(estimates: list[tuple[Mapping[str, Any], int]]) -> list[str]:
    """Why estimates of a measure have no value, and what is to be known of the others."""
    about = [estimate.get("why") or estimate.get("note") for estimate, _ in estimates]
    return [f"{row}: {text}" for row, text in zip(ROWS, about, strict=True) if text]


def _words(figures: Mapping[str, Any]) -> Iterator[str]:
    """How the figures were computed, in sentences."""
    yield (
        f"Measured in the test part: {figures['subjects']} subjects, {figures['two_visits']} of them with two visits "
        f"or more, {figures['three_visits']} with three. Intervals are 95 %, from resampled subjects."
    )
    yield (
        "Rates are of lines through each subject's visits; the spread of the true rates is that of the slopes less "
        "their noise. " + _source_of_noise(figures) + " Two scans of an unchanged subject differ by less than 1.96 √2 "
        "times the noise in 95 % (the coefficient of repeatability): only more is a change beyond the noise."
    )
    yield (
        "Halves: the slope of the first half of a subject's visits against that of the second, if each spans "
        f"{SHORT:g} years. With an odd number of visits both have the middle one, whose noise makes them disagree: "
        "compare the correlation with what it would be if every course were straight."
    )
    if figures["years"] is not None:
        yield (
            "Subjects an arm: of a trial that shows a slowing of the mean rate by 25 % with 80 % power (two-sided 5 %, "
            "two means of slopes), with the visits of the median subject, "
            f"{figures['visits']:g} over {figures['years']:.1f} years. Normal ageing is not subtracted: its share of "
            "the rate is not known here. If a treatment can slow only a share s of the rate, the trial needs 1/s² "
            "times as many."
        )


def _source_of_noise(figures: Mapping[str, Any]) -> str:
    """Where the noise is from."""
    sources = figures["repeatability"].values()
    pairs = max(each["pairs"] for each in sources)
    if any(each["source"] == OF_PAIRS for each in sources):
        return f"The noise of a scan is from {pairs} pairs of visits at most {SHORT:g} years apart."
    return (
        f"The noise of a scan is from the distances to the subjects' own lines, since too few visits are at most "
        f"{SHORT:g} years apart; a bend of a course counts as noise."
    )


def _about_rates(run: RunFolder) -> Iterator[str]:
    """What is to be known of the subjects' own rates."""
    if run.change is None:
        yield "Without progress (PROGRESS) there is no rate of a single subject, no line, and no map of change."
        return
    yield (
        f"Level, rate and noise of every subject are in {TABLE}. A penalty pulls progress to 0, so its mean rate lies "
        "below 1: compare rates with each other, not with the calendar. Each scan is measured alone, so the change "
        "from a later scan to an earlier one is exactly as large, with the other sign."
    )
    if not run.metrics["change"]["map"]:
        yield "Where progress is read is shown once the stage explain is done."
    if run.population is None:
        yield "No rates are given: the training subjects have too few visits to tell how rates differ."
    elif single := int((run.change["num_visits"] == 1).sum()):
        yield f"{single} of {len(run.change)} subjects have one visit: their rate is the training subjects'."


# ---- The map -----------------------------------------------------------------------------------------
def _map(folder: Path, evidence: Mapping[str, Any], inlined: Inlines) -> dict[str, Any] | None:
    """The picture of where progress is read, the evidence in sentences, the largest regions; None: it is not there."""
    if not evidence or not (folder / "map.png").is_file():
        return None
    regions = pd.read_csv(folder / "regions.csv").head(MOST_REGIONS)[["region", "attribution"]]
    return {
        "uri": inlined.uri(folder / "map.png"),
        "evidence": list(_evidence(evidence)),
        "regions": [(region, _number(value, 3)) for region, value in regions.itertuples(index=False)],
    }


def _evidence(evidence: Mapping[str, Any]) -> Iterator[str]:
    """What speaks for the map and against it."""
    weights, shuffled = evidence["weights"], evidence["shuffled"]
    yield (
        f"The map sums to the mean rate of the training subjects, {_number(evidence['map']['sum'])} years of progress "
        f"a year, and explains {_number(100 * weights['explained'], 0)} % of a left-out subject's years between "
        f"visits. Learned anew with each subject's visit times shuffled, it sums to {_number(shuffled['sum'])} and "
        f"explains {_number(100 * shuffled['explained'], 0)} %."
    )
    if "localisation" in weights:
        auc = {name: evidence[name]["localisation"]["auc"] for name in ("map", "weights", "change", "shuffled")}
        yield (
            "The truth is known: |map| tells the voxels of the true atrophy from the others with an AUC of "
            f"{auc['map']:.2f}, the weights alone {auc['weights']:.2f}, the mean change alone {auc['change']:.2f}. The "
            f"weights learned from shuffled times have {auc['shuffled']:.2f}; times the mean change they have "
            f"{shuffled['map_localisation']['auc']:.2f}, since the mean change lies there already. What was learned is "
            "seen in the weights and in the sum."
        )


def _number(value: float, digits: int = 2) -> str:
    """A number with so many digits after the point, without a sign before 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)
