"""What stage 1's settings are worth on the embedded cohort: one setting changed at a time, several seeds each.

    python benchmarks/study.py [stability | visit_order | risk_set] [SEED ...]

192 subjects for training, 48 for validation, 460 tested, as in embedded_cohort.py; only stage 1 is trained. Prints a
JSON line a setting and seed; what a line holds is said at `measure`. All of it takes about two hours on one core.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from timing import HERE  # first: it sets the threads

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd

from cohort import simulate, tables
from cohort.splits import split_subjects
from config import Config
from data import Preprocessing, build_cache
from model import build_model
from survival import baselines
from survival.estimates import concordance
from training import loop
from training.features import make_predict
from training.risk_sets import Scans
from training.steps import Options

SEEDS = (0, 1, 2, 3, 4)
SUBJECTS, TESTED = 700, 460
SHAPE, WIDTH = (48, 56, 48), 16
SMALL = (32, 40, 32)  # of the study of risk sets, whose largest costs 34 times the smallest
STEPS = 48  # of that study, of every size
DEFAULT = Options.of(Config())


def stability() -> list[tuple[str, float, tuple[int, int, int], str, Options]]:
    """Name, effect of the simulated atrophy, shape, normalisation and options; `visit_order` has the default."""
    changed: dict[str, dict[str, Any]] = {
        "EMA=.9": {"ema": 0.9},
        "KEEP_EPOCH=best": {"keep_epoch": "best"},
        "LR_SCHEDULE=plateau": {"lr_schedule": "plateau"},
        "WARMUP_EPOCHS=0": {"warmup_epochs": 0.0},
        "CLIP_NORM=100": {"clip_norm": 100.0},
    }
    return [(name, 1.0, SHAPE, "batch", replace(DEFAULT, **change)) for name, change in changed.items()]


def visit_order() -> list[tuple[str, float, tuple[int, int, int], str, Options]]:
    """With and without the visit-order term, where atrophy drives the hazard and where it does not."""
    return [
        (f"VISIT_ORDER_WEIGHT={weight:g}, SIM_EFFECT={effect:g}", effect, SHAPE, "batch", options)
        for effect in (1.0, 0.0)
        for weight in (0.0, 4.0)
        for options in [replace(DEFAULT, visit_order_weight=weight)]
    ]


def risk_set() -> list[tuple[str, float, tuple[int, int, int], str, Options]]:
    """The same number of steps with risk sets of 8, 64 and all 192 training subjects; and 8 for as many scans as 64."""
    sizes = ((8, STEPS), (64, STEPS), (192, STEPS), (8, 8 * STEPS))
    options = [replace(DEFAULT, risk_set=size, epochs=steps * size // 192) for size, steps in sizes]
    return [
        (f"RISK_SET={size}, {steps} steps", 1.0, SMALL, "batch", chosen)
        for (size, steps), chosen in zip(sizes, options, strict=True)
    ]


STUDIES = {"stability": stability, "visit_order": visit_order, "risk_set": risk_set}


def main(arguments: list[str]) -> None:
    """Run the studies that are named, or all, on the seeds that are named, or all."""
    names = [name for name in arguments if name in STUDIES] or list(STUDIES)
    seeds = [int(word) for word in arguments if word not in STUDIES] or list(SEEDS)
    for name in names:
        for seed in seeds:
            for label, effect, shape, norm, options in STUDIES[name]():
                options = replace(options, seed=seed, patience=options.epochs)
                print(json.dumps({"name": label, "seed": seed} | measure(effect, shape, norm, options)), flush=True)


def measure(effect: float, shape: tuple[int, int, int], norm: str, options: Options) -> dict[str, float]:
    """Train once and test.

    Returns:
        `c`, of the last scan; `c_last_slope`, of a Cox model on the last log-hazard and its slope; `risk_and_atrophy`,
        `slopes`: correlations with the truth; `best_epoch`; `worst_fall`, of the validation C from its best so far to
        a later epoch; `lowest`, the validation C of the worst epoch after the first; `cpu_s` of the training.
    """
    parts, truth = _cohort(effect, shape, options.seed)
    model = build_model(shape, width=WIDTH, norm=norm, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        of = {name: Scans.of(parts[name]) for name in ("train", "val")}
        loop.train(model, of, options, Path(folder), save_seconds=60.0)
        seconds = time.process_time() - began
        watched = pd.read_csv(Path(folder) / "history.csv")["val_c_index"].to_numpy()
    predict = make_predict(model)
    scored = {
        name: part.assign(log_hazard=predict(part["cache_entry"].to_list(), options.batch_size)[1])
        for name, part in parts.items()
    }
    known = scored["test"].merge(truth, left_on="scan", right_on="imageid", validate="1:1", suffixes=("", "_true"))
    visits = known.sort_values("visit_time").groupby("subject")
    moving = visits[["visit_time", "log_hazard"]]
    change = moving.last() - moving.first()
    both = baselines.predict_cox_models(scored, np.array([1.0]))["cox_last_slope"]["test"]
    last = tables.last_visits(scored["test"])
    figures = {
        "c": concordance(last["log_hazard"].to_numpy(), tables.time_left(last), last["event"].to_numpy()),
        "c_last_slope": concordance(*(both[name].to_numpy() for name in ("log_hazard", "time", "event"))),
        "risk_and_atrophy": known["log_hazard"].corr(known["atrophy"]),
        "slopes": (change["log_hazard"] / change["visit_time"]).corr(visits["rate"].first()),
        "best_epoch": int(watched.argmax()) + 1,
        "worst_fall": np.max(np.maximum.accumulate(watched) - watched),
        "lowest": watched[1:].min() if len(watched) > 1 else watched[0],
        "cpu_s": seconds,
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def _cohort(effect: float, shape: tuple[int, int, int], seed: int) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The parts, with their cache entries, and the truth of every scan."""
    folder = HERE / "outputs-benchmark" / "study"
    path = simulate.write_cohort(
        folder / f"effect-{effect:g}_seed-{seed}", num_subjects=SUBJECTS, effect=effect, seed=seed
    )
    table, _ = tables.read_cohort(path, mri_folder=folder, time_unit="years")
    parts = split_subjects(table, test_ratio=TESTED / SUBJECTS, val_train_ratio=0.2, seed=seed)
    parts = {name: build_cache(part, Preprocessing(shape), folder=folder / "cache")[0] for name, part in parts.items()}
    truth = pd.read_csv(path.with_name("truth.csv"), usecols=["imageid", "atrophy", "rate"])
    return parts, truth


if __name__ == "__main__":
    main(sys.argv[1:])
