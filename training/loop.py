"""Stage 1: the training loop, resume, and the features of every scan.

The loop is our own, since Keras' `fit` takes the loss of the volumes in memory, not of a risk set; computes it on each
device apart; and goes on from epochs only. Keras' callbacks are driven through `CallbackList`.
"""

import io
import json
import logging
import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks import BestWeights, History, Progress, ValidationConcordance
from runs.errors import InputError
from runs.files import written_whole
from runs.processes import finishing, stop_requested
from training.devices import Workers
from training.features import make_predict
from training.risk_sets import Scans, draw_risk_sets
from training.steps import Options, Steps
from training.weights import load_weights, save_weights

logger = logging.getLogger(__name__)


def train(
    model: keras.Model,
    parts: dict[str, Scans],
    options: Options,
    folder: Path,
    *,
    workers: Workers | None = None,
    save_seconds: float = 60.0,
) -> None:
    """Train on the training part, choose the epoch on the validation part, and leave its weights in the model.

    Args:
        model: of `build_model`, made in the scope of the workers' strategy; its weights change.
        parts: `train` and `val`.
        options: of the training.
        folder: gets `best.weights.h5`, `history.csv` and `backup/`; of the first worker alone.
        workers: who trains; None: this process, on one device.
        save_seconds: between two saved states; a killed training goes on from the last one, to the same result.
    Raises:
        InputError: a part or RISK_SET has too few events to learn or to choose from, the loss is not finite (names the
            scans), or the backup belongs to other options.
        OSError: the folder can't be written, or another worker has stopped.
        KeyboardInterrupt: asked to stop; the state of the last step is saved.
    """
    workers = workers or Workers()
    _check(parts, options, workers.devices)
    training = Training(model, parts, options, folder, workers, save_seconds)
    with workers.together(), finishing(), closing(training.progress):
        training.run()
    if workers.is_first:
        load_weights(model, folder / "best.weights.h5")


@dataclass
class Progressed:
    """How far a training is: what its state holds beside variables."""

    rows: list[dict[str, float]] = field(default_factory=list)  # of history.csv: the epochs that are done
    losses: list[float] = field(default_factory=list)  # of the steps that are done of the next epoch
    seconds: float = 0.0  # spent on them
    applied: int = 0  # steps that the optimiser had taken before that epoch


