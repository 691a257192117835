"""What a run has left: its record, and its files' sizes and hashes, so that what was lost or changed is noticed."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Required, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from runs.errors import InputError
from runs.files import fingerprint, read_json
from runs.provenance import Provenance

RECORD = "config.json"  # in the run's folder
MOST_THREADS = 4096
Kind = TypeVar("Kind")
BACKUP = "backup"  # folders of what a stopped training goes on from: nobody misses it later


def _inside(name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError("expected a path within the run's folder")
    return name


class FileEntry(TypedDict):
    """A file of a stage."""

    size: int  # bytes
    sha256: str


class StageRecord(TypedDict, total=False):
    """A stage that was begun."""

    done: Required[bool]
    needs: dict[str, Any]  # the settings and the input that it depends on
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]  # by their path in the run's folder
    seconds: float
    made_by: Provenance
    begun_by: Provenance  # where something else has begun it


class Machine(TypedDict, total=False):
    """Where the run was begun."""

    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]


class RunRecord(TypedDict, total=False):
    """What programs read of a run's record; people read more in it."""

    version: str
    versions: dict[str, str]
    commit: str | None
    program: str  # that wrote it; absent: main.py
    settings: dict[str, Any]
    grid: dict[str, Any]
    machine: Machine
    stages: dict[str, StageRecord]


RUN = TypeAdapter(RunRecord)


def read_record(folder: Path) -> RunRecord:
    """Read the record of the run in a folder; it is empty if there is none.

    Args:
        folder: of the run.
    Raises:
        InputError: it is not one, or was changed by hand into none; names every wrong place.
    """
    path = folder / RECORD
    return validated(
        read_json(path), RUN, f"{path}: expected the record of a run", "Delete it, and the run begins anew."
    )


def validated(content: Any, kind: TypeAdapter[Kind], expected: str, mend: str) -> Kind:
    """Check that a file of ours still holds what it should.

    Args:
        content: of the file.
        kind: pydantic's adapter of what it should be.
        expected: the file and what was expected, in words.
        mend: how to mend it, in a sentence.
    Returns:
        The content.
    Raises:
        InputError: it was changed by hand into something else; names every wrong place.
    """
    try:
        return kind.validate_python(content, strict=True)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"{expected}, received another: {places}. {mend}") from error


def list_files(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """List files with their sizes and hashes.

    Args:
        folder: of the run.
        names: files or folders in it, with all that they hold but backups and hidden files.
    Returns:
        Size in bytes and SHA-256 of each file, by its path relative to the run's folder.
    """
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    by_name = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {
        name: {"size": path.stat().st_size, "sha256": _hash(path)}
        for name, path in by_name.items()
        if not any(part == BACKUP or part.startswith(".") for part in Path(name).parts)
    }


def find_damage(folder: Path, listed: Mapping[str, FileEntry]) -> dict[str, str]:
    """Find what is missing, or not as `list_files` listed it.

    Args:
        folder: of the run.
        listed: of `list_files`.
    Returns:
        What happened to each such file, by its path.
    """
    return {name: what for name, entry in listed.items() if (what := _damage(folder / name, entry))}


def damage_lines(damage: Mapping[str, str]) -> list[str]:
    """Make a line for each damaged file.

    Args:
        damage: of `find_damage`.
    """
    return [f"{name}: {what}" for name, what in damage.items()]


def content_of(path: str | Path | None, beside: Iterable[str] = ()) -> str | None:
    """A hash of the file that a setting names: its content counts, wherever it lies.

    Args:
        path: of the file; None: the setting is unset.
        beside: suffixes of files of the same name beside it, which are read with it.
    Returns:
        32 hexadecimal digits, other ones if a file is not there; None if the setting is unset.
    """
    if path is None:
        return None
    path = Path(path)
    stem = path.name.split(".nii")[0]
    paths = [path, *(path.with_name(f"{stem}{suffix}") for suffix in beside)]
    return fingerprint(*(_hash(each) if each.is_file() else "" for each in paths))


def _damage(path: Path, entry: FileEntry) -> str | None:
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != entry["size"]:
        return f"changed, expected {entry['size']} bytes, received {size}"
    if _hash(path) != entry["sha256"]:
        return "changed, other contents of the same size"
    return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
