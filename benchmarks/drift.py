"""What drifts of a scanner do to progress, and whether the drift alarm sounds: simulated scans, no network.

    python benchmarks/drift.py [SEED ...]

192 subjects to learn from and 300 to test on, three visits each. From the first visit on, a drift grows in all subjects
or in every other one. Progress has projected out a linear bias field, and nearly a change of contrast, but not the
other drifts. Prints a JSON line a drift: the correlation of the slopes of progress with the true rates, the C-index of
Cox(progress, slope), both on the test subjects, and the alarm with its figures. Then 20 cohorts without a drift, of 192
and of 48 subjects: how often the alarm sounds. About 6 CPU minutes.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable

from timing import HERE  # first: it sets the threads

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd
from scipy import ndimage

from cohort.simulate import AFFINE, FRONTAL_A_YEAR, SHAPE, Anatomy, build_anatomy, draw_scan, draw_truth
from cohort.tables import last_visits, time_left
from survival.baselines import last_and_slope
from survival.cox import ridge_cox, risk_sets
from survival.estimates import concordance
from training.progress import CoarseGrid, CoarseScans, ProgressMap, learn_map

TRAINED, TESTED = 192, 300
A_YEAR = 0.05  # share of the intensity, at the edge of the brain
BLUR = 0.25  # squared sigma, voxels, a year
ROTATION = 0.5  # degrees a year, nodding
WITHOUT = range(100, 120)  # seeds of the cohorts without a drift
PENALTY = 0.01  # of the Cox model

X, Y, Z = (  # mm of the voxels, each (X, Y, Z)
    AFFINE[axis, axis] * places + AFFINE[axis, 3]
    for axis, places in enumerate(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
)
DEPTH = (Y + 18) / 90  # -1 to 1 from the back of the brain to its front

Drift = Callable[[np.ndarray, float], np.ndarray]  # a volume (X, Y, Z) and the years since the first visit


def times_field(field: np.ndarray) -> Drift:
    """A drift that multiplies the intensities by a field (X, Y, Z) that grows."""
    return lambda volume, years: volume * (1 + A_YEAR * years * field)


def contrast(volume: np.ndarray, years: float) -> np.ndarray:
    """The intensities take a power that grows."""
    return 1000 * (volume / 1000) ** (1 + A_YEAR * years)


def blur(volume: np.ndarray, years: float) -> np.ndarray:
    """A Gaussian blur within the brain."""
    sigma = np.sqrt(BLUR * years)
    inside = ndimage.gaussian_filter((volume != 0).astype(float), sigma)
    return ndimage.gaussian_filter(volume, sigma) / np.maximum(inside, 1e-6)


def rotation(volume: np.ndarray, years: float) -> np.ndarray:
    """The head nods further each year."""
    angle, centre = np.deg2rad(ROTATION * years), (np.array(SHAPE) - 1) / 2
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return ndimage.affine_transform(volume, turn, offset=centre - turn @ centre, order=1)


DRIFTS: dict[str, Drift] = {
    "bias, linear": times_field(X / 70),
    "contrast": contrast,
    "bias, cubic": times_field(2.5 * DEPTH**3 - 1.5 * DEPTH),
    "bias, cubic, a third": times_field((2.5 * DEPTH**3 - 1.5 * DEPTH) / 3),
    "blob": times_field(np.exp(-((X - 35) ** 2 + (Y + 20) ** 2 + (Z - 40) ** 2) / (2 * 15**2))),
    "blur": blur,
    "rotation": rotation,
}


def draw_volumes(truth: pd.DataFrame, anatomy: Anatomy, *, seed: int, nuisance: float = 1.0) -> np.ndarray:
    """(N, X, Y, Z) scans of the subjects of a truth, as `cohort.simulate` writes them."""
    volumes = []
    for number, (_, visits) in enumerate(truth.groupby("subjectid", sort=False), start=1):
        rng = np.random.default_rng([seed, number, 1])
        frontal = nuisance * rng.normal()
        for years, atrophy in zip(visits["visit_time"], visits["atrophy"], strict=True):
            aged = frontal + FRONTAL_A_YEAR * nuisance * years
            volumes.append(draw_scan(anatomy, atrophy=atrophy, frontal=aged, nuisance=nuisance, rng=rng))
    return np.stack(volumes)


def z_scores(volumes: Iterable[np.ndarray], years: np.ndarray, drift: Drift | None) -> Iterable[np.ndarray]:
    """The volumes (X, Y, Z) as the network sees them; `years` (N,) of the drift, 0 where there is none."""
    for volume, since in zip(volumes, years, strict=True):
        brain = volume != 0
        changed = volume.astype(float) if drift is None or since == 0 else drift(volume.astype(float), since)
        inside = np.maximum(changed[brain], 1)
        scores = np.zeros(SHAPE)
        scores[brain] = (inside - inside.mean()) / inside.std()
        yield scores


def measure(truth: pd.DataFrame, volumes: np.ndarray, drift: Drift | None = None, *, half: bool = False) -> dict:
    """What progress of the first TRAINED subjects reaches on the others, and the alarm."""
    table = truth.rename(columns={"subjectid": "subject", "imageid": "scan", "convert_status": "event"})
    subjects, _ = pd.factorize(table["subject"])
    drifting = table["visit_time"].to_numpy(float) * (subjects % 2 == 0 if half else 1)
    train, test = subjects < TRAINED, subjects >= TRAINED
    learned = learn(table[train], volumes[train], drifting[train], drift)
    tested = table[test].assign(
        progress=[np.vdot(learned.weights, scan) for scan in z_scores(volumes[test], drifting[test], drift)]
    )
    learning = table[train].assign(progress=learned.left_out_of(table[train]))
    inputs, rates = last_and_slope(tested, last_of="progress", slope_of="progress"), tested.groupby("subject")["rate"]
    row = {"slopes": np.corrcoef(inputs["slope"], rates.first())[0, 1], "cox": cox_concordance(learning, tested)}
    return row | figures_of(learned)


def learn(table: pd.DataFrame, volumes: np.ndarray, drifting: np.ndarray, drift: Drift | None = None) -> ProgressMap:
    """The map of progress that N scans teach; the other arguments are those of `z_scores`."""
    return learn_map(CoarseScans.of(CoarseGrid(SHAPE), z_scores(volumes, drifting, drift), len(volumes)), table)


def figures_of(learned: ProgressMap) -> dict:
    """The left-out error and the alarm's figures."""
    assert learned.drift is not None
    return {"error": learned.error} | {k: v for k, v in learned.drift.items() if k not in ("why", "smaller_group")}


