"""How the columns of a table of visits become the inputs of stage 2.

Causal throughout: what stands at a visit depends on that visit and earlier ones alone. Everything that is estimated
(levels, medians, means, scales, principal components) comes from the training subjects. Shapes: M visits, F columns of
numbers that are features, K principal components, P inputs. Times are years.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from survival.coding import Coding
from survival.fences import Fences
from survival.summaries import NAMES, Summaries

IMAGE_FEATURE = re.compile(r"feature_\d+")  # a column of stage 1; principal components replace all of them
SCALES = ("scale", "state", "change")  # the fields of Preparation that are a Scale
LONG_TAIL = 1.0  # skewness above which a positive column is replaced by its logarithm
ROUNDING = 1e-13  # share of a column's largest absolute value by which its cells may differ and be one number
LEAST_COMPONENT = 1e-9  # share of the first component's standard deviation; a component below it is rounding


# ---- The preparation -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Scale:
    """Centre and spread of F columns; a constant column becomes 0, whatever its unit."""

    centre: np.ndarray  # (F,)
    factor: np.ndarray  # (F,) 1 / standard deviation; 0 for a constant column

    @classmethod
    def fit(cls, values: np.ndarray) -> "Scale":
        """Estimate centre and spread of the columns of `values` (M, F)."""
        return cls(values.mean(axis=0), _inverse_spread(values.std(axis=0), _rounding(values)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardise the columns of `values` (M, F)."""
        return (values - self.centre) * self.factor


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the training subjects' visits spanned, so that a new subject unlike them can be told.

    G values of a visit: the standardised columns that are not `feature_<n>`, then the K scores.
    """

    low: np.ndarray  # (G,) lowest
    high: np.ndarray  # (G,) highest
    spread: np.ndarray  # (G,) standard deviation; 0 for a constant column
    first_visit: float  # the latest first visit, years
    last_visit: float  # the latest visit, years

    @classmethod
    def of(cls, values: np.ndarray, table: pd.DataFrame) -> "Seen":
        """Span the values (M, G) and the times of the M visits of `table`."""
        first = table.groupby("subject", sort=False)["visit_time"].min()
        low, high = values.min(axis=0), values.max(axis=0)
        return cls(low, high, values.std(axis=0), float(first.max()), float(table["visit_time"].max()))

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Seen":
        """Restore what `dataclasses.asdict` gave, after a way through JSON; what is none raises as `Preparation`'s."""
        low, high, spread = (np.asarray(saved[name], float) for name in ("low", "high", "spread"))
        return cls(low, high, spread, float(saved["first_visit"]), float(saved["last_visit"]))


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How the columns of a table become the P inputs of stage 2, fitted on training subjects.

    Text becomes columns of 0 and 1 (`coding`), so that there are F. Values beyond their column's fences are moved to
    them. A missing value is replaced by the subject's last value, or else by the training median, of text the most
    frequent level. The columns are standardised. The `feature_<n>` columns are replaced by their first principal
    components. Groups of inputs are added: whether a value is missing at this visit; log1p of the years since the visit
    before and since baseline; the change of each value since the first visit; if wanted, summaries of its history.
    """

    columns: tuple[str, ...]  # F names
    missing: tuple[str, ...]  # columns, as the table has them, with missing values in training: each has an indicator
    logged: tuple[str, ...]  # positive columns with a long right tail: their logarithm is taken
    median: np.ndarray  # (F,)
    scale: Scale  # of the F columns
    components: np.ndarray  # (K, image features); the first score has unit variance, the others less
    state: Scale  # of values, indicators and times together
    change: Scale  # of the changes since the first visit
    seen: Seen | None = None  # None: saved by a version that did not keep it
    coding: Coding = dataclasses.field(default_factory=Coding)  # of the columns of text
    fences: Fences | None = None  # of the F columns, on the logarithm's scale where it is taken; None: not winsorised
    summaries: Summaries | None = None  # of the G values; None: not among the inputs
    summary: Scale = dataclasses.field(default_factory=lambda: _no_scale())  # of the summaries

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        columns: Sequence[str],
        *,
        num_components: int,
        winsorise: float = 0.0,
        summarise: bool = False,
    ) -> "Preparation":
        """Estimate everything from the training subjects' visits.

        Args:
            table: M visits in memory's columns, sorted by subject and visit.
            columns: names of the features, of numbers or text.
            num_components: principal components that replace all `feature_<n>` columns; 0 drops these columns.
            winsorise: width of the fences, as in `Fences.fit`, of the columns that are not `feature_<n>`; 0: none.
            summarise: add the summaries of each visit's history.
        Returns:
            The fitted preparation; it has no more components than the data allow.
        """
        coding = Coding.fit(table, columns)
        table = coding(table)
        missing = tuple(name for name in columns if table[name].isna().any())
        columns = tuple(new for name in columns for new in coding.columns_of(name))
        logged = _long_tailed(table[list(columns)].astype(float), winsorise)
        values = _take_logarithms(table, columns, logged)
        fences = _fences(values, winsorise)
        medians = values.median().fillna(0.0)
        medians.update(coding.most_frequent(table))
        median = medians.to_numpy(float)
        carried = _carry_forward(_within(fences, values), table["subject"], median)
        scale = Scale.fit(carried)
        components = _principal_axes(scale(carried)[:, _is_image(columns)], num_components)
        no_scale = (_no_scale(), _no_scale())
        draft = cls(columns, missing, logged, median, scale, components, *no_scale, coding=coding, fences=fences)
        state, change = draft._state_and_change(table, draft.values(table))
        is_later = table["subject"].duplicated().to_numpy()  # at a first visit every change is 0
        rounding = _with_scores(_rounding(carried) * scale.factor, _is_image(columns), np.abs(components))
        state_scale, change_scale = Scale.fit(state), _scale_without_centre(change[is_later], rounding)
        for factor in (state_scale.factor, change_scale.factor):  # one for all components: a ridge shrinks small ones
            shared = factor[np.count_nonzero(~_is_image(columns)) :][: len(components)]
            shared[:] = shared.min(initial=np.inf)
        of_visits = state[:, : change.shape[1]]  # (M, G)
        fitted = dataclasses.replace(draft, state=state_scale, change=change_scale, seen=Seen.of(of_visits, table))
        return fitted._with_summaries(of_visits, table) if summarise else fitted

    def _with_summaries(self, values: np.ndarray, table: pd.DataFrame) -> "Preparation":
        """The same with summaries of the values (M, G); their scale is that of histories of two visits or more."""
        summaries, is_later = Summaries.fit(values, table), table["subject"].duplicated().to_numpy()
        later = summaries(values, table)[is_later if is_later.any() else slice(None)]
        return dataclasses.replace(self, summaries=summaries, summary=Scale.fit(later))

    def __call__(self, table: pd.DataFrame, values: np.ndarray | None = None) -> np.ndarray:
        """Compute the inputs of every visit: the state, the change since the first visit, the summaries.

        Args:
            table: M visits in memory's columns, sorted by subject and visit.
            values: (M, G) to take instead of those that `values` finds in the table.
        Returns:
            (M, P) float64.
        """
        values = self.values(table) if values is None else values
        state, change = self._state_and_change(table, values)
        groups = [self.state(state), self.change(change)]
        groups += [self.summary(self.summaries(values, table))] if self.summaries is not None else []
        return np.concatenate(groups, axis=1)

    @property
    def num_inputs(self) -> int:
        """P, the number of inputs of a visit."""
        return len(self.state.centre) + len(self.change.centre) + len(self.summary.centre)

    @property
    def num_state(self) -> int:
        """The number of inputs of the state; the changes since the first visit and the summaries follow them."""
        return len(self.state.centre)

    @property
    def num_values(self) -> int:
        """G, the number of values, which is that of the changes too."""
        return len(self.change.centre)

    @property
    def needed(self) -> list[str]:
        """The columns that a table must have, of numbers or, those of `coding`, of text."""
        coded = {new for name in self.coding.levels for new in self.coding.columns_of(name)}
        return [*(name for name in self.columns if name not in coded), *self.coding.levels]

    def absent_from(self, table: pd.DataFrame) -> list[str]:
        """The needed columns that M visits do not have, or in which they have text for numbers or numbers for text."""
        text = set(table.select_dtypes(exclude=["number", "bool"]))
        return [
            name
            for name in self.needed
            if name not in table or ((name in text) != (name in self.coding.levels) and table[name].notna().any())
        ]

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Preparation":
        """Restore a preparation.

        Args:
            saved: what `dataclasses.asdict` gave, after a way through JSON.
        Returns:
            The same preparation, with arrays (F,) and (K, image features).
        Raises:
            KeyError, TypeError, ValueError: not what `asdict` gave, or numbers that are not finite.
        """
        median = np.asarray(saved["median"], float)
        shape = (len(saved["components"]), int(_is_image(saved["columns"]).sum()))  # K or the image features may be 0
        components = np.asarray(saved["components"], float).reshape(shape)
        fitted = (*SCALES, *(("summary",) if saved.get("summaries") is not None else ()))
        scales = [Scale(*(np.asarray(saved[name][part], float) for part in ("centre", "factor"))) for name in fitted]
        columns, missing, logged = (tuple(saved[name]) for name in ("columns", "missing", "logged"))
        seen = Seen.from_json(saved["seen"]) if saved.get("seen") is not None else None
        coding = Coding.from_json(saved["coding"]) if "coding" in saved else Coding()
        fences = Fences.from_json(saved["fences"]) if saved.get("fences") is not None else None
        scale, state, change, *summary = scales
        restored = cls(columns, missing, logged, median, scale, components, state, change, seen, coding, fences)
        if summary:
            summaries = Summaries.from_json(saved["summaries"])
            restored = dataclasses.replace(restored, summaries=summaries, summary=summary[0])
        restored._check_sizes()
        arrays = [median, components, *(array for fitted in scales for array in (fitted.centre, fitted.factor))]
        parts = [part for part in (seen, fences, restored.summaries) if part is not None]
        arrays += [array for part in parts for array in dataclasses.astuple(part)]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("prepare: expected finite numbers")
        return restored

    def _check_sizes(self) -> None:
        """Raise a ValueError unless every scale has as many columns as the names say."""
        num_values = len(self.median) - self.components.shape[1] + self.components.shape[0]
        sizes = (len(self.median), num_values + len(self.missing) + 2, num_values)
        for scale, size in zip((self.scale, self.state, self.change), sizes, strict=True):
            received = (scale.centre.shape, scale.factor.shape)
            if received != ((size,), (size,)) or len(self.median) != len(self.columns):
                raise ValueError(f"prepare: expected {size} columns, received {scale.centre.shape}")
        for array in (self.fences.low, self.fences.high) if self.fences is not None else ():
            if array.shape != self.median.shape:
                raise ValueError(f"fences: expected {len(self.median)} columns, received {array.shape}")
        if self.summaries is not None:
            number = num_values * len(NAMES) + 1
            shapes = [array.shape for array in (*dataclasses.astuple(self.summaries), self.summary.centre)]
            if shapes != [(num_values,)] * 3 + [(number,)] * 3:
                raise ValueError(f"summaries: expected {num_values} values, {number} summaries, received {shapes}")
        for array in (self.seen.low, self.seen.high, self.seen.spread) if self.seen is not None else ():
            if array.shape != (num_values,):
                raise ValueError(f"seen: expected {num_values} columns, received {array.shape}")

    def values(self, table: pd.DataFrame) -> np.ndarray:
        """Compute the (M, G) values of every visit, as in `Seen`: standardised columns, then scores."""
        table = self.coding(table)
        values = _within(self.fences, _take_logarithms(table, self.columns, self.logged))
        scaled = self.scale(_carry_forward(values, table["subject"], self.median))  # (M, F)
        return _with_scores(scaled, _is_image(self.columns), self.components)

    def are_clipped(self, table: pd.DataFrame) -> pd.DataFrame:
        """Find the cells of the F columns, (M, F) bool, that lie beyond a fence and are moved to it."""
        values = _take_logarithms(self.coding(table), self.columns, self.logged)
        return self.fences.are_beyond(values) if self.fences else pd.DataFrame(False, values.index, values.columns)

    def fences_of(self, name: str) -> tuple[float, float]:
        """Give a column's fences, the lower and the upper one, in the table's own unit.

        Args:
            name: of a column; the preparation has fences.
        """
        assert self.fences is not None
        place = self.columns.index(name)
        fences = np.array([self.fences.low[place], self.fences.high[place]])
        with np.errstate(over="ignore"):  # no float is beyond a fence of infinity
            low, high = np.exp(fences) if name in self.logged else fences
        return float(low), float(high)

    def _state_and_change(self, table: pd.DataFrame, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (M, G) with indicators and times of the visits, and the values' change since the first; unscaled."""
        table = self.coding(table)
        first = pd.DataFrame(values).groupby(table["subject"].to_numpy(), sort=False).transform("first").to_numpy()
        is_missing = table[list(self.missing)].isna().to_numpy(float)
        times = np.log1p(np.stack([years_since_last(table), table["visit_time"].to_numpy(float)], axis=1))
        return np.concatenate([values, is_missing, times], axis=1), values - first


