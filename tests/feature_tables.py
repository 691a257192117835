"""Feature tables and tables of predictions with a known hazard, for the tests of the rivals and of evaluation."""

import numpy as np
import pandas as pd

from survival.estimates import breslow, survival_curves
from survival.predictor import curve_years


def feature_table(num_subjects, rng, prefix, columns=()):
    """3 visits a subject; the hazard is in the level and, more so, in the slope of `log_hazard`."""
    rows = []
    for subject in range(num_subjects):
        level, slope, noise = rng.normal(size=3)
        left = rng.exponential(np.exp(-0.5 * level - 1.5 * slope)) * 3 + 0.01
        end = min(left, 6.0)
        for visit in (0.0, 0.5, 1.0):
            row = {
                "subject": f"{prefix}{subject:03d}",
                "scan": f"{prefix}{subject:03d}_{visit}",
                "visit_time": visit,
                "time": 1.0 + end,
                "event": left < 6.0,
                "log_hazard": level + slope * visit,
                "feature_1": level + slope * visit + 0.1 * noise,
                "feature_2": rng.normal(),
            }
            rows.append(row | {name: rng.normal() - level for name in columns})
    return pd.DataFrame(rows)


def feature_tables(rng):
    """The feature tables of the three parts."""
    return {part: feature_table(size, rng, part) for part, size in (("train", 120), ("val", 60), ("test", 80))}


def predictions(subjects, log_hazard, horizons, *, landmark=1.0):
    """A table of predictions for subjects (a row each, `time` from baseline) with Breslow's baseline of their own."""
    time, event, years = subjects["time"].to_numpy() - landmark, subjects["event"].to_numpy(), curve_years(horizons)
    log_hazard = np.asarray(log_hazard, float)
    curves = survival_curves(breslow(log_hazard, time, event), log_hazard, years)
    columns = {"subject": subjects["subject"].to_numpy(), "landmark": landmark, "time": time, "event": event}
    columns |= {"log_hazard": log_hazard}
    return pd.DataFrame(columns | {f"survival_{year}": curve for year, curve in zip(years, curves.T, strict=True)})
