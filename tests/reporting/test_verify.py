import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cohort.grid import read_grid
from config import read_config
from reporting import verify
from runs.errors import InputError
from runs.files import write_json
from runs.manifest import find_damage, list_files

RATES = verify.Rates(preprocess=0.5, start=7.0, train=0.02, predict=0.01, memory=1.5e9, weights=1_000_000)


@pytest.fixture
def verified(monkeypatch, tmp_path, capsys):
    """What VERIFY prints with known rates: the measuring itself is run in test_main."""
    monkeypatch.setattr(verify, "_measure", lambda *_: RATES)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        verify.verify(read_config(["--NUM_WORKERS=2", *arguments]))
        return capsys.readouterr().out

    return run


@pytest.fixture
def scans(cohort, tmp_path):
    """The simulated cohort of 12 subjects as a user's own."""
    shutil.copytree(cohort, tmp_path / "own")
    return tmp_path / "own"


def test_the_flow_of_a_cohort_is_what_the_run_splits(verified, scans, tmp_path):
    told = verified(f"--COHORT_CSV={scans / 'cohort.csv'}", "--TEST_RATIO=0.34", "--VAL_TRAIN_RATIO=0.5")
    table = pd.read_csv(scans / "cohort.csv")
    rows = [line.split() for line in told.splitlines() if line.split() and line.split()[0] in ("train", "val", "test")]
    counts = np.array([[int(value) for value in row[1:5]] for row in rows])
    subjects = table.groupby("subjectid")["convert_status"].first()
    assert counts.sum(axis=0).tolist() == [12, subjects.sum(), 12 - subjects.sum(), 36]
    assert "48 x 56 x 48 voxels of 4 x 4 x 4 mm" in told and "0 of 36 scans would be refused" in told
    assert list(tmp_path.iterdir()) == [scans]  # nothing is written


@pytest.mark.parametrize(
    ("subjects", "progress"), [(["S0003"], "linear"), (["S0002", "S0005"], "linear"), (["S0003"], "off")]
)
def test_teachers_are_told_and_their_scans_are_checked(verified, scans, caplog, subjects, progress):
    table = pd.read_csv(scans / "cohort.csv", dtype=str)
    table.loc[table["subjectid"].isin(subjects), "convert_status"] = ""
    table.to_csv(scans / "cohort.csv", index=False)
    settings = (
        f"--TEST_RATIO=0.34 --VAL_TRAIN_RATIO=0.5 --PROGRESS={progress} --COHORT_CSV={scans / 'cohort.csv'}".split()
    )
    told, count = verified(*settings), len(subjects)
    if progress == "off":
        assert "without an outcome" not in told and f"0 of {36 - 3 * count} scans would be refused" in told
        assert f"{count} subjects without an outcome are left out, with their {3 * count} scans" in caplog.text
        return
    assert f"  none   {count:8}       -         -  {3 * count:5}  3 to 3, mean 3.0" in told
    assert f"without an outcome: {count} subjects, {3 * count} visits, which teach progress and no more" in told
    assert "0 of 36 scans would be refused" in told and "preprocessing  9.0 seconds" in told
    (scans / "mri" / f"{subjects[0]}_v2.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputError, match=rf"{subjects[0]}_v2: .*expected a NIfTI volume"):
        verified(*settings)


def test_the_costs_are_counted_from_the_rates(verified, scans):
    told = verified(f"--COHORT_CSV={scans / 'cohort.csv'}", "--TEST_RATIO=0.34", "--VAL_TRAIN_RATIO=0.5", "--EPOCHS=10")
    assert "preprocessing  9.0 seconds" in told  # 36 scans of 0.5 s by 2 processes
    train, val = (3 * int(told.split(f"  {name} ")[1].split()[0]) for name in ("train", "val"))
    once = 7 + 10 * (train * 0.02 + val * 0.01) + 36 * 0.01  # 10 epochs, then the features of all
    assert f"stage 1        {once:.1f} seconds: 1 network of 10 epochs" in told
    assert "memory         1.5 GB" in told
    assert "cache 0.01, weights and state 0.03" in told  # 36 * 48 * 56 * 48 * 2 bytes; 7 * 4 MB


def test_a_cohort_that_is_not_written_yet(verified, tmp_path):
    told = verified("--SIM_SUBJECTS=20")
    assert "It is simulated, and not written yet." in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("visits", "told"), [("4,6", "4 to 6, mean "), ("1,1", "1 to 1, mean 1.0")])
def test_a_cohort_that_is_not_written_yet_has_the_visits_that_it_will_have(verified, visits, told):
    printed = verified("--SIM_SUBJECTS=60", f"--SIM_VISITS={visits}", "--SIM_HISTORY=variable")
    (train,) = (line for line in printed.splitlines() if line.startswith("  train "))
    assert told in train


