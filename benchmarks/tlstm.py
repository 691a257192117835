"""Speed of stage 2 against its peers: one JSON object a line, CPU process time, one thread.

    python benchmarks/tlstm.py

The T-LSTM against torch.nn.LSTM on the same ragged batches, forward and backward; the Cox loss and its
gradient at a million rows against torchsurv and, if it is installed, pycox. Each side is timed in turn.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from survival.cox import risk_sets
from tlstm import TLSTM, Settings, cox_loss

REPEATS = 7
ROWS = 1_000_000


def compare(name: str, ours: Callable, peer: Callable, peer_name: str, goal: str) -> None:
    """Print the medians of alternating runs, after one of each to warm up."""
    taken: list[list[float]] = [[], []]
    for repeat in range(REPEATS + 1):
        for times, run in zip(taken, (ours, peer), strict=True):
            start = time.process_time()
            run()
            if repeat:
                times.append(time.process_time() - start)
    mine, theirs = (float(np.median(times)) for times in taken)
    line = {"name": name, "ours": round(mine, 4), "peer": round(theirs, 4), "peer_name": peer_name}
    print(json.dumps(line | {"ratio": round(mine / theirs, 3), "unit": "CPU s", "goal": goal}), flush=True)


def recurrence(subjects: int, fewest: int, most: int, num_inputs: int, hidden: int) -> None:
    """Forward and backward over ragged histories: the LSTM gets them padded, and packed."""
    rng = np.random.default_rng(0)
    count = -np.sort(-rng.integers(fewest, most + 1, subjects))
    sizes = (count[:, None] > np.arange(most)).sum(axis=0).tolist()
    padded = torch.tensor(rng.normal(size=(subjects, most, num_inputs)), dtype=torch.float32)
    packed = torch.nn.utils.rnn.pack_padded_sequence(padded, torch.tensor(count), batch_first=True)
    years = torch.tensor(rng.exponential(size=len(packed.data)), dtype=torch.float32)
    network = TLSTM(num_inputs, Settings(num_seeds=1, hidden=hidden))
    lstm = torch.nn.LSTM(num_inputs, hidden, batch_first=True)

    def ours():
        network.zero_grad()
        network.states(packed.data, years, sizes).sum().backward()

    def peer_padded():
        lstm.zero_grad()
        lstm(padded)[0].sum().backward()

    def peer_packed():
        lstm.zero_grad()
        lstm(packed)[0].data.sum().backward()

    name = f"T-LSTM forward and backward, (B, V, F, H) = ({subjects}, {fewest}-{most}, {num_inputs}, {hidden})"
    compare(name, ours, peer_padded, "torch.nn.LSTM, padded", "<= 0.9")
    compare(name, ours, peer_packed, "torch.nn.LSTM, packed", "<= 0.9")


def cox() -> None:
    """Loss and gradient of a million rows, 30 % events; the peers sort at each call, ours once for many."""
    warnings.simplefilter("ignore")  # torchsurv says at each call that there are ties
    from torchsurv.loss.cox import neg_partial_log_likelihood

    rng = np.random.default_rng(0)
    years = rng.exponential(size=ROWS).astype(np.float32)
    seen = rng.random(ROWS) < 0.3
    time_tensor, event_tensor = torch.tensor(years), torch.tensor(seen)
    log_hazard = torch.tensor(rng.normal(size=ROWS), dtype=torch.float32, requires_grad=True)
    kept = risk_sets(years, seen)
    ours = {
        "the sort included": lambda: cox_loss(log_hazard, risk_sets(years, seen)).backward(),
        "sorted once, as in training": lambda: cox_loss(log_hazard, kept).backward(),
    }
    peers = {"torchsurv": lambda: neg_partial_log_likelihood(log_hazard, event_tensor, time_tensor).backward()}
    try:
        from pycox.models.loss import CoxPHLoss

        peers["pycox"] = lambda: CoxPHLoss()(log_hazard, time_tensor, event_tensor.float()).backward()
    except ImportError:
        print("pycox is not installed: pip install --no-deps pycox torchtuples", file=sys.stderr)
    for peer_name, peer in peers.items():
        for how, mine in ours.items():
            compare(f"Cox loss and gradient, n = {ROWS:,}, {how}", mine, peer, peer_name, "<= 0.5")


if __name__ == "__main__":
    torch.set_num_threads(1)
    recurrence(256, 3, 16, 512, 64)
    recurrence(2048, 3, 40, 64, 64)
    cox()
