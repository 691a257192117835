import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index

from cohort import simulate, tables
from runs.errors import InputError


@pytest.fixture(scope="module")
def truth():
    return simulate.draw_truth(3000, seed=0)


@pytest.fixture(scope="module")
def last(truth):
    """A row a subject: the last visit, the years left then, and the slope that noiseless scans show."""
    visits = truth.groupby("subjectid")
    last = visits.tail(1).set_index("subjectid")
    first = visits.head(1).set_index("subjectid")
    slope = (last["atrophy"] - first["atrophy"]) / last["visit_time"]
    return last.assign(left=last["time"] - last["visit_time"], slope=slope)


def c_index(last, risk):
    return concordance_index(last["left"], -risk, last["convert_status"])


def test_the_hazard_can_be_learned_and_needs_several_visits(last):
    one = c_index(last, last["atrophy"])
    table = last[["atrophy", "slope", "left", "convert_status"]]
    fit = CoxPHFitter().fit(table, "left", "convert_status")
    both = c_index(last, fit.predict_partial_hazard(table))
    assert 0.35 <= last["convert_status"].mean() <= 0.47
    assert 0.80 <= c_index(last, last["log_hazard"]) <= 0.88
    assert both - one >= 0.07


def test_everyone_is_event_free_at_the_last_scan(last):
    assert (last["left"] > 0).all()


def test_the_true_survival_curves_are_true(last):
    """The cumulative hazard at the end of follow-up is exponential, so its mean is the number of events."""
    expected = np.exp(last["log_hazard"]) * (last["left"] / last["weibull_scale"]) ** last["weibull_shape"]
    assert expected.sum() == pytest.approx(last["convert_status"].sum(), rel=0.06)


def test_the_atrophy_is_a_line_a_subject(truth):
    assert np.allclose(truth["atrophy"], truth["level"] + truth["rate"] * truth["visit_time"])
    assert (truth["rate"] > 0).all() and truth.groupby("subjectid").size().eq(3).all()
    assert truth.groupby("subjectid")["visit_time"].max().le(1.5).all()


def test_the_first_subjects_are_the_same_however_many_there_are(truth):
    pd.testing.assert_frame_equal(simulate.draw_truth(5, seed=0), truth.head(15))
    assert not simulate.draw_truth(5, seed=1).equals(truth.head(15))


def digests(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_writes_the_same_bytes(cohort, tmp_path):
    simulate.write_cohort(tmp_path / "again", num_subjects=12, seed=0, jobs=2)
    assert digests(cohort) == digests(tmp_path / "again")
    assert len(digests(cohort)) == 12 * 3 + 3


def test_what_is_written_is_a_cohort(cohort):
    table, _ = tables.read_cohort(cohort / "cohort.csv", mri_folder="unused")
    image = nib.load(table["nifti_path"][0])
    assert image.shape == simulate.SHAPE and image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.affine, simulate.AFFINE)
    labels = nib.load(cohort / "truth_regions.nii.gz")
    assert set(np.unique(labels.dataobj)) == {0, *simulate.REGIONS}
    assert np.allclose(labels.affine, simulate.AFFINE)


def test_a_cohort_that_is_there_is_kept(cohort):
    before = digests(cohort)
    assert simulate.write_cohort(cohort, num_subjects=99, seed=5) == cohort / "cohort.csv"
    assert digests(cohort) == before


def draw(anatomy, **changes):
    settings = {"atrophy": 0.0, "frontal": 0.0, "nuisance": 0.0} | changes
    return simulate.draw_scan(anatomy, **settings, rng=np.random.default_rng(0)).astype(float)


@pytest.mark.parametrize("label", simulate.ATROPHY_LABELS)
def test_atrophy_darkens_its_regions(anatomy, label):
    inside = anatomy.labels == label
    dark = [draw(anatomy, atrophy=atrophy)[inside].mean() for atrophy in (-1.0, 0.0, 1.0, 3.0)]
    assert dark == sorted(dark, reverse=True) and dark[0] - dark[-1] > 50


def test_atrophy_changes_little_elsewhere(anatomy):
    change = np.abs(draw(anatomy, atrophy=3.0) - draw(anatomy))
    near = np.isin(anatomy.labels, simulate.ATROPHY_LABELS)
    assert change[near].sum() > 10 * change[anatomy.labels == 4].sum()
    assert change[near].mean() > 8 * change[anatomy.mask & ~near].mean()


def test_the_nuisance_anatomy_is_elsewhere(anatomy):
    change = np.abs(draw(anatomy, frontal=2.0) - draw(anatomy))
    assert change[anatomy.labels == 4].mean() > 5 * change[np.isin(anatomy.labels, (1, 2, 3))].mean()


def test_no_nuisance_is_none_and_more_is_more(anatomy):
    spread = [np.abs(draw(anatomy, nuisance=n) - draw(anatomy)).mean() for n in (0.0, 1.0, 3.0)]
    assert spread[0] == 0 and spread[2] > 2 * spread[1] > 0


def test_background_is_0_and_brain_is_not(anatomy):
    volume = draw(anatomy, atrophy=6.0, nuisance=3.0)
    assert (volume[~anatomy.mask] == 0).all() and (volume[anatomy.mask] > 0).all()


def test_a_truncated_cohort_file_is_refused(cohort, tmp_path):
    text = (cohort / "cohort.csv").read_text()
    (tmp_path / "cohort.csv").write_text(text)
    with pytest.raises(InputError, match="expected a file"):
        tables.read_cohort(tmp_path / "cohort.csv", mri_folder="unused")


def test_without_an_effect_the_brains_are_the_same_and_tell_nothing(truth):
    none = simulate.draw_truth(3000, effect=0.0, seed=0)
    pd.testing.assert_series_equal(none["atrophy"], truth["atrophy"])
    last = none.groupby("subjectid").tail(1)
    left = last["time"] - last["visit_time"]
    assert abs(concordance_index(left, -last["rate"], last["convert_status"]) - 0.5) < 0.02
    assert abs(c_index(last.assign(left=left), last["atrophy"]) - 0.5) < 0.02
