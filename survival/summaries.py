"""What a history says besides its last values: causal summaries of each column, at every visit.

A summary at a visit knows that visit and the earlier ones alone. Shapes: M visits of all subjects, G values of a visit
(as in `preparation.Seen`), Q summaries. Times are years.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

NAMES = (  # of each value, in this order
    *("slope", "recent slope", "highest", "lowest", "mean", "log spread"),
    *("largest step", "years since it"),  # between two visits, up or down
)
LEAST_VISITS = 3  # from which on a spread about the own line is known
LEAST_VARIANCE = 1e-12  # of values that are standardised, so that the logarithm is finite


@dataclasses.dataclass(frozen=True)
class Summaries:
    """How the values of each visit's history are summed up, fitted on training subjects.

    A slope is that of the subject's least-squares line, shrunk to the training subjects' mean slope as far as its own
    visits are too few, too near or too noisy to tell: slope = mean + trust (S_tv - mean S_tt) / (trust S_tt + 1), where
    trust is the variance of the true slopes over the variance about the subjects' own lines. No summary lies beyond
    those of the training subjects: two visits a day apart, or a value that had never changed, decide nothing.
    """

    mean_slope: np.ndarray  # (G,) by year
    trust: np.ndarray  # (G,) years^-2; 0: every slope is the mean
    log_spread: np.ndarray  # (G,) what a spread counts as before it is known
    low: np.ndarray  # (Q,) the lowest of the training subjects
    high: np.ndarray  # (Q,) the highest

    @classmethod
    def fit(cls, values: np.ndarray, table: pd.DataFrame) -> "Summaries":
        """Estimate from the training subjects' visits.

        Args:
            values: (M, G), standardised.
            table: the same visits, with `subject, visit_time`, sorted by subject and visit.
        """
        history = _History.of(values, table)
        is_last = np.append(history.first[1:], True)
        at_least_two = is_last & (history.count > 1)
        s_tt, s_tv, s_vv = (sums[at_least_two] for sums in (history.s_tt, history.s_tv, history.s_vv))
        degrees = np.maximum(history.count[at_least_two] - 2, 0)
        if not at_least_two.any() or not degrees.any():
            nothing = np.zeros(values.shape[1])
            return cls._within_range(nothing, nothing, nothing + np.log(LEAST_VARIANCE) / 2, values, table)
        noise = np.maximum(s_vv - s_tv**2 / s_tt, 0).sum(axis=0) / degrees.sum()  # (G,)
        mean = s_tv.sum(axis=0) / s_tt.sum()
        # sum S_tt (slope - mean)^2 has the expectation sum (variance S_tt + noise) of N subjects
        variance = np.maximum(((s_tv - mean * s_tt) ** 2 / s_tt - noise).sum(axis=0) / s_tt.sum(), 0.0)
        known = history.log_spread()[is_last & (history.count >= LEAST_VISITS)]
        trust = variance / np.maximum(noise, LEAST_VARIANCE)
        return cls._within_range(mean, trust, np.median(known, axis=0), values, table)

    @classmethod
    def _within_range(
        cls, mean: np.ndarray, trust: np.ndarray, spread: np.ndarray, values: np.ndarray, table: pd.DataFrame
    ) -> "Summaries":
        """These estimates (G,) each, with the range of the training visits' summaries."""
        unbound = cls(mean, trust, spread, np.array(-np.inf), np.array(np.inf))(values, table)
        return cls(mean, trust, spread, unbound.min(axis=0), unbound.max(axis=0))

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Summaries":
        """Restore what `dataclasses.asdict` gave, after a way through JSON; what is none raises as `Preparation`'s."""
        return cls(*(np.asarray(saved[field.name], float) for field in dataclasses.fields(cls)))

    def __call__(self, values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
        """Sum up each visit's history, (M, Q): NAMES of each value in turn, then the logarithm of the visits' number.

        Args:
            values: (M, G), standardised.
            table: the same visits, with `subject, visit_time`, sorted by subject and visit.
        """
        history = _History.of(values, table)
        slope = self._shrunk(history.s_tv, history.s_tt)
        gap, step = history.since_last()
        spread = np.where((history.count >= LEAST_VISITS)[:, None], history.log_spread(), self.log_spread)
        recent = self._shrunk(gap * step / 2, gap**2 / 2)
        summaries = (slope, recent, *history.extremes(), history.mean, spread, *history.largest_step(step))
        all_of_them = [np.stack(summaries, axis=2).reshape(len(values), -1), np.log(history.count)[:, None]]
        return np.clip(np.concatenate(all_of_them, axis=1), self.low, self.high)

    def _shrunk(self, s_tv: np.ndarray, s_tt: np.ndarray) -> np.ndarray:
        """(M, G) slopes of lines with these sums of squares (M, 1) and products (M, G)."""
        return self.mean_slope + self.trust * (s_tv - self.mean_slope * s_tt) / (self.trust * s_tt + 1)


@dataclasses.dataclass(frozen=True)
class _History:
    """Sums over each visit's history: that visit and the earlier ones of its subject."""

    values: np.ndarray  # (M, G)
    years: np.ndarray  # (M, 1)
    first: np.ndarray  # (M,) bool: the first visit of its subject
    count: np.ndarray  # (M,) visits so far
    mean: np.ndarray  # (M, G) of the values so far
    s_tt: np.ndarray  # (M, 1) sum of squares of the years about their mean
    s_tv: np.ndarray  # (M, G) sum of products with the values
    s_vv: np.ndarray  # (M, G) sum of squares of the values about their mean

    @classmethod
    def of(cls, values: np.ndarray, table: pd.DataFrame) -> "_History":
        """Of the M visits of a table, with `subject, visit_time`, sorted by subject and visit."""
        subject, years = table["subject"].to_numpy(), table[["visit_time"]].to_numpy(float)
        first = np.append(True, subject[1:] != subject[:-1])
        start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))  # (M,) row of the first visit
        count = np.arange(len(first)) - start + 1
        t, v = years - years[start], values - values[start]  # about the first visit, so that sums stay exact

        def so_far(terms: np.ndarray) -> np.ndarray:
            """Running sums of (M, .) within each subject, to the same bits whoever else is in the table."""
            return pd.DataFrame(terms).groupby(np.cumsum(first)).cumsum().to_numpy(float)

        n = count[:, None]
        mean_t, mean_v = so_far(t) / n, so_far(v) / n
        s_tt, s_tv = so_far(t**2) - n * mean_t**2, so_far(t * v) - n * mean_t * mean_v
        s_vv = so_far(v**2) - n * mean_v**2
        return cls(values, years, first, count, values[start] + mean_v, np.maximum(s_tt, 0), s_tv, np.maximum(s_vv, 0))

    def since_last(self) -> tuple[np.ndarray, np.ndarray]:
        """Years (M, 1) and change (M, G) since the visit before; 0 at a first visit."""
        gap, step = (np.diff(part, axis=0, prepend=part[:1]) for part in (self.years, self.values))
        return np.where(self.first[:, None], 0, gap), np.where(self.first[:, None], 0, step)

    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """Highest and lowest values so far, (M, G) each."""
        by_subject = pd.DataFrame(self.values).groupby(np.cumsum(self.first))
        return by_subject.cummax().to_numpy(), by_subject.cummin().to_numpy()

    def largest_step(self, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest of the steps (M, G) so far, up or down, and the years since its later visit, (M, G) each."""
        subject, size = np.cumsum(self.first), pd.DataFrame(np.abs(step))
        is_record = size.to_numpy() == size.groupby(subject).cummax().to_numpy()
        last_record = pd.DataFrame(np.where(is_record, np.arange(len(step))[:, None], -1)).groupby(subject).cummax()
        place = last_record.to_numpy(int)  # (M, G) rows
        return np.take_along_axis(step, place, axis=0), self.years - self.years[place, 0]

    def log_spread(self) -> np.ndarray:
        """(M, G) logarithm of the standard deviation about the line so far; meaningless below LEAST_VISITS."""
        of_line = np.divide(self.s_tv**2, self.s_tt, out=np.zeros_like(self.s_tv), where=self.s_tt > 0)
        variance = np.maximum(self.s_vv - of_line, 0) / np.maximum(self.count - 2, 1)[:, None]
        return 0.5 * np.log(np.maximum(variance, LEAST_VARIANCE))
