import numpy as np
import pytest

from config import read_config
from data import Grid
from files import InputError, read_json
from record import DEPENDS, UPSTREAM, Record, digest, open_folder

GRID = Grid((4, 5, 6), np.eye(4))


@pytest.fixture
def record(tmp_path):
    def make(*arguments, inputs="input"):
        return Record(read_config([f"--OUTPUT_DIR={tmp_path}", *arguments]), inputs, GRID)

    return make


def do(record, *stages):
    for stage in stages:
        with record.doing(stage):
            pass


def test_every_setting_that_a_stage_depends_on_exists(record):
    settings = record().config.model_dump()
    assert [name for names in DEPENDS.values() for name in names.split() if name not in settings] == []
    assert set(DEPENDS) == set(UPSTREAM) - {"report"}


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


def test_a_changed_input_undoes_everything(record):
    do(record(), "cnn")
    other = record(inputs="another")
    assert not other.is_done("cnn") and other.changes("cnn") == ["the input"]


def test_a_stage_that_was_stopped_resumes_only_with_its_own_settings(record):
    with pytest.raises(KeyboardInterrupt), record().doing("cnn"):
        raise KeyboardInterrupt
    assert not record().is_done("cnn")
    same = record()
    with same.doing("cnn"):
        assert same.resumes("cnn")
    with pytest.raises(KeyboardInterrupt), record("--WIDTH=8").doing("cnn"):
        raise KeyboardInterrupt
    other = record("--WIDTH=32")
    with other.doing("cnn"):
        assert not other.resumes("cnn")


def test_the_record_names_settings_versions_and_seed(record, tmp_path):
    record("--SEED=7").write()
    found = read_json(tmp_path / "config.json")
    assert found["settings"]["SEED"] == found["seed"] == 7
    assert {"python", "tensorflow", "torch"} <= set(found["versions"])
    assert found["grid"] == {"shape": [4, 5, 6], "affine": np.eye(4).tolist()}
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="OUTPUT_DIR: expected a folder that can be written"):
        open_folder(tmp_path / "file")


def test_a_digest_knows_where_its_parts_end():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a", b"b") == digest("a", "b")
