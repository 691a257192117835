"""The figures of one model on one part, each as an estimand: what it is, why it may have no value, what is left out.

A higher log-hazard means an earlier event. Times are years from the landmark. `metrics` estimates them.
"""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from survival.bootstrap import Estimand
from survival.calibration import calibration_intercept, calibration_slope
from survival.estimates import (
    Reference,
    as_outcomes,
    hazard_ratio,
    kaplan_meier,
    largest_below,
    restricted_mean,
    share_of_pairs,
    weighted_concordance,
)

if TYPE_CHECKING:  # callbacks want the C-index alone, and pandas is slow to import
    import pandas as pd

CURVE_COLUMN = "survival_"  # of a table of predictions, followed by the year
EXTREME = 1e-6  # predicted risks are clipped to this distance from 0 and 1, whose logits are infinite
WHY_NO_LINE = "everyone known has the same outcome, the same prediction, or outcomes that the prediction separates"


# ---- Predictions -----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Prediction:
    """One model's predictions for the N subjects of one part, with their outcomes.

    Raises:
        ValueError: shapes that differ, numbers that are not finite, survival outside 0 to 1, a grid that does not
            ascend.
    """

    log_hazard: np.ndarray  # (N,) float; higher = earlier event
    time: np.ndarray  # (N,) years from the landmark to the event or censoring
    event: np.ndarray  # (N,) bool; True = the event was seen
    survival: np.ndarray  # (N, T) predicted survival, 0 to 1
    grid: np.ndarray  # (T,) ascending years of `survival`

    def __post_init__(self) -> None:
        log_hazard, time, event = as_outcomes(self.log_hazard, self.time, self.event)
        survival, grid = np.asarray(self.survival, float), np.asarray(self.grid, float)
        if survival.shape != (len(time), len(grid)):
            raise ValueError(f"survival: expected shape {(len(time), len(grid))}. Received: {survival.shape}")
        if not ((survival >= 0) & (survival <= 1)).all():
            raise ValueError("survival: expected probabilities, from 0 to 1 and not NaN")
        if (np.diff(grid) <= 0).any():
            raise ValueError(f"grid: expected ascending years. Received: {grid.tolist()}")
        arrays = {"log_hazard": log_hazard, "time": time, "event": event, "survival": survival, "grid": grid}
        for name, array in arrays.items():
            object.__setattr__(self, name, array)  # frozen: what was passed is replaced by its checked array

    @classmethod
    def of(cls, table: "pd.DataFrame") -> "Prediction":
        """The predictions of a table.

        Args:
            table: columns `log_hazard`, `time` (years), `event`, `survival_<year>...`, a row a subject.
        Returns:
            The same as arrays (N,) and (N, T).
        """
        grid, survival = read_curves(table)
        log_hazard, time, event = (table[name].to_numpy() for name in ("log_hazard", "time", "event"))
        return cls(log_hazard, time, event, survival, grid)

    def survival_at(self, year: float) -> np.ndarray:
        """(N,) predicted survival at a year of the grid."""
        return self.survival[:, np.flatnonzero(self.grid == year)[0]]


def read_curves(table: "pd.DataFrame") -> tuple[np.ndarray, np.ndarray]:
    """The survival curves in a table of predictions.

    Args:
        table: has the columns `survival_<year>...`.
    Returns:
        Years (T,) and survival (N, T), in the order of the columns.
    """
    names = [name for name in table.columns if name.startswith(CURVE_COLUMN)]
    return np.array([float(name.removeprefix(CURVE_COLUMN)) for name in names]), table[names].to_numpy()


