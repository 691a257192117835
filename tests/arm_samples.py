"""Tables whose hazard follows the last or the highest value, and arms that are fitted to them."""

import numpy as np
import pandas as pd

from survival.arms import fit_arms
from survival.landmarks import Histories
from survival.link import LinkSettings


def settings(components=(0,), penalties=(0.03, 0.3)):
    return LinkSettings(penalties=penalties, components=components, winsorise=0.0, ties="efron")


def cohort(kind, num_subjects, rng):
    """Irregular visits of one column whose last value, or whose highest value, drives the hazard after the last."""
    rows = []
    for subject in range(num_subjects):
        years = np.append(0, np.sort(rng.uniform(0.2, 3, rng.integers(1, 6))))
        values = np.cumsum(rng.normal(0, 0.9, len(years)))
        risk = 1.5 * (values[-1] if kind == "last" else values.max())
        left, seen = rng.exponential(3 * np.exp(-risk)) + 0.01, rng.uniform(1, 8)
        outcome = (years[-1] + min(left, seen), left <= seen)
        rows += [(f"s{subject:04}", year, *outcome, value) for year, value in zip(years, values, strict=True)]
    return pd.DataFrame(rows, columns=["subject", "visit_time", "time", "event", "x"])


def fit(table, columns=("x",), grid=(), components=(0,), judges=None, **options):
    """Fitted arms and what is held out; everybody judges unless said."""
    judges = np.ones(table["subject"].nunique(), bool) if judges is None else judges
    return fit_arms(table, columns, judges=judges, grid=grid, settings=settings(components, **options), seed=0)


def predict(arms, table, grid=()):
    """(R, 3) log-hazards of a table by arms."""
    data = Histories.of(table, arms.prepare, grid)
    return arms(data.inputs[data.rows])
