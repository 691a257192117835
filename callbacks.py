"""What happens at the end of a step or an epoch of stage 1.

The learning rate, choices on the validation part, records, and the progress bar.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from runs.files import written_whole
from survival.estimates import concordance

Logs = dict[str, Any]  # Keras' figures of a step or an epoch


class LearningRate(keras.callbacks.Callback):
    """Set the learning rate of each step: a linear warm-up, then a cosine to 0, or what a plateau callback has left.

    Args:
        peak: the rate after the warm-up.
        schedule: `cosine`, or `plateau`: nothing is changed after the warm-up.
        warmup_epochs: epochs over which the rate rises from 0.
        epochs: of the whole training.
    """

    def __init__(self, peak: float, schedule: Literal["cosine", "plateau"], *, warmup_epochs: float, epochs: int):
        super().__init__()
        self.peak, self.schedule, self.warmup_epochs, self.epochs = peak, schedule, warmup_epochs, epochs
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Note which epoch (from 0) the next steps belong to."""
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Set the rate of this step (from 0 in its epoch)."""
        num_steps = self.params["steps"]  # of an epoch
        step, warm = self.epoch * num_steps + batch, self.warmup_epochs * num_steps
        if step < warm:
            self.model.optimizer.learning_rate = self.peak * (step + 1) / (warm + 1)
        elif self.schedule == "cosine":
            done = (step - warm) / max(1.0, self.epochs * num_steps - warm)  # share 0 to 1
            self.model.optimizer.learning_rate = self.peak * 0.5 * (1 + math.cos(math.pi * done))
        elif step < warm + 1:
            self.model.optimizer.learning_rate = self.peak


class ValidationConcordance(keras.callbacks.Callback):
    """Put `val_c_index`, over subjects, and `val_loss` into the epoch's logs. First in the list.

    Args:
        predict: returns the log-hazards of every validation scan, (N,).
        loss: takes them, returns the validation loss.
        last: (N,) bool; True for the last scan of its subject, which alone counts in the C-index.
        time: (N,) years left at each scan.
        event: (N,) bool.
        agree: takes the figures, returns those that count: the first worker's, on every worker.
    """

    def __init__(
        self,
        predict: Callable[[], np.ndarray],
        loss: Callable[[np.ndarray], float],
        *,
        last: np.ndarray,
        time: np.ndarray,
        event: np.ndarray,
        agree: Callable[[dict[str, float]], dict[str, float]] = dict,
    ):
        super().__init__()
        self.predict, self.loss, self.agree = predict, loss, agree
        self.last, self.time, self.event = last, time, event

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Add the validation part's figures to `logs`."""
        log_hazard = self.predict()
        logs = {} if logs is None else logs
        c_index = concordance(log_hazard[self.last], self.time[self.last], self.event[self.last])
        logs |= self.agree({"val_loss": self.loss(log_hazard), "val_c_index": c_index})


class KeptWeights(keras.callbacks.Callback):
    """Keep one epoch's weights, whole on disk, and put `kept` into the epoch's logs: 1 where they were written, else 0.

    Written are those of each epoch that is the best so far on validation: the highest C-index, of equal ones the lowest
    loss. Those of `last` replace them, whatever its figures; a training that stops before it leaves the best ones.

    Args:
        path: of the file of weights.
        save: writes the weights to the path that it is given.
        last: epoch, from 0, that is kept even if another was better; None: the best is kept.
    """

    def __init__(self, path: str | Path, save: Callable[[Path], None], *, last: int | None = None):
        super().__init__()
        self.path, self.save, self.last = Path(path), save, last
        self.best: tuple[float, float] | None = None  # C-index, and the loss times -1
        self.replaying = False  # a resumed run's old epochs: their weights are on disk already

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Save if this epoch is the best so far, or the last one."""
        assert logs is not None
        score = (logs["val_c_index"], -logs["val_loss"])
        is_best = self.best is None or score > self.best
        if is_best:
            self.best = score
        is_kept = is_best or epoch == self.last
        if is_kept and not self.replaying:
            with written_whole(self.path) as part:
                self.save(part)
        logs["kept"] = int(is_kept)


class History(keras.callbacks.Callback):
    """A row an epoch, in memory and in a CSV that is written whole.

    Args:
        path: of the CSV.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Add this epoch's row."""
        self.rows.append({"epoch": epoch + 1, **(logs or {})})
        with written_whole(self.path) as part:
            pd.DataFrame(self.rows).to_csv(part, index=False)


class Progress(keras.callbacks.Callback):
    """A bar an epoch, with the loss; then the validation's figures.

    Args:
        epochs: of the whole training.
        shown: whether the bar is drawn.
    """

    def __init__(self, epochs: int, *, shown: bool = True):
        super().__init__()
        self.epochs, self.shown = epochs, shown
        self.done = 0  # steps of the next epoch that a stopped run did
        self.bar: tqdm | None = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Open the bar."""
        title = f"epoch {epoch + 1}/{self.epochs}"
        self.bar = tqdm(total=self.params["steps"], initial=self.done, desc=title, unit="step", disable=not self.shown)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Move on by a step."""
        if self.bar is not None and logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}", refresh=False)
            self.bar.update()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Show the validation's figures and close the bar."""
        if self.bar is not None and logs:
            figures = f"loss {logs['loss']:.4f}, val loss {logs['val_loss']:.4f}, val C {logs['val_c_index']:.3f}"
            self.bar.set_postfix_str(figures)
            self.close()

    def close(self) -> None:
        """Leave the bar as it stands; what is printed next has a line of its own."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
