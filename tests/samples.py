"""Small tables of visits and survival times, and a naive Cox loss, for several tests."""

import numpy as np
import pandas as pd


def survival_data(rng, num_rows=60, num_inputs=3):
    """Times rounded to a coarse grid, so that many are tied."""
    inputs = rng.normal(size=(num_rows, num_inputs))
    time = np.ceil(rng.exponential(np.exp(-inputs[:, 0])) * 4) / 4
    return inputs, time, rng.random(num_rows) < 0.7, rng.integers(0, 3, num_rows)


def naive_loss(log_hazard, time, event, stratum, ties):
    """Efron's or Breslow's partial likelihood, event by event."""
    total = 0.0
    for year in np.unique(time):
        for group in np.unique(stratum):
            tied = np.flatnonzero(event & (time == year) & (stratum == group))
            at_risk = np.exp(log_hazard[(time >= year) & (stratum == group)]).sum()
            for rank in range(len(tied)):
                share = rank / len(tied) if ties == "efron" else 0.0
                total += np.log(at_risk - share * np.exp(log_hazard[tied]).sum())
            total -= log_hazard[tied].sum()
    return total / event.sum()


def random_table(rng, num_subjects=20, num_features=4):
    """1 to 5 visits a subject with features of stage 1, a log-hazard and a laboratory value, all without effect."""
    rows = []
    for subject in range(num_subjects):
        visits = np.cumsum(rng.uniform(0.2, 1.0, rng.integers(1, 6))) - 0.2
        time, event = visits[-1] + rng.exponential(2), rng.random() < 0.6
        for visit in visits:
            features = {f"feature_{number}": rng.normal() for number in range(num_features)}
            rows.append(
                {"subject": f"s{subject:02d}", "visit_time": visit, "time": time, "event": event}
                | {"log_hazard": rng.normal(), "lab": np.exp(2 * rng.normal())}
                | features
            )
    return pd.DataFrame(rows)


def visits_table():
    """Three subjects with 3, 1 and 2 visits; `a` is missing twice; `lab` has a long right tail."""
    return pd.DataFrame(
        {
            "subject": ["p", "p", "p", "q", "r", "r"],
            "visit_time": [0.0, 0.5, 2.0, 0.0, 0.0, 1.0],
            "time": [4.0, 4.0, 4.0, 3.0, 1.5, 1.5],
            "event": [True, True, True, False, True, True],
            "a": [1.0, np.nan, 3.0, np.nan, 5.0, 6.0],
            "lab": [1.0, 2.0, 1.5, 1.2, 1.1, 100.0],
        }
    )
