"""The losses of stage 1 with their gradients, against torchsurv's and loops over pairs: CPU time, one thread.

python benchmarks/losses.py
"""

import sys
import warnings

from timing import HERE, compare, report  # first: it sets the threads

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd
import tensorflow as tf
import torch
from lifelines import CoxPHFitter

import loss

ROWS = 100_000
PAIRED = 1_000


def graded(function):
    """A compiled function of risks (and the rest) that returns the loss and its gradient."""

    @tf.function
    def both(risk, *rest):
        """The loss and its gradient by `risk`, (N,)."""
        with tf.GradientTape() as tape:
            tape.watch(risk)
            value = function(risk, *rest)
        return value, tape.gradient(value, risk)

    return both


def make_rows(num: int, whole: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risks, times and events, 30 % of them seen; whole days tie."""
    rng = np.random.default_rng(0)
    time = rng.exponential(size=num) * 1000
    time = np.ceil(time) if whole else time
    return rng.normal(size=num).astype(np.float32), time.astype(np.float32), rng.random(num) < 0.3


def bench_cox() -> None:
    """100,000 rows with ties, both ways of handling them."""
    from torchsurv.loss.cox import neg_partial_log_likelihood

    warnings.simplefilter("ignore")  # torchsurv says at each call that there are ties
    risk, time, event = make_rows(ROWS, whole=True)
    tensors = tf.constant(risk), tf.constant(time), tf.constant(event)
    peer_rows = torch.tensor(risk, requires_grad=True), torch.tensor(event), torch.tensor(time)
    for ties in ("efron", "breslow"):
        ours = graded(lambda *rows, ties=ties: loss.cox_loss(*rows, ties=ties))
        name = f"Cox loss and gradient, {ties}, n = {ROWS:,}"
        compare(
            name,
            lambda ours=ours: ours(*tensors),
            lambda ties=ties: neg_partial_log_likelihood(*peer_rows, ties_method=ties).backward(),
            "torchsurv",
            "<= 1",
            repeats=3,
        )


def bench_ranking() -> None:
    """1,000 rows: all pairs at once against the definition."""
    risk, time, event = make_rows(PAIRED, whole=True)
    tensors = tf.constant(risk), tf.constant(time), tf.constant(event)
    ours = graded(loss.ranking_loss)

    def loops():
        """The definition: pair by pair."""
        worse = [
            np.logaddexp(0, risk[time > time[i]] - risk[i]) for i in range(PAIRED) if event[i] and time[i] < time.max()
        ]
        return np.concatenate(worse).mean()

    apart = abs(float(ours(*tensors)[0]) - loops())
    report(f"ranking loss, n = {PAIRED:,}: difference from its definition", apart, "<= 1e-5")
    risks, years, seen = torch.tensor(risk, requires_grad=True), torch.tensor(time), torch.tensor(event)

    def pairs():
        """PyTorch's loss over the list of comparable pairs, and its gradient."""
        first, second = torch.nonzero(seen[:, None] & (years[:, None] < years[None, :]), as_tuple=True)
        torch.nn.functional.softplus(risks[second] - risks[first]).mean().backward()

    name = f"ranking loss and gradient, n = {PAIRED:,}"
    compare(name, lambda: ours(*tensors), pairs, "PyTorch, the comparable pairs listed", "<= 1")


def check_lifelines() -> None:
    """The Cox loss at lifelines' optimum is lifelines' log-likelihood an event."""
    risk, time, event = make_rows(PAIRED, whole=True)
    fit = CoxPHFitter().fit(pd.DataFrame({"x": risk, "time": time, "event": event}), "time", "event")
    fitted = float(fit.params_["x"]) * (risk - risk.mean(dtype=np.float64))
    apart = abs(float(loss.cox_loss(fitted, time, event)) + fit.log_likelihood_ / event.sum())
    report(f"Cox loss, n = {PAIRED:,}, tied: difference from lifelines' log-likelihood an event", apart, "<= 1e-6")


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_lifelines()
    bench_cox()
    bench_ranking()
