"""How good change is as a measurement: repeatability, agreement of the halves of a history, the size of a trial.

Each figure is of the subjects of one part, with a 95 % interval of a bootstrap over them. Any column of a table of
visits can be measured.

Shapes: N subjects, H of them with two halves; W sets of weights: every subject once, then R resamples. Times are
years.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from survival.bootstrap import Estimate, draw_resamples, with_interval, without_value
from survival.change import LEAST_FOR_NOISE, Lines, Moments, Z

SLOWING, POWER, LEVEL = 0.25, 0.80, 0.05  # of the trial: share of the mean rate, power, two-sided level
SHORT = 0.25  # years: visits so near show the noise; halves of a history so short don't show a rate
LEAST_PAIRS = 10  # subjects with visits so near, from which on they tell the noise
OF_PAIRS, OF_LINES = "short pairs", "lines"  # where the noise is from

UNKNOWN = "it is not known of every visit"
NO_RATE = "nobody has two visits"
NO_NOISE = f"nobody has {LEAST_FOR_NOISE} visits or more"
CONSTANT = "it is the same at all visits of most subjects, as where one mask cuts out all brains, so it shows no change"
NO_HALVES = f"fewer than two subjects have {LEAST_FOR_NOISE} visits whose halves span {SHORT:g} years"
NO_MEAN = "infinite: the mean rate is 0"
NO_VALUE = "too few subjects, or no spread between them"
NOT_APART = f"{NO_NOISE}, so the spread is that of the subjects' own slopes, noise included"


@dataclass(frozen=True)
class _Measured:
    """A column of a table of visits, measured."""

    table: pd.DataFrame  # `subject, visit_time` and the column
    column: str
    weights: np.ndarray  # (W, N)

    @cached_property
    def lines(self) -> Lines:
        """The subjects' lines."""
        return Lines.of(self.table, self.column)

    @cached_property
    def moments(self) -> Moments:
        """What the lines tell, (W,)."""
        return Moments.of(self.lines, self.weights)

    @property
    def why_no_rate(self) -> str | None:
        """Why the column has no rate; None if it has one."""
        if self.table[self.column].isna().any():
            return UNKNOWN
        if not (self.lines.s_tt > 0).any():
            return NO_RATE
        by_subject = self.table.groupby("subject")[self.column]
        is_constant = (by_subject.min() == by_subject.max())[by_subject.size() > 1]
        return CONSTANT if is_constant.mean() > 0.5 else None

    @property
    def note(self) -> str | None:
        """What is to be known of a spread of rates; None: nothing."""
        return None if self.lines.degrees.any() else NOT_APART


