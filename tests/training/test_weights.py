"""Weights on disk, and their running averages."""

import numpy as np
import pytest
from volumes import build, options, weights

from training import loop
from training.devices import Workers
from training.weights import save_weights


def averaged_training(parts, folder):
    """A training after a step, so that the averages are not the weights."""
    training = loop.Training(build(), parts, options(ema=0.9, epochs=1), folder, Workers(), 60.0)
    training.run_epoch(0)
    return training


def test_the_averages_stand_in_for_the_weights_and_leave_again(parts, tmp_path):
    training = averaged_training(parts, tmp_path)
    own, averages = weights(training.model), [average.numpy() for average in training.steps.ema.averages]
    with training.steps.ema.swap_in_ema():
        inside = [np.array(variable.numpy()) for variable in training.model.trainable_variables]
    assert all((a == b).all() for a, b in zip(inside, averages, strict=True))
    assert any((a != b).any() for a, b in zip(inside, (w.numpy() for w in training.steps.weights), strict=True))
    assert all((a == b).all() for a, b in zip(weights(training.model), own, strict=True))


@pytest.mark.parametrize("kind", ["predict", "save"])
def test_an_error_while_the_averages_stand_in_leaves_the_right_weights(parts, tmp_path, monkeypatch, kind):
    """Training goes on from the weights, and a saved state holds them, whatever a validation or a full disk raised."""
    training = averaged_training(parts, tmp_path)
    own = weights(training.model)

    def fail(*_):
        raise OSError("the disk is full")

    if kind == "predict":
        training.predict = fail
    else:
        monkeypatch.setattr(loop, "save_weights", fail)
    with pytest.raises(OSError, match="the disk is full"):
        training.predict_averaged(parts["val"]) if kind == "predict" else training.save_averaged(tmp_path / "w")
    assert all((a == b).all() for a, b in zip(weights(training.model), own, strict=True))


def test_the_file_does_not_depend_on_how_many_models_were_built_before(tmp_path):
    """A resumed run saves less often than an unbroken one; what it leaves is the same, name by name."""
    model = build()
    for name in ("first", "second"):
        save_weights(model, tmp_path / f"{name}.weights.h5")
        build()
    assert (tmp_path / "first.weights.h5").read_bytes() == (tmp_path / "second.weights.h5").read_bytes()
