"""The rivals of stage 2 on the same split: one scan, plain Cox models, and the truth where it is known.

Each model gives tables of predictions like stage 2's: a row a subject, predicted at the last visit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.tables import feature_columns, last_visits, time_left, visits_with_time_left
from survival.coding import Coding
from survival.columns import find_columns
from survival.estimates import breslow, survival_curves
from survival.preparation import IMAGE_FEATURE

Parts = Mapping[str, pd.DataFrame]  # train, val and test, a row a scan or a row a subject
Inputs = Callable[[pd.DataFrame], pd.DataFrame]  # visits, a row a scan -> inputs of a Cox model, a row a subject
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of the Cox models, chosen on the validation part
MAX_COMPONENTS = 16  # principal components of the image's features, for `elastic_net_features`


def predict_last_scan(features: Parts, years: np.ndarray) -> dict[str, pd.DataFrame]:
    """Predict with stage 1 by itself: the log-hazard of each subject's last scan.

    Args:
        features: feature tables of the parts, a row a scan.
        years: (T,) of the survival curves.
    Returns:
        By part, a table `subject, time` (years left), `event, log_hazard, survival_<year>...`, a row a subject. The
        baseline hazard is Breslow's on the training part.
    """
    return _predict_curves({part: last_visits(table) for part, table in features.items()}, "log_hazard", years)


def predict_cox_models(features: Parts, years: np.ndarray) -> dict[str, dict[str, pd.DataFrame]]:
    """Fit penalised Cox models on what each subject's visits give, and predict with them.

    `cox_last`: stage 1's log-hazard of the last scan alone, if it is there.
    `cox_last_slope`: stage 1's log-hazard of the last scan, and its change a year since the first, if it is there.
    `cox_level_and_pace`: that log-hazard, and the change of progress a year, if there is progress.
    `cox_progress_slope`: progress of the last scan, and its change a year, likewise.
    `elastic_net_features`: principal components of the last scan's features, if there are any.
    `covariates`: the table's own columns at the last visit, text as columns of 0 and 1, if there are any.

    Args:
        features: feature tables of the parts, a row a scan.
        years: (T,) of the survival curves.
    Returns:
        By model, tables as those of `predict_last_scan`.
    """
    columns = feature_columns(features["train"])
    image = [name for name in columns if IMAGE_FEATURE.fullmatch(name)]
    covariates = [name for name in find_columns(features).used if name not in {*image, "log_hazard", "progress"}]
    inputs: dict[str, Inputs] = {}
    if "log_hazard" in columns:
        inputs |= {"cox_last": lambda table: last_visits(table)[["log_hazard"]], "cox_last_slope": last_and_slope}
    if {"log_hazard", "progress"} <= {*columns}:
        inputs["cox_level_and_pace"] = partial(last_and_slope, slope_of="progress")
        inputs["cox_progress_slope"] = partial(last_and_slope, last_of="progress", slope_of="progress")
    if image:
        inputs["elastic_net_features"] = _principal_components(features["train"], image)
    if covariates:
        inputs["covariates"] = _imputed(features["train"], covariates)
    return {
        name: _predict_cox(features, of_visits, years, l1_ratio=0.5 * (name == "elastic_net_features"))
        for name, of_visits in inputs.items()
        if _varying(of_visits(features["train"]))
    }


def predict_from_truth(features: Parts, truth: str | Path, years: np.ndarray) -> dict[str, dict[str, pd.DataFrame]]:
    """Predict as well as one scan and a history can, on the simulated cohort.

    Args:
        features: feature tables of the parts, a row a scan.
        truth: the cohort's `truth.csv`: the log-hazard that drew the event, and what one scan can tell of it, which is
            `log_hazard_one_scan`, or the scan's atrophy where the two rise together.
        years: (T,) of the survival curves.
    Returns:
        `last_scan` and `longitudinal`, tables as those of `predict_last_scan`.
    """
    true_values = pd.read_csv(truth, dtype={"imageid": str}).set_index("imageid")
    last = {part: last_visits(table) for part, table in features.items()}
    of_one_scan = "log_hazard_one_scan" if "log_hazard_one_scan" in true_values else "atrophy"
    predicted = {}
    for name, column in (("last_scan", of_one_scan), ("longitudinal", "log_hazard")):
        risks = {
            part: table.assign(risk=true_values.loc[table["scan"], column].to_numpy()) for part, table in last.items()
        }
        predicted[name] = _predict_curves(risks, "risk", years)
    return predicted


# ---- What the Cox models see -----------------------------------------------------------------------
def last_and_slope(table: pd.DataFrame, *, last_of: str = "log_hazard", slope_of: str = "log_hazard") -> pd.DataFrame:
    """Each subject's value at the last visit, and a change since the first.

    Args:
        table: visits with these columns, a row a scan.
        last_of: the column whose last value is taken.
        slope_of: the column whose change is taken.
    Returns:
        `last`, and `slope` a year (0 with one visit), a row a subject.
    """
    last = last_visits(table)
    first = (
        visits_with_time_left(table)
        .sort_values(["subject", "visit_time"])
        .groupby("subject", sort=True)
        .head(1)
        .reset_index(drop=True)
    )
    years = last["visit_time"] - first["visit_time"]
    slope = (last[slope_of] - first[slope_of]) / years.where(years > 0, 1.0)
    return pd.DataFrame({"last": last[last_of], "slope": slope})


def _principal_components(train: pd.DataFrame, image: Sequence[str]) -> Inputs:
    """Principal components of the last scan's features, found on the training part."""
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = list(image)
    last = last_visits(train)
    num_components = min(MAX_COMPONENTS, len(columns), len(last) - 1)
    reduce = make_pipeline(StandardScaler(), PCA(num_components, random_state=0))
    reduce.fit(last[columns])
    return lambda table: pd.DataFrame(reduce.transform(last_visits(table)[columns]))


