import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.utils import concordance_index

from cohort import simulate, tables
from cohort.courses import KINDS, History
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


@pytest.mark.parametrize("history", [History("jumping"), History("variable", (1, 4)), History(visits=(2, 7))])
def test_the_first_subjects_of_any_history_are_the_same_too(history):
    few, many = (simulate.draw_truth(number, seed=3, history=history) for number in (4, 9))
    pd.testing.assert_frame_equal(few, many.head(len(few)))
    assert few["subjectid"].nunique() == 4 and not few.equals(simulate.draw_truth(4, seed=4, history=history))


def test_without_a_history_the_cohort_is_as_it_was(cohort):
    """Rounded: the last bits of exp and of the resampling differ between machines."""
    table = simulate.draw_truth(20).round(9).to_csv()
    assert hashlib.sha256(table.encode()).hexdigest().startswith("be0001388b9128c7")
    volume = np.asarray(nib.load(cohort / "mri" / "S0007_v2.nii.gz").dataobj)
    assert hashlib.sha256(volume.tobytes()).hexdigest().startswith("5b814a0e341c1cac")


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


# ---- Other histories -----------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=KINDS)
def others(request):
    """The last visits of a kind of history, 2 to 7 visits a subject, with the years left then."""
    truth = simulate.draw_truth(900, seed=11, history=History(request.param, (2, 7)))
    last = truth.groupby("subjectid").tail(1).set_index("subjectid")
    return request.param, last.assign(left=last["time"] - last["visit_time"])


def test_survival_under_any_history_is_that_of_the_true_curves(others):
    """Kaplan-Meier against the mean of the true curves, in either half of the true hazards; 4 standard errors."""
    _, last = others
    slope = CoxPHFitter().fit(last[["left", "convert_status", "log_hazard"]], "left", "convert_status").summary
    assert abs(slope.loc["log_hazard", "coef"] - 1) < 4 * slope.loc["log_hazard", "se(coef)"]
    for _, half in last.groupby(last["log_hazard"] > last["log_hazard"].median()):
        estimate = KaplanMeierFitter().fit(half["left"], half["convert_status"])
        for years in (0.5, 2.0, 5.0):
            hazard = np.exp(half["log_hazard"]) * (years / half["weibull_scale"]) ** half["weibull_shape"]
            expected = np.exp(-hazard).mean()
            assert estimate.predict(years) == pytest.approx(expected, abs=0.01 + 2 / np.sqrt(len(half)))


def test_several_visits_tell_more_than_one_where_they_should(others):
    kind, last = others
    history = c_index(last, last["log_hazard"])
    one_scan = c_index(last, last["atrophy" if kind == "linear" else "log_hazard_one_scan"])
    assert history > 0.74
    if kind == "u_shaped":  # the last scan tells all, but not by more atrophy being worse
        assert one_scan == pytest.approx(history, abs=0.005) and c_index(last, last["atrophy"]) < 0.6
    else:
        assert history > one_scan + 0.07 and one_scan > 0.5


def test_the_effect_is_a_factor_of_what_one_scan_tells_too():
    whole, none, double = (
        simulate.draw_truth(5, effect=effect, history=History("u_shaped"))["log_hazard_one_scan"]
        for effect in (1, 0, 2)
    )
    assert (none == 0).all()
    np.testing.assert_allclose(double, 2 * whole)


@pytest.mark.parametrize("history", [History(visits=(1, 1)), History("accelerating", (1, 2))])
def test_a_cohort_with_single_visits_is_one(history, tmp_path):
    simulate.write_cohort(tmp_path / "cohort", num_subjects=4, history=history, jobs=1)
    table, _ = tables.read_cohort(tmp_path / "cohort" / "cohort.csv", mri_folder="unused")
    assert table["subject"].nunique() == 4 and table.groupby("subject").size().min() == 1
    assert len(list((tmp_path / "cohort" / "mri").iterdir())) == len(table)
    last = tables.last_visits(table)
    assert (last["time"] > last["visit_time"]).all()
