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
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from tqdm import tqdm

from cohort import simulate, tables
from cohort.grid import Grid, check_grid, read_grid
from cohort.scans import name_alike
from cohort.splits import split_subjects
from cohort.teachers import no_teachers
from cohort.volume import preprocess, read_image
from config import Config
from data import cache_folder, find_reference, read_parts, read_reference, simulated_folder, simulated_history
from reporting.explained import check_regions
from reporting.preflight import check_folds, check_tables, refusal_of
from runs.errors import InputError, raise_if_any
from runs.manifest import damage_lines, find_damage, read_record
from runs.record import Record, refuse_other_program
from runs.stages import STAGES
from runs.threads import fix_threads
from survival.cohort_words import tell_cohort

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
    """Print the state of the run's files, the cohort's flow, and the time, memory and disk that a run takes.

    Args:
        config: of the run; its folder need not exist.
    Raises:
        InputError: names every file that is missing or changed and every row and scan that a run would refuse; or the
            folder is another program's.
    """
    refuse_other_program(config.OUTPUT_DIR, Record.program)
    damage = _check_run(config.OUTPUT_DIR)
    check_folds(config)
    parts, teachers, grid, by_header = _read_cohort(config)
    _print_cohort(config, parts, teachers)
    _print_scans(_all_scans(parts, teachers), grid, len(by_header))
    by_tables, refused = refusal_of(lambda: check_tables(config, parts)), name_alike(by_header)
    timed = parts["train"].iloc[: SCANS + 1]
    by_voxels = _refuse_voxels(timed, grid, config) if grid is not None and not refused else []
    rates = _measure(config, parts, [*refused, *by_voxels])
    _print_costs(config, parts, len(_all_scans(parts, teachers)), rates)
    raise_if_any(
        f"{config.OUTPUT_DIR} is not as its run left it, or its tables or scans can't be used",
        [*damage, *by_tables, *refused, *by_voxels],
        "Run main.py again, which makes damaged stages anew; mend these tables and scans, or drop their rows.",
        number=len(damage) + len(by_tables) + len(by_header) + len(by_voxels),
    )


def _check_run(folder: Path) -> list[str]:
    """Print the state of each finished stage's files; returns what is wrong."""
    stages = read_record(folder).get("stages", {})
    print(f"The run in {folder}" + ("" if stages else ": none yet"))
    problems = []
    for name in (name for name in STAGES if name in stages):
        files = stages[name].get("files", {})
        damage = find_damage(folder, files)
        size = f"{len(files)} files, {sum(file['size'] for file in files.values()) / 1e6:.1f} MB"
        state = f"{size}, all as the stage left them" if stages[name]["done"] else "begun, not done"
        print(f"  {name:<9} {f'{size}, {len(damage)} of them missing or changed' if damage else state}")
        problems += [f"{name}: {line}" for line in damage_lines(damage)]
    return problems


def _read_cohort(config: Config) -> tuple[dict[str, pd.DataFrame], pd.DataFrame, Grid | None, list[tuple[str, str]]]:
    """The parts, the teachers, the grid of the scans, and which scans a run would refuse, by their headers."""
    folder = simulated_folder(config)
    if folder is not None and not folder.exists():
        history = simulated_history(config)
        truth = simulate.draw_truth(config.SIM_SUBJECTS, effect=config.SIM_EFFECT, seed=config.SEED, history=history)
        in_memory = {name: ours for ours, name in tables.ON_DISK.items()}
        table = truth.rename(columns=in_memory)[[*tables.ON_DISK]].astype({"event": bool})
        parts = split_subjects(
            table, test_ratio=config.TEST_RATIO, val_train_ratio=config.VAL_TRAIN_RATIO, seed=config.SEED
        )
        return parts, no_teachers(), None, []
    parts, teachers = read_parts(config)
    return parts, teachers, *_read_grids(_all_scans(parts, teachers), config)


def _all_scans(parts: dict[str, pd.DataFrame], teachers: pd.DataFrame) -> pd.DataFrame:
    """The scans of everybody, `scan, nifti_path`; without `nifti_path` if the cohort is simulated and not written."""
    tables = (*parts.values(), *([] if teachers.empty else [teachers]))
    return pd.concat([table.filter(["scan", "nifti_path"]) for table in tables])


