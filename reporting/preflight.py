"""What a run refuses before it reads the first volume: its settings and tables tell. `--VERIFY` refuses the same."""

import pandas as pd

from attribution.regions import read_labels
from cohort.splits import split_folds
from config import Config
from reporting.explained import check_choices
from runs.errors import raise_if_any
from runs.stages import StageName
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


def whole_table(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all parts, sorted by subject and visit, as the cohort's own table has them."""
    return pd.concat(parts.values()).sort_values(["subject", "visit_time"], ignore_index=True)


def check_tables(config: Config, parts: dict[str, pd.DataFrame]) -> None:
    """Refuse what a run could not do with its tables, whatever the volumes hold.

    Args:
        config: of the run.
        parts: `train`, `val` and `test` in memory's columns and years, a row a scan.
    Raises:
        InputError: too few events for the folds of FOLDS or CROSS_FIT, a landmark with too few at risk, a subject or
            scan to explain that is not there, or an ATLAS that can't be read.
    """
    from training.crossfit import folds_of_scans  # its package holds TensorFlow's modules

    whole = whole_table(parts)
    check_choices(config, whole if config.FOLDS else parts["test"])
    if config.ATLAS and "explain" in config.STAGES:
        read_labels(config.ATLAS)
    runs = [parts]
    if config.FOLDS:
        runs = split_folds(whole, config.FOLDS, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED)
    for own_parts in runs:
        if config.CROSS_FIT:
            folds_of_scans(own_parts["train"], config.CROSS_FIT, config.SEED)
        check_landmarks(own_parts, config.LANDMARKS)