def test_every_scan_that_would_be_refused_is_named(verified, scans):
    (scans / "mri" / "S0003_v2.nii.gz").write_bytes(b"no volume")
    other = nib.Nifti1Image(np.ones((8, 9, 10), np.float32), np.diag([4.0, 4, 4, 1]))
    nib.save(other, scans / "mri" / "S0005_v1.nii.gz")
    with pytest.raises(InputError, match=r"scans can't be used \(2\)") as found:
        verified(f"--COHORT_CSV={scans / 'cohort.csv'}")
    assert "S0003_v2.nii.gz: expected a NIfTI volume, can't read it" in str(found.value)
    assert "expected the grid of the other scans, 48 x 56 x 48 voxels of 4 x 4 x 4 mm" in str(found.value)
    assert "received 8 x 9 x 10 voxels of 4 x 4 x 4 mm from (0.00, 0.00, 0.00)" in str(found.value)


def test_the_grid_is_the_stated_references(verified, scans, tmp_path):
    affine = nib.load(scans / "mri" / "S0001_v1.nii.gz").affine
    nib.save(nib.Nifti1Image(np.ones((47, 55, 46), np.float32), affine), tmp_path / "reference.nii")
    stated = (f"--COHORT_CSV={scans / 'cohort.csv'}", f"--REFERENCE={tmp_path / 'reference.nii'}")
    with pytest.raises(
        InputError, match=r"36 scans: expected the grid of REFERENCE, 47 x 55 x 46 voxels of 4 x 4 x 4 mm"
    ):
        verified(*stated)
    assert "47 x 55 x 46 voxels" in verified(*stated, "--RESAMPLE=on")


def test_the_scans_that_are_timed_are_refused_by_name(cohort, tmp_path):
    image = nib.load(cohort / "mri" / "S0003_v2.nii.gz")
    spoilt = nib.Nifti1Image(np.asarray(image.dataobj, np.float32) - 1024, image.affine)
    nib.save(spoilt, tmp_path / "spoilt.nii")
    paths = [str(cohort / "mri" / "S0003_v1.nii.gz"), str(tmp_path / "spoilt.nii")]
    table, grid = pd.DataFrame({"scan": ["a", "b"], "nifti_path": paths}), read_grid(paths[0])
    (told,) = verify._refuse_voxels(table, grid, read_config(["--TARGET_SHAPE=16,16,16"]))
    assert told.startswith(f"b: {paths[1]}: expected 0 outside the brain, received greys close to -1024")


@pytest.mark.parametrize("how", ["not NIfTI", "gone", "two-dimensional"])
def test_a_cohort_whose_scans_are_all_refused_is_not_called_simulated(verified, scans, capsys, how):
    for path in (scans / "mri").iterdir():
        path.unlink()
        if how == "not NIfTI":
            path.write_bytes(b"no volume")
        if how == "two-dimensional":
            nib.save(nib.Nifti1Image(np.ones((8, 9), np.float32), np.eye(4)), path)
    with pytest.raises(InputError) as found:
        verified(f"--COHORT_CSV={scans / 'cohort.csv'}")
    told = capsys.readouterr().out
    assert "simulated" not in told
    if how != "gone":  # a missing file is refused with the table, before anything is printed of the cohort
        assert "Every header is read: none can be read; 36 of 36 scans would be refused." in told
        assert "scans can't be used (36)" in str(found.value)


def test_damage_is_named_by_file(verified, tmp_path):
    run = tmp_path / "outputs"
    (run / "cnn" / "backup").mkdir(parents=True)
    for name in ("lost", "longer", "other", "whole", "backup/state"):
        (run / "cnn" / name).write_text("abc")
    files = list_files(run, ["cnn", "none"])
    assert sorted(files) == ["cnn/longer", "cnn/lost", "cnn/other", "cnn/whole"]
    assert files["cnn/whole"]["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    write_json(run / "config.json", {"stages": {"cnn": {"done": True, "files": files}}})
    (run / "cnn" / "lost").unlink()
    (run / "cnn" / "longer").write_text("abcd")
    (run / "cnn" / "other").write_text("abd")
    damage = {
        "cnn/longer": "changed, expected 3 bytes, received 4",
        "cnn/lost": "missing",
        "cnn/other": "changed, other contents of the same size",
    }
    assert find_damage(run, files) == damage
    with pytest.raises(InputError) as found:
        verified("--SIM_SUBJECTS=20")
    told = str(found.value).splitlines()
    assert told[1:4] == [f"  cnn: {name}: {what}" for name, what in damage.items()]