def _read_grids(scans: pd.DataFrame, config: Config) -> tuple[Grid | None, list[tuple[str, str]]]:
    """The grid that the scans must have, and why scans would be refused, with their ids and paths."""
    grids: list[Grid | None] = []
    refused = []
    for scan, path in tqdm(scans[["scan", "nifti_path"]].to_numpy().tolist(), desc="headers", unit="scan"):
        try:
            grids.append(read_grid(path, config.MAX_VOXELS))
        except InputError as error:
            grids.append(None)
            refused.append((f"{scan}: {path}", str(error)))
    reference, whose = read_reference(config), "REFERENCE"
    if reference is None:
        reference, whose = find_reference(scans, grids)[0], "the other scans"
    for scan, path, own in zip(scans["scan"], scans["nifti_path"], grids, strict=True):
        try:
            if not config.RESAMPLE and own is not None and reference is not None:
                check_grid(own, reference, whose)
        except InputError as error:
            refused.append((f"{scan}: {path}", str(error)))
    return reference, refused


def _print_cohort(config: Config, parts: dict[str, pd.DataFrame], teachers: pd.DataFrame) -> None:
    """Print the parts, the cohort in words, and what is unlikely of it."""
    print("\nThe cohort\n  part   subjects  events  censored  scans  visits a subject")
    for name, part in parts.items():
        event = part.groupby("subject")["event"].first()
        print(f"  {name:<6} {len(event):8}  {event.sum():6}  {(~event).sum():8}  {len(part):5}  {_visits_of(part)}")
    if len(teachers):
        num_subjects = teachers["subject"].nunique()
        print(f"  none   {num_subjects:8}       -         -  {len(teachers):5}  {_visits_of(teachers)}")
    lines, warnings = tell_cohort(
        parts,
        teachers=teachers,
        time_unit=config.TIME_UNIT,
        landmarks=config.LANDMARKS,
        horizons=config.HORIZONS,
    )
    print(*(f"  {line}" for line in lines), *(f"  WARNING: {line}" for line in warnings), sep="\n")


def _visits_of(table: pd.DataFrame) -> str:
    visits = table.groupby("subject").size()
    return f"{visits.min()} to {visits.max()}, mean {visits.mean():.1f}"


def _print_scans(scans: pd.DataFrame, grid: Grid | None, num_refused: int) -> None:
    """Print what the headers of the scans say."""
    if "nifti_path" not in scans:
        print("  It is simulated, and not written yet.")
        return
    grids = "none can be read" if grid is None else grid.describe()
    print(f"  Every header is read: {grids}; {num_refused} of {len(scans)} scans would be refused.")
    print("  Whether a volume is empty, constant, not finite or no stripped brain, only a run sees for all scans.")


