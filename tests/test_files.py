import os

import numpy as np
import pytest

import files
from files import InputError


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with files.written_whole(path) as part:
        part.write_text("new")
        assert not path.exists() and part.suffix == ".csv" and part.parent == path.parent
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), files.written_whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["table.csv"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.written_whole(tmp_path / "cohort") as part:
        part.mkdir()
        (part / "one").touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with files.written_whole(tmp_path / "cohort") as part:
        part.mkdir()
        (part / "one").touch()
    assert os.listdir(tmp_path / "cohort") == ["one"]


def test_json_comes_back_and_has_no_nan(tmp_path):
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": tmp_path}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == {"a": 0.5, "b": [0, 1, 2], "c": str(tmp_path)}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert files.read_json(tmp_path / "x.json")["a"] == 0.5
    assert files.read_json(tmp_path / "none.json") == {}


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "[" * 100_000])
def test_damaged_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: expected"):
        files.read_json(tmp_path / "x.json")


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / f"{files.TEMPORARY}1-a.csv").touch()
    (tmp_path / "deep" / f"{files.TEMPORARY}1-b").mkdir(parents=True)
    (tmp_path / "kept.csv").touch()
    assert files.remove_temporaries(tmp_path) == 2
    assert sorted(os.listdir(tmp_path)) == ["deep", "kept.csv"]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "a\0b", "<script>", "a" * 300, ".part-1", "é"])
def test_an_id_becomes_one_plain_name(tmp_path, name):
    safe = files.safe_name(name)
    (tmp_path / safe).mkdir()
    assert os.listdir(tmp_path) == [safe] and safe != name


def test_names_stay_different_and_plain_ones_as_they_are():
    assert files.safe_name("I123_v1.2") == "I123_v1.2"
    assert files.safe_name("a/b") != files.safe_name("a_b") != files.safe_name("a:b")
