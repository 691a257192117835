"""One step of stage 1: the loss over a whole risk set, whatever number of volumes and devices it is computed with.

First a pass without a tape gives every log-hazard, and from them the gradient of the loss with respect to each. Then
the same micro-batches are computed again, each with its share of that gradient (gradient caching: Gao et al. 2021,
arXiv 2101.06983). Of several devices each has every i-th micro-batch; log-hazards and gradients are summed over them,
so the gradient is that of one device.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from config import Config
from loss import Outcome, weighted_loss
from model import segments
from training.augment import Augmentation, augment
from training.devices import Workers
from training.weights import WeightAverages

DROPOUT = 2**30  # added to a row's number for the seed of dropout, so that it is not that of its augmentation


@dataclass(frozen=True)
class Options:
    """How stage 1 is trained: the settings of these names in config.py, which says what each means."""

    loss: Literal["cox", "rank"]
    ties: Literal["efron", "breslow"]
    visit_order_weight: float
    batch_size: int  # volumes
    risk_set: int  # subjects
    learning_rate: float
    lr_schedule: Literal["cosine", "plateau"]
    warmup_epochs: float
    clip_norm: float
    ema: float  # share 0 to 1
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"]
    recompute: bool
    epochs: int
    patience: int  # epochs
    keep_epoch: Literal["last", "best"]
    augment_shift: float  # voxels
    augment_rotate: float  # degrees
    augment_scale: float  # share
    augment_flip: bool
    augment_bias: float  # share
    augment_gain: float  # share
    augment_noise: float  # z-scores
    seed: int

    @classmethod
    def of(cls, config: Config) -> "Options":
        """From the settings of a run."""
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
        outcome: of every scan of the training part, (N,) arrays.
        workers: the processes that train.
    """

    def __init__(self, model: keras.Model, options: Options, outcome: Outcome, workers: Workers):
        self.model, self.options, self.workers = model, options, workers
        self.outcome = Outcome(*map(tf.constant, outcome))
        self.segments = segments(model) if options.recompute else [model]
        self.state = [variable for variable in model.non_trainable_variables if "int" not in variable.dtype]
        self.seeds = [variable for variable in model.non_trainable_variables if "int" in variable.dtype]
        self.weights = [variable.value for variable in model.trainable_variables]
        self.sizes = [math.prod(weight.shape) for weight in self.weights]
        self.scaled = options.precision == "mixed_float16"
        with workers.strategy.scope():
            self.optimizer = self._make_optimizer()
            self.gradients = [self._make_sum(weight) for weight in self.weights]
            self.ema = WeightAverages(self.weights, options.ema)
        self._compile()

    def micro_batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut the rows (R,) of a risk set into micro-batches: BATCH_SIZE volumes at most, and as many per device."""
        number = math.ceil(len(rows) / self.options.batch_size)
        return np.array_split(rows, number + -number % self.workers.num_devices)

    def reading_order(self, micro_batches: list[np.ndarray]) -> list[np.ndarray]:
        """The micro-batches in the order in which `step` takes them from its iterator: twice, unless one pass does."""
        return micro_batches if len(micro_batches) == self.workers.num_devices else micro_batches * 2

    def step(self, rows: np.ndarray, batches: Iterator[Any], epoch: int) -> float:
        """Take one step of the optimiser by the gradient of the loss over a risk set.

        Args:
            rows: (R,) of the risk set.
            batches: of `Workers.read_batches`, in `reading_order`.
            epoch: from 0; seeds augmentation and dropout.
        Returns:
            The loss before the step.
        """
        first = tf.constant((self.options.seed * 1_000_003 + epoch) % 2**31, tf.int32)
        chosen = tf.constant(rows, tf.int32)
        rounds = len(self.micro_batches(rows)) // self.workers.num_devices
        if rounds == 1:
            loss = self.one_pass(next(batches), first, chosen)
        else:
            log_hazards = [self.predict_in_training(next(batches), first) for _ in range(rounds)]
            loss, gradient = self.loss_gradient(tf.add_n(log_hazards), chosen)
            for _ in range(rounds):
                self.backpropagate(next(batches), first, gradient)
        self.apply()
        return float(loss)

    def loss(self, log_hazard: tf.Tensor, outcome: Outcome) -> tf.Tensor:
        """The training's loss of the log-hazards (N,) of scans with these outcomes."""
        options = self.options
        return weighted_loss(
            log_hazard,
            outcome,
            loss=options.loss,
            ties=options.ties,
            visit_order_weight=options.visit_order_weight,
        )

    def variables(self) -> list[Any]:
        """All variables that the next step depends on."""
        return [*self.model.variables, *self.optimizer.variables, *self.ema.averages]

    def num_applied(self) -> int:
        """The steps that the optimiser has taken."""
        return int(self.optimizer.iterations.numpy())

    # ---- Built once --------------------------------------------------------------------------------

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        optimizer = keras.optimizers.Adam(self.options.learning_rate)
        if self.scaled:  # else small gradients would vanish on their way through float16
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self.model.trainable_variables)
        return optimizer

    @staticmethod
    def _make_sum(weight: Any) -> tf.Variable:
        """A sum of gradients with respect to a weight, which each device adds to by itself."""
        return tf.Variable(
            tf.zeros(weight.shape, weight.dtype),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def _compile(self) -> None:
        """The parts of a step in the graph, for micro-batches of any size."""
        batch, epoch = self.workers.batch_spec(self.model.input_shape[1:4]), tf.TensorSpec((), tf.int32)
        rows, every = tf.TensorSpec((None,), tf.int32), tf.TensorSpec(len(self.outcome.time), self.model.output.dtype)
        self.one_pass = tf.function(self._one_pass, input_signature=(batch, epoch, rows))
        self.predict_in_training = tf.function(self._predict_in_training, input_signature=(batch, epoch))
        self.loss_gradient = tf.function(self._loss_gradient, input_signature=(every, rows))
        self.backpropagate = tf.function(self._backpropagate, input_signature=(batch, epoch, every))
        self.apply = tf.function(self._apply, input_signature=())

    # ---- Compiled ----------------------------------------------------------------------------------

    def _one_pass(self, batch: Any, first: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """The loss and its gradient in one pass, where each device has all its volumes in memory."""

        def replica(volumes: tf.Tensor, own: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            with self._scope(first, own) as scope:
                with tf.GradientTape() as tape:
                    log_hazard = self._log_hazard(volumes, first, own)
                state = [scope.get_current_value(variable) for variable in self.state]
                everyone = tf.distribute.get_replica_context().all_reduce(
                    tf.distribute.ReduceOp.SUM, self._in_rows(log_hazard, own)
                )
                loss, gradient = self._loss_gradient(everyone, rows)
                self._accumulate(tape, log_hazard, gradient, own)
            return loss, state

        losses, state = self.workers.strategy.run(replica, args=batch)
        self._update_statistics(state)
        return self._mean(losses)

    def _predict_in_training(self, batch: Any, first: tf.Tensor) -> tf.Tensor:
        """The log-hazards (N,) of these rows, 0 elsewhere; normalisation learns from them."""

        def replica(volumes: tf.Tensor, own: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            with self._scope(first, own) as scope:
                log_hazard = self._log_hazard(volumes, first, own)
                return self._in_rows(log_hazard, own), [scope.get_current_value(variable) for variable in self.state]

        log_hazards, state = self.workers.strategy.run(replica, args=batch)
        self._update_statistics(state)
        return self.workers.strategy.reduce(tf.distribute.ReduceOp.SUM, log_hazards, axis=None)

    def _loss_gradient(self, log_hazard: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss over these rows, and its gradient with respect to every log-hazard, (N,)."""
        with tf.GradientTape() as tape:
            tape.watch(log_hazard)
            outcome = Outcome(*(tf.gather(values, rows) for values in self.outcome))
            loss = self.loss(tf.gather(log_hazard, rows), outcome)
        return loss, tf.convert_to_tensor(tape.gradient(loss, log_hazard))

    def _backpropagate(self, batch: Any, first: tf.Tensor, gradient: tf.Tensor) -> None:
        """Add to the gradient what these rows contribute, given the loss's gradient by log-hazard (N,)."""

        def replica(volumes: tf.Tensor, own: tf.Tensor) -> None:
            with self._scope(first, own):
                with tf.GradientTape() as tape:
                    log_hazard = self._log_hazard(volumes, first, own)
                self._accumulate(tape, log_hazard, gradient, own)

        self.workers.strategy.run(replica, args=batch)

    def _apply(self) -> None:
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
        self.ema.update()

    def _descend(self, gradients: Sequence[tf.Tensor]) -> None:
        shares = [gradient / self.workers.num_devices for gradient in gradients]  # the optimiser adds the devices' up
        self.optimizer.apply(shares, self.model.trainable_variables)

    def _log_hazard(self, volumes: tf.Tensor, first: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """(B,) in training. Depends on the epoch and the row only, so a repeated pass gives the same values."""
        seeds = tf.stack([tf.fill(tf.shape(rows), first), rows], axis=1)
        values = augment(volumes, seeds, self.options.augmentation)
        for segment in self.segments:
            values = segment(values, training=True)
        return values[:, 0]

    def _scope(self, first: tf.Tensor, rows: tf.Tensor) -> keras.StatelessScope:
        """Within it dropout depends on epoch and rows only, and normalisation reads its statistics, never writes."""
        seed = tf.stack([first, rows[0] + DROPOUT])
        return keras.StatelessScope(
            [(variable, tf.cast(seed, variable.dtype)) for variable in self.seeds]
            + [(variable, tf.convert_to_tensor(variable.value)) for variable in self.state]
        )

    def _in_rows(self, log_hazard: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """(N,): the log-hazards (B,) in their rows, 0 in the others."""
        return tf.scatter_nd(rows[:, None], log_hazard, self.outcome.time.shape)

    def _accumulate(self, tape: tf.GradientTape, log_hazard: tf.Tensor, gradient: tf.Tensor, rows: tf.Tensor) -> None:
        """Add the weights' gradient of these rows (B,), given the loss's gradient by log-hazard (N,)."""
        upstream = tf.gather(gradient, rows) * tf.cast(self._scale(), gradient.dtype)
        of_weights = tape.gradient(log_hazard, self.weights, output_gradients=upstream)
        for total, part in zip(self.gradients, of_weights, strict=True):
            total.assign_add(part)

    def _update_statistics(self, state: Sequence[Any]) -> None:
        """Give normalisation its new statistics: the devices' mean."""
        for variable, value in zip(self.state, state, strict=True):
            variable.value.assign(self._mean(value))

    def _mean(self, value: Any) -> tf.Tensor:
        return self.workers.strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)

    def _scale(self) -> tf.Tensor:
        """What gradients are multiplied by on their way through the network: 1 but in float16."""
        return tf.convert_to_tensor(self.optimizer.dynamic_scale) if self.scaled else tf.constant(1.0)
