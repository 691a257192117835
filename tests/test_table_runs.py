"""Runs of `tlstm.py` on a table of the user's: what they leave, what they print, how they go on."""

import contextlib
import io
import json
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
from kills import POLL
from programs import start, temporaries
from samples import random_table

import main
import tlstm
from cohort import tables
from runs.files import write_json

QUICK = "--TLSTM_EPOCHS=3 --NUM_SEEDS=2 --NUM_RESAMPLES=100 --HIDDEN=4".split()
FOLDS = "--FOLDS=2 --LANDMARKS=0.5,1 --WINDOWS=2,1.5".split()
MODELS = ("tlstm", "baseline_cox", "locf_cox", "linear_supermodel", "link", "lstm")
NUM_FITS = 2 * len(MODELS)
OF_CV = ("cv/figures.csv", "cv/predictions.csv", "cv/history.csv", "cv/curves.png")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def write_input(folder):
    """A table of laboratory values of 60 subjects, `t.csv`."""
    rng = np.random.default_rng(0)
    table = random_table(rng, num_subjects=60, num_features=0).drop(columns="log_hazard")
    tables.write_table(table.assign(albumin=rng.normal(size=len(table))), folder / "t.csv")
    return folder


def run(folder, *more):
    """The exit code, and what is printed on stdout and stderr; the run's folder is `o`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = tlstm.main(arguments(folder, *more))
    return code, out.getvalue(), err.getvalue()


def arguments(folder, *more):
    return [f"--FEATURES={folder / 't.csv'}", f"--OUTPUT_DIR={folder / 'o'}", *QUICK, *more]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path):
    """With the table alone."""
    return write_input(tmp_path)


@pytest.fixture(scope="module")
def both(one_thread, tmp_path_factory):
    """The folder of a run, what it left and printed; then a cross-validation's in the same folder, likewise."""
    folder, seen = write_input(tmp_path_factory.mktemp("both")), []
    for more in ([], FOLDS):
        code, out, err = run(folder, *more)
        assert code == 0, err
        left = {path.relative_to(folder / "o").as_posix() for path in (folder / "o").rglob("*")}
        page = (folder / "o" / "report.html").read_text(encoding="utf-8")
        seen.append({"out": out, "left": left, "page": page, "metrics": read(folder / "o" / "metrics.json")})
    return folder, *seen


@pytest.fixture
def finished(both, tmp_path):
    """A copy of that folder which a test may change."""
    return shutil.copytree(both[0], tmp_path / "finished")


# ---- What a run leaves ---------------------------------------------------------------------------------
def test_a_run_leaves_its_record_and_page_and_prints_its_result(both):
    folder, single, _ = both
    assert {"config.json", "run.log", "metrics.json", "report.html", "figures/calibration.svg"} <= single["left"]
    assert {"splits/train.csv", "splits/val.csv", "splits/test.csv", "tlstm/predictions.csv"} <= single["left"]
    assert set(single["metrics"]) == {"tlstm", "arms", "baselines", "columns"} and set(
        single["metrics"]["baselines"]
    ) == {"covariates"}
    for words in ("history (stage 2)", "covariates", "test subjects", f"Everything is in {folder / 'o'}; begin with"):
        assert words in single["out"]
    log = (folder / "o" / "run.log").read_text()
    assert [log.count(line) for line in ("tlstm: begins", "stack: ", "tlstm: done", "cv: begins", "cv: done")] == [
        1
    ] * 5


def test_the_page_of_a_run_speaks_of_a_table(both):
    for words in ("Who has the event, and when", "history (stage 2)", "covariates", 'id="calibration"', 'id="cohort"'):
        assert words in both[1]["page"]
    assert "This run does not have" not in both[1]["page"] and "simulated" not in both[1]["page"]


