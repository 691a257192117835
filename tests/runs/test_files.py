import os
import resource
import signal
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from runs import files
from runs.errors import InputError, WriteError, naming_file


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
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid, host in ((dead.pid, files.HOST), (os.getpid(), files.HOST), (1, "old_host")):
        (tmp_path / f"{files.TEMPORARY}{pid}-{host}-a.csv").touch()
    os.utime(tmp_path / f"{files.TEMPORARY}1-old_host-a.csv", (0, 0))
    (tmp_path / "deep" / f"{files.TEMPORARY}{dead.pid}-{files.HOST}-b" / "c").mkdir(parents=True)
    (tmp_path / "kept.csv").touch()
    assert files.remove_temporaries(tmp_path) == 4
    assert sorted(os.listdir(tmp_path)) == ["deep", "kept.csv"] and os.listdir(tmp_path / "deep") == []


def test_what_a_live_run_writes_stays(tmp_path):
    live = [f"{files.TEMPORARY}{os.getppid()}-{files.HOST}-a.csv", f"{files.TEMPORARY}1-other_host-a.csv"]
    for name in live:
        (tmp_path / name).touch()
    assert files.remove_temporaries(tmp_path) == 0
    assert sorted(os.listdir(tmp_path)) == sorted(live)


def writers(path):
    """How the pipeline's libraries write, each as itself."""
    table = pd.DataFrame({"a": np.arange(50_000.0)})
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(48, 48, 48)).astype(np.float32), np.eye(4))
    return {
        "x.csv": lambda part: table.to_csv(part),
        "x.parquet": lambda part: table.to_parquet(part),
        "x.json": lambda part: part.write_text("x" * 1_000_000),
        "x.npz": lambda part: np.savez(part, a=table["a"]),
        "x.nii.gz": lambda part: nib.save(image, part),
        "x.h5": lambda part: write_h5(part, table["a"].to_numpy()),
        "x.png": lambda part: Image.effect_noise((700, 700), 99).save(part),
    }[path.name]


def write_h5(part, values):
    with h5py.File(part, "w") as file:
        file["a"] = values


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB: errno is EFBIG; ENOSPC is tried on a small disk in test_crash."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[0][1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
    signal.signal(signal.SIGXFSZ, before[1])


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.json", "x.npz", "x.nii.gz", "x.h5", "x.png"])
def test_no_room_is_one_error_that_names_the_file(tmp_path, small_files, name):
    path = tmp_path / name
    path.write_text("old")
    write = writers(path)
    with (
        pytest.raises(WriteError, match=rf"{name}: can't be written: File too large"),
        files.written_whole(path) as part,
    ):
        write(part)
    assert path.read_text() == "old" and os.listdir(tmp_path) == [name]


def test_a_write_that_is_cut_short_is_that_error_too(tmp_path):
    with pytest.raises(WriteError, match=r"a\.npy: can't be written: 4096 requested and 4032 written"):
        with files.written_whole(tmp_path / "a.npy"):
            raise OSError("4096 requested and 4032 written")


def test_another_error_keeps_its_words(tmp_path):
    for error in (RuntimeError("no number"), FileNotFoundError(2, "none", "x")):
        with pytest.raises(type(error)) as found, naming_file(tmp_path):
            raise error
        assert found.value is error


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "a\0b", "<script>", "a" * 300, ".part-1", "é"])
def test_an_id_becomes_one_plain_name(tmp_path, name):
    safe = files.safe_name(name)
    (tmp_path / safe).mkdir()
    assert os.listdir(tmp_path) == [safe] and safe != name


def test_names_stay_different_and_plain_ones_as_they_are():
    assert files.safe_name("I123_v1.2") == "I123_v1.2"
    assert files.safe_name("a/b") != files.safe_name("a_b") != files.safe_name("a:b")
