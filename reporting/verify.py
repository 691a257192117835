"""`python main.py --VERIFY`: is a run as it was left, what is in the cohort, and what would a run take here.

Nothing is trained and nothing is written.
"""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from tqdm import tqdm

from cohort import simulate, tables
from cohort.grid import Grid, read_grid
from cohort.splits import split_subjects
from config import Config
from data import cache_folder, preprocess, read_image, read_tables, simulated_folder
from runs.errors import InputError, raise_if_any
from runs.manifest import find_damage, damage_lines, read_record
from runs.stages import ARTEFACTS
from runs.threads import fix_threads

SCANS, STEPS = 3, 3  # that are timed, after one that is not
FLOAT, CACHED = 4, 2  # bytes
STATE = 3  # numbers for each weight that a training goes on from: itself and Adam's two averages; one more with EMA
GB = 1e9


@dataclass(frozen=True)
class Rates:
    """What was measured on this machine."""

    preprocess: float  # seconds a scan, in one process
    start: float  # seconds until TensorFlow is there and has compiled a step
    train: float  # seconds a volume in a step of the training
    predict: float  # seconds a volume, forward
    memory: float  # bytes that this process has held at most
    weights: int  # numbers in the network


def verify(config: Config) -> None:
    """Print all three.

    Args:
        config: of the run; its folder need not exist.
    Raises:
        InputError: names every file that is missing or changed and every row and scan that a run would refuse.
    """
    damage = _check_run(config.OUTPUT_DIR)
    parts, grid, refused = _read_cohort(config)
    _tell_cohort(parts, grid, refused)
    _tell_costs(config, parts, _measure(config, parts, refused))
    raise_if_any(
        f"{config.OUTPUT_DIR} is not as its run left it, or scans can't be used",
        damage + refused,
        "Run main.py again, which makes damaged stages anew; mend these scans, or drop their rows.",
    )


def _check_run(folder: Path) -> list[str]:
    """Print how each finished stage's files are; returns what is wrong."""
    stages = read_record(folder).get("stages", {})
    print(f"The run in {folder}" + ("" if stages else ": none yet"))
    problems = []
    for stage in (stage for stage in ARTEFACTS if stage in stages):
        files = stages[stage].get("files", {})
        damage = find_damage(folder, files)
        whole = f"{len(files)} files, {sum(file['size'] for file in files.values()) / 1e6:.1f} MB"
        state = f"{whole}, all as the stage left them" if stages[stage]["done"] else "begun, not done"
        print(f"  {stage:<9} {f'{whole}, {len(damage)} of them missing or changed' if damage else state}")
        problems += [f"{stage}: {line}" for line in damage_lines(damage)]
    return problems


def _read_cohort(config: Config) -> tuple[dict[str, pd.DataFrame], Grid | None, list[str]]:
    """The parts, the grid of the scans, and which scans a run would refuse, by their headers."""
    folder = simulated_folder(config)
    if folder is not None and not folder.exists():
        truth = simulate.draw_truth(config.SIM_SUBJECTS, effect=config.SIM_EFFECT, seed=config.SEED)
        in_memory = {name: ours for ours, name in tables.ON_DISK.items()}
        table = truth.rename(columns=in_memory)[[*tables.ON_DISK]].astype({"event": bool})
        parts = split_subjects(
            table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
        )
        return parts, None, []
    parts = read_tables(config)
    scans = pd.concat(parts.values())
    reference, refused = None, []
    for scan, path in tqdm(list(zip(scans["scan"], scans["nifti_path"], strict=True)), desc="headers", unit="scan"):
        try:
            grid = read_grid(path, config.MAX_VOXELS)
        except InputError as error:
            refused.append(f"{scan}: {path}: {error}")
            continue
        reference = reference or grid
        if not (config.RESAMPLE or reference.matches(grid)):
            refused.append(
                f"{scan}: {path}: expected the first scan's grid, {_words(reference)}, received {_words(grid)}"
            )
    return parts, reference, refused


def _tell_cohort(parts: dict[str, pd.DataFrame], grid: Grid | None, refused: list[str]) -> None:
    print("\nThe cohort\n  part   subjects  events  censored  scans  visits a subject")
    for name, part in parts.items():
        event, visits = part.groupby("subject")["event"].first(), part.groupby("subject").size()
        print(
            f"  {name:<6} {len(event):8}  {event.sum():6}  {(~event).sum():8}  {len(part):5}  "
            f"{visits.min()} to {visits.max()}, mean {visits.mean():.1f}"
        )
    if grid is None:
        print("  It is simulated, and not written yet.")
    else:
        print(f"  Every header is read: {_words(grid)}; {len(refused)} scans would be refused.")
        print("  Whether a volume is empty, constant or not finite, only a run sees: it reads the voxels.")


