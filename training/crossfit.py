"""Cross-fitted features: stage 2 learns from features like those it will meet.

A network's features of its own training subjects are more extreme than those of new subjects. So further networks are
trained, each without one fold of the training subjects. A subject's features come from the network that never saw it,
brought into the main network's space by what both say of the validation scans.
"""

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV

from cohort.splits import assign_folds
from runs.errors import InputError
from runs.files import written_whole

LEARNED = ("train", "val")  # parts whose features a further network gives
PENALTIES = np.logspace(-3, 4, 15)  # of the map between two networks

logger = logging.getLogger(__name__)

Features = Mapping[str, pd.DataFrame]  # feature tables by part, a row a scan
Learn = Callable[[np.ndarray, Path], Features]  # trained on these rows of the training part, kept in that folder


def cross_fit(features: Features, learn: Learn, *, num_folds: int, seed: int, folder: Path) -> pd.DataFrame:
    """Make the training part's feature table, each row by a network that never saw its subject.

    Args:
        features: the main network's, of `train` and `val`.
        learn: trains a network on the rows (N,) bool of the training part that it is given, and returns its features
            of `train` and `val`, in the rows' order.
        num_folds: of the training subjects; so many networks are trained.
        seed: of the folds.
        folder: gets a folder for each network; one that is finished there is not trained again.
    Returns:
        The main network's table with `log_hazard` and `feature_<n>` replaced.
    Raises:
        InputError: fewer training subjects with an event than folds.
    """
    fold_of = folds_of_scans(features["train"], num_folds, seed)
    held_out_rows = []
    for fold in range(num_folds):
        held_out = fold_of == fold
        number = held_out.sum()
        logger.info("cross-fit %d of %d: a network without %d of the training scans", fold + 1, num_folds, number)
        further = _learn_once(folder / str(fold + 1), partial(learn, ~held_out))
        agreement = further["val"]["log_hazard"].corr(features["val"]["log_hazard"], method="spearman")
        logger.info("its log-hazards agree with the main network's on validation: Spearman %.2f", agreement)
        held_out_rows.append(align(further["train"][held_out], further["val"], features["val"]))
    outputs = pd.concat(held_out_rows).sort_index()
    return features["train"].assign(**{str(name): outputs[name] for name in outputs})


def folds_of_scans(table: pd.DataFrame, num_folds: int, seed: int) -> np.ndarray:
    """Assign the scans to folds: whole subjects, the events spread evenly.

    Args:
        table: of the training part, a row a scan.
        num_folds: of the subjects.
        seed: of the folds.
    Returns:
        (N,) number of each scan's fold, from 0.
    Raises:
        InputError: fewer subjects with an event than folds.
    """
    event = table.groupby("subject")["event"].first()  # (S,)
    if event.sum() < num_folds:
        raise InputError(
            f"CROSS_FIT: expected at most {event.sum()}, the training subjects with an event. Received: {num_folds}"
        )
    folds = assign_folds(event.to_numpy(bool), num_folds, np.random.default_rng([seed, num_folds]))
    return table["subject"].map(dict(zip(event.index, folds, strict=True))).to_numpy()


def align(table: pd.DataFrame, further: pd.DataFrame, main: pd.DataFrame) -> pd.DataFrame:
    """Bring a further network's outputs into the main network's space.

    The main network's outputs are predicted from the further network's by a ridge regression, its penalty chosen by
    leave-one-out. What the networks do not share is shrunk, so a coefficient that is learnt from the result holds for
    the main network's outputs (regression calibration).

    Args:
        table: the further network's outputs, `log_hazard` and `feature_<n>`, a row a scan, for any scans.
        further: its outputs for the scans that both networks have read.
        main: the main network's, of the same scans in the same order.
    Returns:
        `table` with its outputs replaced.
    Source: Carroll et al. (2006), Measurement Error in Nonlinear Models, ch. 4.
    """
    names = _outputs_of(main)
    ridge = RidgeCV(PENALTIES).fit(further[names].to_numpy(float), main[names].to_numpy(float))
    aligned = table.copy()
    aligned[names] = ridge.predict(table[names].to_numpy(float)).astype(np.float32)
    return aligned


def _outputs_of(table: pd.DataFrame) -> list[str]:
    """The columns of a feature table that the network gave; covariates may be called `feature_size`."""
    return ["log_hazard", *(str(name) for name in table if re.fullmatch(r"feature_\d+", str(name)))]


def _learn_once(folder: Path, learn: Callable[[Path], Features]) -> Features:
    """The outputs of a further network; from its folder, if it is finished there."""
    path = folder / "features.parquet"
    if path.exists():
        logger.info("finished already")
    else:
        features = learn(folder)
        with written_whole(path) as part:
            outputs = {name: features[name][_outputs_of(features[name])] for name in LEARNED}
            pd.concat([table.assign(part=name) for name, table in outputs.items()]).to_parquet(part, index=False)
    table = pd.read_parquet(path)
    parts = {name: table[table["part"] == name] for name in LEARNED}
    return {name: part[_outputs_of(part)].reset_index(drop=True) for name, part in parts.items()}
