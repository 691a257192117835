"""The run's own record, OUTPUT_DIR/config.json: settings, versions, and which stages of which settings are done."""

import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs.errors import InputError, raise_if_any
from runs.files import ROOT, write_json
from runs.manifest import RECORD, StageRecord, damage_lines, find_damage, list_files, read_record
from runs.stages import STAGES, Stage
from runs.version import VERSION

logger = logging.getLogger(__name__)

LIBRARIES = ("tensorflow", "keras", "torch", "numpy", "pandas", "nibabel", "nilearn", "lifelines", "shap")
THE_INPUT = "the input"  # stands among a stage's needs for the fingerprint of all that a run reads


class Record:
    """Which stages are done, with which settings and input, and what they left; written after every change.

    `program` and `plan` are those of `main.py`; another program's record has its own.

    Args:
        folder: of the run.
        settings: of the run, by name, as JSON has them.
        inputs: fingerprint of the tables and volumes that the run reads; None: not read yet.
        grid: `shape` and `affine` of the scans; new scans must lie on it too. None: no scans, or not read yet.
        threads: of the run.
    """

    program = "main.py"
    plan: Mapping[str, Stage] = STAGES

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        inputs: str | None = None,
        grid: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ):
        self.folder, self.settings, self.inputs, self.grid, self.threads = folder, settings, inputs, grid, threads
        self.path = folder / RECORD
        self.stages = read_record(folder).get("stages", {})

    def write(self) -> None:
        """Write settings, versions, commit and the state of the stages."""
        assert self.inputs is not None and self.threads is not None
        write_json(
            self.path,
            {
                "program": self.program,
                "version": VERSION,
                "settings": self.settings,
                "seed": self.settings["SEED"],
                "inputs": self.inputs,
                **({} if self.grid is None else {"grid": self.grid}),
                "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
                "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": self.threads},
                "commit": _commit(),
                "stages": self.stages,
            },
        )

    def needs(self, name: str) -> dict[str, Any]:
        """What a stage's result depends on: its settings, the input, and the same of the last stage that it needs."""
        stage = self.plan[name]
        settings = {setting: self.settings[setting] for setting in stage.settings}
        return settings | (self.needs(stage.needs[-1]) if stage.needs else {THE_INPUT: self.inputs})

    def is_done(self, name: str) -> bool:
        """Whether a stage was finished with these settings and this input, and its files are as it left them."""
        return name in self.stages and self.stages[name]["done"] and not self.changes(name)

    def changes(self, name: str) -> list[str]:
        """What differs from when the stage was last begun, or done; empty if it never was."""
        return self._changed_needs(name) + damage_lines(self._damage(name))

    def damage(self) -> list[str]:
        """What was lost or changed of the finished stages' files that a report shows."""
        shown = [stage.name for stage in self.plan.values() if not stage.always]
        return [f"{name}: {line}" for name in shown for line in damage_lines(self._damage(name))]

    def refuse_changes(self) -> None:
        """Refuse another program's folder; with RESUME=require, refuse to do anew what was done, or begun, otherwise.

        Raises:
            InputError: names the other program, or what differs, of each stage.
        """
        refuse_other_program(self.folder, self.program)
        if self.settings["RESUME"] == "auto":
            return
        problems = [
            f"{stage.name}: {change}"
            for stage in self.plan.values()
            if not stage.always
            for change in self.changes(stage.name)
        ]
        raise_if_any(
            f"RESUME=require: {self.folder} can't be gone on with as it is",
            problems,
            "Give it the same settings and input, choose another OUTPUT_DIR, or set RESUME=auto to do these anew.",
        )

    def require(self, names: Iterable[str], *, by: str) -> None:
        """Refuse a stage whose needed stages are not done with these settings.

        Args:
            names: of the stages that are needed.
            by: the stage that needs them.
        Raises:
            InputError: names the first one that is not done, and why.
        """
        for name in names:
            if not self.is_done(name):
                why = "; ".join(self.changes(name)) or "it was never finished"
                raise InputError(f"STAGES: {by} needs the stage {name} of the same settings ({why}). Add it to STAGES.")

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Mark a stage as begun and, if nothing is raised within this, as done.

        What the stage goes on from is kept: all of it, if it was stopped; what is not damaged, if it was done with the
        same settings; nothing otherwise.

        Args:
            name: of the stage.
        """
        stage, changed, damage = self.plan[name], self._changed_needs(name), self._damage(name)
        for change in changed + damage_lines(damage):
            logger.info("%s: done anew, since it depends on what has changed: %s", name, change)
        if name not in self.stages or changed:  # removed before the record says that it has begun
            for folder in stage.resumes_from:
                shutil.rmtree(self.folder / folder, ignore_errors=True)
        else:
            _remove_damaged(self.folder, stage, damage)
        self.stages[name] = {"needs": self.needs(name), "done": False}
        for other in self.plan.values():
            if other.always:  # it shows what was before
                self.stages.pop(other.name, None)
        self.write()
        began = time.monotonic()
        yield
        self.finish(name, {"needs": self.needs(name), "seconds": round(time.monotonic() - began, 1), "done": True})

    def finish(self, name: str, known: StageRecord) -> None:
        """Mark a stage as done, with the files that it left.

        Args:
            name: of the stage.
            known: what else the record keeps of it.
        """
        self.stages[name] = {**known, "files": list_files(self.folder, self.plan[name].makes)}
        self.write()

    def _changed_needs(self, name: str) -> list[str]:
        if name not in self.stages:
            return []
        old, new = self.stages[name].get("needs", {}), self.needs(name)
        differing = sorted(need for need in old.keys() | new.keys() if old.get(need) != new.get(need))
        return [
            need if need == THE_INPUT else f"{need} was {old.get(need)}, is {new.get(need)}"
            for need in differing
            if need != THE_INPUT or self.inputs is not None
        ]

    def _damage(self, name: str) -> dict[str, str]:
        return find_damage(self.folder, self.stages[name].get("files", {})) if name in self.stages else {}


def refuse_other_program(folder: Path, program: str) -> None:
    """Refuse a folder that holds a run of another program: its results would be lost or mixed with others.

    Args:
        folder: of the run.
        program: that would write there.
    Raises:
        InputError: names the folder and the other program.
    """
    record = read_record(folder)
    other = record.get("program", Record.program)
    if record and other != program:
        raise InputError(
            f"OUTPUT_DIR: expected a folder for a run of {program}, received {folder}, which holds one of {other}. "
            "Choose another OUTPUT_DIR."
        )


def _remove_damaged(folder: Path, stage: Stage, damage: Iterable[str]) -> None:
    """Remove damaged files and what has to be made together with them: a training's, a scan's, or the cohort's folder.

    Nothing is removed but what lies in the stage's own folders, whatever the record names.

    Raises:
        InputError: a link leads out of the run's folder.
    """
    for name in map(Path, damage):
        if not any(Path(made) in name.parents for made in stage.makes):
            continue
        path = folder / (name.parent if name.name.endswith(".weights.h5") or stage.name == "explain" else name)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{path}: is damaged, and a link leads to it. Remove what the link leads to, and run again."
            )
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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
