"""The devices and processes that train stage 1: TensorFlow's set-up, its strategy, the batches of each device.

A worker is one process of a training by several machines; the first worker writes, and the others get its messages.
"""

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context as runtime  # no public name leads to the service that counts the workers

from data import make_dataset
from runs.errors import InputError

logger = logging.getLogger(__name__)

SLURM = "SLURM_STEP_NUM_TASKS"  # stands in the environment of every task that srun starts
SILENCE = 120  # seconds without a sign of life after which a worker is lost; TensorFlow's 10 lose one that is paused
FAREWELL = 600  # seconds that a worker waits for the others to finish what all have done together
REASON = re.compile(r"Collective ops is aborted by: (.*)")  # the line that matters in TensorFlow's message


def start_tensorflow(*, threads: int, seed: int) -> None:
    """Set up TensorFlow before its first operation, so that every run gives the same numbers; a GPU may be shared.

    A second call with the same arguments changes nothing.

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


class Workers:
    """The processes that train one network together, of which this is one; each has one device or several.

    Args:
        strategy: TensorFlow's; None: this process alone, on its first device.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.num_devices = self.strategy.num_replicas_in_sync  # of all workers together
        self.num_workers, self.index, self.num_farewells = 1, 0, 0
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = self.strategy.cluster_resolver
            self.num_workers, self.index = len(resolver.cluster_spec().job_tasks("worker")), resolver.task_id

    @property
    def is_first(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.index == 0

    def read_batches(
        self, entries: Sequence[str], shape: tuple[int, int, int], batches: Sequence[np.ndarray]
    ) -> Iterator[Any]:
        """Read cached volumes in batches of given rows, one batch for each device at a time.

        This does without TensorFlow's own distributed datasets: what they read ahead goes on after they are dropped,
        and now and then crashes the process.

        Args:
            entries: files of the cached volumes, one a row.
            shape: (X, Y, Z) of a volume.
            batches: rows of each batch, none empty; their number is a multiple of `num_devices`, and device i of all
                gets every i-th of so many.
        Yields:
            What a step takes, as `batch_spec` has it: volumes (B, X, Y, Z, 1) float32 and their rows (B,) int32 of
            each of this worker's devices.
        """
        num_local = self.num_devices // self.num_workers
        options = tf.data.Options()  # else TensorFlow adds buffers of its own, of whole batches
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        pipelines = []
        for device in range(self.index * num_local, (self.index + 1) * num_local):
            own = batches[device :: self.num_devices]
            rows = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([list(map(int, batch)) for batch in own]))
            pipelines.append(tf.data.Dataset.zip(make_dataset(entries, shape, own), rows).with_options(options))
        for batch_per_device in zip(*pipelines, strict=True):
            yield self._one_per_device(batch_per_device)

    def hand_out(self, volumes: np.ndarray, batches: Sequence[np.ndarray]) -> Iterator[Any]:
        """Hand out volumes that are in memory as `read_batches` does those of files.

        Args:
            volumes: (N, X, Y, Z, 1), float32.
            batches: as those of `read_batches`.
        Yields:
            As `read_batches`.
        """
        num_local = self.num_devices // self.num_workers
        for begin in range(self.index * num_local, len(batches), self.num_devices):
            own = batches[begin : begin + num_local]
            yield self._one_per_device([(tf.constant(volumes[rows]), tf.constant(rows, tf.int32)) for rows in own])

    def batch_spec(self, shape: tuple[int, int, int]) -> Any:
        """The signature of what `read_batches` gives, by which a step is compiled once for batches of any size.

        Args:
            shape: (X, Y, Z) of a volume.
        """
        kinds = tf.TensorSpec((None, *shape, 1), tf.float32), tf.TensorSpec((None,), tf.int32)
        empty = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=kinds)
        return self.strategy.distribute_datasets_from_function(lambda _: empty).element_spec

    def broadcast(self, message: bytes) -> bytes:
        """Send the first worker's message to all; every worker must call this at the same place.

        Args:
            message: of any length; only the first worker's counts.
        Returns:
            The first worker's message.
        """
        if self.num_workers == 1:
            return message
        size = int(self._of_first(np.array([len(message)], np.int32))[0])
        room = 4 * (size // 4 + 1)  # bytes, in whole words; never 0, at which TensorFlow's sum crashes
        words = np.frombuffer(message.ljust(room, b"\0")[:room], np.int32)
        return self._of_first(words).tobytes()[:size]

    def any(self, here: bool) -> bool:
        """Whether something is so for any worker; every worker must call this at the same place.

        Args:
            here: whether it is so for this worker.
        """
        return here if self.num_workers == 1 else bool(self._sum(np.array([here], np.int32))[0])

    @contextmanager
    def report_lost_worker(self) -> Iterator[None]:
        """Within this, turn the loss of another worker into an error of its own; every worker must enter and leave it.

        Raises:
            ConnectionError: another worker has stopped, or can't be reached.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if self.num_workers == 1:
                raise
            reason = REASON.search(str(error))  # else the message is a path through the graph's code
            words = reason[1] if reason else type(error).__name__
            raise ConnectionError(f"another worker has stopped, or can't be reached ({words})") from error
        if self.num_workers > 1:
            self._wait_for_others()

    def _wait_for_others(self) -> None:
        """Wait for the others: a process that ends while another still takes its last message loses that one."""
        self.num_farewells += 1
        try:
            runtime.context().wait_at_barrier(f"farewell {self.num_farewells}", 1000 * FAREWELL)
        except tf.errors.OpError as error:  # nothing is lost: what was to be done together is done
            logger.info("another worker left without a farewell: %s", str(error).splitlines()[0])

    def _one_per_device(self, values: Sequence[Any]) -> Any:
        """A value for each of this worker's devices, as `batch_spec` has it: bare where one device trains alone."""
        if self.num_devices == 1:
            return values[0]
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group % len(values)]
        )

    def _of_first(self, values: np.ndarray) -> np.ndarray:
        return self._sum(values if self.is_first else np.zeros_like(values))

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of arrays of one shape over the workers."""
        others = self.num_devices // self.num_workers - 1
        each = self._one_per_device([tf.constant(values), *[tf.zeros_like(values)] * others])
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None).numpy()


def join_training(distribute: Literal["none", "mirrored", "multi_worker"], devices: int = 0) -> Workers:
    """Make this process one of a training's workers. Call it before anything else of TensorFlow.

    Args:
        distribute: `none`, one device; `mirrored`, the devices of this machine; `multi_worker`, those of every machine
            that TF_CONFIG or Slurm's variables name.
        devices: GPUs to use on each machine; 0: all.
    Raises:
        InputError: fewer devices than asked for, or no cluster is named.
    """
    if distribute == "none":
        return Workers()
    tf.get_logger().setLevel(logging.WARNING)  # else it reports every sum over the devices
    resolver = _find_cluster() if distribute == "multi_worker" else None
    hosts = resolver.cluster_spec().job_tasks("worker") if resolver else []  # shares a machine's GPUs out, under Slurm
    gpus = tf.config.list_physical_devices("GPU")
    if devices and gpus:
        tf.config.set_visible_devices(gpus[:devices], "GPU")
    if resolver:
        _require_devices(len(gpus), devices, "GPUs")
        _allow_silence(len(hosts))
        logger.info("worker %d of %s: waiting for the others", resolver.task_id, ", ".join(hosts))
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # again: TensorFlow has put its own there
        return Workers(strategy)
    local = tf.config.list_logical_devices("GPU" if gpus else "CPU")
    _require_devices(len(local), max(2, devices), "GPUs" if gpus else "devices, without a GPU")
    return Workers(tf.distribute.MirroredStrategy([device.name for device in local]))


def _allow_silence(num_workers: int) -> None:
    """Let a worker be silent for SILENCE seconds; the strategy has no such option, but keeps a configured service."""
    runtime.context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=1000 * SILENCE,
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=num_workers)],
    )


def _require_devices(number: int, wanted: int, kind: str) -> None:
    if number < wanted:
        raise InputError(
            f"DISTRIBUTE: expected {wanted} or more devices on this machine, received {number} {kind}. "
            "Lower DEVICES, or set DISTRIBUTE=none."
        )


def _find_cluster() -> Any:
    """TensorFlow's resolver of who the workers are: by TF_CONFIG, or by the step that srun started."""
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
