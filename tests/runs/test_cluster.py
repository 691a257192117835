"""A Dask cluster of processes that know nothing of our code, and two processes that build one cache at once."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import distributed
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from programs import none_outlives, wait_until

from data import Preprocessing, build_cache, load_volume
from runs import cluster
from runs.errors import InputError
from runs.files import ROOT

SHAPE = (16, 16, 16)
HOW = Preprocessing(SHAPE)
PATIENCE = 1200  # seconds, ours and Dask's own, so that nothing is refused because the machine is slow
DASK_PATIENCE = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": f"{PATIENCE}s"}  # of the processes that it starts
WAIT = distributed.Client.wait_for_workers

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Dask's, as it closes


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", PATIENCE)
    with dask.config.set({"distributed.comm.timeouts.connect": f"{PATIENCE}s"}):
        yield


@pytest.fixture
def table(tmp_path, rng):
    scans = [f"s{number}" for number in range(24)]
    for scan in scans:
        values = rng.integers(0, 200, (18, 20, 16)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1])), tmp_path / f"{scan}.nii.gz")
    return pd.DataFrame({"scan": scans, "nifti_path": [str(tmp_path / f"{scan}.nii.gz") for scan in scans]})


def names(built):
    return [Path(entry).name for entry in built[0]["cache_entry"]]


def contents(built):
    return [Path(entry).read_bytes() for entry in built[0]["cache_entry"]]


@contextlib.contextmanager
def running(folder, num_workers):
    """The address of a cluster whose workers, of two threads each, can import what its folder holds, not our rooms."""
    told = folder / "scheduler.json"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | DASK_PATIENCE
    common = ["--scheduler-file", str(told), "--no-dashboard"]
    commands = [
        ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common],
        *[["distributed.cli.dask_worker", "--nthreads", "2", "--no-nanny", *common]] * num_workers,
    ]
    with open(folder / "log", "w") as log:
        processes = [
            subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=plain, stdout=log, stderr=log)
            for command in commands
        ]
    with none_outlives(*processes):
        wait_until(lambda: told.exists() and told.read_text().endswith("}"), *processes)
        yield json.loads(told.read_text())["address"]
        for process in reversed(processes):
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cluster"), 2) as address:
        yield address


def test_a_cluster_builds_the_same_entries(scheduler, table, tmp_path):
    here = build_cache(table, HOW, folder=tmp_path / "here", jobs=1)
    there = build_cache(table, HOW, folder=tmp_path / "there", scheduler=scheduler)
    assert names(there) == names(here)
    assert there[1].num_built == len(table)
    assert contents(there) == contents(here)
    assert build_cache(table, HOW, folder=tmp_path / "there", scheduler=scheduler)[1].num_built == 0


def test_a_cluster_names_every_bad_scan(scheduler, table, tmp_path):
    for scan in ("s3", "s20"):
        (tmp_path / f"{scan}.nii.gz").write_text("no volume")
    with pytest.raises(InputError, match=r"\(2\):\n  s3: .*can't read it.*\n  s20: .*can't read it"):
        build_cache(table, HOW, folder=tmp_path / "there", scheduler=scheduler)


def test_equal_scans_may_be_done_at_once(scheduler, table, tmp_path):
    """Threads of one process write one entry."""
    table = table.assign(nifti_path=table["nifti_path"][0])
    built = build_cache(table, HOW, folder=tmp_path / "there", scheduler=scheduler)
    (entry,) = set(built[0]["cache_entry"])
    assert load_volume(entry).shape == (*SHAPE, 1)
    assert sorted(os.listdir(tmp_path / "there")) == sorted([Path(entry).name, "measured.json"])


def test_nobody_at_the_address_is_told(table, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(InputError, match=r"SCHEDULER: expected a scheduler at tcp://127\.0\.0\.1:1, can't reach it"):
        build_cache(table, HOW, folder=tmp_path / "there", scheduler="tcp://127.0.0.1:1")
    with pytest.raises(InputError, match="SCHEDULER: expected a scheduler at nowhere://x, can't reach it"):
        build_cache(table, HOW, folder=tmp_path / "there", scheduler="nowhere://x")


def test_what_to_install_is_told(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"SCHEDULER: expected Dask.*pip install dask distributed"):
        build_cache(table, HOW, folder=tmp_path / "there", scheduler="tcp://127.0.0.1:8786")


def test_a_worker_without_a_library_is_told(table, tmp_path):
    (tmp_path / "nibabel.py").write_text("raise ImportError('No module named nibabel')")
    with running(tmp_path, 1) as address, pytest.raises(InputError, match=r"a worker of tcp.*lacks.*named nibabel"):
        build_cache(table, HOW, folder=tmp_path / "there", scheduler=address)


def test_a_cluster_without_workers_is_told(table, tmp_path, monkeypatch):
    with running(tmp_path, 0) as address:
        monkeypatch.setattr(distributed.Client, "wait_for_workers", lambda self, number, **_: WAIT(self, number, 1))
        with pytest.raises(InputError, match=r"SCHEDULER: expected workers of tcp.*none came in 1200 s"):
            build_cache(table, HOW, folder=tmp_path / "there", scheduler=address)


BUILD = """
import json, sys
import pandas as pd
from data import Preprocessing, build_cache
table = pd.read_csv(sys.argv[1], dtype=str)
table, cache = build_cache(table, Preprocessing((16, 16, 16)), folder=sys.argv[2], jobs=1)
print(json.dumps([cache.num_built, table["cache_entry"].to_list()]))
"""


def test_processes_build_one_cache_at_once(table, tmp_path):
    table.to_csv(tmp_path / "table.csv", index=False)
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", BUILD, str(tmp_path / "table.csv"), str(folder)]
    builders = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    told = [json.loads(process.communicate()[0]) for process in builders]
    assert [process.returncode for process in builders] == [0, 0]
    entries = told[0][1]
    assert entries == told[1][1] and sorted(map(str, folder.glob("*.npy"))) == sorted(entries)
    alone = build_cache(table, HOW, folder=tmp_path / "alone", jobs=1)
    assert [Path(entry).read_bytes() for entry in entries] == contents(alone)
    assert sum(built for built, _ in told) >= len(table)
