"""Which scans a run explains, what it explains them with, and what it does not explain twice."""

import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.grid import Grid
from config import read_config
from data import Cache, Cohort
from reporting import explained
from reporting.explained import Explanations, check_background, check_choices
from runs.errors import InputError
from runs.files import ROOT

TEST = pd.DataFrame({"scan": ["a1", "b/1", "c1"], "subject": ["a", "b", "c"]})
SHAPE = (8, 8, 8)


@pytest.fixture
def cohort(tmp_path, rng):
    """A training part of 4 subjects and a test part of 6, with 2 scans each."""

    def part(prefix, num_subjects):
        names = [f"{prefix}{subject}" for subject in range(num_subjects)]
        table = pd.DataFrame({"subject": np.repeat(names, 2), "visit_time": np.tile([0.0, 1.0], num_subjects)})
        table["scan"] = [f"{row.subject}_{row.visit_time:g}" for row in table.itertuples()]
        table = table.assign(time=4.0, event=np.repeat(np.arange(num_subjects) % 2 == 0, 2), age=70.0)
        table["nifti_path"] = "/scans/" + table["scan"] + ".nii"
        table["cache_entry"] = [str(tmp_path / f"{scan}.npy") for scan in table["scan"]]
        for entry in table["cache_entry"]:
            np.save(entry, (1 + rng.random(SHAPE)).astype(np.float16))
        return table

    grid = Grid(SHAPE, np.diag([8.0, 8, 8, 1]))
    return Cohort({"train": part("train", 4), "val": part("val", 2), "test": part("s", 6)}, Cache(grid, grid, 0), None)


@pytest.fixture
def explanations(cohort, tmp_path):
    """Makes the explanations of a run whose stage 2 gives s3 the highest risk, then s1, s4, s0, s5, s2."""
    order = ["s2", "s5", "s0", "s4", "s1", "s3"]
    last = [f"{subject},test,1.0,3.0,1,{risk}" for risk, subject in enumerate(order)]
    earlier = [f"{subject},test,0.0,4.0,1,{-risk}" for risk, subject in enumerate(order)]
    rows = ["subjectid,split,landmark,time,convert_status,log_hazard", "train0,train,1.0,3.0,0,0.5", *earlier, *last]
    (tmp_path / "tlstm").mkdir()
    (tmp_path / "tlstm" / "predictions.csv").write_text("\n".join(rows))

    def make(*arguments):
        config = read_config([f"--OUTPUT_DIR={tmp_path}", "--SHAP_BACKGROUND_SIZE=4", *arguments])
        return Explanations(config, cohort, None)

    return make


def test_what_a_stopped_run_has_explained_is_left_alone(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(Explanations, "__init__", lambda self: None)
    monkeypatch.setattr(Explanations, "_choose", lambda self: [(0, "highest"), (1, "asked for"), (2, "lowest")])
    monkeypatch.setattr(Explanations, "_explain_scan", lambda self, row, why, folder: done.append((row, why, folder)))
    monkeypatch.setattr(Explanations, "_explain_cohort", lambda self, folder: done.append(folder))
    stopped = Explanations()
    stopped.folder, stopped.test, stopped.config = tmp_path, TEST, SimpleNamespace(EXPLAIN_COHORT=3)
    for whole, half in (("explain/a1/metrics.json", "explain/c1/shap.nii.gz"), ("x", "explained_cohort/mean.png")):
        for name in (whole, half):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    stopped.write()
    assert [entry[:2] for entry in done[:2]] == [(1, "asked for"), (2, "lowest")]
    assert done[0][2].parent == tmp_path / "explain" and done[1][2] == tmp_path / "explain" / "c1"
    assert done[2:] == [tmp_path / "explained_cohort"]
    (tmp_path / "explained_cohort" / "regions.csv").touch()
    stopped.write()
    assert len(done) == 5


def test_subjects_and_scans_that_the_test_part_does_not_have_are_named():
    check_choices(read_config(["--EXPLAIN=highest,b", "--SAMPLE_INDEX=2"]), TEST)
    with pytest.raises(InputError, match=r"\(2\):\n  EXPLAIN: .* received 'd'\n  SAMPLE_INDEX: .* received 3"):
        check_choices(read_config(["--EXPLAIN=d,a", "--SAMPLE_INDEX=3"]), TEST)


@pytest.mark.parametrize("num_voxels", [1, 39, 40])
def test_a_brain_of_fewer_voxels_than_regions_is_refused_before_training(cohort, num_voxels):
    brain = (np.arange(8**3) < num_voxels).reshape(SHAPE)
    for entry in cohort.parts["train"]["cache_entry"]:
        np.save(entry, brain.astype(np.float16))
    if num_voxels < 40:
        with pytest.raises(InputError, match=f"brain: expected at least 40 voxels, received {num_voxels} on the net"):
            check_background(read_config([]), cohort)
        check_background(read_config(["--STAGES=cnn,features"]), cohort)
    else:
        check_background(read_config([]), cohort)


def test_an_atlas_that_does_not_lie_on_the_brain_is_refused_before_training(cohort, tmp_path):
    labels = np.ones(SHAPE, np.int16)
    for name, shift in (("far", 500), ("near", 0)):
        affine = np.diag([8.0, 8, 8, 1])
        affine[1, 3] = shift
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}.nii")
    with pytest.raises(InputError, match="received an image that covers 0% of the brain"):
        check_background(read_config([f"--ATLAS={tmp_path / 'far.nii'}"]), cohort)
    check_background(read_config([f"--ATLAS={tmp_path / 'near.nii'}"]), cohort)


