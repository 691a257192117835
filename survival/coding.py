"""Columns of text as columns of numbers, 0 or 1, by the levels that the training subjects have.

Two levels become one column, such as `sex=M`, that is 1 for the later of the two; more become a column each. Levels
that differ only in case or blanks are one. Shapes: M visits.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Coding:
    """The levels of each column of text; a level that is not among them counts as missing."""

    levels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def fit(cls, table: pd.DataFrame, columns: Sequence[str]) -> "Coding":
        """Take the levels of the training subjects' visits.

        Args:
            table: M visits.
            columns: names of features; those that hold no numbers are coded.
        """
        text = [name for name in columns if not pd.api.types.is_numeric_dtype(table[name])]
        return cls({name: find_levels(table[name]) for name in text})

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Coding":
        """Restore what `dataclasses.asdict` gave, after a way through JSON."""
        return cls({str(name): tuple(map(str, levels)) for name, levels in saved["levels"].items()})

    def columns_of(self, name: str) -> list[str]:
        """The columns of numbers that a column becomes: itself, if it holds numbers; none, if it has but one level."""
        return list(self._level_of_new(name)) if name in self.levels else [name]

    def _level_of_new(self, name: str) -> dict[str, str]:
        """The level that each new column of a column of text stands for."""
        levels = self.levels[name]
        return {f"{name}={level}": level for level in (levels if len(levels) > 2 else levels[1:])}

    def __call__(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the columns of 0, 1 and, where the level is missing, NaN.

        Args:
            table: M visits; a table that is coded already stays the same.
        Returns:
            The table with the new columns; in its columns of text, levels that training did not have are missing.
        """
        coded: dict[str, pd.Series] = {}
        for name, levels in self.levels.items():
            coded[name] = _by_spelling(table[name], levels)
            for column, level in self._level_of_new(name).items():
                coded[column] = (coded[name] == level).astype(float).where(coded[name].notna())
        return table.assign(**coded) if coded else table

    def most_frequent(self, coded: pd.DataFrame) -> pd.Series:
        """What replaces a missing level of a subject: 1 for the most frequent level, 0 for the others.

        Args:
            coded: M visits of the training subjects, coded.
        Returns:
            By new column.
        """
        replacement = {
            column: float(level == coded[name].mode()[0])
            for name in self.levels
            for column, level in self._level_of_new(name).items()
        }
        return pd.Series(replacement, dtype=float)

    def unseen(self, table: pd.DataFrame) -> pd.DataFrame:
        """Find the levels that training did not have.

        Args:
            table: M visits, not coded.
        Returns:
            `subject, column, level`, a row for each that a subject has.
        """
        rows = [pd.DataFrame(columns=["subject", "column", "level"])]
        for name, levels in self.levels.items():
            unseen = table[table[name].notna() & _by_spelling(table[name], levels).isna()]
            rows.append(unseen[["subject"]].assign(column=name, level=_tidied(unseen[name])))
        return pd.concat(rows, ignore_index=True).drop_duplicates()

    def warn_of_unseen(self, parts: Mapping[str, pd.DataFrame]) -> None:
        """Log the levels that training did not have, with their subjects.

        Args:
            parts: tables of visits, not coded, by name; a row a visit.
        """
        for part, table in parts.items():
            for (name, level), rows in self.unseen(table).groupby(["column", "level"], sort=False):
                logger.warning(
                    "%s: %r, which no training subject has, counts as missing for %d subjects of the %s part",
                    *(name, level, len(rows), part),
                )


def find_levels(cells: pd.Series) -> tuple[str, ...]:
    """Find the levels of a column of text, (M,), each in its most frequent spelling, in the order of the alphabet."""
    counts = _tidied(cells.dropna()).value_counts()
    spellings = counts.sort_index().sort_values(ascending=False, kind="stable").index
    return tuple(sorted(spellings[~spellings.str.casefold().duplicated()], key=str.casefold))


def _by_spelling(cells: pd.Series, levels: Sequence[str]) -> pd.Series:
    """The level of each cell, (M,), in the spelling of `levels`; NaN where it is none of them."""
    return _tidied(cells).str.casefold().map({level.casefold(): level for level in levels})


def _tidied(cells: pd.Series) -> pd.Series:
    """Cells, (M,), as text on one line with single blanks."""
    return cells.astype(str).str.split().str.join(" ")
