"""The loop: what it learns and keeps, how it stops and goes on, what it refuses."""

import json
import os
import signal
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from volumes import SHAPE, build, options, train, weights

import loss
from runs import processes
from runs.errors import InputError
from training import loop
from training.devices import Workers
from training.features import make_predict
from training.steps import Steps


def test_a_float16_step_beyond_its_range_is_left_out_and_counted(parts, tmp_path):
    model = build(precision="mixed_float16")
    before = weights(model)
    training = loop.Training(model, parts, options(precision="mixed_float16"), tmp_path, Workers(), 60.0)
    training.callbacks = keras.callbacks.CallbackList(model=model)
    training.steps.optimizer.dynamic_scale.assign(2.0**127)
    logs = training.run_epoch(0)
    assert logs["skipped_steps"] == 4 and float(training.steps.optimizer.dynamic_scale) == 2.0**123
    trained = [variable.name in ("kernel", "gamma", "beta") for variable in model.weights]
    same = [bool((a == b).all()) for a, b in zip(before, weights(model), strict=True)]
    assert all(equal for equal, weight in zip(same, trained, strict=True) if weight)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_it_learns_in_half_precision(parts, tmp_path, precision):
    train(build(precision=precision), parts, options(epochs=6, learning_rate=3e-3, precision=precision), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["val_c_index"].max() > 0.8
    if precision == "mixed_float16":
        assert history["skipped_steps"].sum() < 12


def test_it_learns_who_is_early(parts, tmp_path):
    model = build()
    train(model, parts, options(epochs=8, learning_rate=3e-3), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history.columns[0] == "epoch"
    assert {"loss", "val_loss", "val_c_index", "learning_rate", "seconds"} <= set(history.columns)
    assert history["val_c_index"].max() > 0.8
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [({}, "last"), ({"keep_epoch": "best"}, "best"), ({"lr_schedule": "plateau"}, "best")],
    ids=["last", "best", "best with a plateau"],
)
def test_the_epoch_that_is_kept(parts, tmp_path, caplog, changes, rule):
    caplog.set_level("INFO")
    model = build()
    train(model, parts, options(epochs=4, **changes), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    best = history.sort_values(["val_c_index", "val_loss"], ascending=[False, True]).iloc[0]
    expected = history.iloc[-1] if rule == "last" else best
    assert history[history["kept"] == 1]["epoch"].iloc[-1] == expected["epoch"]
    assert f"epoch {expected['epoch']:.0f} is kept, validation C-index {expected['val_c_index']:.3f}" in caplog.text
    part = parts["val"]
    log_hazard = make_predict(model)(part.entries, 5)[1]
    assert float(loss.cox_loss(log_hazard, part.outcome.time, part.outcome.event)) > 0
    from survival.estimates import concordance

    found = concordance(log_hazard[part.last], part.outcome.time[part.last], part.outcome.event[part.last])
    assert found == pytest.approx(expected["val_c_index"])
    kept = build()
    kept.load_weights(tmp_path / "best.weights.h5")
    assert all((a == b).all() for a, b in zip(weights(kept), weights(model), strict=True))


def test_the_test_part_is_never_looked_at(parts, tmp_path):
    """Training takes no other part; a test part in the hands of `train` would not be read."""
    with_test = parts | {"test": None}
    train(build(), with_test, options(epochs=1), tmp_path)
    assert "test" not in (tmp_path / "history.csv").read_text()


def test_no_patience_stops_early(parts, tmp_path):
    model = build()
    train(model, parts, options(epochs=30, patience=1, learning_rate=1e-9), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert len(history) < 30
    best = history.sort_values(["val_c_index", "val_loss"], ascending=[False, True]).iloc[0]
    assert history[history["kept"] == 1]["epoch"].iloc[-1] == best["epoch"] < len(history)


def with_events(part, subjects):
    """A part where the subjects of these numbers alone have an event."""
    return replace(part, outcome=part.outcome._replace(event=np.isin(part.outcome.subject, subjects)))


@pytest.mark.parametrize(
    ("name", "subjects", "message"),
    [
        ("train", [], r"the training part: expected a subject with an event .* received 0 events of 20 subjects"),
        ("val", [], r"the validation part: expected .* received 0 events of 12 subjects"),
        ("train", [0, 1], r"RISK_SET: expected 10 or more subjects.* \(2 of 20 training .*, received 6"),
    ],
)
def test_too_few_events_are_refused_before_training(parts, tmp_path, name, subjects, message):
    with pytest.raises(InputError, match=message):
        train(build(), parts | {name: with_events(parts[name], subjects)}, options(), tmp_path)
    assert not (tmp_path / "history.csv").exists()


@pytest.mark.parametrize(("number", "rows"), [(np.nan, [3]), (np.inf, [0, 5])])
def test_a_validation_that_is_not_finite_is_refused_by_scan(parts, tmp_path, monkeypatch, number, rows):
    log_hazard = np.zeros(len(parts["val"].entries), np.float32)
    log_hazard[rows] = number
    monkeypatch.setattr(loop, "make_predict", lambda model, workers: lambda entries, size: (None, log_hazard))
    named = ", ".join(parts["val"].scan[rows])
    with pytest.raises(InputError, match=f"validation: the log-hazards of {named} are not finite"):
        train(build(), parts, options(epochs=1), tmp_path)


class Killed(Exception):
    """A kill, as far as the loop can tell."""


def killed_at(monkeypatch, *kills):
    """Kill trainings at these steps, counted over all of them: before the step, or while its state is saved."""
    step, calls, save = Steps.step, [], loop.Training.save

    def stepped(self, *args):
        calls.append(None)
        if len(calls) in kills:
            raise Killed
        return step(self, *args)

    def saved(self):
        if -len(calls) in kills:
            (self.folder / "backup").mkdir(parents=True, exist_ok=True)
            (self.folder / "backup" / ".part-state.npz").write_bytes(b"half")
            raise Killed
        save(self)

    monkeypatch.setattr(Steps, "step", stepped)
    monkeypatch.setattr(loop.Training, "save", saved)


@pytest.mark.parametrize(
    ("changes", "save_seconds"),
    [({"lr_schedule": "plateau"}, 1e9), ({"ema": 0.9, "augment_shift": 0.5}, 0.0)],
)
def test_a_killed_training_goes_on_as_if_it_had_not_been(parts, tmp_path, monkeypatch, changes, save_seconds):
    """Twice in one epoch and once in a write, saved at every step or at the ends of epochs alone."""
    whole, chosen = build(dropout=0.3), options(epochs=4, batch_size=5, **changes)
    train(whole, parts, chosen, tmp_path / "whole")
    killed_at(monkeypatch, 6, 8, -12)
    for _ in range(3):
        with pytest.raises(Killed):
            train(build(dropout=0.3), parts, chosen, tmp_path / "cut", save_seconds=save_seconds)
    resumed = build(dropout=0.3)
    train(resumed, parts, chosen, tmp_path / "cut", save_seconds=save_seconds)
    rows = [pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    assert all((a == b).all() for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_signal_lets_the_step_finish_and_its_state_is_saved(parts, tmp_path, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    processes.stop_on_signals()
    step, done = Steps.step, []

    def stepped(self, *args):
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(step(self, *args))
        return done[-1]

    monkeypatch.setattr(Steps, "step", stepped)
    with pytest.raises(KeyboardInterrupt):
        train(build(), parts, options(), tmp_path, save_seconds=1e9)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    processes.stop_on_signals.__globals__["_stop"].reason = ""
    assert len(done) == 3
    with np.load(tmp_path / "backup" / "state.npz") as state:
        assert json.loads(str(state["record"]))["done"]["losses"] == done


def test_a_backup_of_other_options_or_a_damaged_one_is_refused(parts, tmp_path):
    train(build(), parts, options(epochs=1), tmp_path)
    with pytest.raises(InputError, match="is of other settings"):
        train(build(), parts, options(epochs=1, learning_rate=1.0), tmp_path)
    with pytest.raises(InputError, match="is of other settings"):
        train(build(), parts, options(epochs=1, keep_epoch="best"), tmp_path)
    state = tmp_path / "backup" / "state.npz"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="can't be read"):
        train(build(), parts, options(epochs=1), tmp_path)


def test_a_backup_of_before_there_was_an_option_goes_on_with_the_value_of_before(parts, tmp_path):
    """A state without `keep_epoch` is of a training that keeps the best one."""
    train(build(), parts, options(epochs=1, keep_epoch="best"), tmp_path)
    with np.load(tmp_path / "backup" / "state.npz") as state:
        assert "keep_epoch" not in json.loads(str(state["record"]))["options"]
    train(build(), parts, options(epochs=1, keep_epoch="best"), tmp_path)
    with pytest.raises(InputError, match="is of other settings"):
        train(build(), parts, options(epochs=1, keep_epoch="last"), tmp_path)


def test_a_loss_that_is_not_finite_names_the_scans(parts, tmp_path):
    entry = tmp_path / "nan.npy"
    np.save(entry, np.full(SHAPE, np.nan, np.float16))
    part = parts["train"]
    spoilt = replace(part, entries=[str(entry), *part.entries[1:]])
    with pytest.raises(InputError, match=r"the loss is nan on the scans .*s000_0"):
        train(build(), parts | {"train": spoilt}, options(), tmp_path)


def test_the_step_is_compiled_once(parts, tmp_path):
    """Though the last risk set and its micro-batches are smaller."""
    training = loop.Training(build(), parts, options(epochs=3, batch_size=5), tmp_path, Workers(), 60.0)
    training.run()
    names = ("predict_in_training", "loss_gradient", "backpropagate", "apply")
    traces = {name: getattr(training.steps, name).experimental_get_tracing_count() for name in names}
    assert traces == dict.fromkeys(names, 1)


def test_keras_callbacks_are_driven(parts, tmp_path):
    """An ordinary Keras callback, ReduceLROnPlateau, halves the rate when nothing improves."""
    train(build(), parts, options(epochs=4, lr_schedule="plateau", patience=2, learning_rate=1e-9), tmp_path)
    rates = pd.read_csv(tmp_path / "history.csv")["learning_rate"]
    assert rates.iloc[-1] < rates.iloc[0]
