"""What one model is worth on one part: survival metrics with 95 % intervals. NumPy in, numbers out.

A higher log-hazard or risk means an earlier event. Times are years from the landmark. An estimate is
`{"value", "low", "high"}`, with a `note` where something was left out and `why` where there is no value.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np

from survival.estimates import (
    Reference,
    calibration_line,
    checked,
    d_calibration,
    hazard_ratio,
    kaplan_meier,
    restricted_mean,
    share_of_pairs,
    weighted_concordance,
)

INTERVAL = (0.025, 0.975)
MOST_GROUPS = 10  # of predicted risk in a calibration: deciles
LEAST_GROUP = 10  # subjects in such a group
EXTREME = 1e-6  # predicted risks are held this far from 0 and 1, whose logit is infinite
EMPTY = "the {}-risk group is empty"
Estimate = dict[str, float | str | None]
Weighted = Callable[[np.ndarray], np.ndarray]  # (R, N) weights of the subjects -> (R,)
Task = tuple[Weighted | None, str | None, str | None]  # the estimate; why there is none; what to note


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

    Usable are the grid points within the follow-up of the training part, whose Kaplan-Meier of the censoring
    G must be known and positive, and of the part itself.

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
        `n`, `events`, and
        `c_index`: Harrell's C, see `concordance`.
        `uno_c`: Uno's C up to the last usable grid point; an event at t weighs 1/G(t)^2.
        `auc`: by horizon; cases by then (weight 1/G) against those event-free after it.
        `brier`, `ibs`: by horizon, the mean squared error weighted by 1/G at the event or the horizon; its
        trapezoid from the first to the last usable grid point, divided by their distance.
        `hazard_ratio`: Cox, Efron ties; those above the training median against the others.
        `rmst_difference`: years free of the event, low-risk less high-risk group, within `years`.
        `risk_groups`: size and events of each, `cut`, log-rank p.
        `calibration`: by horizon, `slope` and `intercept` (see `_calibration`) and the groups of predicted risk.
        `d_calibration`: see `estimates.d_calibration`.
    Raises:
        ValueError: shapes that differ, numbers that are not finite, a horizon that is not on the grid.
    Source: Harrell et al. (1996); Uno et al. (2007, 2011); Graf et al. (1999); Royston and Parmar (2013);
        Haider et al. (2020). Checked against scikit-survival, lifelines and torchsurv.
    """
    part = _part(log_hazard, time, event, survival, grid, horizons, reference)
    resamples = _resamples(len(part.time), num_resamples, seed)

    def estimates(name: str, years: tuple[float, ...]) -> dict[str, Estimate]:
        return {str(year): _estimate(part.task_at(name, year), resamples) for year in years}

    until = part.compared_until
    return {
        "n": len(part.time),
        "events": int(part.event.sum()),
        "c_index": _estimate(part.task("c_index"), resamples),
        "uno_c": _estimate(part.task("uno_c"), resamples),
        "auc": estimates("auc", part.horizons),
        "brier": estimates("brier", part.horizons),
        "ibs": _estimate(part.task("ibs"), resamples),
        "hazard_ratio": _estimate(part.task("hazard_ratio"), resamples),
        "rmst_difference": {**_estimate(part.task("rmst_difference"), resamples), "years": until},
        "risk_groups": _risk_groups(part),
        "calibration": {str(year): _calibration(part, year, resamples) for year in part.horizons},
        "d_calibration": d_calibration(part.survival, part.grid, part.time, part.event),
    }


