import json
import os
import signal

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from volumes import SHAPE, part_of

import loss
from cohort import tables
from data import load_volumes
from model import build_model
from runs import processes
from runs.errors import InputError
from training import loop
from training.devices import Workers
from training.features import extract_features, make_predict
from training.risk_sets import Scans, draw_risk_sets
from training.steps import Options, Steps


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    return {"train": part_of(folder, 20, rng)[1], "val": part_of(folder, 12, rng, "v")[1]}


def options(**changes):
    return Options(**({"epochs": 3, "risk_set": 6, "batch_size": 12, "augment_shift": 0.0} | changes))


def build(**changes):
    return build_model(SHAPE, width=4, seed=1, **changes)


def weights(model):
    return [np.array(value) for value in model.get_weights()]


def test_a_part_knows_its_last_scans_and_the_time_left(parts):
    part = parts["train"]
    assert part.last.tolist() == [False, True] * 20
    assert part.subject.tolist() == list(np.repeat(range(20), 2))
    np.testing.assert_allclose(part.time[0::2] - part.time[1::2], 1.0, atol=1e-6)


def test_risk_sets_are_whole_subjects_each_once_with_events_everywhere(parts):
    part = parts["train"]
    sets = draw_risk_sets(part, 6, np.random.default_rng(0))
    assert sorted(np.concatenate(sets)) == list(range(40))
    assert [len(set(part.subject[rows])) for rows in sets] == [6, 6, 6, 2]
    for rows in sets:
        assert set(rows) == set(np.flatnonzero(np.isin(part.subject, part.subject[rows])))
        assert part.event[rows].any()
    assert [4 <= len(set(part.subject[rows][part.event[rows]])) <= 5 for rows in sets[:3]] == [True] * 3
    again = draw_risk_sets(part, 6, np.random.default_rng(0))
    other = draw_risk_sets(part, 6, np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(sets, again, strict=True))
    assert any((a != b).any() for a, b in zip(sets, other, strict=True))


def steps_of(parts, model, **changes):
    return Steps(model, options(**changes), parts["train"].outcome, Workers())


def take_step(steps, part, rows):
    batches = steps.passes(steps.split(rows))
    return steps.step(rows, steps.workers.feed(part.entries, SHAPE, batches), 0)


def accumulated(parts, *, batch_size, norm, dropout, visit_order=4.0, kind="cox"):
    """The gradient that a step over 6 subjects accumulates, and the model's state after it."""
    model = build(norm=norm, dropout=dropout)
    steps = steps_of(parts, model, batch_size=batch_size, loss=kind, visit_order_weight=visit_order)
    found = {}
    steps.apply = lambda: found.update(gradients=[total.numpy() for total in steps.gradients])
    rows = draw_risk_sets(parts["train"], 6, np.random.default_rng(0))[0]
    value = take_step(steps, parts["train"], rows)
    return value, found["gradients"], [variable.numpy() for variable in steps.state]


