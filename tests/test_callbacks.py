import numpy as np
import pandas as pd
import pytest

import callbacks


@pytest.fixture
def kept(tmp_path):
    return callbacks.BestWeights(tmp_path / "best", lambda path: path.write_text(str(kept_epoch[0])))


kept_epoch = [0]


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ([(0.6, 1.0), (0.7, 1.0), (0.65, 0.5)], 1),
        ([(0.7, 1.0), (0.7, 0.9), (0.7, 1.1)], 1),
        ([(0.7, 1.0), (0.7, 1.0)], 0),
    ],
    ids=["highest C", "ties by loss", "the first of equals"],
)
def test_the_best_epoch_is_kept(kept, epochs, best):
    for epoch, (c_index, loss) in enumerate(epochs):
        kept_epoch[0] = epoch
        kept.on_epoch_end(epoch, {"val_c_index": c_index, "val_loss": loss})
    assert kept.path.read_text() == str(best)


def test_replayed_epochs_write_nothing(kept):
    kept.replaying = True
    kept.on_epoch_end(0, {"val_c_index": 0.9, "val_loss": 1.0})
    assert not kept.path.exists() and kept.best == (0.9, -1.0)


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
