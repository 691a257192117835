"""What the T-LSTM is held against, on the same split: one scan, plain Cox models, and the truth where it is known.

Each model becomes a table of predictions such as stage 2's, a row a subject, made at the last visit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cohort.tables import feature_columns, last_visits, time_left
from survival.estimates import breslow, survival_curves

Parts = Mapping[str, pd.DataFrame]  # train, val and test, a row a scan or a row a subject
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of the Cox models, chosen on the validation part
COMPONENTS = 16  # of the image's features, for `elastic_net_features`


def one_scan(features: Parts, years: np.ndarray) -> dict[str, pd.DataFrame]:
    """Stage 1 by itself: the log-hazard of each subject's last scan.

    Args:
        features: feature tables of the parts, a row a scan.
        years: (T,) of the survival curves.
    Returns:
        Tables `subject, time` (years left), `event, log_hazard, survival_<t>…`; Breslow's baseline on train.
    """
    return _predictions({part: last_visits(table) for part, table in features.items()}, "log_hazard", years)


def cox_models(features: Parts, years: np.ndarray) -> dict[str, dict[str, pd.DataFrame]]:
    """Penalised Cox models on what each subject's visits give, by name; tables as `one_scan`'s.

    `cox_last_slope`: stage 1's log-hazard of the last scan, and its change a year since the first.
    `elastic_net_features`: principal components of the last scan's features.
    `covariates`: the table's own numeric columns at the last visit; only if it has any.
    """
    models: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {"cox_last_slope": last_and_slope}
    image = [name for name in feature_columns(features["train"]) if name.startswith("feature_")]
    if image:
        number = min(COMPONENTS, len(image), features["train"]["subject"].nunique() - 1)
        reduce = make_pipeline(StandardScaler(), PCA(number, random_state=0))
        reduce.fit(last_visits(features["train"])[image])
        models["elastic_net_features"] = lambda table: pd.DataFrame(reduce.transform(last_visits(table)[image]))
    own = [name for name in feature_columns(features["train"]) if name not in {*image, "log_hazard"}]
    if own:
        middle = last_visits(features["train"])[own].median().fillna(0.0)
        models["covariates"] = lambda table: last_visits(table)[own].fillna(middle)
    return {
        name: _cox(features, inputs, years, l1_ratio=0.5 * (name == "elastic_net_features"))
        for name, inputs in models.items()
    }


def last_and_slope(table: pd.DataFrame) -> pd.DataFrame:
    """Each subject's last log-hazard, and its change a year since the first visit (0 with one visit)."""
    last = last_visits(table)
    first = table.sort_values(["subject", "visit_time"]).groupby("subject", sort=True).head(1).reset_index(drop=True)
    years = last["visit_time"] - first["visit_time"]
    slope = (last["log_hazard"] - first["log_hazard"]) / years.where(years > 0, 1.0)
    return pd.DataFrame({"last": last["log_hazard"], "slope": slope})


def oracle(features: Parts, truth: str | Path, years: np.ndarray) -> dict[str, dict[str, pd.DataFrame]]:
    """The best that one scan and a history can do, on the simulated cohort: `last_scan` and `longitudinal`.

    Args:
        features: as `one_scan`.
        truth: the cohort's `truth.csv`: the atrophy in each scan, and the hazard that drew the event.
        years: of the survival curves.
    """
    known = pd.read_csv(truth, dtype={"imageid": str}).set_index("imageid")
    found = {}
    for name, column in (("last_scan", "atrophy"), ("longitudinal", "log_hazard")):
        last = {part: last_visits(table) for part, table in features.items()}
        risks = {part: table.assign(risk=known.loc[table["scan"], column].to_numpy()) for part, table in last.items()}
        found[name] = _predictions(risks, "risk", years)
    return found


def _cox(features: Parts, inputs: Callable[[pd.DataFrame], pd.DataFrame], years: np.ndarray, *, l1_ratio: float):
    """Fit on the training part, the penalty with the best partial likelihood on validation."""
    last = {part: last_visits(table) for part, table in features.items()}
    x = {part: inputs(table) for part, table in features.items()}
    scale = StandardScaler().fit(x["train"])
    z = {part: pd.DataFrame(scale.transform(values), columns=values.columns.astype(str)) for part, values in x.items()}
    fitting = {part: z[part].assign(time=time_left(table), event=table["event"]) for part, table in last.items()}
    fits = [
        CoxPHFitter(penalizer=penalty, l1_ratio=l1_ratio).fit(fitting["train"], "time", "event")
        for penalty in PENALTIES
    ]
    best = max(fits, key=lambda fit: fit.score(fitting["val"]))
    risks = {part: table.assign(risk=best.predict_log_partial_hazard(z[part])) for part, table in last.items()}
    return _predictions(risks, "risk", years)


def _predictions(last: Parts, risk: str, years: np.ndarray) -> dict[str, pd.DataFrame]:
    """Tables of predictions from a risk at each subject's last visit."""
    train = last["train"]
    baseline = breslow(train[risk].to_numpy(), time_left(train), train["event"].to_numpy())
    found = {}
    for part, table in last.items():
        curves = survival_curves(baseline, table[risk].to_numpy(), years)  # (N, T)
        found[part] = pd.DataFrame(
            {
                "subject": table["subject"],
                "time": time_left(table),
                "event": table["event"],
                "log_hazard": table[risk],
                **{f"survival_{year}": curves[:, i] for i, year in enumerate(years)},
            }
        )
    return found
