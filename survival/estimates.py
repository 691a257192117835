"""Survival estimates as functions of subject weights; `metrics.py` gives them their intervals.

Weights are (R, N). A row of ones gives the estimate itself; R multinomial draws give R bootstrap
resamples at once, as products of matrices instead of a loop over resamples.
A higher risk means an earlier event. Times are years.
"""

import dataclasses

import numpy as np

TIED_RISK = 1e-8  # risks closer than this are tied, as in scikit-survival
PAIR_BLOCK = 512  # rows of the matrix of pairs in memory at a time
ROUNDING = 1e-9  # sums of weights closer than this are equal
BINS = 10  # of D-calibration
NEWTON_STEPS = 60
NEWTON_REACH = 1.0  # longest step: an unshortened one can overshoot
NEWTON_DONE = 1e-10  # a step this short ends the search


# ---- Survival curves -------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Baseline:
    """Breslow's baseline: the cumulative hazard of a subject whose log-hazard is 0, kept as its logarithm."""

    times: np.ndarray  # (K,) distinct event times, ascending
    log_cumulative_hazard: np.ndarray  # (K,)

    @property
    def cumulative_hazard(self) -> np.ndarray:
        """(K,); infinite or 0 where a log-hazard of several hundred leaves the range of floats."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_cumulative_hazard)


def breslow(log_hazard: np.ndarray, time: np.ndarray, event: np.ndarray) -> Baseline:
    """Breslow's baseline hazard on the training subjects; finite at log-hazards of +-1000.

    Args:
        log_hazard: (N,) float; higher = earlier event.
        time: (N,) years to the event or censoring.
        event: (N,) bool.
    Returns:
        H0(t): summed over the event times up to t, events / sum of exp(log_hazard) at risk; empty without events.
    Raises:
        ValueError: the shapes differ, or a number is not finite.
    Source: Breslow (1972). Checked against lifelines.
    """
    log_hazard, time, event = checked(log_hazard, time, event)
    order = np.argsort(-time, kind="stable")
    at_risk = np.logaddexp.accumulate(log_hazard[order])  # (N,) log of the sum over everyone as late or later
    times, events = np.unique(time[event], return_counts=True)  # (K,)
    last = np.searchsorted(-time[order], -times, side="right") - 1  # the last in the order who is at risk at each time
    return Baseline(times, np.logaddexp.accumulate(np.log(events) - at_risk[last]))


def survival_curves(baseline: Baseline, log_hazard: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Survival curves exp(-H0(t) exp(log_hazard)).

    Args:
        baseline: of the training subjects; constant after its last event time.
        log_hazard: (N,).
        at: (T,) years.
    Returns:
        (N, T) probabilities of no event up to each time; 1 before the first event time.
    """
    log_cumulative = np.concatenate([[-np.inf], baseline.log_cumulative_hazard])
    steps = log_cumulative[np.searchsorted(baseline.times, np.asarray(at, float), side="right")]  # (T,)
    with np.errstate(over="ignore"):  # an infinite hazard is a survival of 0
        return np.exp(-np.exp(np.asarray(log_hazard, float)[:, None] + steps))


