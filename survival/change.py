"""Change as a measurement of its own: each subject's line through its visits, and the rate that it lets one believe.

A subject's value is level + rate x years + noise. The level is the subject's own; rates differ between subjects with a
mean and a standard deviation; the noise is independent from scan to scan. Nothing is assumed of levels, so a measure of
which only differences within a subject mean anything can be used.

Shapes: M visits of N subjects, R sets of weights of the subjects. Times are years.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from cohort.tables import ON_DISK
from runs.errors import InputError
from runs.files import read_json, write_json, written_whole

MEASURE = "progress"  # the column that is measured for each subject
TABLE, POPULATION_FILE = "features/change.csv", "features/change.json"  # in a run's folder
LEAST_FOR_NOISE = 3  # visits of a subject whose distance from its own line tells of noise
Z = float(stats.norm.ppf(0.975))  # of a 95 % interval
RATES = ("rate", "rate_low", "rate_high")  # columns

logger = logging.getLogger(__name__)


# ---- Lines -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Lines:
    """The least-squares line of each subject, through its own visits alone."""

    subject: np.ndarray  # (N,) ids
    num_visits: np.ndarray  # (N,)
    first: np.ndarray  # (N,) years of the first visit
    last: np.ndarray  # (N,) years of the last visit
    value: np.ndarray  # (N,) at the last visit
    s_tt: np.ndarray  # (N,) sum of squares of the years about their mean; 0 with one visit
    slope: np.ndarray  # (N,) by year; NaN with one visit
    s_residual: np.ndarray  # (N,) sum of squares of the values about the line; 0 below LEAST_FOR_NOISE visits

    @classmethod
    def of(cls, table: pd.DataFrame, column: str) -> "Lines":
        """Fit the lines.

        Args:
            table: M visits with `subject, visit_time` (years), sorted by subject and visit.
            column: of the values, any unit.
        """
        by_subject = table[["visit_time", column]].astype(float).groupby(table["subject"], sort=False)
        first, last, num_visits = by_subject.first(), by_subject.last(), by_subject.size().to_numpy()
        t, v = (table[name] - by_subject[name].transform("mean") for name in ("visit_time", column))
        sums = pd.DataFrame({"tt": t**2, "tv": t * v, "vv": v**2}).groupby(table["subject"], sort=False).sum()
        s_tt, s_tv, s_vv = sums.to_numpy().T
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = np.where(s_tt > 0, s_tv / s_tt, np.nan)
        return cls(
            sums.index.to_numpy(),
            num_visits,
            first["visit_time"].to_numpy(),
            last["visit_time"].to_numpy(),
            last[column].to_numpy(),
            s_tt,
            slope,
            np.where(num_visits < LEAST_FOR_NOISE, 0.0, np.maximum(s_vv - np.nan_to_num(slope) * s_tv, 0.0)),
        )

    @property
    def degrees(self) -> np.ndarray:
        """(N,) degrees of freedom of the distance from the line."""
        return np.maximum(self.num_visits - 2, 0)

    @property
    def noise(self) -> np.ndarray:
        """(N,) standard deviation about a subject's own line; NaN below LEAST_FOR_NOISE visits."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(np.where(self.degrees > 0, self.s_residual / self.degrees, np.nan))


# ---- What the lines of many subjects tell -----------------------------------------------------------
@dataclass(frozen=True)
class Moments:
    """The mean and spread of the true rates, and the noise, under each of R sets of weights of the subjects."""

    mean: np.ndarray  # (R,) by year; NaN: nobody has two visits
    mean_error: np.ndarray  # (R,) standard error of it
    rate_variance: np.ndarray  # (R,) between subjects; of their own slopes, noise included, where that is not known
    noise_variance: np.ndarray  # (R,) NaN: nobody has LEAST_FOR_NOISE visits

    @classmethod
    def of(cls, lines: Lines, weights: np.ndarray) -> "Moments":
        """Estimate by moments in two steps: first each slope weighs S_tt, then 1 / its estimated variance.

        Args:
            lines: of N subjects; those with one visit tell nothing.
            weights: (R, N) how often each subject counts.
        Source: DerSimonian and Kacker (2007), the two-step estimator of a meta-analysis whose studies are the subjects.
            Checked against statsmodels' mixed model and against the maximum of the restricted likelihood.
        """
        known = lines.s_tt > 0
        counts, s_tt, slope = weights[:, known], lines.s_tt[known], lines.slope[known]
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = counts @ lines.s_residual[known] / (counts @ lines.degrees[known])  # (R,)
            slope_noise = np.nan_to_num(noise)[:, None] / s_tt  # (R, n) variance of a slope by noise alone
            _, variance = _mean_and_variance(counts, np.broadcast_to(s_tt, counts.shape), slope, slope_noise)
            precision = 1 / (variance[:, None] + slope_noise)  # (R, n)
            precision[np.isinf(precision).any(axis=1)] = 1.0  # all slopes are the same
            mean, variance = _mean_and_variance(counts, precision, slope, slope_noise)
            error = 1 / np.sqrt((counts / (variance[:, None] + slope_noise)).sum(axis=1))
        return cls(mean, error, variance, noise)


