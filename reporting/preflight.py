"""What a run refuses before it reads the first volume: its settings and tables tell. `--VERIFY` refuses the same."""

from collections.abc import Callable

import pandas as pd

from attribution.regions import read_labels
from cohort.splits import split_folds
from config import Config
from reporting.explained import check_choices
from runs.errors import InputError, raise_if_any
from runs.stages import StageName
from survival.columns import find_columns
from survival.landmarks import check_landmarks

NEEDED_BY_FOLDS: tuple[StageName, ...] = ("cnn", "features", "tlstm")  # else there is nothing to evaluate


def check_folds(config: Config) -> None:
    """Refuse settings that mean nothing in a cross-validation of the whole pipeline, if FOLDS asks for one.

    Args:
        config: of the run.
    Raises:
        InputError: names each setting.
    """
    if not config.FOLDS:
        return
    absent = [stage for stage in NEEDED_BY_FOLDS if stage not in config.STAGES]
    problems = [
        problem
        for is_wrong, problem in (
            (config.FOLDS == 1, "FOLDS: expected 2 or more, received 1"),
            (
                config.TRAIN_CSV is not None,
                "TRAIN_CSV, VAL_CSV, TEST_CSV: expected unset, since the folds are the split",
            ),
            (absent, f"STAGES: expected {', '.join(NEEDED_BY_FOLDS)} among them, missing {', '.join(absent)}"),
            (config.SAMPLE_INDEX, "SAMPLE_INDEX: expected unset, since each fold has its own test part"),
            (config.LANDMARKS, "LANDMARKS: expected unset; `python tlstm.py --FEATURES` cross-validates landmarks"),
        )
        if is_wrong
    ]
    raise_if_any("The pipeline can't be cross-validated", problems, "Change these settings, or unset FOLDS.")


def check_tables(config: Config, parts: dict[str, pd.DataFrame]) -> None:
    """Refuse what a run could not do with its tables, whatever the volumes hold.

    Args:
        config: of the run; `check_folds` has passed.
        parts: `train`, `val` and `test` in memory's columns and years, a row a scan.
    Raises:
        InputError: names all of these: columns that contradict each other, too few events for the folds of FOLDS or
            CROSS_FIT, landmarks with too few at risk, subjects or scans to explain that are not there, an ATLAS that
            can't be read.
    """
    whole = pd.concat(parts.values()).sort_values(["subject", "visit_time"], ignore_index=True)
    problems = refusal_of(lambda: check_choices(config, whole if config.FOLDS else parts["test"]))
    problems += refusal_of(lambda: find_columns(parts))
    atlas = config.ATLAS
    if atlas is not None and "explain" in config.STAGES:
        problems += refusal_of(lambda: read_labels(atlas))
    problems += refusal_of(lambda: _check_splits(config, whole, parts))
    if problems:
        raise InputError("\n".join(problems))


def refusal_of(check: Callable[[], object]) -> list[str]:
    """What a check says that refuses the input; nothing if it does not."""
    try:
        check()
    except InputError as error:
        return [str(error)]
    return []


def _check_splits(config: Config, whole: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> None:
    """Refuse folds and landmarks with too few events, in each fold's own parts if there are folds."""
    from training.crossfit import folds_of_scans  # its package holds TensorFlow's modules

    splits = [parts]
    if config.FOLDS:
        splits = split_folds(whole, config.FOLDS, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED)
    for split in splits:
        if config.CROSS_FIT:
            folds_of_scans(split["train"], config.CROSS_FIT, config.SEED)
        check_landmarks(split, config.LANDMARKS)
