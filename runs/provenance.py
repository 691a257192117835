"""What made a result: the versions of this project, of Python and of the libraries, and the commit of the code."""

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version

from typing_extensions import TypedDict

from runs.files import ROOT
from runs.version import VERSION

LIBRARIES = ("tensorflow", "keras", "torch", "numpy", "pandas", "nibabel", "nilearn", "lifelines", "shap")
SHORT = 12  # digits of a commit in words


class Provenance(TypedDict, total=False):
    """What made a result."""

    version: str  # of this project
    versions: dict[str, str]  # of Python and of LIBRARIES
    commit: str | None  # of the code, `+` if files differ from it; None where there is no git


@lru_cache
def provenance() -> Provenance:
    """What makes the results of this process."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    return {"version": VERSION, "versions": versions, "commit": _commit()}


def differences(made_by: Provenance, other: Provenance) -> list[str]:
    """What differs of two provenances, in words; what one of them does not know is left out.

    Args:
        made_by: of a result.
        other: what it is compared with.
    Returns:
        Such as `numpy 2.0.1 instead of 2.1.0`, sorted by name; the commit comes last.
    """
    before, after = ({"CNN-TLSTM": made.get("version"), **made.get("versions", {})} for made in (made_by, other))
    before["commit"], after["commit"] = (_short(made.get("commit")) for made in (made_by, other))
    names = [*sorted(before.keys() - {"commit"}), "commit"]
    return [
        f"{name} {before[name]} instead of {after[name]}"
        for name in names
        if before[name] and after.get(name) and before[name] != after[name]
    ]


def _short(commit: str | None) -> str | None:
    """The first digits of a commit, and its `+`."""
    return commit and commit.rstrip("+")[:SHORT] + "+" * commit.endswith("+")


def _commit() -> str | None:
    """The commit of the code, `+` if files differ from it; None where there is no git."""
    try:
        described = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
