"""How good one model's predictions are for the subjects of one part: survival metrics with 95 % intervals.

A higher log-hazard means an earlier event. Times are years from the landmark. An estimate is
`{"value", "low", "high"}`, with a `note` where something was left out and `why` where there is no value.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from survival.bootstrap import INTERVAL, Estimate, draw_resamples, estimate
from survival.calibration import d_calibration
from survival.estimands import Estimands, Prediction
from survival.estimates import Reference

MAX_GROUPS = 10  # of predicted risk in a calibration: deciles
MIN_GROUP_SIZE = 10  # subjects in such a group
VALUE_ALONE = 2  # resamples where an interval is not read


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How predictions are evaluated."""

    horizons: tuple[float, ...]  # ascending years at which AUC, Brier score and calibration are given
    num_resamples: int  # of the bootstrap of the subjects
    seed: int  # of the bootstrap


def evaluate(prediction: Prediction, reference: Reference, settings: EvaluationSettings) -> dict:
    """Every figure of one model on one part, with 95 % percentile intervals of a subject bootstrap.

    Some figures need the censoring of the training part, G (its Kaplan-Meier). They use the grid points at which G is
    known and positive and that lie within the follow-up of the part itself: the usable ones.

    Args:
        prediction: of the part's N subjects; its grid contains the horizons.
        reference: the training part's outcomes and median log-hazard. It is not resampled.
        settings: horizons in years, resamples, seed.
    Returns:
        `n`, `events`, and
        `c_index`: Harrell's C, see `concordance`.
        `uno_c`: Uno's C up to the last usable grid point; an event at t has the weight 1/G(t)^2.
        `auc`: by horizon; subjects with the event by then (weight 1/G) against those event-free after it.
        `brier`: by horizon; the mean squared error, weighted by 1/G at the event or at the horizon.
        `ibs`: the integral of the Brier score (trapezoids) over the grid, divided by its years; without a value if
        the last grid point is not usable.
        `hazard_ratio`: Cox, Efron ties; subjects above the training median against the others.
        `rmst_difference`: event-free years of the low-risk less the high-risk group, within `years`.
        `risk_groups`: size and events of each group, `cut`, log-rank p.
        `calibration`: by horizon; `slope` and `intercept` (see `_calibration`) and the groups of predicted risk.
        `d_calibration`: see `calibration.d_calibration`.
    Raises:
        ValueError: a horizon is not on the grid.
    Source: Harrell et al. (1996); Uno et al. (2007, 2011); Graf et al. (1999); Royston and Parmar (2013);
        Haider et al. (2020). Checked against scikit-survival, lifelines and torchsurv.
    """
    estimands = Estimands(prediction, reference, settings.horizons)
    resamples = draw_resamples(len(prediction.time), settings.num_resamples, settings.seed)
    return {
        "n": len(prediction.time),
        "events": int(prediction.event.sum()),
        "c_index": estimate(estimands.c_index(), resamples),
        "uno_c": estimate(estimands.uno_c(), resamples),
        "auc": {str(year): estimate(estimands.auc(year), resamples) for year in estimands.horizons},
        "brier": {str(year): estimate(estimands.brier(year), resamples) for year in estimands.horizons},
        "ibs": estimate(estimands.ibs(), resamples),
        "hazard_ratio": estimate(estimands.hazard_ratio(), resamples),
        "rmst_difference": {**estimate(estimands.rmst_difference(), resamples), "years": estimands.compared_until},
        "risk_groups": _risk_groups(estimands),
        "calibration": {str(year): _calibration(estimands, year, resamples) for year in estimands.horizons},
        "d_calibration": d_calibration(prediction.survival, prediction.grid, prediction.time, prediction.event),
    }


