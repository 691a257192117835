"""Which figures a run has, and what their captions say."""

import json
import shutil
from pathlib import Path

import pytest
from sample_run import write_run

from reporting.page_figures import draw_figures
from reporting.run_folder import RunFolder
from reporting.words import p_value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "outputs"))


def captions(folder):
    """The captions of a run's figures, by name."""
    return {shown.name: shown.caption for shown in draw_figures(RunFolder.read(folder))}


def test_the_captions_tell_the_figures_of_the_test_part(whole):
    test = json.loads((whole / "metrics.json").read_text())["tlstm"]["test"]
    shown = captions(whole)
    assert list(shown) == "cohort training risk_groups calibration over_time individuals attention".split()
    assert f"median log-hazard, {test['risk_groups']['cut']:.2f}. Within" in shown["risk_groups"]
    assert f"D-calibration: {p_value(test['d_calibration']['p'])} (" in shown["calibration"]
    assert not any(set("{}") & set(caption) for caption in shown.values())


def test_groups_that_cannot_be_compared_have_no_difference(run):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["tlstm"]["test"]["rmst_difference"].update(value=None)
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert captions(run)["risk_groups"].rstrip().endswith(f"{metrics['tlstm']['test']['risk_groups']['cut']:.2f}.")


def test_an_empty_run_has_no_figure(tmp_path):
    assert captions(tmp_path) == {}


@pytest.mark.parametrize(
    ("gone", "names"), [("tlstm", ["cohort", "training"]), ("splits/val.csv", ["training"]), ("cnn", ["cohort"])]
)
def test_what_a_run_does_not_have_is_not_drawn(run, gone, names):
    shutil.rmtree(run / gone) if (run / gone).is_dir() else (run / gone).unlink()
    shutil.rmtree(run / "tlstm", ignore_errors=True)
    assert list(captions(run)) == names
