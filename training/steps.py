"""One step of stage 1: the loss over a whole risk set, whatever number of volumes and devices it is computed with.

The gradient of the loss with respect to every log-hazard is found first, from a pass without a tape; then the same
micro-batches are done again, each with its share of it (gradient caching: Gao et al. 2021, arXiv 2101.06983). On
several devices each has every i-th micro-batch; log-hazards and gradients are summed over them, so that the gradient is
that of one device.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from loss import cox_loss, ranking_loss, visit_order_loss
from model import segments
from training.augment import Augmentation, augment
from training.devices import Workers

DROPOUT = 2**30  # added to a row's number for the seed of dropout: not the one of its augmentation


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
    recompute: bool = False
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

    @classmethod
    def of(cls, config: Any) -> "Options":
        """From settings, whose names are these in capitals."""
        return cls(**{field.name: getattr(config, field.name.upper()) for field in fields(cls)})

    @property
    def augmentation(self) -> Augmentation:
        """How training volumes are changed."""
        return Augmentation(**{field.name: getattr(self, f"augment_{field.name}") for field in fields(Augmentation)})


class Steps:
    """A model, its optimiser and the compiled parts of a step.

    Args:
        model: of `build_model`, made in the scope of the workers' strategy; its weights change.
        options: of the training.
        outcome: of every scan of the training part: subject (N,) int32, visit_time and time (N,) float32, event (N,).
        workers: who trains.
    """

    def __init__(self, model: keras.Model, options: Options, outcome: tuple[np.ndarray, ...], workers: Workers):
        self.model, self.options, self.workers = model, options, workers
        self.outcome = tuple(map(tf.constant, outcome))
        self.segments = segments(model) if options.recompute else [model]
        self.state = [variable for variable in model.non_trainable_variables if "int" not in variable.dtype]
        self.seeds = [variable for variable in model.non_trainable_variables if "int" in variable.dtype]
        self.weights = [variable.value for variable in model.trainable_variables]
        self.sizes = [math.prod(weight.shape) for weight in self.weights]
        self.scaled = options.precision == "mixed_float16"
        with workers.strategy.scope():
            self.optimizer = keras.optimizers.Adam(options.learning_rate)
            if self.scaled:  # else small gradients would vanish on their way through float16
                self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
            self.optimizer.build(model.trainable_variables)
            self.gradients = [
                tf.Variable(
                    tf.zeros(weight.shape, weight.dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,  # each device adds to its own
                    aggregation=tf.VariableAggregation.SUM,
                )
                for weight in self.weights
            ]
            self.averages = [tf.Variable(weight, trainable=False) for weight in self.weights] if options.ema else []
        batch, one = workers.spec(model.input_shape[1:4]), tf.TensorSpec((), tf.int32)
        rows, every = tf.TensorSpec((None,), tf.int32), tf.TensorSpec(len(outcome[0]), model.output.dtype)
        self.whole = tf.function(self._whole, input_signature=(batch, one, rows))
        self.forward = tf.function(self._forward, input_signature=(batch, one))
        self.slope = tf.function(self._slope, input_signature=(every, rows))
        self.backward = tf.function(self._backward, input_signature=(batch, one, every))
        self.apply = tf.function(self._apply, input_signature=())

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """The micro-batches of a risk set: BATCH_SIZE volumes at most, and as many for each device."""
        number = math.ceil(len(rows) / self.options.batch_size)
        return np.array_split(rows, number + -number % self.workers.devices)

    def passes(self, split: list[np.ndarray]) -> list[np.ndarray]:
        """The micro-batches in the order that `step` takes them from its iterator."""
        return split if len(split) == self.workers.devices else split * 2

    def step(self, rows: np.ndarray, batches: Iterator, epoch: int) -> float:
        """One optimiser step by the gradient of the loss over these rows; returns the loss."""
        first = tf.constant((self.options.seed * 1_000_003 + epoch) % 2**31, tf.int32)
        chosen = tf.constant(rows, tf.int32)
        rounds = len(self.split(rows)) // self.workers.devices
        if rounds == 1:
            loss = self.whole(next(batches), first, chosen)
        else:
            risks = [self.forward(next(batches), first) for _ in range(rounds)]
            loss, slope = self.slope(tf.add_n(risks), chosen)
            for _ in range(rounds):
                self.backward(next(batches), first, slope)
        self.apply()
        return float(loss)

    def loss(self, log_hazard: tf.Tensor, subject, visit_time, time, event) -> tf.Tensor:
        """The training's loss of the log-hazards (N,) of scans."""
        options = self.options
        if options.loss == "cox":
            loss = cox_loss(log_hazard, time, event, ties=options.ties)
        else:
            loss = ranking_loss(log_hazard, time, event)
        if options.visit_order_weight > 0:
            loss += options.visit_order_weight * visit_order_loss(log_hazard, subject, visit_time)
        return loss

    def exchange_averages(self) -> None:
        """Exchange the weights and their averages, if there are any."""
        for average, weight in zip(self.averages, self.weights, strict=bool(self.averages)):
            kept = tf.identity(weight)
            weight.assign(average)
            average.assign(kept)

    def variables(self) -> list:
        """All that the next step depends on."""
        return [*self.model.variables, *self.optimizer.variables, *self.averages]

    # ---- Compiled ----------------------------------------------------------------------------------

    def _whole(self, batch, first, rows):
        """The loss and its gradient in one pass, where each device has all its volumes in memory."""

        def replica(volumes, own):
            with self._scope(first, own) as scope:
                with tf.GradientTape() as tape:
                    log_hazard = self._log_hazard(volumes, first, own)
                state = [scope.get_current_value(variable) for variable in self.state]
                everyone = tf.distribute.get_replica_context().all_reduce(
                    tf.distribute.ReduceOp.SUM, self._placed(log_hazard, own)
                )
                loss, slope = self._slope(everyone, rows)
                self._accumulate(tape, log_hazard, slope, own)
            return loss, state

        losses, state = self.workers.strategy.run(replica, args=batch)
        self._update(state)
        return self._mean(losses)

    def _forward(self, batch, first):
        """The log-hazards (N,) of these rows, 0 elsewhere; normalisation learns of them."""

        def replica(volumes, own):
            with self._scope(first, own) as scope:
                log_hazard = self._log_hazard(volumes, first, own)
                return self._placed(log_hazard, own), [scope.get_current_value(variable) for variable in self.state]

        risks, state = self.workers.strategy.run(replica, args=batch)
        self._update(state)
        return self.workers.strategy.reduce(tf.distribute.ReduceOp.SUM, risks, axis=None)

    def _slope(self, log_hazard, rows):
        """The loss over these rows, and its gradient with respect to every log-hazard, (N,)."""
        with tf.GradientTape() as tape:
            tape.watch(log_hazard)
            loss = self.loss(tf.gather(log_hazard, rows), *(tf.gather(values, rows) for values in self.outcome))
        return loss, tf.convert_to_tensor(tape.gradient(loss, log_hazard))

    def _backward(self, batch, first, slope):
        """Add to the gradient what these rows contribute."""

        def replica(volumes, own):
            with self._scope(first, own):
                with tf.GradientTape() as tape:
                    log_hazard = self._log_hazard(volumes, first, own)
                self._accumulate(tape, log_hazard, slope, own)

        self.workers.strategy.run(replica, args=batch)

    def _apply(self):
        """Clip what accumulated, and let the optimiser take its step."""
        strategy = self.workers.strategy
        flat = strategy.run(lambda: tf.concat([tf.reshape(gradient, [-1]) for gradient in self.gradients], 0))
        parts = tf.split(strategy.reduce(tf.distribute.ReduceOp.SUM, flat, axis=None), self.sizes)
        total = [tf.reshape(part, weight.shape) for part, weight in zip(parts, self.weights, strict=True)]
        scale = tf.cast(self._scale(), total[0].dtype)  # what accumulated is scaled; the optimiser divides
        limit = self.options.clip_norm * scale
        clipped, _ = tf.clip_by_global_norm(total, limit)
        strategy.run(self._descend, args=(clipped,))
        for gradient in self.gradients:
            gradient.assign(tf.zeros(gradient.shape, gradient.dtype))
        for average, weight in zip(self.averages, self.weights, strict=bool(self.averages)):
            average.assign(self.options.ema * average + (1 - self.options.ema) * weight)

    def _descend(self, gradients):
        shares = [gradient / self.workers.devices for gradient in gradients]  # the optimiser adds up the devices'
        self.optimizer.apply(shares, self.model.trainable_variables)

    def _log_hazard(self, volumes, first, rows):
        """(B,) in training; the same for a row whenever it is done in one epoch."""
        seeds = tf.stack([tf.fill(tf.shape(rows), first), rows], axis=1)
        values = augment(volumes, seeds, self.options.augmentation)
        for segment in self.segments:
            values = segment(values, training=True)
        return values[:, 0]

    def _scope(self, first, rows) -> keras.StatelessScope:
        """Where dropout depends on epoch and rows alone, and normalisation's statistics are read but not written."""
        seed = tf.stack([first, rows[0] + DROPOUT])
        return keras.StatelessScope(
            [(variable, tf.cast(seed, variable.dtype)) for variable in self.seeds]
            + [(variable, tf.convert_to_tensor(variable.value)) for variable in self.state]
        )

    def _placed(self, log_hazard, rows):
        """(N,): the log-hazards in their rows, 0 in the others'."""
        return tf.scatter_nd(rows[:, None], log_hazard, self.outcome[0].shape)

    def _accumulate(self, tape, log_hazard, slope, rows) -> None:
        cotangent = tf.gather(slope, rows) * tf.cast(self._scale(), slope.dtype)
        found = tape.gradient(log_hazard, self.weights, output_gradients=cotangent)
        for gradient, part in zip(self.gradients, found, strict=True):
            gradient.assign_add(part)

    def _update(self, state) -> None:
        """Take over normalisation's statistics: the devices' mean."""
        for variable, value in zip(self.state, state, strict=True):
            variable.value.assign(self._mean(value))

    def _mean(self, value):
        return self.workers.strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)

    def _scale(self) -> tf.Tensor:
        """What gradients are multiplied by on their way through the network: 1 but in float16."""
        return tf.convert_to_tensor(self.optimizer.dynamic_scale) if self.scaled else tf.constant(1.0)