def over_time(
    prediction: Prediction, reference: Reference, *, num_resamples: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """AUC and Brier score at every grid point, see `evaluate`.

    Args:
        prediction: of N subjects at T years.
        reference: the training part's outcomes.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    Returns:
        `{"auc": {"0.25": estimate, ...}, "brier": {...}}`.
    """
    estimands = Estimands(prediction, reference, tuple(prediction.grid))
    resamples = draw_resamples(len(prediction.time), num_resamples, seed)
    return {
        "auc": {str(year): estimate(estimands.auc(year), resamples) for year in estimands.horizons},
        "brier": {str(year): estimate(estimands.brier(year), resamples) for year in estimands.horizons},
    }


def compare(first: Prediction, second: Prediction, reference: Reference, settings: EvaluationSettings) -> dict:
    """The first model's figures less the second's for the same subjects, on the same resamples (paired bootstrap).

    Args:
        first: of N subjects.
        second: of the same subjects in the same order; the outcomes are taken from `first`.
        reference: the training part's outcomes; its cut is not used.
        settings: horizons in years, resamples, seed.
    Returns:
        `c_index`, `uno_c`, `auc` by horizon, `ibs`, each an estimate. Above 0 the first is better; for `ibs`, below 0.
    Raises:
        ValueError: another number of subjects, or a horizon that is not on a grid.
    """
    second = dataclasses.replace(second, time=first.time, event=first.event)
    ours, rival = (Estimands(prediction, reference, settings.horizons) for prediction in (first, second))
    resamples = draw_resamples(len(first.time), settings.num_resamples, settings.seed)
    return {
        "c_index": estimate(ours.c_index().minus(rival.c_index()), resamples),
        "uno_c": estimate(ours.uno_c().minus(rival.uno_c()), resamples),
        "ibs": estimate(ours.ibs().minus(rival.ibs()), resamples),
        "auc": {str(year): estimate(ours.auc(year).minus(rival.auc(year)), resamples) for year in ours.horizons},
    }


def _risk_groups(estimands: Estimands) -> dict:
    """Sizes of the two risk groups and the log-rank p of their difference."""
    from lifelines.statistics import logrank_test  # slow to import, and callbacks want the C-index alone

    time, event, high = estimands.prediction.time, estimands.prediction.event, estimands.high
    low = ~high
    groups: dict = {
        "low": {"n": int(low.sum()), "events": int(event[low].sum())},
        "high": {"n": int(high.sum()), "events": int(event[high].sum())},
        "cut": float(estimands.reference.cut),
    }
    if high.all() or low.all() or not event.any():
        return groups | {"log_rank_p": None, "why": estimands.why_no_groups()}
    test = logrank_test(time[high], time[low], event[high], event[low])
    return groups | {"log_rank_p": float(test.p_value)}


# ---- Calibration -----------------------------------------------------------------------------------
def _calibration(estimands: Estimands, year: float, resamples: np.ndarray) -> dict:
    """Whether the predicted risks at `year` are right.

    A slope of 1 is right; below 1, the predictions are too extreme. An intercept of 0 is right; above 0, the risks are
    too low. `groups` of predicted risk, deciles from 100 subjects on, give the mean prediction and 1 - Kaplan-Meier.
    """
    return {
        "slope": estimate(estimands.calibration_slope(year), resamples),
        "intercept": estimate(estimands.calibration_intercept(year), resamples),
        "groups": list(_calibration_groups(estimands, year, resamples)),
    }


def _calibration_groups(estimands: Estimands, year: float, resamples: np.ndarray) -> Iterator[dict]:
    """Groups of predicted risk, from the lowest to the highest: predicted and observed risk at `year`."""
    risk = 1 - estimands.prediction.survival_at(year)
    num_groups = int(np.clip(len(risk) // MIN_GROUP_SIZE, 1, MAX_GROUPS))
    for members in np.array_split(np.argsort(risk, kind="stable"), num_groups):
        time, event = estimands.prediction.time[members], estimands.prediction.event[members]
        observed = estimate(estimands.observed_risk(members, year), resamples)
        if observed["value"] in (0, 1):
            observed |= _exact_limits(bool(observed["value"]), int(((time >= year) | event).sum()))
        yield {
            "n": len(members),
            "events": int(event.sum()),
            "predicted": float(risk[members].mean()),
            "observed": observed,
        }


def _exact_limits(everyone: bool, num_known: int) -> Estimate:
    """Exact binomial limits of a group in which nobody or everyone had the event: its resamples don't vary."""
    unseen = 1 - INTERVAL[0] ** (1 / num_known)
    note = f"{'everyone' if everyone else 'nobody'} of {num_known} with a known outcome had the event: exact limits"
    return {"low": 1 - unseen if everyone else 0.0, "high": 1.0 if everyone else unseen, "note": note}
