"""Stage 1 of a run as one object: build, train, load the network, and read the features of every scan."""

import logging
from collections.abc import Mapping
from pathlib import Path

import keras
import pandas as pd

from config import Config
from model import build_model
from training import loop
from training.devices import Workers, join_training, start_tensorflow
from training.features import feature_table
from training.progress import LEAST_TEACHERS, MAP, ProgressMap, count_teachers, fit_progress
from training.progress_folds import fit_progress_network
from training.progress_network import ProgressNetwork
from training.risk_sets import Scans
from training.steps import Options
from training.weights import load_weights

ProgressModel = ProgressMap | ProgressNetwork

logger = logging.getLogger(__name__)


class Stage1:
    """The network of a run, with the settings and the threads that it is built, trained and read with.

    Args:
        config: of the run; of the trained run, where new subjects are predicted.
        threads: of the run.
    """

    def __init__(self, config: Config, threads: int):
        start_tensorflow(threads=threads, seed=config.SEED)
        self.config = config
        self.workers: Workers | None = None
        self.model: keras.Model | None = None  # the network that was loaded last
        self.progress: ProgressModel | None = None  # what was loaded with it; None: PROGRESS was off

    def join(self) -> Workers:
        """Make this process one of those that train; later calls give the same workers.

        Raises:
            InputError: fewer devices than DEVICES asks for, or no cluster is named.
        """
        if self.workers is None:
            self.workers = join_training(self.config.DISTRIBUTE, self.config.DEVICES)
        return self.workers

    def build(self, precision: str = "float32") -> keras.Model:
        """Build the network with its initial weights.

        Args:
            precision: of its convolutions; features and explanations are in float32.
        Returns:
            (B, X, Y, Z, 1) -> (B, 1) log-hazard; see `build_model`.
        """
        config = self.config
        return build_model(
            config.TARGET_SHAPE,
            width=config.WIDTH,
            norm=config.NORM,
            dropout=config.DROPOUT_RATE,
            precision=precision,
            seed=config.SEED,
        )

    def train(self, parts: Mapping[str, pd.DataFrame], folder: Path) -> None:
        """Train a network; the folder keeps it.

        Args:
            parts: tables of `train` and `val`, with `cache_entry`.
            folder: see `loop.train`.
        Raises:
            InputError, OSError, KeyboardInterrupt: as `loop.train`.
        """
        workers = self.join()
        with workers.report_lost_worker(), workers.strategy.scope():
            model = self.build(self.config.PRECISION)
        scans = {name: Scans.of(parts[name]) for name in ("train", "val")}
        options, save_seconds = Options.of(self.config), self.config.SAVE_SECONDS
        loop.train(model, scans, options, folder, workers=workers, save_seconds=save_seconds)

    def learn_progress(self, train: pd.DataFrame, folder: Path) -> None:
        """Learn progress, unless PROGRESS is off or it is there already; the folder keeps it.

        Where nobody can teach it there is none, and a warning says so.

        Args:
            train: the scans that it is learned from, with `cache_entry`.
            folder: of the training.
        """
        workers = self.join()
        if self.config.PROGRESS == "off" or not workers.is_first or (folder / MAP).is_file():
            return
        if count_teachers(train) < LEAST_TEACHERS:
            logger.warning("no progress: it is learned from two visits of %d subjects or more", LEAST_TEACHERS)
            return
        learned: ProgressModel
        if self.config.PROGRESS == "linear":
            learned = fit_progress(train, show=True)
        else:
            own = workers if workers.num_workers == 1 else Workers()  # the other machines have done their part
            options, backup = Options.of(self.config), folder / "backup"
            learned = fit_progress_network(train, options, backup, workers=own, show=True)
        learned.save(folder / MAP)

    def load(self, folder: Path) -> keras.Model:
        """Build the network with the weights that a training has left, and keep it as `model`, and its `progress`.

        Args:
            folder: of that training.
        Returns:
            The network, in float32.
        Raises:
            InputError: names the file that is absent, damaged or of another network.
        """
        self.model = self.build()
        load_weights(self.model, folder / loop.BEST_WEIGHTS)
        kind = ProgressNetwork if self.config.PROGRESS == "network" else ProgressMap
        self.progress = kind.load(folder / MAP) if (folder / MAP).is_file() else None
        return self.model

    def features(self, table: pd.DataFrame, *, learned: bool = False) -> pd.DataFrame:
        """The feature table of a part, by the network that was loaded last; see `features.feature_table`.

        Args:
            table: of the part, a row a scan, with `cache_entry`.
            learned: the part is the one that `progress` was learned from.
        """
        assert self.model is not None
        progress = None
        if self.progress is not None:
            progress = self.progress.left_out_of(table) if learned else self.progress(table["cache_entry"])
        return feature_table(self.model, table, progress, batch_size=self.config.BATCH_SIZE)
