"""Stage 1: the training loop, resume, and the features of every scan.

The loop is our own, since Keras' `fit` takes the loss of the volumes in memory: here the loss is over RISK_SET whole
subjects, however few volumes fit (gradient caching: Gao et al. 2021, arXiv 2101.06983). Keras' callbacks are driven
through `CallbackList`.
"""

import json
import logging
import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from augment import Augmentation, augment
from callbacks import BestWeights, History, Progress, ValidationConcordance
from data import make_dataset
from files import InputError, written_whole
from loss import cox_loss, ranking_loss, visit_order_loss
from model import feature_model
from tables import time_left

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How stage 1 is trained; config.py says what each means."""

    loss: Literal["cox", "rank"] = "cox"
    ties: Literal["efron", "breslow"] = "efron"
    visit_order_weight: float = 4.0
    batch_size: int = 24
    risk_set: int = 8
    learning_rate: float = 1.5e-3
    lr_schedule: Literal["cosine", "plateau"] = "cosine"
    warmup_epochs: float = 0.5
    clip_norm: float = 1.0
    ema: float = 0.0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    epochs: int = 8
    patience: int = 8
    augment_shift: float = 0.5
    augment_rotate: float = 0.0
    augment_scale: float = 0.0
    augment_flip: bool = False
    augment_bias: float = 0.0
    augment_gain: float = 0.1
    augment_noise: float = 0.0
    seed: int = 0

    @property
    def augmentation(self) -> Augmentation:
        """How training volumes are changed."""
        return Augmentation(**{field.name: getattr(self, f"augment_{field.name}") for field in fields(Augmentation)})


@dataclass(frozen=True)
class Part:
    """The scans of one part of the cohort, a row a scan."""

    entries: list[Path]  # their preprocessed volumes
    scan: np.ndarray  # (N,) ids
    subject: np.ndarray  # (N,) int32
    visit_time: np.ndarray  # (N,) float32 years
    time: np.ndarray  # (N,) float32 years left
    event: np.ndarray  # (N,) bool
    last: np.ndarray  # (N,) bool: the last scan of its subject

    @classmethod
    def of(cls, table: pd.DataFrame, entries: list[Path]) -> "Part":
        """From a table, sorted by subject and visit, and its rows' cache entries."""
        subject = pd.factorize(table["subject"])[0].astype(np.int32)
        last = np.append(subject[1:] != subject[:-1], True)
        return cls(
            entries,
            table["scan"].to_numpy(),
            subject,
            table["visit_time"].to_numpy(np.float32),
            time_left(table).astype(np.float32),
            table["event"].to_numpy(bool),
            last,
        )


