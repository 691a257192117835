"""What reaches `run.log`: every warning of ours from every process, and nothing of what libraries tell."""

import logging
import warnings
from types import SimpleNamespace

import pytest
from feature_tables import feature_table
from programs import run

from cohort.tables import ON_DISK
from reporting.run_folder import RunFolder
from runs import log, processes
from runs.errors import InputError
from runs.files import ROOT


@pytest.fixture(autouse=True)
def handlers():
    """The log as it was, once a test has changed it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def read(path):
    """The lines of a log without their times."""
    return [line.split(" ", 2)[2] for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_was_logged_before_the_file_had_a_name_comes_first(tmp_path, capsys):
    log.begin_log()
    names = ["a", "b"]
    logging.getLogger("cohort.tables").warning("dropped: %s", names)
    names.append("c")
    logging.getLogger("runs.threads").info("2 threads")
    assert not list(tmp_path.iterdir())
    log.log_to(tmp_path / "run.log")
    logging.getLogger("tlstm").warning("odd é")
    lines = ["WARNING cohort.tables: dropped: ['a', 'b']", "INFO runs.threads: 2 threads", "WARNING tlstm: odd é"]
    assert read(tmp_path / "run.log") == lines
    assert capsys.readouterr().err.splitlines() == ["dropped: ['a', 'b']", "2 threads", "odd é"]
    assert RunFolder.read(tmp_path).warnings == [("cohort.tables: dropped: ['a', 'b']", 1), ("tlstm: odd é", 1)]


def test_a_log_begun_anew_holds_nothing_of_the_one_before(tmp_path, capsys):
    log.begin_log()
    logging.getLogger("main").warning("of a refused run")
    log.begin_log()
    log.log_to(tmp_path / "run.log")
    log.log_to(tmp_path / "other.log")
    logging.getLogger("main").warning("of this one")
    assert read(tmp_path / "run.log") == [] and read(tmp_path / "other.log") == ["WARNING main: of this one"]
    assert capsys.readouterr().err.splitlines() == ["of a refused run", "of this one"]


@pytest.mark.parametrize(
    ("name", "level", "is_logged"),
    [
        ("__main__", logging.INFO, True),
        ("training.loop", logging.INFO, True),
        ("matplotlib.font_manager", logging.INFO, False),
        ("distributed.worker", logging.INFO, False),
        ("nibabel.global", logging.WARNING, True),
    ],
)
def test_libraries_are_heard_when_they_warn(tmp_path, name, level, is_logged):
    log.log_to(tmp_path / "run.log")
    logging.getLogger(name).log(level, "a line")
    assert (len(read(tmp_path / "run.log")) == 1) is is_logged


@pytest.mark.parametrize(
    ("category", "is_logged"), [(RuntimeWarning, True), (UserWarning, True), (FutureWarning, False)]
)
def test_warnings_of_python_are_logged_but_those_for_developers(tmp_path, category, is_logged):
    log.log_to(tmp_path / "run.log")
    warnings.showwarning("overflow", category, "some/file.py", 12)  # logging has put its own in the place of Python's
    assert any("overflow" in line for line in read(tmp_path / "run.log")) is is_logged


PROGRAM = """
import logging, pathlib, sys
sys.path.insert(0, {root!r})
from runs.log import begin_log, log_to
begin_log()
logging.getLogger("cohort.tables").warning("{name}: of its tables")
log_to(pathlib.Path({folder!r}) / "run.log")
logging.getLogger("survival.landmarks").warning("{name}: of its work")
"""


@pytest.mark.parametrize("name", ["second.py", "another one.py"])
def test_a_program_that_a_run_starts_logs_into_the_same_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    (tmp_path / name).write_text(PROGRAM.format(root=str(ROOT), folder=str(tmp_path), name=name))
    log.log_to(tmp_path / "run.log")
    logging.getLogger("main").warning("before")
    processes.run_program(name, {})
    logging.getLogger("main").warning("after")
    texts = [text for text, _ in RunFolder.read(tmp_path).warnings]
    first, second = f"cohort.tables: {name}: of its tables", f"survival.landmarks: {name}: of its work"
    assert texts == ["main: before", first, second, "main: after"]


@pytest.fixture
def visits(rng):
    """A table of visits as it lies on disk."""
    table = feature_table(40, rng, "s").rename(columns=ON_DISK)
    return table.astype({ON_DISK["event"]: int})


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolon"), ("\t", "tab")])
def test_what_the_reading_of_a_table_warns_of_is_in_the_log(tmp_path, visits, separator, word):
    visits.to_csv(tmp_path / "t.csv", sep=separator, index=False)
    small = ["--TLSTM_EPOCHS=2", "--NUM_SEEDS=1", "--NUM_RESAMPLES=100", f"--OUTPUT_DIR={tmp_path / 'o'}"]
    done = run(f"--FEATURES={tmp_path / 't.csv'}", *small, program="tlstm.py")
    assert done.returncode == 0, done.stderr
    lines = read(tmp_path / "o" / "run.log")
    assert [line for line in lines if line.startswith("WARNING cohort.table_files: ") and word in line], lines
    assert [line for line in lines if "T-LSTM: best epoch" in line]
    assert done.stderr.count("read as a table with") == 1


def test_a_refused_run_leaves_the_log_of_an_earlier_one_alone(tmp_path, visits):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "run.log").write_text("earlier\n")
    visits.assign(time=-1.0).to_csv(tmp_path / "t.csv", sep=";", index=False)
    done = run(f"--FEATURES={tmp_path / 't.csv'}", f"--OUTPUT_DIR={tmp_path / 'o'}", program="tlstm.py")
    assert done.returncode == 2 and "read as a table with" in done.stderr
    assert (tmp_path / "o" / "run.log").read_text() == "earlier\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("Rows can't be used (2):\n  row 3: é"), 2, "ERROR runs.log: Rows can't be used (2):"),
        (OSError(5, "a broken disk"), 1, "ERROR runs.log: Failed: [Errno 5] a broken disk. What is finished stays; "),
        (KeyboardInterrupt(), 143, "INFO runs.log: Stopped. The same command goes on from here."),
    ],
)
def test_how_a_program_ended_is_in_its_log(tmp_path, capsys, error, code, line):
    def work(_):
        log.log_to(tmp_path / "run.log")
        raise error

    assert processes.run_main(lambda: SimpleNamespace(MAX_HOURS=None), work) == code
    first, *others = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert first.split(" ", 2)[2].startswith(line) and others == (["  row 3: é"] if code == 2 else [])
    assert capsys.readouterr().err.count(line.split(": ", 1)[1]) == 1


def test_what_a_program_refuses_before_its_own_log_is_in_that_of_the_one_that_runs_it(tmp_path, capsys):
    def work(_):
        log.log_to(tmp_path / "run.log")
        processes.run_program("tlstm.py", {"FEATURES": str(tmp_path / "none.csv"), "OUTPUT_DIR": str(tmp_path / "o")})

    with pytest.raises(SystemExit):
        processes.run_main(lambda: SimpleNamespace(MAX_HOURS=None), work)
    refusal, ending = read(tmp_path / "run.log")
    assert refusal.startswith("ERROR runs.log: ") and "none.csv: expected a table, found no such file" in refusal
    assert ending == "ERROR runs.processes: tlstm.py ended with exit code 2"


def test_how_a_program_ended_is_told_on_a_full_disk_too(tmp_path, capsys):
    def work(_):
        log.log_to(tmp_path / "run.log")
        (tmp_path / "run.log").unlink()
        (tmp_path / "run.log").symlink_to("/dev/full")
        raise InputError("row 3: é")

    assert processes.run_main(lambda: SimpleNamespace(MAX_HOURS=None), work) == 2
    assert capsys.readouterr().err == "row 3: é\n"
