"""What stage 2 writes into a run's folder, beside the model itself."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cohort.tables import TimeUnit, write_csv, write_table
from runs.files import read_json, remove, write_json
from survival.predictor import write_predictions


def write_predicted(
    folder: Path, predicted: Mapping[str, pd.DataFrame], by_visit: pd.DataFrame | None, history: pd.DataFrame
) -> None:
    """Write `predictions.csv`, `by_visit.csv` and `history.csv`.

    Args:
        folder: of stage 2 in the run's folder.
        predicted: by part, as `Predictor.predict` gives it.
        by_visit: likewise of the test part, a row a visit; None: there is none, and an earlier one's file is removed.
        history: of the training, a row an epoch.
    """
    all_parts = [part.assign(split=name) for name, part in predicted.items()]
    write_predictions(pd.concat(all_parts, ignore_index=True), folder / "predictions.csv")
    if by_visit is None:
        remove(folder / "by_visit.csv")
    else:
        write_predictions(by_visit.assign(split="test"), folder / "by_visit.csv")
    write_csv(history, folder / "history.csv")


def with_attention(
    predicted: Mapping[str, pd.DataFrame], of_network: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Add the T-LSTM's attention to a stack's predictions in which it has no weight.

    Args:
        predicted: by part, as `Predictor.predict` gives it.
        of_network: likewise, by the T-LSTM alone.
    Returns:
        The predictions, all with the columns `attention_<visit>` where the T-LSTM has attention.
    """
    joined = {}
    for part, table in predicted.items():
        attention = of_network[part].filter(regex=r"^attention_\d+$")
        joined[part] = table if attention.columns.isin(table.columns).any() else table.join(attention)
    return joined


def write_splits(folder: Path, parts: Mapping[str, pd.DataFrame], time_unit: TimeUnit) -> None:
    """Write who is in which part: `train.csv`, `val.csv` and `test.csv`.

    Args:
        folder: `splits` in the run's folder.
        parts: by name, in memory's columns and years, a row a visit.
        time_unit: of the files.
    """
    for name, part in parts.items():
        write_table(part, folder / f"{name}.csv", time_unit=time_unit)


def merge_metrics(folder: Path, figures: Mapping[str, Any], *, beside: Collection[str] | None = None) -> None:
    """Put figures into the run's `metrics.json`, in the place of those of the same names.

    Args:
        folder: of the run.
        figures: by name, as JSON has them; None: there are none, and former ones of this name are removed.
        beside: names of the other figures that stay there; None: all of them.
    """
    path = folder / "metrics.json"
    others = {name: value for name, value in read_json(path).items() if beside is None or name in beside}
    write_json(path, {name: value for name, value in (others | dict(figures)).items() if value is not None})
