"""The weights of stage 1: on disk, and their running averages."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from runs.errors import InputError

LARGEST_FILE = 4  # numbers in a file of weights for each of the network's: older ones hold the optimiser's too
H5_OVERHEAD = 2**20  # bytes, at most, of a file of weights beside the weights


class WeightAverages:
    """Exponential moving averages of a network's weights; without a momentum there are none, and nothing happens.

    Args:
        weights: the variables; call this in the scope of their strategy.
        momentum: share 0 to 1 of the old average that an update keeps; 0: no averages.
    """

    def __init__(self, weights: Sequence[Any], momentum: float):
        self.weights, self.momentum = weights, momentum
        self.averages = [tf.Variable(weight, trainable=False) for weight in weights] if momentum else []

    def update(self) -> None:
        """Move the averages towards the weights, after a step; may be compiled."""
        for average, weight in zip(self.averages, self.weights, strict=bool(self.averages)):
            average.assign(self.momentum * average + (1 - self.momentum) * weight)

    @contextmanager
    def swap_in_ema(self) -> Iterator[None]:
        """Within this, the network has the averages as its weights; afterwards its own again, whatever was raised."""
        own = [tf.identity(weight) for weight in self.weights] if self.averages else []
        try:
            for average, weight in zip(self.averages, self.weights, strict=bool(self.averages)):
                weight.assign(average)
            yield
        finally:
            for value, weight in zip(own, self.weights, strict=bool(own)):
                weight.assign(value)


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Write the weights, without the optimiser's state that Keras adds to those of a compiled model.

    Args:
        model: of `build_model`.
        path: of a `.weights.h5`; see `files.written_whole`.
    Raises:
        OSError: there is no room on the disk.
    """
    if hasattr(os, "posix_fallocate"):  # HDF5 crashes the process on a full disk: ask for the room before it does
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, sum(weights.nbytes for weights in model.get_weights()) + H5_OVERHEAD)
    _uncompiled(model).save_weights(path)


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Give a network the weights that a training left.

    Args:
        model: of the same settings.
        path: of a `.weights.h5`.
    Raises:
        InputError: names the file that is absent, damaged, of another network, or holds a weight that is not finite.
    """
    try:
        with h5py.File(path) as file:  # a damaged size would ask for more memory than there is
            sizes: list[int] = []
            file.visititems(lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
        if sum(sizes) > LARGEST_FILE * model.count_params():
            raise ValueError(f"expected {model.count_params()} weights, received {sum(sizes)} numbers")
        with warnings.catch_warnings(action="error", category=UserWarning):  # of a layer that keeps its initial weights
            _uncompiled(model).load_weights(path)
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("expected finite weights")
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserWarning) as error:
        raise InputError(
            f"{path}: expected the weights of this network, can't read them: {error} Train stage 1 again."
        ) from error


def _uncompiled(model: keras.Model) -> keras.Model:
    """A model of the same layers and name that has no optimiser; the name stands in a file of weights."""
    return keras.Model(model.input, model.output, name=model.name)