def _imputed(train: pd.DataFrame, covariates: Sequence[str]) -> Inputs:
    """Covariates at the last visit; a missing value becomes the training part's median, or most frequent level."""
    coding = Coding.fit(train, covariates)
    columns = [new for name in covariates for new in coding.columns_of(name)]
    replacements = coding(last_visits(train))[columns].median().fillna(0.0)
    replacements.update(coding.most_frequent(coding(train)))
    return lambda table: coding(last_visits(table))[columns].astype(float).fillna(replacements)


def _varying(inputs: pd.DataFrame) -> list:
    """The columns of inputs, a row a subject, that have two values or more."""
    return [name for name in inputs if inputs[name].min() < inputs[name].max()]


# ---- From inputs to predictions --------------------------------------------------------------------
def _predict_cox(features: Parts, inputs: Inputs, years: np.ndarray, *, l1_ratio: float) -> dict[str, pd.DataFrame]:
    """Fit on the training part's inputs that vary, with the penalty of the best partial likelihood on validation."""
    from lifelines import CoxPHFitter  # slow to import
    from sklearn.preprocessing import StandardScaler

    last = {part: last_visits(table) for part, table in features.items()}
    x = {part: inputs(table) for part, table in features.items()}
    varying = _varying(x["train"])
    scale = StandardScaler().fit(x["train"][varying].to_numpy(float))
    names = [f"input_{number}" for number in range(len(varying))]  # lifelines leaves out a column called Intercept
    z = {
        part: pd.DataFrame(scale.transform(values[varying].to_numpy(float)), columns=names)
        for part, values in x.items()
    }
    data = {part: z[part].assign(time=time_left(table), event=table["event"]) for part, table in last.items()}
    fits = [
        CoxPHFitter(penalizer=penalty, l1_ratio=l1_ratio).fit(data["train"], "time", "event") for penalty in PENALTIES
    ]
    best = max(fits, key=lambda fit: fit.score(data["val"]))
    risks = {part: table.assign(risk=best.predict_log_partial_hazard(z[part])) for part, table in last.items()}
    return _predict_curves(risks, "risk", years)


def _predict_curves(last: Parts, risk: str, years: np.ndarray) -> dict[str, pd.DataFrame]:
    """Tables of predictions from the column `risk`, a log-hazard at each subject's last visit."""
    train = last["train"]
    baseline = breslow(train[risk].to_numpy(), time_left(train), train["event"].to_numpy())
    predicted = {}
    for part, table in last.items():
        curves = survival_curves(baseline, table[risk].to_numpy(), years)  # (N, T)
        predicted[part] = pd.DataFrame(
            {
                "subject": table["subject"],
                "time": time_left(table),
                "event": table["event"],
                "log_hazard": table[risk],
                **{f"survival_{year}": curves[:, i] for i, year in enumerate(years)},
            }
        )
    return predicted
