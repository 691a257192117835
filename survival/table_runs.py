"""What `tlstm.py` does with tables, whichever model it fits: reads the parts, compares models in folds, evaluates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from cohort import tables
from cohort.splits import PARTS, check_parts, split_subjects
from runs.errors import InputError
from runs.table_record import TableRecord, recorded
from survival import crossval
from survival.cohort_words import log_cohort
from survival.columns import usable_columns
from survival.evaluation import Predicted, evaluate_arms, evaluate_landmarks, evaluate_parts, evaluate_run
from survival.kept_fits import KeptFits
from survival.landmarks import landmark_grid
from survival.metrics import EvaluationSettings
from survival.outputs import merge_metrics
from survival.screening import warn_of_leaks, warn_of_values

ModelsOf = Callable[[Sequence[str], tuple[float, ...]], Mapping[str, crossval.Model]]  # of columns and a grid of years


def read_feature_parts(settings: Any) -> dict[str, pd.DataFrame]:
    """Read the features of the run in OUTPUT_DIR, or the table FEATURES and split it by subject.

    Args:
        settings: of `tlstm.py`, with the attributes of `config.Config`.
    Returns:
        By part, a row a visit, in memory's columns and years.
    Raises:
        InputError: a table is absent or can't be used.
    """
    reading = tables.reading_of(settings)
    if settings.FEATURES is not None:
        table = tables.read_features(settings.FEATURES, **reading)
        ratios = {"test_ratio": settings.TEST_RATIO, "val_train_ratio": settings.VAL_TRAIN_RATIO}
        return split_subjects(table, **ratios, seed=settings.SEED)
    paths = {name: settings.OUTPUT_DIR / "features" / f"{name}.parquet" for name in PARTS}
    absent = [str(path) for path in paths.values() if not path.is_file()]
    if absent:
        raise InputError(f"expected the features of a run, found no {', '.join(absent)}. Run python main.py first.")
    parts = {name: tables.read_features(path, **reading) for name, path in paths.items()}
    return check_parts(parts, similar_ids=settings.SIMILAR_IDS)


def compare_in_folds(settings: Any, threads: int, models_of: ModelsOf) -> TableRecord:
    """Cross-validate a model and its rivals on FEATURES, and write the folder `cv`.

    Args:
        settings: of `tlstm.py`; LANDMARKS and WINDOWS are years.
        threads: of the run.
        models_of: makes the models, ours called `crossval.OUR_MODEL`.
    Returns:
        The record of the run.
    Raises:
        InputError: the settings or the table can't be used; nothing is written then.
    """
    plan = crossval.Plan.of(settings)
    table = tables.read_features(settings.FEATURES, **tables.reading_of(settings))
    whole, landmarks = {"table": table}, settings.LANDMARKS
    log_cohort(whole, time_unit=settings.TIME_UNIT, landmarks=landmarks)
    columns = usable_columns(whole)
    grid = landmark_grid(whole, landmarks, settings.LANDMARK_STEP, num_parts=settings.FOLDS, windows=settings.WINDOWS)
    with recorded(settings, "cv", table, threads) as record:
        assert record is not None
        warn_of_values(table, table, columns.used, winsorise=settings.WINSORISE)
        warn_of_leaks(crossval.first_training_part(table, plan), columns.used, landmarks)
        models, kept = models_of(columns.used, grid), KeptFits(record.backup("cv"))
        compared = crossval.compare_models(table, models, plan, kept=kept, progress=True)
        compared.write(settings.OUTPUT_DIR / "cv")
        figures = {"cv": crossval.summarise(compared.figures), "columns": columns.as_json()}
        merge_metrics(settings.OUTPUT_DIR, figures)
    return record


def stage2_figures(
    settings: Any,
    parts: Mapping[str, pd.DataFrame],
    *,
    predicted: Predicted,
    arms: Mapping[str, Predicted],
    weights: Mapping[str, float],
    rivals: Callable[[], Mapping[str, Predicted]],
) -> dict[str, Any]:
    """Evaluate stage 2 on one split, for `metrics.json`.

    Args:
        settings: of `tlstm.py`; LANDMARKS and HORIZONS are years.
        parts: visits of train, val and test, with the columns that the model may use.
        predicted: by part, at each subject's last visit or at LANDMARKS.
        arms: likewise by each arm of the stack alone.
        weights: of the arms in the stack.
        rivals: predicts at LANDMARKS with the linear rivals.
    Returns:
        With LANDMARKS `landmarks`, else `tlstm` and `arms` (None: no stack); of a table of the user's the other models
        too, those of a run of `main.py` are evaluated there.
    """
    evaluation = EvaluationSettings(settings.HORIZONS, settings.NUM_RESAMPLES, settings.SEED)
    if settings.LANDMARKS:
        by_landmark = evaluate_landmarks(
            predicted, rivals(), settings.LANDMARKS, evaluation, arms=arms, weights=weights
        )
        return {"landmarks": by_landmark, "arms": None}
    of_arms = {"arms": evaluate_arms(arms, weights, evaluation) or None}
    if settings.FEATURES is None:
        return {"tlstm": evaluate_parts(predicted, evaluation), **of_arms}
    return evaluate_run(parts, predicted, evaluation, truth=None) | of_arms
