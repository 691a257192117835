"""What stage 2 writes beside its model."""

import json

import pandas as pd
import pytest
from samples import random_table

from cohort import tables
from survival import outputs


def predicted(**more):
    columns = {"subject": ["007", "NA"], "landmark": 0.5, "time": [1.0, 2.0], "event": [True, False]}
    return pd.DataFrame(columns | {"log_hazard": [0.1, 0.2]} | more)


def test_predictions_of_all_parts_are_one_file_and_an_earlier_runs_visits_go(tmp_path):
    history, parts = pd.DataFrame({"epoch": [0]}), {"train": predicted(), "test": predicted(attention_1=0.5)}
    outputs.write_predicted(tmp_path, parts, predicted(), history)
    assert pd.read_csv(tmp_path / "by_visit.csv")["split"].tolist() == ["test"] * 2
    outputs.write_predicted(tmp_path, parts, None, history)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "predictions.csv"]
    table = pd.read_csv(tmp_path / "predictions.csv", dtype=str, keep_default_na=False)
    assert table["split"].tolist() == ["train", "train", "test", "test"]
    assert table["subjectid"].tolist() == ["007", "NA"] * 2 and table["convert_status"].tolist() == ["1", "0"] * 2


@pytest.mark.parametrize("unit, in_a_year", [("years", 1), ("months", 12), ("days", 365.25)])
def test_the_parts_are_written_in_the_users_unit(rng, tmp_path, unit, in_a_year):
    table = random_table(rng, num_subjects=4)
    outputs.write_splits(tmp_path, {"train": table, "val": table.head(0), "test": table}, unit)
    written = pd.read_csv(tmp_path / "test.csv")
    assert written["time"].to_numpy() == pytest.approx(table["time"].to_numpy() * in_a_year)
    read = tables.read_features(tmp_path / "train.csv", time_unit=unit)
    assert read["visit_time"].to_numpy() == pytest.approx(table["visit_time"].to_numpy())
    assert pd.read_csv(tmp_path / "val.csv").empty


@pytest.mark.parametrize(
    "beside, expected", [(None, {"a": 1, "b": 3, "c": 2}), (("c",), {"b": 3, "c": 2}), ((), {"b": 3})]
)
def test_figures_replace_those_of_their_names_and_stand_beside_others(tmp_path, beside, expected):
    (tmp_path / "metrics.json").write_text('{"a": 1, "b": 2, "c": 2}')
    outputs.merge_metrics(tmp_path, {"b": 3}, beside=beside)
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