def cox_concordance(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """C-index on the test subjects of a Cox model of the last progress and its slope."""
    inputs = [last_and_slope(table, last_of="progress", slope_of="progress").to_numpy() for table in (train, test)]
    train, test = last_visits(train), last_visits(test)
    mean, sd = inputs[0].mean(axis=0), inputs[0].std(axis=0)
    sets = risk_sets(time_left(train), train["event"].to_numpy(bool))
    log_hazard = (inputs[1] - mean) / sd @ ridge_cox((inputs[0] - mean) / sd, sets, PENALTY)
    return concordance(log_hazard, time_left(test), test["event"].to_numpy(bool))


def report(name: str, row: dict) -> None:
    """Print a JSON line."""
    rounded = {key: round(float(value), 3) if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps({"name": f"drift, {name}", **rounded}), flush=True)


def false_alarms(anatomy: Anatomy, num_subjects: int) -> dict:
    """How often the alarm sounds, and can't tell, without a drift."""
    rows = []
    for seed in WITHOUT:
        truth = draw_truth(num_subjects, seed=seed).rename(columns={"subjectid": "subject", "imageid": "scan"})
        volumes = draw_volumes(truth.rename(columns={"subject": "subjectid"}), anatomy, seed=seed)
        rows.append(figures_of(learn(truth, volumes, np.zeros(len(truth)))))
    return {
        "cohorts": len(rows),
        "alarms": sum(row["alarm"] is True for row in rows),
        "cannot_tell": sum(row["alarm"] is None for row in rows),
        "least_spread": min(row["spread"] for row in rows),
        "least_within_groups": min(row["within_groups"] for row in rows),
    }


def main(seeds: tuple[int, ...]) -> None:
    """Print a line for each seed and drift, then those without a drift."""
    logging.getLogger("training.progress").setLevel(logging.ERROR)
    anatomy = build_anatomy()
    for seed in seeds:
        truth = draw_truth(TRAINED + TESTED, seed=seed)
        for nuisance in (2.0, 1.0):
            volumes = draw_volumes(truth, anatomy, seed=seed, nuisance=nuisance)
            report(f"none, SIM_NUISANCE {nuisance:g}", {"seed": seed, **measure(truth, volumes)})
        for name, drift in DRIFTS.items():
            for half in (False, True):
                row = measure(truth, volumes, drift, half=half)
                report(f"{name}, in {'half' if half else 'all'}", {"seed": seed, **row})
    for num_subjects in (TRAINED, TRAINED // 4):
        report(f"none, {num_subjects} subjects", false_alarms(anatomy, num_subjects))


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or (0,))
