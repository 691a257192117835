"""Recompute the test figures of a run from `tlstm/predictions.csv` with scikit-survival.

    python benchmarks/recompute.py outputs

Prints figure, metrics.json's value, scikit-survival's and their difference. Exit code 1 if one differs by more
than 1e-6 or is missing on one side. Uses nothing of this project's code.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

TOLERANCE = 1e-6


def recompute(predicted: pd.DataFrame, horizons: list[float]) -> dict[str, float]:
    """The figures of the test part that scikit-survival can compute, by name.

    Args:
        predicted: of a run: `split, time, convert_status, log_hazard, survival_<t>...`.
        horizons: years of AUC and Brier score.
    """
    train, test = (predicted[predicted["split"] == part] for part in ("train", "test"))
    event, time, risk = test["convert_status"].to_numpy(bool), test["time"].to_numpy(), test["log_hazard"].to_numpy()
    found = {"c_index": concordance_index_censored(event, time, risk)[0]}
    high = risk > train["log_hazard"].median()
    if has_maximum(time, event, high):
        cox = CoxPHSurvivalAnalysis(ties="efron", tol=1e-12, n_iter=500)
        found["hazard_ratio"] = float(
            np.exp(cox.fit(high[:, None].astype(float), Surv.from_arrays(event, time)).coef_[0])
        )

    reference = Surv.from_arrays(train["convert_status"].to_numpy(bool), train["time"].to_numpy())
    names = [name for name in test.columns if name.startswith("survival_")]
    years = np.array([float(name.removeprefix("survival_")) for name in names])
    follow_up = min(train["time"].max(), time.max())
    inside = years < follow_up
    inside[inside] = CensoringDistributionEstimator().fit(reference).predict_proba(years[inside]) > 0
    usable, curves = years[inside], test[names].to_numpy()[:, inside]
    if len(usable) < 2:
        return found
    # scikit-survival refuses follow-up past the training part's. What comes after the last usable time makes no
    # difference to any figure, so follow-up ends just behind it.
    end = (usable[-1] + follow_up) / 2
    part = Surv.from_arrays(event & (time <= end), np.minimum(time, end))
    found["uno_c"] = concordance_index_ipcw(reference, part, risk, tau=usable[-1])[0]
    # It refuses times before the first one of the part, too. A subject censored at 0 adds 0 to each sum of the Brier
    # score, which is therefore that of one subject more.
    longer, more = np.append(part, Surv.from_arrays([False], [0.0])), len(part) + 1
    padded = np.vstack([curves, np.ones(len(usable))])
    found["ibs"] = integrated_brier_score(reference, longer, padded, usable) * more / len(part)
    for year in horizons:
        if year in usable:
            column = padded[:, usable == year]
            found[f"brier {year}"] = brier_score(reference, longer, column, year)[1][0] * more / len(part)
            if (event & (time <= year)).any():
                found[f"auc {year}"] = cumulative_dynamic_auc(reference, part, risk, year)[0][0]
    return found


def has_maximum(time: np.ndarray, event: np.ndarray, high: np.ndarray) -> bool:
    """Whether the hazard ratio is neither 0 nor infinite: either group has an event while the other is at risk."""
    pairs = ((high, ~high), (~high, high))
    return all(event[one].any() and time[one & event].min() <= time[other].max(initial=0) for one, other in pairs)


def reported(test: dict) -> dict[str, float | None]:
    """The same figures as `metrics.json` has them; a hazard ratio of 0 counts as none."""
    single = {name: test[name]["value"] for name in ("c_index", "uno_c", "ibs")}
    single["hazard_ratio"] = test["hazard_ratio"]["value"] or None
    return single | {f"{name} {year}": at["value"] for name in ("auc", "brier") for year, at in test[name].items()}


def compare(ours: dict[str, float | None], theirs: dict[str, float]) -> Iterator[tuple[str, bool]]:
    """A line of text for each figure, and whether the two agree."""
    for name, value in ours.items():
        other = theirs.get(name)
        if value is None or other is None:
            yield f"{name:14} {value} {other}", value is None and other is None
        else:
            yield f"{name:14} {value:.9f} {other:.9f} {abs(value - other):.1e}", abs(value - other) <= TOLERANCE


def main(folder: Path) -> int:
    """Compare a run's figures; returns the exit code."""
    ours = reported(json.loads((folder / "metrics.json").read_text())["tlstm"]["test"])
    predicted = pd.read_csv(folder / "tlstm" / "predictions.csv")
    horizons = [float(name.split()[1]) for name in ours if name.startswith("auc")]
    lines = list(compare(ours, recompute(predicted, horizons)))
    for line, agrees in lines:
        print(line if agrees else f"{line}  DIFFERS")
    wrong = sum(not agrees for _, agrees in lines)
    print(f"{len(lines) - wrong} of {len(lines)} figures agree to {TOLERANCE:g}")
    return int(wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
