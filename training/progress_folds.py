"""The training of the network of progress: a network without each fold of the training subjects, and their mean.

The subjects of a fold get their progress from the network that was trained without them, since a network that has seen
a subject gives it a rate of about 1. All folds together choose the epoch that is kept. New scans get the mean of the
networks. What a scanner may change is computed from all training scans, as for the linear map. A fold's network is kept
in a file once it is trained, so that a stopped run trains only the others.

Shapes: N scans, E epochs, S subjects, (x, y, z) coarse voxels. Times are years, but within a `Lesson`.
"""

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras.optimizers.schedules import CosineDecay
from tqdm import tqdm

from cohort.splits import assign_folds
from loss import Outcome
from runs.errors import InputError
from runs.files import written_whole
from training.augment import Augmentation
from training.devices import Workers
from training.progress import CoarseGrid, read_coarse
from training.progress_network import CHANNELS, ProgressNetwork, build_network, predict, rate_loss
from training.steps import Options, Steps

FOLDS = 3
EPOCHS = 20
SUBJECTS = 8  # in a step, about
LEARNING_RATE = 3e-3  # of Adam, at its peak; then a cosine to 0
WARMUP = 0.025  # share of the steps
CLIP_NORM = 1.0
PURPOSE = 2**20  # beside the seed; more than any number of an epoch or fold, so these draws are those of nothing else

logger = logging.getLogger(__name__)


def fit_progress_network(
    train: pd.DataFrame, options: Options, folder: Path, *, workers: Workers | None = None, show: bool = False
) -> ProgressNetwork:
    """Learn the network from training subjects.

    Args:
        train: N scans as `fit_progress` takes them; their order does not matter.
        options: of stage 1; the seed and the volumes in memory at a time are the network's too.
        folder: gets a file of each fold, and a stopped training goes on from those that are there.
        workers: the devices that train; None: one.
        show: bars on stderr.
    Returns:
        The mean of the folds' networks.
    Raises:
        InputError: the file of a fold is damaged, or a network gives numbers that are not finite.
    """
    table = train.sort_values(["subject", "visit_time", "scan"], ignore_index=True)
    lesson = Lesson.of(table, seed=options.seed, show=show)
    steps = ProgressSteps(options, lesson, lesson.enough_for(workers or Workers()))
    folds, by_epoch = [], np.empty((EPOCHS, len(table)), np.float32)
    with tqdm(total=FOLDS * EPOCHS, desc="progress", unit="epoch", disable=not show) as bar:
        for fold in range(FOLDS):
            path = folder / f"progress_{fold + 1}.npz"
            if path.is_file():
                bar.update(EPOCHS)
            else:
                steps.fit(fold, bar).save(path)
            folds.append(Fold.load(path))
            by_epoch[:, lesson.fold_of == fold] = folds[-1].left_out
    epoch, error = _choose(by_epoch, lesson)
    model = _mean_network(lesson, [[values[epoch] for values in fold.weights] for fold in folds])
    years = lesson.unit * by_epoch[epoch].astype(float)
    left_out = dict(zip(table["scan"].astype(str), years.tolist(), strict=True))
    return ProgressNetwork(model, lesson.grid, lesson.nuisance.astype(np.float32), error, left_out)


def _choose(by_epoch: np.ndarray, lesson: "Lesson") -> tuple[int, float]:
    """The epoch whose progress (E, N) of left-out scans has the least loss, and its error of the years.

    Raises:
        InputError: a number is not finite.
    """
    if not np.isfinite(by_epoch).all():
        raise InputError("PROGRESS=network: the network gives numbers that are not finite. Set PROGRESS=linear.")
    subject, years, *_ = lesson.outcome
    epoch = int(np.argmin([rate_loss(tf.constant(values), subject, years) for values in by_epoch]))
    change = _since_mean_visit(pd.Series(by_epoch[epoch]), subject).to_numpy()
    error = float(np.sum((change - years) ** 2) / np.sum(years**2))
    logger.info(
        "progress: %d networks, epoch %d of %d; of a left-out subject's years between visits %.0f %% are explained",
        *(FOLDS, epoch + 1, EPOCHS, 100 * (1 - error)),
    )
    return epoch, error