@pytest.mark.parametrize("kind", ["cox", "rank"])
@pytest.mark.parametrize("batch_size", [1, 5, 6])
def test_the_gradient_is_that_of_the_whole_risk_set(parts, batch_size, kind):
    """With group normalisation micro-batches change nothing: the cached gradient is the full batch's."""
    whole = accumulated(parts, batch_size=12, norm="group", dropout=0.0, kind=kind)
    cached = accumulated(parts, batch_size=batch_size, norm="group", dropout=0.0, kind=kind)
    assert cached[0] == pytest.approx(whole[0], abs=1e-5)
    scale = max(np.abs(gradient).max() for gradient in whole[1])
    for a, b in zip(cached[1], whole[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * scale)


def test_both_passes_drop_and_normalise_alike(parts):
    """One tape over the same micro-batches, with batch normalisation and dropout, gives the cached gradient."""
    _, cached, state = accumulated(parts, batch_size=4, norm="batch", dropout=0.5)
    model, part = build(norm="batch", dropout=0.5), parts["train"]
    rows = draw_risk_sets(part, 6, np.random.default_rng(0))[0]
    steps = steps_of(parts, model, batch_size=4)
    with tf.GradientTape() as tape:
        risks = []
        for micro in steps.split(rows):
            with steps._scope(tf.constant(0), tf.constant(micro, tf.int32)) as scope:
                volumes = tf.constant(load_volumes([part.entries[row] for row in micro]))
                risks.append(steps._log_hazard(volumes, tf.constant(0), tf.constant(micro, tf.int32)))
                after = [scope.get_current_value(variable) for variable in steps.state]
            steps._update(after)
        value = steps.loss(tf.concat(risks, 0), *(tf.constant(values[rows]) for values in part.outcome))
    expected = [tf.convert_to_tensor(g).numpy() for g in tape.gradient(value, steps.weights)]
    scale = max(np.abs(gradient).max() for gradient in expected)
    for a, b in zip(cached, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * scale)
    for a, b in zip(state, [variable.numpy() for variable in steps.state], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [4, 12])
def test_what_is_computed_again_changes_no_gradient(parts, batch_size):
    """With dropout and batch normalisation, and normalisation's statistics are taken over once."""
    rows = draw_risk_sets(parts["train"], 6, np.random.default_rng(0))[0]
    found = []
    for recompute in (False, True):
        model = build(dropout=0.5, precision="float64")
        steps = steps_of(parts, model, batch_size=batch_size, recompute=recompute)
        steps.apply = lambda: None
        take_step(steps, parts["train"], rows)
        found.append([*(total.numpy() for total in steps.gradients), *(variable.numpy() for variable in steps.state)])
    for kept, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, kept, rtol=1e-9, atol=1e-12)


def plain_step(parts, *, batch_size, precision, scale=1.0):
    """By how much one step of plain gradient descent lowers each weight."""
    model = build(precision=precision)
    steps = steps_of(parts, model, batch_size=batch_size, precision=precision, clip_norm=1e9)
    steps.optimizer = keras.optimizers.SGD(1.0)
    if steps.scaled:
        steps.optimizer = keras.optimizers.LossScaleOptimizer(steps.optimizer, initial_scale=scale)
    steps.optimizer.build(model.trainable_variables)
    before = np.concatenate([variable.numpy().ravel() for variable in model.trainable_variables])
    take_step(steps, parts["train"], draw_risk_sets(parts["train"], 6, np.random.default_rng(0))[0])
    return before - np.concatenate([variable.numpy().ravel() for variable in model.trainable_variables])


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_goes_where_single_does(parts, precision):
    half, single = (plain_step(parts, batch_size=12, precision=name) for name in (precision, "float32"))
    assert half @ single / np.linalg.norm(half) / np.linalg.norm(single) > 0.9
    assert np.linalg.norm(half) == pytest.approx(np.linalg.norm(single), rel=0.2)


