"""The log of a run: `run.log` in its folder, and the terminal.

A program (`processes.run_main`) begins its log before it reads its input. Nothing is written until the input is
accepted: a refused run leaves an earlier run's folder as it was. What was logged until then is written first, with its
own times.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from runs.errors import naming_file
from runs.files import ROOT

FILE_FORMAT, TERMINAL_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s", "%(message)s"
WARNED = "py.warnings"  # the logger of Python's own warnings
FOR_DEVELOPERS = ("DeprecationWarning: ", "PendingDeprecationWarning: ", "FutureWarning: ")
LOG_OF_RUNNER = "CNN_TLSTM_LOG"  # set for a program that another one runs: the other one's file
MOST_HELD = 10_000  # lines that wait for their file


def begin_log() -> None:
    """Send the pipeline's log to stderr from now on, and hold it for the file that `log_to` names."""
    _replace_handlers(_Terminal(), _Held())


def log_to(path: Path) -> None:
    """Send the pipeline's log to a file, with times and levels, and to stderr.

    Args:
        path: of the log; what it holds already is kept. What `begin_log` has held follows it.
    """
    held = [record for handler in _own_handlers() if isinstance(handler, _Held) for record in handler.records]
    file = _WholeLog(path, encoding="utf-8")
    _replace_handlers(_Terminal(), file)
    for record in held:
        file.handle(record)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Within this, Python's warnings go into a list: for a process whose screen and log are not the run's.

    Yields:
        The list, filled on leaving; a warning that is meant for developers is left out, and each stands there once.
    """
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    lines += dict.fromkeys(
        f"{warning.category.__name__}: {warning.message}"
        for warning in caught
        if f"{warning.category.__name__}: " not in FOR_DEVELOPERS
    )


def write_to_file(message: str, level: int) -> None:
    """Write a line to the log's file alone; on a full disk it is left out.

    Args:
        message: that the screen has already. A program that ends before `log_to` has named its file writes to that of
            the program that runs it, if one does.
        level: of `logging`.
    """
    if path := log_path():
        record = logging.LogRecord(__name__, level, "", 0, message, None, None)
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(f"{_Lines(FILE_FORMAT).format(record)}\n")


def log_path() -> str | None:
    """The log's file: that of `log_to`, else that of the program that runs this one; None: there is none."""
    own = [handler.baseFilename for handler in _own_handlers() if isinstance(handler, _WholeLog)]
    return own[0] if own else os.environ.get(LOG_OF_RUNNER)


def _replace_handlers(terminal: logging.Handler, other: logging.Handler) -> None:
    """Take away the handlers of an earlier log of ours, and add these; those of others stay."""
    root = logging.getLogger()
    for handler in _own_handlers():
        root.removeHandler(handler)
        handler.close()
    for handler, line in ((other, FILE_FORMAT), (terminal, TERMINAL_FORMAT)):
        handler.setFormatter(_Lines(line))
        handler.addFilter(_is_wanted)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def _own_handlers() -> list[logging.Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, (_Terminal, _Held, _WholeLog))]


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a line is ours or a warning: what libraries tell of their work, or their developers, is left out."""
    if record.name == WARNED:
        return not any(word in record.getMessage().partition("\n")[0] for word in FOR_DEVELOPERS)
    return record.levelno >= logging.WARNING or _is_ours(record.name.partition(".")[0])


@lru_cache
def _is_ours(module: str) -> bool:
    """Whether a module or package of this name lies in the house."""
    return module in ("__main__", "root") or (ROOT / module).is_dir() or (ROOT / f"{module}.py").is_file()


class _Lines(logging.Formatter):
    """Python's own warnings end with a line break too many."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return super().format(record).rstrip()


class _Terminal(logging.Handler):
    """Writes to whatever stderr is then."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        print(self.format(record), file=sys.stderr, flush=True)


class _Held(logging.Handler):
    """Keeps lines until there is a file for them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; its text is made now, since what it names may change."""
        record.msg, record.args = record.getMessage(), None
        if len(self.records) < MOST_HELD:
            self.records.append(record)


class _WholeLog(logging.FileHandler):
    """A log that can't be written ends the run, as any other file does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with naming_file(self.baseFilename):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error of `emit`; logging would print its traceback and go on."""
        raise
