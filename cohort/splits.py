"""Subjects, never their scans, are split into parts or folds, stratified by event."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from cohort.ids import similar_ids_fault
from runs.errors import InputError, raise_if_any

PARTS = ("train", "val", "test")


def split_subjects(
    table: pd.DataFrame, *, test_ratio: float, val_train_ratio: float, seed: int
) -> dict[str, pd.DataFrame]:
    """Split the subjects into training, validation and test parts, stratified by event.

    Args:
        table: cohort table in memory's columns, a row a scan.
        test_ratio: share of the subjects in the test part, 0 to 1.
        val_train_ratio: share of the other subjects in the validation part, 0 to 1.
        seed: of the split; the order of the rows does not matter.
    Returns:
        `{"train", "val", "test"}`, each a table with all scans of its subjects.
    Raises:
        InputError: a part would have no event.
    """
    rng = np.random.default_rng(seed)
    subject_event = _event_by_subject(table)
    part_of: dict[str, str] = {}
    for event in (True, False):
        subjects = rng.permutation(subject_event.index[subject_event == event].to_numpy(dtype=object))
        num_test = round(test_ratio * len(subjects))
        num_val = round(val_train_ratio * (len(subjects) - num_test))
        names = ["test"] * num_test + ["val"] * num_val + ["train"] * (len(subjects) - num_test - num_val)
        part_of |= dict(zip(subjects, names, strict=True))
    return _take_parts(table, part_of)


def split_folds(
    table: pd.DataFrame, num_folds: int, *, val_train_ratio: float, seed: int
) -> list[dict[str, pd.DataFrame]]:
    """Split the subjects into the three parts once for each fold; every subject is in the test part of one fold.

    Args:
        table: cohort table in memory's columns, a row a scan.
        num_folds: number of folds, at most the number of subjects with an event.
        val_train_ratio: share of the subjects of the other folds in the validation part, 0 to 1.
        seed: of the folds and of the validation parts.
    Returns:
        For each fold `{"train", "val", "test"}`, each a table with all scans of its subjects.
    Raises:
        InputError: there are fewer events than folds, or a part would have no event.
    """
    event = _event_by_subject(table)
    if event.sum() < num_folds:
        raise InputError(f"FOLDS: expected at most {event.sum()}, the subjects with an event. Received: {num_folds}")
    rng = np.random.default_rng(seed)
    fold_of = assign_folds(event.to_numpy(bool), num_folds, rng)
    folds = []
    for fold in range(num_folds):
        part_of = pd.Series("train", event.index).mask(fold_of == fold, "test")
        for state in (True, False):
            others = rng.permutation(event.index[(fold_of != fold) & (event == state)].to_numpy(dtype=object))
            part_of[others[: round(val_train_ratio * len(others))]] = "val"
        folds.append(_take_parts(table, part_of))
    return folds


def assign_folds(event: np.ndarray, num_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Assign each subject to a fold, so that every fold has about the same number of events.

    Args:
        event: (N,) bool; True = the subject's event was seen.
        num_folds: number of folds.
        rng: draws which subjects go together.
    Returns:
        (N,) int, the fold of each subject, 0 to `num_folds - 1`.
    """
    fold = np.empty(len(event), int)
    for state in (True, False):
        members = rng.permutation(np.flatnonzero(event == state))
        fold[members] = np.arange(len(members)) % num_folds
    return fold


def check_parts(
    parts: dict[str, pd.DataFrame],
    *,
    teachers: pd.DataFrame | None = None,
    similar_ids: Literal["refuse", "allow"] = "refuse",
) -> dict[str, pd.DataFrame]:
    """Refuse a subject or an image that is in two parts, and a part without an event.

    Args:
        parts: a table in memory's columns for each of PARTS, a row a scan.
        teachers: scans beside those of train, whose subjects have no outcome; they may be in no other part either.
        similar_ids: of two parts, that differ only in case, invisible signs or zeros around a number.
    Returns:
        The same parts.
    Raises:
        InputError: names every such subject, image and part.
    """
    rows = [*parts.items(), *([] if teachers is None else [("train", teachers)])]
    table = pd.concat([part.filter(["subject", "scan"]).assign(part=name) for name, part in rows])
    problems = [
        f"{column} {value!r} is in {' and '.join(sorted(set(its_parts), key=PARTS.index))}"
        for column in ("subject", "scan")
        if column in table
        for value, its_parts in table.groupby(column)["part"].unique().items()
        if len(its_parts) > 1
    ]
    for column in table.columns.intersection(["subject", "scan"]) if similar_ids == "refuse" else ():
        first = table.drop_duplicates(column)
        problems += similar_ids_fault(column, dict(zip(first[column], first["part"] + " part", strict=True)))
    problems += [f"the {name} part has no event" for name, part in parts.items() if not part["event"].any()]
    raise_if_any(
        "The split can't be used",
        problems,
        "Give every part whole subjects, some of them with an event.",
    )
    return parts


def _event_by_subject(table: pd.DataFrame) -> pd.Series:
    """(N,) bool by subject, sorted: whether the event was seen."""
    return table.groupby("subject", sort=True)["event"].first()


def _take_parts(table: pd.DataFrame, part_of: Mapping[str, str] | pd.Series) -> dict[str, pd.DataFrame]:
    """The rows of each part, given the part of each subject; checked."""
    part = table["subject"].map(part_of)
    parts = {name: table[part == name].reset_index(drop=True) for name in PARTS}
    return check_parts(parts, similar_ids="allow")  # the ids of one table were compared when it was read