def kaplan_meier(weights: np.ndarray, time: np.ndarray, event: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(R, T) Kaplan-Meier survival at the years `at` (T,); after the last time it stays where it is."""
    times = np.unique(time[event])
    return _kaplan_meier_steps(weights, time, event, times)[:, np.searchsorted(times, at, side="right")]


def restricted_mean(weights: np.ndarray, time: np.ndarray, event: np.ndarray, until: float) -> np.ndarray:
    """(R,) restricted mean survival time: the area under Kaplan-Meier from 0 to `until` years."""
    times = np.unique(time[event & (time < until)])
    curve = _kaplan_meier_steps(weights, time, event, times)
    return curve @ np.diff(np.concatenate([[0.0], times, [until]]))


def _kaplan_meier_steps(weights, time, event, times) -> np.ndarray:
    """(R, 1 + K): 1, then Kaplan-Meier just after each of the K event times."""
    ending = weights @ ((time[:, None] == times) & event[:, None]).astype(float)  # (R, K)
    at_risk = weights @ (time[:, None] >= times).astype(float)
    curve = np.cumprod(1 - ratio(ending, at_risk, empty=0.0), axis=1)
    return np.concatenate([np.ones((len(weights), 1)), curve], axis=1)


# ---- The training part ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Reference:
    """What an evaluation takes from the training part: its censoring, and where the risk groups are cut."""

    time: np.ndarray  # (N,) years
    event: np.ndarray  # (N,) bool
    cut: float  # median log-hazard; above it is the high-risk group

    @property
    def last(self) -> float:
        """The longest follow-up, years; of the censoring after it nothing is known."""
        return float(np.max(self.time))

    def uncensored(self, at: np.ndarray | float) -> np.ndarray:
        """G(t), the probability of being uncensored up to `at`, by Kaplan-Meier on the censoring times.

        At a tied time events come before censorings, and G includes the censorings at t itself, both as in
        scikit-survival and torchsurv. (Kaplan-Meier of `~event`, as lifelines has it, keeps tied events at risk.)
        """
        time, event = np.asarray(self.time, float), np.asarray(self.event, bool)
        times, censored = np.unique(time[~event], return_counts=True)  # (K,)
        events_before = np.searchsorted(np.sort(time[event]), times, side="right")
        at_risk = len(time) - events_before - np.searchsorted(np.sort(time[~event]), times)
        kept = np.concatenate([[1.0], np.cumprod(1 - censored / at_risk)])
        return kept[np.searchsorted(times, at, side="right")]


# ---- Discrimination --------------------------------------------------------------------------------------
def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Harrell's C: the share of comparable pairs in which the earlier event has the higher risk.

    A pair is comparable if the earlier time is an event; at one time, an event precedes a censoring and
    two events are not comparable. Tied risks count one half.

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
    risk, time, event = checked(risk, time, event)
    return float(weighted_concordance(np.ones((1, len(time))), risk, time, event)[0])


def weighted_concordance(
    weights: np.ndarray, risk: np.ndarray, time: np.ndarray, event: np.ndarray, pair_weight: np.ndarray | None = None
) -> np.ndarray:
    """(R,) C; `pair_weight` (N,), by default 1, weights the pairs in which a subject has the earlier event."""
    pair_weight = np.ones(len(time)) if pair_weight is None else pair_weight
    rows = np.flatnonzero(event & (pair_weight > 0))

    def comparable(block: np.ndarray) -> np.ndarray:
        return (time[block, None] < time) | ((time[block, None] == time) & ~event)  # (B, N)

    return share_of_pairs(weights[:, rows] * pair_weight[rows], rows, weights, risk, comparable)


def share_of_pairs(left: np.ndarray, rows: np.ndarray, right: np.ndarray, risk: np.ndarray, comparable) -> np.ndarray:
    """(R,) share of the pairs (row, other) in which the row's risk is higher; a tie is half a pair.

    Args:
        left: (R, E) weights of the rows.
        rows: (E,) their indices among the N subjects.
        right: (R, N) weights of the others.
        risk: (N,).
        comparable: indices (B,) -> (B, N) bool.
    Returns:
        NaN where no pair has weight.
    """
    won, pairs = np.zeros(len(left)), np.zeros(len(left))
    for start in range(0, len(rows), PAIR_BLOCK):
        here = slice(start, start + PAIR_BLOCK)
        counted = comparable(rows[here]).astype(float)  # (B, N)
        ahead = risk[rows[here], None] - risk
        higher = counted * np.where(np.abs(ahead) <= TIED_RISK, 0.5, ahead > 0)
        won += ((left[:, here] @ higher) * right).sum(axis=1)
        pairs += ((left[:, here] @ counted) * right).sum(axis=1)
    return ratio(won, pairs)


def hazard_ratio(weights: np.ndarray, time: np.ndarray, event: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(R,) Cox hazard ratio of the group `high` (N,) bool to the others, Efron ties.

    Returns:
        0 or infinite where the likelihood has no maximum, NaN where it is flat (a group without anyone at risk).
    Source: Cox (1972); Efron (1977), with case weights as in R's `coxph`. Checked against lifelines.
    """
    times = np.sort(time[event])  # (E,) a row an event
    first = np.searchsorted(times, times)
    tied = np.searchsorted(times, times, side="right") - first  # (E,) m
    passed = (np.arange(len(times)) - first) / tied  # (E,) l/m: the l-th of m tied events counts them by 1 - l/m
    at_risk = (time[:, None] >= times).astype(float)  # (N, E)
    ending = ((time[:, None] == times) & event[:, None]).astype(float)
    at_risk -= passed * ending
    high_risk, low_risk = (weights * high) @ at_risk, (weights * ~high) @ at_risk  # (R, E)
    events = (weights @ ending) / tied  # (R, E)
    seen = weights @ (high & event)  # (R,) events of the high-risk group; of these are expected
    fewest = (events * ((low_risk <= ROUNDING) & (high_risk > 0))).sum(axis=1)  # as the ratio goes to 0
    most = (events * (high_risk > ROUNDING)).sum(axis=1)  # as it goes to infinity
    zero, infinite = seen <= fewest + ROUNDING, seen >= most - ROUNDING
    log_ratio = np.zeros(len(weights))
    for _ in range(NEWTON_STEPS):
        hazard = high_risk * np.exp(log_ratio)[:, None]
        expected = ratio(hazard, hazard + low_risk, empty=0.0)  # (R, E)
        slope = (events * expected * (1 - expected)).sum(axis=1)
        step = np.where(zero | infinite, 0.0, ratio(seen - (events * expected).sum(axis=1), slope, empty=0.0))
        log_ratio += np.clip(step, -NEWTON_REACH, NEWTON_REACH)
        if np.abs(step).max() < NEWTON_DONE:
            break
    return np.select([zero & infinite, zero, infinite], [np.nan, 0.0, np.inf], np.exp(log_ratio))


# ---- Calibration -----------------------------------------------------------------------------------------
def calibration_line(weights: np.ndarray, logit: np.ndarray, outcome: np.ndarray, slope: bool) -> np.ndarray:
    """(R,) slope of a logistic regression of the outcome on the predicted logit, or the intercept at slope 1.

    Args:
        weights: (R, N), censoring weights included.
        logit: (N,) of the predicted risk.
        outcome: (N,) bool.
        slope: the slope, else the intercept.
    Returns:
        Infinite where the outcomes are separated, NaN where there are no two outcomes or no two predictions.
    Source: Cox (1958); Van Calster et al. (2019). Checked against scikit-learn.
    """
    cases, controls = (weights > 0) & outcome, (weights > 0) & ~outcome  # (R, N)
    flat = ~(cases.any(axis=1) & controls.any(axis=1))
    if not slope:
        return np.where(flat, np.nan, _logistic(weights * ~flat[:, None], logit, outcome, np.zeros_like(logit))[:, 0])

    case_low, case_high = _extremes(logit, cases)
    control_low, control_high = _extremes(logit, controls)
    flat |= np.maximum(case_high, control_high) - np.minimum(case_low, control_low) <= TIED_RISK
    rising, falling = control_high <= case_low, case_high <= control_low
    solvable = ~(flat | rising | falling)
    spread = max(float(np.std(logit)), TIED_RISK)
    x = (logit - logit.mean()) / spread
    fitted = _logistic(weights * solvable[:, None], np.zeros_like(logit), outcome, x)[:, 1] / spread
    return np.select([flat, rising, falling], [np.nan, np.inf, -np.inf], fitted)


def _extremes(x: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R,) least and greatest x (N,) among the members (R, N)."""
    return np.where(members, x, np.inf).min(axis=1), np.where(members, x, -np.inf).max(axis=1)


def _logistic(weights, offset, outcome, x) -> np.ndarray:
    """(R, 2) intercept and slope of logit P(outcome) = offset + a + b x; b stays 0 where x (N,) is all 0."""
    found = np.zeros((len(weights), 2))
    ridge = np.diag([ROUNDING, ROUNDING])  # of an x of zeros the Hessian is singular
    for _ in range(NEWTON_STEPS):
        predicted = 1 / (1 + np.exp(-(offset + found[:, :1] + found[:, 1:] * x)))  # (R, N)
        missed = weights * (outcome - predicted)
        gradient = np.stack([missed.sum(axis=1), missed @ x], axis=1)  # (R, 2)
        curved = weights * predicted * (1 - predicted)
        entries = [curved.sum(axis=1), curved @ x, curved @ x, curved @ x**2]
        hessian = np.stack(entries, axis=1).reshape(-1, 2, 2) + ridge
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        found += np.clip(step, -NEWTON_REACH, NEWTON_REACH)
        if np.abs(step).max() < NEWTON_DONE:
            break
    return found


def d_calibration(survival: np.ndarray, grid: np.ndarray, time: np.ndarray, event: np.ndarray) -> dict:
    """D-calibration: right curves have a survival at the event that is uniform from 0 to 1.

    A censored subject is spread over the bins below its survival. Between grid points survival is
    interpolated, from 1 at 0; follow-up past the last grid point counts as censored there.

    Args:
        survival: (N, T) predicted.
        grid: (T,) ascending years.
        time: (N,) years.
        event: (N,) bool.
    Returns:
        `bins`, the share of the subjects in each tenth of the survival from 0 to 1; `statistic` and `p` of the
        chi-squared test against a tenth each (a low p: not calibrated).
    Source: Haider et al. (2020), section 3.5.
    """
    from scipy.stats import chi2  # slow to import

    years = np.concatenate([[0.0], grid])
    curves = np.column_stack([np.ones(len(time)), survival])
    reached = np.array([np.interp(end, years, curve) for end, curve in zip(time, curves, strict=True)])[:, None]
    lower = np.arange(BINS) / BINS  # (BINS,)
    inside = np.minimum((reached * BINS).astype(int), BINS - 1) == np.arange(BINS)  # (N, BINS)
    below = np.clip(reached - lower, 0, 1 / BINS)  # how much of 0 to the survival is in each bin
    spread = np.divide(below, reached, out=inside.astype(float), where=reached > 0)
    counts = np.where((event & (time <= years[-1]))[:, None], inside, spread).sum(axis=0)
    statistic = float(((counts - len(time) / BINS) ** 2).sum() / (len(time) / BINS))
    shares = (counts / len(time)).tolist()
    return {"statistic": statistic, "p": float(chi2.sf(statistic, BINS - 1)), "bins": shares}


# ---- Small things ------------------------------------------------------------------------------------------
def ratio(top: np.ndarray, bottom: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Top / bottom, and `empty` where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), empty), where=bottom > 0)


def checked(log_hazard, time, event) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as (N,) arrays of float, float and bool.

    Raises:
        ValueError: the shapes differ, there is nobody, or a number is not finite.
    """
    log_hazard, time = np.asarray(log_hazard, float), np.asarray(time, float)
    event = np.asarray(event).astype(bool)
    shapes = {log_hazard.shape, time.shape, event.shape}
    if len(shapes) > 1 or log_hazard.ndim != 1 or not len(time):
        raise ValueError(f"expected log_hazard, time, event of one shape (N,), N > 0. Received: {sorted(shapes)}")
    if not (np.isfinite(log_hazard).all() and np.isfinite(time).all()):
        raise ValueError("expected finite log-hazards and times")
    return log_hazard, time, event
