"""What stage 2 says of every subject: its table of predictions.

No PyTorch: the model comes as an argument. Times in years.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.special

from cohort.tables import ON_DISK
from runs.errors import InputError
from runs.files import written_whole
from survival.cox import Ties, ridge_cox
from survival.estimates import Baseline, breslow, survival_curves
from survival.landmarks import Histories, Landmarks
from survival.link import landmark_sets
from survival.preparation import Preparation

QUARTER = 0.25  # years between the points of a survival curve
SLOPE_PENALTY = 1e-6  # keeps the recalibration finite where the validation part is separable
logger = logging.getLogger(__name__)


class Correction(Protocol):
    """What the T-LSTM adds to the link."""

    def correct(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-hazards (S, R); attention scores (S, M), if it attends."""
        ...


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Everything that a prediction needs: prepared inputs, link, correction, baseline hazards."""

    prepare: Preparation
    grid: tuple[float, ...]  # landmarks it was trained at; empty: last visits
    link: np.ndarray  # (S, P)
    network: Correction | None = None  # None: the linear model alone
    slope: float = 1.0  # recalibration of the log-hazard
    baselines: tuple[Baseline, ...] = ()  # one a landmark of the grid

    def predict(
        self, table: pd.DataFrame, at: Sequence[float] = (), *, years: Sequence[float] | np.ndarray
    ) -> pd.DataFrame:
        """Log-hazard, survival curve and attention of every subject at every landmark.

        Args:
            table: visits in memory's columns, sorted by subject and visit; `time` and `event` may be absent.
            at: landmarks, years from baseline; empty: each subject's last visit.
            years: (T,) after the landmark, of the survival curve.
        Returns:
            A row a subject and landmark at which it has a visit and is event-free: `subject, landmark, time,
            event, log_hazard, survival_<year>..., attention_<visit>...`; `time` is what is left. Attention
            is NaN after the landmark.
        Raises:
            InputError: a column that the model was trained on is absent.
        """
        absent = [name for name in self.prepare.columns if name not in table]
        if absent:
            raise InputError(f"expected the columns the model was trained on. Missing: {', '.join(absent)}.")
        data = Histories.of(table, self.prepare, at)
        rows = data.landmarks
        seeds, scores = self.seeds(data)
        log_hazard = self.slope * seeds.mean(axis=0)
        nearest = np.abs(rows.year[:, None] - np.array(self.grid or [np.nan])).argmin(axis=1)  # (R,)
        curves = np.empty((len(rows), len(years)))
        for number in np.unique(nearest):
            here = nearest == number
            curves[here] = survival_curves(self.baselines[number], log_hazard[here], np.asarray(years))
        columns = {
            "subject": data.visits.subject[rows.subject],
            "landmark": rows.year,
            "time": rows.time,
            "event": rows.event,
            "log_hazard": log_hazard,
        }
        columns |= {f"survival_{float(year)}": curve for year, curve in zip(years, curves.T, strict=True)}
        if scores is not None:
            weights = attention(scores, data)
            columns |= {f"attention_{visit + 1}": column for visit, column in enumerate(weights.T)}
        return pd.DataFrame(columns)

    def seeds(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-hazard of each seed (S, R), attention scores (S, M)."""
        linear = self.link @ data.inputs[data.rows].T
        if self.network is None:
            return linear, None
        correction, scores = self.network.correct(data)
        return linear + correction, scores

    def calibrated(
        self, table: pd.DataFrame, validation: np.ndarray, *, recalibrate: bool = False, ties: Ties = "efron"
    ) -> "Predictor":
        """The same with its baseline hazards and, if asked, the slope of its log-hazard on validation.

        Breslow's baseline at each landmark is of the subjects that some seed was trained on.

        Args:
            table: visits of training and validation subjects.
            validation: (S, N) bool: the subjects that each seed was not trained on.
            recalibrate: multiply the log-hazard by its slope in a Cox model of the validation subjects.
            ties: of that model.
        Returns:
            A new predictor.
        """
        data = Histories.of(table, self.prepare, self.grid)
        rows, seeds = data.landmarks, self.seeds(data)[0]
        slope = _slope(seeds, validation[:, rows.subject], rows, ties) if recalibrate else 1.0
        log_hazard = slope * seeds.mean(axis=0)
        trained = np.asarray(~validation.all(axis=0))[rows.subject]
        baselines = {}
        for stratum in np.unique(rows.stratum[trained & rows.event]):  # a landmark without an event has no curve
            here = trained & (rows.stratum == stratum)
            baselines[stratum] = breslow(log_hazard[here], rows.time[here], rows.event[here])
        grid = tuple(self.grid[stratum] for stratum in baselines) if self.grid else ()
        return dataclasses.replace(self, grid=grid, slope=slope, baselines=tuple(baselines.values()))

    def described(self) -> dict[str, Any]:
        """All but the network, for JSON."""
        kept = ("prepare", "grid", "link", "slope", "baselines")
        described = {name: getattr(self, name) for name in kept}
        described["prepare"] = dataclasses.asdict(self.prepare)
        return described | {"baselines": [dataclasses.asdict(baseline) for baseline in self.baselines]}

    @classmethod
    def restored(cls, kept: Mapping[str, Any], *, num_seeds: int) -> "Predictor":
        """From `described`, by way of JSON.

        Raises:
            KeyError, TypeError, ValueError: not what `described` gave, parts that don't fit, numbers not finite.
        """
        prepare = Preparation.restored(kept["prepare"])
        grid, link = tuple(float(year) for year in kept["grid"]), np.asarray(kept["link"], float)
        fields = [field.name for field in dataclasses.fields(Baseline)]
        baselines = tuple(Baseline(*(np.asarray(part[name], float) for name in fields)) for part in kept["baselines"])
        received = (link.shape, len(baselines))
        expected = ((num_seeds, prepare.num_inputs), max(len(grid), 1))
        if received != expected:
            raise ValueError(f"link and baselines: expected {expected}, received {received}")
        numbers = [link, *(getattr(part, name) for part in baselines for name in fields), kept["slope"]]
        if not all(np.isfinite(part).all() for part in numbers):
            raise ValueError("link, slope and baselines: expected finite numbers")
        return cls(prepare, grid, link, slope=float(kept["slope"]), baselines=baselines)


