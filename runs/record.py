"""The run's own record, OUTPUT_DIR/config.json: settings, versions, and which stages of which settings are done."""

import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cohort.grid import Grid
from config import Config
from runs.errors import InputError, raise_if_any
from runs.files import ROOT, write_json
from runs.manifest import RECORD, StageRecord, find_damage, in_words, list_files, read_record
from runs.stages import ARTEFACTS, DEPENDS, GOES_ON_FROM, READS

logger = logging.getLogger(__name__)
LIBRARIES = ("tensorflow", "keras", "torch", "numpy", "pandas", "nibabel", "nilearn", "lifelines", "torchsurv", "shap")


class Record:
    """Which stages are done, with what, and what they left; written after every change.

    Args:
        config: the run's settings.
        inputs: a digest of the tables and the volumes that the run reads; None: not read yet.
        grid: of the scans; new scans must lie on it too.
        threads: of the run.
    """

    def __init__(self, config: Config, inputs: str | None = None, grid: Grid | None = None, threads: int | None = None):
        self.config, self.inputs, self.grid, self.threads = config, inputs, grid, threads
        self.path = config.OUTPUT_DIR / RECORD
        self.stages = read_record(config.OUTPUT_DIR).get("stages", {})

    def write(self) -> None:
        """Write settings, versions, commit and the state of the stages."""
        assert self.grid is not None and self.threads is not None
        write_json(
            self.path,
            {
                "settings": json.loads(self.config.model_dump_json()),
                "seed": self.config.SEED,
                "inputs": self.inputs,
                "grid": {"shape": self.grid.shape, "affine": self.grid.affine},
                "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
                "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": self.threads},
                "commit": _commit(),
                "stages": self.stages,
            },
        )

    def needs(self, stage: str) -> dict[str, Any]:
        """What a stage's result depends on: its settings, the input, and the same of the stage above it."""
        settings = {name: json.loads(self.config.model_dump_json())[name] for name in DEPENDS[stage].split()}
        above = READS[stage]
        return settings | (self.needs(above[-1]) if above else {"the input": self.inputs})

    def is_done(self, stage: str) -> bool:
        """Whether a stage was finished with these settings and this input, and its files are as it left them."""
        return stage in self.stages and self.stages[stage]["done"] and not self.changes(stage)

    def changes(self, stage: str) -> list[str]:
        """What differs from when the stage was last begun, or done; empty if it never was."""
        return self._other_needs(stage) + in_words(self._damage(stage))

    def damage(self) -> list[str]:
        """What was lost or changed of the finished stages' files that a report shows."""
        shown = [stage for stage in self.stages if stage != "report"]
        return [f"{stage}: {line}" for stage in shown for line in in_words(self._damage(stage))]

    def _other_needs(self, stage: str) -> list[str]:
        if stage not in self.stages:
            return []
        old, new = self.stages[stage].get("needs", {}), self.needs(stage)
        differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        return [
            name if name == "the input" else f"{name} was {old.get(name)}, is {new.get(name)}"
            for name in differing
            if name != "the input" or self.inputs is not None
        ]

    def _damage(self, stage: str) -> dict[str, str]:
        return find_damage(self.config.OUTPUT_DIR, self.stages[stage].get("files", {})) if stage in self.stages else {}

    def refuse_changes(self) -> None:
        """With RESUME=require, refuse to do anew what was done, or begun, otherwise.

        Raises:
            InputError: names what differs, of each stage.
        """
        if self.config.RESUME == "auto":
            return
        problems = [f"{stage}: {change}" for stage in DEPENDS for change in self.changes(stage)]
        raise_if_any(
            f"RESUME=require: {self.config.OUTPUT_DIR} can't be gone on with as it is",
            problems,
            "Give it the same settings and input, choose another OUTPUT_DIR, or set RESUME=auto to do these anew.",
        )

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Mark a stage as begun, and, if nothing is raised, as done.

        What it goes on from is kept: all of it, if it was stopped; what is not damaged, if it was done with the same
        settings; nothing otherwise.
        """
        other, damage = self._other_needs(stage), self._damage(stage)
        for change in other + in_words(damage):
            logger.info("%s: done anew, since it depends on what has changed: %s", stage, change)
        if stage not in self.stages or other:  # removed before the record says that it has begun
            for folder in GOES_ON_FROM[stage]:
                shutil.rmtree(self.config.OUTPUT_DIR / folder, ignore_errors=True)
        else:
            _remove_with_its_like(self.config.OUTPUT_DIR, stage, damage)
        self.stages[stage] = {"needs": self.needs(stage), "done": False}
        self.stages.pop("report", None)  # it tells of what was before
        self.write()
        began = time.monotonic()
        yield
        self.finish(stage, {"needs": self.needs(stage), "seconds": round(time.monotonic() - began, 1), "done": True})

    def finish(self, stage: str, known: StageRecord) -> None:
        """Mark a stage as done, with what it left."""
        files = list_files(self.config.OUTPUT_DIR, ARTEFACTS[stage])
        self.stages[stage] = {**known, "files": files}
        self.write()


def _remove_with_its_like(folder: Path, stage: str, damage: Iterable[str]) -> None:
    """Remove damaged files and what has to be made together with them: a training's, a scan's, or the cohort's folder.

    Nothing is removed but what lies in the stage's own folders, whatever the record names.

    Raises:
        InputError: a link leads out of the run's folder.
    """
    for name in map(Path, damage):
        if not any(Path(root) in name.parents for root in ARTEFACTS[stage]):
            continue
        path = folder / (name.parent if name.name.endswith(".weights.h5") or stage == "explain" else name)
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
