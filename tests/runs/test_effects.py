"""Settings without effect are said to have none, and every setting has its place in the table."""

from collections import Counter

import pytest

from config import Config, read_config
from runs.effects import EFFECTS, log_without_effect, without_effect
from runs.processes import RUN_BY


@pytest.mark.parametrize("program", EFFECTS)
def test_every_setting_stands_under_one_rule(program):
    """A new setting has to be placed: where does it have an effect?"""
    times = Counter(name for rule in EFFECTS[program] for name in rule.names)
    assert times == Counter(list(Config.model_fields))


@pytest.mark.parametrize("program", EFFECTS)
def test_a_run_with_nothing_set_is_silent(program, caplog):
    read_config([], program)
    assert caplog.text == ""


OWN = "--COHORT_CSV=c.csv"
SPLIT = ("--TRAIN_CSV=a.csv", "--VAL_CSV=b.csv", "--TEST_CSV=c.csv")
IDLE = [
    ("main.py", ["--FEATURES=t.csv", "--WINDOWS=2", "--REPEATS=3"], ["FEATURES", "WINDOWS", "REPEATS"]),
    ("main.py", ["--FOLDS=3", "--WINDOWS=2", "--TEST_RATIO=0.3"], ["WINDOWS", "TEST_RATIO"]),
    ("main.py", [OWN, "--SIM_EFFECT=2", "--DECIMAL=comma"], ["SIM_EFFECT"]),
    ("main.py", [OWN, "--SIM_VISITS=2,7", "--SIM_HISTORY=jumping"], ["SIM_HISTORY", "SIM_VISITS"]),
    ("main.py", ["--LATE_VISITS=drop", "--SIMILAR_IDS=allow"], ["LATE_VISITS", "SIMILAR_IDS"]),
    ("main.py", [*SPLIT, "--VAL_TRAIN_RATIO=0.2", "--TEST_RATIO=0.2"], ["VAL_TRAIN_RATIO", "TEST_RATIO"]),
    ("main.py", ["--LANDMARK_STEP=1", "--DEVICES=2"], ["LANDMARK_STEP", "DEVICES"]),
    ("main.py", ["--LANDMARK_STEP=1", "--LANDMARKS=1", "--DEVICES=2", "--DISTRIBUTE=mirrored"], []),
    ("main.py", ["--STAGES=cnn", "--CROSS_FIT=3", "--HIDDEN=4"], ["CROSS_FIT", "HIDDEN"]),
    ("main.py", ["--STAGES=cnn,features,report", "--ATLAS=a.nii", "--HORIZONS=1", "--CROSS_FIT=3"], ["ATLAS"]),
    ("main.py", ["--PREDICT_CSV=n.csv", "--EPOCHS=2", "--SEED=3"], ["PREDICT_CSV"]),
    (
        "tlstm.py",
        ["--EPOCHS=2", "--AUGMENT_SHIFT=1", "--SEED=3", "--STAGES=tlstm"],
        ["EPOCHS", "AUGMENT_SHIFT", "STAGES"],
    ),
    ("tlstm.py", ["--FEATURES=t.csv", "--FOLDS=2", "--HORIZONS=1", "--TEST_RATIO=0.3"], ["HORIZONS", "TEST_RATIO"]),
    ("tlstm.py", ["--FEATURES=t.csv", "--WINDOWS=2", "--TEST_RATIO=0.3", "--MRI_FOLDER=m"], ["WINDOWS", "MRI_FOLDER"]),
    (
        "tlstm.py",
        ["--DECIMAL=comma", "--TEST_RATIO=0.3", "--SHAP_NSAMPLES=9"],
        ["DECIMAL", "TEST_RATIO", "SHAP_NSAMPLES"],
    ),
    ("tlstm.py", ["--STAGE2=link", "--HIDDEN=4", "--LINK=off", "--COMPONENTS=[2]"], ["HIDDEN", "LINK"]),
    ("tlstm.py", ["--STAGE2=tlstm", "--HIDDEN=4", "--LINK=off"], []),
    ("main.py", ["--LINK=off", "--HIDDEN=4"], ["LINK"]),
    ("main.py", ["--KEEP_EPOCH=last", "--LR_SCHEDULE=plateau"], ["KEEP_EPOCH"]),
    ("main.py", ["--KEEP_EPOCH=best", "--LR_SCHEDULE=cosine"], []),
    ("predict.py", ["--FOLDS=3", "--HIDDEN=4"], []),
]


@pytest.mark.parametrize(("program", "arguments", "idle"), IDLE)
def test_what_has_no_effect_is_logged_in_one_line(program, arguments, idle, caplog):
    config = read_config(arguments, program)
    by_condition = without_effect(config, config.model_fields_set, program)
    assert sorted(name for names in by_condition.values() for name in names) == sorted(idle)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(idle)
    for condition, names in by_condition.items():
        assert f"{', '.join(names)} (only {condition})" in lines[0]


def test_a_program_that_another_one_runs_is_silent(monkeypatch, caplog):
    """It is given every setting."""
    monkeypatch.setenv(RUN_BY, "1")
    log_without_effect(Config(WINDOWS=(2.0,)), ["WINDOWS"], "main.py")
    assert caplog.text == ""
