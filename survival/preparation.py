"""From a table of visits to what stage 2 reads: prepared inputs, padded visits, landmarks.

Causal throughout: what stands at a visit depends on that visit and earlier ones alone. Everything
that is estimated (medians, means, scales, principal components) comes from the training subjects.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cohort.tables import feature_columns
from runs.errors import InputError, raise_if_any

IMAGE_FEATURE = re.compile(r"feature_\d+")  # stage 1's; principal components stand for them
SCALES = ("scale", "state", "change")
LONG_TAIL = 1.0  # skewness from which a positive column is replaced by its logarithm
LEAST_SPREAD = 1e-9  # a column whose standard deviation is below it says nothing
logger = logging.getLogger(__name__)


# ---- Inputs: columns of numbers, one row a visit -------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Scale:
    """Centre and spread of some columns; a column without spread becomes 0."""

    centre: np.ndarray  # (F,)
    factor: np.ndarray  # (F,) 1 / standard deviation; 0 for a constant column

    @classmethod
    def fit(cls, values: np.ndarray) -> "Scale":
        """From the columns of `values` (M, F)."""
        return cls(values.mean(axis=0), _inverse(values.std(axis=0)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardise (M, F)."""
        return (values - self.centre) * self.factor


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How the columns of a table become the inputs of stage 2, fitted on training subjects.

    Carried forward within a subject, then the training median; standardised; `feature_<n>` replaced by
    their first principal components; beside them whether a value is missing at this visit, log1p of the
    years since the visit before and since baseline, and the change of each value since the first visit.
    """

    columns: tuple[str, ...]
    missing: tuple[str, ...]  # columns with missing values in training: each has an indicator
    logged: tuple[str, ...]  # positive columns with a long right tail: their logarithm is taken
    median: np.ndarray  # (F,)
    scale: Scale  # of the columns
    components: np.ndarray  # (K, image features); the first score has unit variance, the others less
    state: Scale  # of values, indicators and times together
    change: Scale  # of the changes since the first visit

    @classmethod
    def fit(cls, table: pd.DataFrame, columns: Sequence[str], *, num_components: int) -> "Preparation":
        """Estimate everything from the training subjects' visits.

        Args:
            table: visits in memory's columns, sorted by subject and visit.
            columns: which are features.
            num_components: principal components in the place of all `feature_<n>` columns; 0 drops them.
        Returns:
            The fitted preparation; no more components than the data have.
        """
        columns = tuple(columns)
        missing = tuple(name for name in columns if table[name].isna().any())
        logged = tuple(name for name in columns if _has_long_tail(table[name]))
        median = _logs(table, columns, logged).median().fillna(0.0).to_numpy(float)
        carried = _carried(_logs(table, columns, logged), table["subject"], median)
        scale = Scale.fit(carried)
        components = _principal(scale(carried)[:, _image(columns)], num_components)
        draft = cls(columns, missing, logged, median, scale, components, _unscaled(), _unscaled())
        state, change = draft._blocks(table)
        later = table["subject"].duplicated().to_numpy()  # at a first visit every change is 0
        of_state, of_change = Scale.fit(state), _spread_only(change[later])
        for factor in (of_state.factor, of_change.factor):  # components share one: a ridge shrinks small ones most
            shared = factor[np.count_nonzero(~_image(columns)) :][: len(components)]
            shared[:] = shared.min(initial=np.inf)
        return dataclasses.replace(draft, state=of_state, change=of_change)

    def __call__(self, table: pd.DataFrame) -> np.ndarray:
        """The inputs of every visit, (M, P) float64: the state, then the change since the first visit."""
        state, change = self._blocks(table)
        return np.concatenate([self.state(state), self.change(change)], axis=1)

    @property
    def num_inputs(self) -> int:
        """P: columns that a call returns."""
        return len(self.state.centre) + len(self.change.centre)

    @property
    def num_state(self) -> int:
        """The first columns that a call returns: the state, without the change."""
        return len(self.state.centre)

    @classmethod
    def restored(cls, kept: dict) -> "Preparation":
        """From `dataclasses.asdict`, by way of JSON.

        Raises:
            KeyError, TypeError, ValueError: not what `asdict` gave, or numbers that are not finite.
        """
        median = np.asarray(kept["median"], float)
        components = np.asarray(kept["components"], float).reshape(-1, int(_image(kept["columns"]).sum()))
        scales = [Scale(*(np.asarray(kept[name][part], float) for part in ("centre", "factor"))) for name in SCALES]
        columns, missing, logged = (tuple(kept[name]) for name in ("columns", "missing", "logged"))
        restored = cls(columns, missing, logged, median, scales[0], components, *scales[1:])
        num_values = len(median) - components.shape[1] + components.shape[0]
        sizes = (len(median), num_values + len(restored.missing) + 2, num_values)
        for scale, size in zip(scales, sizes, strict=True):
            if scale.centre.shape != (size,) or scale.factor.shape != (size,) or len(median) != len(restored.columns):
                raise ValueError(f"prepare: expected {size} columns, received {scale.centre.shape}")
        if not all(
            np.isfinite(part).all()
            for part in (median, components, *(scale.centre for scale in scales), *(scale.factor for scale in scales))
        ):
            raise ValueError("prepare: expected finite numbers")
        return restored

    def _blocks(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        seen = _carried(_logs(table, self.columns, self.logged), table["subject"], self.median)
        scaled = self.scale(seen)  # (M, F)
        is_image = _image(self.columns)
        values = np.concatenate([scaled[:, ~is_image], scaled[:, is_image] @ self.components.T], axis=1)
        first = pd.DataFrame(values).groupby(table["subject"].to_numpy(), sort=False).transform("first").to_numpy()
        absent = table[list(self.missing)].isna().to_numpy(float)
        times = np.log1p(np.stack([years_since_last(table), table["visit_time"].to_numpy(float)], axis=1))
        return np.concatenate([values, absent, times], axis=1), values - first


def _image(columns: Sequence[str]) -> np.ndarray:
    """(F,) bool: which columns are stage 1's."""
    return np.array([IMAGE_FEATURE.fullmatch(name) is not None for name in columns], dtype=bool)


