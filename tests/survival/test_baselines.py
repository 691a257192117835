import numpy as np
import pandas as pd
import pytest

from survival import baselines
from survival.estimates import concordance

YEARS = np.array([1.0, 2.0, 5.0])


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


@pytest.fixture
def features(rng):
    return {part: feature_table(size, rng, part) for part, size in (("train", 120), ("val", 60), ("test", 80))}


def c_index(predicted):
    return concordance(predicted["log_hazard"], predicted["time"], predicted["event"])


def test_one_scan_is_the_last_scans_log_hazard(features):
    found = baselines.one_scan(features, YEARS)["test"]
    last = features["test"].groupby("subject").tail(1)
    np.testing.assert_array_equal(found["log_hazard"], last["log_hazard"])
    np.testing.assert_allclose(found["time"], last["time"] - 1.0)
    curves = found[["survival_1.0", "survival_2.0", "survival_5.0"]].to_numpy()
    assert (np.diff(curves) <= 0).all() and ((curves > 0) & (curves <= 1)).all()
    assert found["log_hazard"].corr(found["survival_2.0"]) < 0


def test_the_slope_helps_where_the_hazard_is_in_it(features):
    models = baselines.cox_models(features, YEARS)
    assert set(models) == {"cox_last_slope", "elastic_net_features"}
    one = c_index(baselines.one_scan(features, YEARS)["test"])
    assert c_index(models["cox_last_slope"]["test"]) > one + 0.03
    assert abs(c_index(models["elastic_net_features"]["test"]) - one) < 0.1


def test_last_and_slope_by_hand():
    table = pd.DataFrame({"subject": ["a", "a", "b"], "visit_time": [0.0, 2.0, 1.0], "log_hazard": [1.0, 4.0, 7.0]})
    found = baselines.last_and_slope(table)
    assert found["last"].tolist() == [4.0, 7.0] and found["slope"].tolist() == [1.5, 0.0]


def test_covariates_are_a_baseline_of_their_own(rng):
    features = {part: feature_table(100, rng, part, ["age"]) for part in ("train", "val", "test")}
    features["test"].loc[::7, "age"] = np.nan
    found = baselines.cox_models(features, YEARS)["covariates"]["test"]
    assert c_index(found) > 0.5 and np.isfinite(found["log_hazard"]).all()


def test_the_test_part_changes_no_fit(features):
    """Other test outcomes and features leave the other parts' predictions as they were."""
    before = baselines.cox_models(features, YEARS)
    features["test"] = features["test"].assign(event=True, log_hazard=9.0, feature_1=-5.0)
    after = baselines.cox_models(features, YEARS)
    for name in before:
        for part in ("train", "val"):
            pd.testing.assert_frame_equal(before[name][part], after[name][part])


def test_the_oracle_is_the_truth_of_each_scan(features, tmp_path):
    known = pd.concat(features.values())[["scan"]].rename(columns={"scan": "imageid"})
    known["atrophy"], known["log_hazard"] = np.arange(len(known)), -np.arange(len(known))
    known.sample(frac=1, random_state=0).to_csv(tmp_path / "truth.csv", index=False)
    found = baselines.oracle(features, tmp_path / "truth.csv", YEARS)
    last = known.set_index("imageid").loc[features["test"].groupby("subject").tail(1)["scan"]]
    np.testing.assert_array_equal(found["last_scan"]["test"]["log_hazard"], last["atrophy"])
    np.testing.assert_array_equal(found["longitudinal"]["test"]["log_hazard"], last["log_hazard"])
