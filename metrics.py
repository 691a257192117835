"""Survival metrics with 95 % intervals: NumPy in, numbers out.

Direction: a higher log-hazard or risk means an earlier event. Times are years from the landmark.

Every estimate is a function of subject weights (R, N). All ones give the value itself; R multinomial
draws give R bootstrap resamples at once, as products of matrices instead of a loop over resamples.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np

TIED_RISK = 1e-8  # risks closer than this are tied, as in scikit-survival
PAIR_BLOCK = 512  # rows of the matrix of pairs in memory at a time
LEAST_GROUP = 10  # subjects in a calibration group; deciles from 100 subjects on
EXTREME = 1e-6  # predicted probabilities are held this far from 0 and 1, whose logit is infinite
NEWTON_STEPS = 60
NEWTON_REACH = 1.0  # longest step; the unshortened step can overshoot
INTERVAL = (0.025, 0.975)

Estimate = dict[str, float | str | None]
Weighted = Callable[[np.ndarray], np.ndarray]  # (R, N) weights of subjects -> (R,)


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
    Source: Breslow (1972). Checked against lifelines.
    """
    log_hazard, time, event = _checked(log_hazard, time, event)
    order = np.argsort(-time, kind="stable")
    at_risk = np.logaddexp.accumulate(log_hazard[order])  # (N,) log of the sum over everyone as late or later
    times, events = np.unique(time[event], return_counts=True)  # (K,)
    last = np.searchsorted(-time[order], -times, side="right") - 1  # the last in the order who is at risk at each time
    return Baseline(times, np.logaddexp.accumulate(np.log(events) - at_risk[last]))


def survival(baseline: Baseline, log_hazard: np.ndarray, at: np.ndarray) -> np.ndarray:
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


# ---- The part that sets the scale --------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Reference:
    """What the evaluation takes from the training part: censoring, and where the risk groups are cut."""

    time: np.ndarray  # (N,) years
    event: np.ndarray  # (N,) bool
    cut: float  # median log-hazard; above it is the high-risk group

    @property
    def last(self) -> float:
        """The longest follow-up, years: nothing is known of the censoring after it."""
        return float(np.max(self.time))

    def uncensored(self, at: np.ndarray) -> np.ndarray:
        """G(t), the probability of being uncensored up to `at`, by Kaplan-Meier on the censoring times.

        At a tied time events come before censorings; G includes the censorings at t itself. Both as
        scikit-survival does. (Kaplan-Meier on `~event`, as in lifelines, counts the events as still at risk.)
        """
        time, event = np.asarray(self.time, float), np.asarray(self.event, bool)
        times, censored = np.unique(time[~event], return_counts=True)  # (K,)
        events_before = np.searchsorted(np.sort(time[event]), times, side="right")
        at_risk = len(time) - events_before - np.searchsorted(np.sort(time[~event]), times)
        kept = np.concatenate([[1.0], np.cumprod(1 - censored / at_risk)])
        return kept[np.searchsorted(times, at, side="right")]


