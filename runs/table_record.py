"""The record of what `tlstm.py` does with a table of the user's: the same `config.json` as of a run of `main.py`."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runs.errors import raise_if_any
from runs.files import ROOT, fingerprint, remove
from runs.log import log_to
from runs.manifest import StageRecord
from runs.record import THE_INPUT, Record
from runs.stages import TABLE_STAGES

CODE = ("tlstm.py", "cohort/*.py", "survival/*.py")  # that the results of a table depend on
NUMERICS = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "lifelines")  # likewise
THE_CODE = "the code"  # stands among a stage's needs for both

logger = logging.getLogger(__name__)


class TableRecord(Record):
    """The record of a run on a table, for the one stage that this command does.

    Args:
        folder: of the run.
        settings: of the run, by name, as JSON has them.
        stage: of `TABLE_STAGES`.
        table: in memory's columns and years, a row a visit.
        threads: of the run.
    """

    program = "tlstm.py"

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, stage: str, table: pd.DataFrame, threads: int):
        super().__init__(folder, settings, inputs=fingerprint_table(table), threads=threads)
        self.plan = {name: TABLE_STAGES[name] for name in (stage, "report")}

    def needs(self, name: str) -> dict[str, Any]:
        """What a stage's result depends on: its settings, the table, and the code with its libraries."""
        return super().needs(name) | {THE_CODE: _fingerprint_code()}

    def backup(self, name: str) -> Path:
        """The folder of what a stage goes on from, if it was stopped with the same needs."""
        (folder,) = self.plan[name].removes
        return self.folder / folder / fingerprint(json.dumps(self.needs(name), sort_keys=True))

    def finish(self, name: str, known: StageRecord) -> None:
        """As `Record.finish`; after the report, the last stage, what a stopped one goes on from is removed."""
        super().finish(name, known)
        if self.plan[name].always:
            for folder in (folder for stage in self.plan.values() for folder in stage.removes):
                remove(self.folder / folder)

    def refuse_changes(self) -> None:
        """As `Record.refuse_changes`; refuse a folder whose other results are of another table, too.

        Raises:
            InputError: names the other program, the other results, or what differs.
        """
        super().refuse_changes()
        others = [
            f"{name}: of another table"
            for name, stage in self.stages.items()
            if name not in self.plan and stage.get("needs", {}).get(THE_INPUT) != self.inputs
        ]
        raise_if_any(f"{self.folder} holds other results", others, "Choose another OUTPUT_DIR, or delete this one.")


@contextmanager
def recorded(settings: Any, stage: str, table: pd.DataFrame, threads: int) -> Iterator[TableRecord | None]:
    """Log to the run's folder; of a run on a table of the user's, record the stage that is done within this.

    Args:
        settings: of `tlstm.py`, with the attributes of `config.Config`.
        stage: of `TABLE_STAGES`.
        table: in memory's columns and years, a row a visit.
        threads: of the run.
    Yields:
        The record; None without FEATURES: `main.py` records its own stages.
    Raises:
        InputError: as `TableRecord.refuse_changes`; nothing is written then.
    """
    record = None
    if settings.FEATURES is not None:
        by_name = settings.model_dump(mode="json")
        record = TableRecord(settings.OUTPUT_DIR, by_name, stage=stage, table=table, threads=threads)
        record.refuse_changes()
    log_to(settings.OUTPUT_DIR / "run.log")
    if record is None:
        yield None
        return
    logger.info("%s: begins", stage)
    with record.running(stage):
        yield record
    logger.info("%s: done", stage)


def fingerprint_table(table: pd.DataFrame) -> str:
    """Hash a table's columns and values, wherever its file lies, whatever its format and the order of its rows.

    Args:
        table: a row a visit.
    Returns:
        As `files.fingerprint`.
    """
    rows = np.sort(pd.util.hash_pandas_object(table, index=False).to_numpy())
    return fingerprint(*map(str, table.columns), rows.tobytes())


def _fingerprint_code() -> str:
    paths = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    return fingerprint(*(path.read_bytes() for path in paths), *map(version, NUMERICS))
