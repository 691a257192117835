import numpy as np
import pandas as pd
import pytest
from feature_tables import feature_table, feature_tables

from survival import baselines
from survival.estimates import concordance

YEARS = np.array([1.0, 2.0, 5.0])


@pytest.fixture
def features(rng):
    return feature_tables(rng)


def c_index(predicted):
    return concordance(predicted["log_hazard"], predicted["time"], predicted["event"])


def test_one_scan_is_the_last_scans_log_hazard(features):
    predicted = baselines.predict_last_scan(features, YEARS)["test"]
    last = features["test"].groupby("subject").tail(1)
    np.testing.assert_array_equal(predicted["log_hazard"], last["log_hazard"])
    np.testing.assert_allclose(predicted["time"], last["time"] - 1.0)
    curves = predicted[["survival_1.0", "survival_2.0", "survival_5.0"]].to_numpy()
    assert (np.diff(curves) <= 0).all() and ((curves > 0) & (curves <= 1)).all()
    assert predicted["log_hazard"].corr(predicted["survival_2.0"]) < 0


def test_a_visit_at_the_end_of_follow_up_is_not_the_last_one(features):
    """One test subject's second visit lies at the end, another's only ones do: all models predict the same subjects."""
    names = features["test"].query("not event")["subject"].unique()
    table = features["test"].copy()
    rows = table["subject"] == names[0]
    table.loc[rows, "time"] = table.loc[rows, "visit_time"].max()
    table = table.drop(table.index[(table["subject"] == names[1]) & (table["visit_time"] > 0)])
    table.loc[table["subject"] == names[1], "time"] = 0.0
    parts = features | {"test": table}
    predicted = baselines.predict_last_scan(parts, YEARS)["test"]
    first = table[(table["subject"] == names[0]) & (table["visit_time"] == 0.5)]
    assert predicted.set_index("subject").loc[names[0], "log_hazard"] == first["log_hazard"].item()
    assert names[1] not in set(predicted["subject"])
    for model in baselines.predict_cox_models(parts, YEARS).values():
        assert model["test"]["subject"].tolist() == predicted["subject"].tolist()


def test_the_slope_helps_where_the_hazard_is_in_it(features):
    models = baselines.predict_cox_models(features, YEARS)
    assert set(models) == {"cox_last", "cox_last_slope", "elastic_net_features"}
    one_scan = c_index(baselines.predict_last_scan(features, YEARS)["test"])
    assert c_index(models["cox_last_slope"]["test"]) > one_scan + 0.03
    assert abs(c_index(models["elastic_net_features"]["test"]) - one_scan) < 0.1


def test_last_and_slope_by_hand():
    table = pd.DataFrame({"subject": ["a", "a", "b"], "visit_time": [0.0, 2.0, 1.0], "log_hazard": [1.0, 4.0, 7.0]})
    inputs = baselines.last_and_slope(table)
    assert inputs["last"].tolist() == [4.0, 7.0] and inputs["slope"].tolist() == [1.5, 0.0]


def test_covariates_are_a_baseline_of_their_own(rng):
    features = {part: feature_table(100, rng, part, ["age"]) for part in ("train", "val", "test")}
    features["test"].loc[::7, "age"] = np.nan
    predicted = baselines.predict_cox_models(features, YEARS)["covariates"]["test"]
    assert c_index(predicted) > 0.5 and np.isfinite(predicted["log_hazard"]).all()


def test_the_test_part_changes_no_fit(features):
    """Other test outcomes and features leave the other parts' predictions as they were."""
    before = baselines.predict_cox_models(features, YEARS)
    features["test"] = features["test"].assign(event=True, log_hazard=9.0, feature_1=-5.0)
    after = baselines.predict_cox_models(features, YEARS)
    for name in before:
        for part in ("train", "val"):
            pd.testing.assert_frame_equal(before[name][part], after[name][part])


def test_the_oracle_is_the_truth_of_each_scan(features, tmp_path):
    truth = pd.concat(features.values())[["scan"]].rename(columns={"scan": "imageid"})
    truth["atrophy"], truth["log_hazard"] = np.arange(len(truth)), -np.arange(len(truth))
    truth.sample(frac=1, random_state=0).to_csv(tmp_path / "truth.csv", index=False)
    predicted = baselines.predict_from_truth(features, tmp_path / "truth.csv", YEARS)
    last = truth.set_index("imageid").loc[features["test"].groupby("subject").tail(1)["scan"]]
    np.testing.assert_array_equal(predicted["last_scan"]["test"]["log_hazard"], last["atrophy"])
    np.testing.assert_array_equal(predicted["longitudinal"]["test"]["log_hazard"], last["log_hazard"])


def test_the_oracle_of_one_scan_is_what_the_scan_tells_where_more_atrophy_is_not_worse(features, tmp_path):
    truth = pd.concat(features.values())[["scan"]].rename(columns={"scan": "imageid"})
    truth["atrophy"] = np.linspace(-2, 2, len(truth))
    truth["log_hazard_one_scan"], truth["log_hazard"] = truth["atrophy"] ** 2, np.arange(len(truth))
    truth.to_csv(tmp_path / "truth.csv", index=False)
    predicted = baselines.predict_from_truth(features, tmp_path / "truth.csv", YEARS)["last_scan"]["test"]
    last = truth.set_index("imageid").loc[features["test"].groupby("subject").tail(1)["scan"]]
    np.testing.assert_allclose(predicted["log_hazard"], last["atrophy"] ** 2)
