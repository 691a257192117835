"""Subjects without an outcome in a run: what they teach, what they can't reach, and when a run is another one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from programs import SMALL, run

import main
from cohort import simulate
from cohort.splits import PARTS
from config import read_config
from data import Cohort


def part_of(name, num_subjects):
    """Two scans a subject, as a run has them in memory."""
    subjects = np.repeat([f"{name}{number}" for number in range(num_subjects)], 2)
    table = pd.DataFrame({"subject": subjects, "scan": [f"{name}_i{row}" for row in range(len(subjects))]})
    return table.assign(visit_time=np.arange(len(table)) % 2 / 2, time=3.0, event=True, nifti_path="", cache_entry="e")


@pytest.fixture
def pipeline(tmp_path):
    """A run's pipeline whose network only notes what it is given."""
    pipeline = main.Pipeline(read_config([f"--OUTPUT_DIR={tmp_path}", "--TIME_UNIT=months"]))
    parts = {name: part_of(name, 3) for name in PARTS}
    teachers = part_of("t", 2).drop(columns=["time", "event"])
    pipeline.cohort = Cohort(parts, SimpleNamespace(log=lambda: None), None, teachers)
    pipeline.given = {}
    pipeline.stage1 = SimpleNamespace(
        train=lambda parts, folder: pipeline.given.update(network=parts),
        learn_progress=lambda scans, folder: pipeline.given.update(progress=scans),
    )
    return pipeline


def test_the_network_sees_no_teacher_and_progress_no_outcome(pipeline, monkeypatch):
    monkeypatch.setattr(main, "write_events", lambda folder: None)
    pipeline.train()
    network, progress = pipeline.given["network"], pipeline.given["progress"]
    assert [*network] == [*PARTS] and not {"t0", "t1"} & {*pd.concat(network.values())["subject"]}
    assert progress["subject"].unique().tolist() == ["train0", "train1", "train2", "t0", "t1"]
    assert not {"event", "time"} & set(progress)


@pytest.mark.parametrize("num_scans", [4, 2])
def test_the_splits_name_the_teachers_and_those_of_an_earlier_run_are_removed(pipeline, tmp_path, num_scans):
    cohort = pipeline.cohort
    pipeline.cohort = replace(cohort, teachers=cohort.teachers[:num_scans])
    pipeline._write_splits()
    written = pd.read_csv(tmp_path / "splits" / "teachers.csv")
    assert written["imageid"].tolist() == [f"t_i{row}" for row in range(num_scans)]
    assert written["visit_time"].tolist() == [0.0, 6.0] * (num_scans // 2)
    assert not {"time", "convert_status", "cache_entry"} & set(written)
    pipeline.cohort = replace(cohort, teachers=cohort.teachers[:0])
    pipeline._write_splits()
    assert sorted(path.stem for path in (tmp_path / "splits").iterdir()) == sorted(PARTS)


# ---- Whole runs --------------------------------------------------------------------------------------------
@pytest.fixture
def run_with(tmp_path):
    """A run on the simulated cohort of 24 subjects, some of them without an outcome, or left out of the table."""
    simulate.write_cohort(tmp_path / "own", num_subjects=24, seed=0, jobs=1)
    table = pd.read_csv(tmp_path / "own" / "cohort.csv", dtype=str)

    def run_it(folder, *, teachers=(), left_out=()):
        rows = table.assign(convert_status=table["convert_status"].mask(table["subjectid"].isin(teachers), ""))
        rows[~rows["subjectid"].isin(left_out)].to_csv(tmp_path / "own" / f"{folder}.csv", index=False)
        arguments = [*SMALL, "--EPOCHS=1", "--PROGRESS=linear", f"--COHORT_CSV={tmp_path / 'own' / f'{folder}.csv'}"]
        arguments += [f"--OUTPUT_DIR={tmp_path / folder}", "--STAGES=cnn,features,tlstm,report"]
        done = run(*[setting for setting in arguments if not setting.startswith("--SIM")])
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    return run_it


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_teachers_change_progress_and_nobodys_part(run_with, tmp_path):
    others = ["S0004", "S0009", "S0012", "S0017", "S0020"]
    told = run_with("with", teachers=others)
    assert "without an outcome: 5 subjects, 15 visits" in told and "progress: learned from " in told
    run_with("without", left_out=others)
    for part in PARTS:
        with_them, alone = (
            pd.read_parquet(tmp_path / name / "features" / f"{part}.parquet") for name in ("with", "without")
        )
        changed = [name for name in alone if not with_them[name].equals(alone[name])]
        assert changed == ["progress"], part
    tested, alone = (pd.read_csv(tmp_path / name / "tlstm" / "predictions.csv") for name in ("with", "without"))
    assert tested[["subjectid", "split", "time"]].equals(alone[["subjectid", "split", "time"]])
    assert not set(others) & set(tested["subjectid"])
    assert set(pd.read_csv(tmp_path / "with" / "splits" / "teachers.csv")["subjectid"]) == set(others)
    assert "cnn: done already" in run_with("with", teachers=others)
    told = run_with("with", teachers=others[1:], left_out=others[:1])
    assert "cnn: done anew, since it depends on what has changed: the input" in told
    assert set(pd.read_csv(tmp_path / "with" / "splits" / "teachers.csv")["subjectid"]) == set(others[1:])