@pytest.mark.parametrize("batch_size", [12, 6])
def test_what_float16_scales_up_is_scaled_down_again(parts, batch_size):
    one, other = (
        plain_step(parts, batch_size=batch_size, precision="mixed_float16", scale=scale) for scale in (1.0, 64.0)
    )
    assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(one)


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
    loop.train(build(precision=precision), parts, options(epochs=6, learning_rate=3e-3, precision=precision), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["val_c_index"].max() > 0.8
    if precision == "mixed_float16":
        assert history["skipped_steps"].sum() < 12


def test_it_learns_who_is_early(parts, tmp_path):
    model = build()
    loop.train(model, parts, options(epochs=8, learning_rate=3e-3), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history.columns[0] == "epoch"
    assert {"loss", "val_loss", "val_c_index", "learning_rate", "seconds"} <= set(history.columns)
    assert history["val_c_index"].max() > 0.8
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_the_best_epoch_on_validation_is_kept(parts, tmp_path):
    model = build()
    loop.train(model, parts, options(epochs=4), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    best = history.sort_values(["val_c_index", "val_loss"], ascending=[False, True]).iloc[0]
    part = parts["val"]
    log_hazard = make_predict(model)(part.entries, 5)[1]
    assert float(loss.cox_loss(log_hazard, part.time, part.event)) > 0
    from survival.estimates import concordance

    found = concordance(log_hazard[part.last], part.time[part.last], part.event[part.last])
    assert found == pytest.approx(best["val_c_index"])
    kept = build()
    kept.load_weights(tmp_path / "best.weights.h5")
    assert all((a == b).all() for a, b in zip(weights(kept), weights(model), strict=True))


def test_the_test_part_is_never_looked_at(parts, tmp_path):
    """Training takes no other part; a test part in the hands of `train` would not be read."""
    with_test = parts | {"test": None}
    loop.train(build(), with_test, options(epochs=1), tmp_path)
    assert "test" not in (tmp_path / "history.csv").read_text()


def test_no_patience_stops_early(parts, tmp_path):
    loop.train(build(), parts, options(epochs=30, patience=1, learning_rate=1e-9), tmp_path)
    assert len(pd.read_csv(tmp_path / "history.csv")) < 30


def with_events(part, subjects):
    """A part where the subjects of these numbers alone have an event."""
    return Scans(**{**vars(part), "event": np.isin(part.subject, subjects)})


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
        loop.train(build(), parts | {name: with_events(parts[name], subjects)}, options(), tmp_path)
    assert not (tmp_path / "history.csv").exists()


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
    loop.train(whole, parts, chosen, tmp_path / "whole")
    killed_at(monkeypatch, 6, 8, -12)
    for _ in range(3):
        with pytest.raises(Killed):
            loop.train(build(dropout=0.3), parts, chosen, tmp_path / "cut", save_seconds=save_seconds)
    resumed = build(dropout=0.3)
    loop.train(resumed, parts, chosen, tmp_path / "cut", save_seconds=save_seconds)
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
        loop.train(build(), parts, options(), tmp_path, save_seconds=1e9)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    processes.stop_on_signals.__globals__["_stop"].reason = ""
    assert len(done) == 3
    with np.load(tmp_path / "backup" / "state.npz") as state:
        assert json.loads(str(state["record"]))["done"]["losses"] == done


def test_a_backup_of_other_options_or_a_damaged_one_is_refused(parts, tmp_path):
    loop.train(build(), parts, options(epochs=1), tmp_path)
    with pytest.raises(InputError, match="is of other settings"):
        loop.train(build(), parts, options(epochs=1, learning_rate=1.0), tmp_path)
    state = tmp_path / "backup" / "state.npz"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="can't be read"):
        loop.train(build(), parts, options(epochs=1), tmp_path)


def test_a_loss_that_is_not_finite_names_the_scans(parts, tmp_path):
    entry = tmp_path / "nan.npy"
    np.save(entry, np.full(SHAPE, np.nan, np.float16))
    part = parts["train"]
    spoilt = Scans(**{**vars(part), "entries": [entry, *part.entries[1:]]})
    with pytest.raises(InputError, match=r"the loss is nan on the scans .*s000_0"):
        loop.train(build(), parts | {"train": spoilt}, options(), tmp_path)


def test_the_step_is_compiled_once(parts, tmp_path):
    """Though the last risk set and its micro-batches are smaller."""
    training = loop.Training(build(), parts, options(epochs=3, batch_size=5), tmp_path, Workers(), 60.0)
    training.run()
    names = ("forward", "slope", "backward", "apply")
    traces = {name: getattr(training.steps, name).experimental_get_tracing_count() for name in names}
    assert traces == dict.fromkeys(names, 1)


def test_features_of_every_scan(tmp_path, rng):
    table, part = part_of(tmp_path, 5, rng)
    model = build()
    found = extract_features(model, table, part.entries, batch_size=4)
    assert len(found) == 10 and list(found["scan"]) == list(table["scan"])
    names = [name for name in found if name.startswith("feature_")]
    assert names == [f"feature_{number}" for number in range(1, 33)]
    kernel = model.get_layer("log_hazard").get_weights()[0]
    np.testing.assert_allclose(found[names].to_numpy() @ kernel[:, 0], found["log_hazard"], atol=1e-5)
    tables.write_table(found, tmp_path / "train.parquet")
    again = tables.read_features(tmp_path / "train.parquet")
    assert tables.feature_columns(again) == ["log_hazard", *names]


def test_keras_callbacks_are_driven(parts, tmp_path):
    """An ordinary Keras callback, ReduceLROnPlateau, halves the rate when nothing improves."""
    loop.train(build(), parts, options(epochs=4, lr_schedule="plateau", patience=2, learning_rate=1e-9), tmp_path)
    rates = pd.read_csv(tmp_path / "history.csv")["learning_rate"]
    assert rates.iloc[-1] < rates.iloc[0]
