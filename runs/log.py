"""The log of a run: `run.log` in its folder, and the terminal."""

import logging
from pathlib import Path

from runs.errors import naming_file


def log_to(path: Path) -> None:
    """Send the pipeline's log to a file, with times and levels, and to stderr.

    Args:
        path: of the log; what it holds already is kept.
    """
    file = _WholeLog(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[file, terminal], force=True)
    logging.captureWarnings(True)


class _WholeLog(logging.FileHandler):
    """A log that can't be written ends the run, as any other file does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with naming_file(self.baseFilename):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error of `emit`; logging would print its traceback and go on."""
        raise
