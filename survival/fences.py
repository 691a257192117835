"""Fences around the ordinary values of a column: a value beyond them counts as the fence, so no cell decides a model.

Shapes: M visits, F columns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

NOWHERE = float(np.finfo(float).max)  # a fence that nothing lies beyond; unlike infinity, JSON can hold it


@dataclasses.dataclass(frozen=True)
class Fences:
    """The lowest and highest ordinary values of F columns, on the scale that the values are compared on."""

    low: np.ndarray  # (F,)
    high: np.ndarray  # (F,)

    @classmethod
    def fit(cls, values: pd.DataFrame, width: float, *, among: Sequence[str]) -> "Fences":
        """Put up the fences from the training subjects' values.

        Up to a quarter of strange cells leaves the quartiles where they are. Where both are one value, such as 0, they
        are those of the cells with other values, and the fences stand around that value and these quartiles.

        Args:
            values: (M, F) table; NaN where a value is missing.
            width: > 0, distance of a fence from its quartile, in distances between the two quartiles.
            among: names of the columns that get fences; the others get none.
        Returns:
            The fences of the F columns; a constant column has none.
        """
        fences = [_fences(values[name], width) if name in among else (-NOWHERE, NOWHERE) for name in values.columns]
        low, high = np.array(fences, float).reshape(-1, 2).T
        return cls(low, high)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Fences":
        """Restore what `dataclasses.asdict` gave, after a way through JSON; what is none raises as `Preparation`'s."""
        return cls(*(np.asarray(saved[name], float) for name in ("low", "high")))

    def clip(self, values: pd.DataFrame) -> pd.DataFrame:
        """The values (M, F) with those beyond a fence moved to it; NaN stays."""
        return pd.DataFrame(np.clip(values.to_numpy(float), self.low, self.high), values.index, values.columns)

    def are_beyond(self, values: pd.DataFrame) -> pd.DataFrame:
        """Which of the values (M, F) lie beyond a fence, bool; NaN does not."""
        return (values < self.low) | (values > self.high)


def _fences(values: pd.Series, width: float) -> tuple[float, float]:
    """The lower and the upper fence of a column."""
    ordinary = values.dropna().to_numpy(float)
    if not len(ordinary):
        return -NOWHERE, NOWHERE
    low, middle, high = np.quantile(ordinary, [0.25, 0.5, 0.75])
    if low == high:
        others = ordinary[ordinary != middle]
        if not len(others):
            return -NOWHERE, NOWHERE
        quartiles = np.quantile(others, [0.25, 0.75])
        low, high = min(middle, quartiles[0]), max(middle, quartiles[1])
    distance = width * (high - low)
    return float(low - distance), float(high + distance)
