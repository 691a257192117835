"""Another program of ours, run as a process of its own: what it holds of a GPU is free when it ends."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STOPPED = 143  # the exit code of what a signal stopped; the same command goes on

logger = logging.getLogger(__name__)


def run_program(name: str, settings: Mapping[str, Any]) -> None:
    """Run a program with these settings, its output to ours, and wait for it; if we are stopped, so is it.

    Args:
        name: such as `tlstm.py`.
        settings: values as JSON has them.
    Raises:
        SystemExit: it ended with another exit code than 0, which is ours then too.
    """
    arguments = [f"--{setting}={_in_words(value)}" for setting, value in settings.items()]
    process = subprocess.Popen([sys.executable, str(HERE / name), *arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if code:
        logger.error("%s ended with exit code %d", name, code)
        raise SystemExit(code if code > 0 else STOPPED)


def _in_words(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return json.dumps(value) if isinstance(value, list) else str(value)
