"""What the trained network says of every scan: its pooled features and its log-hazard."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from model import feature_model
from runs.errors import InputError
from training.devices import Workers

logger = logging.getLogger(__name__)

Predict = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


def make_predict(model: keras.Model, workers: Workers | None = None) -> Predict:
    """Compile the network's prediction once.

    Args:
        model: of `build_model`.
        workers: each predicts every scan, with its own devices; None: this process alone.
    Returns:
        A function of cached scans (files) and a batch size (volumes): features (N, F) and log-hazards (N,).
    """
    workers = workers or Workers()
    strategy, shape, both = workers.strategy, model.input_shape[1:4], feature_model(model)
    num_local = workers.num_devices // workers.num_workers

    @tf.function(input_signature=(workers.batch_spec(shape),))
    def outputs(batch: Any) -> Any:
        return strategy.run(lambda volumes, _: both(volumes, training=False), args=batch)

    def predict(entries: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        batches = np.split(np.arange(len(entries)), range(batch_size, len(entries), batch_size))
        batches += batches[-1:] * (-len(batches) % num_local)  # so that no device is without; left out again below
        rounds = [batches[i : i + num_local] * workers.num_workers for i in range(0, len(batches), num_local)]
        reader = workers.read_batches(entries, shape, [batch for of_round in rounds for batch in of_round])
        results = [outputs(next(reader)) for _ in rounds]
        features, log_hazard = (
            np.concatenate(
                [part.numpy() for result in results for part in strategy.experimental_local_results(result[output])]
            )
            for output in (0, 1)
        )
        return features[: len(entries)], log_hazard[: len(entries), 0]

    return predict


def feature_table(
    model: keras.Model, table: pd.DataFrame, progress: np.ndarray | None = None, *, batch_size: int
) -> pd.DataFrame:
    """The feature table of a part.

    Args:
        model: of `build_model`, trained.
        table: of the part, with `cache_entry`.
        progress: (N,) years along the course of these scans; None: there is no such column.
        batch_size: volumes in memory at a time.
    Returns:
        The table without its files' columns, then `log_hazard`, `progress` and `feature_1` ... `feature_512` (at width
        64).
    Raises:
        InputError: an output is not finite; names the scans.
    """
    features, log_hazard = make_predict(model)(table["cache_entry"].to_list(), batch_size)
    is_finite = np.isfinite(features).all(axis=1) & np.isfinite(log_hazard)
    if not is_finite.all():
        raise InputError(
            f"Stage 1 gives numbers that are not finite for {', '.join(table['scan'][~is_finite])}. Look at these "
            "scans; remove their volumes from the cache, if they are sound."
        )
    if len(table) > 1 and np.ptp(log_hazard) == 0:
        logger.warning(
            "stage 1 gives each of %d scans the same log-hazard, %g: the scans are alike, or the network has learned "
            "nothing (lower LEARNING_RATE)",
            len(table),
            log_hazard[0],
        )
    names = [f"feature_{number}" for number in range(1, features.shape[1] + 1)]
    named = pd.DataFrame(features, columns=names, index=table.index)
    table = table.drop(columns=["nifti_path", "cache_entry"])
    table = table.assign(log_hazard=log_hazard)
    if progress is not None:
        table = table.assign(progress=progress)
    return pd.concat([table, named], axis=1)
