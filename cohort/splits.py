"""TODO: cohort.splits."""

import numpy as np
import pandas as pd

from runs.errors import InputError, raise_if_any


def split_folds(
    table: pd.DataFrame, num_folds: int, *, val_train_ratio: float, seed: int
) -> list[dict[str, pd.DataFrame]]:
    """The parts of each fold: whole subjects, stratified by event; everyone is in the test part once.

    Args:
        table: cohort table in memory's columns.
        num_folds: of the subjects.
        val_train_ratio: share of the subjects of the other folds in the validation part.
        seed: of the folds.
    Returns:
        `{"train", "val", "test"}` of each fold.
    Raises:
        InputError: a part would have no event.
    """
    event = table.groupby("subject", sort=True)["event"].first()
    if event.sum() < num_folds:
        raise InputError(f"FOLDS: expected at most {event.sum()}, the subjects with an event. Received: {num_folds}")
    rng = np.random.default_rng(seed)
    fold_of = assign_folds(event.to_numpy(bool), num_folds, rng)
    split = []
    for fold in range(num_folds):
        part_of = pd.Series("train", event.index).mask(fold_of == fold, "test")
        for state in (True, False):
            others = rng.permutation(event.index[(fold_of != fold) & (event == state)].to_numpy(dtype=object))
            part_of[others[: round(val_train_ratio * len(others))]] = "val"
        part = table["subject"].map(part_of)
        split.append(check_parts({name: table[part == name].reset_index(drop=True) for name in PARTS}))
    return split


PARTS = ("train", "val", "test")


def split_subjects(
    table: pd.DataFrame, *, test_ratio: float, val_train_ratio: float, seed: int
) -> dict[str, pd.DataFrame]:
    """Split the subjects, never their scans, stratified by event.

    Args:
        table: cohort table in memory's columns.
        test_ratio: share of the subjects in the test part.
        val_train_ratio: share of the others in the validation part.
        seed: of the split.
    Returns:
        `{"train", "val", "test"}`, each a table.
    Raises:
        InputError: a part would have no event.
    """
    rng = np.random.default_rng(seed)
    events = table.groupby("subject", sort=True)["event"].first()
    part_of: dict[str, str] = {}
    for event in (True, False):
        subjects = rng.permutation(events.index[events == event].to_numpy(dtype=object))
        num_test = round(test_ratio * len(subjects))
        num_val = round(val_train_ratio * (len(subjects) - num_test))
        names = ["test"] * num_test + ["val"] * num_val + ["train"] * (len(subjects) - num_test - num_val)
        part_of |= dict(zip(subjects, names, strict=True))
    return check_parts({part: table[table["subject"].map(part_of) == part].reset_index(drop=True) for part in PARTS})


def check_parts(parts: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Refuse a subject or an image in two parts, and a part with no event.

    Raises:
        InputError: names each.
    """
    table = pd.concat([part.assign(part=name) for name, part in parts.items()])
    problems = [
        f"{what} {name!r} is in {' and '.join(sorted(set(found), key=PARTS.index))}"
        for what in ("subject", "scan")
        if what in table
        for name, found in table.groupby(what)["part"].unique().items()
        if len(found) > 1
    ]
    problems += [f"the {name} part has no event" for name, part in parts.items() if not part["event"].any()]
    raise_if_any(
        "The split can't be used",
        problems,
        "Give every part whole subjects, some of them with an event.",
    )
    return parts


def assign_folds(event: np.ndarray, num_folds: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) number of each subject's fold; events and others are dealt out evenly."""
    fold = np.empty(len(event), int)
    for state in (True, False):
        members = rng.permutation(np.flatnonzero(event == state))
        fold[members] = np.arange(len(members)) % num_folds
    return fold
