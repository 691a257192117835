"""Survival estimates as functions of the subjects' weights; `metrics` adds the intervals.

`weights` is (R, N): R sets of weights for N subjects. A row of ones gives the estimate itself. R rows of multinomial
counts give R bootstrap resamples at once, by matrix products instead of a loop over resamples.
A higher risk means an earlier event. Times are years.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # `metrics` must import fast
    import pandas as pd
    from numpy.typing import ArrayLike

TIED_RISK = 1e-8  # risks closer than this are tied, as in scikit-survival
PAIR_BLOCK = 512  # rows of the matrix of pairs that are in memory at a time
ROUNDING = 1e-9  # sums of weights closer than this are equal
NEWTON_STEPS = 60  # at most
NEWTON_MAX_STEP = 1.0  # longer steps are cut to this: a full step can overshoot the maximum
NEWTON_TOLERANCE = 1e-10  # the search ends at a step shorter than this
Comparable = Callable[[np.ndarray], np.ndarray]  # (B,) subjects -> (B, N) bool: with whom each one is compared


# ---- Survival curves -------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Baseline:
    """Breslow's baseline: the cumulative hazard of a subject whose log-hazard is 0, stored as its logarithm."""

    times: np.ndarray  # (K,) distinct event times in years, ascending
    log_cumulative_hazard: np.ndarray  # (K,)

    @property
    def cumulative_hazard(self) -> np.ndarray:
        """(K,) H0; infinite or 0 where log-hazards of several hundred exceed the range of floats."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_cumulative_hazard)


def breslow(log_hazard: "ArrayLike", time: "ArrayLike", event: "ArrayLike") -> Baseline:
    """Breslow's baseline hazard of the training subjects; finite at log-hazards of +-1000.

    Args:
        log_hazard: (N,) float; higher = earlier event.
        time: (N,) years to the event or censoring.
        event: (N,) bool.
    Returns:
        H0(t): the sum over the event times up to t of (events at that time / sum of exp(log_hazard) at risk).
        Empty if there are no events.
    Raises:
        ValueError: the shapes differ, or a number is not finite.
    Source: Breslow (1972). Checked against lifelines.
    """
    log_hazard, time, event = as_outcomes(log_hazard, time, event)
    latest_first = np.argsort(-time, kind="stable")
    log_at_risk = np.logaddexp.accumulate(log_hazard[latest_first])  # (N,) log sum over the subjects as late or later
    times, num_events = np.unique(time[event], return_counts=True)  # (K,)
    last_at_risk = np.searchsorted(-time[latest_first], -times, side="right") - 1  # (K,) its place in that order
    return Baseline(times, np.logaddexp.accumulate(np.log(num_events) - log_at_risk[last_at_risk]))


def survival_curves(baseline: Baseline, log_hazard: "ArrayLike", at: "ArrayLike") -> np.ndarray:
    """Survival curves S(t|x) = exp(-H0(t) exp(log_hazard)).

    Args:
        baseline: H0 of the training subjects; constant after its last event time.
        log_hazard: (N,).
        at: (T,) years.
    Returns:
        (N, T) probabilities of no event up to each time; 1 before the first event time.
    """
    log_cumulative = np.concatenate([[-np.inf], baseline.log_cumulative_hazard])  # (1 + K,) log H0
    log_h0 = log_cumulative[np.searchsorted(baseline.times, np.asarray(at, float), side="right")]  # (T,)
    with np.errstate(over="ignore"):  # an infinite hazard gives a survival of 0
        return np.exp(-np.exp(np.asarray(log_hazard, float)[:, None] + log_h0))


def kaplan_meier(weights: np.ndarray, time: np.ndarray, event: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Kaplan-Meier survival.

    Args:
        weights: (R, N).
        time: (N,) years.
        event: (N,) bool.
        at: (T,) years.
    Returns:
        (R, T) survival, 0 to 1; constant after the last event time.
    Source: Kaplan and Meier (1958). Checked against lifelines.
    """
    times = np.unique(time[event])
    return _kaplan_meier_steps(weights, time, event, times)[:, np.searchsorted(times, at, side="right")]


def restricted_mean(weights: np.ndarray, time: np.ndarray, event: np.ndarray, until: float) -> np.ndarray:
    """Restricted mean survival time: the area under the Kaplan-Meier curve.

    Args:
        weights: (R, N).
        time: (N,) years.
        event: (N,) bool.
        until: years; the area is that from 0 to here.
    Returns:
        (R,) years.
    Source: Royston and Parmar (2013). Checked against lifelines.
    """
    times = np.unique(time[event & (time < until)])
    curve = _kaplan_meier_steps(weights, time, event, times)
    return curve @ np.diff(np.concatenate([[0.0], times, [until]]))


