"""Signals at whichever moment, however many: exit code 143 and one message, or the code of work that has ended."""

import os
import signal
import subprocess
import sys
import time
from itertools import cycle

import pytest
from programs import start

from runs.files import ROOT

LONG = 1200  # seconds; far more than any of these takes
MESSAGE = "The same command goes on from here.\n"
AT_WORK = """
import signal, time
from runs import signals
if __name__ == "__main__":
    signals.end_on_signals()
from runs import processes
class Settings:
    MAX_HOURS = None
def work(_):
    WORK
def ends():
    print("ended", flush=True)
    LAST
import atexit
atexit.register(ends)
processes.exit_process(processes.run_main(Settings, work))
"""


def program(work, last="pass"):
    """A process that does some work, then something as Python ends."""
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + AT_WORK.replace("WORK", work).replace("LAST", last)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text], **pipes)


def burst(process, numbers, pause=0.001):
    """Send signals, one after the other and from the start again, until the process has ended."""
    for number in cycle(numbers):
        process.send_signal(number)
        time.sleep(pause)
        if process.poll() is not None:
            return


@pytest.mark.parametrize("name", ["main.py", "predict.py", "tlstm.py"])
@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
def test_a_signal_within_the_imports_is_143_and_the_message(tmp_path, name, numbers):
    process = start(program=name, cwd=tmp_path)
    while process.poll() is None:
        with open(f"/proc/{process.pid}/maps") as maps:
            if "numpy" in maps.read():
                break
    burst(process, numbers)
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 143 and stderr.startswith("Stopped by ") and stderr.count(MESSAGE) == 1
    assert "Traceback" not in stderr and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "work",
    [
        "print('begun', flush=True); time.sleep(60)",
        "print('begun', flush=True)\n    while True: [].append(1)",
        "begin()\n    try:\n        time.sleep(60)\n    finally:\n        time.sleep(60)",
        "begin()\n    try:\n        time.sleep(60)\n    except BaseException as e:\n        raise OSError from e",
        "begin()\n    try:\n        time.sleep(60)\n    except BaseException:\n        time.sleep(60)",
        "begin()\n    with signals.finishing_step(): time.sleep(60)",
    ],
)
@pytest.mark.parametrize(("numbers", "pause"), [([signal.SIGINT], 0.1), ([signal.SIGTERM, signal.SIGINT], 0.001)])
def test_however_many_signals_come_it_is_143_and_the_message(work, numbers, pause):
    process = program(work.replace("begin()", "print('begun', flush=True)"))
    assert process.stdout.readline() == "begun\n"
    burst(process, numbers, pause)
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 143 and "Traceback" not in stderr
    assert stderr.startswith("Stopped by ") and stderr.endswith(MESSAGE)


def test_a_signal_after_the_work_does_not_change_its_end():
    process = program("print('begun', flush=True)", last="time.sleep(60)")
    assert [process.stdout.readline(), process.stdout.readline()] == ["begun\n", "ended\n"]
    burst(process, [signal.SIGINT, signal.SIGTERM])
    _, stderr = process.communicate(timeout=LONG)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
def test_a_program_that_runs_another_says_it_once_and_takes_it_along(tmp_path, numbers):
    """The other one is within its own imports, where nothing else reads its stdin yet."""
    (tmp_path / "some.py").write_text(
        f"import os, sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom runs import signals\n"
        "signals.end_on_signals()\nprint(os.getpid(), flush=True)\ntime.sleep(60)\nsignals.stop_on_signals()\n"
    )
    process = program(
        f"import pathlib; processes.ROOT = pathlib.Path({str(tmp_path)!r}); processes.run_program('some.py', {{}})"
    )
    other = int(process.stdout.readline())
    burst(process, numbers)
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 143 and stderr.startswith("Stopped by ") and stderr.count(MESSAGE) == 1
    while os.path.exists(f"/proc/{other}"):  # until it is gone too
        time.sleep(0.01)


def test_a_program_that_was_killed_alone_is_told_with_the_message(tmp_path):
    (tmp_path / "some.py").write_text("import os; os.kill(os.getpid(), 9)")
    process = program(
        f"import pathlib; processes.ROOT = pathlib.Path({str(tmp_path)!r}); processes.run_program('some.py', {{}})"
    )
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 143
    assert stderr == f"some.py ended with exit code -9\nStopped. {MESSAGE}"
