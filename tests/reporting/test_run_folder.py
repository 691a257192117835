import json

import pytest

from config import Config
from reporting.run_folder import LOST_SETTINGS, RunFolder
from runs.errors import InputError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_an_empty_folder_is_a_run_without_anything(tmp_path):
    run = RunFolder.read(tmp_path)
    assert run.record == run.metrics == run.splits == {} and run.explained == []
    assert run.warnings is None  # nobody knows
    assert run.predicted is run.predicted_by_visit is run.cnn_history is run.tlstm_history is run.stage2_test is None
    assert not run.is_simulated and run.visit_times("test") == {}


def test_tables_come_in_memory_names_and_years(tmp_path):
    write(tmp_path / "config.json", json.dumps({"settings": {"TIME_UNIT": "months"}}))
    write(
        tmp_path / "splits" / "test.csv",
        "subjectid,imageid,visit_time,time,convert_status\nNA,007,0,36,1\nNA,008,6,36,1\nnull,9,0,12,0\n",
    )
    run = RunFolder.read(tmp_path)
    table = run.splits["test"]
    assert table["subject"].tolist() == ["NA", "NA", "null"] and table["scan"].tolist() == ["007", "008", "9"]
    assert table["time"].tolist() == [3, 3, 1] and table["event"].tolist() == [True, True, False]
    assert run.visit_times("test") == {"NA": [0, 0.5], "null": [0]}


def test_predictions_are_in_years_whatever_the_unit(tmp_path):
    write(tmp_path / "config.json", json.dumps({"settings": {"TIME_UNIT": "days"}}))
    write(
        tmp_path / "tlstm" / "predictions.csv",
        "subjectid,split,landmark,time,convert_status,log_hazard\na,train,1.0,2.5,1,0.1\nb,test,1.0,3.5,0,0.2\n",
    )
    run = RunFolder.read(tmp_path)
    assert run.predictions_of("test")["time"].tolist() == [3.5] and run.predictions_of("train")["subject"].tolist() == [
        "a"
    ]


@pytest.mark.parametrize(
    ("settings", "simulated"),
    [({"COHORT_CSV": None}, True), ({"COHORT_CSV": "a.csv"}, False), ({"TRAIN_CSV": "a.csv"}, False), ({}, False)],
)
def test_whether_the_cohort_is_simulated(tmp_path, settings, simulated):
    write(tmp_path / "config.json", json.dumps({"settings": settings}))
    assert RunFolder.read(tmp_path).is_simulated is simulated


def test_warnings_are_counted_and_the_rest_of_the_log_is_not(tmp_path):
    stamp = "2026-01-31 12:00:00,000"
    lines = [
        f"{stamp} INFO main: WARNING is a word here",
        f"{stamp} WARNING tlstm: odd",
        f"{stamp} WARNING tlstm: odd",
        "  WARNING within a traceback",
        f"{stamp} ERROR main: worse",
    ]
    write(tmp_path / "run.log", "\n".join(lines))
    assert RunFolder.read(tmp_path).warnings == [("tlstm: odd", 2), ("main: worse", 1)]


def test_what_is_not_json_is_named(tmp_path):
    write(tmp_path / "metrics.json", "{")
    with pytest.raises(InputError, match=r"metrics.json: expected JSON"):
        RunFolder.read(tmp_path)


GOOD = {name: {"value": 0.8, "sd": None} for name in ("c_index", "auc", "ibs")}  # a model's figures over folds


@pytest.mark.parametrize(
    ("window", "problems"),
    [
        ([], r"2\+3: Input should be .*Window"),
        ({"tlstm": GOOD}, r"2\+3.difference: Field required"),
        ({"difference": {}}, r"2\+3.tlstm: Field required"),
        (
            {"difference": {"lstm": {"auc": {"value": "0"}}}, "tlstm": GOOD},
            r"2\+3.difference.lstm.auc.value: .*; 2\+3.difference.lstm.auc.se: Field required",
        ),
        (
            {"difference": {}, "tlstm": GOOD, "lstm": {}},
            r"2\+3.lstm.c_index: Field required; 2\+3.lstm.auc: .*; 2\+3.lstm.ibs: ",
        ),
        (
            {"difference": {}, "tlstm": {name: {"value": "0.8", "sd": None} for name in GOOD}},
            r"2\+3.tlstm.c_index.value: Input should be a valid number; ",
        ),
    ],
)
def test_figures_that_were_changed_by_hand_into_none_are_named(tmp_path, window, problems):
    write(tmp_path / "metrics.json", json.dumps({"cv": {"2+3": window}}))
    with pytest.raises(InputError, match=rf"metrics\.json: cv: expected a summary .*, received another: {problems}"):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize("place", ["2.0", "two+three", "+", ""])
def test_a_landmark_and_window_that_are_none_are_named(tmp_path, place):
    write(tmp_path / "metrics.json", json.dumps({"cv": {place: {"difference": {}, "tlstm": GOOD}}}))
    with pytest.raises(InputError, match=r"metrics\.json: cv: expected a summary .*String should match pattern"):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "problems"),
    [
        (3, ": Input should be a valid dictionary"),
        ({"used": ["a"], "coded": {}}, "unused: Field required"),
        (
            {"used": "a", "coded": {"b": 1}, "unused": {}},
            "used: Input should be a valid list; coded.b: Input should be",
        ),
    ],
)
def test_columns_that_were_changed_by_hand_into_none_are_named(tmp_path, columns, problems):
    write(tmp_path / "metrics.json", json.dumps({"columns": columns}))
    with pytest.raises(InputError, match=rf"columns: expected those of tlstm.py, received another: {problems}"):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"stages": []}, "stages: Input should be a valid dictionary"),
        ({"stages": {"cnn": {"seconds": 1.0}}}, "stages.cnn.done: Field required"),
        ({"stages": {"cnn": {"done": "yes"}}}, "stages.cnn.done: Input should be a valid boolean"),
        ({"machine": {"threads": 0}}, "machine.threads: Input should be greater than or equal to 1"),
        ({"settings": "small"}, "settings: Input should be a valid dictionary"),
    ],
)
def test_a_record_that_was_changed_by_hand_into_none_is_named(tmp_path, record, problem):
    write(tmp_path / "config.json", json.dumps(record))
    with pytest.raises(InputError, match=rf"config\.json: expected the record of a run, received another: {problem}"):
        RunFolder.read(tmp_path)


def test_the_record_is_kept_with_what_only_people_read(tmp_path):
    record = {"settings": {"SEED": 3}, "commit": "0123", "versions": {"numpy": "2"}, "machine": {"system": "Linux"}}
    write(tmp_path / "config.json", json.dumps(record))
    assert RunFolder.read(tmp_path).record == record


def test_a_setting_that_the_record_does_not_have_is_the_default(tmp_path):
    write(tmp_path / "config.json", json.dumps({"settings": {"SEED": 3}}))
    run = RunFolder.read(tmp_path)
    assert run.setting("SEED") == 3
    assert {name: run.setting(name) for name in LOST_SETTINGS} == Config().model_dump(include=set(LOST_SETTINGS)) | {
        "SEED": 3
    }


def test_explained_scans_are_found(tmp_path):
    write(tmp_path / "explain" / "b" / "metrics.json", "{}")
    write(tmp_path / "explain" / "a" / "metrics.json", "{}")
    write(tmp_path / "explain" / "cohort" / "regions.csv", "")
    write(tmp_path / "explain" / "unfinished" / "shap.png", "")
    assert [path.name for path in RunFolder.read(tmp_path).explained] == ["a", "b", "cohort"]
