"""A disk that fills up in every stage: one message that names the file, exit 1, and the same command goes on."""

import os
import resource
import signal
import subprocess
import time

import pytest
from programs import SMALL, outputs, results, run, start, temporaries

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
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("Failed: ")]
    assert "can't be written" in told and "the same command goes on" in told
    return told


def can_mount(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount")
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_disk_that_fills_up_in_every_stage(unbroken, tmp_path, tmp_path_factory):
    """On a tmpfs that shrinks to half of what the stage needs, then grows again."""
    if not can_mount(tmp_path_factory):
        pytest.fail("a tmpfs can't be mounted: run this test as root; the limit to a file's size is tried below")
    folder, told = tmp_path / "disk" / "outputs", {}
    folder.parent.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", folder.parent], check=True)
    try:
        for stage in STAGES:
            told[stage] = refused(run_while_the_disk_fills_up(folder, stage, pages(unbroken / stage) // 2))
            assert temporaries(folder) == []
            assert f"/outputs/{stage}" in told[stage], told
            size(folder.parent, "1g")
        done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert results(folder) == results(unbroken)
    finally:
        subprocess.run(["umount", "-l", folder.parent], check=True)
        print(*told.items(), sep="\n")


def run_while_the_disk_fills_up(folder, stage, room):
    """A run that finds only so many bytes left on its disk once it has begun the stage."""
    process = start(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
    while process.poll() is None and not (folder / stage).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    disk = os.statvfs(folder)
    size(folder.parent, (disk.f_blocks - disk.f_bfree) * disk.f_frsize + room)
    process.send_signal(signal.SIGCONT)
    ((stdout, stderr),) = outputs(process)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def size(disk, value):
    subprocess.run(["mount", "-o", f"remount,size={value}", disk], check=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
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
