"""The training loop of stage 1: epochs of steps, the epoch whose weights are kept, and resume.

The loop is our own, since Keras' `fit` takes the loss of the volumes in memory, not of a risk set; computes it on each
device apart; and resumes between epochs only. Keras' callbacks are driven through `CallbackList`.
"""

import json
import logging
import math
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks import History, KeptWeights, LearningRate, Progress, ValidationConcordance
from loss import Outcome
from runs.errors import InputError
from runs.signals import finishing_step, stop_requested
from runs.stages import AS_BEFORE
from training.checkpoint import Checkpoint, Position
from training.devices import Workers
from training.features import make_predict
from training.risk_sets import Scans, draw_risk_sets
from training.steps import Options, Steps
from training.weights import load_weights, save_weights

BEST_WEIGHTS = "best.weights.h5"  # in a training's folder, of the epoch that is kept

logger = logging.getLogger(__name__)


def train(
    model: keras.Model,
    parts: dict[str, Scans],
    options: Options,
    folder: Path,
    *,
    save_seconds: float,
    workers: Workers | None = None,
) -> None:
    """Train on the training part, watched on the validation part, and leave the kept epoch's weights in the model.

    Args:
        model: of `build_model`, made in the scope of the workers' strategy; its weights change.
        parts: `train` and `val`.
        options: of the training.
        folder: gets `best.weights.h5`, `history.csv` and `backup/`, from the first worker alone.
        save_seconds: between two saved states; a killed training goes on from the last one, to the same result.
        workers: the processes that train; None: this one, on one device.
    Raises:
        InputError: a part or RISK_SET has too few events to learn or to choose from, the loss is not finite (names the
            scans), or the backup belongs to other options.
        OSError: the folder can't be written, or another worker has stopped.
        KeyboardInterrupt: a signal has asked to stop; the state of the last step is saved.
    """
    workers = workers or Workers()
    _check(parts, options, workers.num_devices)
    training = Training(model, parts, options, folder, workers, save_seconds)
    with workers.report_lost_worker(), finishing_step(), closing(training.progress):
        training.run()
    if workers.is_first:
        load_weights(model, folder / BEST_WEIGHTS)
        last_kept = [row for row in training.history.rows if row["kept"]][-1]
        logger.info("stage 1: epoch %d is kept, validation C-index %.3f", last_kept["epoch"], last_kept["val_c_index"])


