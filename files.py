"""Files written whole, and the one error that a user can mend."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".part-"  # opens the name of a file that is being written


class InputError(ValueError):
    """A mistake in the input or the settings: one message on stderr, exit code 2."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder; on leaving, rename it to `path`.

    A reader sees the old file or the new one, never half of one. The temporary name keeps the
    whole suffix, since nibabel, Keras and matplotlib choose their format by it.

    Args:
        path: where the file goes; its folder is made if need be.
    Yields:
        The path to write to; a process killed meanwhile leaves `path` as it was.
    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield part
        descriptor = os.open(part, os.O_RDONLY)  # a folder has one too
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)
    finally:
        _remove(part)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole; a number that is not finite is an error."""
    with written_whole(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read one JSON object, `{}` if there is no such file.

    Raises:
        InputError: the file is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, received: {error}. Delete the file and run again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, received {type(value).__name__}. Delete the file.")
    return value


def remove_temporaries(folder: str | Path) -> int:
    """Remove what killed runs left half-written under `folder`; returns how many."""
    parts = list(Path(folder).rglob(f"{TEMPORARY}*"))
    for part in parts:
        _remove(part)
    return len(parts)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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
