"""The errors that a person can mend: wrong input, and files that can't be written."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FULL_OR_LOCKED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),  # full, or broken
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # read-only
}
CUT_SHORT = re.compile(r"\d+ requested and \d+ written")  # NumPy's words, without a number, for a full disk
MOST_NAMED = 1000  # problems named in one message; the others are counted


class InputError(ValueError):
    """A mistake in the input or the settings: one message on stderr, exit code 2."""


class WriteError(OSError):
    """A file that can't be written, by name: the disk is full, or its folder read-only; exit code 1."""


def raise_if_any(what: str, problems: Sequence[str], mend: str, number: int | None = None) -> None:
    """Raise one error that names every problem; do nothing if there is none.

    Args:
        what: is wrong, in a few words; the number of problems follows it.
        problems: a line each.
        mend: how to mend them, in a sentence.
        number: of problems, where a line stands for several; None: as many as lines.
    Raises:
        InputError: there is a problem; the first MOST_NAMED are named, the others counted.
    """
    if problems:
        named = [f"  {problem}" for problem in problems[:MOST_NAMED]]
        if len(problems) > MOST_NAMED:
            named.append(f"  … and {len(problems) - MOST_NAMED} more")
        raise InputError("\n".join([f"{what} ({number or len(problems)}):", *named, mend]))


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Name the file in the error of a write that fails within this, because the disk is full or read-only.

    Args:
        path: of the file that is being written.
    Raises:
        WriteError: the write failed so. HDF5 reports it as a RuntimeError, with the number in its words.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError) as error:
        in_words = re.search(r"\berrno\W+(\d+)", str(error), re.IGNORECASE)
        number = getattr(error, "errno", None) or (int(in_words[1]) if in_words else None)
        if number in FULL_OR_LOCKED:
            raise WriteError(f"{path}: can't be written: {os.strerror(number)}") from error
        if CUT_SHORT.fullmatch(str(error)):
            raise WriteError(f"{path}: can't be written: {error}") from error
        raise