def measure_change(table: pd.DataFrame, columns: Sequence[str], *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Measure the change of some columns in the subjects of one part.

    Args:
        table: visits with `subject, visit_time` (years) and the columns, sorted by subject and visit.
        columns: what is measured, each in its own unit.
        num_resamples: R.
        seed: of the bootstrap.
    Returns:
        `subjects`, and how many of them have `two_visits` and `three_visits`; `visits` and `years`, median number and
        span of those with two. Then, by column,
        `rate`: `mean` and `sd` of the true rates by year;
        `repeatability`: see `_repeatability`;
        `consistency`: see `_consistency`;
        `sample_size`: subjects an arm, see `trial_size`.
        What has no value says why.
    """
    num_subjects = table["subject"].nunique()
    resamples = draw_resamples(num_subjects, num_resamples, seed)
    weights = np.concatenate([np.ones((1, num_subjects)), resamples])
    measured = [_Measured(table, column, weights) for column in columns]
    by_figure = {"rate": _rates, "repeatability": _repeatability, "consistency": _consistency, "sample_size": _size}
    figures = {name: {each.column: figure(each) for each in measured} for name, figure in by_figure.items()}
    return _schedule(measured[0].lines) | figures


def _schedule(lines: Lines) -> dict[str, Any]:
    """How many subjects have which visits."""
    several = lines.num_visits > 1
    visits, spans = lines.num_visits[several], (lines.last - lines.first)[several]
    return {
        "subjects": len(several),
        "two_visits": int(several.sum()),
        "three_visits": int((visits >= LEAST_FOR_NOISE).sum()),
        "visits": float(np.median(visits)) if several.any() else None,
        "years": float(np.median(spans)) if several.any() else None,
    }


def _estimate(values: np.ndarray, note: str | None = None) -> Estimate:
    """The value of all subjects with the interval of the resamples, from (W,); what is infinite is so for NO_MEAN."""
    if np.isnan(values[0]):
        return without_value(NO_VALUE)
    return with_interval(float(values[0]), values[1:], why=NO_MEAN, note=note)


# ---- Rates and the size of a trial -------------------------------------------------------------------
def _rates(measured: _Measured) -> dict[str, Estimate]:
    """Mean and standard deviation of the true rates."""
    if why := measured.why_no_rate:
        return {"mean": without_value(why), "sd": without_value(why)}
    moments = measured.moments
    return {"mean": _estimate(moments.mean), "sd": _estimate(np.sqrt(moments.rate_variance), note=measured.note)}


def _size(measured: _Measured) -> Estimate:
    """Subjects an arm of a trial with the visits of the median subject; infinite where the mean rate has no sign."""
    if why := measured.why_no_rate:
        return without_value(why)
    moments, s_tt = measured.moments, measured.lines.s_tt
    noise = np.nan_to_num(moments.noise_variance)
    sizes = trial_size(moments.mean, moments.rate_variance, noise, s_tt=float(np.median(s_tt[s_tt > 0])))
    other_sign = moments.mean * moments.mean[0] <= 0
    return _estimate(np.where(other_sign, np.inf, sizes), measured.note)


def trial_size(
    mean_rate: np.ndarray, rate_variance: np.ndarray, noise_variance: np.ndarray, *, s_tt: float
) -> np.ndarray:
    """Subjects an arm that show a slowing by SLOWING with POWER: a two-sided comparison of two means of slopes.

    n = 2 (z_a + z_b)^2 (rate_variance + noise_variance / S_tt) / (SLOWING mean_rate)^2

    Args:
        mean_rate: (W,) of the untreated, by year; the treatment is taken to slow all of it.
        rate_variance: (W,) of the true rates.
        noise_variance: (W,) of a value about its subject's line.
        s_tt: sum of squares of the trial's visit times about their mean, years^2.
    Returns:
        (W,) not rounded; infinite for a mean rate of 0.
    Source: Diggle et al. (2002), Analysis of Longitudinal Data, section 2.4.
    """
    z = stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)
    with np.errstate(divide="ignore"):
        return 2 * z**2 * (rate_variance + noise_variance / s_tt) / (SLOWING * mean_rate) ** 2


# ---- Repeatability ----------------------------------------------------------------------------------
def _repeatability(measured: _Measured) -> dict[str, Any]:
    """The noise of one value, from visits of one subject at nearly one time, else from the subjects' lines.

    Returns:
        `within_sd`, standard deviation of a value about the course of its subject; `coefficient`, 1.96 sqrt(2) times
        that: 95 % of the differences between two values of an unchanged subject are smaller; `years`, how long the mean
        rate takes for as much; `source`, OF_PAIRS or OF_LINES, and the number of `pairs`.
    Source: Bland and Altman (1999).
    """
    if why := measured.why_no_rate:
        return {**_without_noise(why), "source": OF_LINES, "pairs": 0}
    lines, weights = measured.lines, measured.weights
    pairs, squares = _short_pairs(measured)
    source = OF_PAIRS if (pairs > 0).sum() >= LEAST_PAIRS else OF_LINES
    total, number = (squares / 2, pairs) if source == OF_PAIRS else (lines.s_residual, lines.degrees)
    if not number.any():
        return {**_without_noise(NO_NOISE), "source": source, "pairs": 0}
    with np.errstate(invalid="ignore", divide="ignore"):
        within = np.sqrt(weights @ total / (weights @ number))
        coefficient = Z * np.sqrt(2) * within
        years = coefficient / np.abs(measured.moments.mean)
    return {
        "within_sd": _estimate(within),
        "coefficient": _estimate(coefficient),
        "years": _estimate(years),
        "source": source,
        "pairs": int(pairs.sum()) if source == OF_PAIRS else 0,
    }


def _without_noise(why: str) -> dict[str, Estimate]:
    """What is not known where the noise is not."""
    return {name: without_value(why) for name in ("within_sd", "coefficient", "years")}


def _short_pairs(measured: _Measured) -> tuple[np.ndarray, np.ndarray]:
    """Visits that follow one another within SHORT: their number (N,), and squared differences less the mean rate (N,).

    What a subject's own rate adds to such a difference counts as noise.
    """
    subject = measured.table["subject"]
    steps = measured.table.groupby(subject, sort=False)[["visit_time", measured.column]].diff()
    is_short = steps["visit_time"] <= SHORT
    difference = steps[measured.column] - measured.moments.mean[0] * steps["visit_time"]
    terms = pd.DataFrame({"number": is_short.astype(float), "square": (difference**2).where(is_short, 0.0)})
    sums = terms.groupby(subject, sort=False).sum()
    return sums["number"].to_numpy(), sums["square"].to_numpy()


# ---- The halves of a history -------------------------------------------------------------------------
@dataclass(frozen=True)
class _Halves:
    """Slopes of the first and the second half of each history; the middle visit of an odd number belongs to both."""

    rows: np.ndarray  # (H,) of the subjects, among N
    slopes: np.ndarray  # (H, 2)
    noise: np.ndarray  # (H, 3) what a unit of noise variance gives: variances of the two, and their covariance
    left_out: int  # subjects with enough visits, of which a half spans less than SHORT

    @classmethod
    def of(cls, measured: _Measured) -> "_Halves":
        """Fit the halves of the subjects with LEAST_FOR_NOISE visits or more."""
        numbers = measured.lines.num_visits
        columns = (measured.table[name].to_numpy(float) for name in ("visit_time", measured.column))
        years, values = (np.split(column, np.cumsum(numbers)[:-1]) for column in columns)
        enough = np.flatnonzero(numbers >= LEAST_FOR_NOISE)
        maps = {row: both for row in enough if (both := _maps_to_slopes(years[row])) is not None}
        slopes = [both @ values[row] for row, both in maps.items()]
        noise = [[*(both**2).sum(axis=1), both[0] @ both[1]] for both in maps.values()]
        left_out = len(enough) - len(maps)
        return cls(np.array(list(maps), int), np.reshape(slopes, (-1, 2)), np.reshape(noise, (-1, 3)), left_out)


def _maps_to_slopes(years: np.ndarray) -> np.ndarray | None:
    """(2, V) factors of values at V times that give the slopes of the halves; None if one spans less than SHORT."""
    half = (len(years) + 1) // 2
    maps = np.zeros((2, len(years)))
    for of_half, part in zip(maps, (slice(None, half), slice(-half, None)), strict=True):
        if np.ptp(years[part]) < SHORT:
            return None
        centred = years[part] - years[part].mean()
        of_half[part] = centred / (centred**2).sum()
    return maps


def _consistency(measured: _Measured) -> dict[str, Any]:
    """Whether the second half of a history has the rate of the first.

    Returns:
        `correlation` of the two slopes over subjects; `expected`, what it would be if every course were straight: noise
        alone makes halves disagree, the more where they share a visit; `icc`, of absolute agreement: a second half that
        is faster counts against it; the numbers of `subjects` and of those `left_out`.
    Source: ICC(A,1) of McGraw and Wong (1996).
    """
    halves = _Halves.of(measured)
    numbers = {"subjects": len(halves.rows), "left_out": halves.left_out}
    why = measured.why_no_rate or (NO_HALVES if len(halves.rows) < 2 else None)
    if why:
        return {**{name: without_value(why) for name in ("correlation", "expected", "icc")}, **numbers}
    weights = measured.weights[:, halves.rows]  # (W, H)
    with np.errstate(invalid="ignore", divide="ignore"):
        variances, covariance, difference = _second_moments(halves.slopes, weights)
        noise = weights @ halves.noise / weights.sum(axis=1, keepdims=True) * measured.moments.noise_variance[:, None]
        rates = measured.moments.rate_variance
        expected = (rates + noise[:, 2]) / np.sqrt((rates + noise[:, 0]) * (rates + noise[:, 1]))
        subjects = variances.sum(axis=1) / 2 + covariance  # mean squares: of the subjects,
        rest = variances.sum(axis=1) / 2 - covariance  # of what is left,
        number = weights.sum(axis=1)
        of_halves = number * difference**2 / 2  # of the halves
        icc = (subjects - rest) / (subjects + rest + 2 * (of_halves - rest) / number)
        correlation = covariance / np.sqrt(variances.prod(axis=1))
    return {
        "correlation": _estimate(correlation),
        "expected": _estimate(expected),
        "icc": _estimate(icc),
        **numbers,
    }


def _second_moments(slopes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances (W, 2), covariance (W,) and difference of the means (W,) of two columns (H, 2)."""
    centred = slopes - slopes.mean(axis=0)  # so that nothing is lost to rounding
    number = weights.sum(axis=1, keepdims=True)
    mean = weights @ centred / number
    variances = np.maximum(weights @ centred**2 - number * mean**2, 0) / (number - 1)
    covariance = (weights @ centred.prod(axis=1) - number[:, 0] * mean.prod(axis=1)) / (number[:, 0] - 1)
    return variances, covariance, mean[:, 0] - mean[:, 1] + (slopes[:, 0] - slopes[:, 1]).mean()
