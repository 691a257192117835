"""One step: its gradient is that of the whole risk set, in every precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from volumes import SHAPE, build, options

from data import load_volumes
from loss import Outcome
from training.devices import Workers
from training.risk_sets import draw_risk_sets
from training.steps import Steps


def steps_of(parts, model, **changes):
    return Steps(model, options(**changes), parts["train"].outcome, Workers())


def take_step(steps, part, rows):
    batches = steps.reading_order(steps.micro_batches(rows))
    return steps.step(rows, steps.workers.read_batches(part.entries, SHAPE, batches), 0)


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
        for micro in steps.micro_batches(rows):
            with steps._scope(tf.constant(0), tf.constant(micro, tf.int32)) as scope:
                volumes = tf.constant(load_volumes([part.entries[row] for row in micro]))
                risks.append(steps._log_hazard(volumes, tf.constant(0), tf.constant(micro, tf.int32)))
                after = [scope.get_current_value(variable) for variable in steps.state]
            steps._update_statistics(after)
        value = steps.loss(tf.concat(risks, 0), Outcome(*(tf.constant(values[rows]) for values in part.outcome)))
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
