"""A small training by several devices or workers: `python tests/train_together.py DISTRIBUTE FOLDER [SIGNAL STEP]`.

`mirrored` makes 2 devices of the processor. This worker sends itself SIGNAL, such as SIGKILL, in that step. Writes the
weights, and how often each part of a step was compiled, beside the training's folder.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf
from volumes import SHAPE, options, part_of

from model import build_model
from runs import processes
from training import devices, loop
from training.steps import Steps


def run(distribute, folder, own_signal="", step="0"):
    if distribute == "mirrored":
        (processor,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    devices.SILENCE = 600  # seconds: a machine may be as slow as that
    workers = devices.join_training(distribute)
    volumes = folder / f"volumes-{distribute}-{workers.index}"
    volumes.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = {"train": part_of(volumes, 20, rng)[1], "val": part_of(volumes, 12, rng, "v")[1]}
    chosen = options(epochs=2, risk_set=8, batch_size=4, ema=0.9, augment_shift=0.5, patience=3)
    with workers.strategy.scope():
        model = build_model(SHAPE, width=2, norm="group", dropout=0.3, precision="float64", seed=1)
    taken = watch(own_signal, int(step))
    loop.train(model, parts, chosen, folder / distribute, workers=workers, save_seconds=0.0)
    if workers.is_first:
        np.savez(folder / f"{distribute}.npz", *model.get_weights())
        parts_of_a_step = {
            name: getattr(taken[0], name)
            for name in ("one_pass", "predict_in_training", "loss_gradient", "backpropagate", "apply")
        }
        traces = {name: part.experimental_get_tracing_count() for name, part in parts_of_a_step.items()}
        (folder / f"{distribute}.json").write_text(json.dumps(traces))


def watch(own_signal, signalled_step):
    """The object of each step that will be taken; in `signalled_step` the process sends itself `own_signal`."""
    step, taken = Steps.step, []

    def stepped(self, *args):
        taken.append(self)
        if len(taken) == signalled_step:
            os.kill(os.getpid(), signal.Signals[own_signal])
        return step(self, *args)

    Steps.step = stepped
    return taken


if __name__ == "__main__":
    kind, where, *own = sys.argv[1:]
    processes.stop_on_signals()
    sys.exit(processes.exit_code(lambda: run(kind, Path(where), *own)))
