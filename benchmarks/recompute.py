"""Recompute the test figures of a run from `tlstm/predictions.csv` with scikit-survival.

    python benchmarks/recompute.py outputs

Prints, for each figure, the value in metrics.json, scikit-survival's and their difference. The exit code is 1 if two
values differ by more than 1e-6 or one of them is missing. Uses nothing of this project's code.
"""

import json
import sys
from collections.abc import Iterator, Sequence
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


def recompute(predicted: pd.DataFrame, horizons: Sequence[float]) -> dict[str, float]:
    """The figures of the test part that scikit-survival can compute.

    Args:
        predicted: of a run: `split, time` (years), `convert_status, log_hazard, survival_<year>...`, a row a subject.
        horizons: years of AUC and Brier score.
    Returns:
        Values by the name of the figure and, for AUC and Brier score, the year.
    """
    train, test = (predicted[predicted["split"] == part] for part in ("train", "test"))
    event, time, risk = test["convert_status"].to_numpy(bool), test["time"].to_numpy(), test["log_hazard"].to_numpy()
    figures = {"c_index": concordance_index_censored(event, time, risk)[0]}
    high = risk > train["log_hazard"].median()
    if has_maximum(time, event, high):
        cox = CoxPHSurvivalAnalysis(ties="efron", tol=1e-12, n_iter=500)
        cox.fit(high[:, None].astype(float), Surv.from_arrays(event, time))
        figures["hazard_ratio"] = float(np.exp(cox.coef_[0]))
    return figures | censoring_weighted(train, test, horizons)


def censoring_weighted(train: pd.DataFrame, test: pd.DataFrame, horizons: Sequence[float]) -> dict[str, float]:
    """The figures that are weighted by the censoring of the training part.

    Args:
        train: the predictions of the training part, a row a subject.
        test: those of the test part.
        horizons: years.
    Returns:
        `uno_c`, `ibs` if all years of the curves are within the follow-up, and AUC and Brier score at the horizons
        within it; empty if fewer than two years are.
    """
    event, time, risk = test["convert_status"].to_numpy(bool), test["time"].to_numpy(), test["log_hazard"].to_numpy()
    reference = Surv.from_arrays(train["convert_status"].to_numpy(bool), train["time"].to_numpy())
    follow_up = min(train["time"].max(), time.max())
    usable, curves = usable_curves(test, reference, follow_up)
    if len(usable) < 2:
        return {}
    # scikit-survival refuses follow-up past the training part's. What comes after the last usable time makes no
    # difference to any figure, so follow-up ends just behind it.
    end = (usable[-1] + follow_up) / 2
    part = Surv.from_arrays(event & (time <= end), np.minimum(time, end))
    figures = {"uno_c": concordance_index_ipcw(reference, part, risk, tau=usable[-1])[0]}
    # scikit-survival refuses times before the first one of the part, too. So a subject censored at 0 is added: it adds
    # 0 to each sum of the Brier score, and 1 to the number of subjects by which the sum is divided.
    longer, num_subjects = np.append(part, Surv.from_arrays([False], [0.0])), len(part) + 1
    padded = np.vstack([curves, np.ones(len(usable))])
    if len(usable) == test.columns.str.startswith("survival_").sum():  # of a part of the curves none is reported
        figures["ibs"] = integrated_brier_score(reference, longer, padded, usable) * num_subjects / len(part)
    for year in horizons:
        if year in usable:
            column = padded[:, usable == year]
            brier = brier_score(reference, longer, column, year)[1][0]
            figures[f"brier {year}"] = brier * num_subjects / len(part)
            if (event & (time <= year)).any():
                figures[f"auc {year}"] = cumulative_dynamic_auc(reference, part, risk, year)[0][0]
    return figures


def usable_curves(test: pd.DataFrame, reference: np.ndarray, follow_up: float) -> tuple[np.ndarray, np.ndarray]:
    """The survival curves at the years at which the censoring of the training part is known.

    Args:
        test: columns `survival_<year>...`, a row a subject.
        reference: outcomes of the training part, as scikit-survival takes them.
        follow_up: years; the shorter of the two parts' longest follow-up.
    Returns:
        Years (T,) and survival (N, T).
    """
    names = [name for name in test.columns if name.startswith("survival_")]
    years = np.array([float(name.removeprefix("survival_")) for name in names])
    is_usable = years < follow_up
    is_usable[is_usable] = CensoringDistributionEstimator().fit(reference).predict_proba(years[is_usable]) > 0
    return years[is_usable], test[names].to_numpy()[:, is_usable]


def has_maximum(time: np.ndarray, event: np.ndarray, high: np.ndarray) -> bool:
    """Whether the hazard ratio is neither 0 nor infinite: each group has an event while the other is at risk.

    Args:
        time: (N,) years.
        event: (N,) bool.
        high: (N,) bool; the high-risk group.
    Returns:
        True if the likelihood has a maximum.
    """
    pairs = ((high, ~high), (~high, high))
    return all(event[group].any() and time[group & event].min() <= time[rest].max(initial=0) for group, rest in pairs)


def reported(test: dict) -> dict[str, float | None]:
    """The figures of `metrics.json` under the names of `recompute`; a hazard ratio of 0 counts as none.

    Args:
        test: the figures of the test part.
    Returns:
        Values by figure and year, None where there is none.
    """
    single = {name: test[name]["value"] for name in ("c_index", "uno_c", "ibs")}
    single["hazard_ratio"] = test["hazard_ratio"]["value"] or None
    return single | {
        f"{name} {year}": estimate["value"] for name in ("auc", "brier") for year, estimate in test[name].items()
    }


def compare_figures(ours: dict[str, float | None], sksurv: dict[str, float]) -> Iterator[tuple[str, bool]]:
    """Compare each figure with scikit-survival's.

    Args:
        ours: of `reported`.
        sksurv: of `recompute`.
    Yields:
        A line of text, and whether the two agree.
    """
    for name, value in ours.items():
        expected = sksurv.get(name)
        if value is None or expected is None:
            yield f"{name:14} {value} {expected}", value is None and expected is None
        else:
            difference = abs(value - expected)
            yield f"{name:14} {value:.9f} {expected:.9f} {difference:.1e}", difference <= TOLERANCE


def main(folder: Path) -> int:
    """Compare a run's figures and print the result.

    Args:
        folder: the run's OUTPUT_DIR.
    Returns:
        The exit code: 1 if a figure differs.
    """
    ours = reported(json.loads((folder / "metrics.json").read_text())["tlstm"]["test"])
    predicted = pd.read_csv(folder / "tlstm" / "predictions.csv")
    horizons = [float(name.split()[1]) for name in ours if name.startswith("auc")]
    lines = list(compare_figures(ours, recompute(predicted, horizons)))
    for line, agrees in lines:
        print(line if agrees else f"{line}  DIFFERS")
    num_wrong = sum(not agrees for _, agrees in lines)
    print(f"{len(lines) - num_wrong} of {len(lines)} figures agree to {TOLERANCE:g}")
    return int(num_wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
