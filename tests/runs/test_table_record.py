"""The record of a run on a table: what it depends on, whose folder it is, what a stopped stage goes on from."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from samples import random_table

import tlstm
from config import read_config
from runs import table_record
from runs.errors import InputError
from runs.record import Record
from runs.stages import TABLE_STAGES
from runs.table_record import TableRecord, fingerprint_table
from survival.crossval import Plan


@pytest.fixture
def table(rng):
    return random_table(rng, num_subjects=8)


@pytest.fixture
def record(tmp_path, table):
    def make(*arguments, stage="cv", table=table):
        settings = read_config([f"--OUTPUT_DIR={tmp_path}", *arguments]).model_dump(mode="json")
        return TableRecord(tmp_path, settings, stage=stage, table=table, threads=2)

    return make


def scans_record(folder, *arguments):
    settings = read_config([f"--OUTPUT_DIR={folder}", *arguments]).model_dump(mode="json")
    return Record(folder, settings, inputs="scans", grid={"shape": (4, 5, 6), "affine": np.eye(4)}, threads=2)


def do(record):
    (stage,) = set(record.plan) - {"report"}
    with record.running(stage):
        pass


# ---- What a stage depends on ---------------------------------------------------------------------------
class Asked:
    """Settings that remember which of them were read."""

    LANDMARKS = WINDOWS = (1.0,)

    def __init__(self):
        self.names = set()

    def __getattribute__(self, name):
        if name.isupper():
            object.__getattribute__(self, "names").add(name)
        return object.__getattribute__(self, name)

    def __getattr__(self, name):
        return 3


@pytest.mark.parametrize("stage, read", [("tlstm", [tlstm.Settings.of]), ("cv", [tlstm.Settings.of, Plan.of])])
def test_a_stage_depends_on_every_setting_that_its_models_read(stage, read):
    asked = Asked()
    for settings_of in read:
        settings_of(asked)
    assert asked.names - {"FEATURES"} <= set(TABLE_STAGES[stage].settings)  # the table itself counts, not its path
    assert set(TABLE_STAGES[stage].settings) <= set(read_config().model_dump())


def test_every_stage_is_done_by_a_function_of_stage_2():
    for name in ("tlstm", "cv"):
        assert callable(getattr(tlstm, TABLE_STAGES[name].function)) and TABLE_STAGES[name].name == name


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.rename(columns={"lab": "laboratory"}),
        lambda table: table.assign(lab=table["lab"].where(table.index != 3, 1.0)),
        lambda table: table.assign(lab=table["lab"].where(table.index != 3)),
        lambda table: table.assign(subject="x" + table["subject"]),
        lambda table: table.assign(event=~table["event"]),
        lambda table: table.iloc[1:],
    ],
)
def test_a_table_has_another_fingerprint_if_anything_in_it_differs(table, change):
    assert fingerprint_table(change(table)) != fingerprint_table(table)


def test_a_table_has_the_same_fingerprint_in_another_order_and_format(table, tmp_path):
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    others = [
        table.sample(frac=1, random_state=0),
        pd.read_parquet(tmp_path / "t.parquet"),
        pd.read_csv(tmp_path / "t.csv", float_precision="round_trip"),
    ]
    assert {fingerprint_table(other) for other in others} == {fingerprint_table(table)}


@pytest.mark.parametrize("library", [False, True])
def test_other_code_or_another_library_is_a_change(record, monkeypatch, tmp_path, library):
    do(record())
    assert record().changes("cv") == []
    if library:
        monkeypatch.setattr(table_record, "version", lambda name: "0.0")
    else:
        (tmp_path / "tlstm.py").write_text("changed")
        monkeypatch.setattr(table_record, "ROOT", tmp_path)
    (change,) = record().changes("cv")
    assert change.startswith("the code was ")


# ---- Whose folder it is ----------------------------------------------------------------------------------
def test_a_folder_of_scans_is_refused_by_name(record, tmp_path):
    scans_record(tmp_path).write()
    written = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"run of tlstm.py, received .* holds one of main.py. Choose another OUTPUT"):
        record().refuse_changes()
    assert (tmp_path / "config.json").read_bytes() == written


def test_a_folder_of_scans_of_an_older_record_is_refused_too(record, tmp_path):
    scans_record(tmp_path).write()
    content = json.loads((tmp_path / "config.json").read_text())
    del content["program"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"holds one of main\.py"):
        record().refuse_changes()


def test_a_folder_of_a_table_is_refused_by_name(record, tmp_path):
    do(record())
    with pytest.raises(InputError, match=r"run of main.py, received .* holds one of tlstm.py. Choose another OUTPUT"):
        scans_record(tmp_path).refuse_changes()


def test_other_results_are_of_the_same_table_or_refused(record, table):
    do(record(stage="tlstm"))
    record(stage="cv").refuse_changes()
    record("--NUM_SEEDS=3", "--LANDMARKS=1", stage="cv").refuse_changes()
    for other in (table.assign(lab=1.0), table.drop(columns="lab")):
        with pytest.raises(InputError, match=r"(?s)other results.*tlstm: of another table.*Choose another OUTPUT_DIR"):
            record(stage="cv", table=other).refuse_changes()
        record(stage="tlstm", table=other).refuse_changes()  # it is done anew


def test_a_changed_setting_or_table_is_said_and_with_require_refused(record, table, caplog):
    do(record())
    other = table.assign(lab=1.0)
    for arguments, changed in ((["--NUM_SEEDS=3"], table), ([], other)):
        with pytest.raises(InputError, match=r"cv: (NUM_SEEDS was 5, is 3|the input)"):
            record("--RESUME=require", *arguments, table=changed).refuse_changes()
    record("--RESUME=require", "--NUM_RESAMPLES=200").refuse_changes()  # of other figures than its own
    with caplog.at_level(logging.INFO):
        do(record("--NUM_SEEDS=3"))
        do(record("--NUM_SEEDS=3", table=other))
    assert "cv: done anew, since it depends on what has changed: NUM_SEEDS was 5, is 3" in caplog.messages
    assert "cv: done anew, since it depends on what has changed: the input" in caplog.messages


def test_the_record_says_what_a_scans_run_says_but_for_the_grid(record, tmp_path):
    do(record(stage="tlstm"))
    do(record(stage="cv"))
    of_table = json.loads((tmp_path / "config.json").read_text())
    scans_record(tmp_path).write()
    of_scans = json.loads((tmp_path / "config.json").read_text())
    assert of_table.keys() == of_scans.keys() - {"grid"}
    assert (of_table["program"], of_scans["program"]) == ("tlstm.py", "main.py")
    assert {name: stage["done"] for name, stage in of_table["stages"].items()} == {"tlstm": True, "cv": True}


# ---- What a stopped stage goes on from ---------------------------------------------------------------------
def test_what_a_stopped_stage_goes_on_from_stays_until_the_report_or_a_change(record, table):
    folder = record().backup("cv")
    others = [record("--SEED=1"), record("--WINDOWS=2"), record("--REPEATS=2"), record(table=table.assign(lab=1.0))]
    assert len({folder, *(other.backup("cv") for other in others)}) == 5
    with pytest.raises(KeyboardInterrupt), record().running("cv"):
        folder.mkdir(parents=True)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), record("--NUM_RESAMPLES=200").running("cv"):
        assert folder.is_dir()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), others[0].running("cv"):
        assert not folder.exists()
        others[0].backup("cv").mkdir(parents=True)
        raise KeyboardInterrupt
    do(record("--SEED=1"))
    with record("--SEED=1").running("cv"):
        assert others[0].backup("cv").is_dir()  # stopped while the page was written
    record("--SEED=1").finish("report", {"done": True})
    assert not folder.parent.exists()
