"""The run's own record, OUTPUT_DIR/config.json: settings, versions, and which stages of which settings are done."""

import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from runs.errors import InputError, raise_if_any
from runs.files import fingerprint, remove, why_unwritable, write_json
from runs.manifest import RECORD, RunRecord, StageRecord, content_of, damage_lines, find_damage, list_files, read_record
from runs.provenance import Provenance, differences, provenance
from runs.stages import AS_BEFORE, BY_CONTENT, STAGES, Stage

logger = logging.getLogger(__name__)

THE_INPUT = "the input"  # stands among a stage's needs for the fingerprint of all that a run reads
LEFT_BY = "the results of"  # likewise, before the name of a stage whose files it reads


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
        self.contents = {name: content_of(settings.get(name), beside) for name, beside in BY_CONTENT.items()}
        before = read_record(folder)
        self.stages = before.get("stages", {})
        for stage in self.stages.values():  # an earlier version kept one provenance for all
            stage.setdefault("made_by", _provenance_of(before))

    def write(self) -> None:
        """Write settings, versions, commit and the state of the stages."""
        assert self.inputs is not None and self.threads is not None
        now = provenance()
        write_json(
            self.path,
            {
                "program": self.program,
                "version": now["version"],
                "settings": self.settings,
                "seed": self.settings["SEED"],
                "inputs": self.inputs,
                **({} if self.grid is None else {"grid": self.grid}),
                "versions": now["versions"],
                "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": self.threads},
                "commit": now["commit"],
                "stages": self.stages,
            },
        )

    def needs(self, name: str) -> dict[str, Any]:
        """What a stage's result depends on.

        Its settings, the input, the files that other stages have left for it, and the same of the last stage that it
        needs. A file that a setting names counts by its content, wherever it lies.
        """
        stage = self.plan[name]
        needs: dict[str, Any] = {setting: self.settings[setting] for setting in stage.settings}
        needs |= {setting: content for setting, content in self.contents.items() if setting in stage.settings}
        needs |= {f"{LEFT_BY} {other}": hash_results(self.stages, other) for other in stage.needs}
        return needs | (self.needs(stage.needs[-1]) if stage.needs else {THE_INPUT: self.inputs})

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
        self.refuse_folders([name])
        known: StageRecord = {"needs": self.needs(name), "made_by": provenance(), "done": False}
        if name not in self.stages or changed:  # removed before the record says that it has begun
            for folder in stage.removes:
                if not self._leads_out(self.folder / folder):  # else it is empty
                    remove(self.folder / folder)
        else:
            _remove_damaged(self.folder, stage, damage)
            if others := self.made_otherwise(name):
                logger.warning("%s: goes on from what was made by other versions: %s", name, ", ".join(others))
                known["begun_by"] = self.stages[name]["made_by"]
        self.stages[name] = known
        for other in self.plan.values():
            if other.always:  # it shows what was before
                self.stages.pop(other.name, None)
        self.write()
        began = time.monotonic()
        yield
        self.finish(name, known | {"seconds": round(time.monotonic() - began, 1), "done": True})

    def finish(self, name: str, known: StageRecord) -> None:
        """Mark a stage as done, with the files that it left.

        Args:
            name: of the stage.
            known: what else the record keeps of it.
        """
        self.stages[name] = {**known, "files": list_files(self.folder, self.plan[name].makes)}
        self.write()

    def made_otherwise(self, name: str) -> list[str]:
        """What made a stage's results, where that differs from what makes results now; see `differences`."""
        return differences(self.stages[name].get("made_by", {}), provenance())

    def refuse_folders(self, names: Iterable[str]) -> None:
        """Refuse folders in which these stages can't write, or which they would have to empty and may not.

        Args:
            names: of stages; those that are done already write nothing.
        Raises:
            InputError: names each folder. A link that leads out of the run's folder is followed, but what it leads to
                is not removed: it may hold what is not the run's.
        """
        problems = []
        for stage in (self.plan[name] for name in names if self.plan[name].always or not self.is_done(name)):
            anew = stage.name not in self.stages or bool(self._changed_needs(stage.name))
            for path in (self.folder / made for made in stage.makes):
                if why := why_unwritable(path.parent if path.suffix else path):
                    problems.append(f"{stage.name}: {why}")
                elif anew and self._leads_out(path) and path.is_dir() and any(path.iterdir()):
                    problems.append(
                        f"{stage.name}: {path} leads to {path.resolve()}, which holds the results of an earlier run"
                    )
        mend = "Empty what a link leads to, let this user write where that can't be, or choose another OUTPUT_DIR."
        raise_if_any("Results can't be written", problems, mend)

    def _leads_out(self, path: Path) -> bool:
        """Whether a path in the run's folder leads out of it, by a link."""
        return not path.resolve().is_relative_to(self.folder.resolve())

    def _changed_needs(self, name: str) -> list[str]:
        if name not in self.stages:
            return []
        old, new = self.stages[name].get("needs", {}), self.needs(name)
        changes = []
        for need in sorted(old.keys() | new.keys()):
            before, now = old.get(need), new.get(need)
            if before == now or (need == THE_INPUT and self.inputs is None):
                continue
            if need in BY_CONTENT and before == self.settings[need]:  # an earlier version compared the paths
                continue
            of_before = need.startswith(LEFT_BY) or (need in AS_BEFORE and AS_BEFORE[need] == now)
            if need not in old and of_before:  # an earlier version did not ask
                continue
            by_name = need == THE_INPUT or need in BY_CONTENT or need.startswith(LEFT_BY)
            changes.append(_in_words(need) if by_name else f"{need} was {before}, is {now}")
        return changes

    def _damage(self, name: str) -> dict[str, str]:
        return find_damage(self.folder, self.stages[name].get("files", {})) if name in self.stages else {}


def hash_results(stages: Mapping[str, StageRecord], name: str) -> str | None:
    """A hash of the files that a stage has left for others.

    Args:
        stages: of a record.
        name: of the stage.
    Returns:
        32 hexadecimal digits; None if there are no such files.
    """
    files = stages[name].get("files", {}) if name in stages else {}
    results = [
        f"{path} {files[path]['sha256']}"
        for path in sorted(files)
        if any(Path(path).is_relative_to(result) for result in STAGES[name].results)
    ]
    return fingerprint(*results) if results else None


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
        remove(path)


def _provenance_of(record: RunRecord) -> Provenance:
    """What wrote a record last."""
    made_by = {name: value for name, value in record.items() if name in Provenance.__annotations__}
    return cast(Provenance, made_by)


def _in_words(need: str) -> str:
    """A need whose value is a hash."""
    return f"the content of {need}" if need in BY_CONTENT else need
