"""Files and folders that are written whole or not at all; JSON; names and fingerprints."""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runs.errors import InputError, WriteError, naming_file

ROOT = Path(__file__).resolve().parent.parent  # the project's folder, where its programs lie
TEMPORARY = ".part-"  # opens the name of a file that is being written; then process, host, thread, and the name
HOST = re.sub(r"[^\w.]", "_", platform.node(), flags=re.ASCII)[:40]
DAY = 86_400  # seconds; what another host left half-written so long ago, it won't finish


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder; on leaving, rename it to `path`.

    A reader sees the old file or the new one, never half of one, even after a loss of power. The temporary name keeps
    the whole suffix, since nibabel, Keras and matplotlib choose their format by it.

    Args:
        path: where the file goes; its folder is made if need be.
    Yields:
        The path to write to; a process killed meanwhile leaves `path` as it was.
    Raises:
        WriteError: the disk is full, or the folder read-only.
    """
    path = Path(path)
    part = path.with_name(f"{TEMPORARY}{os.getpid()}-{HOST}-{threading.get_ident()}-{path.name}")
    try:
        with naming_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            for written in (part, *part.rglob("*")):
                _sync(written)
            os.replace(part, path)
            _sync(path.parent)
    finally:
        _remove(part)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole; a number that is not finite is an error."""
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read one JSON object, `{}` if there is no such file.

    Raises:
        InputError: the file is not a JSON object, or a number in it is not finite.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise InputError(f"{path}: expected JSON, received: {error}. Delete the file and run again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, received {type(value).__name__}. Delete the file.")
    return value


def _finite(text: str) -> float:
    """A number of a JSON file; Python's json would take NaN and 1e400 too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}, which is no finite number")
    return value


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, and see that it is gone; of a link, what it leads to stays.

    Args:
        path: nothing is done if there is none.
    Raises:
        WriteError: it can't be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: can't be removed: {error}") from error
    if os.path.lexists(path):
        raise WriteError(f"{path}: can't be removed: it is still there")


def why_unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, in words; empty if something can.

    Args:
        folder: if there is none yet, the nearest one above it counts.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        words = "a link that leads to no folder" if nearest.is_symlink() else "a file"
        return f"{nearest}: expected a folder, found {words}"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return ""
    except OSError as error:
        return f"{nearest}: can't be written: {error.strerror}"


def remove_temporaries(folder: str | Path) -> int:
    """Remove what killed processes left half-written under `folder`, not what live ones write; returns how many."""
    parts = [part for part in Path(folder).rglob(f"{TEMPORARY}*") if not _is_being_written(part)]
    for part in parts:
        _remove(part)
    return sum(not os.path.lexists(part) for part in parts)


def _is_being_written(part: Path) -> bool:
    """Whether the process that a temporary is named after may still write it."""
    pid, _, rest = part.name.removeprefix(TEMPORARY).partition("-")
    if not pid.isdigit():
        return True  # by whom, it does not say: it is none of ours
    if not rest.startswith(f"{HOST}-"):
        return time.time() - part.stat().st_mtime < DAY
    return int(pid) != os.getpid() and is_alive(int(pid))


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    """See that a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """As far as that can be done: what stays is removed when the next run starts."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _plain(value: Any) -> Any:
    """What json can't write by itself: paths, NumPy scalars and arrays."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"can't write {type(value).__name__} as JSON")


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a number that is not finite is written as null."""
    return float(value) if math.isfinite(value) else None


def safe_name(name: str) -> str:
    """An id as the name of a file or folder: nothing that a path could mean, and different ids stay different."""
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".")[:80]
    return plain if plain and plain == name else f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def fingerprint(*parts: str | bytes) -> str:
    """A short hash of texts or bytes, which knows where each part ends.

    Args:
        parts: in their order.
    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()
