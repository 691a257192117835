"""Devices and machines: TensorFlow's strategy for a training, its batches, and what its workers tell each other."""

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context as runtime

from data import make_dataset
from runs.errors import InputError

logger = logging.getLogger(__name__)
SLURM = "SLURM_STEP_NUM_TASKS"  # stands in the environment of every task that srun starts
SILENCE = 120  # seconds without a sign of life after which a worker is lost; TensorFlow's 10 lose one that is paused
FAREWELL = 600  # seconds that a worker waits for the others to finish what all have done together
WHY = re.compile(r"Collective ops is aborted by: (.*)")  # a line of TensorFlow's many


class Workers:
    """The processes that train one network together, of which this is one; each has one device or several.

    Args:
        strategy: TensorFlow's; None: this process alone, on its first device.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.devices = self.strategy.num_replicas_in_sync  # of all workers together
        self.number, self.index, self.farewells = 1, 0, 0
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = self.strategy.cluster_resolver
            self.number, self.index = len(resolver.cluster_spec().job_tasks("worker")), resolver.task_id

    @property
    def is_first(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.index == 0

    def feed(self, entries: Sequence[Path], shape: tuple[int, int, int], batches: Sequence[np.ndarray]) -> Iterator:
        """Cached volumes in batches of given rows, a batch for each device at a time.

        Not by TensorFlow's own distributed datasets: what reads ahead for their devices goes on when they are dropped,
        and now and then crashes the process.

        Args:
            entries: of `build_cache`.
            shape: (X, Y, Z) of a volume.
            batches: rows, none empty; their number is a multiple of `devices`, and device i of all gets every
                i-th of so many.
        Yields:
            What a step takes, as `spec` has it: volumes (B, X, Y, Z, 1) float32 and their rows (B,) int32 of each of
            this worker's devices.
        """
        here = self.devices // self.number
        options = tf.data.Options()  # else TensorFlow adds buffers of its own, of whole batches
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        pipelines = []
        for mine in range(self.index * here, (self.index + 1) * here):
            chosen = batches[mine :: self.devices]
            rows = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([list(map(int, one)) for one in chosen]))
            pipelines.append(tf.data.Dataset.zip(make_dataset(entries, shape, chosen), rows).with_options(options))
        for taken in zip(*pipelines, strict=True):
            yield self._deal(taken)

    def spec(self, shape: tuple[int, int, int]):
        """Of what `feed` gives: the signature by which a step is compiled once for batches of any size."""
        kinds = tf.TensorSpec((None, *shape, 1), tf.float32), tf.TensorSpec((None,), tf.int32)
        nothing = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=kinds)
        return self.strategy.distribute_datasets_from_function(lambda _: nothing).element_spec

    def tell(self, message: bytes) -> bytes:
        """The first worker's message; every worker must call it at the same place."""
        if self.number == 1:
            return message
        size = int(self._of_first(np.array([len(message)], np.int32))[0])
        room = 4 * (size // 4 + 1)  # bytes, in whole words; never 0, at which TensorFlow's sum crashes
        words = np.frombuffer(message.ljust(room, b"\0")[:room], np.int32)
        return self._of_first(words).tobytes()[:size]

    def any(self, asked: bool) -> bool:
        """Whether this is so for any worker; every worker must call it at the same place."""
        return asked if self.number == 1 else bool(self._sum(np.array([asked], np.int32))[0])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within this, that another worker is gone is an error of its own; every worker must enter and leave it.

        Raises:
            ConnectionError: another worker has stopped, or can't be reached.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if self.number == 1:
                raise
            told = WHY.search(str(error))  # else a path through the graph's code
            why = told[1] if told else type(error).__name__
            raise ConnectionError(f"another worker has stopped, or can't be reached ({why})") from error
        if self.number > 1:
            self._leave()

    def _leave(self) -> None:
        """Wait for the others: a process that ends while another still takes its last message loses that one."""
        self.farewells += 1
        try:
            runtime.context().wait_at_barrier(f"farewell {self.farewells}", 1000 * FAREWELL)
        except tf.errors.OpError as error:  # nothing is lost: what was to be done together is done
            logger.info("another worker left without a farewell: %s", str(error).splitlines()[0])

    def _deal(self, values: Sequence) -> Any:
        """A value to each of this worker's devices, as `spec` has it: bare where one device trains alone."""
        if self.devices == 1:
            return values[0]
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group % len(values)]
        )

    def _of_first(self, values: np.ndarray) -> np.ndarray:
        return self._sum(values if self.is_first else np.zeros_like(values))

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of arrays of one shape over the workers."""
        others = self.devices // self.number - 1
        each = self._deal([tf.constant(values), *[tf.zeros_like(values)] * others])
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None).numpy()


def join(distribute: Literal["none", "mirrored", "multi_worker"], devices: int = 0) -> Workers:
    """Take this process's part in a training. Call it before anything else of TensorFlow.

    Args:
        distribute: `none`, one device; `mirrored`, the devices of this machine; `multi_worker`, those of every machine
            that TF_CONFIG or Slurm's variables name.
        devices: GPUs to use on each machine; 0: all.
    Raises:
        InputError: fewer devices than asked for, or no cluster is named.
    """
    if distribute == "none":
        return Workers()
    tf.get_logger().setLevel(logging.WARNING)  # else it tells of every sum over the devices
    resolver = _resolver() if distribute == "multi_worker" else None
    hosts = resolver.cluster_spec().job_tasks("worker") if resolver else []  # shares a machine's GPUs out, under Slurm
    gpus = tf.config.list_physical_devices("GPU")
    if devices and gpus:
        tf.config.set_visible_devices(gpus[:devices], "GPU")
    if resolver:
        _expect(len(gpus), devices, "GPUs")
        _be_patient(len(hosts))
        logger.info("worker %d of %s: waiting for the others", resolver.task_id, ", ".join(hosts))
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # again: TensorFlow has put its own there
        return Workers(strategy)
    there = tf.config.list_logical_devices("GPU" if gpus else "CPU")
    _expect(len(there), max(2, devices), "GPUs" if gpus else "devices, without a GPU")
    return Workers(tf.distribute.MirroredStrategy([device.name for device in there]))


def _be_patient(number: int) -> None:
    """Let a worker be silent for longer; the strategy has no such option, but leaves a service that is configured."""
    runtime.context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=1000 * SILENCE,
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=number)],
    )


def _expect(there: int, wanted: int, kind: str) -> None:
    if there < wanted:
        raise InputError(
            f"DISTRIBUTE: expected {wanted} or more devices on this machine, received {there} {kind}. "
            "Lower DEVICES, or set DISTRIBUTE=none."
        )


def _resolver() -> Any:
    """Who the workers are: TF_CONFIG, or the step that srun started."""
    if "TF_CONFIG" in os.environ:
        try:
            hosts, task = (json.loads(os.environ["TF_CONFIG"])[name] for name in ("cluster", "task"))
            if list(hosts) != ["worker"] or task["type"] != "worker" or not 0 <= task["index"] < len(hosts["worker"]):
                raise ValueError(os.environ["TF_CONFIG"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                "TF_CONFIG: expected "
                '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0, 1, ...}}, '
                f"received {error}"
            ) from error
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if SLURM in os.environ:
        try:
            if shutil.which("nvidia-smi"):  # which the resolver asks for a machine's GPUs, to share them out
                return tf.distribute.cluster_resolver.SlurmClusterResolver()
            processors = {"gpus_per_node": int(os.environ[SLURM]), "gpus_per_task": 1, "auto_set_gpu": False}
            return tf.distribute.cluster_resolver.SlurmClusterResolver(**processors)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"Slurm's variables: expected those of a step that srun started: {error}") from error
    raise InputError(
        "DISTRIBUTE=multi_worker: expected TF_CONFIG or the variables of a step that srun started, received neither. "
        "The README shows the commands."
    )


def start_tensorflow(*, threads: int, seed: int) -> None:
    """Set up TensorFlow before its first operation; the same again changes nothing.

    Args:
        threads: of the run.
        seed: of what draws without a seed of its own; nothing of ours does.
    Raises:
        RuntimeError: TensorFlow is at work already, with other threads.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)  # stage 2 is another process on the same device
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
