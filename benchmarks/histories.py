"""What the arms of a stack reach where the hazard follows more than the last value: simulated tables, no images.

    python benchmarks/histories.py [--subjects 240] [--visits 2,7] [--jobs 1] [SEED ...]

So many subjects to learn from, 460 to test on, irregular visits, one column that counts and two of noise; the hazard
after the last visit follows the level and the rate, a change of the rate, the highest value, the variability, the time
since a jump, or a U-shape. Prints a JSON line a kind and seed, and the means: the C-index of each arm, of the stack and
of the true risk, and the arms' weights. About 2 CPU seconds each.
"""

import argparse
import json
import sys

from timing import HERE  # first: it sets the threads

sys.path.insert(0, str(HERE))

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from lifelines import CoxPHFitter

import tlstm
from config import Config
from survival.estimates import concordance
from survival.landmarks import Histories
from survival.link import INNER_FOLDS, inner_folds
from survival.stack import weights_of
from survival.summaries import NAMES, Summaries

SEEDS = (0, 1, 2, 3, 4)
TESTED = 460
COLUMNS = ["x", "noise_1", "noise_2"]
RIVALS_PENALTY = 0.01  # of lifelines; the rivals have six inputs
EM_STEPS = 100
NO_RANGE = (np.array(-np.inf), np.array(np.inf))
YEARS = 3.0  # from the first visit to the last, at most
NOISE = 0.3  # standard deviation of what is measured
EFFECT = 1.3  # log-hazard for a standard deviation of what drives it


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


def draw(kind: str, num_subjects: int, visits: tuple[int, int], rng: np.random.Generator) -> pd.DataFrame:
    """A table of visits in memory's columns, and `risk`, the true log-hazard of each subject after its last visit."""
    rows, risks = [], []
    for subject in range(num_subjects):
        number = int(rng.integers(visits[0], visits[1] + 1))
        years = np.append(0.0, np.sort(rng.uniform(0.15, YEARS, number - 1)))
        values, risk = KINDS[kind](years, rng)
        risks.append(risk)
        seen = values + NOISE * rng.normal(size=number)
        rows += [(f"s{subject:05}", *visit) for visit in zip(years, seen, *rng.normal(size=(2, number)), strict=True)]
    table = pd.DataFrame(rows, columns=["subject", "visit_time", *COLUMNS])
    risk = EFFECT * (np.array(risks) - np.mean(risks)) / np.std(risks)
    time, seen_for = 4 * rng.weibull(1.3, num_subjects) * np.exp(-risk / 1.3), rng.uniform(1, 8, num_subjects)
    last = table.groupby("subject")["visit_time"].max()
    end = last + np.minimum(time, seen_for) + 0.01
    outcome = pd.DataFrame({"time": end, "event": time <= seen_for, "risk": risk})
    return table.join(outcome, on="subject")


# ---- The rivals ------------------------------------------------------------------------------------
def last_and_slope(table: pd.DataFrame) -> np.ndarray:
    """(N, 6): each column's last value and least-squares slope, the mean one with one visit."""
    values = table[COLUMNS].to_numpy()
    plain = Summaries(
        Summaries.fit(values, table).mean_slope, np.full(len(COLUMNS), 1e9), np.zeros(len(COLUMNS)), *NO_RANGE
    )
    is_last = ~table["subject"].duplicated(keep="last").to_numpy()
    return np.concatenate([values, plain(values, table)[:, : len(NAMES) * len(COLUMNS) : len(NAMES)]], axis=1)[is_last]


