import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter
from PIL import Image

from reporting import figures


def predictions(n=40, visits=3, seed=0):
    """Stage 2's table of one part: subjects s0, s1, ... from the lowest to the highest risk."""
    rng = np.random.default_rng(seed)
    log_hazard = np.linspace(-1, 1, n)
    table = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(n)],
            "landmark": 1.5,
            "time": rng.exponential(np.exp(-log_hazard)) * 3 + 0.1,
            "event": rng.random(n) < 0.6,
            "log_hazard": log_hazard,
        }
    )
    for year in (1.0, 2.0):
        table[f"survival_{year}"] = np.exp(-0.2 * year * np.exp(log_hazard))
    for visit, share in enumerate(rng.dirichlet(np.ones(visits), n).T, start=1):
        table[f"attention_{visit}"] = share
    return table


def estimate(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


def metrics_of(cut=0.0, ratio=None, p=0.012):
    """The figures of a part that are drawn."""
    return {
        "risk_groups": {"cut": cut, "log_rank_p": p},
        "hazard_ratio": ratio or estimate(2.5, 1.2, 5.0),
        "calibration": {
            "2.0": {
                "slope": estimate(0.8, 0.4, 1.3),
                "intercept": estimate(-0.1, -0.6, 0.4),
                "groups": [
                    {"n": 10, "events": 1, "predicted": 0.1, "observed": estimate(0.2, 0.05, 0.4)},
                    {"n": 10, "events": 5, "predicted": 0.6, "observed": estimate(None, why="follow-up ends")},
                ],
            }
        },
    }


def texts(axes):
    return [text.get_text() for text in axes.texts]


def every_figure():
    parts = {name: pd.concat([predictions(seed=seed)] * 2) for seed, name in enumerate(("train", "val", "test"))}
    curve = {"auc": {"1.0": estimate(0.7, 0.6, 0.8)}, "brier": {"1.0": estimate(0.1, 0.05, 0.2)}}
    return {
        "training": figures.training(cnn_history(), tlstm_history()),
        "risk_groups": figures.risk_groups(predictions(), metrics_of()),
        "calibration": figures.calibration(metrics_of()),
        "over_time": figures.over_time(curve, curve["brier"], [1.0]),
        "individuals": figures.individuals(predictions(), {}),
        "attention": figures.attention(predictions(), 0.0),
        "cohort": figures.cohort(parts),
    }


def cnn_history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "loss": [3.0, 2.0, 1.5, 1.2],
            "val_loss": [3.0, 2.5, 2.4, 2.6],
            "val_c_index": [0.5, 0.7, 0.7, 0.6],
        }
    )


def tlstm_history():
    return pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [3.0, 2.9, 2.8], "val_loss": [2.0, 1.8, 1.9]})


# ---- All of them
@pytest.mark.parametrize("name", list(every_figure()))
def test_every_axis_has_a_label_and_the_files_are_written(name, tmp_path):
    figure = every_figure()[name]
    plots = [axes for axes in figure.axes if axes.axison and (axes.lines or axes.patches)]
    one_scale = name in ("calibration", "individuals")  # the first panel alone has the label
    assert plots and all(axes.get_xlabel() for axes in plots)
    assert all(axes.get_ylabel() for axes in (plots[:1] if one_scale else plots))
    path = figures.save(figure, tmp_path, name)
    assert path.name == f"{name}.svg" and b"<dc:date>" not in path.read_bytes()
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.width > 500 and len(picture.convert("L").getcolors()) > 10


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first, again = (figures.save(figures.calibration(metrics_of()), tmp_path / name, "a").read_bytes() for name in "ab")
    assert first == again


def test_the_groups_differ_without_colour_too():
    lines = [
        line for line in figures.risk_groups(predictions(), metrics_of()).axes[0].lines if line.get_label()[0] != "_"
    ]
    assert len({line.get_linestyle() for line in lines}) == 2


# ---- One by one
def test_training_marks_the_epoch_that_was_kept():
    """The C-index ties at 2 and 3: the lower loss wins, unless the history says what was kept."""
    axes = figures.training(cnn_history(), tlstm_history()).axes
    kept = [axis.lines[1].get_xdata()[0] for axis in axes if axis.axison]
    assert kept == [3, 3, 3, 1, 1]
    assert axes[2].get_title(loc="left") == "0.700 at epoch 3"
    for column, title in (([1, 1, 0, 1], "0.600 at epoch 4"), ([1, 1, 0, 0], "0.700 at epoch 2")):
        axes = figures.training(cnn_history().assign(kept=column), None).axes
        assert axes[2].get_title(loc="left") == title


@pytest.mark.parametrize("one_scan", [True, False])
def test_training_of_one_stage_alone(one_scan):
    figure = figures.training(*((cnn_history(), None) if one_scan else (None, tlstm_history())))
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == (3 if one_scan else 2)
    assert {axes.get_ylabel() for axes in shown} == ({"loss (nats)", "C-index"} if one_scan else {"loss (nats)"})


