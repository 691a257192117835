"""What stage 2 says of every subject: its table of predictions, and how good they are.

No PyTorch: the model comes as an argument. Times in years.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import metrics
from files import written_whole
from tables import ON_DISK

QUARTER = 0.25  # years between the points of a survival curve


def curve_years(horizons: Sequence[float]) -> np.ndarray:
    """(T,) quarter years up to the last horizon, and the horizons."""
    quarters = np.arange(QUARTER, max(horizons) + QUARTER / 2, QUARTER)
    return np.unique(np.append(quarters, horizons))


def curves(predicted: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Years (T,) and survival (N, T) of a table of predictions."""
    names = [name for name in predicted.columns if name.startswith("survival_")]
    return np.array([float(name.removeprefix("survival_")) for name in names]), predicted[names].to_numpy()


def evaluate_parts(
    parts: Mapping[str, pd.DataFrame], *, horizons: Sequence[float], num_resamples: int, seed: int
) -> dict[str, dict]:
    """The figures of DESIGN.md's `M` for each part; one prediction a subject.

    Args:
        parts: `train` and others, as `Predictor.predict` returns them.
        horizons: years.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    Returns:
        `metrics.evaluate` of each part, with the training part as reference.
    """
    train = parts["train"]
    reference = metrics.Reference(
        train["time"].to_numpy(), train["event"].to_numpy(), float(train["log_hazard"].median())
    )
    found = {}
    for name, part in parts.items():
        years, survival = curves(part)
        found[name] = metrics.evaluate(
            part["log_hazard"].to_numpy(),
            part["time"].to_numpy(),
            part["event"].to_numpy(),
            survival=survival,
            grid=years,
            horizons=tuple(horizons),
            reference=reference,
            num_resamples=num_resamples,
            seed=seed,
        )
    return found


def write_predictions(parts: Mapping[str, pd.DataFrame], path: str | Path) -> None:
    """Write all parts in one CSV, in the user's column names; times in years."""
    table = pd.concat([part.assign(split=name) for name, part in parts.items()], ignore_index=True)
    first = ["subject", "split", "landmark", "time", "event", "log_hazard"]
    table = table[first + [name for name in table.columns if name not in first]]
    with written_whole(path) as part:
        table.astype({"event": int}).rename(columns=ON_DISK).to_csv(part, index=False)
