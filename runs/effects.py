"""Which settings have an effect in a run of `main.py` or `tlstm.py`, and the line about those that have none.

`predict.py` refuses a setting that differs from its run's instead.
"""

import logging
import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from runs.processes import RUN_BY
from runs.stages import STAGES, StageName

OF_THE_SIMULATION = ("SIM_SUBJECTS", "SIM_VISITS", "SIM_HISTORY", "SIM_NUISANCE", "SIM_EFFECT")
Settings = Any  # has the settings of config.py as attributes
logger = logging.getLogger(__name__)


class Rule(NamedTuple):
    """Settings that have an effect under one condition."""

    where: str  # the condition, in words
    holds: Callable[[Settings], bool]
    names: tuple[str, ...]


def _always(_: Settings) -> bool:
    return True


def _never(_: Settings) -> bool:
    return False


def _is_own_cohort(settings: Settings) -> bool:
    return settings.COHORT_CSV is not None or settings.TRAIN_CSV is not None


def _runs_any(*stages: StageName) -> Callable[[Settings], bool]:
    return lambda settings: not {*stages}.isdisjoint(settings.STAGES)


def _of_stage(name: StageName, *, but: Collection[str] = ()) -> tuple[str, ...]:
    """A stage's own settings, without those that stand under another rule."""
    return tuple(setting for setting in STAGES[name].settings if setting not in but)


_OF_T_LSTM = (
    *("POOL", "NUM_SEEDS", "HIDDEN", "TLSTM_DROPOUT", "TLSTM_LEARNING_RATE", "TLSTM_WEIGHT_DECAY"),
    *("TLSTM_EPOCHS", "TLSTM_PATIENCE"),
)
_STAGE_2 = ("with the stage tlstm, explain or report", _runs_any("tlstm", "explain", "report"))


def _has_t_lstm(settings: Settings) -> bool:
    return settings.STAGE2 != "link"


def _has_corrected_link(settings: Settings) -> bool:
    return settings.STAGE2 == "tlstm"


_OF_STAGE_2 = _of_stage("tlstm", but=("LANDMARK_STEP", "LINK", *_OF_T_LSTM))