def test_risk_groups_are_kaplan_meier_with_the_numbers_at_risk():
    table = predictions()
    axes, below = figures.risk_groups(table, metrics_of(cut=0.3)).axes
    low = table[table["log_hazard"] <= 0.3]
    curve = KaplanMeierFitter().fit(low["time"], low["event"]).survival_function_.iloc[:, 0]
    drawn = axes.lines[0]
    np.testing.assert_allclose(drawn.get_xdata(), curve.index)
    np.testing.assert_allclose(drawn.get_ydata(), curve)
    ticks = axes.get_xticks()
    counts = [int((group["time"] >= tick).sum()) for group in (low, table[table["log_hazard"] > 0.3]) for tick in ticks]
    assert [int(text) for text in texts(below)] == counts
    assert texts(axes) == ["hazard ratio 2.5 (1.2 to 5.0)\nlog-rank p = 0.012"]


def test_an_empty_risk_group_is_no_curve():
    axes, _ = figures.risk_groups(predictions(), metrics_of(cut=9, ratio=estimate(None, why="empty"), p=None)).axes
    assert [line.get_label() for line in axes.lines if line.get_label()[0] != "_"] == ["low risk"]
    assert texts(axes) == ["hazard ratio -"]


def test_calibration_shows_the_groups_that_have_a_value():
    axes = figures.calibration(metrics_of()).axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [(0.1, 0.2)]
    assert texts(axes) == ["slope 0.80 (0.40 to 1.30)\nintercept −0.10 (−0.60 to 0.40)"]  # noqa: RUF001


def test_over_time_leaves_out_what_cannot_be_estimated():
    curve = {"0.5": estimate(None, why="nobody"), "1.0": estimate(0.7, 0.6, 0.8), "2.0": estimate(0.6, 0.5, 0.7)}
    left, _ = figures.over_time({"auc": curve, "brier": curve}, curve, [1.0]).axes
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [1, 2])


def test_individuals_go_from_the_highest_to_the_lowest_risk():
    figure = figures.individuals(predictions(), {"s39": [0.0, 0.7, 1.5]})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["s39\nhighest risk", "s26\nupper third", "s13\nlower third", "s0\nlowest risk"]
    curve, visits, outcome = figure.axes[0].lines
    np.testing.assert_allclose(curve.get_xdata(), [1.5, 2.5, 3.5])
    np.testing.assert_array_equal(visits.get_xdata(), [0, 0.7, 1.5])
    assert outcome.get_xdata()[0] == pytest.approx(1.5 + predictions()["time"].iloc[-1])


def test_a_subject_predicted_at_several_landmarks_has_a_curve_each():
    table = pd.concat([predictions().assign(landmark=year) for year in (0.5, 1.0, 1.5)])
    first = figures.individuals(table, {}).axes[0]
    curves = [line for line in first.lines if len(line.get_xdata()) == 3]
    assert [line.get_xdata()[0] for line in curves] == [0.5, 1.0, 1.5]
    assert curves[-1].get_alpha() == 1 > curves[0].get_alpha()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_subjects(n):
    assert len(figures.individuals(predictions(n), {}).axes) == n


def test_attention_is_counted_back_from_the_last_visit():
    table = pd.DataFrame(
        {"log_hazard": [0.0, 0.0], "attention_1": [0.3, 0.2], "attention_2": [0.7, 0.1], "attention_3": [np.nan, 0.7]}
    )
    axes = figures.attention(table, 1.0).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["last", "1 before", "2 before"]
    shown = [line.get_ydata()[0] for line in axes.lines if line.get_color() == figures.BLACK]
    for median in (np.median([0.7, 0.7]), np.median([0.3, 0.1]), 0.2):
        assert median in shown


@pytest.mark.parametrize("rows", ["scans", "visits"])
def test_the_cohort_is_counted(rows):
    parts = {
        "train": pd.DataFrame({"subject": ["a", "a", "b"], "time": [3.0, 3, 4], "event": [True, True, False]}),
        "val": pd.DataFrame({"subject": ["c"], "time": [2.0], "event": [False]}),
        "test": pd.DataFrame({"subject": ["d", "d"], "time": [5.0, 5], "event": [True, True]}),
    }
    if rows == "scans":
        parts = {name: part.assign(scan=[f"{name}{row}" for row in part.index]) for name, part in parts.items()}
    flow, visits, _ = figures.cohort(parts).axes
    boxes = [text for text in texts(flow) if text]
    assert boxes[0] == f"read\n4 subjects\n2 events\n6 {rows}"
    assert boxes[1:] == [
        f"train\n2 subjects\n1 events\n3 {rows}",
        f"validation\n1 subjects\n0 events\n1 {rows}",
        f"test\n1 subjects\n1 events\n2 {rows}",
    ]
    assert [bar.get_height() for bar in visits.patches] == [2, 2]


def test_a_subject_named_like_mathematics(tmp_path):
    table = predictions().assign(subject="$\\frac{")
    assert figures.save(figures.individuals(table.iloc[:1], {}), tmp_path, "a").is_file()


@pytest.mark.parametrize("num_visits, second", [(3, "1 before"), (8, "1 before"), (9, "1"), (16, "1")])
def test_the_labels_of_many_visits_are_short(num_visits, second):
    shares = {f"attention_{visit}": 1 / num_visits for visit in range(1, num_visits + 1)}
    table = predictions().drop(columns=["attention_1", "attention_2"], errors="ignore").assign(**shares)
    (axes,) = figures.attention(table, 0.0).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[:2] == ["last", second] and len(labels) == num_visits
    assert ("counted back" in axes.get_xlabel()) == (second == "1")
