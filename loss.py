"""The losses of stage 1, in float32 whatever the network's precision; a higher log-hazard means an earlier event."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: half the speed

from typing import Any, Literal, NamedTuple

import tensorflow as tf


class Outcome(NamedTuple):
    """What a loss compares the log-hazards with: arrays or tensors, a row a scan."""

    subject: Any  # (N,) int32; the same number is the same subject
    visit_time: Any  # (N,) float32 years from the subject's baseline
    time: Any  # (N,) float32 years left from the scan to the event or censoring
    event: Any  # (N,) bool; True = the event was seen


def weighted_loss(
    log_hazard: tf.Tensor,
    outcome: Outcome,
    *,
    loss: Literal["cox", "rank"],
    ties: Literal["efron", "breslow"],
    visit_order_weight: float,
) -> tf.Tensor:
    """The loss that stage 1 is trained with: survival, plus the weighted order of each subject's visits.

    Args:
        log_hazard: (N,) float; higher = earlier event.
        outcome: of the same scans.
        loss: `cox_loss` or `ranking_loss`.
        ties: of the Cox loss.
        visit_order_weight: of `visit_order_loss`; 0 leaves it out.
    Returns:
        Scalar.
    Raises:
        ValueError: the shapes differ.
    """
    if loss == "cox":
        total = cox_loss(log_hazard, outcome.time, outcome.event, ties=ties)
    else:
        total = ranking_loss(log_hazard, outcome.time, outcome.event)
    if visit_order_weight > 0:
        total += visit_order_weight * visit_order_loss(log_hazard, outcome.subject, outcome.visit_time)
    return total


def cox_loss(log_hazard: Any, time: Any, event: Any, *, ties: Literal["efron", "breslow"] = "efron") -> tf.Tensor:
    """Mean negative Cox partial log-likelihood per event.

    Args:
        log_hazard: (B,) float; higher = earlier event.
        time: (B,) float > 0, from the scan to the event or censoring, in any unit.
        event: (B,) bool; True = the event was seen.
        ties: how events at one time share their risk set.
    Returns:
        Scalar; 0, still attached to the graph, if no event is in the batch. O(B log B) time, O(B) memory.
    Raises:
        ValueError: the shapes differ, or `ties` is unknown.
    Source: Cox (1972); Efron (1977); Breslow (1974). Checked against lifelines.
    """
    log_hazard, time, event = _checked(log_hazard, time, event)
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties: expected 'efron' or 'breslow'. Received: {ties!r}")
    order = tf.argsort(time, stable=True)
    log_hazard, time, event = (tf.gather(values, order) for values in (log_hazard, time, event))
    group = tf.cumsum(tf.concat([[0], tf.cast(time[1:] != time[:-1], tf.int32)], 0))  # (B,) of equal times
    at_risk = tf.math.cumulative_logsumexp(_group_logsumexp(log_hazard, group), reverse=True)
    log_denominator = tf.gather(at_risk, group)  # (B,) log of the sum over the risk set R(t_i) of exp(log_hazard_j)
    weight = tf.cast(event, log_hazard.dtype)  # delta_i
    if ties == "efron":  # less l/d of the d tied events' own sum, l = 0 ... d - 1
        dying = tf.gather(_group_logsumexp(tf.where(event, log_hazard, _log_zero(log_hazard)), group), group)
        num_dying = tf.gather(tf.math.unsorted_segment_sum(weight, group, tf.size(group)), group)  # d
        died = tf.cumsum(weight, exclusive=True)
        rank = died - tf.gather(tf.math.unsorted_segment_min(died, group, tf.size(group)), group)  # l
        share = tf.math.divide_no_nan(rank, num_dying) * tf.exp(tf.minimum(dying - log_denominator, 0.0))
        log_denominator += tf.math.log1p(-tf.where(event, share, 0.0))
    return tf.math.divide_no_nan(tf.reduce_sum(weight * (log_denominator - log_hazard)), tf.reduce_sum(weight))


def ranking_loss(log_hazard: Any, time: Any, event: Any) -> tf.Tensor:
    """Mean over the comparable pairs of softplus(risk_j - risk_i): i had the event before j's time.

    Args:
        log_hazard: (B,) float; higher = earlier event.
        time: (B,) float, from the scan to the event or censoring.
        event: (B,) bool.
    Returns:
        Scalar; log 2 for equal risks; 0, attached to the graph, without a comparable pair. O(B^2) memory.
    Raises:
        ValueError: the shapes differ.
    Source: the logistic bound on the concordance, Raykar et al. (2007).
    """
    log_hazard, time, event = _checked(log_hazard, time, event)
    return _mean_softplus(log_hazard, event[:, None] & (time[:, None] < time[None, :]))  # pairs (i, j)


def visit_order_loss(log_hazard: Any, subject: Any, visit_time: Any) -> tf.Tensor:
    """The ranking loss over each subject's own visits: a later scan should not look healthier.

    Args:
        log_hazard: (B,) float.
        subject: (B,) int; the same number is the same subject.
        visit_time: (B,) float, in any unit.
    Returns:
        Scalar; 0, attached to the graph, if nobody has two visits.
    Raises:
        ValueError: the shapes differ.
    """
    log_hazard, visit_time, subject = _checked(log_hazard, visit_time, subject, third=tf.int32)
    later = visit_time[:, None] > visit_time[None, :]
    return _mean_softplus(log_hazard, later & (subject[:, None] == subject[None, :]))


def _mean_softplus(risk: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    """Mean over the pairs (i, j), (B, B) bool, in which i should have the higher risk."""
    weight = tf.cast(pairs, risk.dtype)
    softplus = tf.nn.softplus(risk[None, :] - risk[:, None])  # log(1 + exp(risk_j - risk_i))
    return tf.math.divide_no_nan(tf.reduce_sum(weight * softplus), tf.reduce_sum(weight))


def _group_logsumexp(values: tf.Tensor, group: tf.Tensor) -> tf.Tensor:
    """(B,) log-sum-exp of each group; an empty group has the logarithm of 0, as `_log_zero` has it."""
    num_groups = tf.size(group)
    highest = tf.stop_gradient(tf.maximum(tf.math.unsorted_segment_max(values, group, num_groups), _log_zero(values)))
    total = tf.math.unsorted_segment_sum(tf.exp(values - tf.gather(highest, group)), group, num_groups)
    return tf.where(total > 0, tf.math.log(tf.where(total > 0, total, 1.0)) + highest, _log_zero(values))


def _log_zero(like: tf.Tensor) -> tf.Tensor:
    """A logarithm of 0 that stays finite: exp of its difference from any risk is 0."""
    return tf.constant(-1e30, like.dtype)


def _checked(
    log_hazard: Any, time: Any, other: Any, third: tf.DType = tf.bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The three as (B,) tensors; the first two in float32, or float64 if they came so."""
    log_hazard = tf.convert_to_tensor(log_hazard)
    precision = tf.float64 if log_hazard.dtype == tf.float64 else tf.float32
    time, other = tf.convert_to_tensor(time), tf.convert_to_tensor(other)
    shapes = [tuple(values.shape) for values in (log_hazard, time, other)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"expected three arrays of one shape (B,). Received: {', '.join(map(str, shapes))}")
    return tf.cast(log_hazard, precision), tf.cast(time, precision), tf.cast(other, third)