# ---- Estimands -------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Estimands:
    """The figures of one model on one part of N subjects; each is a method that gives its estimand.

    Some figures need G, the Kaplan-Meier of the training part's censoring. They use the usable grid points only: those
    at which G is known and positive, within the follow-up of the part itself.

    Raises:
        ValueError: a horizon is not on the grid.
    """

    prediction: Prediction
    reference: Reference
    horizons: tuple[float, ...]  # years, ascending

    def __post_init__(self) -> None:
        horizons, grid = tuple(float(year) for year in self.horizons), self.prediction.grid
        if not np.isin(horizons, grid).all():
            raise ValueError(f"grid: expected years that contain the horizons {horizons}. Received: {grid.tolist()}")
        object.__setattr__(self, "horizons", horizons)  # frozen; as Python's floats, which name the years in results

    # ---- Discrimination
    def c_index(self) -> Estimand:
        """Harrell's C of the N subjects, see `concordance`."""
        risk, time, event = self._risk_and_outcomes()
        return Estimand(
            lambda weights: weighted_concordance(weights, risk, time, event),
            why="no comparable pair: nobody outlived an event",
        )

    def uno_c(self) -> Estimand:
        """Uno's C of the N subjects up to the last usable grid point; an event at t has the weight 1/G(t)^2."""
        if len(self.usable_years) < 2:
            return self._nothing_to_integrate()
        risk, time, event = self._risk_and_outcomes()
        early = event & (time < self.usable_years[-1])
        pair_weight = np.zeros(len(time))
        pair_weight[early] = self.reference.uncensored(time[early]) ** -2.0  # 1/G(t)^2
        return Estimand(
            lambda weights: weighted_concordance(weights, risk, time, event, pair_weight),
            why=f"no comparable pair before {self.usable_years[-1]:g} years",
            note=self._note_on_follow_up(),
        )

    def auc(self, year: float) -> Estimand:
        """AUC of the log-hazard: subjects with the event by `year` (weight 1/G) against those event-free after it."""
        if why := self.why_not_at(year):
            return Estimand(None, why)
        risk, time, event = self._risk_and_outcomes()
        cases, inverse = np.flatnonzero(event & (time <= year)), self.inverse_weights(year)

        def values(weights: np.ndarray) -> np.ndarray:
            left, right = weights[:, cases] * inverse[cases], weights * (time > year)
            return share_of_pairs(left, cases, right, risk, lambda rows: np.ones((len(rows), len(time))))

        return Estimand(values, why=f"nobody had the event within {year:g} years")

    # ---- Error of the survival curves
    def brier(self, year: float) -> Estimand:
        """Brier score at `year`: the mean squared error, weighted by 1/G at the event or at `year`."""
        if why := self.why_not_at(year):
            return Estimand(None, why)
        error = self.squared_error(year)
        return Estimand(lambda weights: weights @ error / len(error), why=f"nobody had the event within {year:g} years")

    def ibs(self) -> Estimand:
        """Brier score integrated over the grid by trapezoids, divided by its years; all of the grid must be usable."""
        years = self.prediction.grid
        if len(self.usable_years) < 2:
            return self._nothing_to_integrate()
        if why := self.why_not_at(years[-1]):
            return Estimand(None, why)
        errors = np.stack([self.squared_error(year) for year in years], axis=1)  # (N, T)
        integral = np.trapezoid(errors, years, axis=1)  # (N,)
        return Estimand(
            lambda weights: weights @ integral / (years[-1] - years[0]) / len(errors),
            why=f"no comparable pair before {years[-1]:g} years",
        )

    # ---- Risk groups
    def hazard_ratio(self) -> Estimand:
        """Cox hazard ratio of the high-risk to the low-risk subjects, Efron ties."""
        _, time, event = self._risk_and_outcomes()
        return Estimand(lambda weights: hazard_ratio(weights, time, event, self.high), why=self.why_no_groups())

    def rmst_difference(self) -> Estimand:
        """Event-free years of the low-risk group less those of the high-risk group, up to `compared_until`."""
        _, time, event = self._risk_and_outcomes()
        until = self.compared_until
        if until is None:
            return Estimand(None, self.why_no_groups())

        def mean(weights: np.ndarray, group: np.ndarray) -> np.ndarray:
            years = restricted_mean(weights[:, group], time[group], event[group], until)
            return np.where(weights[:, group].any(axis=1), years, np.nan)

        return Estimand(lambda weights: mean(weights, ~self.high) - mean(weights, self.high), why=self.why_no_groups())

    # ---- Calibration
    def calibration_slope(self, year: float) -> Estimand:
        """Slope of a logistic regression of the event by `year` on the predicted logit, weighted by 1/G."""
        if why := self.why_not_at(year):
            return Estimand(None, why)
        logit, outcome, inverse, note = self._logistic_data(year)
        return Estimand(lambda weights: calibration_slope(weights * inverse, logit, outcome), WHY_NO_LINE, note)

    def calibration_intercept(self, year: float) -> Estimand:
        """Intercept of the regression of `calibration_slope` at `year`, its slope held at 1."""
        if why := self.why_not_at(year):
            return Estimand(None, why)
        logit, outcome, inverse, note = self._logistic_data(year)
        return Estimand(lambda weights: calibration_intercept(weights * inverse, logit, outcome), WHY_NO_LINE, note)

    def observed_risk(self, members: np.ndarray, year: float) -> Estimand:
        """1 - Kaplan-Meier at `year` of a group of subjects, given by their indices (G,)."""
        time, event = self.prediction.time[members], self.prediction.event[members]
        if year > time.max() and not event[time == time.max()].all():
            return Estimand(None, f"the group's follow-up ends at {time.max():.2f} years")

        def values(weights: np.ndarray) -> np.ndarray:
            drawn = weights[:, members]  # (R, G)
            return np.where(drawn.any(axis=1), 1 - kaplan_meier(drawn, time, event, np.array([year]))[:, 0], np.nan)

        return Estimand(values, why=None)

    def _logistic_data(self, year: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None]:
        """(N,) predicted logit, outcome and 1/G at `year`; a note if risks were clipped."""
        risk = 1 - self.prediction.survival_at(year)
        clipped = np.clip(risk, EXTREME, 1 - EXTREME)
        num_clipped = int((clipped != risk).sum())
        note = f"{num_clipped} predicted risks held to within {EXTREME:g} of 0 or 1" if num_clipped else None
        outcome = self.prediction.time <= year  # where it is known; the other subjects have the weight 0
        return np.log(clipped / (1 - clipped)), outcome, self.inverse_weights(year), note

    # ---- What the estimands need
    def _risk_and_outcomes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-hazard, time and event, each (N,)."""
        return self.prediction.log_hazard, self.prediction.time, self.prediction.event

    @cached_property
    def usable(self) -> np.ndarray:
        """(T,) bool: the grid points before the follow-up of the training part or of this part ends."""
        grid = self.prediction.grid
        is_inside = grid < min(self.reference.follow_up, self.prediction.time.max())
        return is_inside & (self.reference.uncensored(grid) > 0)

    @property
    def usable_years(self) -> np.ndarray:
        """(usable,) years of the usable grid points."""
        return self.prediction.grid[self.usable]

    @cached_property
    def high(self) -> np.ndarray:
        """(N,) bool: the high-risk group."""
        return self.prediction.log_hazard > self.reference.cut

    @cached_property
    def compared_until(self) -> float | None:
        """Years: the last horizon, or the end of the shorter follow-up of the two risk groups if that is sooner."""
        if self.high.all() or not self.high.any():
            return None
        time = self.prediction.time
        return float(min(self.horizons[-1], time[self.high].max(), time[~self.high].max()))

    def inverse_weights(self, year: float) -> np.ndarray:
        """(N,) 1/G: at the event for events by `year`, at `year` for subjects event-free then, else 0."""
        _, time, event = self._risk_and_outcomes()
        had_event = event & (time <= year)
        known_until = np.where(had_event, time, year)
        return np.where(had_event | (time > year), 1 / self.reference.uncensored(known_until), 0.0)

    def squared_error(self, year: float) -> np.ndarray:
        """(N,) squared error of the predicted survival at `year`, weighted by 1/G."""
        is_free = self.prediction.time > year
        return self.inverse_weights(year) * (is_free - self.prediction.survival_at(year)) ** 2

    # ---- Reasons and notes
    def why_not_at(self, year: float) -> str | None:
        """Why nothing can be estimated at `year`; None if it can."""
        if self.usable[self.prediction.grid == year].any():
            return None
        longest, known = self.prediction.time.max(), self.reference.follow_up
        if year >= longest:
            why = f"nobody was followed beyond {year:g} years (longest: {longest:.2f})"
        else:
            why = f"past the training part's follow-up ({known:.2f} years): its censoring is unknown"
        return f"{why}; the largest horizon that the data bear is {largest_below(min(longest, known))} years"

    def why_no_groups(self) -> str:
        """Why the two risk groups can't be compared."""
        if self.high.all() or not self.high.any():
            return f"the {'low' if self.high.all() else 'high'}-risk group is empty"
        if not self.prediction.event.any():
            return "no events"
        return "infinite: no event in the low-risk group while anyone of the high-risk group was still at risk"

    def _nothing_to_integrate(self) -> Estimand:
        return Estimand(None, f"fewer than two of the {len(self.usable)} grid points are within the follow-up")

    def _note_on_follow_up(self) -> str | None:
        return None if self.usable.all() else f"up to {self.usable_years[-1]:g} years, where the follow-up ends"