def _measure(config: Config, parts: dict[str, pd.DataFrame], refused: list[str]) -> Rates:
    """Time a few scans, and a few steps of the training on noise."""
    seconds = 0.0
    if not refused and "nifti_path" in parts["train"]:
        paths = parts["train"]["nifti_path"].iloc[: SCANS + 1]
        seconds = _seconds(
            lambda step: preprocess(read_image(paths.iloc[step % len(paths)]), config.TARGET_SHAPE), SCANS
        )
    start, train, forward, num_weights = _time_network(config, parts["train"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Rates(seconds, start, train, forward, memory, num_weights)


def _refuse_voxels(scans: pd.DataFrame, grid: Grid, config: Config) -> list[str]:
    """Why a few scans would be refused by their voxels, or could not be explained; `grid` is the cohort's."""
    refused, volumes = [], []
    for scan, path in scans[["scan", "nifti_path"]].to_numpy().tolist():
        try:
            volumes.append(preprocess(read_image(path), config.TARGET_SHAPE, grid if config.RESAMPLE else None))
        except InputError as error:
            refused.append((f"{scan}: {path}", str(error)))
    if not refused and "explain" in config.STAGES:
        brains, box = np.stack(volumes)[..., None], grid.resized(config.TARGET_SHAPE)
        return refusal_of(lambda: check_regions(config.ATLAS, brains, box))
    return name_alike(refused)


def _time_network(config: Config, table: pd.DataFrame) -> tuple[float, float, float, int]:
    """Time the network on noise.

    Returns:
        Seconds until the first step is compiled; seconds a volume in a step, and forward; weights of the network.
    """
    began = time.perf_counter()
    from loss import Outcome
    from training.devices import Workers
    from training.stage1 import Stage1
    from training.steps import Options, Steps

    stage1 = Stage1(config, fix_threads(config.OUTPUT_DIR))
    import tensorflow as tf

    model = stage1.build(config.PRECISION)
    # A risk set that does not fit into memory is read twice; a part of it, of two batches, shows that as well.
    rows = np.arange(min(2 * config.BATCH_SIZE, round(config.RISK_SET * _visits(table))), dtype=np.int32)
    years = np.ones(len(rows), np.float32)
    steps = Steps(model, Options.of(config), Outcome(rows, years, years, rows % 2 == 0), Workers())
    micro_batches = steps.micro_batches(rows)
    shape = (len(micro_batches[0]), *config.TARGET_SHAPE, 1)
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    in_order = steps.reading_order(micro_batches)
    batches = [(tf.constant(noise[: len(part)]), tf.constant(part)) for part in in_order]

    predict = tf.function(partial(model, training=False), autograph=False)
    forward = _seconds(lambda _: predict(noise).numpy(), STEPS)
    both = _seconds(lambda _: steps.step(rows, iter(batches), 0), STEPS)
    start = time.perf_counter() - began - STEPS * (forward + both)
    return start, both / len(rows), forward / len(noise), model.count_params()


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


def _print_costs(config: Config, parts: dict[str, pd.DataFrame], num_preprocessed: int, rates: Rates) -> None:
    """Print what a run would take at these rates; `num_preprocessed` are the scans of the parts and the teachers."""
    num_scans = {name: len(part) for name, part in parts.items()}
    scans, jobs = sum(num_scans.values()), config.NUM_WORKERS if config.NUM_WORKERS > 0 else cpu_count()
    networks = max(1, config.FOLDS) * (1 + config.CROSS_FIT)
    epoch = num_scans["train"] * rates.train + num_scans["val"] * rates.predict
    training = rates.start + networks * (config.EPOCHS * epoch + scans * rates.predict)
    cache = num_preprocessed * (np.prod(config.TARGET_SHAPE) * CACHED)
    features = networks * scans * 8 * config.WIDTH * FLOAT
    state = 2 * (STATE + (config.EMA > 0))  # twice, while it is written anew
    weights = (networks + state) * rates.weights * FLOAT
    folders = (cache_folder(config), *cache_folder(config).absolute().parents)
    free = shutil.disk_usage(next(path for path in folders if path.exists())).free
    need = cache + features + weights
    preprocessing = "not timed, since there are no scans yet"
    if rates.preprocess:
        preprocessing = f"{_span(num_preprocessed * rates.preprocess / jobs)}, unless the cache has the volumes"
    not_in_it = "stage 2, explanations, the page"
    if "nifti_path" not in parts["train"]:
        not_in_it = f"the simulated scans, {not_in_it}"
    networks_in_words = "1 network" if networks == 1 else f"{networks} networks"
    print(
        f"""
What a run takes here, about, with {os.environ["OMP_NUM_THREADS"]} threads
  preprocessing  {preprocessing}
  stage 1        {_span(training)}: {networks_in_words} of {config.EPOCHS} epochs, and the features
  memory         {rates.memory / GB:.1f} GB
  disk           {need / GB:.2f} GB of {free / GB:.1f} that are free{": TOO LITTLE" if need > free else ""}
                 cache {cache / GB:.2f}, weights and state {weights / GB:.2f}, features {features / GB:.2f}
  This rests on {SCANS} scans preprocessed and {STEPS} steps of the training on noise, timed just now on one device, and
  the memory that they took. Not in it: {not_in_it}."""
    )


def _span(seconds: float) -> str:
    return f"{seconds:.1f} seconds" if seconds < 90 else f"{seconds / 60:.1f} minutes"