def _kaplan_meier_steps(weights: np.ndarray, time: np.ndarray, event: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(R, 1 + K): 1, then Kaplan-Meier just after each of the K event times."""
    num_events = weights @ ((time[:, None] == times) & event[:, None]).astype(float)  # (R, K)
    at_risk = weights @ (time[:, None] >= times).astype(float)
    curve = np.cumprod(1 - ratio(num_events, at_risk, empty=0.0), axis=1)
    return np.concatenate([np.ones((len(weights), 1)), curve], axis=1)


# ---- The training part -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Reference:
    """What an evaluation takes from the training part: its censoring, and where the risk groups are cut."""

    time: np.ndarray  # (N,) years
    event: np.ndarray  # (N,) bool
    cut: float  # median log-hazard; subjects above it are the high-risk group

    @classmethod
    def of(cls, table: "pd.DataFrame") -> "Reference":
        """The reference of a training part's table of predictions.

        Args:
            table: columns `time` (years), `event` and `log_hazard`, a row a subject.
        Returns:
            The outcomes (N,) and the median log-hazard.
        """
        return cls(table["time"].to_numpy(), table["event"].to_numpy(), float(table["log_hazard"].median()))

    @property
    def follow_up(self) -> float:
        """The longest follow-up in years; how subjects are censored after it is not known."""
        return float(np.max(self.time))

    def uncensored(self, at: "ArrayLike") -> np.ndarray:
        """G(t), the probability of being uncensored up to t, by Kaplan-Meier on the censoring times.

        At a tied time, events come before censorings, and G includes the censorings at t itself. Both are as in
        scikit-survival and torchsurv. (Kaplan-Meier of `~event`, as in lifelines, counts tied events as at risk.)

        Args:
            at: (T,) years, or one number.
        Returns:
            (T,) probabilities.
        """
        time, event = np.asarray(self.time, float), np.asarray(self.event, bool)
        times, num_censored = np.unique(time[~event], return_counts=True)  # (K,)
        events_before = np.searchsorted(np.sort(time[event]), times, side="right")
        at_risk = len(time) - events_before - np.searchsorted(np.sort(time[~event]), times)
        steps = np.concatenate([[1.0], np.cumprod(1 - num_censored / at_risk)])  # (1 + K,)
        return steps[np.searchsorted(times, at, side="right")]


# ---- Discrimination --------------------------------------------------------------------------------
def concordance(risk: "ArrayLike", time: "ArrayLike", event: "ArrayLike") -> float:
    """Harrell's C: the share of comparable pairs in which the subject with the earlier event has the higher risk.

    A pair is comparable if the earlier time is an event. At one time, an event comes before a censoring, and two
    events are not comparable. A pair with tied risks counts one half.

    Args:
        risk: (N,) float; higher = earlier event.
        time: (N,) years.
        event: (N,) bool.
    Returns:
        C, or NaN without a comparable pair.
    Raises:
        ValueError: the shapes differ, or a number is not finite.
    Source: Harrell et al. (1996). Checked against scikit-survival and lifelines.
    """
    risk, time, event = as_outcomes(risk, time, event)
    return float(weighted_concordance(np.ones((1, len(time))), risk, time, event)[0])


def weighted_concordance(
    weights: np.ndarray, risk: np.ndarray, time: np.ndarray, event: np.ndarray, pair_weight: np.ndarray | None = None
) -> np.ndarray:
    """Harrell's C with weights, see `concordance`.

    Args:
        weights: (R, N).
        risk: (N,).
        time: (N,) years.
        event: (N,) bool.
        pair_weight: (N,) further weight of the pairs in which a subject has the earlier event; by default 1.
    Returns:
        (R,) C, NaN where no comparable pair has weight.
    Source: Uno et al. (2011) for pair weights 1/G^2. Checked against scikit-survival.
    """
    pair_weight = np.ones(len(time)) if pair_weight is None else pair_weight
    earlier = np.flatnonzero(event & (pair_weight > 0))

    def comparable(block: np.ndarray) -> np.ndarray:
        return (time[block, None] < time) | ((time[block, None] == time) & ~event)  # (B, N)

    return share_of_pairs(weights[:, earlier] * pair_weight[earlier], earlier, weights, risk, comparable)


def share_of_pairs(
    left: np.ndarray, rows: np.ndarray, right: np.ndarray, risk: np.ndarray, comparable: Comparable
) -> np.ndarray:
    """Share of the pairs (row, other subject) in which the row's risk is higher; a tie is half a pair.

    Args:
        left: (R, E) weights of the rows.
        rows: (E,) indices of the rows among the N subjects.
        right: (R, N) weights of the other subjects.
        risk: (N,).
        comparable: with whom each row makes a pair.
    Returns:
        (R,) shares, NaN where no pair has weight.
    """
    num_higher, num_pairs = np.zeros(len(left)), np.zeros(len(left))
    for start in range(0, len(rows), PAIR_BLOCK):
        block = slice(start, start + PAIR_BLOCK)
        pairs = comparable(rows[block]).astype(float)  # (B, N)
        lead = risk[rows[block], None] - risk
        higher = pairs * np.where(np.abs(lead) <= TIED_RISK, 0.5, lead > 0)
        num_higher += ((left[:, block] @ higher) * right).sum(axis=1)
        num_pairs += ((left[:, block] @ pairs) * right).sum(axis=1)
    return ratio(num_higher, num_pairs)


def hazard_ratio(weights: np.ndarray, time: np.ndarray, event: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Cox hazard ratio of the high-risk group to the other subjects, Efron ties.

    Args:
        weights: (R, N).
        time: (N,) years.
        event: (N,) bool.
        high: (N,) bool; the high-risk group.
    Returns:
        (R,) ratios; 0 or infinite where the likelihood has no maximum, NaN where it is flat (a group with nobody
        at risk).
    Source: Cox (1972); Efron (1977), with case weights as in R's `coxph`. Checked against lifelines.
    """
    times = np.sort(time[event])  # (E,) an entry an event
    first = np.searchsorted(times, times)
    num_tied = np.searchsorted(times, times, side="right") - first  # (E,) m
    efron = (np.arange(len(times)) - first) / num_tied  # (E,) l/m: the l-th of m tied events counts them by 1 - l/m
    at_risk = (time[:, None] >= times).astype(float)  # (N, E)
    has_event = ((time[:, None] == times) & event[:, None]).astype(float)  # (N, E)
    at_risk -= efron * has_event
    high_at_risk, low_at_risk = (weights * high) @ at_risk, (weights * ~high) @ at_risk  # (R, E)
    num_events = (weights @ has_event) / num_tied  # (R, E)
    observed = weights @ (high & event)  # (R,) events of the high-risk group
    least = (num_events * ((low_at_risk <= ROUNDING) & (high_at_risk > 0))).sum(axis=1)  # expected as the ratio -> 0
    most = (num_events * (high_at_risk > ROUNDING)).sum(axis=1)  # expected as the ratio -> infinity
    zero, infinite = observed <= least + ROUNDING, observed >= most - ROUNDING
    log_ratio = np.zeros(len(weights))
    for _ in range(NEWTON_STEPS):
        hazard = high_at_risk * np.exp(log_ratio)[:, None]
        share = ratio(hazard, hazard + low_at_risk, empty=0.0)  # (R, E) probability that an event is of the high group
        information = (num_events * share * (1 - share)).sum(axis=1)
        score = observed - (num_events * share).sum(axis=1)
        step = np.where(zero | infinite, 0.0, ratio(score, information, empty=0.0))
        log_ratio += np.clip(step, -NEWTON_MAX_STEP, NEWTON_MAX_STEP)
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return np.select([zero & infinite, zero, infinite], [np.nan, 0.0, np.inf], np.exp(log_ratio))


# ---- Follow-up -------------------------------------------------------------------------------------
def largest_below(years: float) -> float:
    """The largest number of years with two decimals below these: a horizon must end before the follow-up does."""
    return (math.ceil(round(100 * years, 6)) - 1) / 100


# ---- Arrays ----------------------------------------------------------------------------------------
def ratio(top: np.ndarray, bottom: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """`top / bottom`, elementwise.

    Args:
        top: (...).
        bottom: (...), the same shape.
        empty: the result where `bottom` is not above 0.
    Returns:
        (...) quotients.
    """
    return np.divide(top, bottom, out=np.full(np.shape(bottom), empty), where=bottom > 0)


def as_outcomes(
    log_hazard: "ArrayLike", time: "ArrayLike", event: "ArrayLike"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-hazards and outcomes as checked arrays.

    Args:
        log_hazard: (N,), or any risk.
        time: (N,) years.
        event: (N,) True or 1 = the event was seen.
    Returns:
        The three as (N,) arrays of float, float and bool.
    Raises:
        ValueError: the shapes differ, there is no subject, or a number is not finite.
    """
    log_hazard, time = np.asarray(log_hazard, float), np.asarray(time, float)
    event = np.asarray(event).astype(bool)
    shapes = {log_hazard.shape, time.shape, event.shape}
    if len(shapes) > 1 or log_hazard.ndim != 1 or not len(time):
        raise ValueError(f"expected log_hazard, time, event of one shape (N,), N > 0. Received: {sorted(shapes)}")
    if not (np.isfinite(log_hazard).all() and np.isfinite(time).all()):
        raise ValueError("expected finite log-hazards and times")
    return log_hazard, time, event
