"""What the tables alone tell is refused before a volume is read, in a run and by VERIFY, in the same words."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import main
from config import read_config
from data import read_parts
from reporting import verify
from reporting.preflight import check_tables
from runs.errors import InputError

RATES = verify.Rates(preprocess=0.5, start=7.0, train=0.02, predict=0.01, memory=1.5e9, weights=1_000_000)


@pytest.fixture
def table(tmp_path, rng, monkeypatch):
    """A cohort of 40 subjects, 10 of them with an event; its scans are no volumes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "_measure", lambda *_: RATES)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "mri").mkdir()
    rows = []
    for number in range(40):
        time = round(rng.uniform(2, 6), 2)
        for visit in (0.0, 1.0):
            scan = f"i{number}_{visit:g}"
            (tmp_path / "mri" / f"{scan}.nii.gz").write_bytes(b"no volume")
            rows.append((f"s{number}", scan, visit, time, int(number % 4 == 0)))
    columns = ["subjectid", "imageid", "visit_time", "time", "convert_status"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "c.csv", index=False)
    np.savetxt(tmp_path / "atlas.txt", np.ones(3))
    return ["--COHORT_CSV=c.csv", "--MRI_FOLDER=mri", "--OUTPUT_DIR=o"]


REFUSED = {
    "folds": (["--FOLDS=11"], "FOLDS: expected at most 10, the subjects with an event. Received: 11"),
    "cross-fitting": (["--CROSS_FIT=8"], "CROSS_FIT: expected at most 6, the training subjects with an event"),
    "cross-fitting within a fold": (["--FOLDS=2", "--CROSS_FIT=5"], "CROSS_FIT: expected at most 4, the training"),
    "a landmark in months": (
        ["--LANDMARKS=24"],
        "landmark 24 in the train: 0 at risk, 0 with an event; the last event",
    ),
    "nobody of that name": (["--EXPLAIN=s99"], "EXPLAIN: expected highest, median, lowest or the id of a test subject"),
    "nobody of that name in any fold": (["--FOLDS=2", "--EXPLAIN=s99"], "EXPLAIN: expected highest, median, lowest or"),
    "no such scan": (["--SAMPLE_INDEX=900"], "SAMPLE_INDEX: expected 0 to 15, received 900"),
    "no such atlas": (["--ATLAS=none.nii.gz"], "ATLAS: none.nii.gz: expected a NIfTI volume, can't read it: there is"),
    "no atlas": (["--ATLAS=atlas.txt"], "ATLAS: atlas.txt: expected a NIfTI volume, can't read it"),
    "one fold": (["--FOLDS=1"], "FOLDS: expected 2 or more, received 1"),
}


def test_columns_that_contradict_each_other_are_refused_before_the_scans(table, tmp_path):
    cohort = pd.read_csv(tmp_path / "c.csv")
    cohort["sex"] = ["M", "F"] * (len(cohort) // 2)
    cohort.assign(**{"sex=M": range(len(cohort))}).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(InputError, match="sex: a level of it and another column are called sex=M") as error:
        main.Pipeline(read_config(table)).run()
    assert "scans" not in str(error.value)
    with pytest.raises(InputError, match="sex: a level of it and another column are called sex=M"):
        verify.verify(read_config(table))


def test_a_constant_column_is_told_as_not_used(table, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    pd.read_csv(tmp_path / "c.csv").assign(field=3.0).to_csv(tmp_path / "c.csv", index=False)
    for check in (main.Pipeline(read_config(table)).run, lambda: verify.verify(read_config(table))):
        with pytest.raises(InputError, match="expected a NIfTI volume"):
            check()
    told = "covariates: none; not used: field (one value, 3)"
    assert told in caplog.text and told in capsys.readouterr().out


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_tables_tell_is_refused_alike(table, kind):
    """The run refuses before it reads a scan: none can be read here, and no other word is said of them."""
    arguments, message = REFUSED[kind]
    config = read_config([*table, *arguments])
    with pytest.raises(InputError) as of_run:
        main.Pipeline(config).run()
    assert message in str(of_run.value) and "can't be used" not in str(of_run.value)
    with pytest.raises(InputError) as of_verify:
        verify.verify(config)
    assert message in str(of_verify.value)


def test_all_that_the_tables_tell_is_named_at_once(table):
    config = read_config([*table, "--CROSS_FIT=8", "--EXPLAIN=s99", "--ATLAS=none.nii.gz"])
    with pytest.raises(InputError) as error:
        check_tables(config, read_parts(config)[0])
    for words in ("CROSS_FIT: expected at most 6", "received 's99'", "ATLAS: none.nii.gz: expected"):
        assert words in str(error.value)


def test_tables_that_bear_the_settings_pass(table):
    config = read_config(
        [*table, "--CROSS_FIT=2", "--LANDMARKS=0,1", "--EXPLAIN=highest", "--STAGES=cnn,features,tlstm"]
    )
    check_tables(config, read_parts(config)[0])
    unread = config.model_copy(update={"ATLAS": "none.nii.gz"})
    check_tables(unread, read_parts(unread)[0])  # no stage reads it


def test_verify_tells_the_cohort_in_words(table, capsys):
    with pytest.raises(InputError):
        verify.verify(read_config([*table, "--TIME_UNIT=days", "--HORIZONS=2,30"]))
    told = capsys.readouterr().out
    for words in ("cohort: 40 subjects, 80 visits", "10 subjects with an event", "visits: median gap 0.00274 years"):
        assert words in told
    assert "WARNING: visits are 0.0027 years apart in the median" in told and "TIME_UNIT=years" in told
    assert "WARNING: HORIZONS: 2, 30 years after the last visits lie beyond" in told


def test_the_simulated_cohort_is_in_years_whatever_the_unit_of_the_tables_is(cohort, tmp_path):
    settings = ["--SIM_SUBJECTS=12", "--TEST_RATIO=0.34", "--VAL_TRAIN_RATIO=0.5", "--NUM_WORKERS=1"]
    years, months = (
        read_parts(read_config([*settings, f"--OUTPUT_DIR={tmp_path}", f"--TIME_UNIT={unit}", "--DECIMAL=comma"]))[0]
        for unit in ("years", "months")
    )
    pd.testing.assert_frame_equal(years["train"], months["train"])
    assert years["train"]["visit_time"].max() > 1.0


def test_an_atlas_in_another_space_is_refused_by_verify(cohort, tmp_path, monkeypatch):
    """By a few scans, as a run refuses it by those that SHAP explains against."""
    monkeypatch.setattr(verify, "_measure", lambda *_: RATES)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    scan = nib.load(cohort / "mri" / "S0001_v1.nii.gz")
    labels = np.ones(scan.shape, np.int16)
    far = scan.affine.copy()
    far[0, 3] += 500
    for name, affine in (("far", far), ("near", scan.affine)):
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}.nii.gz")
    settings = [f"--COHORT_CSV={cohort / 'cohort.csv'}", f"--OUTPUT_DIR={tmp_path / 'o'}", "--TARGET_SHAPE=16,16,16"]
    with pytest.raises(InputError, match="expected labels in the scans' space, received an image that covers 0%"):
        verify.verify(read_config([*settings, f"--ATLAS={tmp_path / 'far.nii.gz'}"]))
    verify.verify(read_config([*settings, f"--ATLAS={tmp_path / 'near.nii.gz'}"]))
