"""A table whose hazard depends on the slope of a marker: a model must read the history to see it.

python tests/oracles/tlstm_slopes.py slopes.csv
"""

import sys

import numpy as np
import pandas as pd

LAST_VISIT = 2.0  # years; the visits of every subject end here, whatever happens later


def slope_table(num_subjects: int, *, slope_effect: float, seed: int, level_effect: float = 0.5) -> pd.DataFrame:
    """Simulate visits in memory's columns; every subject is event-free at its last visit.

    Args:
        num_subjects: N.
        slope_effect: log hazard ratio of one standard deviation of the slope.
        seed: of all random draws.
        level_effect: log hazard ratio of one standard deviation of the value at the last visit.
    Returns:
        3 to 6 irregular visits a subject, times in years, with the features `marker` (its last value is independent of
        its slope) and `noise`.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(num_subjects):
        last_value, slope = rng.normal(size=2)
        inner = np.sort(rng.uniform(0.2, 1.8, rng.integers(1, 5)))
        visits = np.concatenate([[0.0], inner, [LAST_VISIT]])
        hazard = 0.15 * np.exp(level_effect * last_value + slope_effect * slope)
        time, end = rng.exponential(1 / hazard), rng.uniform(2.0, 8.0)
        marker = last_value - slope * (LAST_VISIT - visits) + 0.1 * rng.normal(size=len(visits))
        rows += [
            {
                "subject": f"s{subject:05d}",
                "visit_time": visit,
                "time": LAST_VISIT + min(time, end),
                "event": time <= end,
                "marker": value,
                "noise": rng.normal(),
            }
            for visit, value in zip(visits, marker, strict=True)
        ]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table = slope_table(600, slope_effect=1.0, seed=0)
    table["event"] = table["event"].astype(int)
    table.rename(columns={"subject": "subjectid", "event": "convert_status"}).to_csv(sys.argv[1], index=False)
