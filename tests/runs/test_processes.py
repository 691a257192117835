import json
import os
import signal
import subprocess
import sys
import time

import pytest
from programs import none_outlives, outputs, wait_until

from config import read_config
from runs import processes
from runs.files import ROOT

TELLS = "import json, sys; json.dump(sys.argv[1:], open('told.json', 'w')); sys.exit(int('--EPOCHS=7' in sys.argv) * 3)"
WAITS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(open('stopped', 'w').close())); "


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    return tmp_path


def test_a_program_reads_the_settings_that_it_was_given(here):
    (here / "some.py").write_text(TELLS)
    arguments = [
        "--EXPLAIN=a b,it's",
        "--HORIZONS=1,2.5",
        "--OUTPUT_DIR=out puts",
        "--RESAMPLE=on",
        "--COHORT_CSV=c.csv",
    ]
    settings = read_config(arguments)
    processes.run_program("some.py", settings.model_dump(mode="json", exclude_none=True))
    assert read_config(json.loads((here / "told.json").read_text())) == settings


def test_its_exit_code_is_ours(here):
    (here / "some.py").write_text(TELLS)
    with pytest.raises(SystemExit) as stop:
        processes.run_program("some.py", {"EPOCHS": 7})
    assert stop.value.code == 3


def test_a_program_that_was_killed_is_stopped(here):
    (here / "some.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit) as stop:
        processes.run_program("some.py", {})
    assert stop.value.code == processes.STOPPED


def test_stopping_us_stops_it(here):
    """The signal goes to us alone, once we wait for it; the program ends by its own hand, before we do."""
    (here / "some.py").write_text(WAITS + "open('begun', 'w').close(); signal.pause()")
    process = program(RUNS_SOME.format(str(here)), start_new_session=True)
    with none_outlives(process):
        assert process.stdout.readline() == "waiting\n"
        wait_until((here / "begun").exists, process)
        process.send_signal(signal.SIGINT)
        outputs(process)
    assert (here / "stopped").exists()


RUNS_SOME = """
import pathlib
from runs import processes
class Popen(processes.subprocess.Popen):
    def wait(self, *args, **kwargs):
        print("waiting", flush=True)
        return super().wait(*args, **kwargs)
processes.subprocess.Popen = Popen
processes.ROOT = pathlib.Path({!r})
processes.stop_on_signals()  # a process in the background begins with Ctrl-C ignored
processes.run_program("some.py", {{}})
"""


def program(text, **kwargs):
    """A Python process that can import ours."""
    ours = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", ours + text], **pipes, **kwargs)


LOOP = """
import time
from runs import processes, signals
def run():
    with signals.finishing_step():
        signals.stop_on_signals(MAX_HOURS)
        print("begun", flush=True)
        while not signals.stop_requested():
            time.sleep(0.01)
        print("saved", flush=True)
        time.sleep(SECONDS)
sys.exit(processes.exit_code(run))
"""


def test_a_signal_is_noted_while_a_step_is_finished():
    process = program(LOOP.replace("MAX_HOURS", "None").replace("SECONDS", "0.2"))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    ((stdout, stderr),) = outputs(process)
    assert (process.returncode, stdout) == (143, "saved\n")
    assert stderr == "Stopped by SIGTERM. The same command goes on from here.\n"


def test_a_second_signal_stops_at_once():
    process = program(LOOP.replace("MAX_HOURS", "None").replace("SECONDS", "3600"))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGINT)
    ((_, stderr),) = outputs(process)
    assert process.returncode == 143 and "by Ctrl-C" in stderr


def test_the_time_is_up_after_max_hours():
    began = time.monotonic()
    process = program(LOOP.replace("MAX_HOURS", "1 / 3600").replace("SECONDS", "0"))
    ((stdout, stderr),) = outputs(process)
    assert time.monotonic() - began > 1
    assert (process.returncode, stdout) == (143, "begun\nsaved\n")
    assert "Stopped after MAX_HOURS. The same command goes on" in stderr


def test_a_signal_outside_of_a_step_raises_at_once():
    text = """
import signal
from runs import processes
def run():
    processes.stop_on_signals()
    try:
        print("begun", flush=True)
        signal.pause()
    finally:
        print("cleaned", flush=True)
sys.exit(processes.exit_code(run))
"""
    process = program(text)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    ((stdout, _),) = outputs(process)
    assert (process.returncode, stdout) == (143, "cleaned\n")


def test_a_program_dies_with_the_one_that_runs_it(here):
    """kill -9 asks nobody: the program would go on to write into the folder of the next run."""
    body = "import time; from runs import processes; processes.stop_on_signals(); "
    body += "print('begun', flush=True); time.sleep(600); print('outlives', flush=True)"
    (here / "some.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{body}")
    parent = program(RUNS_SOME.format(str(here)))
    with none_outlives(parent):
        assert {parent.stdout.readline() for _ in range(2)} == {"waiting\n", "begun\n"}
    assert parent.communicate()[0] == ""  # to its end: the program held it too


ERRORS = {
    "errors.InputError('row 2: wrong')": (2, "row 2: wrong"),
    "OSError(28, 'No space left on device', 'cnn/best.weights.h5')": (
        1,
        "No space left on device: 'cnn/best.weights.h5'",
    ),
    "MemoryError()": (1, "MemoryError"),
    "concurrent.futures.process.BrokenProcessPool('a worker was killed')": (1, "a worker was killed"),
    "torch.OutOfMemoryError('the GPU is full')": (1, "the GPU is full"),
    "tensorflow.errors.ResourceExhaustedError(None, None, 'OOM when allocating')": (1, "OOM when allocating"),
    "tensorflow.errors.UnavailableError(None, None, 'the device is lost')": (1, "the device is lost"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_one_message_and_its_code(error):
    code, words = ERRORS[error]
    library = error.split("(")[0].split(".")[0]
    library = library if library in ("torch", "tensorflow") else "errors"
    ours = f"import {library}" if library != "errors" else "from runs import errors"
    text = f"import concurrent.futures.process\n{ours}\nfrom runs import processes\ndef run():\n    raise {error}\n"
    process = program(text + "sys.exit(processes.exit_code(run))")
    ((_, stderr),) = outputs(process)
    assert process.returncode == code and "Traceback" not in stderr
    assert words in stderr.splitlines()[-1]


def test_a_mistake_of_ours_keeps_its_traceback():
    def run():
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        processes.exit_code(run)


def test_tensorflow_is_set_up_before_a_programs_work(monkeypatch):
    """Whichever program starts: oneDNN is off by default on some processors, and training takes twice as long."""
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    seen = {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert processes.run_main(lambda: read_config([]), lambda config: seen.update(os.environ)) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert seen["TF_ENABLE_ONEDNN_OPTS"] == "1" and seen["TF_CPP_MIN_LOG_LEVEL"] == "1"  # the user's own stays
