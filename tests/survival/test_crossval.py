"""Cross-validation: the same folds for all, no leak between them, the corrected error by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from samples import random_table

from survival import crossval, rivals
from survival.estimates import concordance

COLUMNS = ["log_hazard", "lab"]


def models():
    return {
        crossval.OUR_MODEL: rivals.linear_rival(COLUMNS, (0.1,), (0.5, 1.0)),
        "locf_cox": rivals.linear_rival(COLUMNS, (0.1,), ()),
        "baseline_cox": rivals.linear_rival(COLUMNS, (0.1,), (), baseline_only=True),
    }


def of_ours(compared):
    """The predictions of our model alone."""
    return compared.predictions[compared.predictions["model"] == crossval.OUR_MODEL]


def plan(**changed):
    whole = crossval.Plan(landmarks=(0.5, 1.0), windows=(2.0, 1.0), folds=3, repeats=2, num_seeds=2, seed=0)
    return dataclasses.replace(whole, **changed)


def test_every_subject_is_held_out_once_a_repeat(rng):
    table = random_table(rng, num_subjects=60)
    seen = []

    def spy(train, validation):
        assert validation.shape == (2, train["subject"].nunique())

        def predict(visits, landmark, years):
            seen.append((landmark, set(train["subject"]), set(visits["subject"])))
            return fitted(visits, landmark, years)

        fitted = models()[crossval.OUR_MODEL](train, validation).predict
        return crossval.Trained(predict)

    compared = crossval.compare_models(table, {crossval.OUR_MODEL: spy}, plan())
    figures, predicted = compared.figures, compared.predictions
    assert len(figures) == 2 * 3 * 2
    held_out = [visits for _, train, visits in seen if not train & visits]
    assert len(held_out) == len(figures)
    assert all(train == visits for _, train, visits in seen if train & visits)  # the reference of the censoring
    at_half = predicted[predicted["landmark"] == 0.5]
    counts = at_half.groupby("subject").size()
    assert (counts == 2).all()


def test_figures_are_those_of_metrics_on_the_held_out(rng):
    table = random_table(rng, num_subjects=60)
    compared = crossval.compare_models(table, models(), plan())
    figures, predicted = compared.figures, of_ours(compared)
    row = figures[(figures["model"] == crossval.OUR_MODEL) & (figures["landmark"] == 0.5)].iloc[0]
    of_fold = predicted[(predicted["split"] == "repeat1_fold1") & (predicted["landmark"] == 0.5)]
    time, event = of_fold["time"].to_numpy(), of_fold["event"].to_numpy(bool)
    expected = concordance(
        of_fold["log_hazard"].to_numpy(), np.where(time > 2, 2, time), np.where(time > 2, False, event)
    )
    assert row["c_index"] == expected
    assert 0 <= row["ibs"] <= 1


def test_difference_and_its_error_by_hand():
    """Gains 0.1, 0.3 over two folds, test / train = 1/2: mean 0.2, variance 0.02 * (1/2 + 1/2)."""
    rows = [
        {"repeat": 1, "fold": fold, "landmark": 0.0, "window": 2.0, "test_share": 0.5, "model": model}
        | {figure: value for figure in crossval.FIGURES}
        for model, values in ((crossval.OUR_MODEL, (0.8, 0.9)), ("rival", (0.7, 0.6)))
        for fold, value in enumerate(values)
    ]
    summary = crossval.summarise(pd.DataFrame(rows))
    assert set(summary) == {"0+2"}
    gain = summary["0+2"]["difference"]["rival"]["auc"]
    assert gain["value"] == pytest.approx(0.2)
    assert gain["se"] == pytest.approx(np.sqrt(0.02))
    assert summary["0+2"]["rival"]["ibs"] == {
        "value": pytest.approx(0.65),
        "sd": pytest.approx(np.sqrt(0.005)),
        "folds": 2,
    }
    text = crossval.as_text(summary)
    assert "tlstm - rival" in text
    assert "+0.200 (0.141)" in text


def test_a_window_beyond_the_follow_up_has_no_figures_and_says_in_how_many_folds(rng):
    table = random_table(rng, num_subjects=60)
    compared = crossval.compare_models(table, models(), plan(landmarks=(0.5,), windows=(500.0,)))
    summary = crossval.summarise(compared.figures)["0.5+500"]
    assert summary[crossval.OUR_MODEL]["auc"] == {"value": None, "sd": None, "folds": 0}
    assert summary[crossval.OUR_MODEL]["c_index"]["folds"] == 6
    assert summary["difference"]["locf_cox"]["auc"]["value"] is None
    assert " -" in crossval.as_text({"0.5+500": summary})


def test_curves_are_drawn(rng, tmp_path):
    predicted = of_ours(crossval.compare_models(random_table(rng, num_subjects=60), models(), plan()))
    crossval.draw_curves(predicted, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_each_landmarks_curves_run_forward_in_time(rng):
    """The second window is shorter, so some of its years stand behind longer ones in the table of both."""
    predicted = of_ours(crossval.compare_models(random_table(rng, num_subjects=60), models(), plan()))
    for landmark, window in ((0.5, 2.0), (1.0, 1.0)):
        years, survival = crossval._curves_of(predicted[predicted["landmark"] == landmark])
        np.testing.assert_allclose(years, window * np.arange(1, 21) / 20)
        assert (np.diff(survival, axis=1) <= 0).all()
