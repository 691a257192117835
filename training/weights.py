"""TODO: training.weights."""

import os
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np

from runs.errors import InputError

LARGEST_FILE = 4  # numbers in a file of weights for each of the network's: older ones hold the optimiser's too
H5_OVERHEAD = 2**20  # bytes, at most, of a file of weights beside the weights


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Write the weights, without the optimiser's state that Keras adds to those of a compiled model.

    Args:
        model: of `build_model`.
        path: of a `.weights.h5`; see `files.written_whole`.
    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):  # HDF5 crashes the process on a full disk: ask for the room before it does
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, sum(weights.nbytes for weights in model.get_weights()) + H5_OVERHEAD)
    _bare(model).save_weights(path)


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Take over the weights that a training left.

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
        with warnings.catch_warnings(action="error", category=UserWarning):  # of a layer that stays as it was drawn
            _bare(model).load_weights(path)
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("expected finite weights")
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserWarning) as error:
        raise InputError(
            f"{path}: expected the weights of this network, can't read them: {error} Train stage 1 again."
        ) from error


def _bare(model: keras.Model) -> keras.Model:
    """The same layers, not compiled."""
    return keras.Model(model.input, model.output)
