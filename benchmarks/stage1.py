"""Stage 1: exact gradients, and what they cost; its train step against MONAI's. CPU time, one thread.

    python benchmarks/stage1.py

Volumes are noise: neither time nor exactness depends on what they show.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import HERE, alternate, compare, in_own_process, report  # first: it sets the threads

sys.path.insert(0, str(HERE))

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import torch

import train
from data import load_volumes
from model import build_model

BATCH = 4  # volumes in memory where memory is scarce


def make_part(folder: Path, num_subjects: int, visits: int, shape: tuple[int, int, int]) -> train.Part:
    """Subjects with volumes of noise; 3 of 4 have an event."""
    rng, rows, entries = np.random.default_rng(0), [], []
    for number in range(num_subjects):
        time = float(rng.uniform(2, 6))
        for visit in range(visits):
            entries.append(folder / f"{number}-{visit}.npy")
            np.save(entries[-1], rng.normal(size=shape).astype(np.float16))
            rows.append((f"{number:04d}", f"{number}-{visit}", visit / 2, time, number % 4 > 0))
    return train.Part.of(pd.DataFrame(rows, columns=["subject", "scan", "visit_time", "time", "event"]), entries)


class Step:
    """One risk set of all of a part's scans, and the trainer that steps over it in micro-batches."""

    def __init__(self, part: train.Part, shape: tuple[int, int, int], *, batch_size: int, width: int, **model):
        self.part, self.shape = part, shape
        self.model = build_model(shape, width=width, seed=1, **model)
        num = len(part.entries)
        self.trainer = train.Trainer(self.model, train.Options(batch_size=batch_size, risk_set=num, augment_shift=0.0))
        self.rows = np.arange(num)
        self.split = np.array_split(self.rows, int(np.ceil(num / batch_size)))

    def run(self) -> None:
        """The two passes and the update, or one pass if all fits."""
        passes = self.split if len(self.split) == 1 else self.split * 2
        volumes = iter(train.make_dataset(self.part.entries, self.shape, passes))
        self.trainer._step(self.rows, self.split, self.part, volumes, 0)

    def run_plain(self) -> None:
        """The gradient of each micro-batch's own loss, without an update."""
        volumes = train.make_dataset(self.part.entries, self.shape, self.split)
        for rows, batch in zip(self.split, volumes, strict=True):
            self.trainer.whole(batch, self.trainer._seeds(rows, 0), *train._outcome(self.part, rows))

    def gradient(self) -> np.ndarray:
        """What `run` would apply."""
        found: list[np.ndarray] = []
        self.trainer.apply = lambda: found.extend(total.numpy().ravel() for total in self.trainer.gradients)
        self.run()
        return np.concatenate(found)

    def one_tape(self) -> np.ndarray:
        """The same micro-batches, all on one tape: as exact as can be, and as large as the risk set."""
        trainer = self.trainer
        batches = [tf.constant(load_volumes([self.part.entries[row] for row in rows])) for rows in self.split]

        @tf.function  # as the cached passes: TensorFlow's optimiser of graphs splits ties of the pooling otherwise
        def gradient():
            with tf.GradientTape() as tape:
                risks = [
                    trainer._forward(batch, trainer._seeds(rows, 0))
                    for batch, rows in zip(batches, self.split, strict=True)
                ]
                loss = trainer._loss(tf.concat(risks, 0), *train._outcome(self.part, self.rows))
            return [tf.convert_to_tensor(found) for found in tape.gradient(loss, trainer._weights())]

        return np.concatenate([found.numpy().ravel() for found in gradient()])


