"""TODO: training.features."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from model import feature_model
from training.devices import Workers


def make_predict(
    model: keras.Model, workers: Workers | None = None
) -> Callable[[list[Path], int], tuple[np.ndarray, np.ndarray]]:
    """A function of cached scans and a batch size: features (N, F) and log-hazards (N,), compiled once.

    Each worker predicts every scan, with its own devices.
    """
    workers = workers or Workers()
    strategy, shape, both = workers.strategy, model.input_shape[1:4], feature_model(model)
    here = workers.devices // workers.number

    @tf.function(input_signature=(workers.spec(shape),))
    def outputs(batch):
        return strategy.run(lambda volumes, _: both(volumes, training=False), args=batch)

    def predict(entries: list[Path], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        batches = np.split(np.arange(len(entries)), range(batch_size, len(entries), batch_size))
        batches += batches[-1:] * (-len(batches) % here)  # so that no device is without; left out again below
        everywhere = [one for i in range(0, len(batches), here) for one in batches[i : i + here] * workers.number]
        feed = workers.feed(entries, shape, everywhere)
        rounds = [outputs(next(feed)) for _ in range(len(batches) // here)]
        features, log_hazard = (
            np.concatenate([part.numpy() for one in rounds for part in strategy.experimental_local_results(one[kind])])
            for kind in (0, 1)
        )
        return features[: len(entries)], log_hazard[: len(entries), 0]

    return predict


def extract_features(model: keras.Model, table: pd.DataFrame, entries: list[Path], *, batch_size: int) -> pd.DataFrame:
    """The feature table of a part: its columns, `log_hazard`, and `feature_1` ... `feature_512` at width 64."""
    features, log_hazard = make_predict(model)(entries, batch_size)
    names = [f"feature_{number}" for number in range(1, features.shape[1] + 1)]
    named = pd.DataFrame(features, columns=names, index=table.index)
    return pd.concat([table, pd.Series(log_hazard, table.index, name="log_hazard"), named], axis=1)
