"""TensorFlow as every run needs it: the same numbers each time, and a GPU that it shares."""

import keras
import tensorflow as tf


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
