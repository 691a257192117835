"""What stage 2 says: the grid of years, the file."""

import numpy as np
import pandas as pd

from survival import predictor
from survival.estimands import read_curves
from survival.estimates import breslow, survival_curves


def predicted(rng, num_subjects=40):
    years = predictor.curve_years((1.0, 2.0))
    log_hazard = rng.normal(size=num_subjects)
    table = pd.DataFrame(
        {
            "subject": [f"s{number:02d}" for number in range(num_subjects)],
            "landmark": 1.5,
            "time": rng.exponential(np.exp(-log_hazard)) * 3 + 0.01,
            "event": rng.random(num_subjects) < 0.7,
            "log_hazard": log_hazard,
        }
    )
    baseline = breslow(log_hazard, table["time"].to_numpy(), table["event"].to_numpy())
    survival = survival_curves(baseline, log_hazard, years)
    return table.assign(**{f"survival_{year}": curve for year, curve in zip(years, survival.T, strict=True)})


def test_the_nearest_baseline_is_of_the_nearest_landmark_in_training():
    trained = predictor.Predictor(None, (0.0, 1.0, 3.0), np.zeros((1, 1)))
    assert trained.nearest_baseline(np.array([-1.0, 0.4, 0.5, 0.6, 2.1, 9.0])).tolist() == [0, 0, 0, 1, 2, 2]
    of_last_visits = predictor.Predictor(None, (), np.zeros((1, 1)))
    assert of_last_visits.nearest_baseline(np.array([0.0, 7.0])).tolist() == [0, 0]


def test_years_are_quarters_and_the_horizons():
    np.testing.assert_array_equal(predictor.curve_years((0.4, 1.0)), [0.25, 0.4, 0.5, 0.75, 1.0])


def test_the_file_has_the_users_names_and_every_figure_can_be_recomputed(rng, tmp_path):
    table = predicted(rng)
    predictor.write_predictions(table.assign(split="test"), tmp_path / "p.csv")
    read = pd.read_csv(tmp_path / "p.csv")
    assert read.columns[:6].tolist() == ["subjectid", "split", "landmark", "time", "convert_status", "log_hazard"]
    assert set(read["convert_status"]) == {0, 1}
    np.testing.assert_allclose(read_curves(read)[1], read_curves(table)[1], rtol=1e-14)
