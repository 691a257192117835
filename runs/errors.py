"""TODO: runs.errors."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_OR_LOCKED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),  # full, or broken
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # read-only
}
CUT_SHORT = re.compile(r"\d+ requested and \d+ written")  # NumPy's words, without a number, for a full disk


class InputError(ValueError):
    """A mistake in the input or the settings: one message on stderr, exit code 2."""


class WriteError(OSError):
    """A file that can't be written, by name: the disk is full, or its folder read-only; exit code 1."""


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within this, a write that fails since the disk is full or the folder read-only says which file it was for.

    Raises:
        WriteError: that happened. HDF5 tells it as a RuntimeError, with the number in its words.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError) as error:
        told = re.search(r"\berrno\W+(\d+)", str(error), re.IGNORECASE)
        number = getattr(error, "errno", None) or (int(told[1]) if told else None)
        if number in FULL_OR_LOCKED:
            raise WriteError(f"{path}: can't be written: {os.strerror(number)}") from error
        if CUT_SHORT.fullmatch(str(error)):
            raise WriteError(f"{path}: can't be written: {error}") from error
        raise


MOST_NAMED = 1000  # bad rows named in one message; the others are counted


def raise_if_any(what: str, problems: list[str], mend: str) -> None:
    """Raise one error that names every problem; nothing happens if there is none.

    Raises:
        InputError: `what`, how many, each of them up to 1,000, and how to mend it.
    """
    if problems:
        named = [f"  {problem}" for problem in problems[:MOST_NAMED]]
        if len(problems) > MOST_NAMED:
            named.append(f"  … and {len(problems) - MOST_NAMED} more")
        raise InputError("\n".join([f"{what} ({len(problems)}):", *named, mend]))
