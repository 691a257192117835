import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from config import read_config
from runs import files
from runs.errors import InputError
from runs.files import fingerprint, read_json, write_json
from runs.provenance import differences, provenance
from runs.record import Record
from runs.stages import AS_BEFORE, STAGES

GRID = {"shape": (4, 5, 6), "affine": np.eye(4)}


@pytest.fixture
def record(tmp_path):
    def make(*arguments, inputs="input"):
        settings = read_config([f"--OUTPUT_DIR={tmp_path}", *arguments]).model_dump(mode="json")
        return Record(tmp_path, settings, inputs=inputs, grid=GRID, threads=2)

    return make


def do(record, *stages):
    for stage in stages:
        with record.running(stage):
            pass


def test_every_setting_that_a_stage_depends_on_exists(record):
    settings = record().settings
    assert [name for stage in STAGES.values() for name in stage.settings if name not in settings] == []


def test_what_is_done_is_known_by_the_next_run(record):
    do(record(), "cnn", "features")
    again = record()
    assert again.is_done("cnn") and again.is_done("features") and not again.is_done("tlstm")
    assert again.changes("cnn") == []


def test_a_changed_setting_undoes_its_stage_and_those_below(record):
    do(record(), "cnn", "features", "tlstm", "explain")
    other = record("--NUM_SEEDS=3")
    assert [other.is_done(stage) for stage in ("cnn", "features", "tlstm", "explain")] == [True, True, False, False]
    assert other.changes("tlstm") == ["NUM_SEEDS was 5, is 3"]
    assert not record("--WIDTH=8").is_done("features")
    assert record("--NUM_WORKERS=1", "--STAGES=cnn").is_done("explain")


@pytest.mark.parametrize(
    ("name", "stage", "other"),
    [
        ("PROGRESS", "cnn", "linear"),
        ("KEEP_EPOCH", "cnn", "last"),
        ("SHAPLEY_BACKGROUND", "explain", "2"),
        ("WINSORISE", "tlstm", "5"),
    ],
)
def test_a_stage_of_before_there_was_a_setting_stays_done_with_its_results_alone(record, name, stage, other):
    as_before = f"--{name}={AS_BEFORE[name]}"
    do(record(as_before), "cnn", "features", "tlstm", "explain")
    path = record().path
    saved = read_json(path)
    for known in saved["stages"].values():
        known["needs"].pop(name, None)
    write_json(path, saved)
    assert record(as_before).is_done("explain")
    assert not record(f"--{name}={other}").is_done(stage)


def test_a_changed_input_undoes_everything(record):
    do(record(), "cnn")
    other = record(inputs="another")
    assert not other.is_done("cnn") and other.changes("cnn") == ["the input"]


@pytest.mark.parametrize(
    ("stage", "name"),
    [("cnn", "cnn/backup/state.npz"), ("features", "cnn/crossfit/0/a"), ("explain", "explain/a1/metrics.json")],
)
def test_a_stage_that_was_stopped_goes_on_only_with_its_own_settings(record, tmp_path, stage, name):
    with pytest.raises(KeyboardInterrupt), record().running(stage):
        raise KeyboardInterrupt
    assert not record().is_done(stage)
    left = tmp_path / name
    left.parent.mkdir(parents=True)
    left.touch()
    with pytest.raises(KeyboardInterrupt), record().running(stage):
        assert left.exists()
        raise KeyboardInterrupt
    with record("--WIDTH=8").running(stage):
        assert not left.exists()


def test_the_record_names_settings_versions_and_seed(record, tmp_path):
    record("--SEED=7").write()
    found = read_json(tmp_path / "config.json")
    assert found["settings"]["SEED"] == found["seed"] == 7
    assert {"python", "tensorflow", "torch"} <= set(found["versions"])
    assert found["grid"] == {"shape": [4, 5, 6], "affine": np.eye(4).tolist()}
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40


