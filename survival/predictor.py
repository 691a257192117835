"""Stage 2 as it predicts: from a table of visits to log-hazards, survival curves and attention, and their file.

No PyTorch: the T-LSTM comes as an object that corrects the link. A higher log-hazard means an earlier event. Shapes:
N subjects, M visits of all subjects, V visits of the longest history, R landmark rows, P inputs, S seeds, T points of
a survival curve. Times are years.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.special

from cohort.tables import ON_DISK, visits_with_time_left
from runs.errors import InputError
from runs.files import written_whole
from survival.cox import Ties, ridge_cox
from survival.estimates import Baseline, breslow, survival_curves
from survival.landmarks import Histories, Landmarks
from survival.link import landmark_sets
from survival.preparation import Preparation

QUARTER = 0.25  # years between the points of a survival curve
SLOPE_PENALTY = 1e-6  # keeps the recalibration finite where the log-hazard separates the validation part
FIRST_COLUMNS = ["subject", "split", "model", "landmark", "time", "event", "log_hazard"]  # of the file of predictions
logger = logging.getLogger(__name__)


# ---- The predictor -------------------------------------------------------------------------------
class Correction(Protocol):
    """What is added to the link: the T-LSTM, or the arms of a stack that are not linear."""

    def correct(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute log-hazards (S, R), and attention scores (S, M) or None if there is no attention."""
        ...


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Everything that a prediction needs: the preparation, the link, its correction and the baseline hazards."""

    prepare: Preparation
    grid: tuple[float, ...]  # landmarks it was trained at, years from baseline; empty: last visits
    link: np.ndarray  # (S, P) coefficients
    network: Correction | None = None  # None: the linear model alone
    slope: float = 1.0  # recalibration: the log-hazard is multiplied by it
    baselines: tuple[Baseline, ...] = ()  # one for each landmark of the grid, or the only one
    arms: Mapping[str, "Predictor"] = dataclasses.field(default_factory=dict)  # of a stack, each alone; not saved

    def predict(
        self, table: pd.DataFrame, landmarks: Sequence[float] = (), *, years: Sequence[float] | np.ndarray
    ) -> pd.DataFrame:
        """Predict the log-hazard and the survival curve of every subject at every landmark.

        Args:
            table: M visits in memory's columns, sorted by subject and visit; `time` and `event` may be absent.
            landmarks: years from baseline; empty: each subject's last visit.
            years: (T,) points of the survival curve, years after the landmark.
        Returns:
            A row for each landmark and subject that has a visit by then and is event-free: `subject, landmark, time,
            event, log_hazard, survival_<year>..., attention_<visit>...`. `time` is what is left at the landmark.
            Attention is a share, 0 to 1; it is NaN at visits after the landmark.
        Raises:
            InputError: a column that the model was trained on is absent, or has text for numbers or numbers for text.
        """
        if absent := self.prepare.absent_from(table):
            raise InputError(
                "expected the columns the model was trained on, with numbers or text as in training. "
                f"Missing: {', '.join(absent)}."
            )
        data = Histories.of(table, self.prepare, landmarks)
        rows = data.landmarks
        log_hazard, scores = self.log_hazard(data)
        columns = {
            "subject": data.visits.subject[rows.subject],
            "landmark": rows.year,
            "time": rows.time,
            "event": rows.event,
            "log_hazard": log_hazard,
        }
        curves = self._survival_curves(log_hazard, rows.year, np.asarray(years))
        columns |= {f"survival_{float(year)}": curve for year, curve in zip(years, curves.T, strict=True)}
        if scores is not None:
            weights = attention_weights(scores, data)
            columns |= {f"attention_{visit + 1}": column for visit, column in enumerate(weights.T)}
        return pd.DataFrame(columns)

    def log_hazard_per_seed(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute the link's log-hazard with its correction, before recalibration.

        Args:
            data: histories with R landmark rows.
        Returns:
            Log-hazards (S, R); attention scores (S, M), None without attention.
        """
        linear = self.link @ data.inputs[data.rows].T
        if self.network is None:
            return linear, None
        correction, scores = self.network.correct(data)
        return linear + correction, scores

    def log_hazard(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute the log-hazard as it is predicted.

        Args:
            data: histories with R landmark rows.
        Returns:
            (R,) log-hazards; attention scores (S, M), None without attention.
        """
        per_seed, scores = self.log_hazard_per_seed(data)
        return self.slope * per_seed.mean(axis=0), scores

    def nearest_baseline(self, years: np.ndarray) -> np.ndarray:
        """Find the baseline hazard of the nearest landmark that the model was trained at.

        Args:
            years: (R,) landmarks, years from baseline.
        Returns:
            (R,) int, numbers in `baselines`; 0 everywhere for a model of last visits.
        """
        grid = np.array(self.grid or [np.nan])  # with a NaN alone, the first is chosen
        return np.abs(years[:, None] - grid).argmin(axis=1)

    def _survival_curves(self, log_hazard: np.ndarray, landmark: np.ndarray, years: np.ndarray) -> np.ndarray:
        """(R, T) survival of R rows, each with the baseline hazard of its nearest landmark."""
        nearest = self.nearest_baseline(landmark)
        curves = np.empty((len(log_hazard), len(years)))
        for number in np.unique(nearest):
            rows = nearest == number
            curves[rows] = survival_curves(self.baselines[number], log_hazard[rows], years)
        return curves

    def calibrated(
        self, data: Histories, validation: np.ndarray, *, ties: Ties, recalibrate: bool = False
    ) -> "Predictor":
        """Add the baseline hazards and, if wanted, the slope of the log-hazard on validation.

        The baseline of each landmark is Breslow's, on the subjects that some seed was trained on.

        Args:
            data: histories of the training and validation subjects, cut at the model's grid.
            validation: (S, N) bool: the subjects that each seed was not trained on.
            ties: how the recalibration treats tied events.
            recalibrate: multiply the log-hazard by its slope in a Cox model of the validation subjects.
        Returns:
            A new predictor; its grid holds the landmarks that have an event after them.
        """
        rows, per_seed = data.landmarks, self.log_hazard_per_seed(data)[0]
        slope = _recalibration_slope(per_seed, validation[:, rows.subject], rows, ties) if recalibrate else 1.0
        is_trained = np.asarray(~validation.all(axis=0))[rows.subject]  # (R,)
        return self._with_baselines(per_seed.mean(axis=0)[is_trained], rows[is_trained], slope)

    def calibrated_on(
        self, held_out: np.ndarray, rows: Landmarks, *, ties: Ties, recalibrate: bool = False
    ) -> "Predictor":
        """Do what `calibrated` does on log-hazards of subjects that were held out, all of whom are new to the model.

        Args:
            held_out: (R,) log-hazards before recalibration, each by a model without the row's subject.
            rows: the R landmark rows, cut at the model's grid.
            ties: as for `calibrated`.
            recalibrate: as for `calibrated`.
        """
        everybody = np.ones((1, len(rows)), bool)
        slope = _recalibration_slope(held_out[None], everybody, rows, ties) if recalibrate else 1.0
        return self._with_baselines(held_out, rows, slope)

    def _with_baselines(self, log_hazard: np.ndarray, rows: Landmarks, slope: float) -> "Predictor":
        """A new predictor with this slope and a baseline hazard for each landmark that has an event after it."""
        baselines = {}
        for stratum in np.unique(rows.stratum[rows.event]):
            chosen = rows.stratum == stratum
            baselines[stratum] = breslow(slope * log_hazard[chosen], rows.time[chosen], rows.event[chosen])
        grid = tuple(self.grid[stratum] for stratum in baselines) if self.grid else ()
        return dataclasses.replace(self, grid=grid, slope=slope, baselines=tuple(baselines.values()))

    def to_json(self) -> dict[str, Any]:
        """Give everything but the network as dictionaries, lists and arrays, `link` (S, P) among them."""
        return {
            "prepare": dataclasses.asdict(self.prepare),
            "grid": self.grid,
            "link": self.link,
            "slope": self.slope,
            "baselines": [dataclasses.asdict(baseline) for baseline in self.baselines],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], *, num_seeds: int) -> "Predictor":
        """Restore a predictor without its network.

        Args:
            saved: what `to_json` gave, after a way through JSON.
            num_seeds: S, the rows that `link` must have.
        Returns:
            The same predictor, `link` (S, P).
        Raises:
            KeyError, TypeError, ValueError: not what `to_json` gave, parts that do not fit together, or numbers that
                are not finite.
        """
        prepare = Preparation.from_json(saved["prepare"])
        grid, link = tuple(float(year) for year in saved["grid"]), np.asarray(saved["link"], float)
        names = [field.name for field in dataclasses.fields(Baseline)]
        arrays = [[np.asarray(baseline[name], float) for name in names] for baseline in saved["baselines"]]
        received = (link.shape, len(arrays))
        expected = ((num_seeds, prepare.num_inputs), max(len(grid), 1))
        if received != expected:
            raise ValueError(f"link and baselines: expected {expected}, received {received}")
        numbers = [link, *(array for of_baseline in arrays for array in of_baseline), saved["slope"]]
        if not all(np.isfinite(part).all() for part in numbers):
            raise ValueError("link, slope and baselines: expected finite numbers")
        baselines = tuple(Baseline(*of_baseline) for of_baseline in arrays)
        return cls(prepare, grid, link, slope=float(saved["slope"]), baselines=baselines)


def _recalibration_slope(per_seed: np.ndarray, is_validated: np.ndarray, rows: Landmarks, ties: Ties) -> float:
    """Slope of a Cox model on the log-hazard (S, R), averaged over the seeds that were not trained on a row."""
    validated = np.asarray(is_validated.any(axis=0))  # (R,)
    mean = (per_seed * is_validated).sum(axis=0)[validated] / is_validated.sum(axis=0)[validated]
    slope = float(ridge_cox(mean[:, None], landmark_sets(rows[validated], ties), SLOPE_PENALTY)[0])
    if slope <= 0:
        logger.warning("recalibration: slope %.2f on validation, so the log-hazard is left as it is", slope)
        return 1.0
    logger.info("recalibration: slope %.2f", slope)
    return slope


def attention_weights(scores: np.ndarray, data: Histories) -> np.ndarray:
    """Turn attention scores into the weight of each visit up to the landmark, averaged over the seeds.

    Args:
        scores: (S, M), in the order of the visits of `data`.
        data: histories with R landmark rows.
    Returns:
        (R, V) shares, 0 to 1, which sum to 1 over the visits of a row; NaN at visits after the landmark.
    Source: Yang et al. (2016), NAACL, eq. 6.
    """
    last = data.landmarks.visit[:, None]
    visits = np.arange(len(data.visits.sizes))
    is_seen = visits <= last  # (R, V)
    places = data.visits.row(data.landmarks.subject[:, None], np.minimum(visits, last))
    weights = scipy.special.softmax(np.where(is_seen, scores[:, places], -np.inf), axis=-1)  # alpha, (S, R, V)
    return np.where(is_seen, weights.mean(axis=0), np.nan)


# ---- Tables of predictions -----------------------------------------------------------------------
def curve_years(horizons: Sequence[float]) -> np.ndarray:
    """Choose the points of the survival curves.

    Args:
        horizons: years.
    Returns:
        (T,) ascending years: every quarter up to the last horizon, and the horizons.
    """
    quarters = np.arange(QUARTER, max(horizons) + QUARTER / 2, QUARTER)
    return np.unique(np.append(quarters, horizons))


def predict_by_visit(predictor: Predictor, table: pd.DataFrame, years: np.ndarray) -> pd.DataFrame:
    """Predict each subject anew at every visit, from the visits up to it.

    Args:
        predictor: trained without landmarks; its one baseline hazard serves whichever visit is the last.
        table: M visits, sorted by subject and visit.
        years: (T,) points of the survival curves.
    Returns:
        The table of `Predictor.predict`, a row a visit that has time left.
    """
    table = visits_with_time_left(table)
    place = table.groupby("subject").cumcount()
    count = table.groupby("subject")["subject"].transform("size")
    up_to_visit = [table[(place <= visit) & (count > visit)].reset_index(drop=True) for visit in range(count.max())]
    return pd.concat([predictor.predict(visits, (), years=years) for visits in up_to_visit], ignore_index=True)


def write_predictions(predicted: pd.DataFrame, path: str | Path) -> None:
    """Write a table of predictions in the user's column names; times are years.

    Args:
        predicted: the table of `Predictor.predict`, with a column `split`; of several models, with a column `model`.
        path: of the CSV.
    """
    first = [name for name in FIRST_COLUMNS if name in predicted]
    table = predicted[first + [name for name in predicted.columns if name not in first]]
    with written_whole(path) as part:
        table.astype({"event": int}).rename(columns=ON_DISK).to_csv(part, index=False)
