"""The figures of the page, each with its title and caption: what a run has is drawn, the rest is left out."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cohort.splits import PARTS
from reporting import figures
from reporting.run_folder import RunFolder
from reporting.words import interval, p_value
from survival import metrics
from survival.estimands import Prediction
from survival.estimates import Reference, breslow, survival_curves

CAPTIONS = {
    "cohort": "Subjects, not scans, are split. A row that cannot be used stops a run, so no scan was left out.",
    "cohort_of_visits": "Subjects, not visits, are split. A row that cannot be used stops a run.",
    "training": (
        "Dashed: the epoch whose weights were kept, of one scan the one that KEEP_EPOCH asks for, of the "
        "history that with the lowest validation loss (mean of the seeds; epoch 0 is before any step). "
        "A loss depends on how many subjects it is over: compare the course of two, not their height."
    ),
    "risk_groups": (
        "Kaplan-Meier curves of the test part with 95 % bands (ticks: last seen). The groups are cut at the training "
        "part's median log-hazard, {cut:.2f}. {difference}"
    ),
    "calibration": (
        "Of the test part, in groups of predicted risk, with 95 % intervals. On the dotted line observed and predicted "
        "risk agree. A slope below 1: predictions are too extreme; an intercept above 0: they are too low. "
        "D-calibration: {p} (a low p: the curves are not calibrated)."
    ),
    "over_time": (
        "Test part, with 95 % bands; points where nothing can be estimated are left out. The dashed curve is what "
        "a model without any input reaches: the training part's Kaplan-Meier for everyone."
    ),
    "individuals": (
        "Predicted curves of four test subjects, from the highest risk to the lowest, each drawn anew at every visit "
        "(triangles): the darkest is that of the last one."
    ),
    "attention": (
        "Attention weights of the test part's visits, by risk group: medians, quartiles, and the farthest values "
        "within 1.5 interquartile ranges. A weight tells where the model looked, not what it found there."
    ),
}


@dataclass(frozen=True)
class PageFigure:
    """A figure as the page shows it."""

    name: str  # of its files
    title: str
    caption: str
    figure: Figure
    section: str = "figures"  # of the page, where it stands

    def of(self, view: str) -> "PageFigure":
        """The same figure as one of a view of the run."""
        return dataclasses.replace(self, name=f"{self.name}_{view.replace(' ', '_')}", title=f"{self.title}, {view}")


def draw_figures(run: RunFolder) -> Iterator[PageFigure]:
    """Draw every figure that a run has the data for, in the order of the page.

    Args:
        run: what the run's folder holds, times in years.
    Yields:
        One figure at a time, not saved yet.
    """
    if len(run.splits) == len(PARTS):
        caption = CAPTIONS["cohort_of_visits" if run.is_of_table else "cohort"]
        yield PageFigure("cohort", "The cohort", caption, figures.cohort(run.splits))
    if run.cnn_history is not None or run.tlstm_history is not None:
        figure = figures.training(run.cnn_history, run.tlstm_history)
        yield PageFigure("training", "Training", CAPTIONS["training"], figure)
    for where, view in run.views.items():
        if view.predicted is not None and view.stage2_test is not None:
            drawn = _test_figures(view, view.stage2_test)
            yield from (shown.of(where) for shown in drawn) if where else drawn


def _test_figures(run: RunFolder, test_metrics: dict[str, Any]) -> Iterator[PageFigure]:
    """The figures of stage 2's predictions for the test part."""
    test, cut = run.predictions_of("test"), test_metrics["risk_groups"]["cut"]
    caption = CAPTIONS["risk_groups"].format(cut=cut, difference=_difference_in_years(test_metrics))
    yield PageFigure("risk_groups", "Risk groups", caption, figures.risk_groups(test, test_metrics))
    caption = CAPTIONS["calibration"].format(p=p_value(test_metrics["d_calibration"]["p"]))
    yield PageFigure("calibration", "Calibration", caption, figures.calibration(test_metrics))
    horizons = [float(year) for year in test_metrics["auc"]]
    figure = figures.over_time(*_over_time(run), horizons)
    yield PageFigure("over_time", "Discrimination and error over time", CAPTIONS["over_time"], figure)
    by_visit = test if run.predicted_by_visit is None else run.predicted_by_visit
    figure = figures.individuals(by_visit, run.visit_times("test"))
    yield PageFigure("individuals", "Four subjects", CAPTIONS["individuals"], figure)
    if not run.has_idle_network and any(name.startswith(figures.ATTENTION_COLUMN) for name in test.columns):
        yield PageFigure("attention", "Attention", CAPTIONS["attention"], figures.attention(test, cut))


def _difference_in_years(test_metrics: dict[str, Any]) -> str:
    gain = test_metrics["rmst_difference"]
    if gain["value"] is None:
        return ""
    return f"Within {gain['years']:.1f} years, the low-risk group is free of the event for {interval(gain)} years more."


def _over_time(run: RunFolder) -> tuple[dict, dict]:
    """AUC and Brier score of stage 2 by grid point; the Brier score of one curve for everyone."""
    train = run.predictions_of("train")
    reference, ours = Reference.of(train), Prediction.of(run.predictions_of("test"))
    baseline = breslow(np.zeros(len(train)), reference.time, reference.event)
    same_for_all = survival_curves(baseline, np.zeros(len(ours.time)), ours.grid)  # (N, T)
    by_year, by_year_without_model = (
        metrics.over_time(prediction, reference, num_resamples=run.setting("NUM_RESAMPLES"), seed=run.setting("SEED"))
        for prediction in (ours, dataclasses.replace(ours, survival=same_for_all))
    )
    return by_year, by_year_without_model["brier"]
