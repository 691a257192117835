"""What a run's folder holds, in memory: what `report.py` makes its page from."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict

from runs.files import read_json
from runs.manifest import validated

PARTS = ("train", "val", "test")
PER_YEAR = {"years": 1.0, "months": 12.0, "days": 365.25}
LOGGED = re.compile(r"^\d{4}-\S+ \S+ (?:WARNING|ERROR|CRITICAL) (.*)$")
EXPLAINED = ("metrics.json", "regions.csv")  # either is written after the pictures
UNREAD = ("COHORT_CSV", "TRAIN_CSV", "FEATURES")  # all unset: the simulated cohort


class Estimate(TypedDict):
    """A figure over the folds."""

    value: float | None
    sd: float | None


class Model(TypedDict):
    """A model's figures."""

    c_index: Estimate
    auc: Estimate
    ibs: Estimate


class Window(BaseModel, extra="allow"):
    """Every model's figures at a landmark and window, by its name."""

    difference: dict[str, Any]
    __pydantic_extra__: dict[str, Model]


CV = TypeAdapter(dict[str, Window])  # what the page shows of `metrics.json` that no run computes anew


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder holds; None or empty where a stage has not been done."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    splits: dict[str, pd.DataFrame]  # by part: subject, scan, visit_time, time (years), event
    predicted: pd.DataFrame | None  # of stage 2: subject, split, landmark, time, event, log_hazard, ...
    by_visit: pd.DataFrame | None  # likewise of the test part, a row a visit
    cnn: pd.DataFrame | None  # histories
    tlstm: pd.DataFrame | None
    explained: list[Path]  # folders of explained scans, and of the cohort
    warnings: list[tuple[str, int]]  # of the log, with how often

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """Read all of it.

        Raises:
            InputError: the record or the figures were changed by hand into none.
        """
        config = read_json(folder / "config.json")
        unit = PER_YEAR[config.get("settings", {}).get("TIME_UNIT", "years")]
        splits = {part: _table(folder / "splits" / f"{part}.csv", unit) for part in PARTS}
        places = ("explain/*", "explained_cohort")
        explained = {path.parent for at in places for name in EXPLAINED for path in folder.glob(f"{at}/{name}")}
        return cls(
            folder=folder,
            config=config,
            metrics=_metrics(folder / "metrics.json"),
            splits={part: table for part, table in splits.items() if table is not None},
            predicted=_table(folder / "tlstm" / "predictions.csv"),
            by_visit=_table(folder / "tlstm" / "by_visit.csv"),
            cnn=_table(folder / "cnn" / "history.csv"),
            tlstm=_table(folder / "tlstm" / "history.csv"),
            explained=sorted(explained),
            warnings=_warnings(folder / "run.log"),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings."""
        return self.config.get("settings", {})

    @property
    def test(self) -> dict[str, Any] | None:
        """Stage 2's figures of the test part."""
        return self.metrics.get("tlstm", {}).get("test")

    def predictions(self, part: str) -> pd.DataFrame:
        """Stage 2's predictions of a part."""
        assert self.predicted is not None
        return self.predicted[self.predicted["split"] == part]

    @property
    def is_simulated(self) -> bool:
        """Whether no table was given."""
        return bool(self.settings) and not any(self.settings.get(name) for name in UNREAD)

    def visits(self, part: str) -> dict[str, list[float]]:
        """Of each subject of a part, the visits in years from baseline."""
        if part not in self.splits:
            return {}
        by_subject = self.splits[part].groupby("subject")["visit_time"]
        return {str(subject): times.tolist() for subject, times in by_subject}


def _metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    validated(metrics.get("cv", {}), CV, f"{path}: cv: expected a summary by tlstm.py --FOLDS", "Delete it there.")
    return metrics


def _table(path: Path, unit: float = 1.0) -> pd.DataFrame | None:
    """A CSV in memory's column names and years; None if there is none."""
    if not path.is_file():
        return None
    table = pd.read_csv(path, converters={"subjectid": str, "imageid": str})  # an id `NA` is an id
    table = table.rename(columns={"subjectid": "subject", "imageid": "scan", "convert_status": "event"})
    if "event" in table:
        table["event"] = table["event"].astype(bool)
    for name in table.columns.intersection(["visit_time", "time"]):
        table[name] = table[name] / unit
    return table


def _warnings(path: Path) -> list[tuple[str, int]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace") as lines:
        found = Counter(match[1] for match in map(LOGGED.match, lines) if match)
    return found.most_common()
