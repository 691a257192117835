"""Stage 1: exact gradients, and what they cost; its train step against MONAI's. CPU time, one thread.

    python benchmarks/stage1.py [exactness | devices | large_risk_set | epoch | step] ...

Volumes are noise: neither time nor exactness depends on what they show.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from timing import HERE, alternate, compare, in_own_process, report  # first: it sets the threads

sys.path.insert(0, str(HERE))

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import torch

from config import Config
from data import load_volumes
from loss import Outcome
from model import build_model
from training import loop
from training.checkpoint import Position
from training.devices import Workers, join_training
from training.risk_sets import Scans, draw_risk_sets
from training.steps import Options, Steps

BATCH = 4  # volumes in memory where memory is scarce
FILES = 8  # volumes on disk; a part's scans share them
PORT = 23_470  # of the first of the workers, on this machine


def make_part(folder: Path, num_subjects: int, visits: int, shape: tuple[int, int, int]) -> Scans:
    """Subjects with volumes of noise; 3 of 4 have an event."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str, float, float, bool, str]] = []
    for number in range(FILES):
        np.save(folder / f"{number}.npy", rng.normal(size=shape).astype(np.float16))
    for number in range(num_subjects):
        time = float(rng.uniform(2, 6))
        for visit in range(visits):
            entry = str(folder / f"{len(rows) % FILES}.npy")
            rows.append((f"{number:04d}", f"{number}-{visit}", visit / 2, time, number % 4 > 0, entry))
    columns = ["subject", "scan", "visit_time", "time", "event", "cache_entry"]
    return Scans.of(pd.DataFrame(rows, columns=columns))


def options(**changes: Any) -> Options:
    """The defaults of config.py, but for some."""
    return replace(Options.of(Config()), **changes)


class Step:
    """One risk set of all of a part's scans, and the steps over it in micro-batches."""

    def __init__(
        self,
        part: Scans,
        shape: tuple[int, int, int],
        *,
        batch_size: int,
        width: int,
        workers: Workers | None = None,
        recompute: bool = False,
        **model,
    ):
        self.part, self.shape, self.rows = part, shape, np.arange(len(part.entries))
        self.workers = workers or Workers()
        chosen = options(batch_size=batch_size, risk_set=len(self.rows), augment_shift=0.0, recompute=recompute)
        with self.workers.strategy.scope():
            self.steps = Steps(build_model(shape, width=width, seed=1, **model), chosen, part.outcome, self.workers)

    def run(self) -> None:
        """The two passes and the update, or one pass if all fits."""
        in_order = self.steps.reading_order(self.steps.micro_batches(self.rows))
        self.steps.step(self.rows, self.workers.read_batches(self.part.entries, self.shape, in_order), 0)

    def run_plain(self) -> None:
        """The gradient of each micro-batch's own loss, without an update."""
        micro_batches = self.steps.micro_batches(self.rows)
        batches = self.workers.read_batches(self.part.entries, self.shape, micro_batches)
        for rows in micro_batches:
            self.steps.one_pass(next(batches), tf.constant(0), tf.constant(rows, tf.int32))

    def gradient(self) -> np.ndarray:
        """What `run` would apply."""
        totals: list[np.ndarray] = []
        self.steps.apply = lambda: totals.extend(total.read_value().numpy().ravel() for total in self.steps.gradients)
        self.run()
        return np.concatenate(totals)

    def one_tape(self) -> np.ndarray:
        """The same micro-batches, all on one tape: as exact as can be, and as large as the risk set."""
        steps, first = self.steps, tf.constant(0)
        split = [tf.constant(rows, tf.int32) for rows in steps.micro_batches(self.rows)]
        batches = [tf.constant(load_volumes([self.part.entries[row] for row in rows])) for rows in split]

        @tf.function  # as the cached passes: TensorFlow's optimiser of graphs splits ties of the pooling otherwise
        def gradient() -> list[tf.Tensor]:
            """The gradient by each weight."""
            with tf.GradientTape() as tape:
                risks = []
                for volumes, rows in zip(batches, split, strict=True):
                    with steps._scope(first, rows):
                        risks.append(steps._log_hazard(volumes, first, rows))
                loss = steps.loss(tf.concat(risks, 0), steps.outcome)
            return [tf.convert_to_tensor(part) for part in tape.gradient(loss, steps.weights)]

        return np.concatenate([part.numpy().ravel() for part in gradient()])