def train(model: keras.Model, parts: dict[str, Part], options: Options, folder: Path) -> None:
    """Train on the training part, choose the epoch on the validation part, and leave its weights in the model.

    Args:
        model: of `build_model`; its weights change.
        parts: `train` and `val`.
        options: of the training.
        folder: gets `best.weights.h5`, `history.csv` and, until the end, `backup/`.
    Raises:
        InputError: a part or RISK_SET has too few events to learn or to choose from, the loss is not finite (names the
            scans), or the backup belongs to other options.
        OSError: the folder can't be written.
    """
    _check(parts, options)
    trainer = Trainer(model, options)
    model.compile(optimizer=trainer.optimizer)  # for Keras' callbacks
    best, history = folder / "best.weights.h5", History(folder / "history.csv")
    chosen = BestWeights(best, trainer.save_averaged)
    validation = ValidationConcordance(
        lambda: trainer.predict_averaged(parts["val"]),
        lambda risk: trainer.loss(risk, parts["val"]),
        last=parts["val"].last,
        time=parts["val"].time,
        event=parts["val"].event,
    )
    watched = {"monitor": "val_c_index", "mode": "max"}
    stopping = [keras.callbacks.EarlyStopping(patience=options.patience, **watched)]
    if options.lr_schedule == "plateau":
        stopping.append(
            keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=max(1, options.patience // 2), **watched)
        )
    steps = math.ceil(parts["train"].last.sum() / options.risk_set)
    callbacks = keras.callbacks.CallbackList(
        [validation, history, chosen, Progress(options.epochs), *stopping], model=model, steps=steps
    )
    callbacks.on_train_begin()
    first = _resume(trainer, folder / "backup", [history, chosen, *stopping], chosen)
    for epoch in range(first, options.epochs):
        if model.stop_training:
            logger.info("no better validation C-index for %d epochs: stopped", options.patience)
            break
        began = time.monotonic()
        callbacks.on_epoch_begin(epoch)
        logs = trainer.run_epoch(parts["train"], epoch, steps, callbacks)
        callbacks.on_epoch_end(epoch, logs | {"seconds": round(time.monotonic() - began, 1)})
        trainer.save(folder / "backup" / "state.npz", history.rows)
    callbacks.on_train_end()
    model.load_weights(best)


class Trainer:
    """A model, its optimiser and the compiled steps; the loss sees RISK_SET subjects, memory BATCH_SIZE volumes."""

    def __init__(self, model: keras.Model, options: Options):
        self.model, self.options = model, options
        self.optimizer = keras.optimizers.Adam(options.learning_rate)
        self.scaled = options.precision == "mixed_float16"
        if self.scaled:  # else small gradients would vanish on their way through float16
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(model.trainable_variables)
        weights = [variable.value for variable in model.trainable_variables]
        self.gradients = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in weights]
        self.averages = [tf.Variable(weight, trainable=False) for weight in weights] if options.ema else []
        volumes = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
        seeds, risks = tf.TensorSpec((None, 2), tf.int32), tf.TensorSpec((None,), model.output.dtype)
        years = tf.TensorSpec((None,), tf.float32)
        outcome = (tf.TensorSpec((None,), tf.int32), years, years, tf.TensorSpec((None,), tf.bool))
        self.forward = tf.function(self._forward, input_signature=(volumes, seeds))
        self.backward = tf.function(self._backward, input_signature=(volumes, seeds, risks))
        self.whole = tf.function(self._whole, input_signature=(volumes, seeds, *outcome))
        self.slope = tf.function(self._slope, input_signature=(risks, *outcome))
        self.apply = tf.function(self._apply, input_signature=())
        self.predict = make_predict(model)

    def run_epoch(
        self, part: Part, epoch: int, steps: int, callbacks: keras.callbacks.CallbackList
    ) -> dict[str, float]:
        """One pass over the training subjects; returns the mean loss and the last learning rate."""
        options = self.options
        risk_sets = draw_risk_sets(part, options.risk_set, np.random.default_rng([options.seed, epoch]))
        micro = [np.array_split(rows, math.ceil(len(rows) / options.batch_size)) for rows in risk_sets]
        batches = [rows for split in micro for rows in (split if len(split) == 1 else split * 2)]  # two passes
        volumes = iter(make_dataset(part.entries, self.model.input_shape[1:4], batches))
        applied, losses = int(self.optimizer.iterations), []
        for step, (rows, split) in enumerate(zip(risk_sets, micro, strict=True)):
            callbacks.on_train_batch_begin(step)
            self._set_rate(epoch * steps + step, steps)
            losses.append(float(self._step(rows, split, part, volumes, epoch)))
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"epoch {epoch + 1}, step {step + 1}: the loss is {losses[-1]} on the scans "
                    f"{', '.join(part.scan[rows])}. Lower LEARNING_RATE, or look at these scans; "
                    "the best weights so far are kept."
                )
            callbacks.on_train_batch_end(step, {"loss": losses[-1]})
        logs = {"loss": float(np.mean(losses)), "learning_rate": float(self.optimizer.learning_rate)}
        if self.scaled:  # a gradient beyond float16 is not applied, and the next ones are scaled less
            logs["skipped_steps"] = steps - (int(self.optimizer.iterations) - applied)
        return logs

    def loss(self, log_hazard: np.ndarray, part: Part) -> float:
        """The training's loss of given risks (N,) of all scans of a part."""
        return float(self._loss(tf.constant(log_hazard, tf.float32), *_outcome(part, slice(None))))

    def predict_averaged(self, part: Part) -> np.ndarray:
        """(N,) log-hazards of a part's scans by the averaged weights, if there are any."""
        self._swap()
        log_hazard = self.predict(part.entries, self.options.batch_size)[-1]
        self._swap()
        return log_hazard

    def save_averaged(self, path: Path) -> None:
        """Write the weights that validation saw."""
        self._swap()
        self.model.save_weights(path)
        self._swap()

    def save(self, path: Path, rows: list[dict[str, float]]) -> None:
        """Write everything that the next epoch depends on."""
        values = {f"v{i}": variable.numpy() for i, variable in enumerate(self._variables())}
        with written_whole(path) as part:
            np.savez(part, record=json.dumps({"options": asdict(self.options), "rows": rows}), **values)

    def load(self, path: Path) -> list[dict[str, float]]:
        """Take over what `save` wrote; returns the rows of the epochs that are done.

        Raises:
            InputError: the file is damaged, or of other options.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as state:
                record = json.loads(str(state["record"]))
                values = [state[f"v{i}"] for i in range(len(state.files) - 1)]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: can't be read: {error}. Delete it to begin stage 1 anew.") from error
        variables = self._variables()
        shapes = [tuple(variable.shape) for variable in variables]
        if record["options"] != asdict(self.options) or shapes != [value.shape for value in values]:
            raise InputError(f"{path}: is of other settings. Delete it to begin stage 1 anew.")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return record["rows"]

    def _variables(self) -> list:
        return [*self.model.variables, *self.optimizer.variables, *self.averages]

    def _step(self, rows: np.ndarray, split: list[np.ndarray], part: Part, volumes, epoch: int) -> tf.Tensor:
        """One optimiser step; the gradient is that of the whole risk set."""
        seeds = [self._seeds(micro, epoch) for micro in split]
        if len(split) == 1:
            loss = self.whole(next(volumes), seeds[0], *_outcome(part, rows))
        else:
            state = [tf.identity(variable.value) for variable in self.model.non_trainable_variables]
            risks = [self.forward(next(volumes), seed) for seed in seeds]
            loss, slope = self.slope(tf.concat(risks, 0), *_outcome(part, rows))
            for variable, value in zip(self.model.non_trainable_variables, state, strict=True):
                variable.assign(value)  # so that the second pass drops and normalises as the first did
            for seed, slopes in zip(seeds, tf.split(slope, [len(micro) for micro in split]), strict=True):
                self.backward(next(volumes), seed, slopes)
        self.apply()
        return loss

    def _seeds(self, rows: np.ndarray, epoch: int) -> tf.Tensor:
        first = np.full(len(rows), (self.options.seed * 1_000_003 + epoch) % 2**31)
        return tf.constant(np.stack([first, rows], axis=1), tf.int32)

    def _set_rate(self, step: int, steps: int) -> None:
        """The learning rate of this step: warm-up, then the cosine, or what the plateau's callback left."""
        options = self.options
        warm = options.warmup_epochs * steps
        if step < warm:
            self.optimizer.learning_rate = options.learning_rate * (step + 1) / (warm + 1)
        elif options.lr_schedule == "cosine":
            done = (step - warm) / max(1.0, options.epochs * steps - warm)
            self.optimizer.learning_rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        elif step < warm + 1:
            self.optimizer.learning_rate = options.learning_rate

    def _forward(self, volumes, seeds):
        return self.model(augment(volumes, seeds, self.options.augmentation), training=True)[:, 0]

    def _backward(self, volumes, seeds, slopes):
        with tf.GradientTape() as tape:
            log_hazard = self._forward(volumes, seeds)
        cotangent = slopes * tf.cast(self._scale(), slopes.dtype)
        self._accumulate(tape.gradient(log_hazard, self._weights(), output_gradients=cotangent))

    def _whole(self, volumes, seeds, *outcome):
        with tf.GradientTape() as tape:
            loss = self._loss(self._forward(volumes, seeds), *outcome)
            scaled = loss * tf.cast(self._scale(), loss.dtype)
        self._accumulate(tape.gradient(scaled, self._weights()))
        return loss

    def _slope(self, log_hazard, *outcome):
        with tf.GradientTape() as tape:
            tape.watch(log_hazard)
            loss = self._loss(log_hazard, *outcome)
        return loss, tf.convert_to_tensor(tape.gradient(loss, log_hazard))

    def _loss(self, log_hazard, subject, visit_time, time, event):
        options = self.options
        if options.loss == "cox":
            loss = cox_loss(log_hazard, time, event, ties=options.ties)
        else:
            loss = ranking_loss(log_hazard, time, event)
        if options.visit_order_weight > 0:
            loss += options.visit_order_weight * visit_order_loss(log_hazard, subject, visit_time)
        return loss

    def _apply(self):
        limit = self.options.clip_norm * self._scale()  # what accumulated is scaled; the optimiser divides
        gradients, _ = tf.clip_by_global_norm([tf.identity(total) for total in self.gradients], limit)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        for total in self.gradients:
            total.assign(tf.zeros_like(total))
        for average, weight in zip(self.averages, self._weights(), strict=bool(self.averages)):
            average.assign(self.options.ema * average + (1 - self.options.ema) * weight)

    def _scale(self) -> tf.Tensor:
        """What gradients are multiplied by on their way through the network: 1 but in float16."""
        return tf.convert_to_tensor(self.optimizer.dynamic_scale) if self.scaled else tf.constant(1.0)

    def _accumulate(self, gradients) -> None:
        for total, gradient in zip(self.gradients, gradients, strict=True):
            total.assign_add(gradient)

    def _weights(self) -> list[tf.Variable]:
        return [variable.value for variable in self.model.trainable_variables]

    def _swap(self) -> None:
        """Exchange the weights and their averages."""
        for average, weight in zip(self.averages, self._weights(), strict=bool(self.averages)):
            kept = tf.identity(weight)
            weight.assign(average)
            average.assign(kept)


