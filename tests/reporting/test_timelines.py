"""A history on disk: what is drawn sums to what is written."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attribution.histories import UNATTRIBUTED
from reporting import timelines


@pytest.fixture
def history(rng):
    names = [f"region {number}" for number in range(20)] + [UNATTRIBUTED]
    table = pd.DataFrame({"region": np.repeat(names, 3), "visit": np.tile([1, 2, 3], 21)})
    table["log_hazard"] = rng.normal(size=63)
    table.loc[table["region"] == "region 7", "log_hazard"] = [9, -9, 0]
    table.loc[table["region"] == UNATTRIBUTED, "log_hazard"] = 50.0
    table["risk_2.0"] = table["log_hazard"] / 10
    visits = pd.DataFrame({"visit": [1, 2, 3], "visit_time": [0, 0.5, 1.2]})
    visits["shapley"] = table.groupby("visit")["log_hazard"].sum().to_numpy()
    visits["standard_error"] = 0.0
    visits["attention"] = [0.2, 0.3, 0.5]
    groups = pd.DataFrame({"group": ["a", "b"], "num_values": [1, 2], "shapley": [1.0, -1.0], "standard_error": 0.0})
    metrics = {"log_hazard": 1.0, "background_log_hazard": 0.2, "unattributed": 0.01}
    return {"regions": table, "visits": visits, "groups": groups, "metrics": metrics}


def test_the_rows_drawn_are_the_largest_and_sum_to_all(history):
    for outcome in ("log_hazard", "risk_2.0"):
        rows = timelines.largest(history["regions"], outcome)
        assert len(rows) == 14 and rows.index[0] == "region 7"
        assert list(rows.index[-2:]) == [timelines.OTHERS, UNATTRIBUTED]
        np.testing.assert_allclose(rows.sum(), history["regions"].groupby("visit")[outcome].sum())


def test_few_regions_are_all_drawn(history):
    few = history["regions"][history["regions"]["region"].isin(["region 7", "region 8", UNATTRIBUTED])]
    rows = timelines.largest(few, "log_hazard")
    assert len(rows) == 4 and (rows.loc[timelines.OTHERS] == 0).all()


def test_the_figure_says_units_error_and_what_attention_is_not(history):
    figure = timelines.draw_history(history, "S1")
    panels = figure.get_axes()
    titles = [axes.get_title("left") for axes in panels]
    assert titles[:2] == ["log-hazard\n(nats)", "risk within 2 years\n(percentage points)"]
    assert titles[-1] == "attention (a weight, not a worth)"
    low, high = panels[0].images[0].get_clim()
    assert low == -high == -50.0
    assert [bar.get_width() for bar in panels[-1].patches] == [0.2, 0.3, 0.5]
    heading = figure.subfigs[0].get_suptitle()
    assert "1.0% of the visits' effects unattributed" in heading and "the difference of +0.80 is shared out" in heading
    history["metrics"]["unattributed"] = None
    assert "no visit has" in timelines.draw_history(history, "S1").subfigs[0].get_suptitle()


def test_the_bars_are_the_sums_of_the_columns(history):
    figure = timelines.draw_history(history, "S1")
    panel, *_ = figure.subfigs[0].axes
    bars, _, _ = figure.subfigs[1].axes
    sums = [text.get_text() for text in panel.texts if text.get_weight() == "bold"]
    assert (
        sums == [text.get_text() for text in bars.texts] == [f"{value:+.2f}" for value in history["visits"]["shapley"]]
    )
    assert panel.get_yticklabels()[-1].get_text() == timelines.SUM


@pytest.mark.parametrize("errors", [[0.0, 0.0, 0.0], [0.0, 0.02, 0.01]])
def test_standard_errors_are_drawn_where_there_are_any(history, errors):
    history["visits"]["standard_error"] = errors
    visits, groups, _ = timelines.draw_history(history, "S1").subfigs[1].axes
    assert ("with standard errors" in visits.get_xlabel()) == any(errors)
    assert groups.get_xlabel() == "log-hazard"
    (bars,) = [part for part in visits.containers if hasattr(part, "errorbar")]
    assert (bars.errorbar is not None) == any(errors)


def test_without_attention_nothing_is_said_of_it(tmp_path, history):
    history["visits"] = history["visits"].drop(columns="attention")
    figure = timelines.draw_history(history, "S1")
    assert len(figure.subfigs[1].axes) == 2
    timelines.save_history(tmp_path, history, title="S1")
    assert "attention" not in (tmp_path / "visits.csv").read_text()


def test_every_file_is_written(tmp_path, history):
    written = timelines.save_history(tmp_path, history, title="S1")
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "region_by_visit.csv"), history["regions"])
    with Image.open(tmp_path / "region_by_visit.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("name", [r"$\frac{1$", "a$b$^", "two\nlines", "患者\x01", "x" * 3000])
def test_any_text_is_drawn(tmp_path, history, name):
    """Ids, regions of an atlas, and columns of a table are whatever their file says."""
    regions = history["regions"].replace({"region": {"region 7": name, "region 8": f"{name}, other"}})
    groups = pd.DataFrame({"group": [name, f"{name}!", "3"], "num_values": 1, "shapley": [1.0, -1.0, 0.5]})
    groups["standard_error"] = 0.0
    for path in timelines.save_history(tmp_path, history | {"regions": regions, "groups": groups}, title=name):
        assert path.stat().st_size > 50
    with Image.open(tmp_path / "region_by_visit.png") as picture:
        assert picture.width < 2000
    figure = timelines.draw_history(history | {"regions": regions, "groups": groups}, name)
    bars = [len(axes.patches) for part in figure.subfigs[1:] for axes in part.axes]
    assert bars == [3, 3, 3]  # names that are cut to the same text stay bars of their own