class Training:
    """A training in progress, epoch by epoch; the arguments are those of `train`."""

    def __init__(
        self,
        model: keras.Model,
        parts: dict[str, Scans],
        options: Options,
        folder: Path,
        workers: Workers,
        save_seconds: float,
    ):
        self.model, self.parts, self.options, self.folder, self.workers = model, parts, options, folder, workers
        self.save_seconds, self.last_save = save_seconds, time.monotonic()
        self.steps = Steps(model, options, parts["train"].outcome, workers)
        self.predict = make_predict(model, workers)
        self.checkpoint = Checkpoint(
            folder / "backup" / "state.npz",
            self.steps.variables(),
            {"options": _compared(options), "devices": workers.num_devices},
        )
        self.position = Position()
        self.num_steps = len(self._risk_sets(0))  # of an epoch
        model.compile(optimizer=self.steps.optimizer)  # for Keras' callbacks
        self._set_callbacks()

    def run(self) -> None:
        """Do every epoch that is not done yet."""
        self.callbacks.on_train_begin()
        self._resume()
        for epoch in range(len(self.position.rows), self.options.epochs):
            if self.model.stop_training:
                logger.info("no better validation C-index for %d epochs: stopped", self.options.patience)
                break
            self.progress.done = len(self.position.losses)
            self.callbacks.on_epoch_begin(epoch)
            logs = self.run_epoch(epoch)
            self.callbacks.on_epoch_end(epoch, logs)
            self.position = Position(self.history.rows, applied=self.steps.num_applied())
            self.save()
        self.callbacks.on_train_end()

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Do the steps of an epoch that are not done yet.

        Args:
            epoch: from 0.
        Returns:
            The mean loss, the last learning rate, and the seconds that the epoch took.
        Raises:
            InputError: the loss is not finite; names the scans.
        """
        position, scans, steps = self.position, self.parts["train"], self.steps
        risk_sets = self._risk_sets(epoch)[len(position.losses) :]
        in_order = [rows for risk_set in risk_sets for rows in steps.reading_order(steps.micro_batches(risk_set))]
        batches = self.workers.read_batches(scans.entries, self.model.input_shape[1:4], in_order)
        began = time.monotonic() - position.seconds
        for step, risk_set in enumerate(risk_sets, start=len(position.losses)):
            self.callbacks.on_train_batch_begin(step)
            loss = steps.step(risk_set, batches, epoch)
            if not math.isfinite(loss):
                raise InputError(
                    f"epoch {epoch + 1}, step {step + 1}: the loss is {loss} on the scans "
                    f"{', '.join(scans.scan[risk_set])}. Lower LEARNING_RATE, or look at these scans; "
                    "the best weights so far are kept."
                )
            position.losses.append(loss)
            position.seconds = time.monotonic() - began
            self.callbacks.on_train_batch_end(step, {"loss": loss})
            self._save_if_due()
        logs = {"loss": float(np.mean(position.losses)), "learning_rate": float(steps.optimizer.learning_rate.numpy())}
        if steps.scaled:  # a gradient beyond float16 is not applied, and the next ones are scaled less
            logs["skipped_steps"] = self.num_steps - (steps.num_applied() - position.applied)
        return logs | {"seconds": round(position.seconds, 1)}

    def predict_averaged(self, scans: Scans) -> np.ndarray:
        """(N,) log-hazards of scans by the averaged weights, if there are any.

        Raises:
            InputError: one of them is not finite; names the scans.
        """
        with self.steps.ema.swap_in_ema():
            log_hazard = self.predict(scans.entries, self.options.batch_size)[-1]
        if not np.isfinite(log_hazard).all():
            raise InputError(
                f"validation: the log-hazards of {', '.join(scans.scan[~np.isfinite(log_hazard)])} are not finite. "
                "Lower LEARNING_RATE, or look at these scans; the best weights so far are kept."
            )
        return log_hazard

    def save_averaged(self, path: Path) -> None:
        """Write the weights that validation saw."""
        with self.steps.ema.swap_in_ema():
            save_weights(self.model, path)

    def save(self) -> None:
        """Write everything that the next step depends on; the first worker alone."""
        self.last_save = time.monotonic()
        if self.workers.is_first:
            self.checkpoint.save(self.position)

    def _set_callbacks(self) -> None:
        """Make Keras' callbacks; only the first worker's write and show something."""
        scans, options = self.parts["val"], self.options
        outcome = Outcome(*map(tf.constant, scans.outcome))
        validation = ValidationConcordance(
            lambda: self.predict_averaged(scans),
            lambda log_hazard: float(self.steps.loss(tf.constant(log_hazard, tf.float32), outcome)),
            last=scans.last,
            time=scans.outcome.time,
            event=scans.outcome.event,
            agree=lambda logs: json.loads(self.workers.broadcast(json.dumps(logs).encode())),
        )
        rate = LearningRate(
            options.learning_rate, options.lr_schedule, warmup_epochs=options.warmup_epochs, epochs=options.epochs
        )
        monitored = {"monitor": "val_c_index", "mode": "max"}
        stopping = [keras.callbacks.EarlyStopping(patience=options.patience, **monitored)]
        if options.lr_schedule == "plateau":
            stopping.append(
                keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=max(1, options.patience // 2), **monitored)
            )
        self.progress = Progress(options.epochs, shown=self.workers.is_first)
        is_last_kept = options.keep_epoch == "last" and options.lr_schedule == "cosine"
        last = options.epochs - 1 if is_last_kept else None
        self.kept_weights = KeptWeights(self.folder / BEST_WEIGHTS, self.save_averaged, last=last)
        self.history = History(self.folder / "history.csv")
        self.replayed: list[keras.callbacks.Callback] = [*stopping]  # those that get a resumed run's old epochs again
        if self.workers.is_first:
            self.replayed += [self.kept_weights, self.history]
        self.callbacks = keras.callbacks.CallbackList(
            [rate, validation, *self.replayed, self.progress], model=self.model, steps=self.num_steps
        )

    def _resume(self) -> None:
        """Go on from a stopped run, if there is one: load its variables, and replay its epochs to the callbacks."""
        content = self.workers.broadcast(self.checkpoint.read_bytes() if self.workers.is_first else b"")
        if not content:
            return
        self.position = self.checkpoint.load(content)
        optimizer = self.steps.optimizer
        rate = float(optimizer.learning_rate.numpy())
        self.kept_weights.replaying = True
        for epoch, row in enumerate(self.position.rows):
            logs = {name: value for name, value in row.items() if name != "epoch"}
            for callback in self.replayed:
                callback.on_epoch_end(epoch, logs)
        self.kept_weights.replaying = False
        optimizer.learning_rate = rate
        logger.info("stage 1 goes on after epoch %d, step %d", len(self.position.rows), len(self.position.losses))

    def _save_if_due(self) -> None:
        """Save now and then, and where a signal asks any worker to stop; then stop."""
        stop = self.workers.any(stop_requested())
        if stop or time.monotonic() - self.last_save > self.save_seconds:
            self.save()
        if stop:
            raise KeyboardInterrupt

    def _risk_sets(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.options.seed, epoch])
        smallest = 2 * self.workers.num_devices
        return draw_risk_sets(self.parts["train"], self.options.risk_set, rng, smallest=smallest)


def _compared(options: Options) -> dict[str, Any]:
    """The options that a saved state must have; one of before there was an option has the value of AS_BEFORE."""
    return {name: value for name, value in asdict(options).items() if AS_BEFORE.get(name.upper()) != value}


def _check(parts: dict[str, Scans], options: Options, num_devices: int) -> None:
    """Refuse parts on which nothing can be learned, or no epoch be chosen.

    Raises:
        InputError: names each part and setting.
    """
    problems = []
    for name, title in (("train", "training"), ("val", "validation")):
        time, event, last = parts[name].outcome.time, parts[name].outcome.event, parts[name].last
        if not event.any() or time[event].min() >= time.max():
            problems.append(
                f"the {title} part: expected a subject with an event before another's time, received "
                f"{event[last].sum()} events of {last.sum()} subjects. Change the split, or SEED"
            )
    event = parts["train"].outcome.event[parts["train"].last]
    if 0 < event.sum() < math.ceil(len(event) / options.risk_set):
        problems.append(
            f"RISK_SET: expected {math.ceil(len(event) / event.sum())} or more subjects, so that each loss has an "
            f"event ({event.sum()} of {len(event)} training subjects have one), received {options.risk_set}"
        )
    if min(options.risk_set, len(event)) < 2 * num_devices:
        problems.append(
            f"RISK_SET: expected {2 * num_devices} or more subjects, so that each of {num_devices} devices has 2, "
            f"received {options.risk_set} of {len(event)}"
        )
    if problems:
        raise InputError("Stage 1 can't learn from this. " + "; ".join(problems) + ".")