def test_the_last_scans_are_chosen_by_the_risk_at_the_last_landmark(explanations):
    chosen = explanations("--EXPLAIN=highest,median,lowest,s1", "--SAMPLE_INDEX=0")._choose()
    assert chosen == [
        (0, "asked for"),
        (7, "highest risk of the test part"),
        (1, "median risk of the test part"),
        (5, "lowest risk of the test part"),
        (3, "asked for"),
    ]


def test_the_cohorts_scans_are_spread_over_the_risk(explanations, tmp_path):
    last = explanations()._spread_over_risk(3)
    assert last["scan"].tolist() == ["s2_1", "s0_1", "s3_1"]
    assert last["cache_entry"].tolist() == [str(tmp_path / f"{scan}.npy") for scan in last["scan"]]
    assert len(explanations()._spread_over_risk(100)) == 6


def test_the_background_is_drawn_from_the_training_part_by_seed(explanations, cohort):
    first, again, other = (explanations(f"--SEED={seed}").background for seed in (0, 0, 5))
    assert first.shape == (4, *SHAPE, 1) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    scans = [np.load(entry) for entry in cohort.parts["train"]["cache_entry"]]
    assert all(any(np.array_equal(volume[..., 0], scan) for scan in scans) for volume in first)


def test_a_background_larger_than_the_training_part_is_reported(explanations, caplog):
    assert len(explanations("--SHAP_BACKGROUND_SIZE=100").background) == 8
    assert "the training part has only 8 scans of 100" in caplog.text


@pytest.mark.parametrize(("shift", "told"), [(0.0, True), (-28.0, False), (-200.0, True)])
def test_regions_without_sides_are_told(explanations, cohort, caplog, shift, told):
    """The brain fills a box of 64 mm, whose corner or middle lies at x = 0, or which lies elsewhere."""
    cohort.cache.grid.affine[0, 3] = shift
    names = explanations().regions.names.values()
    assert ("no region is called left or right" in caplog.text) == told
    assert any(name.startswith(("left", "right")) for name in names) != told


@pytest.mark.parametrize("scans", [0, 3])
def test_regions_have_shapley_values_if_they_are_asked_for(explanations, monkeypatch, scans):
    engine = SimpleNamespace(ExplainSettings=dict, Space=lambda *_: None, explain_scan=lambda *given: given)
    monkeypatch.setitem(sys.modules, "explain", engine)
    run = explanations(f"--SHAPLEY_BACKGROUND={scans}")
    *_, settings, _ = run._make_maps(run.test.iloc[0])
    assert settings["shapley_background"] == scans and settings["num_gradients"] == run.config.SHAP_NSAMPLES


def test_a_history_is_explained_from_its_visits_without_the_paths(explanations, cohort, monkeypatch):
    import attribution.gradients
    import tlstm

    monkeypatch.setattr(tlstm, "load", lambda folder: folder)
    monkeypatch.setattr(attribution.gradients, "trace_outputs", lambda model: (len, max))
    monkeypatch.setattr(explained, "explain_history", lambda *arguments, **named: (arguments, named))
    run = explanations("--HORIZONS=1,2")
    features = SimpleNamespace(output=np.empty((1, 3)))
    run.model = SimpleNamespace(get_layer=lambda name: features)
    (predictor, visits, volumes, background), named = run._explain_history(5)
    assert predictor == run.folder / "tlstm" and background is run.background
    assert visits["scan"].tolist() == ["s2_0", "s2_1"]
    assert list(visits.columns) == ["subject", "visit_time", "scan", "time", "event", "age"]
    for volume, entry in zip(volumes, cohort.parts["test"]["cache_entry"].iloc[4:6], strict=True):
        np.testing.assert_array_equal(volume[..., 0], np.load(entry))
    assert named["image_stage"].names == ["feature_1", "feature_2", "feature_3", "log_hazard"]
    assert list(named["settings"].horizons) == [1, 2]
    (_, first_visit, *_), _ = run._explain_history(4)
    assert first_visit["scan"].tolist() == ["s2_0"]


def test_importing_it_imports_nothing_slow():
    slow = "tensorflow keras torch matplotlib nilearn sklearn"
    program = f"import reporting.explained, sys; print(*set('{slow}'.split()) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
