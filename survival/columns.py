"""Which columns of a table stage 2 uses, how text among them is coded, and which it does not use, and why."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cohort.faults import DATE, MOST_LEVELS
from cohort.names import OF_STAGE_1
from cohort.tables import OUR_COLUMNS
from runs.errors import InputError, raise_if_any
from survival.coding import Coding, find_levels
from survival.preparation import IMAGE_FEATURE, ROUNDING

CODE_OF_GROUP = re.compile(r"(^|[_\W])(site|cent(er|re)|scanner|hospital|clinic)([_\W]|\d|$)", re.IGNORECASE)
LEAST_IDS = 20  # whole numbers, all different, that are hardly so by chance
FEW_SUBJECTS = 5  # that have a level: a part or a fold may have none of them in training
logger = logging.getLogger(__name__)


@dataclass
class Columns:
    """What becomes of each column of a table that is none of ours."""

    used: list[str] = field(default_factory=list)  # in the table's order
    coded: dict[str, tuple[str, ...]] = field(default_factory=dict)  # levels of each column of text that is used
    unused: dict[str, str] = field(default_factory=dict)  # why each column is not

    def used_in_words(self) -> list[str]:
        """The columns that are used, those of stage 1 as one."""
        own = [name for name in self.used if not IMAGE_FEATURE.fullmatch(name)]
        num_image = len(self.used) - len(own)
        return own + ([f"{num_image} of the form feature_<n>"] if num_image else [])

    def as_json(self) -> dict[str, Any]:
        """What `metrics.json` holds as `columns`."""
        return {"used": self.used_in_words(), "coded": self.coded, "unused": self.unused}


def usable_columns(parts: Mapping[str, pd.DataFrame]) -> Columns:
    """Find the columns that can be used, and log what becomes of each.

    Args:
        parts: tables of visits, by name; a row a visit.
    Returns:
        As `find_columns`; one column or more is used.
    Raises:
        InputError: as `find_columns`; or no column can be used.
    """
    columns, table = find_columns(parts), pd.concat(parts.values(), ignore_index=True)
    _log_unused(columns)
    if not columns.used:
        raise InputError(
            "expected a column of numbers or categories beside the ids and outcomes, found none with two values or "
            f"more. Not used: {_listed(columns.unused) or 'there is no other column'}."
        )
    _log_used(columns, table)
    _warn_of_codes(columns, table)
    return columns


def find_columns(parts: Mapping[str, pd.DataFrame]) -> Columns:
    """Find what becomes of each column that is none of ours.

    Used are columns of numbers, and text of a few levels. Not used are a column that has one value, in all parts or
    in training, and other text.

    Args:
        parts: tables of visits, by name; a row a visit. Levels and values count that `train` has, if there is one.
    Returns:
        The columns, in the order of the first part.
    Raises:
        InputError: names each column that is absent in a part, or holds numbers in one and text in another.
    """
    table = pd.concat(parts.values(), ignore_index=True)
    columns, problems = Columns(), []
    names = [name for name in table.columns if name not in OUR_COLUMNS]
    for name in names:
        if problem := _contradiction(name, parts, is_text=_is_text(table[name])):
            problems.append(f"{name}: {problem}")
        elif why := _why_unused(table[name]) or _why_unused_in_training(name, parts):
            columns.unused[name] = why
        else:
            columns.used.append(name)
            if _is_text(table[name]):
                columns.coded[name] = find_levels(parts.get("train", table)[name])
    problems += _names_taken_twice(columns, names)
    raise_if_any("Columns can't be used", problems, "Mend these columns or their names, or drop them from every table.")
    return columns


def _is_text(values: pd.Series) -> bool:
    """Whether a column, (M,), holds text; a column without any value does not."""
    return not pd.api.types.is_numeric_dtype(values) and bool(values.notna().any())


def _contradiction(name: str, parts: Mapping[str, pd.DataFrame], *, is_text: bool) -> str:
    """How the parts contradict each other, or the name its values; or nothing."""
    absent = [part for part, rows in parts.items() if name not in rows]
    if absent:
        return f"absent in {', '.join(absent)}"
    if is_text and OF_STAGE_1.fullmatch(name):
        return "text, though stage 1's numbers are called so"
    if name == "log_hazard" and not any(_why_unused(rows[name]) == "" for rows in parts.values()):
        return "one value: stage 1 tells no scan from another"
    kinds = {part: _is_text(rows[name]) for part, rows in parts.items() if rows[name].notna().any()}
    if len(set(kinds.values())) > 1:
        return ", ".join(f"{'text' if kind else 'numbers'} in {part}" for part, kind in kinds.items())
    return ""


def _why_unused(values: pd.Series) -> str:
    """Why a column, (M,), is not used; nothing if it can be."""
    values = values.dropna()
    if values.empty:
        return "every value is missing"
    if not _is_text(values):
        numbers = values.astype(float)
        is_constant = numbers.max() - numbers.min() <= ROUNDING * numbers.abs().max()
        return f"one value, {numbers.iloc[0]:g}" if is_constant else ""
    levels, example = find_levels(values), repr(values.iloc[0])
    if len(levels) == 1:
        return f"one value, {levels[0]!r}"
    if values.astype(str).str.strip().str.fullmatch(DATE).mean() > 0.5:
        return f"dates, such as {example}; the years since the subject's baseline can be used"
    return f"text of {len(levels)} different values, such as {example}" if len(levels) > MOST_LEVELS else ""


def _why_unused_in_training(name: str, parts: Mapping[str, pd.DataFrame]) -> str:
    """Why a column can't be learned from; a feature of stage 1 stays, as one that is constant in training alone."""
    if "train" not in parts or IMAGE_FEATURE.fullmatch(name):
        return ""
    why = _why_unused(parts["train"][name])
    return f"{why} in the training part" if why else ""


