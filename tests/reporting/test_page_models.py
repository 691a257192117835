"""The page's tables of models, of the whole run and of each landmark."""

import json

import pandas as pd
import pytest
from sample_run import write_run

from reporting import page_models
from reporting.page import MOST_BYTES, Inlined, render
from reporting.page_figures import draw_figures
from reporting.run_folder import RunFolder


@pytest.fixture(scope="module")
def at_landmarks(tmp_path_factory):
    """A run that predicts at years 1 and 2.5: at the second, a rival does better."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    first, rival = metrics["tlstm"], metrics["baselines"]["cox_last_slope"]
    why = {"value": None, "low": None, "high": None, "why": "nobody is left"}
    second = {"test": rival["test"] | {"uno_c": why}}
    landmarks = {
        "1": first | {"baselines": {"locf_cox": {"test": rival["test"] | {"ibs": why}}}},
        "2.5": second | {"baselines": {"locf_cox": {"test": first["test"]}}},
    }
    (folder / "metrics.json").write_text(json.dumps({"landmarks": landmarks}))
    predicted = pd.read_csv(folder / "tlstm" / "predictions.csv")
    later = predicted.assign(landmark=2.5, log_hazard=-predicted["log_hazard"])
    pd.concat([predicted, later]).to_csv(folder / "tlstm" / "predictions.csv", index=False)
    (folder / "config.json").write_text(json.dumps({"program": "tlstm.py", "settings": {"FEATURES": "t.csv"}}))
    return folder


@pytest.mark.parametrize(("number", "letter"), [(0, "a"), (25, "z"), (26, "aa"), (53, "bbb")])
def test_a_note_has_a_letter(number, letter):
    assert page_models._letter(number) == letter


def test_a_landmarks_view_has_its_own_predictions_and_figures(at_landmarks):
    run = RunFolder.read(at_landmarks)
    assert list(run.views) == ["", "predicted at year 1", "predicted at year 2.5"]
    for (_, view), landmark in zip(list(run.views.items())[1:], (1.0, 2.5), strict=True):
        assert set(view.predicted["landmark"]) == {landmark} and len(view.predicted) == len(run.predicted) / 2
        assert view.stage2_test["n"] == 40 and run.stage2_test is None


def test_each_landmark_has_its_table_and_they_share_their_notes(at_landmarks):
    tables = page_models.model_tables(RunFolder.read(at_landmarks))
    assert [table["title"] for table in tables] == ["predicted at year 1", "predicted at year 2.5"]
    assert [[row["name"] for row in table["rows"]] for table in tables] == [
        ["history (stage 2)", "locf cox"],
        ["locf cox", "history (stage 2)"],
    ]
    assert page_models.notes_of(tables)["nobody is left"] == "a"
    assert len(page_models.notes_of(tables)) == len(set(page_models.notes_of(tables).values()))


def test_the_page_shows_each_landmark(at_landmarks):
    run = RunFolder.read(at_landmarks)
    page = " ".join(render(run, [], Inlined(MOST_BYTES)).split())
    assert "<h3>Predicted at year 1</h3>" in page and "<h3>Predicted at year 2.5</h3>" in page
    assert "Predicted at year 2.5: Another model does better" in page
    assert "Predicted at year 1: Another model does better" not in page
    assert page.count("<td>2.50</td>") == page.count("<td>1.00</td>") == 120
    assert "Who has the event, and when" in page and "This run does not have" not in page


def test_each_landmark_has_its_figures(at_landmarks):
    shown = {figure.name: figure for figure in draw_figures(RunFolder.read(at_landmarks))}
    of_test = "risk_groups calibration over_time individuals attention".split()
    expected = [f"{name}_predicted_at_year_{year}" for year in ("1", "2.5") for name in of_test]
    assert list(shown) == ["cohort", "training", *expected]
    assert shown["calibration_predicted_at_year_2.5"].title == "Calibration, predicted at year 2.5"
    cuts = [shown[f"risk_groups_predicted_at_year_{year}"].caption for year in ("1", "2.5")]
    assert cuts[0] != cuts[1]