# ---- The estimates -----------------------------------------------------------------------------------
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
    Source: Harrell et al. (1996). Checked against scikit-survival and lifelines.
    """
    risk, time, event = _checked(risk, time, event)
    return float(_concordance(np.ones((1, len(time))), risk, time, event)[0])


def _concordance(weights, risk, time, event, row_weight=None) -> np.ndarray:
    """(R,) C; `row_weight` (N,) multiplies the pairs in which that subject has the earlier event."""
    rows = np.flatnonzero(event if row_weight is None else event & (row_weight > 0))
    left = weights[:, rows] * (1 if row_weight is None else row_weight[rows])  # (R, E)

    def comparable(block):
        return (time[block, None] < time) | ((time[block, None] == time) & ~event)  # (B, N)

    return _pair_share(left, rows, weights, risk, comparable)


def _pair_share(left, rows, right, risk, comparable) -> np.ndarray:
    """(R,) share of the pairs (row, other) in which the row's risk is higher; a tie is half a pair.

    Args:
        left: (R, E) weights of the rows.
        rows: (E,) their indices.
        right: (R, N) weights of the others.
        risk: (N,).
        comparable: indices (B,) -> (B, N) bool.
    """
    won, all_pairs = np.zeros(len(left)), np.zeros(len(left))
    for start in range(0, len(rows), PAIR_BLOCK):
        here = slice(start, start + PAIR_BLOCK)
        pairs = comparable(rows[here]).astype(float)  # (B, N)
        ahead = risk[rows[here], None] - risk  # (B, N)
        higher = pairs * np.where(np.abs(ahead) <= TIED_RISK, 0.5, ahead > 0)
        won += ((left[:, here] @ higher) * right).sum(axis=1)
        all_pairs += ((left[:, here] @ pairs) * right).sum(axis=1)
    return _ratio(won, all_pairs)


def _hazard_ratio(weights, time, event, high) -> np.ndarray:
    """(R,) Cox hazard ratio of the group `high` (N,) bool to the others, Efron ties; may be 0 or infinite.

    Every event is a row with its risk set; the l-th of m tied events counts the tied ones by 1 - l/m.
    """
    times = np.sort(time[event])  # (E,)
    tied = np.searchsorted(times, times, "right") - np.searchsorted(times, times)  # (E,) m
    share = (np.arange(len(times)) - np.searchsorted(times, times)) / tied  # (E,) l / m
    at_risk = (time[:, None] >= times).astype(float)  # (N, E)
    ending = ((time[:, None] == times) & event[:, None]).astype(float)  # (N, E)
    in_high, in_low = weights * high, weights * ~high  # (R, N)
    high_risk = in_high @ at_risk - share * (in_high @ ending)  # (R, E) weight at risk
    low_risk = in_low @ at_risk - share * (in_low @ ending)
    events = (weights @ ending) / tied  # (R, E)
    seen = (in_high * event).sum(axis=1)  # (R,) events in the high-risk group

    fewest = (events * ((low_risk <= 0) & (high_risk > 0))).sum(axis=1)  # expected there as the ratio goes to 0
    most = (events * (high_risk > 0)).sum(axis=1)  # and to infinity
    zero, infinite = seen <= fewest + EXTREME, seen >= most - EXTREME
    log_ratio = np.zeros(len(weights))
    for _ in range(NEWTON_STEPS):
        hazard = high_risk * np.exp(log_ratio)[:, None]
        expected = _ratio(hazard, hazard + low_risk, empty=0.0)  # (R, E)
        slope = (events * expected * (1 - expected)).sum(axis=1)
        step = np.where(zero | infinite, 0.0, _ratio(seen - (events * expected).sum(axis=1), slope, empty=0.0))
        log_ratio += np.clip(step, -NEWTON_REACH, NEWTON_REACH)
        if np.abs(step).max() < 1e-10:
            break
    return np.select([zero & infinite, zero, infinite], [np.nan, 0.0, np.inf], np.exp(log_ratio))


def _kaplan_meier(weights, time, event, at) -> np.ndarray:
    """(R, T) Kaplan-Meier survival at the years `at`; after the last time it stays where it is."""
    times = np.unique(time[event])  # (K,)
    ending = weights @ ((time[:, None] == times) & event[:, None]).astype(float)  # (R, K)
    at_risk = weights @ (time[:, None] >= times).astype(float)
    curve = np.cumprod(1 - _ratio(ending, at_risk, empty=0.0), axis=1)
    curve = np.concatenate([np.ones((len(weights), 1)), curve], axis=1)  # (R, 1 + K)
    return curve[:, np.searchsorted(times, at, side="right")]


# ---- One model on one part -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Part:
    """One model's predictions on one part, and the estimates as functions of the subjects' weights."""

    log_hazard: np.ndarray  # (N,)
    time: np.ndarray  # (N,)
    event: np.ndarray  # (N,)
    survival: np.ndarray  # (N, T)
    grid: np.ndarray  # (T,)
    horizons: tuple[float, ...]
    reference: Reference

    @cached_property
    def usable(self) -> np.ndarray:
        """(T,) bool: grid points within the follow-up of the training part and of this one."""
        inside = (self.grid <= self.reference.last) & (self.grid < self.time.max())
        return inside & (self.reference.uncensored(self.grid) > 0)

    @cached_property
    def high(self) -> np.ndarray:
        """(N,) bool: the high-risk group."""
        return self.log_hazard > self.reference.cut

    def outside(self, year: float) -> str | None:
        """Why nothing can be estimated at `year`; None if it can."""
        if self.usable[self.grid == year].any():
            return None
        if year >= self.time.max():
            return f"nobody was followed beyond {year:g} years (longest: {self.time.max():.2f})"
        return f"past the training part's follow-up ({self.reference.last:.2f} years), so its censoring is unknown"

    def inverse_weights(self, year: float) -> np.ndarray:
        """(N,) 1/G: at the event for events by `year`, at `year` for those event-free then, else 0."""
        had_it = self.event & (self.time <= year)
        known = np.where(had_it, self.time, year)
        return np.where(had_it | (self.time > year), 1 / self.reference.uncensored(known), 0.0)

    def c_index(self, weights: np.ndarray) -> np.ndarray:
        return _concordance(weights, self.log_hazard, self.time, self.event)

    def uno_c(self, weights: np.ndarray) -> np.ndarray:
        early = self.event & (self.time < self.grid[self.usable].max())
        inverse = np.zeros(len(self.time))
        inverse[early] = self.reference.uncensored(self.time[early]) ** -2.0
        return _concordance(weights, self.log_hazard, self.time, self.event, inverse)

    def auc(self, weights: np.ndarray, year: float) -> np.ndarray:
        cases = np.flatnonzero(self.event & (self.time <= year))
        left = weights[:, cases] * self.inverse_weights(year)[cases]
        right = weights * (self.time > year)
        return _pair_share(left, cases, right, self.log_hazard, lambda block: np.ones((len(block), len(self.time))))

    def squared_error(self, year: float) -> np.ndarray:
        """(N,) weighted squared error of the predicted survival at `year`; its mean is the Brier score."""
        predicted = self.survival[:, self.grid == year][:, 0]
        return self.inverse_weights(year) * ((self.time > year) - predicted) ** 2

    def brier(self, weights: np.ndarray, year: float) -> np.ndarray:
        return weights @ self.squared_error(year) / len(self.time)

    def ibs(self, weights: np.ndarray) -> np.ndarray:
        years = self.grid[self.usable]
        errors = np.stack([self.squared_error(year) for year in years], axis=1)  # (N, T)
        return weights @ np.trapezoid(errors, years, axis=1) / (years[-1] - years[0]) / len(self.time)

    def hazard_ratio(self, weights: np.ndarray) -> np.ndarray:
        return _hazard_ratio(weights, self.time, self.event, self.high)


def evaluate(
    log_hazard: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    survival: np.ndarray,
    grid: np.ndarray,
    horizons: tuple[float, ...],
    reference: Reference,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Every figure of one model on one part, with 95 % percentile intervals of a subject bootstrap.

    Args:
        log_hazard: (N,) float, a row a subject; higher = earlier event.
        time: (N,) years from the landmark to the event or censoring.
        event: (N,) bool.
        survival: (N, T) predicted survival.
        grid: (T,) ascending years of `survival`; contains the horizons.
        horizons: years at which AUC, Brier score and calibration are given.
        reference: the training part's outcomes and median log-hazard.
        num_resamples: of the bootstrap; the training part stays as it is.
        seed: of the bootstrap.
    Returns:
        `n`, `events`, and the estimates `{"value", "low", "high"}`, to which `note` is added where something was
        left out, and where there is no value `why`:
        `c_index`: Harrell's C, see `concordance`.
        `uno_c`: Uno's C up to the last usable grid point, weights 1/G(t)^2.
        `auc`: by horizon, cumulative cases (weights 1/G) against those event-free after it.
        `brier`, `ibs`: by horizon, the IPCW Brier score (Graf et al. 1999); its trapezoid over the usable grid
        points divided by their span.
        `hazard_ratio`: Cox, Efron ties, of those above the training part's median to the others.
        `risk_groups`: their sizes and the log-rank p (lifelines).
        `calibration`: by horizon, groups of predicted risk: mean prediction, Kaplan-Meier.
        Usable are grid points within the follow-up of both the training part (G, the Kaplan-Meier of its
        censoring, is known and positive) and the part itself.
    Raises:
        ValueError: shapes that differ, numbers that are not finite, a horizon that is not on the grid.
    Source: Uno et al. (2007, 2011); Graf et al. (1999). Checked against scikit-survival, lifelines and torchsurv.
    """
    part = _part(log_hazard, time, event, survival, grid, horizons, reference)
    resamples = _resamples(len(part.time), num_resamples, seed)
    found = {name: _estimate(*task, resamples) for name, task in _tasks(part).items()}
    by_horizon = {kind: {str(year): found[f"{kind} {year}"] for year in part.horizons} for kind in ("auc", "brier")}
    return {
        "n": len(part.time),
        "events": int(part.event.sum()),
        "c_index": found["c_index"],
        "uno_c": found["uno_c"],
        **by_horizon,
        "ibs": found["ibs"],
        "hazard_ratio": found["hazard_ratio"],
        "risk_groups": _risk_groups(part),
        "calibration": {str(year): _calibration(part, year, resamples) for year in part.horizons},
    }


