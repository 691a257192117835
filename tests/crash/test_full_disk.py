"""A disk that fills up in every stage: one message that names the file, exit 1, and the same command goes on."""

import resource
import subprocess

import pytest
from runs import SMALL, results, run, stages_done, temporaries

ARGUMENTS = [*SMALL, "--EXPLAIN=highest", "--EXPLAIN_COHORT=0"]
STAGES = ("simulated", "cache", "cnn", "features", "tlstm", "explain", "figures")  # what fills the disk, in this order
PAGE = 4096  # bytes; a file takes whole pages


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "outputs"
    done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def pages(folder):
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def refused(done):
    """The message, after checking that it is one; HDF5 prints what it met itself, from where nobody can catch it."""
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Logging error" not in done.stderr
    assert "Traceback" not in done.stderr or "h5py" in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("Failed: ") and "can't be written" in told and "the same command goes on" in told
    return told


def can_mount(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount")
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_disk_that_fills_up_in_every_stage(unbroken, tmp_path, tmp_path_factory):
    """On a tmpfs that grows a little each time; where none can be mounted, by a limit to the size of a file."""
    if not can_mount(tmp_path_factory):
        pytest.fail("a tmpfs can't be mounted: run this test as root; the limit to a file's size is tried below")
    folder, told, full = tmp_path / "disk" / "outputs", {}, 0
    folder.parent.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder.parent], check=True)
    try:
        for stage in STAGES:
            size = full + pages(unbroken / stage) // 2
            subprocess.run(["mount", "-o", f"remount,size={size}", folder.parent], check=True)
            done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
            told[stage] = refused(done), stages_done(folder)
            assert temporaries(folder) == []
            full += pages(unbroken / stage)
        subprocess.run(["mount", "-o", "remount,size=1g", folder.parent], check=True)
        done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert results(folder) == results(unbroken)
    finally:
        subprocess.run(["umount", "-l", folder.parent], check=True)
        print(*told.items(), sep="\n")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_files_that_must_not_grow(unbroken, tmp_path):
    """Every limit ends the run at another file; without one, it goes on to the same result."""
    folder, named = tmp_path / "outputs", []
    for limit in (2_000, 1_000_000):  # within a scan, and within the weights, the largest file of all
        done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}", preexec_fn=lambda limit=limit: allow(limit))
        named.append(refused(done))
        assert temporaries(folder) == []
    done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(folder) == results(unbroken)
    assert len({line for line in named if "File too large" in line}) == len(named), named


def allow(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