def _names_taken_twice(columns: Columns, names: list[str]) -> list[str]:
    """The lines about levels whose new column would have the name of another column."""
    coding = Coding(columns.coded)
    coded = [(new, name) for name in columns.coded for new in coding.columns_of(name)]
    counts = Counter([*names, *(new for new, _ in coded)])
    return [f"{name}: a level of it and another column are called {new}" for new, name in coded if counts[new] > 1]


# ---- The log ---------------------------------------------------------------------------------------
def _log_unused(columns: Columns) -> None:
    dead = [name for name in columns.unused if IMAGE_FEATURE.fullmatch(name)]
    if dead:
        logger.info("%d constant features are left out: %s", len(dead), ", ".join(dead))
    own = {name: why for name, why in columns.unused.items() if name not in dead}
    if own:
        logger.warning("%d columns are not used: %s", len(own), _listed(own))


def _listed(unused: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in unused.items())


def _log_used(columns: Columns, table: pd.DataFrame) -> None:
    logger.info("%d columns are used: %s", len(columns.used), ", ".join(columns.used_in_words()))
    coding = Coding(columns.coded)
    coded = coding(table[["subject", *coding.levels]])
    for name, levels in coding.levels.items():
        subjects = coded.groupby(name)["subject"].nunique()
        rare = [level for level in levels if subjects[level] < FEW_SUBJECTS]
        new = coding.columns_of(name)
        logger.info("%s is text (%s), coded as 0 and 1: %s", name, ", ".join(levels), ", ".join(new))
        if rare:
            logger.warning(
                "%s: %s: fewer than %d subjects have it; it counts as missing where none of them is in training",
                *(name, ", ".join(rare), FEW_SUBJECTS),
            )
    num_missing = int(table[columns.used].isna().sum().sum())
    if num_missing:
        logger.info(
            "%d of %d values are missing: the subject's last value, or else the training median, replaces them",
            *(num_missing, table[columns.used].size),
        )
    image = [name for name in columns.used if IMAGE_FEATURE.fullmatch(name)]
    if image:
        are_own = "log_hazard" not in table
        logger.log(
            logging.WARNING if are_own else logging.INFO,
            "%d columns are called feature_<n>, as stage 1's: their principal components replace them, as many of "
            "COMPONENTS as held-out subjects prefer%s",
            *(len(image), ". If they are your own, give them other names, so that each is used" if are_own else ""),
        )


def _warn_of_codes(columns: Columns, table: pd.DataFrame) -> None:
    """Warn of whole numbers that are probably ids, row numbers or the numbers of sites: they are no amounts."""
    ids, groups = [], []
    for name in (name for name in columns.used if name not in columns.coded and not IMAGE_FEATURE.fullmatch(name)):
        values = table[name].dropna().astype(float)
        if (values % 1 != 0).any():
            continue
        if _looks_like_ids(values, table["subject"]):
            ids.append(name)
        elif CODE_OF_GROUP.search(name):
            groups.append(name)
    if ids:
        logger.warning("%s: looks like an id or a row number; drop it if it is", ", ".join(ids))
    if groups:
        logger.warning(
            "%s: the numbers of sites are no amounts; write them as text, such as `site 3`, to have a column for each",
            ", ".join(groups),
        )


def _looks_like_ids(values: pd.Series, subject: pd.Series) -> bool:
    """Whether whole numbers, (M,), differ in every row, or between all subjects, each of whom has but one."""
    if len(values) < LEAST_IDS:
        return False
    by_subject = values.groupby(subject.loc[values.index])
    lowest, highest = by_subject.min(), by_subject.max()
    return values.is_unique or (len(lowest) >= LEAST_IDS and lowest.is_unique and lowest.equals(highest))