def _part(log_hazard, time, event, survival, grid, horizons, reference) -> _Part:
    log_hazard, time, event = _checked(log_hazard, time, event)
    survival, grid = np.asarray(survival, float), np.asarray(grid, float)
    horizons = tuple(float(year) for year in horizons)
    if survival.shape != (len(time), len(grid)):
        raise ValueError(f"survival: expected shape {(len(time), len(grid))}. Received: {survival.shape}")
    if not ((survival >= 0) & (survival <= 1)).all():
        raise ValueError("survival: expected probabilities")
    missing = [year for year in horizons if year not in grid]
    if missing or (np.diff(grid) <= 0).any():
        raise ValueError(f"grid: expected ascending years with the horizons {horizons}. Received: {grid.tolist()}")
    return _Part(log_hazard, time, event, survival, grid, horizons, reference)


def _tasks(part: _Part) -> dict[str, tuple[Weighted | None, str | None, str | None]]:
    """By name: an estimate, why there is none, and what to say about it."""
    usable = part.grid[part.usable]
    tasks: dict[str, tuple] = {"c_index": (part.c_index, "no comparable pair: nobody outlived an event", None)}
    for year in part.horizons:
        why = part.outside(year)
        nobody = f"nobody had the event within {year:g} years"
        tasks[f"auc {year}"] = (None if why else (lambda w, t=year: part.auc(w, t)), why or nobody, None)
        tasks[f"brier {year}"] = (None if why else (lambda w, t=year: part.brier(w, t)), why, None)
    if len(usable) < 2:
        why = f"fewer than two of the {len(part.grid)} grid points lie within the follow-up"
        tasks |= {"uno_c": (None, why, None), "ibs": (None, why, None)}
    else:
        cut = None if part.usable.all() else f"up to {usable[-1]:g} years, where the follow-up ends"
        tasks["uno_c"] = (part.uno_c, f"no comparable pair before {usable[-1]:g} years", cut)
        tasks["ibs"] = (part.ibs, None, cut)
    tasks["hazard_ratio"] = (part.hazard_ratio, _why_no_ratio(part), None)
    return tasks


