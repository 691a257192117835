import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import programs
import pytest

from runs.errors import InputError
from runs.files import ROOT
from training.devices import Workers, join_training

HERE = ROOT / "tests"


def free_ports(number):
    """Ports that nobody listens at; of those that systems give out, another process could get one meanwhile."""
    return [port for port in random.SystemRandom().sample(range(20_000, 32_000), 100) if is_free(port)][:number]


def is_free(port):
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) != 0


def start(distribute, folder, *own_signal, **variables):
    command = [sys.executable, HERE / "train_together.py", distribute, folder, *own_signal]
    return subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE, text=True)


def two_tasks():
    """TF_CONFIG of each of two workers on this machine."""
    hosts = [f"localhost:{port}" for port in free_ports(2)]
    return [json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}) for i in range(2)]


def start_workers(folder, signalled=None, own_signal=""):
    """Two workers of one training; in the fifth step the one that is `signalled`, 0 or 1, sends itself this signal."""
    signals = [[own_signal, "5"] if index == signalled else [] for index in range(2)]
    return [start("multi_worker", folder, *own, TF_CONFIG=task) for task, own in zip(two_tasks(), signals, strict=True)]


def start_programs(text, *arguments):
    """The same few lines of Python by each of two workers."""
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1"}
    command = [sys.executable, "-c", text, *arguments]
    return [
        subprocess.Popen(command, env=os.environ | quiet | {"TF_CONFIG": task}, stderr=subprocess.PIPE, text=True)
        for task in two_tasks()
    ]


def messages(*running):
    """What each wrote to stderr, once all have ended."""
    return [stderr for _, stderr in programs.outputs(*running)]


def finish(*running):
    """What each said; all must have ended well."""
    said = messages(*running)
    codes = [process.returncode for process in running]
    assert not any(codes), "\n".join(f"{code}: {words[-2000:]}" for code, words in zip(codes, said, strict=True))
    return said


def weights(folder, distribute):
    with np.load(folder / f"{distribute}.npz") as found:
        return [found[name] for name in found.files]


