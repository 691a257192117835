"""Speed of stage 2 against its peers: one JSON object a line, CPU process time, one thread.

    python benchmarks/tlstm.py

The T-LSTM against torch.nn.LSTM on the same ragged batches, forward and backward; the Cox loss and its
gradient at a million rows against torchsurv and, if it is installed, pycox. Each side is timed in turn.
"""

import sys
import warnings

from timing import HERE, compare  # first: it sets the threads

sys.path.insert(0, str(HERE))

import numpy as np
import torch

from config import Config
from survival.cox import risk_sets
from tlstm import TLSTM, Settings, stratified_cox_loss

ROWS = 1_000_000


def recurrence(subjects: int, fewest: int, most: int, num_inputs: int, hidden: int) -> None:
    """Compare forward and backward over ragged histories with an LSTM that gets them padded, and packed.

    Args:
        subjects: B.
        fewest: visits of a subject.
        most: V, visits of a subject.
        num_inputs: F.
        hidden: H.
    """
    rng = np.random.default_rng(0)
    count = -np.sort(-rng.integers(fewest, most + 1, subjects))
    sizes = (count[:, None] > np.arange(most)).sum(axis=0).tolist()
    padded = torch.tensor(rng.normal(size=(subjects, most, num_inputs)), dtype=torch.float32)
    packed = torch.nn.utils.rnn.pack_padded_sequence(padded, torch.tensor(count), batch_first=True)
    years = torch.tensor(rng.exponential(size=len(packed.data)), dtype=torch.float32)
    network = TLSTM(num_inputs, Settings.of(Config(NUM_SEEDS=1, HIDDEN=hidden)))
    lstm = torch.nn.LSTM(num_inputs, hidden, batch_first=True)

    def ours() -> None:
        """Forward and backward through the T-LSTM."""
        network.zero_grad()
        network.states(packed.data, years, sizes).sum().backward()

    def peer_padded() -> None:
        """Through PyTorch's LSTM, short histories padded."""
        lstm.zero_grad()
        lstm(padded)[0].sum().backward()

    def peer_packed() -> None:
        """Through PyTorch's LSTM, histories packed."""
        lstm.zero_grad()
        lstm(packed)[0].data.sum().backward()

    name = f"T-LSTM forward and backward, (B, V, F, H) = ({subjects}, {fewest}-{most}, {num_inputs}, {hidden})"
    compare(name, ours, peer_padded, "torch.nn.LSTM, padded", "<= 0.9")
    compare(name, ours, peer_packed, "torch.nn.LSTM, packed", "<= 0.9")


def cox() -> None:
    """Compare loss and gradient of a million rows, 30 % events; the peers sort at each call, ours once for many."""
    warnings.simplefilter("ignore")  # torchsurv warns of ties at each call
    from torchsurv.loss.cox import neg_partial_log_likelihood

    rng = np.random.default_rng(0)
    time = rng.exponential(size=ROWS).astype(np.float32)
    event = rng.random(ROWS) < 0.3
    time_tensor, event_tensor = torch.tensor(time), torch.tensor(event)
    log_hazard = torch.tensor(rng.normal(size=ROWS), dtype=torch.float32, requires_grad=True)
    sets = risk_sets(time, event)
    ours = {
        "the sort included": lambda: stratified_cox_loss(log_hazard, risk_sets(time, event)).backward(),
        "sorted once, as in training": lambda: stratified_cox_loss(log_hazard, sets).backward(),
    }
    peers = {"torchsurv": lambda: neg_partial_log_likelihood(log_hazard, event_tensor, time_tensor).backward()}
    try:
        from pycox.models.loss import CoxPHLoss

        peers["pycox"] = lambda: CoxPHLoss()(log_hazard, time_tensor, event_tensor.float()).backward()
    except ImportError:
        print("pycox is not installed: pip install --no-deps pycox torchtuples", file=sys.stderr)
    for peer_name, peer in peers.items():
        for sorting, loss_and_gradient in ours.items():
            compare(f"Cox loss and gradient, n = {ROWS:,}, {sorting}", loss_and_gradient, peer, peer_name, "<= 0.5")


if __name__ == "__main__":
    torch.set_num_threads(1)
    recurrence(256, 3, 16, 512, 64)
    recurrence(2048, 3, 40, 64, 64)
    cox()