class MixedModel:
    """Random intercepts and slopes of one column, by expectation and maximisation (Laird and Ware 1982).

    Args:
        table: visits of training subjects.
        column: its name.
    """

    def __init__(self, table: pd.DataFrame, column: str):
        self.column, self.fixed, self.spread, self.noise = column, np.zeros(2), np.eye(2), 1.0
        designs = self._designs(table)
        for _ in range(EM_STEPS):
            effects, spread, squares = [], np.zeros((2, 2)), 0.0
            for design, values in designs:
                effect, own = self._effect(design, values)
                effects.append(effect)
                spread += own
                squares += ((values - design @ effect) ** 2).sum() + np.trace(design @ own @ design.T)
            self.fixed = np.mean(effects, axis=0)
            self.spread = (spread + np.cov(np.array(effects).T, bias=True) * len(designs)) / len(designs)
            self.noise = squares / len(table)

    def __call__(self, table: pd.DataFrame) -> np.ndarray:
        """(N, 2): what the model takes each subject's value at the last visit and its slope for."""
        effects = [self._effect(*pair)[0] for pair in self._designs(table)]
        last = table.groupby("subject")["visit_time"].max().to_numpy()
        return np.array([[effect @ [1, year], effect[1]] for effect, year in zip(effects, last, strict=True)])

    def _designs(self, table: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each subject (visits, 2) ones and years, and the values."""
        groups = table.groupby("subject")
        years = [np.stack([np.ones(len(rows)), rows["visit_time"]], axis=1) for _, rows in groups]
        return list(zip(years, [rows[self.column].to_numpy() for _, rows in groups], strict=True))

    def _effect(self, design: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A subject's intercept and slope, and how uncertain they are, (2, 2)."""
        own = np.linalg.inv(np.linalg.inv(self.spread + 1e-9 * np.eye(2)) + design.T @ design / self.noise)
        return self.fixed + own @ design.T @ (values - design @ self.fixed) / self.noise, own


def cox_risk(train: np.ndarray, test: np.ndarray, outcome: pd.DataFrame) -> np.ndarray:
    """The log-hazards of test inputs by a Cox model of training inputs, with the training subjects' outcome."""
    names = [f"input_{number}" for number in range(train.shape[1])]
    frame = pd.DataFrame((train - train.mean(0)) / train.std(0), columns=names).assign(**outcome)
    fitted = CoxPHFitter(penalizer=RIVALS_PENALTY).fit(frame, "left", "event")
    return (test - train.mean(0)) / train.std(0) @ fitted.params_.to_numpy()


def rival_risks(train: pd.DataFrame, test: pd.DataFrame) -> dict[str, np.ndarray]:
    """The log-hazards of both rivals."""
    last = train.groupby("subject").agg(left=("time", "first"), event=("event", "first"), year=("visit_time", "max"))
    outcome = pd.DataFrame({"left": (last["left"] - last["year"]).to_numpy(), "event": last["event"].to_numpy()})
    models = [MixedModel(train, column) for column in COLUMNS]
    mixed, mixed_test = (np.concatenate([model(table) for model in models], axis=1) for table in (train, test))
    return {
        "cox_last_slope": cox_risk(last_and_slope(train), last_and_slope(test), outcome),
        "mixed_model_cox": cox_risk(mixed, mixed_test, outcome),
    }


# ---- What is measured ------------------------------------------------------------------------------
def measure(kind: str, seed: int, num_subjects: int, visits: tuple[int, int]) -> dict:
    """C-index of every model and of the truth on the test subjects; the arms' weights."""
    tlstm.torch.set_num_threads(1)
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    train, test = draw(kind, num_subjects, visits, rng), draw(kind, TESTED, visits, rng)
    settings = tlstm.Settings.of(Config(SEED=seed))
    event = train.groupby("subject")["event"].first().to_numpy(bool)
    validation = inner_folds(event, INNER_FOLDS, rng)
    predictor, history = tlstm.fit(train, validation, COLUMNS, grid=(), settings=settings)
    data = Histories.of(test, predictor.prepare)
    risks = {name: arm.log_hazard(data)[0] for name, arm in predictor.arms.items()}
    risks |= {"stack": predictor.log_hazard(data)[0], **rival_risks(train, test)}
    risks["oracle"] = test.groupby("subject")["risk"].first().to_numpy()
    time, observed = data.landmarks.time, data.landmarks.event
    reached = {name: round(concordance(risk, time, observed), 4) for name, risk in risks.items()}
    weights = {name: round(weight, 2) for name, weight in weights_of(predictor).items()}
    return reached | {"weights": weights, "epochs": len(history)}


def main(arguments: argparse.Namespace) -> None:
    """Print a line for each kind and seed, then the means of each kind."""
    jobs = [(kind, seed) for kind in KINDS for seed in arguments.seeds]
    measured = Parallel(n_jobs=arguments.jobs)(
        delayed(measure)(*job, arguments.subjects, arguments.visits) for job in jobs
    )
    what = f"{arguments.subjects} subjects, {arguments.visits[0]} to {arguments.visits[1]} visits"
    for (kind, seed), row in zip(jobs, measured, strict=True):
        print(json.dumps({"name": f"histories, {kind}, {what}", "seed": seed, **row}), flush=True)
    for kind in KINDS:
        rows = [row for (of_row, _), row in zip(jobs, measured, strict=True) if of_row == kind]
        means = {
            name: round(float(np.mean([row[name] for row in rows])), 4)
            for name in rows[0]
            if name not in ("weights", "gain", "epoch")
        }
        weights = {
            name: round(float(np.mean([row["weights"][name] for row in rows])), 2) for name in rows[0]["weights"]
        }
        print(json.dumps({"name": f"histories, {kind}, {what}, mean", **means, "weights": weights}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--subjects", type=int, default=240)
    parser.add_argument("--visits", type=lambda text: tuple(map(int, text.split(","))), default=(2, 7))
    parser.add_argument("--jobs", type=int, default=1)
    main(parser.parse_args())