def test_the_record_has_both_stages_with_their_files(both):
    record = read(both[0] / "o" / "config.json")
    assert {name: stage["done"] for name, stage in record["stages"].items()} == dict.fromkeys(
        ("tlstm", "cv", "report"), True
    )
    assert {"tlstm/model.pt", "splits/test.csv"} <= set(record["stages"]["tlstm"]["files"])
    assert set(OF_CV) == set(record["stages"]["cv"]["files"])
    assert record["settings"]["FOLDS"] == 2 and record["machine"]["threads"] == 1


def test_a_cross_validation_leaves_the_same_and_stands_beside_a_run(both):
    folder, _, cv = both
    assert "tlstm - locf_cox" in cv["out"] and f"begin with {folder / 'o' / 'report.html'}" in cv["out"]
    assert "From year 0.5, over 2 years" in cv["page"] and 'id="cv_curves"' in cv["page"]
    assert "tlstm: LANDMARKS unset" in cv["page"]  # the settings below are those of the cross-validation
    assert set(cv["metrics"]) == {"tlstm", "arms", "baselines", "cv", "columns"}
    assert set(cv["metrics"]["cv"]) == {"0.5+2", "1+1.5"}
    assert set(cv["metrics"]["cv"]["1+1.5"]) == {*MODELS, "difference"}
    assert set(cv["metrics"]["cv"]["1+1.5"]["difference"]) == set(MODELS) - {"tlstm"}
    assert {name for name in cv["left"] if name.startswith("cv/")} == set(OF_CV)


def test_every_models_predictions_of_the_held_out_subjects_are_written(both):
    predicted = pd.read_csv(both[0] / "o" / "cv" / "predictions.csv")
    first = ["subjectid", "split", "model", "landmark", "time", "convert_status", "log_hazard"]
    assert predicted.columns[: len(first)].tolist() == first
    assert predicted["model"].unique().tolist() == list(MODELS)
    assert len(set(predicted["model"].value_counts())) == 1
    assert predicted[predicted["model"] == "locf_cox"]["survival_1.5"].notna().any()
    history = pd.read_csv(both[0] / "o" / "cv" / "history.csv")
    assert history.columns[:4].tolist() == ["repeat", "fold", "model", "epoch"]
    assert set(history["model"]) == {"tlstm", "lstm"}


def test_a_run_at_landmarks_is_compared_and_drawn_at_each(finished):
    code, out, err = run(finished, "--LANDMARKS=0.5,1")
    assert code == 0, err
    metrics = read(finished / "o" / "metrics.json")
    assert "Predicted at year 0.5" in out and "Predicted at year 1\n" in out
    assert set(metrics) == {"landmarks", "cv", "columns"}  # no figure of the run before
    assert set(metrics["landmarks"]) == {"0.5", "1"}
    assert set(pd.read_csv(finished / "o" / "tlstm" / "predictions.csv")["landmark"]) == {0.5, 1.0}
    assert set(metrics["landmarks"]["1"]["baselines"]) == {"baseline_cox", "locf_cox", "linear_supermodel"}
    assert not (finished / "o" / "tlstm" / "by_visit.csv").exists()
    drawn = {path.stem for path in (finished / "o" / "figures").iterdir()}
    assert {"risk_groups_predicted_at_year_0.5", "risk_groups_predicted_at_year_1"} <= drawn
    assert "risk_groups" not in drawn


# ---- Whose folder it is ----------------------------------------------------------------------------------
def content(folder):
    ours = (".lock", ".run.json")
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in ours}


def scans_run(folder):
    """What a run of main.py on scans leaves, as far as it is read."""
    write_json(folder / "config.json", {"settings": {"SEED": 0}, "grid": {}, "stages": {}})
    write_json(folder / "metrics.json", {"cnn": {}})
    return folder


@pytest.mark.parametrize("more", [[], FOLDS])
def test_a_scans_run_is_not_overwritten(folder, more):
    before = content(scans_run(folder / "o"))
    code, _, err = run(folder, *more)
    assert code == 2 and "holds one of main.py. Choose another OUTPUT_DIR" in err
    assert content(folder / "o") == before