def leave(tmp_path, name, text="whole"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("stage", "damaged", "kept"),
    [
        ("cnn", "cnn/history.csv", {"cnn/best.weights.h5", "cnn/backup/state.npz"}),
        ("cnn", "cnn/best.weights.h5", set()),
        ("features", "cnn/crossfit/0/features.parquet", {"cnn/crossfit/0/best.weights.h5", "cnn/crossfit/1/a"}),
        ("features", "cnn/crossfit/0/best.weights.h5", {"cnn/crossfit/1/a"}),
        ("explain", "explain/a1/shap.png", {"explain/b1/metrics.json", "explained_cohort/mean.png"}),
        ("explain", "explained_cohort/mean.png", {"explain/a1/metrics.json", "explain/b1/metrics.json"}),
    ],
)
def test_only_what_is_damaged_is_made_anew(record, tmp_path, stage, damaged, kept):
    """A stage that was done goes on from the rest, as a stopped one does."""
    with record().running(stage):
        for name in {damaged} | kept:
            leave(tmp_path, name)
        if stage == "explain":
            leave(tmp_path, "explain/a1/metrics.json")
    leave(tmp_path, damaged, "spoilt")
    with record().running(stage):
        assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*/*") if path.is_file()} == kept


@pytest.mark.parametrize("name", ["explain", "splits/a.csv", "a.weights.h5", "cnn", "cnn/best.weights.h5"])
def test_a_record_that_names_others_files_removes_none_of_them(record, tmp_path, name):
    with record().running("explain"):
        leave(tmp_path, "explain/a1/metrics.json")
    for kept in ("splits/a.csv", "cnn/history.csv"):
        leave(tmp_path, kept)
    known = read_json(tmp_path / "config.json")
    known["stages"]["explain"]["files"][name] = {"size": 1, "sha256": ""}
    write_json(tmp_path / "config.json", known)
    with record().running("explain"):
        for kept in ("splits/a.csv", "cnn/history.csv", "explain/a1/metrics.json", "config.json"):
            assert (tmp_path / kept).exists()


def test_what_a_link_leads_to_is_not_removed(record, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / "explain").symlink_to(elsewhere)
    with record().running("explain"):
        leave(tmp_path, "explain/a1/metrics.json")
        leave(tmp_path, "explain/a1/shap.png")
    leave(tmp_path, "explain/a1/shap.png", "spoilt")
    with pytest.raises(InputError, match="a1: is damaged, and a link leads to it"), record().running("explain"):
        pass
    assert (elsewhere / "a1" / "metrics.json").exists()


@pytest.mark.parametrize(("stage", "linked"), [("explain", "explain"), ("explain", "explained_cohort"), ("cnn", "cnn")])
def test_old_results_behind_a_link_are_refused_before_a_stage_begins(record, tmp_path, tmp_path_factory, stage, linked):
    """Neither kept and told as new, nor removed: who made the link may keep other files there."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / linked).symlink_to(elsewhere)
    with record().running(stage):
        leave(tmp_path, f"{linked}/a1/metrics.json", "old")
    other = record("--WIDTH=8")
    with pytest.raises(InputError, match=rf"\(1\):\n  {stage}: {tmp_path / linked} leads to {elsewhere}, which holds"):
        other.refuse_folders(["cnn", "explain"])
    with pytest.raises(InputError, match="leads to"), other.running(stage):
        pass
    assert (elsewhere / "a1" / "metrics.json").read_text() == "old" and record().is_done(stage)
    shutil.rmtree(elsewhere / "a1")
    with other.running(stage):
        leave(tmp_path, f"{linked}/b1/metrics.json")
    assert (elsewhere / "b1").exists() and (tmp_path / linked).is_symlink()


@pytest.mark.parametrize("spoil", ["dangling", "file", "unwritable"])
def test_a_folder_that_cannot_be_written_is_refused_by_name(record, tmp_path, monkeypatch, spoil):
    path = tmp_path / "explain"
    if spoil == "dangling":
        path.symlink_to(tmp_path / "not there")
    elif spoil == "file":
        path.touch()
    else:
        path.symlink_to("/proc/self")  # nobody can write there, root neither
    with pytest.raises(InputError, match=rf"\(1\):\n  explain: {path}: (expected a folder, found a|can't be written)"):
        record().refuse_folders(["cnn", "explain", "report"])
    record().refuse_folders(["cnn", "report"])


def test_a_folder_that_stays_is_one_error(record, tmp_path, monkeypatch):
    do(record(), "cnn")
    leave(tmp_path, "cnn/history.csv")
    monkeypatch.setattr(files.shutil, "rmtree", lambda path: None)
    with (
        pytest.raises(files.WriteError, match="cnn: can't be removed: it is still there"),
        record("--WIDTH=8").running("cnn"),
    ):
        pass


@pytest.mark.parametrize(
    ("setting", "beside", "stage"), [("ATLAS", "labels.csv", "explain"), ("REFERENCE", None, "cnn")]
)
def test_a_file_that_a_setting_names_counts_by_its_content(record, tmp_path, setting, beside, stage):
    first, second = leave(tmp_path, "one/labels.nii.gz", "a"), leave(tmp_path, "two/labels.nii.gz", "a")
    do(record(f"--{setting}={first}"), "cnn", "features", "tlstm", "explain")
    assert record(f"--{setting}={second}").is_done(stage)  # a copy elsewhere
    second.write_text("b")
    assert record(f"--{setting}={second}").changes(stage) == [f"the content of {setting}"]
    assert record().changes(stage) == [f"the content of {setting}"]
    first.write_text("b")
    assert not record(f"--{setting}={first}").is_done(stage)
    first.write_text("a")
    assert record(f"--{setting}={first}").is_done("explain")
    if beside:
        leave(tmp_path, f"one/{beside}", "label,region")
        assert record(f"--{setting}={first}").changes(stage) == [f"the content of {setting}"]
        assert record(f"--{setting}={first}").is_done("cnn")


def test_what_a_stage_read_of_another_one_counts_by_its_content(record, tmp_path):
    """Stage 1 is trained anew by other libraries, with the same settings: what came of the old network is stale."""
    for stage, name in (
        ("cnn", "cnn/best.weights.h5"),
        ("features", "features/train.parquet"),
        ("tlstm", "tlstm/model.pt"),
    ):
        with record().running(stage):
            leave(tmp_path, name)
    assert record().is_done("tlstm")
    leave(tmp_path, "cnn/history.csv", "seconds")
    with record().running("cnn"):
        leave(tmp_path, "cnn/best.weights.h5")
    assert record().is_done("features") and record().is_done("tlstm")  # the same weights
    (tmp_path / "cnn" / "best.weights.h5").unlink()
    with record().running("cnn"):
        leave(tmp_path, "cnn/best.weights.h5", "others")
    assert record().changes("features") == ["the results of cnn"] == record().changes("tlstm")


def test_a_run_that_was_moved_or_copied_stays_done(record, tmp_path, tmp_path_factory):
    with record().running("cnn"):
        leave(tmp_path, "cnn/best.weights.h5")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(tmp_path, elsewhere)
    settings = read_config([f"--OUTPUT_DIR={elsewhere}"]).model_dump(mode="json")
    assert Record(elsewhere, settings, inputs="input", grid=GRID, threads=2).is_done("cnn")


# ---- What made a stage -------------------------------------------------------------------------------
@pytest.fixture
def other_versions(monkeypatch):
    """From now on this process is one of other versions."""

    def change():
        now = provenance()
        other = now | {"versions": now["versions"] | {"numpy": "9.9"}, "commit": "f" * 40}
        monkeypatch.setattr("runs.record.provenance", lambda: other)

    return change


def test_a_stage_keeps_what_made_it(record, tmp_path, other_versions):
    do(record(), "cnn")
    other_versions()
    again = record()
    assert (
        again.is_done("cnn")
        and again.made_otherwise("cnn")[0] == f"numpy {provenance()['versions']['numpy']} instead of 9.9"
    )
    do(again, "features")
    content = read_json(tmp_path / "config.json")
    assert content["stages"]["cnn"]["made_by"] == provenance()
    assert content["versions"]["numpy"] == content["stages"]["features"]["made_by"]["versions"]["numpy"] == "9.9"
    assert again.made_otherwise("features") == []


def test_a_stage_that_others_have_begun_says_so(record, tmp_path, other_versions, caplog):
    with pytest.raises(KeyboardInterrupt), record().running("cnn"):
        raise KeyboardInterrupt
    other_versions()
    do(record(), "cnn")
    assert "cnn: goes on from what was made by other versions: numpy " in caplog.text
    stage = read_json(tmp_path / "config.json")["stages"]["cnn"]
    assert stage["begun_by"] == provenance() and stage["made_by"]["versions"]["numpy"] == "9.9"
    do(record("--WIDTH=8"), "cnn")
    assert "begun_by" not in read_json(tmp_path / "config.json")["stages"]["cnn"]


def test_a_record_of_an_earlier_version_has_one_provenance(record, tmp_path, other_versions):
    do(record("--ATLAS=a.nii"), "cnn", "features", "tlstm", "explain")
    content = read_json(tmp_path / "config.json")
    for stage in content["stages"].values():
        del stage["made_by"]
        for need in [need for need in stage["needs"] if need.startswith("the results of")]:
            del stage["needs"][need]
    content["stages"]["explain"]["needs"]["ATLAS"] = "a.nii"
    write_json(tmp_path / "config.json", content)
    other_versions()
    again = record("--ATLAS=a.nii")
    assert again.is_done("explain") and again.made_otherwise("cnn")[0].startswith("numpy ")
    assert record("--ATLAS=b.nii").changes("explain") == ["the content of ATLAS"]


def test_a_stage_whose_files_are_lost_is_done_anew(record, tmp_path):
    first = record()
    for stage, name in (("cnn", "cnn/best.weights.h5"), ("features", "features/train.parquet")):
        with first.running(stage):
            leave(tmp_path, name)
    assert record().is_done("cnn") and record().is_done("features")
    leave(tmp_path, "features/train.parquet", "half")
    (tmp_path / "cnn" / "best.weights.h5").unlink()
    assert record().changes("cnn") == ["cnn/best.weights.h5: missing"]
    assert record().changes("features") == ["features/train.parquet: changed, expected 5 bytes, received 4"]
    assert not record().is_done("cnn") and not record().is_done("features")
    leave(tmp_path, "features/train.parquet", "hello"[::-1])
    assert record().changes("features") == ["features/train.parquet: changed, other contents of the same size"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stages": {"cnn": {"done": 1}}}, "stages.cnn.done: Input should be a valid boolean"),
        ({"stages": {"cnn": {}}}, "stages.cnn.done: Field required"),
        ({"stages": {"cnn": {"done": True, "files": {"a": {"size": "1", "sha256": ""}}}}}, "stages.cnn.files.a.size: "),
        (
            {"stages": {"cnn": {"done": True, "files": {"../a": {"size": 1, "sha256": ""}}}}},
            "stages.cnn.files.../a.*within",
        ),
        ({"stages": []}, "stages: Input should be a valid dictionary"),
        ({"machine": {"threads": 0}}, "machine.threads: Input should be greater than or equal to 1"),
    ],
)
def test_a_record_that_is_none_is_refused_by_its_places(record, tmp_path, change, told):
    record().write()
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | change)
    with pytest.raises(InputError, match=rf"config\.json: expected the record of a run, received another: {told}"):
        record()


def test_require_refuses_what_auto_does_anew(record, tmp_path):
    with record().running("cnn"):
        leave(tmp_path, "cnn/best.weights.h5")
    record("--WIDTH=8", inputs="another").refuse_changes()
    record("--RESUME=require").refuse_changes()
    record("--RESUME=require", "--NUM_SEEDS=9").refuse_changes()  # stage 2 was never begun
    with pytest.raises(InputError, match=r"require: .* \(2\):\n  cnn: WIDTH was 16, is 8\n  cnn: the input\nGive"):
        record("--WIDTH=8", "--RESUME=require", inputs="another").refuse_changes()
    with pytest.raises(InputError, match="WIDTH was 16, is 8"):  # told before the input is read
        record("--WIDTH=8", "--RESUME=require", inputs=None).refuse_changes()
    record("--RESUME=require", inputs=None).refuse_changes()


def test_a_log_on_a_full_disk_is_one_error(tmp_path):
    os.symlink("/dev/full", tmp_path / "run.log")
    code = (
        f"import pathlib, logging; from runs.log import log_to; log_to(pathlib.Path({str(tmp_path)!r}) / 'run.log'); "
    )
    code += "logging.getLogger('main').info('a line')"
    ours = os.environ | {"PYTHONPATH": str(files.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ours)
    assert done.stderr.count("Traceback") == 2 and "Logging error" not in done.stderr  # OSError, and ours of it
    assert done.stderr.splitlines()[-1].endswith("run.log: can't be written: No space left on device")


def test_a_digest_knows_where_its_parts_end():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("a", b"b") == fingerprint("a", "b")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"version": "2", "commit": "a"}, []),
        ({"version": "1", "versions": {}}, {"version": "2", "versions": {"numpy": "2"}}, ["CNN-TLSTM 1 instead of 2"]),
        ({"commit": "a" * 40 + "+"}, {"commit": "a" * 40}, [f"commit {'a' * 12}+ instead of {'a' * 12}"]),
        (
            {"versions": {"b": "1", "a": "1"}},
            {"versions": {"a": "2", "b": "3"}},
            ["a 1 instead of 2", "b 1 instead of 3"],
        ),
    ],
)
def test_what_differs_of_two_provenances_is_told(before, after, told):
    assert differences(before, after) == told and differences(after, after) == []
