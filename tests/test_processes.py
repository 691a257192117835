import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import processes
from config import read_config

TELLS = "import json, sys; json.dump(sys.argv[1:], open('told.json', 'w')); sys.exit(int('--EPOCHS=7' in sys.argv) * 3)"
WAITS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(open('stopped', 'w').close())); "


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "HERE", tmp_path)
    return tmp_path


def test_a_program_reads_the_settings_that_it_was_given(here):
    (here / "some.py").write_text(TELLS)
    settings = read_config(["--EXPLAIN=a b,it's", "--HORIZONS=1,2.5", "--OUTPUT_DIR=out puts", "--RESAMPLE=on"])
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
    """The signal goes to us alone; the program ends by its own hand, before we do."""
    (here / "some.py").write_text(WAITS + "open('begun', 'w').close(); time.sleep(60)")
    ours = f"import sys; sys.path.insert(0, {str(Path(processes.__file__).parent)!r}); import processes, pathlib; "
    ours += f"processes.HERE = pathlib.Path({str(here)!r}); processes.run_program('some.py', {{}})"
    process = subprocess.Popen([sys.executable, "-c", ours], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (here / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert (here / "stopped").exists()