def bench_exactness() -> None:
    """In float64: the cached gradient of 64 subjects against the full batch's, and against one tape's."""
    shape = (16, 16, 16)
    with tempfile.TemporaryDirectory() as folder:
        part = make_part(Path(folder), 64, 1, shape)
        settings: dict[str, Any] = {"width": 4, "precision": "float64"}
        full = Step(part, shape, batch_size=64, norm="group", **settings).gradient()
        for size in (1, 4, 16):
            cached = Step(part, shape, batch_size=size, norm="group", **settings).gradient()
            name = f"gradient of RISK_SET=64 in micro-batches of {size}, against the full batch, group normalisation"
            report(name, relative(cached, full), "<= 1e-9", unit="relative difference")
        for size in (4, 16):
            settings |= {"norm": "batch", "dropout": 0.3, "batch_size": size}
            cached, tape = Step(part, shape, **settings).gradient(), Step(part, shape, **settings).one_tape()
            name = f"gradient of RISK_SET=64 in micro-batches of {size}, against one tape, batch normalisation, dropout"
            report(name, relative(cached, tape), "<= 1e-9", unit="relative difference")


def relative(gradient: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))


def bench_devices() -> None:
    """In float64: the gradient by 2 devices of a process, and by 2 processes, against one device's."""
    hosts = [f"localhost:{PORT + index}" for index in range(2)]
    tasks = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        for norm in ("group", "batch"):
            by_one, by_two = gradients([("none", {}), ("mirrored", {})], Path(folder), norm)
            workers = gradients(
                [("multi_worker", {"TF_CONFIG": json.dumps(task)}) for task in tasks], Path(folder), norm
            )
            name = f"gradient of RISK_SET=24 in micro-batches of 4, {norm} normalisation, dropout: against one device's"
            report(f"{name}, 2 devices", relative(by_two, by_one), "<= 1e-9", unit="relative difference")
            for index, by_worker in enumerate(workers):
                words = f"{name}, process {index} of 2"
                report(words, relative(by_worker, by_one), "<= 1e-9", unit="relative difference")


def gradients(ways: list[tuple[str, dict[str, str]]], folder: Path, norm: str) -> list[np.ndarray]:
    """The gradient that each of several processes finds, all at once; their DISTRIBUTE and environments."""
    paths = [folder / f"{index}.npy" for index in range(len(ways))]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "gradient", distribute, str(path), norm],
            env=os.environ | variables,
            stderr=subprocess.DEVNULL,
        )
        for path, (distribute, variables) in zip(paths, ways, strict=True)
    ]
    if any([process.wait() for process in running]):
        raise RuntimeError(f"one of these failed: {ways}")
    return [np.load(path) for path in paths]