def over_time(
    log_hazard: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    survival: np.ndarray,
    grid: np.ndarray,
    reference: Reference,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """AUC and Brier score at every grid point; arguments as `evaluate`.

    Returns:
        `{"auc": {"0.25": estimate, ...}, "brier": {...}}`.
    """
    part = _part(log_hazard, time, event, survival, grid, tuple(grid), reference)
    resamples = _resamples(len(part.time), num_resamples, seed)
    return {
        name: {str(year): _estimate(part.task_at(name, year), resamples) for year in part.horizons}
        for name in ("auc", "brier")
    }


def compare(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    time: np.ndarray,
    event: np.ndarray,
    *,
    grid: np.ndarray,
    horizons: tuple[float, ...],
    reference: Reference,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """First model less second on the same subjects; both see the same resamples (paired bootstrap).

    Args:
        first: log_hazard (N,) and survival (N, T) of one model; the other arguments as `evaluate`.
        second: of the other, its rows in the same order.
        time: (N,) years.
        event: (N,) bool.
        grid: (T,) years.
        horizons: years.
        reference: the training part's outcomes; its cut is not used.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    Returns:
        `c_index`, `uno_c`, `auc` by horizon, `ibs`, each an estimate. Better is above 0, for `ibs` below 0.
    """
    ours, theirs = (_part(risk, time, event, curves, grid, horizons, reference) for risk, curves in (first, second))
    resamples = _resamples(len(ours.time), num_resamples, seed)

    def difference(one: Task, other: Task) -> Estimate:
        why, note = one[1:]
        first, second = one[0], other[0]
        if first is None or second is None:
            return _estimate((None, why, note), resamples)
        return _estimate((lambda weights: first(weights) - second(weights), why, note), resamples)

    return {
        **{name: difference(ours.task(name), theirs.task(name)) for name in ("c_index", "uno_c", "ibs")},
        "auc": {
            str(year): difference(ours.task_at("auc", year), theirs.task_at("auc", year)) for year in ours.horizons
        },
    }


# ---- One model on one part -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Part:
    """One model's predictions on one part, and each estimate as a function of the subjects' weights (R, N)."""

    log_hazard: np.ndarray  # (N,)
    time: np.ndarray  # (N,)
    event: np.ndarray  # (N,)
    survival: np.ndarray  # (N, T)
    grid: np.ndarray  # (T,)
    horizons: tuple[float, ...]
    reference: Reference

    @cached_property
    def usable(self) -> np.ndarray:
        """(T,) bool: the grid points before the follow-up of the training part or of this one ends."""
        inside = self.grid < min(self.reference.last, self.time.max())
        return inside & (self.reference.uncensored(self.grid) > 0)

    @cached_property
    def high(self) -> np.ndarray:
        """(N,) bool: the high-risk group."""
        return self.log_hazard > self.reference.cut

    @cached_property
    def compared_until(self) -> float | None:
        """The last horizon, or sooner: the end of the shorter follow-up of the two risk groups."""
        if self.high.all() or not self.high.any():
            return None
        return float(min(self.horizons[-1], self.time[self.high].max(), self.time[~self.high].max()))

    def task(self, name: str) -> Task:
        """The estimate `name`, or why there is none; the reason is also that of a value of NaN."""
        estimate = getattr(self, f"_{name}")
        if name == "c_index":
            return estimate, "no comparable pair: nobody outlived an event", None
        if name not in ("uno_c", "ibs"):
            return estimate, self.why_no_groups(), None
        years = self.grid[self.usable]
        if len(years) < 2:
            return None, f"fewer than two of the {len(self.grid)} grid points are within the follow-up", None
        note = None if self.usable.all() else f"up to {years[-1]:g} years, where the follow-up ends"
        return estimate, f"no comparable pair before {years[-1]:g} years", note

    def task_at(self, name: str, year: float) -> Task:
        """The same of an estimate at `year`."""
        why = self.why_not_at(year)
        if why:
            return None, why, None
        return partial(getattr(self, f"_{name}"), year=year), f"nobody had the event within {year:g} years", None

    def why_not_at(self, year: float) -> str | None:
        """Why nothing can be estimated at `year`; None if it can."""
        if self.usable[self.grid == year].any():
            return None
        if year >= self.time.max():
            return f"nobody was followed beyond {year:g} years (longest: {self.time.max():.2f})"
        return f"past the training part's follow-up ({self.reference.last:.2f} years): its censoring is unknown"

    def why_no_groups(self) -> str:
        """Why the two risk groups can't be compared."""
        if not self.high.any() or self.high.all():
            return EMPTY.format("low" if self.high.all() else "high")
        if not self.event.any():
            return "no events"
        return "infinite: no event in the low-risk group while anyone of the high-risk group was still at risk"

    def inverse_weights(self, year: float) -> np.ndarray:
        """(N,) 1/G: at the event for events by `year`, at `year` for those event-free then, else 0."""
        had_it = self.event & (self.time <= year)
        known = np.where(had_it, self.time, year)
        return np.where(had_it | (self.time > year), 1 / self.reference.uncensored(known), 0.0)

    def predicted(self, year: float) -> np.ndarray:
        """(N,) predicted survival at `year`."""
        return self.survival[:, np.flatnonzero(self.grid == year)[0]]

    def _c_index(self, weights):
        return weighted_concordance(weights, self.log_hazard, self.time, self.event)

    def _uno_c(self, weights):
        early = self.event & (self.time < self.grid[self.usable][-1])
        pair_weight = np.zeros(len(self.time))
        pair_weight[early] = self.reference.uncensored(self.time[early]) ** -2.0
        return weighted_concordance(weights, self.log_hazard, self.time, self.event, pair_weight)

    def _auc(self, weights, year):
        cases = np.flatnonzero(self.event & (self.time <= year))
        left, right = weights[:, cases] * self.inverse_weights(year)[cases], weights * (self.time > year)
        return share_of_pairs(left, cases, right, self.log_hazard, lambda rows: np.ones((len(rows), len(self.time))))

    def _squared_error(self, year):
        return self.inverse_weights(year) * ((self.time > year) - self.predicted(year)) ** 2  # (N,)

    def _brier(self, weights, year):
        return weights @ self._squared_error(year) / len(self.time)

    def _ibs(self, weights):
        years = self.grid[self.usable]
        errors = np.stack([self._squared_error(year) for year in years], axis=1)  # (N, T)
        return weights @ np.trapezoid(errors, years, axis=1) / (years[-1] - years[0]) / len(self.time)

    def _hazard_ratio(self, weights):
        return hazard_ratio(weights, self.time, self.event, self.high)

    def _rmst_difference(self, weights):
        if self.compared_until is None:
            return np.full(len(weights), np.nan)
        means = []
        for group in (~self.high, self.high):
            mean = restricted_mean(weights[:, group], self.time[group], self.event[group], self.compared_until)
            means.append(np.where(weights[:, group].any(axis=1), mean, np.nan))
        return means[0] - means[1]


def _part(log_hazard, time, event, survival, grid, horizons, reference) -> _Part:
    log_hazard, time, event = checked(log_hazard, time, event)
    survival, grid = np.asarray(survival, float), np.asarray(grid, float)
    horizons = tuple(float(year) for year in horizons)
    if survival.shape != (len(time), len(grid)):
        raise ValueError(f"survival: expected shape {(len(time), len(grid))}. Received: {survival.shape}")
    if not ((survival >= 0) & (survival <= 1)).all():
        raise ValueError("survival: expected probabilities, from 0 to 1 and not NaN")
    if not np.isin(horizons, grid).all() or (np.diff(grid) <= 0).any():
        raise ValueError(f"grid: expected ascending years with the horizons {horizons}. Received: {grid.tolist()}")
    return _Part(log_hazard, time, event, survival, grid, horizons, reference)


def _risk_groups(part: _Part) -> dict:
    """Sizes of the two groups and the log-rank p of their difference."""
    from lifelines.statistics import logrank_test  # slow to import, and callbacks want the C-index alone

    high, low = part.high, ~part.high
    groups: dict = {
        "low": {"n": int(low.sum()), "events": int(part.event[low].sum())},
        "high": {"n": int(high.sum()), "events": int(part.event[high].sum())},
        "cut": float(part.reference.cut),
    }
    if high.all() or low.all() or not part.event.any():
        return groups | {"log_rank_p": None, "why": part.why_no_groups()}
    test = logrank_test(part.time[high], part.time[low], part.event[high], part.event[low])
    return groups | {"log_rank_p": float(test.p_value)}


# ---- Calibration ---------------------------------------------------------------------------------------
def _calibration(part: _Part, year: float, resamples: np.ndarray) -> dict:
    """Are the predicted risks at `year` right?

    `slope` (1 is right, below 1 overfitted) and `intercept` at slope 1 (0 is right, above 0 too low) are those of a
    logistic regression of the event by `year` on the predicted logit, weighted by 1/G. `groups` of predicted
    risk, deciles where there are 100 subjects, give the mean prediction and 1 - Kaplan-Meier.
    """
    why = part.why_not_at(year)
    risk = 1 - part.predicted(year)
    held = np.clip(risk, EXTREME, 1 - EXTREME)
    clipped = int((held != risk).sum())
    note = f"{clipped} predicted risks held to within {EXTREME:g} of 0 or 1" if clipped else None
    inverse = np.zeros(len(risk)) if why else part.inverse_weights(year)
    outcome = part.time <= year  # of those whose outcome is known; the others weigh nothing

    def line(slope: bool) -> Estimate:
        logit = np.log(held / (1 - held))
        estimate = None if why else (lambda weights: calibration_line(weights * inverse, logit, outcome, slope))
        nothing = "everyone known has the same outcome, the same prediction, or outcomes that the prediction separates"
        return _estimate((estimate, why or nothing, note), resamples)

    return {"slope": line(True), "intercept": line(False), "groups": list(_groups(part, year, risk, resamples))}


def _groups(part: _Part, year: float, risk: np.ndarray, resamples: np.ndarray) -> Iterator[dict]:
    num_groups = int(np.clip(len(risk) // LEAST_GROUP, 1, MOST_GROUPS))
    for members in np.array_split(np.argsort(risk, kind="stable"), num_groups):
        time, event = part.time[members], part.event[members]
        observed = partial(_observed_risk, members=members, time=time, event=event, year=year)
        ended = year > time.max() and not event[time == time.max()].all()
        why = f"the group's follow-up ends at {time.max():.2f} years" if ended else None
        estimate = _estimate((None if ended else observed, why, None), resamples)
        if estimate["value"] in (0, 1):
            estimate |= _all_alike(bool(estimate["value"]), int(((time >= year) | event).sum()))
        yield {
            "n": len(members),
            "events": int(event.sum()),
            "predicted": float(risk[members].mean()),
            "observed": estimate,
        }


def _observed_risk(weights, members, time, event, year) -> np.ndarray:
    """(R,) 1 - Kaplan-Meier at `year` of the members, whose times and events are given."""
    drawn = weights[:, members]
    return np.where(drawn.any(axis=1), 1 - kaplan_meier(drawn, time, event, np.array([year]))[:, 0], np.nan)


def _all_alike(everyone: bool, known: int) -> Estimate:
    """Exact binomial limits for a group in which nobody or everyone had the event; all its resamples are alike."""
    unseen = 1 - INTERVAL[0] ** (1 / known)
    note = f"{'everyone' if everyone else 'nobody'} of {known} with a known outcome had the event: exact limits"
    return {"low": 1 - unseen if everyone else 0.0, "high": 1.0 if everyone else unseen, "note": note}


# ---- Bootstrap -----------------------------------------------------------------------------------------
def _resamples(num_subjects: int, num_resamples: int, seed: int) -> np.ndarray:
    """(R, N) how often each subject is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_subjects, np.full(num_subjects, 1 / num_subjects), size=num_resamples).astype(float)


def _estimate(task: Task, resamples: np.ndarray) -> Estimate:
    """The value with its percentile interval; resamples without a value are left out and counted."""
    estimate, why, note = task
    value = np.nan if estimate is None else float(estimate(np.ones((1, resamples.shape[1])))[0])
    if estimate is None or np.isnan(value):
        return {"value": None, "low": None, "high": None, "why": why}
    values = estimate(resamples)
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, INTERVAL, method="inverted_cdf") if len(known) else (np.nan, np.nan)
    found: Estimate = {"value": _finite(value), "low": _finite(low), "high": _finite(high)}
    if np.isinf(value):
        found["why"] = why
    notes = [note] if note else []
    if len(known) < len(values):
        notes.append(f"{len(values) - len(known)} of {len(values)} resamples have no value and are left out")
    if np.isfinite(value) and np.isinf([low, high]).any():
        notes.append("one limit of the interval is infinite")
    return found | ({"note": "; ".join(notes)} if notes else {})


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