class Training:
    """A training on its way, epoch by epoch; see `train` for the arguments."""

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
        self.save_seconds, self.saved = save_seconds, time.monotonic()
        self.steps = Steps(model, options, parts["train"].outcome, workers)
        self.predict = make_predict(model, workers)
        self.done = Progressed()
        self.num_steps = len(self._risk_sets(0))
        model.compile(optimizer=self.steps.optimizer)  # for Keras' callbacks
        self._set_callbacks()

    def run(self) -> None:
        """Every epoch that is not done yet."""
        self.callbacks.on_train_begin()
        self._resume()
        for epoch in range(len(self.done.rows), self.options.epochs):
            if self.model.stop_training:
                logger.info("no better validation C-index for %d epochs: stopped", self.options.patience)
                break
            self.progress.done = len(self.done.losses)
            self.callbacks.on_epoch_begin(epoch)
            logs = self.run_epoch(epoch)
            self.callbacks.on_epoch_end(epoch, logs)
            self.done = Progressed(self.history.rows, applied=self._applied())
            self.save()
        self.callbacks.on_train_end()

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """The steps of an epoch that are not done yet; returns its mean loss, last learning rate and seconds."""
        done, part, steps = self.done, self.parts["train"], self.steps
        sets = self._risk_sets(epoch)[len(done.losses) :]
        batches = [micro for rows in sets for micro in steps.passes(steps.split(rows))]
        feed = self.workers.feed(part.entries, self.model.input_shape[1:4], batches)
        began = time.monotonic() - done.seconds
        for step, rows in enumerate(sets, start=len(done.losses)):
            self.callbacks.on_train_batch_begin(step)
            self._set_rate(epoch * self.num_steps + step)
            loss = steps.step(rows, feed, epoch)
            if not math.isfinite(loss):
                raise InputError(
                    f"epoch {epoch + 1}, step {step + 1}: the loss is {loss} on the scans "
                    f"{', '.join(part.scan[rows])}. Lower LEARNING_RATE, or look at these scans; "
                    "the best weights so far are kept."
                )
            done.losses.append(loss)
            done.seconds = time.monotonic() - began
            self.callbacks.on_train_batch_end(step, {"loss": loss})
            self._save_if_due()
        logs = {"loss": float(np.mean(done.losses)), "learning_rate": float(steps.optimizer.learning_rate.numpy())}
        if steps.scaled:  # a gradient beyond float16 is not applied, and the next ones are scaled less
            logs["skipped_steps"] = self.num_steps - (self._applied() - done.applied)
        return logs | {"seconds": round(done.seconds, 1)}

    def predict_averaged(self, part: Scans) -> np.ndarray:
        """(N,) log-hazards of a part's scans by the averaged weights, if there are any."""
        self.steps.exchange_averages()
        log_hazard = self.predict(part.entries, self.options.batch_size)[-1]
        self.steps.exchange_averages()
        return log_hazard

    def save_averaged(self, path: Path) -> None:
        """Write the weights that validation saw."""
        self.steps.exchange_averages()
        save_weights(self.model, path)
        self.steps.exchange_averages()

    def save(self) -> None:
        """Write everything that the next step depends on."""
        self.saved = time.monotonic()
        if not self.workers.is_first:
            return
        values = {f"v{i}": variable.numpy() for i, variable in enumerate(self.steps.variables())}
        record = json.dumps(self._belongs_to() | {"done": asdict(self.done)})
        with written_whole(self.folder / "backup" / "state.npz") as part:
            np.savez(part, record=record, **values)

    def load(self, content: bytes) -> None:
        """Take over what `save` wrote.

        Raises:
            InputError: it is damaged, or of other options.
        """
        path = self.folder / "backup" / "state.npz"
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as state:
                record = json.loads(str(state["record"]))
                values = [state[f"v{i}"] for i in range(len(state.files) - 1)]
                done = Progressed(**record["done"])
        except Exception as error:  # NumPy's readers of damaged files raise errors of a dozen kinds
            raise InputError(f"{path}: can't be read: {error}. Delete it to begin stage 1 anew.") from error
        variables = self.steps.variables()
        shapes = [tuple(variable.shape) for variable in variables]
        same = all(record.get(name) == value for name, value in self._belongs_to().items())
        if not same or shapes != [value.shape for value in values]:
            raise InputError(f"{path}: is of other settings or devices. Delete it to begin stage 1 anew.")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self.done = done

    def _belongs_to(self) -> dict[str, Any]:
        """What a saved state is good for."""
        return {"options": asdict(self.options), "devices": self.workers.devices}

    def _set_callbacks(self) -> None:
        """Keras' callbacks of an epoch's end; only the first worker's write and show something."""
        part, options = self.parts["val"], self.options
        outcome = tuple(map(tf.constant, part.outcome))
        validation = ValidationConcordance(
            lambda: self.predict_averaged(part),
            lambda risk: float(self.steps.loss(tf.constant(risk, tf.float32), *outcome)),
            last=part.last,
            time=part.time,
            event=part.event,
            agree=lambda logs: json.loads(self.workers.tell(json.dumps(logs).encode())),
        )
        watched = {"monitor": "val_c_index", "mode": "max"}
        stopping = [keras.callbacks.EarlyStopping(patience=options.patience, **watched)]
        if options.lr_schedule == "plateau":
            stopping.append(
                keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=max(1, options.patience // 2), **watched)
            )
        self.progress = Progress(options.epochs, shown=self.workers.is_first)
        self.chosen = BestWeights(self.folder / "best.weights.h5", self.save_averaged)
        self.history = History(self.folder / "history.csv")
        self.remembering: list[keras.callbacks.Callback] = [*stopping]  # what earlier epochs are replayed to
        if self.workers.is_first:
            self.remembering += [self.history, self.chosen]
        self.callbacks = keras.callbacks.CallbackList(
            [validation, *self.remembering, self.progress], model=self.model, steps=self.num_steps
        )

    def _resume(self) -> None:
        """Go on from a stopped run, if there is one: its variables, and its epochs replayed to the callbacks."""
        path = self.folder / "backup" / "state.npz"
        content = self.workers.tell(path.read_bytes() if self.workers.is_first and path.exists() else b"")
        if not content:
            return
        self.load(content)
        optimizer = self.steps.optimizer
        rate = float(optimizer.learning_rate.numpy())
        self.chosen.replaying = True
        for epoch, row in enumerate(self.done.rows):
            logs = {name: value for name, value in row.items() if name != "epoch"}
            for callback in self.remembering:
                callback.on_epoch_end(epoch, logs)
        self.chosen.replaying = False
        optimizer.learning_rate = rate
        logger.info("stage 1 goes on after epoch %d, step %d", len(self.done.rows), len(self.done.losses))

    def _save_if_due(self) -> None:
        """Save now and then, and where a signal asks any worker to stop; then stop."""
        stop = self.workers.any(stop_requested())
        if stop or time.monotonic() - self.saved > self.save_seconds:
            self.save()
        if stop:
            raise KeyboardInterrupt

    def _risk_sets(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.options.seed, epoch])
        return draw_risk_sets(self.parts["train"], self.options.risk_set, rng, smallest=2 * self.workers.devices)

    def _applied(self) -> int:
        return int(self.steps.optimizer.iterations.numpy())

    def _set_rate(self, step: int) -> None:
        """The learning rate of this step: warm-up, then the cosine, or what the plateau's callback left."""
        options, optimizer = self.options, self.steps.optimizer
        warm = options.warmup_epochs * self.num_steps
        if step < warm:
            optimizer.learning_rate = options.learning_rate * (step + 1) / (warm + 1)
        elif options.lr_schedule == "cosine":
            done = (step - warm) / max(1.0, options.epochs * self.num_steps - warm)
            optimizer.learning_rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        elif step < warm + 1:
            optimizer.learning_rate = options.learning_rate


def _check(parts: dict[str, Scans], options: Options, devices: int) -> None:
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
    if min(options.risk_set, len(event)) < 2 * devices:
        problems.append(
            f"RISK_SET: expected {2 * devices} or more subjects, so that each of {devices} devices has 2, received "
            f"{options.risk_set} of {len(event)}"
        )
    if problems:
        raise InputError("Stage 1 can't learn from this. " + "; ".join(problems) + ".")
