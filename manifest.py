"""The files of a finished stage: their sizes and hashes, so that what was lost or changed since is noticed."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BACKUP = "backup"  # folders of what a stopped training goes on from: nobody misses it later


def list_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, by their path relative to the run's folder.

    Args:
        folder: of the run.
        names: files or folders in it, with all that they hold but backups and hidden files.
    """
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    kept = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {
        name: {"size": path.stat().st_size, "sha256": _hash(path)}
        for name, path in kept.items()
        if not any(part == BACKUP or part.startswith(".") for part in Path(name).parts)
    }


def find_damage(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is missing or not as `list_files` found it.

    Args:
        folder: of the run.
        listed: of `list_files`.
    Returns:
        A line for each such file.
    """
    return [line for name, known in listed.items() if (line := _damage(folder / name, name, known))]


def _damage(path: Path, name: str, known: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return f"{name}: missing"
    if (size := path.stat().st_size) != known["size"]:
        return f"{name}: changed, expected {known['size']} bytes, received {size}"
    if _hash(path) != known["sha256"]:
        return f"{name}: changed, other contents of the same size"
    return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