def years_since_last(table: pd.DataFrame) -> np.ndarray:
    """(M,) years since the subject's visit before; 0 at the first."""
    return table.groupby("subject", sort=False)["visit_time"].diff().fillna(0.0).to_numpy(float)


def _has_long_tail(values: pd.Series) -> bool:
    """Whether a logarithm makes a column more symmetric, as for most laboratory values; never stage 1's."""
    if IMAGE_FEATURE.fullmatch(str(values.name)) or not values.min() > 0:
        return False
    skewness, of_logs = (float(column.skew()) for column in (values, np.log(values)))  # type: ignore[arg-type]
    return skewness > LONG_TAIL and abs(of_logs) < skewness


def _logs(table: pd.DataFrame, columns: Sequence[str], logged: Sequence[str]) -> pd.DataFrame:
    """The columns, those of `logged` as logarithms; what is not positive there counts as missing."""
    values = table[list(columns)].astype(float)
    values[list(logged)] = np.log(values[list(logged)].where(values[list(logged)] > 0))
    return values


def _carried(values: pd.DataFrame, subject: pd.Series, median: np.ndarray) -> np.ndarray:
    """(M, F): the last value seen up to each visit, else the training median."""
    carried = values.groupby(subject.to_numpy(), sort=False).ffill().to_numpy(float)
    return np.where(np.isnan(carried), median, carried)


def _principal(values: np.ndarray, number: int) -> np.ndarray:
    """(K, F) first principal axes of centred (M, F), scaled so that the first score has unit variance."""
    if number == 0 or values.shape[1] == 0:
        return np.zeros((0, values.shape[1]))
    _, singular, axes = np.linalg.svd(values, full_matrices=False)
    number = min(number, int((singular > LEAST_SPREAD * singular[0]).sum()))
    axes = axes[:number] * np.sign(axes[np.arange(number), np.abs(axes[:number]).argmax(axis=1)])[:, None]
    return axes * (np.sqrt(len(values)) / singular[0])


def _unscaled() -> Scale:
    return Scale(np.zeros(0), np.zeros(0))


def _spread_only(change: np.ndarray) -> Scale:
    """No change stays 0, so the centre is 0; with no later visit there is nothing to scale."""
    return Scale(np.zeros(change.shape[1]), _inverse(np.sqrt((change**2).sum(axis=0) / max(len(change), 1))))


def _inverse(spread: np.ndarray) -> np.ndarray:
    return np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > LEAST_SPREAD)


# ---- What can be used of the parts -----------------------------------------------------------------
def usable_columns(parts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Columns with two values or more that every part has.

    A channel of stage 1 may be dead: a constant `feature_<n>` is left out, and said so.

    Args:
        parts: tables by name.
    Returns:
        Names, in the order of the first part.
    Raises:
        InputError: names each column that is constant, empty, or absent in a part; or there is none.
    """
    table = pd.concat(parts.values())
    usable, dead, problems = [], [], []
    for name in feature_columns(table):
        absent = [part for part, rows in parts.items() if name not in rows]
        values = table[name].dropna()
        if absent:
            problems.append(f"{name}: absent in {', '.join(absent)}")
        elif len(values) and values.min() < values.max():
            usable.append(name)
        elif IMAGE_FEATURE.fullmatch(name):
            dead.append(name)
        else:
            problems.append(f"{name}: {'every value is missing' if values.empty else f'one value, {values.iloc[0]:g}'}")
    raise_if_any("Columns can't be used", problems, "Drop these columns.")
    if dead:
        logger.info("%d constant features are left out: %s", len(dead), ", ".join(dead))
    missing = int(table[usable].isna().sum().sum())
    if missing:
        logger.info(
            "%d of %d values are missing: the subject's last value, else the training median, stands for them",
            *(missing, table[usable].size),
        )
    if not usable:
        raise InputError(
            "expected a column of numbers beside the ids and outcomes, found none with two values or more."
        )
    return usable
