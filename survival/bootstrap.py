"""Subject bootstrap: an estimand is a function of the subjects' weights, an estimate its value and 95 % interval.

No pandas and no SciPy, so that the import is fast.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from runs.files import finite_or_none

INTERVAL = (0.025, 0.975)  # percentiles
Estimate = dict[str, float | str | None]  # `value, low, high`, perhaps `why` and `note`
Weighted = Callable[[np.ndarray], np.ndarray]  # (R, N) weights of the subjects -> (R,) values


@dataclasses.dataclass(frozen=True)
class Estimand:
    """A figure that can be estimated under any weights of the subjects."""

    values: Weighted | None  # None: it can't be estimated
    why: str | None  # the reason if there is no value, or if the value is not a finite number
    note: str | None = None  # what was left out

    def minus(self, other: "Estimand") -> "Estimand":
        """The difference of two estimands of the same subjects; its reason and its note are those of the first.

        Args:
            other: is subtracted under the same (R, N) weights.
        Returns:
            The difference; without values if one of the two has none.
        """
        first, second = self.values, other.values
        if first is None or second is None:
            return Estimand(None, self.why, self.note)
        return Estimand(lambda weights: first(weights) - second(weights), self.why, self.note)


def draw_resamples(num_subjects: int, num_resamples: int, seed: int) -> np.ndarray:
    """Draw the resamples of a bootstrap.

    Args:
        num_subjects: N.
        num_resamples: R.
        seed: of the random numbers.
    Returns:
        (R, N) float: how often each subject is drawn.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_subjects, np.full(num_subjects, 1 / num_subjects), size=num_resamples).astype(float)


def estimate(estimand: Estimand, resamples: np.ndarray) -> Estimate:
    """The value with its percentile interval.

    Args:
        estimand: of N subjects.
        resamples: (R, N) of `draw_resamples`; those without a value are left out, and a note says how many.
    Returns:
        `value, low, high`, each None if it is not a finite number; `why` if there is no finite value.
    """
    if estimand.values is None:
        return without_value(estimand.why)
    value = float(estimand.values(np.ones((1, resamples.shape[1])))[0])
    if np.isnan(value):
        return without_value(estimand.why)
    return with_interval(value, estimand.values(resamples), why=estimand.why, note=estimand.note)


def without_value(why: str | None) -> Estimate:
    """An estimate of what can't be estimated, and why."""
    return {"value": None, "low": None, "high": None, "why": why}


def with_interval(value: float, values: np.ndarray, *, why: str | None, note: str | None = None) -> Estimate:
    """An estimate with the interval that its resamples give.

    Args:
        value: not NaN.
        values: (R,) of the resamples; those that are NaN are left out, and a note says how many.
        why: the reason if the value is infinite.
        note: what else is to be known.
    Returns:
        As `estimate`.
    """
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, INTERVAL, method="inverted_cdf") if len(known) else (np.nan, np.nan)
    result: Estimate = {"value": finite_or_none(value), "low": finite_or_none(low), "high": finite_or_none(high)}
    if np.isinf(value):
        result["why"] = why
    notes = [note] if note else []
    if len(known) < len(values):
        notes.append(f"{len(values) - len(known)} of {len(values)} resamples have no value and are left out")
    if np.isfinite(value) and np.isinf([low, high]).any():
        notes.append("one limit of the interval is infinite")
    return result | ({"note": "; ".join(notes)} if notes else {})