@pytest.mark.parametrize("more", [[], ["--VERIFY"], ["--RESUME=require"]])
def test_a_tables_run_is_not_overwritten(both, capsys, more):
    folder = both[0] / "o"
    before = content(folder)
    assert main.main([f"--OUTPUT_DIR={folder}", *more]) == 2
    assert "holds one of tlstm.py. Choose another OUTPUT_DIR" in capsys.readouterr().err
    assert content(folder) == before


def test_another_tables_results_are_not_mixed_with_this_ones(finished):
    table = pd.read_csv(finished / "t.csv")
    table.assign(albumin=table["albumin"] + 1).to_csv(finished / "t.csv", index=False)
    before = content(finished / "o")
    for more, other in (([], "cv"), (FOLDS, "tlstm")):
        code, _, err = run(finished, *more)
        assert code == 2 and f"{other}: of another table" in err
        assert content(finished / "o") == before


def test_the_record_of_a_scans_run_stays_as_it_is(rng, tmp_path):
    table = random_table(rng, num_subjects=60)
    names = {"train": slice(0, 36), "val": slice(36, 48), "test": slice(48, 60)}
    for part, rows in names.items():
        subjects = table["subject"].unique()[rows]
        tables.write_table(table[table["subject"].isin(subjects)], tmp_path / "features" / f"{part}.parquet")
    record = (scans_run(tmp_path) / "config.json").read_bytes()
    assert tlstm.main([f"--OUTPUT_DIR={tmp_path}", *QUICK]) == 0
    assert (tmp_path / "config.json").read_bytes() == record
    assert (
        set(read(tmp_path / "metrics.json")) == {"cnn", "tlstm", "arms", "columns"}
        and not (tmp_path / "report.html").exists()
    )


# ---- How a cross-validation goes on -----------------------------------------------------------------------
def kept_fits(folder):
    return list((folder / "o").glob("cv/backup/*/[!.]*.fit"))


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_cross_validation_that_is_stopped_goes_on_to_the_same_bits(folder, both, kill):
    process = start(*arguments(folder, *FOLDS), program="tlstm.py")
    while process.poll() is None and len(kept_fits(folder)) < 2:
        time.sleep(POLL)
    process.send_signal(kill)
    stderr = process.communicate()[1]
    assert process.returncode == (-signal.SIGKILL if kill == signal.SIGKILL else 143), stderr
    assert kill == signal.SIGKILL or "The same command goes on from here" in stderr
    num_kept = len(kept_fits(folder))
    assert 2 <= num_kept < NUM_FITS
    code, _, err = run(folder, *FOLDS)
    assert code == 0 and f"{num_kept} of {NUM_FITS} fits were finished before, and are kept" in err
    assert temporaries(folder / "o") == []
    for name in OF_CV:
        assert (folder / "o" / name).read_bytes() == (both[0] / "o" / name).read_bytes(), name
    assert read(folder / "o" / "metrics.json")["cv"] == both[2]["metrics"]["cv"]


@pytest.mark.parametrize("setting", ["--HIDDEN=3", "--LANDMARK_STEP=0.25"])
def test_with_another_setting_nothing_kept_is_used(folder, monkeypatch, setting):
    fits, fit = [], tlstm.fit

    def stop_at_third(*positional, **named):
        fits.append(named["settings"])
        if len(fits) in (3, 5):
            raise KeyboardInterrupt
        return fit(*positional, **named)

    monkeypatch.setattr(tlstm, "fit", stop_at_third)
    assert run(folder, *FOLDS)[0] == 143
    assert len(kept_fits(folder)) == len(MODELS)
    code, _, err = run(folder, *FOLDS, setting)
    assert code == 143 and "are kept" not in err
    name = setting.strip("-").partition("=")[0]
    assert f"cv: done anew, since it depends on what has changed: {name} was" in err
    assert len(kept_fits(folder)) == len(MODELS) - 1  # its own