EFFECTS: dict[str, tuple[Rule, ...]] = {  # by program; every setting stands under one rule of each
    "main.py": (
        Rule("always", _always, ("COHORT_CSV", "TRAIN_CSV", "VAL_CSV", "TEST_CSV", "TIME_UNIT", "OUTPUT_DIR")),
        Rule("always", _always, ("STAGES", "FOLDS", "RESUME", "VERIFY", "MAX_HOURS", "SAVE_SECONDS", "DISTRIBUTE")),
        Rule("always", _always, ("MAX_VOXELS", "CACHE_DIR", "NUM_WORKERS", "SCHEDULER")),
        Rule("always", _always, _of_stage("cnn", but=("KEEP_EPOCH",))),  # every stage asks for the same stage 1
        Rule("with LR_SCHEDULE=cosine", lambda s: s.LR_SCHEDULE == "cosine", ("KEEP_EPOCH",)),
        Rule("for a cohort of your own", _is_own_cohort, ("MRI_FOLDER", "DECIMAL", "SIMILAR_IDS")),
        Rule("for a cohort of your own", _is_own_cohort, ("LATE_VISITS", "EVENT_NAMES")),
        Rule("for the simulated cohort", lambda s: not _is_own_cohort(s), OF_THE_SIMULATION),
        Rule("without TRAIN_CSV", lambda s: s.TRAIN_CSV is None, ("VAL_TRAIN_RATIO",)),
        Rule("without TRAIN_CSV and FOLDS", lambda s: s.TRAIN_CSV is None and not s.FOLDS, ("TEST_RATIO",)),
        Rule("with DISTRIBUTE", lambda s: s.DISTRIBUTE != "none", ("DEVICES",)),
        Rule("with LANDMARKS", lambda s: bool(s.LANDMARKS), ("LANDMARK_STEP",)),
        Rule("with a stage after cnn", lambda s: {*s.STAGES} != {"cnn"}, _of_stage("features")),
        Rule(*_STAGE_2, _OF_STAGE_2),
        Rule(
            f"{_STAGE_2[0]}, and a T-LSTM, which STAGE2=link has not",
            lambda s: _STAGE_2[1](s) and _has_t_lstm(s),
            _OF_T_LSTM,
        ),
        Rule(f"{_STAGE_2[0]}, and STAGE2=tlstm", lambda s: _STAGE_2[1](s) and _has_corrected_link(s), ("LINK",)),
        Rule("with the stage explain", _runs_any("explain"), _of_stage("explain")),
        Rule("in tlstm.py", _never, ("FEATURES", "WINDOWS", "REPEATS")),
        Rule("in predict.py", _never, ("PREDICT_CSV",)),
    ),
    "tlstm.py": (
        Rule("always", _always, ("FEATURES", "FOLDS", "OUTPUT_DIR", "TIME_UNIT", "SIMILAR_IDS", "MAX_HOURS")),
        Rule("always", _always, ("SEED", "TIES")),
        Rule("always", _always, tuple(name for name in _OF_STAGE_2 if name not in ("HORIZONS", "NUM_RESAMPLES"))),
        Rule("with a T-LSTM, which STAGE2=link has not", _has_t_lstm, _OF_T_LSTM),
        Rule("with STAGE2=tlstm", _has_corrected_link, ("LINK",)),
        Rule("with LANDMARKS", lambda s: bool(s.LANDMARKS), ("LANDMARK_STEP",)),
        Rule("without FOLDS", lambda s: not s.FOLDS, ("HORIZONS", "NUM_RESAMPLES")),
        Rule("with FOLDS", lambda s: bool(s.FOLDS), ("WINDOWS", "REPEATS")),
        Rule("with FEATURES", lambda s: s.FEATURES is not None, ("DECIMAL", "LATE_VISITS", "EVENT_NAMES", "RESUME")),
        Rule(
            "with FEATURES, without FOLDS",
            lambda s: s.FEATURES is not None and not s.FOLDS,
            ("TEST_RATIO", "VAL_TRAIN_RATIO"),
        ),
        Rule("in main.py", _never, ("COHORT_CSV", "TRAIN_CSV", "VAL_CSV", "TEST_CSV", "MRI_FOLDER", "STAGES")),
        Rule("in main.py", _never, ("VERIFY", "SAVE_SECONDS", "DISTRIBUTE", "DEVICES")),
        Rule("in main.py", _never, ("MAX_VOXELS", "CACHE_DIR", "NUM_WORKERS", "SCHEDULER")),
        Rule("in main.py", _never, OF_THE_SIMULATION),
        Rule("in main.py", _never, (*_of_stage("cnn", but=("SEED", "TIES")), *_of_stage("features"))),
        Rule("in main.py", _never, _of_stage("explain")),
        Rule("in predict.py", _never, ("PREDICT_CSV",)),
    ),
}


def without_effect(settings: Settings, given: Collection[str], program: str) -> dict[str, list[str]]:
    """Find the settings that have no effect in a run.

    Args:
        settings: of the run.
        given: names of those that were set for this run.
        program: such as `main.py`.
    Returns:
        Their names by the condition under which they would have one; none for a program that is not in EFFECTS.
    """
    idle: dict[str, list[str]] = {}
    for rule in EFFECTS.get(program, ()):
        names = [name for name in rule.names if name in given]
        if names and not rule.holds(settings):
            idle.setdefault(rule.where, []).extend(names)
    return idle


def log_without_effect(settings: Settings, given: Collection[str], program: str) -> None:
    """Log, in one line, the settings that were set and have no effect.

    A program that another one runs is given all settings, and the other one has logged the line.

    Args:
        settings: as for `without_effect`.
        given: as for `without_effect`.
        program: as for `without_effect`.
    """
    idle = without_effect(settings, given, program)
    if idle and RUN_BY not in os.environ:
        named = "; ".join(f"{', '.join(names)} (only {where})" for where, names in idle.items())
        logger.warning("settings without effect in this run: %s", named)