def write_gradient(distribute: Any, path: str, norm: str) -> None:
    """The gradient over one risk set, as `distribute` finds it, into a .npy file; `mirrored` by 2 devices."""
    shape = (16, 16, 16)
    if distribute == "mirrored":
        (processor,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    workers = join_training(distribute)
    with tempfile.TemporaryDirectory() as folder:
        part = make_part(Path(folder), 24, 1, shape)
        settings: dict[str, Any] = {"precision": "float64", "norm": norm, "dropout": 0.3, "workers": workers}
        np.save(path, Step(part, shape, batch_size=4, width=4, **settings).gradient())


def bench_large_risk_set() -> None:
    """256 scans in micro-batches of 4 against 64 plain batches of 4: time, and memory above idle."""
    shape = (32, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        step = Step(make_part(Path(folder), 256, 1, shape), shape, batch_size=BATCH, width=16)
        name = f"RISK_SET=256, BATCH_SIZE={BATCH}, width 16, 32x32x32"
        compare(name, step.run, step.run_plain, "64 plain gradients of a batch of 4", "<= 1.45", repeats=3)
    large, plain, full, recomputed = (
        in_own_process("stage1.py", "memory", str(num), str(size), again)[0]
        for num, size, again in ((256, BATCH, ""), (BATCH, BATCH, ""), (16, 16, ""), (BATCH, BATCH, "recompute"))
    )
    peer_name = f"a plain batch of {BATCH}"
    name = f"RISK_SET=256, BATCH_SIZE={BATCH}, width 16, 128x128x128: peak memory above idle"
    report(name, large, "<= 1.1", peer=plain, peer_name=peer_name, unit="MB")
    report(name, large, "smaller", peer=full, peer_name="a full batch of 16 alone", unit="MB")
    report(f"a plain batch of {BATCH}, RECOMPUTE", recomputed, "smaller", peer=plain, peer_name=peer_name, unit="MB")


def weigh(num_scans: int, batch_size: int, recompute: bool) -> float:
    """Peak resident memory of a step over 128 x 128 x 128 voxels, MB above what the process held before it."""
    shape = (128, 128, 128)
    with tempfile.TemporaryDirectory() as folder:
        step = Step(
            make_part(Path(folder), num_scans, 1, shape), shape, batch_size=batch_size, width=16, recompute=recompute
        )
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
    outcome = Outcome(np.arange(batch, dtype=np.int32), np.zeros(batch, np.float32), years, events)
    plain = options(augment_shift=0.0, augment_gain=0.0, visit_order_weight=0.0)
    steps = Steps(model, plain, outcome, Workers())
    volumes, rows = tf.constant(values), tf.range(batch)

    def ours() -> None:
        """A step of ours over the batch."""
        steps.one_pass((volumes, rows), tf.constant(0), rows)
        steps.apply()

    peer = resnet18(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2)
    optimizer = torch.optim.Adam(peer.parameters())
    scans = torch.tensor(values.transpose(0, 4, 1, 2, 3).copy())
    seen = torch.tensor(events)

    def monai_step() -> None:
        """A step of MONAI's network over the same batch."""
        optimizer.zero_grad()
        risk = peer(scans)[:, 0]
        at_risk = torch.logcumsumexp(risk.flip(0), 0).flip(0)  # the scans are sorted by time
        (at_risk - risk)[seen].mean().backward()
        optimizer.step()

    left, right = (rng.normal(size=(2048, 2048)).astype(np.float32) for _ in range(2))
    mine, monai, sgemm = alternate([ours, monai_step, lambda: left @ right], repeats=3)
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
        part, default = make_part(Path(folder), 128, 3, shape), options()
        parts = {"train": part, "val": part}
        training = loop.Training(build_model(shape, width=16), parts, default, Path(folder), Workers(), 1e9)
        training.callbacks = keras.callbacks.CallbackList(model=training.model)
        sets = draw_risk_sets(part, default.risk_set, np.random.default_rng([0, 0]))
        in_memory = [tf.constant(load_volumes([part.entries[row] for row in rows])) for rows in sets]

        def epoch() -> None:
            """An epoch from the volumes on the disk."""
            training.position = Position()
            training.run_epoch(0)

        def bare() -> None:
            """The same steps on volumes in memory."""
            for chosen, volumes in zip(sets, in_memory, strict=True):
                rows = tf.constant(chosen, tf.int32)
                training.steps.one_pass((volumes, rows), tf.constant(0), rows)
                training.steps.apply()

        name = f"an epoch of {len(sets)} steps of 24 scans, width 16, 48x56x48"
        compare(name, epoch, bare, "the bare steps, volumes in memory", "<= 1.05", repeats=3)


BENCHMARKS = {
    "exactness": bench_exactness,
    "devices": bench_devices,
    "large_risk_set": bench_large_risk_set,
    "epoch": bench_epoch,
    "step": bench_step,
}


def main(names: list[str]) -> None:
    """Print every figure, or those that are named, a JSON line each."""
    torch.set_num_threads(1)
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(weigh(int(sys.argv[2]), int(sys.argv[3]), bool(sys.argv[4])))
    elif sys.argv[1:2] == ["gradient"]:
        write_gradient(*sys.argv[2:])
    else:
        main(sys.argv[1:])