def history(folder, distribute):
    return pd.read_csv(folder / distribute / "history.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the same training was done by one device, by two, and by two workers."""
    folder = tmp_path_factory.mktemp("distributed")
    finish(start("none", folder), start("mirrored", folder), *start_workers(folder))
    return folder


@pytest.mark.parametrize("distribute", ["mirrored", "multi_worker"])
def test_several_devices_train_as_one_does(folder, distribute):
    """Group normalisation, dropout, augmentation and averages: the same network but for rounding."""
    for one, several in zip(weights(folder, "none"), weights(folder, distribute), strict=True):
        np.testing.assert_allclose(several, one, atol=1e-6)
    pd.testing.assert_frame_equal(history(folder, distribute), history(folder, "none"), atol=1e-5)


@pytest.mark.parametrize("distribute", ["mirrored", "multi_worker"])
def test_a_step_is_compiled_once(folder, distribute):
    traces = json.loads((folder / f"{distribute}.json").read_text())
    assert traces == dict.fromkeys(("one_pass", "predict_in_training", "loss_gradient", "backpropagate", "apply"), 1)


def test_only_the_first_worker_writes(folder):
    written = {path.name for path in (folder / "multi_worker").rglob("*") if path.is_file()}
    assert written == {"best.weights.h5", "history.csv", "state.npz"}


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_worker_dies_the_other_says_so_and_the_same_command_goes_on(folder, tmp_path, dies):
    running = start_workers(tmp_path, dies, "SIGKILL")
    said = messages(*running)[1 - dies]
    assert running[dies].returncode == -signal.SIGKILL and running[1 - dies].returncode == 1
    assert re.search(r"another worker has stopped, or can't be reached \(.*(connect|reset|closed|heartbeat)", said)
    assert "Traceback" not in said
    finish(*start_workers(tmp_path))
    for whole, resumed in zip(weights(folder, "multi_worker"), weights(tmp_path, "multi_worker"), strict=True):
        np.testing.assert_array_equal(resumed, whole)
    pd.testing.assert_frame_equal(history(tmp_path, "multi_worker"), history(folder, "multi_worker"), check_exact=True)


@pytest.mark.slow
def test_a_worker_may_be_silent_for_a_while(folder, tmp_path):
    """As one whose machine is suspended, or starved by others: TensorFlow gives it up after 10 seconds."""
    running = start_workers(tmp_path, 1, "SIGSTOP")
    with programs.none_outlives(*running):
        stopped = os.waitid(os.P_PID, running[1].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped.si_status == signal.SIGSTOP
        time.sleep(20)
        running[1].send_signal(signal.SIGCONT)
        finish(*running)
    for whole, paused in zip(weights(folder, "multi_worker"), weights(tmp_path, "multi_worker"), strict=True):
        np.testing.assert_array_equal(paused, whole)


LEAVES = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from training.devices import join_training
workers = join_training("multi_worker")
for dies in (False, True):
    second_is_done = Path(sys.argv[1], str(dies))
    with workers.report_lost_worker():
        workers.broadcast(b"the last message")
        while workers.is_first and not second_is_done.exists():
            time.sleep(0.1)
        time.sleep(2 if workers.is_first else 0)  # in which the second one waits for the first
        print(f"done {{dies}}", time.monotonic(), file=sys.stderr)
        if not workers.is_first:
            second_is_done.touch()
        elif dies:
            os._exit(0)
    print(f"left {{dies}}", time.monotonic(), file=sys.stderr)
"""


def test_workers_leave_together_and_none_fails_by_it(tmp_path):
    """Once the last message is told, neither a slow worker nor one that is gone is an error of another."""
    running = start_programs(LEAVES, tmp_path)
    first, second = (dict(re.findall(r"^((?:done|left) \w+) (.+)", words, re.M)) for words in finish(*running))
    for dies in ("False", "True"):
        assert float(second[f"left {dies}"]) > float(first[f"done {dies}"]) > float(second[f"done {dies}"])
    assert "left False" in first and "left True" not in first


PREDICTS = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(HERE)!r}, {str(ROOT)!r}]
import numpy as np
from training.devices import join_training
from model import build_model
from volumes import SHAPE, part_of
from training.features import make_predict
workers = join_training("multi_worker")
entries = part_of(Path(sys.argv[1]), 12, np.random.default_rng(0), str(workers.index))[1].entries
with workers.strategy.scope():
    predict = make_predict(build_model(SHAPE, width=4, norm="group"), workers)
for _ in range(600):
    workers.broadcast(b"the next")
    predict(entries, 4)
"""


@pytest.mark.slow
def test_what_reads_ahead_never_crashes_a_worker(tmp_path):
    """TensorFlow's own reader for several devices crashed one of two within a minute, every time."""
    finish(*start_programs(PREDICTS, tmp_path))


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_after_the_same_step(tmp_path):
    running = start_workers(tmp_path, 1, "SIGTERM")
    said = messages(*running)
    assert [process.returncode for process in running] == [143, 143], said
    finish(*start_workers(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_workers_run_the_pipeline(tmp_path):
    """main.py on both: the first does every stage, and its features are those of one process."""
    arguments = (*programs.SMALL, "--NORM=group", "--STAGES=cnn,features,tlstm,report")
    alone = programs.run(*arguments, f"--OUTPUT_DIR={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr[-3000:]
    together = (*arguments, "--DISTRIBUTE=multi_worker", f"--OUTPUT_DIR={tmp_path / 'together'}")
    for own, codes in ((["--WIDTH=8"], [1, 2]), ([], [0, 0])):  # the second worker's own settings
        first, second = two_tasks()
        running = [
            programs.start(*together, env=os.environ | {"TF_CONFIG": first}),
            programs.start(*together, *own, env=os.environ | {"TF_CONFIG": second}),
        ]
        said = messages(*running)
        assert [process.returncode for process in running] == codes, said
        if own:
            assert "This worker's settings or input are not the first one's: WIDTH." in said[1]
            assert "another worker has stopped" in said[0]
    assert "C-index" in (tmp_path / "together" / "report.html").read_text()
    for part in ("train", "test"):
        one, two = (pd.read_parquet(tmp_path / name / "features" / f"{part}.parquet") for name in ("alone", "together"))
        pd.testing.assert_frame_equal(two, one, atol=1e-3, rtol=1e-3)


def test_one_process_alone_hears_itself():
    workers = Workers()
    assert workers.num_devices == workers.num_workers == 1 and workers.is_first
    assert workers.broadcast(b"so") == b"so" and workers.any(True) and not workers.any(False)


@pytest.mark.parametrize("devices", [0, 4])
def test_fewer_devices_than_asked_are_refused(devices):
    with pytest.raises(InputError, match=rf"DISTRIBUTE: expected {max(2, devices)} or more devices .* received 1"):
        join_training("mirrored", devices)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}}',
    ],
)
def test_a_wrong_cluster_is_refused(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(InputError, match=r"TF_CONFIG: expected .*worker"):
        join_training("multi_worker")


def test_no_cluster_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    with pytest.raises(InputError, match="expected TF_CONFIG or the variables of a step"):
        join_training("multi_worker")


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    host = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(host))
    with pytest.raises(InputError, match="expected 4 or more devices on this machine, received 0 GPUs"):
        join_training("multi_worker", devices=4)


def test_slurm_names_the_workers(monkeypatch):
    from training.devices import _find_cluster

    monkeypatch.delenv("TF_CONFIG", raising=False)
    step = {"PROCID": "1", "STEP_NUM_TASKS": "2", "STEP_NODELIST": "node[07-08]", "STEP_TASKS_PER_NODE": "1(x2)"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = _find_cluster()
    assert resolver.cluster_spec().job_tasks("worker") == ["node07:8888", "node08:8888"]
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