def _words(grid: Grid) -> str:
    origin = ", ".join(f"{mm:.1f}" for mm in grid.affine[:3, 3])
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm from ({origin})"


def _measure(config: Config, parts: dict[str, pd.DataFrame], refused: list[str]) -> Rates:
    """Time a few scans and a few steps of the training, of nothing but noise."""
    seconds = 0.0
    if not refused and "nifti_path" in parts["train"]:
        paths = parts["train"]["nifti_path"].iloc[: SCANS + 1]
        seconds = _seconds(
            lambda step: preprocess(read_image(paths.iloc[step % len(paths)]), config.TARGET_SHAPE), SCANS
        )
    began = time.perf_counter()
    from model import build_model
    from training.devices import Workers, start_tensorflow
    from training.steps import Options, Steps

    start_tensorflow(threads=fix_threads(config.OUTPUT_DIR), seed=config.SEED)
    import tensorflow as tf

    model = build_model(config.TARGET_SHAPE, width=config.WIDTH, norm=config.NORM, precision=config.PRECISION)
    # A risk set that does not fit into memory is read twice; a part of it, of two batches, shows that as well.
    rows = np.arange(min(2 * config.BATCH_SIZE, round(config.RISK_SET * _visits(parts["train"]))), dtype=np.int32)
    years = np.ones(len(rows), np.float32)
    options = Options.of(config)
    steps = Steps(model, options, (rows, years, years, rows % 2 == 0), Workers())
    split = steps.split(rows)
    noise = np.random.default_rng(0).normal(size=(len(split[0]), *config.TARGET_SHAPE, 1)).astype(np.float32)
    batches = [(tf.constant(noise[: len(part)]), tf.constant(part)) for part in steps.passes(split)]

    @tf.function
    def predict(volumes):
        return model(volumes, training=False)

    forward = _seconds(lambda _: predict(noise).numpy(), STEPS)
    both = _seconds(lambda _: steps.step(rows, iter(batches), 0), STEPS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    start = time.perf_counter() - began - STEPS * (forward + both)
    return Rates(seconds, start, both / len(rows), forward / len(noise), memory, model.count_params())


def _visits(part: pd.DataFrame) -> float:
    """Mean number of scans of a subject."""
    return len(part) / part["subject"].nunique()


def _seconds(run: Callable[[int], object], times: int) -> float:
    """Wall clock of one run, after a first that is not counted."""
    run(0)
    began = time.perf_counter()
    for step in range(times):
        run(step + 1)
    return (time.perf_counter() - began) / times


def _tell_costs(config: Config, parts: dict[str, pd.DataFrame], rates: Rates) -> None:
    """What a run would take, from the rates."""
    num = {name: len(part) for name, part in parts.items()}
    scans, jobs = sum(num.values()), config.NUM_WORKERS if config.NUM_WORKERS > 0 else cpu_count()
    networks = max(1, config.FOLDS) * (1 + config.CROSS_FIT)
    epoch = num["train"] * rates.train + num["val"] * rates.predict
    training = rates.start + networks * (config.EPOCHS * epoch + scans * rates.predict)
    cache = scans * (np.prod(config.TARGET_SHAPE) * CACHED)
    features = networks * scans * 8 * config.WIDTH * FLOAT
    state = 2 * (STATE + (config.EMA > 0))  # twice, while it is written anew
    weights = (networks + state) * rates.weights * FLOAT
    there = next(path for path in (cache_folder(config), *cache_folder(config).absolute().parents) if path.exists())
    free, need = shutil.disk_usage(there).free, cache + features + weights
    told = "not timed, since there are no scans yet"
    if rates.preprocess:
        told = f"{_span(scans * rates.preprocess / jobs)}, unless the cache has the volumes"
    networks_told = "1 network" if networks == 1 else f"{networks} networks"
    print(
        f"""
What a run takes here, about, with {os.environ["OMP_NUM_THREADS"]} threads
  preprocessing  {told}
  stage 1        {_span(training)}: {networks_told} of {config.EPOCHS} epochs, and the features
  memory         {rates.memory / GB:.1f} GB
  disk           {need / GB:.2f} GB of {free / GB:.1f} that are free{": TOO LITTLE" if need > free else ""}
                 cache {cache / GB:.2f}, weights and state {weights / GB:.2f}, features {features / GB:.2f}
  This rests on {SCANS} scans preprocessed and {STEPS} steps of the training on noise, timed just now on one device, and
  the memory that they took. Not in it: the simulated scans, stage 2, explanations, the page."""
    )


def _span(seconds: float) -> str:
    return f"{seconds:.1f} seconds" if seconds < 90 else f"{seconds / 60:.1f} minutes"
