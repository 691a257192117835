"""TODO: runs.log."""

import logging
from pathlib import Path

from runs.errors import naming


def log_to(path: Path) -> None:
    """Send the pipeline's log to a file, with times and levels, and to stderr."""
    kept = _Log(path)
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[kept, shown], force=True)
    logging.captureWarnings(True)


class _Log(logging.FileHandler):
    """A log that can't be written ends the run, as any other file does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with naming(self.baseFilename):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what `emit` has met, which logging would print with its traceback, and go on."""
        raise