def bench_exactness() -> None:
    """In float64: the cached gradient of 64 subjects against the full batch's, and against one tape's."""
    shape = (16, 16, 16)
    with tempfile.TemporaryDirectory() as folder:
        part = make_part(Path(folder), 64, 1, shape)
        how: dict[str, Any] = {"width": 4, "precision": "float64"}
        full = Step(part, shape, batch_size=64, norm="group", **how).gradient()
        for size in (1, 4, 16):
            cached = Step(part, shape, batch_size=size, norm="group", **how).gradient()
            name = f"gradient of RISK_SET=64 in micro-batches of {size}, against the full batch, group normalisation"
            report(name, relative(cached, full), "<= 1e-9", unit="relative difference")
        for size in (4, 16):
            how |= {"norm": "batch", "dropout": 0.3, "batch_size": size}
            cached, tape = Step(part, shape, **how).gradient(), Step(part, shape, **how).one_tape()
            name = f"gradient of RISK_SET=64 in micro-batches of {size}, against one tape, batch normalisation, dropout"
            report(name, relative(cached, tape), "<= 1e-9", unit="relative difference")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def bench_large_risk_set() -> None:
    """256 scans in micro-batches of 4 against 64 plain batches of 4: time, and memory above idle."""
    shape = (32, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        step = Step(make_part(Path(folder), 256, 1, shape), shape, batch_size=BATCH, width=16)
        name = f"RISK_SET=256, BATCH_SIZE={BATCH}, width 16, 32x32x32"
        compare(name, step.run, step.run_plain, "64 plain gradients of a batch of 4", "<= 1.45", repeats=3)
    large, plain, full = (
        in_own_process("stage1.py", "memory", str(num), str(size))[0]
        for num, size in ((256, BATCH), (BATCH, BATCH), (64, 64))  # scans in the risk set, volumes in memory
    )
    peer_name = f"a plain batch of {BATCH}"
    name = f"RISK_SET=256, BATCH_SIZE={BATCH}, width 16, 64x64x64: peak memory above idle"
    report(name, large, "<= 1.1", peer=plain, peer_name=peer_name, unit="MB")
    report(name, large, "smaller", peer=full, peer_name="the full batch of 64 alone", unit="MB")


def weigh(num_scans: int, batch_size: int) -> float:
    """Peak resident memory of a step over 64 x 64 x 64 voxels, MB above what the process held before it."""
    shape = (64, 64, 64)
    with tempfile.TemporaryDirectory() as folder:
        step = Step(make_part(Path(folder), num_scans, 1, shape), shape, batch_size=batch_size, width=16)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        idle = resident("VmRSS")
        step.run()
        return resident("VmHWM") - idle


def resident(kind: str) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return float(line.split()[1]) / 1024


def bench_step() -> None:
    """One training step of the published width, against MONAI's network in PyTorch; and the share of SGEMM."""
    from monai.networks.nets import resnet18

    size, batch = 64, 8
    shape, rng = (size,) * 3, np.random.default_rng(0)
    values = rng.normal(size=(batch, *shape, 1)).astype(np.float32)
    years, events = np.linspace(1, 5, batch, dtype=np.float32), np.arange(batch) % 4 > 0
    model = build_model(shape, width=64)
    trainer = train.Trainer(model, train.Options(augment_shift=0.0, augment_gain=0.0, visit_order_weight=0.0))
    subjects, seeds = tf.range(batch), tf.zeros((batch, 2), tf.int32)
    volumes = tf.constant(values)

    def ours():
        trainer.whole(volumes, seeds, subjects, tf.zeros(batch), years, events)
        trainer.apply()

    peer = resnet18(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2)
    optimizer = torch.optim.Adam(peer.parameters())
    scans = torch.tensor(values.transpose(0, 4, 1, 2, 3).copy())
    seen = torch.tensor(events)

    def theirs():
        optimizer.zero_grad()
        risk = peer(scans)[:, 0]
        at_risk = torch.logcumsumexp(risk.flip(0), 0).flip(0)  # the scans are sorted by time
        (at_risk - risk)[seen].mean().backward()
        optimizer.step()

    left, right = (rng.normal(size=(2048, 2048)).astype(np.float32) for _ in range(2))
    mine, monai, sgemm = alternate([ours, theirs, lambda: left @ right], repeats=3)
    name = f"train step, width 64, 64x64x64, batch {batch}"
    report(name, mine, "<= 0.75", peer=monai, peer_name="MONAI resnet18, Adam", unit="CPU s")
    rate, best = batch * 6 * multiply_adds(model) / mine / 1e9, 2 * 2048**3 / sgemm / 1e9
    report(f"{name}: arithmetic", rate, "report", peer=best, peer_name="SGEMM of 2048 x 2048", unit="GFLOP/s")


def multiply_adds(model: keras.Model) -> float:
    """Of the convolutions, forward, of one volume; backward takes twice as many."""
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv3D)]
    return float(sum(np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:4]) for layer in convolutions))


def bench_epoch() -> None:
    """An epoch of the default network, volumes from disk, against its steps on volumes that are in memory."""
    shape = (48, 56, 48)
    with tempfile.TemporaryDirectory() as folder:
        part = make_part(Path(folder), 32, 3, shape)
        options = train.Options()
        trainer = train.Trainer(build_model(shape, width=16), options)
        sets = train.draw_risk_sets(part, options.risk_set, np.random.default_rng([0, 0]))
        held = [tf.constant(load_volumes([part.entries[row] for row in rows])) for rows in sets]
        callbacks = keras.callbacks.CallbackList(model=trainer.model)

        def epoch():
            trainer.run_epoch(part, 0, len(sets), callbacks)

        def bare():
            for rows, volumes in zip(sets, held, strict=True):
                trainer.whole(volumes, trainer._seeds(rows, 0), *train._outcome(part, rows))
                trainer.apply()

        name = f"an epoch of {len(sets)} steps of 24 scans, width 16, 48x56x48"
        compare(name, epoch, bare, "the bare steps, volumes in memory", "<= 1.05", repeats=5)


def main() -> None:
    """Print every figure, a JSON line each."""
    torch.set_num_threads(1)
    bench_exactness()
    bench_large_risk_set()
    bench_epoch()
    bench_step()


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(weigh(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
