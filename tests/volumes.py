"""Small volumes whose brightness tells the event, for the tests of training."""

from dataclasses import replace

import numpy as np
import pandas as pd

from config import Config
from model import build_model
from training import loop
from training.risk_sets import Scans
from training.steps import Options

SHAPE = (16, 16, 16)


def part_of(folder, num_subjects, rng, prefix="s"):
    """Subjects with 2 scans; the brighter the blob of a scan, the earlier the event."""
    rows = []
    blob = np.exp(-0.5 * ((np.indices(SHAPE) - 7.5) ** 2).sum(0) / 6)
    for subject in range(num_subjects):
        level = rng.normal()
        time = float(np.exp(-level + 0.3 * rng.normal()) + 1.5)
        for visit in (0, 1):
            name = f"{prefix}{subject:03d}_{visit}"
            entry = folder / f"{name}.npy"
            np.save(entry, (blob * (level + visit) * 2 + 0.1 * rng.normal(size=SHAPE)).astype(np.float16))
            rows.append((f"{prefix}{subject:03d}", name, float(visit), time, subject % 4 != 0, str(entry)))
    table = pd.DataFrame(rows, columns=["subject", "scan", "visit_time", "time", "event", "cache_entry"])
    return table, Scans.of(table)


def options(**changes):
    """Of a small training; others than the defaults of config.py by name."""
    small = {"epochs": 3, "risk_set": 6, "batch_size": 12, "augment_shift": 0.0}
    return replace(Options.of(Config()), **small | changes)


def build(**changes):
    return build_model(SHAPE, width=4, seed=1, **changes)


def weights(model):
    return [np.array(value) for value in model.get_weights()]


def train(model, parts, options, folder, *, save_seconds=60.0):
    """Train on this process alone."""
    loop.train(model, parts, options, folder, save_seconds=save_seconds)
