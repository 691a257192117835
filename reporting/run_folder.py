"""What a run's folder holds, in memory: what the page is made from."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from cohort.splits import PARTS
from cohort.tables import ON_DISK, TimeUnit, to_years
from runs.files import read_json
from runs.manifest import RECORD, read_record, validated
from runs.provenance import Provenance, differences
from runs.table_record import TableRecord
from survival.change import MEASURE, POPULATION_FILE, TABLE, Population

LOGGED = re.compile(r"^\d{4}-\S+ \S+ (?:WARNING|ERROR|CRITICAL) (.*)$")  # a line of run.log
EXPLAINED = ("metrics.json", "regions.csv")  # an explanation's last file is one of these: the pictures are there too
OWN_TABLES = ("COHORT_CSV", "TRAIN_CSV", "FEATURES")  # settings that name the user's tables; none: simulated
LOST_SETTINGS: dict[str, Any] = {"TIME_UNIT": "years", "NUM_RESAMPLES": 1000, "SEED": 0}  # where the record has none


class MeanOfFolds(TypedDict):
    """A figure over the folds of a cross-validation."""

    value: float | None  # the mean
    sd: float | None  # None: there is one fold


class CrossValidated(TypedDict):
    """A model's figures over the folds."""

    c_index: MeanOfFolds
    auc: MeanOfFolds
    ibs: MeanOfFolds


class Difference(TypedDict):
    """How much the T-LSTM's figure differs from a rival's."""

    value: float | None  # the mean over the folds
    se: float | None


class Window(BaseModel, extra="allow"):
    """Every model's figures at a landmark and window, by the model's name."""

    tlstm: CrossValidated
    difference: dict[str, dict[str, Difference]]  # by rival and figure
    __pydantic_extra__: dict[str, CrossValidated]


class Columns(TypedDict):
    """What became of the table's columns."""

    used: list[str]
    coded: dict[str, list[str]]  # levels of text
    unused: dict[str, str]  # and why