def draw_risk_sets(part: Part, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of each loss evaluation of an epoch: whole subjects, each once, the events spread evenly.

    Args:
        part: the training part.
        size: subjects per evaluation; the last one takes what is left, so it may be smaller.
        rng: of the order.
    Returns:
        Arrays of rows; together every row once.
    """
    event = part.event[part.last]  # (S,) of the subjects, in the order of their numbers
    place = np.empty(len(event))
    for kind in (True, False):
        members = rng.permutation(np.flatnonzero(event == kind))
        place[members] = (np.arange(len(members)) + rng.random()) / max(1, len(members))
    order = np.argsort(place)
    rows_of = np.split(np.arange(len(part.subject)), np.flatnonzero(np.diff(part.subject)) + 1)
    sets = [order[i : i + size] for i in range(0, len(order), size)]
    return [np.concatenate([rows_of[subject] for subject in subjects]) for subjects in sets]


def make_predict(model: keras.Model) -> Callable[[list[Path], int], tuple[np.ndarray, np.ndarray]]:
    """A function of cached scans and a batch size: features (N, F) and log-hazards (N,), compiled once."""
    shape = model.input_shape[1:4]
    both = tf.function(feature_model(model), input_signature=(tf.TensorSpec((None, *shape, 1), tf.float32),))

    def predict(entries: list[Path], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        batches = np.split(np.arange(len(entries)), range(batch_size, len(entries), batch_size))
        outputs = [both(volumes) for volumes in make_dataset(entries, shape, batches)]
        features, log_hazard = (
            np.concatenate([part.numpy() for part in parts]) for parts in zip(*outputs, strict=True)
        )
        return features, log_hazard[:, 0]

    return predict


def extract_features(model: keras.Model, table: pd.DataFrame, entries: list[Path], *, batch_size: int) -> pd.DataFrame:
    """The feature table of a part: its columns, `log_hazard`, and `feature_1` ... `feature_512` at width 64."""
    features, log_hazard = make_predict(model)(entries, batch_size)
    names = [f"feature_{number}" for number in range(1, features.shape[1] + 1)]
    named = pd.DataFrame(features, columns=names, index=table.index)
    return pd.concat([table, pd.Series(log_hazard, table.index, name="log_hazard"), named], axis=1)


def _outcome(part: Part, rows) -> tuple[tf.Tensor, ...]:
    return tuple(tf.constant(values[rows]) for values in (part.subject, part.visit_time, part.time, part.event))


def _check(parts: dict[str, Part], options: Options) -> None:
    """Refuse what would train on nothing, or choose the best epoch by nothing."""
    problems = []
    for name, words in (("train", "training"), ("val", "validation")):
        time, event, last = parts[name].time, parts[name].event, parts[name].last
        if not event.any() or time[event].min() >= time.max():
            problems.append(
                f"the {words} part: expected a subject with an event before another's time, received "
                f"{event[last].sum()} events of {last.sum()} subjects. Change the split, or SEED"
            )
    event = parts["train"].event[parts["train"].last]
    if 0 < event.sum() < math.ceil(len(event) / options.risk_set):
        problems.append(
            f"RISK_SET: expected {math.ceil(len(event) / event.sum())} or more subjects, so that each loss has an "
            f"event ({event.sum()} of {len(event)} training subjects have one), received {options.risk_set}"
        )
    if problems:
        raise InputError("Stage 1 can't learn from this. " + "; ".join(problems) + ".")


def _resume(trainer: Trainer, backup: Path, callbacks: list[keras.callbacks.Callback], chosen: BestWeights) -> int:
    """Go on from a killed run, if there is one: its variables, and its epochs replayed to the callbacks."""
    state = backup / "state.npz"
    if not state.exists():
        return 0
    rows = trainer.load(state)
    rate = float(trainer.optimizer.learning_rate)
    chosen.replaying = True
    for epoch, row in enumerate(rows):
        logs = {name: value for name, value in row.items() if name != "epoch"}
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
    chosen.replaying = False
    trainer.optimizer.learning_rate = rate
    logger.info("stage 1 goes on after epoch %d", len(rows))
    return len(rows)