def _slope(seeds: np.ndarray, held: np.ndarray, rows: Landmarks, ties: Ties) -> float:
    """Slope of a Cox model on the mean log-hazard of the seeds that were not trained on a row."""
    some = np.asarray(held.any(axis=0))
    mean = (seeds * held).sum(axis=0)[some] / held.sum(axis=0)[some]
    slope = float(ridge_cox(mean[:, None], landmark_sets(rows[some], ties), SLOPE_PENALTY)[0])
    if slope <= 0:
        logger.warning("recalibration: slope %.2f on validation, so the log-hazard is left as it is", slope)
        return 1.0
    logger.info("recalibration: slope %.2f", slope)
    return slope


def attention(scores: np.ndarray, data: Histories) -> np.ndarray:
    """(R, V) share of each visit up to the landmark, mean over the seeds; NaN after the landmark."""
    last = data.landmarks.visit[:, None]
    steps = np.arange(len(data.visits.sizes))
    seen = steps <= last  # (R, V)
    places = data.visits.row(data.landmarks.subject[:, None], np.minimum(steps, last))
    weights = scipy.special.softmax(np.where(seen, scores[:, places], -np.inf), axis=-1)  # (S, R, V)
    return np.where(seen, weights.mean(axis=0), np.nan)


def curve_years(horizons: Sequence[float]) -> np.ndarray:
    """(T,) quarter years up to the last horizon, and the horizons."""
    quarters = np.arange(QUARTER, max(horizons) + QUARTER / 2, QUARTER)
    return np.unique(np.append(quarters, horizons))


def predict_by_visit(predictor: "Predictor", table: pd.DataFrame, years: np.ndarray) -> pd.DataFrame:
    """Each subject's prediction anew at every visit, from the visits up to it.

    Args:
        predictor: without landmarks: its baseline hazard is that after a last visit, whichever visit is the last.
        table: visits, sorted by subject and visit.
        years: of the survival curves.
    Returns:
        `Predictor.predict`'s table, a row a visit.
    """
    place = table.groupby("subject").cumcount()
    number = table.groupby("subject")["subject"].transform("size")
    heads = [table[(place <= last) & (number > last)].reset_index(drop=True) for last in range(number.max())]
    return pd.concat([predictor.predict(head, (), years=years) for head in heads], ignore_index=True)


def write_predictions(predicted: pd.DataFrame, path: str | Path) -> None:
    """Write `Predictor.predict`'s table with its column `split`, in the user's column names; times in years."""
    first = ["subject", "split", "landmark", "time", "event", "log_hazard"]
    table = predicted[first + [name for name in predicted.columns if name not in first]]
    with written_whole(path) as part:
        table.astype({"event": int}).rename(columns=ON_DISK).to_csv(part, index=False)