def _is_image(columns: Sequence[str]) -> np.ndarray:
    """(F,) bool: which columns are features of stage 1."""
    return np.array([IMAGE_FEATURE.fullmatch(name) is not None for name in columns], dtype=bool)


def _own(columns: Iterable[str]) -> list[str]:
    """The columns that are no features of stage 1."""
    return [name for name in columns if not IMAGE_FEATURE.fullmatch(name)]


def years_since_last(table: pd.DataFrame) -> np.ndarray:
    """Compute the (M,) years since the subject's visit before; 0 at the first visit."""
    return table.groupby("subject", sort=False)["visit_time"].diff().fillna(0.0).to_numpy(float)


def _long_tailed(values: pd.DataFrame, winsorise: float) -> tuple[str, ...]:
    """The columns of `values` (M, F) whose ordinary cells call for a logarithm; stage 1's never do."""
    fences = _fences(values, winsorise)
    ordinary = values if fences is None else values.mask(fences.are_beyond(values))
    return tuple(name for name in _own(values.columns) if _has_long_tail(ordinary[name]))


def _has_long_tail(values: pd.Series) -> bool:
    """Whether a logarithm makes a column more symmetric, as for most laboratory values."""
    if not values.min() > 0:
        return False
    skewness, skewness_of_logs = _skewness(values), _skewness(np.log(values))
    return skewness > LONG_TAIL and abs(skewness_of_logs) < skewness