# ---- What is learned ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Lesson:
    """What the networks of all folds learn from: scans sorted by subject and visit."""

    grid: CoarseGrid
    nuisance: np.ndarray  # (V, K)
    voxels: np.ndarray  # (N, x, y, z, 1) float32, without the nuisance fields; their standard deviation is 1
    size: float  # of the coarse voxels, in units of which `voxels` are
    outcome: Outcome  # subject and visit_time, (N,); the times are in units of `unit`, and nothing else is read
    unit: float  # years; the years since a subject's mean visit have the sum of squares 1 on average
    fold_of: np.ndarray  # (N,) 0 to FOLDS - 1; the scans of a subject are in one fold

    @classmethod
    def of(cls, table: pd.DataFrame, *, seed: int, show: bool) -> "Lesson":
        """Read the scans of a table, sorted by subject and visit; see `fit_progress_network`."""
        scans = read_coarse(table["cache_entry"].to_list(), show=show)
        grid, voxels, nuisance = scans.grid, scans.voxels, scans.take_off_nuisance()
        subject = pd.factorize(table["subject"])[0]
        years = _since_mean_visit(table["visit_time"], subject).to_numpy()
        teaches = np.bincount(subject) > 1  # (S,)
        unit = math.sqrt(np.sum(years**2) / teaches.sum())
        folds = assign_folds(teaches, FOLDS, np.random.default_rng([seed, PURPOSE]))
        size = float(voxels.std())
        nothing = np.zeros(len(table), np.float32)
        outcome = Outcome(subject.astype(np.int32), (years / unit).astype(np.float32), nothing, nothing > 0)
        volumes = (voxels / size).astype(np.float32).reshape(-1, *grid.shape, 1)
        return cls(grid, nuisance, volumes, size, outcome, unit, folds[subject])

    def teachers(self, fold: int) -> list[np.ndarray]:
        """The rows of each subject outside the fold that has two visits or more."""
        subject = self.outcome.subject
        rows_of = np.split(np.arange(len(subject)), np.flatnonzero(np.diff(subject)) + 1)
        return [rows for rows in rows_of if len(rows) > 1 and self.fold_of[rows[0]] != fold]

    def enough_for(self, workers: Workers) -> Workers:
        """These workers, or this process on one device where a step could leave one of theirs without a scan."""
        fewest = min(SUBJECTS // 2, *(len(self.teachers(fold)) for fold in range(FOLDS)))  # subjects in a step
        return workers if 2 * fewest >= workers.num_devices else Workers()


def _since_mean_visit(values: pd.Series, subject: np.ndarray) -> pd.Series:
    """(N,) less the mean of a subject's scans."""
    return values - values.groupby(subject).transform("mean")


# ---- One fold ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Fold:
    """A fold's network after each epoch."""

    weights: list[np.ndarray]  # (E, ...) of each variable
    left_out: np.ndarray  # (E, n) progress of the fold's own scans, in units of the lesson

    def save(self, path: Path) -> None:
        """Write it, whole."""
        with written_whole(path) as part:
            np.savez(part, *self.weights, left_out=self.left_out)

    @classmethod
    def load(cls, path: Path) -> "Fold":
        """Read what `save` wrote.

        Raises:
            InputError: the file is damaged.
        """
        try:
            saved = np.load(io.BytesIO(path.read_bytes()))
            return cls([saved[f"arr_{number}"] for number in range(len(saved.files) - 1)], saved["left_out"])
        except Exception as error:
            raise InputError(f"{path}: can't be read: {error}. Delete it to train this network anew.") from error


class ProgressSteps(Steps):
    """The steps of stage 1 with a network of progress and its loss, for one fold after the other.

    Args:
        options: of stage 1, whose seed and BATCH_SIZE count here too.
        lesson: what is learned.
        workers: the devices that train.
        dtype: of the network.
    """

    def __init__(self, options: Options, lesson: "Lesson", workers: Workers, *, dtype: str = "float32"):
        unchanged: dict[str, Any] = {f"augment_{field.name}": field.default for field in fields(Augmentation)}
        options = replace(options, clip_norm=CLIP_NORM, ema=0.0, precision="float32", recompute=False, **unchanged)
        with workers.strategy.scope():
            model = build_network(lesson.voxels.shape[1:4], dtype=dtype)
        super().__init__(model, options, lesson.outcome, workers)
        self.lesson = lesson

    def loss(self, log_hazard: tf.Tensor, outcome: Outcome) -> tf.Tensor:
        """`rate_loss` of the progress (N,) of scans."""
        return rate_loss(log_hazard, outcome.subject, tf.cast(outcome.visit_time, log_hazard.dtype))

    def fit(self, fold: int, bar: tqdm) -> "Fold":
        """Train a new network without the subjects of a fold; it does not depend on what was trained before.

        Args:
            fold: from 0.
            bar: is moved on by EPOCHS.
        """
        seed, teachers = [self.options.seed, PURPOSE, fold], self.lesson.teachers(fold)
        num_steps = max(1, round(len(teachers) / SUBJECTS))  # of an epoch
        warm = math.ceil(WARMUP * num_steps * EPOCHS)
        rate = CosineDecay(0.0, num_steps * EPOCHS - warm, warmup_target=LEARNING_RATE, warmup_steps=warm)
        self._begin(seed)
        own, epochs, left_out = self.lesson.voxels[self.lesson.fold_of == fold], [], []
        for epoch in range(EPOCHS):
            order = np.random.default_rng([*seed, epoch]).permutation(len(teachers))
            for chosen in np.array_split(order, num_steps):
                rows = np.concatenate([teachers[number] for number in chosen])
                self.optimizer.learning_rate = float(rate(self.num_applied() + 0.5))
                batches = self.reading_order(self.micro_batches(rows))
                self.step(rows, self.workers.hand_out(self.lesson.voxels, batches), epoch)
            epochs.append(self.model.get_weights())
            left_out.append(predict(self.model, own))
            bar.update()
        return Fold([np.stack(values) for values in zip(*epochs, strict=True)], np.stack(left_out))

    def _begin(self, seed: Sequence[int]) -> None:
        """Give the network new weights, and the optimiser its first state."""
        self.model.set_weights(build_network(self.lesson.voxels.shape[1:4], seed=seed).get_weights())
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros(variable.shape, variable.dtype))


def _mean_network(lesson: Lesson, folds: Sequence[Sequence[np.ndarray]]) -> keras.Model:
    """One network that gives the mean of those of the folds, in years, for coarse voxels as they are.

    Args:
        lesson: that they have learned.
        folds: their weights: kernel, bias, and those of the sum.
    """
    kernels, biases, sums = zip(*folds, strict=True)
    by_cell = [weights.reshape(-1, CHANNELS) for weights in sums]  # (cells, channels)
    model = build_network(lesson.grid.shape, channels=CHANNELS * len(folds))
    model.set_weights(
        [
            np.concatenate(kernels, axis=-1) / lesson.size,
            np.concatenate(biases),
            np.concatenate(by_cell, axis=1).reshape(-1, 1) * lesson.unit / len(folds),
        ]
    )
    return model
