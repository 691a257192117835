"""The linear models that stage 2 is compared with, fold by fold or on one split.

Shapes: N subjects, S seeds, T points of a survival curve. Times are years.
"""

import functools
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from runs.errors import InputError
from survival.cox import Ties, ridge_cox
from survival.crossval import Model, Trained
from survival.landmarks import Histories
from survival.link import fit_link, landmark_sets, split_rows
from survival.predictor import Predictor
from survival.preparation import Preparation

RIVALS_TIES: Ties = "efron"  # whatever TIES is: a rival is the same model in every comparison
logger = logging.getLogger(__name__)


def linear_rival(
    columns: Sequence[str],
    penalties: Sequence[float],
    grid: Sequence[float],
    *,
    baseline_only: bool = False,
    with_change: bool = False,
    winsorise: float = 0.0,
) -> Model:
    """Make a rival: a ridge Cox on the last values, perhaps with their change since the first visit.

    Its penalty is chosen on inner folds; then it is fitted on all training subjects.

    Args:
        columns: names of the features.
        penalties: to choose from.
        grid: landmarks, years from baseline, at which one model is trained, stratified by landmark (van Houwelingen
            2007); empty: a model of its own is trained at each landmark that is predicted at.
        baseline_only: use the first visit alone.
        with_change: use the change since the first visit too.
        winsorise: width of the fences of `Preparation.fit`; 0: none.
    Returns:
        A model for `compare_models`.
    """

    def visits_of(table: pd.DataFrame) -> pd.DataFrame:
        """The visits that the model may see."""
        return table.drop_duplicates("subject").reset_index(drop=True) if baseline_only else table

    def fit(table: pd.DataFrame, validation: np.ndarray) -> Trained:
        """Prepare the training visits; the models are trained when they are first needed."""
        train = visits_of(table)
        prepare = Preparation.fit(train, columns, num_components=0, winsorise=winsorise)

        @functools.cache
        def trained(landmarks: tuple[float, ...]) -> Predictor:
            """The ridge Cox of these landmarks, with its baseline hazards."""
            data = Histories.of(train, prepare, landmarks)
            splits = split_rows(data.landmarks, validation, RIVALS_TIES)
            inputs = data.inputs[data.rows] if with_change else data.last_values
            penalty = min(penalties, key=lambda penalty: fit_link(inputs, splits, penalty)[0])
            link = ridge_cox(inputs, landmark_sets(data.landmarks, RIVALS_TIES), penalty)[None]
            return Predictor(prepare, landmarks, link).calibrated(data, np.zeros_like(validation), ties=RIVALS_TIES)

        def predict(table: pd.DataFrame, landmark: float, years: np.ndarray) -> pd.DataFrame:
            """Predictions at a landmark, with (T,) points of the survival curves."""
            return trained(tuple(grid) or (landmark,)).predict(visits_of(table), (landmark,), years=years)

        return Trained(predict)

    return fit


def linear_rivals(
    columns: Sequence[str], penalties: Sequence[float], grid: Sequence[float], *, winsorise: float = 0.0
) -> dict[str, Model]:
    """Make the linear rivals of stage 2.

    Args:
        columns: names of the features.
        penalties: ridge penalties to choose from.
        grid: landmarks, years from baseline, at which stage 2 is trained.
        winsorise: as stage 2's.
    Returns:
        By name: the values of the first visit; the last values (last observation carried forward), with a model for
        each landmark; the last values and their change since the first visit, with one model for all landmarks.
    """
    return {
        "baseline_cox": linear_rival(columns, penalties, (), baseline_only=True, winsorise=winsorise),
        "locf_cox": linear_rival(columns, penalties, (), winsorise=winsorise),
        "linear_supermodel": linear_rival(columns, penalties, grid, with_change=True, winsorise=winsorise),
    }


def predict_parts(
    models: Mapping[str, Model],
    table: pd.DataFrame,
    validation: np.ndarray,
    parts: Mapping[str, pd.DataFrame],
    landmarks: Sequence[float],
    years: np.ndarray,
) -> dict[str, dict[str, pd.DataFrame]]:
    """Train models on one split, and predict every part with them.

    Args:
        models: by name.
        table: visits of N subjects to train and validate on.
        validation: (S, N) bool, the subjects that each seed is validated on.
        parts: visits of train, val and test.
        landmarks: years from baseline.
        years: (T,) points of the survival curves.
    Returns:
        By model and part the predictions at all landmarks; a model that can't be trained at them is left out, with a
        warning.
    """
    predicted = {}
    for name, fit in models.items():
        try:
            predict = fit(table, validation).predict
            predicted[name] = {
                part: pd.concat([predict(visits, landmark, years) for landmark in landmarks], ignore_index=True)
                for part, visits in parts.items()
            }
        except InputError as error:
            logger.warning("%s is left out of the comparison: %s", name, error)
    return predicted