COLUMNS = TypeAdapter(Columns)
Place = Annotated[str, StringConstraints(pattern=r"^[\d.e-]+\+[\d.e-]+$")]  # landmark and window, years
CV = TypeAdapter(dict[Place, Window])  # the part of metrics.json that the page shows and no stage of main.py makes anew


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder holds; None or empty where a stage has not been done."""

    folder: Path
    record: dict[str, Any]  # config.json
    metrics: dict[str, Any]  # metrics.json
    splits: dict[str, pd.DataFrame]  # by part: subject, scan, visit_time, time (years), event
    predicted: pd.DataFrame | None  # of stage 2: subject, split, landmark, time (years), event, log_hazard, ...
    predicted_by_visit: pd.DataFrame | None  # likewise of the test part, a row a visit
    cnn_history: pd.DataFrame | None  # of the training of stage 1, a row an epoch
    tlstm_history: pd.DataFrame | None  # of the training of stage 2, a row an epoch
    explained: list[Path]  # folders of the explained scans, and of the cohort
    change: pd.DataFrame | None  # of every subject: subject, split, num_visits, level, rate, ... (years)
    progress: pd.DataFrame | None  # of the test part: subject, visit_time (years), progress
    population: Population | None  # what the training subjects tell of a subject's rate
    warnings: list[tuple[str, int]] | None  # of run.log, each with how often it was logged; None: there is no log

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """Read all that the page shows of a run.

        Args:
            folder: the run's OUTPUT_DIR.
        Returns:
            Its tables in memory's column names and in years, its figures and its record.
        Raises:
            InputError: the record or the metrics are no JSON, or were changed by hand into something else.
        """
        read_record(folder)  # it refuses a record that programs can't read; the page shows more than they read
        record = read_json(folder / RECORD)
        time_unit = (LOST_SETTINGS | record.get("settings", {}))["TIME_UNIT"]
        splits = {part: _read_table(folder / "splits" / f"{part}.csv", time_unit) for part in PARTS}
        history = _read_table(folder / "tlstm" / "history.csv")
        return cls(
            folder=folder,
            record=record,
            metrics=_read_metrics(folder / "metrics.json"),
            splits={part: table for part, table in splits.items() if table is not None},
            predicted=_read_table(folder / "tlstm" / "predictions.csv"),
            predicted_by_visit=_read_table(folder / "tlstm" / "by_visit.csv"),
            cnn_history=_read_table(folder / "cnn" / "history.csv"),
            tlstm_history=history if history is not None and len(history) else None,  # STAGE2=link trains nothing
            explained=_explained_folders(folder),
            change=_read_table(folder / TABLE),
            progress=_read_progress(folder / "features" / "test.parquet", time_unit),
            population=Population.load(folder / POPULATION_FILE) if (folder / POPULATION_FILE).is_file() else None,
            warnings=_count_warnings(folder / "run.log"),
        )

    def setting(self, name: str) -> Any:
        """A setting that the page's numbers depend on.

        Args:
            name: as in `config.py`, one of LOST_SETTINGS.
        Returns:
            What the record holds; the default of `config.py` if the record was lost.
        """
        return (LOST_SETTINGS | self.record.get("settings", {}))[name]

    @property
    def is_simulated(self) -> bool:
        """Whether the run's cohort was simulated: the record has settings, and none of them names a table."""
        settings = self.record.get("settings", {})
        return bool(settings) and not any(settings.get(name) for name in OWN_TABLES)

    @property
    def made_otherwise(self) -> dict[str, str]:
        """The stages that other versions have made than those that made the page, each with what differs in words."""
        stages: dict[str, Any] = self.record.get("stages", {})
        words = {
            name: differences(stage.get("made_by", {}), cast(Provenance, self.record)) for name, stage in stages.items()
        }
        return {name: ", ".join(of_stage) for name, of_stage in words.items() if of_stage}

    @property
    def stage2_test(self) -> dict[str, Any] | None:
        """Stage 2's figures of the test part, times in years; None if it was not evaluated."""
        return self.metrics.get("tlstm", {}).get("test")

    @property
    def is_of_table(self) -> bool:
        """Whether the run is one of `tlstm.py` on a table of the user's: no scans, no stage 1."""
        return self.record.get("program") == TableRecord.program

    @property
    def views(self) -> "dict[str, RunFolder]":
        """The run itself, and the run at each of stage 2's landmarks alone, by what the page calls them."""
        landmarks = self.metrics.get("landmarks") or {}
        return {"": self} | {f"predicted at year {year}": self._at_landmark(year) for year in landmarks}

    def _at_landmark(self, year: str) -> "RunFolder":
        figures, predicted = self.metrics["landmarks"][year], self.predicted
        if predicted is not None:
            predicted = predicted[np.isclose(predicted["landmark"], float(year))]  # the key has six digits
        metrics = {"tlstm": figures, **{name: figures.get(name, {}) for name in ("baselines", "arms")}}
        return replace(self, metrics=metrics, predicted=predicted, predicted_by_visit=None)

    @property
    def has_idle_network(self) -> bool:
        """Whether stage 2 is a stack in which the T-LSTM has no weight, so that its attention decides nothing."""
        return self.metrics.get("arms", {}).get("tlstm", {}).get("weight") == 0

    def predictions_of(self, part: str) -> pd.DataFrame:
        """Stage 2's predictions of a part, a row a subject and landmark, times in years."""
        assert self.predicted is not None
        return self.predicted[self.predicted["split"] == part]

    def visit_times(self, part: str) -> dict[str, list[float]]:
        """The visits of each subject of a part, in years from the subject's baseline."""
        if part not in self.splits:
            return {}
        by_subject = self.splits[part].groupby("subject")["visit_time"]
        return {str(subject): times.tolist() for subject, times in by_subject}


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    validated(metrics.get("cv", {}), CV, f"{path}: cv: expected a summary by tlstm.py --FOLDS", "Delete it there.")
    if "columns" in metrics:
        validated(metrics["columns"], COLUMNS, f"{path}: columns: expected those of tlstm.py", "Delete them there.")
    return metrics


def _read_table(path: Path, time_unit: TimeUnit = "years") -> pd.DataFrame | None:
    """A CSV in memory's column names and years; None if there is none."""
    if not path.is_file():
        return None
    table = pd.read_csv(path, converters={"subjectid": str, "imageid": str})  # an id `NA` is an id
    table = table.rename(columns={column: name for name, column in ON_DISK.items()})
    if "event" in table:
        table["event"] = table["event"].astype(bool)
    for name in table.columns.intersection(["visit_time", "time"]):
        table[name] = to_years(table[name], time_unit)
    return table


def _read_progress(path: Path, time_unit: TimeUnit) -> pd.DataFrame | None:
    """The visits of a feature table with their progress, in years; None if there is no table, or no progress in it."""
    if not path.is_file() or MEASURE not in pq.read_schema(path).names:
        return None
    table = pd.read_parquet(path, columns=["subjectid", "visit_time", MEASURE]).rename(columns={"subjectid": "subject"})
    return table.assign(visit_time=to_years(table["visit_time"], time_unit))


def _explained_folders(folder: Path) -> list[Path]:
    """The folders of the explanations that are whole, sorted."""
    patterns = [f"{place}/{name}" for place in ("explain/*", "explained_cohort") for name in EXPLAINED]
    return sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})


def _count_warnings(path: Path) -> list[tuple[str, int]] | None:
    """Each warning or error of a log with how often it was logged, the most frequent first; None if there is no log."""
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", errors="replace") as lines:
        return Counter(match[1] for match in map(LOGGED.match, lines) if match).most_common()