def _skewness(values: pd.Series) -> float:
    """Skewness, standardised first: pandas takes moments below 1e-14 for 0, whatever the unit. NaN if constant."""
    return float(((values - values.mean()) / values.std()).skew())  # type: ignore[arg-type]


def _fences(values: pd.DataFrame, winsorise: float) -> Fences | None:
    """Fences of the values (M, F), none of stage 1's; None if there is no winsorising."""
    return Fences.fit(values, winsorise, among=_own(values.columns)) if winsorise else None


def _within(fences: Fences | None, values: pd.DataFrame) -> pd.DataFrame:
    """The values (M, F), kept within their fences if there are any."""
    return values if fences is None else fences.clip(values)


def _take_logarithms(table: pd.DataFrame, columns: Sequence[str], logged: Sequence[str]) -> pd.DataFrame:
    """The columns (M, F), those of `logged` as logarithms; a value there that is not positive counts as missing."""
    values = table[list(columns)].astype(float)
    values[list(logged)] = np.log(values[list(logged)].where(values[list(logged)] > 0))
    return values


def _with_scores(scaled: np.ndarray, is_image: np.ndarray, components: np.ndarray) -> np.ndarray:
    """(..., G): standardised columns (..., F) that are not of stage 1, then the K scores of those that are."""
    return np.concatenate([scaled[..., ~is_image], scaled[..., is_image] @ components.T], axis=-1)


