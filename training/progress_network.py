"""Progress by a small network, which may say what a linear map can't.

The network reads the coarse voxels of one scan, less what a scanner may change: means of blocks, one convolution, its
positive part, means of blocks again, a weighted sum. It has no normalisation, so the progress of a scan depends on that
scan alone. It is trained by `training/progress_folds.py` on what `rate_loss` says.

Shapes: N scans, V coarse voxels or (x, y, z), (X, Y, Z) voxels of a volume. Times are years.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers, ops

from data import load_volume
from runs.files import written_whole
from training.progress import CoarseGrid, reading

CHANNELS = 8  # of a fold's network
INITIAL = 0.02  # size of what a new network gives, in standard deviations of the years
CHUNK = 32  # scans that are measured at a time
RATES = 10.0  # variance of the subjects' rates over that of what lies off their lines, in the unit of `rate_loss`


@dataclass(frozen=True)
class ProgressNetwork:
    """The trained network, and the linear map from a volume to the coarse voxels that it reads."""

    model: keras.Model  # of `build_network`
    grid: CoarseGrid
    nuisance: np.ndarray  # (V, K) float32 orthonormal fields on the coarse grid, of which the network sees nothing
    error: float  # left-out mean squared error of the years since a subject's mean visit, over their variance
    left_out: dict[str, float]  # years of each training scan, by its id, by a network without its subject

    def __call__(self, entries: Iterable[str | Path]) -> np.ndarray:
        """Measure scans.

        Args:
            entries: N files of cached volumes.
        Returns:
            (N,) progress, years.
        """
        paths = list(entries)
        chunks = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
        return np.concatenate([self._measure(load_volume(path) for path in chunk) for chunk in chunks])

    def of_volumes(self, volumes: np.ndarray) -> np.ndarray:
        """(B,) progress, years, of volumes (B, X, Y, Z, 1)."""
        return self._measure(volumes)

    def gradient(self, volumes: np.ndarray) -> np.ndarray:
        """(B, X, Y, Z, 1): d progress / d voxel of volumes of that shape."""
        gradients = np.empty(volumes.shape, np.float32)
        for index, volume in enumerate(volumes):
            coarse = tf.constant(self._coarse(volume)[None])
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(coarse)
                progress = self.model(coarse, training=False)
            of_coarse = self._without_nuisance(tape.gradient(progress, coarse).numpy().astype(float).ravel())
            gradients[index, ..., 0] = self.grid.to_volume(of_coarse)
        return gradients

    def left_out_of(self, train: pd.DataFrame) -> np.ndarray:
        """(N,) progress of training scans, by their ids, each by a network that was trained without its subject."""
        return train["scan"].map(self.left_out).to_numpy(float)

    def save(self, path: Path) -> None:
        """Write the network, whole."""
        kernel, bias, dense = self.model.get_weights()
        scans, years = zip(*self.left_out.items(), strict=True)
        network = {"kernel": kernel, "bias": bias, "dense": dense, "nuisance": self.nuisance, "shape": self.grid.full}
        with written_whole(path) as part:
            np.savez_compressed(part, **network, error=self.error, scans=np.array(scans), years=years)

    @classmethod
    def load(cls, path: Path) -> "ProgressNetwork":
        """Read what `save` wrote.

        Raises:
            InputError: the file is absent or damaged.
        """
        with reading(path, "a network of progress") as (saved, left_out):
            grid = CoarseGrid(tuple(saved["shape"].tolist()))
            model = build_network(grid.shape, channels=len(saved["bias"]))
            model.set_weights([saved[name] for name in ("kernel", "bias", "dense")])
            return cls(model, grid, saved["nuisance"], float(saved["error"]), left_out)

    def _measure(self, volumes: Iterable[np.ndarray]) -> np.ndarray:
        return predict(self.model, np.stack([self._coarse(volume) for volume in volumes]))

    def _coarse(self, volume: np.ndarray) -> np.ndarray:
        """(x, y, z, 1) float32: what the network reads of a volume (X, Y, Z, 1)."""
        voxels = self._without_nuisance(self.grid.of_volume(volume[..., 0]))
        return voxels.reshape(*self.grid.shape, 1).astype(np.float32)

    def _without_nuisance(self, voxels: np.ndarray) -> np.ndarray:
        return voxels - self.nuisance @ (voxels @ self.nuisance)


# ---- The network and what it is trained for ---------------------------------------------------------------
def build_network(
    shape: tuple[int, ...], *, channels: int = CHANNELS, seed: Sequence[int] = (0,), dtype: str = "float32"
) -> keras.Model:
    """Build the network with its initial weights.

    Args:
        shape: (x, y, z) coarse voxels of a scan.
        channels: of the convolution.
        seed: of the initial weights.
        dtype: `float32`, or `float64` to check gradients with.
    Returns:
        (B, x, y, z, 1) -> (B, 1) progress; its weights are the convolution's kernel and bias, and those of the sum.
    """
    rng = np.random.default_rng(seed)
    first, last = (int(rng.integers(2**31)) for _ in range(2))
    voxels = keras.Input((*shape, 1), dtype=dtype)
    x = _halved(voxels)
    x = layers.Conv3D(
        channels,
        3,
        padding="same",
        activation="relu",
        kernel_initializer=keras.initializers.HeNormal(seed=first),
        dtype=dtype,
    )(x)
    x = layers.Flatten(dtype=dtype)(_halved(x))
    size = keras.initializers.RandomNormal(stddev=INITIAL / math.sqrt(x.shape[-1]), seed=last)
    return keras.Model(voxels, layers.Dense(1, use_bias=False, kernel_initializer=size, dtype=dtype)(x))


def _halved(values: Any) -> Any:
    """Means of blocks of 2 x 2 x 2 (Keras' own have no float64 on a CPU); beyond an odd edge lie zeros."""
    values = ops.pad(values, [(0, 0), *((0, size % 2) for size in values.shape[1:4]), (0, 0)])
    for axis in (1, 2, 3):
        before, size, after = values.shape[1:axis], values.shape[axis], values.shape[axis + 1 :]
        values = ops.mean(ops.reshape(values, (-1, *before, size // 2, 2, *after)), axis=axis + 1)
    return values


def predict(model: keras.Model, voxels: np.ndarray) -> np.ndarray:
    """(N,) what the network gives of coarse voxels (N, x, y, z, 1), CHUNK scans at a time."""
    chunks = [voxels[at : at + CHUNK] for at in range(0, len(voxels), CHUNK)]
    return np.concatenate([np.empty(0, np.float32), *(model(chunk, training=False)[:, 0] for chunk in chunks)])


def rate_loss(progress: tf.Tensor, subject: tf.Tensor, years: tf.Tensor) -> tf.Tensor:
    """How far progress is from a line of each subject's own, whose rate lies around 1.

    The mean over subjects of (squared distances from the line) + Q (b - 1)^2 / (1 + RATES Q), where b is the rate of
    the line and Q the sum of squares of the years since the subject's mean visit. With RATES 0 any two visits of a
    subject should differ by the years between them; with more, a subject may change faster or slower than others, and
    what lies off its line weighs more.

    Args:
        progress: (N,) float.
        subject: (N,) int; the same number is the same subject.
        years: (N,) of the visits, in a unit in which Q is 1 on average.
    Returns:
        Scalar; 0, attached to the graph, if nobody has two visits.
    Source: Laird and Ware (1982): lines with random slopes, of which this is twice the negative log-likelihood for a
        given variance, but for what does not depend on progress. Checked against the matrix form.
    """
    index = tf.unique(subject)[1]  # (N,)

    def total(values: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(values, index, tf.reduce_max(index) + 1)  # (S,) of the subjects

    number = total(tf.ones_like(progress))
    years, change = (values - tf.gather(total(values) / number, index) for values in (years, progress))
    spread = total(years**2)
    rate = tf.math.divide_no_nan(total(years * change), spread)
    off_line = total((change - tf.gather(rate, index) * years) ** 2)
    return tf.reduce_mean(off_line + spread * (rate - 1) ** 2 / (1 + RATES * spread))
