"""Cross-fitted features: stage 2 learns from features like those it will meet.

A network's features of its own training subjects are more extreme than those of new subjects. So further networks are
trained, each without one fold of the training subjects. A subject's features come from the network that never saw it,
brought into the main network's space by what both say of the validation scans.
"""

import logging
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
    """The training part's feature table, each row by a network that never saw its subject.

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
    fold_of = deal_folds(features["train"], num_folds, seed)
    found = []
    for fold in range(num_folds):
        held = fold_of == fold
        logger.info("cross-fit %d of %d: a network without %d of the training scans", fold + 1, num_folds, held.sum())
        theirs = _kept(folder / str(fold + 1), partial(learn, ~held))
        agreement = theirs["val"]["log_hazard"].corr(features["val"]["log_hazard"], method="spearman")
        logger.info("its log-hazards agree with the main network's on validation: Spearman %.2f", agreement)
        found.append(align(theirs["train"][held], theirs["val"], features["val"]))
    return pd.concat(found).sort_index()


def deal_folds(table: pd.DataFrame, num_folds: int, seed: int) -> np.ndarray:
    """(N,) the fold of each scan: whole subjects, the events dealt out evenly.

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


def align(table: pd.DataFrame, theirs: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Bring one network's outputs into another's space: what the other would say of the scans, as far as they tell.

    Ridge regression of the other's outputs on the one's, its penalty by leave-one-out. What the networks do not share
    is shrunk, so that a coefficient learnt from the result holds for the other's outputs (regression calibration).

    Args:
        table: one network's outputs, `log_hazard` and `feature_<n>`, for any scans.
        theirs: its outputs for the scans that both know.
        ours: the other's, of the same scans in the same order.
    Returns:
        `table` with its outputs replaced.
    Source: Carroll et al. (2006), Measurement Error in Nonlinear Models, ch. 4.
    """
    names = ["log_hazard", *(str(name) for name in ours if str(name).startswith("feature_"))]
    ridge = RidgeCV(PENALTIES).fit(theirs[names].to_numpy(float), ours[names].to_numpy(float))
    aligned = table.copy()
    aligned[names] = ridge.predict(table[names].to_numpy(float)).astype(np.float32)
    return aligned


def _kept(folder: Path, learn: Callable[[Path], Features]) -> Features:
    """What a further network gives, from its folder if it is finished there."""
    path = folder / "features.parquet"
    if path.exists():
        logger.info("finished already")
    else:
        features = learn(folder)
        with written_whole(path) as part:
            pd.concat([features[name].assign(part=name) for name in LEARNED]).to_parquet(part, index=False)
    table = pd.read_parquet(path)
    parts = {name: table[table["part"] == name] for name in LEARNED}
    return {name: part.drop(columns="part").reset_index(drop=True) for name, part in parts.items()}