def _why_no_ratio(part: _Part) -> str:
    for name, group in (("high", part.high), ("low", ~part.high)):
        if not group.any():
            return f"the {name}-risk group is empty"
    if not part.event.any():
        return "no events"
    return "infinite: no event in the low-risk group while anyone of the high-risk group was still at risk"


def _risk_groups(part: _Part) -> dict:
    """Sizes of the two groups and the log-rank p of their difference."""
    from lifelines.statistics import logrank_test  # slow to import, and callbacks only need the C-index

    groups: dict = {
        name: {"n": int(group.sum()), "events": int(part.event[group].sum())}
        for name, group in (("low", ~part.high), ("high", part.high))
    }
    groups["cut"] = float(part.reference.cut)
    if part.high.all() or not part.high.any() or not part.event.any():
        return groups | {"log_rank_p": None, "why": _why_no_ratio(part)}
    high, low = part.high, ~part.high
    test = logrank_test(part.time[high], part.time[low], part.event[high], part.event[low])
    return groups | {"log_rank_p": float(test.p_value)}


def _calibration(part: _Part, year: float, resamples: np.ndarray) -> dict:
    """Predicted against observed (Kaplan-Meier) risk at `year` in groups of predicted risk."""
    why = part.outside(year)
    if why:
        return {"groups": [], "why": why}
    predicted = 1 - part.survival[:, part.grid == year][:, 0]
    num_groups = int(np.clip(len(predicted) // LEAST_GROUP, 1, 10))
    order = np.lexsort([part.log_hazard, predicted])
    groups = []
    for members in np.array_split(order, num_groups):
        time, event = part.time[members], part.event[members]
        why = None if year <= time.max() or event[time == time.max()].all() else "follow-up of the group ends before"
        observed = (
            None if why else lambda w, m=members: 1 - _kaplan_meier(w[:, m], part.time[m], part.event[m], [year])[:, 0]
        )
        estimate = _estimate(observed, why, None, resamples)
        groups.append({"n": len(members), "predicted": float(predicted[members].mean()), "observed": estimate})
    return {"groups": groups}


# ---- Bootstrap ---------------------------------------------------------------------------------------
def _resamples(num_subjects: int, num_resamples: int, seed: int) -> np.ndarray:
    """(R, N) how often each subject is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_subjects, np.full(num_subjects, 1 / num_subjects), size=num_resamples).astype(float)


def _estimate(of: Weighted | None, why: str | None, note: str | None, resamples: np.ndarray) -> Estimate:
    """The value with its percentile interval; resamples without a value are left out and counted."""
    if of is None:
        return {"value": None, "low": None, "high": None, "why": why}
    value = float(of(np.ones((1, resamples.shape[1])))[0])
    if np.isnan(value):
        return {"value": None, "low": None, "high": None, "why": why}
    values = of(resamples)
    undefined = int(np.isnan(values).sum())
    notes = [note] if note else []
    if undefined:
        notes.append(f"{undefined} of {len(values)} resamples have no value and are left out of the interval")
        values = values[~np.isnan(values)]
    low, high = np.quantile(values, INTERVAL, method="inverted_cdf") if len(values) else (np.nan, np.nan)
    if np.isfinite(value) and np.isinf(high):
        notes.append("the upper limit is infinite")
    estimate: Estimate = {"value": _number(value), "low": _number(low), "high": _number(high)}
    if np.isinf(value):
        estimate["why"] = why
    if notes:
        estimate["note"] = "; ".join(notes)
    return estimate


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ratio(top: np.ndarray, bottom: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Top / bottom, and `empty` where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), empty), where=bottom > 0)


def _checked(log_hazard, time, event) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as (N,) arrays."""
    log_hazard, time = np.asarray(log_hazard, float), np.asarray(time, float)
    event = np.asarray(event).astype(bool)
    shapes = {log_hazard.shape, time.shape, event.shape}
    if len(shapes) > 1 or log_hazard.ndim != 1 or not len(time):
        raise ValueError(f"expected log_hazard, time, event of one shape (N,), N > 0. Received: {sorted(shapes)}")
    if not (np.isfinite(log_hazard).all() and np.isfinite(time).all()):
        raise ValueError("expected finite log-hazards and times")
    return log_hazard, time, event
