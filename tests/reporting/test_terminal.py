"""What a run prints at its end."""

from reporting.terminal import closing_table, folds_table, landmark_tables


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def figures(c_index, **more):
    auc = {"2.0": estimate(0.9, 0.8, 1.0), "5.0": estimate(None)}
    return {"test": {"n": 40, "events": 20, "c_index": c_index, "auc": auc, "ibs": estimate(0.123456), **more}}


def metrics(**more):
    gain = {"from": "cox_last_slope", "c_index": estimate(0.05, -0.01, 0.11)}
    return {
        "cnn": figures(estimate(0.7, 0.6, 0.8), difference=gain | {"c_index": estimate(None)}),
        "tlstm": figures(estimate(0.75, 0.65, 0.85), difference=gain),
        "baselines": {"cox_last_slope": figures(estimate(0.72))},
        "oracle": {"longitudinal": estimate(0.9, 0.85, 0.95)},
        **more,
    }


def test_the_closing_table_has_a_line_a_model():
    assert closing_table(metrics()).splitlines() == [
        "test part             C-index  95 % interval   AUC 2 y  AUC 5 y  IBS    C less cox last slope",
        "one scan (ResNet-18)  0.700    0.600 to 0.800  0.900    -        0.123  - (-)",
        "history (stage 2)     0.750    0.650 to 0.850  0.900    -        0.123  +0.050 (-0.010 to +0.110)",
        "cox last slope        0.720    -               0.900    -        0.123",
        "oracle, longitudinal  0.900    0.850 to 0.950",
        "40 test subjects, 20 of them with an event.",
    ]


def test_without_a_difference_the_column_names_no_rival():
    table = closing_table({"cnn": figures(estimate(0.7, 0.6, 0.8))})
    assert table.splitlines()[0].endswith("C less the best") and "oracle" not in table


def test_a_run_without_figures_says_so():
    assert closing_table({}) == "No stage has been evaluated."


def test_each_landmark_has_its_table():
    ours = metrics()["tlstm"]
    later = figures(estimate(0.6, 0.5, 0.7)) | {"baselines": {"locf_cox": figures(estimate(0.65))}}
    first, second = landmark_tables({"0": ours, "2.5": later}).split("\n\n")
    assert first.splitlines()[0] == "Predicted at year 0" and second.splitlines()[0] == "Predicted at year 2.5"
    assert first.split("\n", 1)[1] == closing_table({"tlstm": ours})
    assert "0.600" in second and "locf cox           0.650" in second


def test_the_table_of_folds_has_the_mean_and_each_fold():
    mean = {"value": 0.75, "sd": 0.05}
    folds = {
        "pooled": metrics(),
        "mean": {
            "cnn": {"c_index": mean},
            "cox_last_slope": {"c_index": mean | {"sd": None}},
            "tlstm": {"c_index": {"value": None, "sd": None}},
        },
        "each": [{name: {"c_index": c} for name in ("cnn", "cox_last_slope", "tlstm")} for c in (0.7, None)],
    }
    lines = folds_table(folds).splitlines()
    assert "\n".join(lines[:6]) == closing_table(metrics())
    assert lines[6:] == [
        "",
        "C-index within each fold  mean (sd)",
        "cnn                       0.750 (0.050)  0.700    -  ",
        "cox last slope            0.750 (-)      0.700    -  ",
        "tlstm                     -              0.700    -  ",
    ]