def _carry_forward(values: pd.DataFrame, subject: pd.Series, median: np.ndarray) -> np.ndarray:
    """(M, F): the subject's last value up to each visit, or else the training median (F,)."""
    carried = values.groupby(subject.to_numpy(), sort=False).ffill().to_numpy(float)
    return np.where(np.isnan(carried), median, carried)


def _principal_axes(values: np.ndarray, number: int) -> np.ndarray:
    """(K, F) first principal axes of centred (M, F), scaled so that the first score has unit variance."""
    if number == 0 or values.shape[1] == 0:
        return np.zeros((0, values.shape[1]))
    _, singular, axes = np.linalg.svd(values, full_matrices=False)
    number = min(number, int((singular > LEAST_COMPONENT * singular[0]).sum()))
    axes = axes[:number] * np.sign(axes[np.arange(number), np.abs(axes[:number]).argmax(axis=1)])[:, None]
    return axes * (np.sqrt(len(values)) / singular[0])


def _no_scale() -> Scale:
    """A scale of no columns, until the real one is fitted."""
    return Scale(np.zeros(0), np.zeros(0))


def _scale_without_centre(change: np.ndarray, rounding: np.ndarray) -> Scale:
    """The scale of changes (later visits, G), without a centre: 0 stays 0. `rounding` (G,) is no change."""
    spread = np.sqrt((change**2).sum(axis=0) / max(len(change), 1))
    return Scale(np.zeros(change.shape[1]), _inverse_spread(spread, rounding))


def _rounding(values: np.ndarray) -> np.ndarray:
    """(F,): by how much cells of the columns (M, F) may differ and still be one number."""
    return ROUNDING * np.abs(values).max(axis=0)


def _inverse_spread(spread: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """(F,): 1 / spread, and 0 for a constant column, whose spread is not above its rounding (F,)."""
    return np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > rounding)
