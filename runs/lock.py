"""One run at a time in a folder; the programs that it runs are part of it."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from runs.errors import InputError, naming_file
from runs.files import HOST, read_json, remove_temporaries, write_json

HOLDER = ".run.json"  # which process has the lock

logger = logging.getLogger(__name__)


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Make the run's folder, check that it can be written, keep other runs out, and remove what killed runs left.

    The lock ends with the process, however it ends. HOLDER says whose it is.

    Args:
        folder: of the run.
    Raises:
        InputError: another run is at work there, or it can't be a folder.
        WriteError: the disk is full, or read-only.
    """
    lock = FileLock(folder / ".lock")
    try:
        with naming_file(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            lock.acquire(blocking=False)
    except Timeout:
        _refuse_strangers(folder)
        yield
        return
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"OUTPUT_DIR: expected a folder that can be written, received {folder}: {error}") from error
    try:
        write_json(
            folder / HOLDER, {"pid": os.getpid(), "host": HOST, "start": datetime.now().astimezone().isoformat()}
        )
        if removed := remove_temporaries(folder):
            logger.warning("%d files that a stopped run left half-written are removed", removed)
        yield
    finally:
        lock.release()


def _refuse_strangers(folder: Path) -> None:
    """Let through the program that the run which has the lock has started; nobody else."""
    holder = read_json(folder / HOLDER)
    if (holder.get("pid"), holder.get("host")) == (os.getppid(), HOST):
        return
    raise InputError(
        f"OUTPUT_DIR: another run is at work in {folder}: process {holder.get('pid')} on {holder.get('host')}, since "
        f"{holder.get('start')}. Wait for its end, stop it, or choose another OUTPUT_DIR."
    )
