import numpy as np
import pandas as pd
import pytest

import callbacks


class Kept(callbacks.KeptWeights):
    """Writes the number of the epoch instead of weights."""

    def __init__(self, folder, last=None):
        super().__init__(folder / "kept", lambda path: path.write_text(str(self.epoch)), last=last)

    def follow(self, epochs, begin=0):
        """Go through epochs of these C-indices and losses; returns the column `kept` of their history."""
        column = []
        for self.epoch, (c_index, loss) in enumerate(epochs, start=begin):
            logs = {"val_c_index": c_index, "val_loss": loss}
            self.on_epoch_end(self.epoch, logs)
            column.append(logs["kept"])
        return column


RISING = [(0.6, 1.0), (0.7, 1.0), (0.65, 0.5)]


@pytest.mark.parametrize(
    ("epochs", "last", "column"),
    [
        (RISING, None, [1, 1, 0]),
        ([(0.7, 1.0), (0.7, 0.9), (0.7, 1.1)], None, [1, 1, 0]),
        ([(0.7, 1.0), (0.7, 1.0)], None, [1, 0]),
        (RISING, 2, [1, 1, 1]),
        ([(0.7, 1.0), (0.2, 9.0), (0.1, 9.0), (0.3, 9.0)], 3, [1, 0, 0, 1]),
        (RISING, 9, [1, 1, 0]),
        ([(0.5, 1.0)], 0, [1]),
    ],
    ids=[
        "highest C",
        "ties by loss",
        "the first of equals",
        "last",
        "last though worse",
        "stopped before",
        "one epoch",
    ],
)
def test_the_epoch_that_is_kept(tmp_path, epochs, last, column):
    weights = Kept(tmp_path, last)
    assert weights.follow(epochs) == column
    assert weights.path.read_text() == str(np.flatnonzero(column)[-1])


@pytest.mark.parametrize("last", [None, 2])
def test_replayed_epochs_write_nothing_and_count(tmp_path, last):
    weights = Kept(tmp_path, last)
    weights.replaying = True
    assert weights.follow(RISING[:2]) == [1, 1]
    assert not weights.path.exists() and weights.best == (0.7, -1.0)
    weights.replaying = False
    assert weights.follow(RISING[2:], begin=2) == [int(last == 2)]
    assert weights.path.exists() == (last == 2)


def test_the_validation_is_over_subjects_not_scans():
    """Two subjects with 2 scans: only the last scans count, whatever the first ones say."""
    last, time, event = np.array([False, True] * 2), np.array([3.0, 2.0, 5.0, 4.0]), np.array([True, True, True, True])
    for first in (-9.0, 9.0):
        watch = callbacks.ValidationConcordance(
            lambda first=first: np.array([first, 1.0, -first, 0.0]), lambda risk: 0.5, last=last, time=time, event=event
        )
        logs = {}
        watch.on_epoch_end(0, logs)
        assert logs == {"val_loss": 0.5, "val_c_index": 1.0}


def test_a_row_an_epoch(tmp_path):
    history = callbacks.History(tmp_path / "history.csv")
    for epoch in range(3):
        history.on_epoch_end(epoch, {"loss": 1.0 / (epoch + 1), "val_loss": 2.0})
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["epoch"].tolist() == [1, 2, 3] and table["loss"].tolist() == pytest.approx([1, 0.5, 1 / 3])