def _mean_and_variance(
    counts: np.ndarray, weights: np.ndarray, slope: np.ndarray, slope_noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean (R,) and the variance (R,) of true slopes, from slopes (n,) of a known noise, all else (R, n).

    The variance is the one that makes the weighted sum of squares about the weighted mean what is expected of it.
    """
    total = (counts * weights).sum(axis=1, keepdims=True)
    mean = (counts * weights) @ slope / total[:, 0]
    own = counts * weights * (1 - weights / total)  # (R, n)
    squares = (counts * weights * (slope - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.maximum((squares - (own * slope_noise).sum(axis=1)) / own.sum(axis=1), 0.0)


# ---- A subject's rate ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Population:
    """What the training subjects tell of the rate of another subject."""

    mean_rate: float  # by year
    mean_rate_error: float  # standard error of it
    rate_sd: float  # of the true rates
    noise: float  # standard deviation of a value about its subject's line
    mean_level: float  # of the values at the subjects' last visits

    @classmethod
    def of(cls, lines: Lines) -> "Population | None":
        """Estimate from training subjects.

        Args:
            lines: of these subjects.
        Returns:
            The figures; None if the noise or the spread of the rates can't be told: nobody has LEAST_FOR_NOISE visits,
            or fewer than two subjects have two.
        """
        moments = Moments.of(lines, np.ones((1, len(lines.subject))))
        variances = moments.rate_variance[0], moments.noise_variance[0]
        if not np.isfinite(variances).all():
            return None
        rate_sd, noise = np.sqrt(variances)
        figures = moments.mean[0], moments.mean_error[0], rate_sd, noise, lines.value.mean()
        return cls(*map(float, figures))

    def rates(self, lines: Lines) -> pd.DataFrame:
        """The rate of each subject: its own slope, shrunken to the mean rate as far as it is noise.

        rate = mean + k (slope - mean) with k = variance of the rates / (that + noise variance / S_tt); its variance is
        (1 - k) variance of the rates + (1 - k)^2 variance of the mean. With one visit, k = 0: the population's rate.

        Args:
            lines: of N subjects, of the training part or new.
        Returns:
            (N, 3) RATES, with 95 % intervals for the subject's true rate; how well the population's own spread and
            noise are known is not in them.
        Source: the best linear unbiased prediction; Laird and Ware (1982).
        """
        between, noise = self.rate_sd**2 * lines.s_tt, self.noise**2
        share = np.divide(between, between + noise, out=np.zeros_like(between), where=between > 0)  # k
        rate = self.mean_rate + share * (np.nan_to_num(lines.slope) - self.mean_rate)
        error = np.sqrt((1 - share) * self.rate_sd**2 + ((1 - share) * self.mean_rate_error) ** 2)
        return pd.DataFrame(dict(zip(RATES, (rate, rate - Z * error, rate + Z * error), strict=True)))

    def save(self, path: Path) -> None:
        """Write the figures as JSON, whole."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Population":
        """Read what `save` wrote.

        Raises:
            InputError: the file is damaged.
        """
        try:
            return POPULATION.validate_python(read_json(path))
        except ValidationError as error:
            raise InputError(
                f"{path}: expected the training subjects' rates, received something else: {error}. Run main.py again."
            ) from error


POPULATION = TypeAdapter(Population)


def write_change(folder: Path, parts: Mapping[str, pd.DataFrame]) -> None:
    """Write every subject's change, and what the training subjects tell of others' rates.

    Args:
        folder: of the run; gets TABLE, and POPULATION_FILE if there are rates to tell.
        parts: as for `change_table`; `train` is the training part.
    """
    population = Population.of(Lines.of(parts["train"], MEASURE))
    if population is None:
        logger.warning("no rates: fewer than two training subjects have two visits, or none has %d", LEAST_FOR_NOISE)
    else:
        population.save(folder / POPULATION_FILE)
        logger.info(
            "rates of the training subjects: mean %.2f, standard deviation %.2f years of progress a year; noise of a "
            "scan %.2f years",
            *(population.mean_rate, population.rate_sd, population.noise),
        )
    table = change_table(parts, population)
    if num_single := int((table["num_visits"] == 1).sum()):
        logger.info("%d of %d subjects have one visit: their rate is the training subjects'", num_single, len(table))
    with written_whole(folder / TABLE) as part:
        table.to_csv(part, index=False)


def change_table(parts: Mapping[str, pd.DataFrame], population: Population | None) -> pd.DataFrame:
    """Level, rate and noise of every subject's progress.

    Args:
        parts: by part, M visits with `subject, visit_time` (years) and MEASURE, sorted by subject and visit.
        population: of the training subjects; None: rates and intervals are left empty.
    Returns:
        A row a subject, in the user's column names: `subjectid, split, num_visits, first_visit, last_visit` (years),
        `level` at the last visit (years along the course, from the training subjects' mean at theirs) with a 95 %
        interval for the noise, `rate` with its interval (`Population.rates`), `own_slope` with its standard error, and
        `noise`, the standard deviation about the subject's own line. Empty where the visits don't tell.
    """
    lines_of = {part: Lines.of(table, MEASURE) for part, table in parts.items()}
    return pd.concat([_rows(part, lines, population) for part, lines in lines_of.items()], ignore_index=True)


def _rows(part: str, lines: Lines, population: Population | None) -> pd.DataFrame:
    """The rows of one part's subjects."""
    table = pd.DataFrame({ON_DISK["subject"]: lines.subject, "split": part, "num_visits": lines.num_visits})
    table = table.assign(first_visit=lines.first, last_visit=lines.last)
    unknown = np.full(len(table), np.nan)
    if population is None:
        table = table.assign(level=unknown, level_low=unknown, level_high=unknown, **dict.fromkeys(RATES, unknown))
    else:
        level, reach = lines.value - population.mean_level, Z * population.noise
        table = table.assign(level=level, level_low=level - reach, level_high=level + reach)
        table = pd.concat([table, population.rates(lines)], axis=1)
    noise = np.nan if population is None else population.noise
    with np.errstate(divide="ignore"):
        error = np.where(lines.s_tt > 0, noise / np.sqrt(lines.s_tt), np.nan)
    return table.assign(own_slope=lines.slope, own_slope_error=error, noise=lines.noise)
