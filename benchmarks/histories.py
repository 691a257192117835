"""What the arms of a stack reach where the hazard follows more than the last value: simulated tables, no images.

    python benchmarks/histories.py [SEED ...]

240 subjects to learn from, 460 to test on, 2 to 7 irregular visits, one column that counts and two of noise; the hazard
after the last visit follows the level and the rate, a change of the rate, the highest value, the variability, the time
since a jump, or a U-shape. Prints a JSON line a kind and seed, and the means: the C-index of each arm, of the stack and
of the true risk, and the arms' weights. About 2 CPU seconds each.
"""

import json
import sys

from timing import HERE  # first: it sets the threads

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd

from survival.estimates import concordance
from survival.link import LinkSettings, landmark_sets
from survival.stack import ARMS, fit_arms, stack_arms

SEEDS = (0, 1, 2, 3, 4)
TRAINED, TESTED = 240, 460
VISITS = (2, 7)
YEARS = 3.0  # from the first visit to the last, at most
NOISE = 0.3  # standard deviation of what is measured
EFFECT = 1.3  # log-hazard for a standard deviation of what drives it
SETTINGS = LinkSettings(penalties=(0.01, 0.03, 0.1, 0.3, 1.0), components=(0,), winsorise=0.0, ties="efron")


def linear(years: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A line; the hazard follows the last value and the rate."""
    rate = rng.normal(0.5, 0.5)
    values = rng.normal() + rate * years
    return values, 0.6 * values[-1] + 1.2 * rate


def accelerating(years: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A parabola; the hazard follows the last value and the rate at the end."""
    rate, bend = rng.normal(0.5, 0.5), rng.normal(0, 0.4)
    values = rng.normal() + rate * years + bend * years**2
    return values, 0.4 * values[-1] + 1.2 * (rate + 2 * bend * years[-1])


def highest(years: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A random walk; the hazard follows its highest value."""
    values = 0.5 * rng.normal() + np.cumsum(rng.normal(0, 0.8, len(years)))
    return values, values.max()


def variable(years: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Noise about a level; the hazard follows the subject's own spread."""
    level, log_spread = rng.normal(), rng.normal(-0.7, 0.7)
    return level + np.exp(log_spread) * rng.normal(size=len(years)), 1.5 * log_spread + 0.2 * level


def jumping(years: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A step up at some time; the hazard is raised after it and falls back."""
    level, jump = 0.5 * rng.normal(), rng.uniform(-1, YEARS)
    since = years[-1] - max(jump, 0.0)
    return level + 1.5 * (years >= jump), 3 * np.exp(-since / 0.8) * (since >= 0)


def u_shaped(years: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A line; the hazard follows the square of its last value."""
    values = rng.normal() + rng.normal(0.5, 0.5) * years
    return values, values[-1] ** 2


KINDS = {function.__name__: function for function in (linear, accelerating, highest, variable, jumping, u_shaped)}


def draw(kind: str, num_subjects: int, rng: np.random.Generator) -> pd.DataFrame:
    """A table of visits in memory's columns, and `risk`, the true log-hazard of each subject after its last visit."""
    rows, risks = [], []
    for subject in range(num_subjects):
        number = int(rng.integers(VISITS[0], VISITS[1] + 1))
        years = np.append(0.0, np.sort(rng.uniform(0.15, YEARS, number - 1)))
        values, risk = KINDS[kind](years, rng)
        risks.append(risk)
        seen = values + NOISE * rng.normal(size=number)
        rows += [(f"s{subject:05}", *visit) for visit in zip(years, seen, *rng.normal(size=(2, number)), strict=True)]
    table = pd.DataFrame(rows, columns=["subject", "visit_time", "x", "noise_1", "noise_2"])
    risk = EFFECT * (np.array(risks) - np.mean(risks)) / np.std(risks)
    time, seen_for = 4 * rng.weibull(1.3, num_subjects) * np.exp(-risk / 1.3), rng.uniform(1, 8, num_subjects)
    last = table.groupby("subject")["visit_time"].max()
    end = last + np.minimum(time, seen_for) + 0.01
    outcome = pd.DataFrame({"time": end, "event": time <= seen_for, "risk": risk})
    return table.join(outcome, on="subject")


def measure(kind: str, seed: int) -> dict:
    """C-index of every arm, of the stack and of the truth on the test subjects; the weights."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    train, test = draw(kind, TRAINED, rng), draw(kind, TESTED, rng)
    columns = ["x", "noise_1", "noise_2"]
    arms, held_out = fit_arms(train, columns, grid=(), settings=SETTINGS, seed=seed)
    rows = arms(train)[0].landmarks
    stack = stack_arms(held_out, landmark_sets(rows, "efron"), int(rows.event.sum()))
    data, log_hazards = arms(test)
    risks = dict(zip(ARMS, log_hazards.T, strict=True))
    risks |= {"stack": log_hazards @ stack.weights, "oracle": test.groupby("subject")["risk"].first().to_numpy()}
    time, event = data.landmarks.time, data.landmarks.event
    reached = {name: round(concordance(risk, time, event), 4) for name, risk in risks.items()}
    return reached | {"weights": stack.weights.round(2).tolist(), "gain": round(stack.gain, 1)}


def main(seeds: tuple[int, ...]) -> None:
    """Print a line for each kind and seed, then the means of each kind."""
    for kind in KINDS:
        rows = [measure(kind, seed) for seed in seeds]
        for seed, row in zip(seeds, rows, strict=True):
            print(json.dumps({"name": f"histories, {kind}", "seed": seed, **row}), flush=True)
        means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in (*ARMS, "stack", "oracle")}
        print(json.dumps({"name": f"histories, {kind}, mean of the seeds", **means}), flush=True)


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SEEDS)
