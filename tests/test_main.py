"""The pipeline as a user runs it: processes, files, exit codes."""

import json
import signal
import subprocess
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from kills import go_on, kill_at
from programs import SMALL, digests, none_outlives, outputs, results, run, stages_done, start, wait_until

import main
from config import Config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, begun from another working directory: its output, its folder, and its results as they were."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    done = run(*SMALL, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done, cwd / "outputs", results(cwd / "outputs")


def test_every_promised_file_is_there(finished):
    folder = finished[1]
    for name in (
        "config.json run.log metrics.json report.html splits/train.csv splits/val.csv splits/test.csv "
        "cnn/best.weights.h5 cnn/history.csv features/train.parquet features/val.parquet features/test.parquet "
        "tlstm/model.pt tlstm/model.json tlstm/predictions.csv tlstm/history.csv cnn/history.tfevents "
        "tlstm/history.tfevents"
    ).split():
        assert (folder / name).stat().st_size > 0, name
    explained = list((folder / "explain").iterdir())
    for name in (
        "shap.nii.gz",
        "gradcam.nii.gz",
        "shap_3d.gif",
        "gradcam_3d.gif",
        "metrics.json",
        "shap.png",
        "regions.csv",
        "region_by_visit.png",
        "region_by_visit.csv",
        "visits.csv",
        "groups.csv",
    ):
        assert explained and [scan for scan in explained if not (scan / name).exists()] == []
    assert (folder / "explained_cohort" / "regions.csv").stat().st_size > 0
    assert list((folder / "figures").glob("*.png"))
    assert [path for path in folder.rglob(".part-*")] == []


def test_the_table_at_the_end(finished):
    told = finished[0].stdout
    for line in ("one scan (ResNet-18)", "history (stage 2)", "oracle, last scan", "6 test subjects", "95 % interval"):
        assert line in told


def test_every_scan_of_every_subject_has_features(finished):
    folder = finished[1]
    for part, num_subjects in (("train", 14), ("val", 4), ("test", 6)):
        table = pd.read_parquet(folder / "features" / f"{part}.parquet")
        split = pd.read_csv(folder / "splits" / f"{part}.csv")
        assert list(table["imageid"]) == list(split["imageid"])
        assert abs(table["subjectid"].nunique() - num_subjects) <= 1 and len(table) == 3 * table["subjectid"].nunique()
        columns = ["subjectid", "imageid", "visit_time", "time", "convert_status", "log_hazard", "progress"]
        assert list(table.columns) == columns + [f"feature_{number}" for number in range(1, 33)]
        assert np.isfinite(table["log_hazard"]).all()


def test_the_predictions_are_of_the_features_subjects(finished):
    folder = finished[1]
    predicted = pd.read_csv(folder / "tlstm" / "predictions.csv")
    for part in ("train", "val", "test"):
        features = pd.read_parquet(folder / "features" / f"{part}.parquet")
        rows = predicted[predicted["split"] == part].set_index("subjectid")
        last = features.sort_values("visit_time").groupby("subjectid").tail(1).set_index("subjectid").loc[rows.index]
        assert sorted(rows.index) == sorted(features["subjectid"].unique())
        np.testing.assert_allclose(rows["landmark"], last["visit_time"])
        np.testing.assert_allclose(rows["time"], last["time"] - last["visit_time"], atol=1e-6)
    curves = predicted[["survival_2.0", "survival_3.0", "survival_5.0"]].to_numpy()
    assert ((curves >= 0) & (curves <= 1)).all() and (np.diff(curves) <= 0).all()
    by_visit = pd.read_csv(folder / "tlstm" / "by_visit.csv")
    again = by_visit.sort_values("landmark").groupby("subjectid").tail(1).set_index("subjectid")
    assert len(by_visit) == 3 * len(again)
    np.testing.assert_allclose(again["log_hazard"], predicted.set_index("subjectid").loc[again.index, "log_hazard"])
    attention = predicted[["attention_1", "attention_2", "attention_3"]].sum(axis=1)
    np.testing.assert_allclose(attention, 1, atol=1e-5)


def test_the_metrics_keep_their_contract(finished):
    metrics = json.loads((finished[1] / "metrics.json").read_text())
    assert {"cnn", "tlstm", "baselines", "oracle"} <= set(metrics)
    for model in (metrics["cnn"], metrics["tlstm"]):
        for part in ("train", "val", "test"):
            found = model[part]
            assert {"n", "events", "c_index", "uno_c", "auc", "ibs", "hazard_ratio", "calibration"} <= set(found)
            assert set(found["auc"]) == {"2.0", "3.0", "5.0"}
            for estimate in (found["c_index"], found["uno_c"], *found["auc"].values(), found["ibs"]):
                assert {"value", "low", "high"} <= set(estimate)
                assert estimate["value"] is not None or estimate["why"]
    assert "cox_last_slope" in metrics["baselines"]
    assert metrics["oracle"]["longitudinal"]["value"] > 0.5
    assert {"rate", "repeatability", "consistency", "sample_size", "map"} <= set(metrics["change"])
    assert "one mask" in metrics["change"]["sample_size"]["brain_volume"]["why"]  # the simulation's, the same for all
    assert metrics["change"]["rate"]["log_hazard"]["mean"]["value"] is not None
    assert set(metrics["columns"]) == {"used", "coded", "unused"} and metrics["columns"]["used"][0] == "log_hazard"


def test_a_map_lies_in_the_scans_own_space(finished):
    folder = finished[1]
    scan = next(path for path in (folder / "explain").iterdir() if path.is_dir())
    (own,) = folder.glob(f"simulated/*/mri/{scan.name}.nii.gz")
    for name in ("shap", "gradcam"):
        image = nib.load(scan / f"{name}.nii.gz")
        assert image.shape == nib.load(own).shape
        np.testing.assert_allclose(image.affine, nib.load(own).affine, atol=0.1)


def test_the_record_of_the_run(finished):
    record = json.loads((finished[1] / "config.json").read_text())
    assert record["settings"]["EPOCHS"] == 2 and record["seed"] == 0
    assert record["versions"]["tensorflow"].startswith("2.21")
    assert {name: stage["done"] for name, stage in record["stages"].items()} == dict.fromkeys(
        ("cnn", "features", "tlstm", "explain", "report"), True
    )
    assert record["machine"]["threads"] >= 1
    assert {"cnn/best.weights.h5", "cnn/history.csv"} <= set(record["stages"]["cnn"]["files"])


def test_new_scans_are_predicted_as_old_ones_were(finished, tmp_path):
    """The test part, given as new scans without outcomes, gets the risks that the run wrote."""
    folder = finished[1]
    (simulated,) = (folder / "simulated").iterdir()
    test = pd.read_csv(folder / "splits" / "test.csv")
    test["nifti_path"] = [str(simulated / "mri" / f"{image}.nii.gz") for image in test["imageid"]]
    test.drop(columns=["time", "convert_status"]).to_csv(tmp_path / "new.csv", index=False)
    done = run(f"--OUTPUT_DIR={folder}", f"--PREDICT_CSV={tmp_path / 'new.csv'}", program="predict.py")
    assert done.returncode == 0, done.stderr[-3000:]
    found = pd.read_csv(folder / "predictions" / "new.csv").set_index("subjectid")
    expected = pd.read_csv(folder / "tlstm" / "predictions.csv").query("split == 'test'").set_index("subjectid")
    np.testing.assert_allclose(found["log_hazard"], expected.loc[found.index, "log_hazard"], atol=1e-4)
    assert "time" not in found and "survival_2.0" in found
    assert list(found.columns)[-1] == "out_of_range"
    done = run(f"--OUTPUT_DIR={folder}", f"--PREDICT_CSV={tmp_path / 'new.csv'}", "--WIDTH=8", program="predict.py")
    assert done.returncode == 2 and "WIDTH: the run has 4, received 8" in done.stderr


def test_what_is_done_is_not_repeated_and_a_changed_setting_is(finished):
    """The stages below the changed setting are done anew, those above it are not, and the reason is said."""
    folder = finished[1]
    before = digests(folder)
    again = run(*SMALL, f"--OUTPUT_DIR={folder}", "--HORIZONS=1,2", '--STAGES=["cnn","features","tlstm"]')
    assert again.returncode == 0, again.stderr[-3000:]
    assert "cnn: done already" in again.stderr and "features: done already" in again.stderr
    assert (
        "tlstm: done anew, since it depends on what has changed: HORIZONS was [2.0, 3.0, 5.0], is [1.0, 2.0]"
        in again.stderr
    )
    after = digests(folder)
    changed = {name for name in before if before[name] != after.get(name)}
    assert {"tlstm/predictions.csv", "tlstm/by_visit.csv"} <= changed
    assert not [name for name in changed if name.startswith(("cnn/", "features/", "splits/", "explain/"))]


def test_what_must_stay_is_refused_before_anything_is_touched(finished):
    folder = finished[1]
    before = digests(folder)
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--RESUME=require", "--WIDTH=8", "--SEED=3")
    assert done.returncode == 2
    assert "RESUME=require" in done.stderr and "cnn: WIDTH was 4, is 8" in done.stderr
    assert "cnn: SEED was 0, is 3" in done.stderr and "Traceback" not in done.stderr
    assert digests(folder) == before


def test_verify_writes_nothing(finished):
    folder = finished[1]
    before = digests(folder)
    done = run("--VERIFY", *SMALL, f"--OUTPUT_DIR={folder}", "--STAGES=cnn")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all as the stage left them" in done.stdout and "What a run takes here" in done.stdout
    assert digests(folder) == before


def test_a_run_that_is_killed_twice_comes_to_the_same(finished, tmp_path):
    """kill -9 after the first epoch, before its state is saved, and in stage 2: the results are bit-equal."""
    source, folder, expected = finished[1], tmp_path / "outputs", finished[2]
    for name in ("simulated", "cache"):
        subprocess.run(["cp", "-r", "--parents", name, str(tmp_path)], check=True, cwd=source)
    folder.mkdir()
    for name in ("simulated", "cache"):
        (tmp_path / name).rename(folder / name)
    arguments = (*SMALL, "--STAGES=cnn,features,tlstm,report")
    killed = kill_at(folder, arguments, lambda *_: (folder / "cnn" / "best.weights.h5").exists())
    assert killed["killed"] and killed["done"] == []
    killed = kill_at(folder, arguments, lambda *_: "features" in stages_done(folder))
    assert killed["killed"] and killed["done"] == ["cnn", "features"]
    go_on(folder, arguments)
    assert results(folder) == expected


BAD_INPUT = {
    "a wrong setting": (["--EPOCHS=0", "--LOSS=mse"], ["EPOCHS: expected", "LOSS: expected"]),
    "no such table": (["--COHORT_CSV=none.csv"], ["none.csv: expected a table, found no such file"]),
    "no such folder": (
        ["--COHORT_CSV=good.csv", "--MRI_FOLDER=none"],
        ["12 rows: expected a file, found none", "check MRI_FOLDER"],
    ),
    "other columns": (["--COHORT_CSV=other.csv"], ["Missing: subjectid", "Found: id, imageid, visit_time"]),
    "bad rows": (["--COHORT_CSV=bad.csv"], ["row 2: a visit after the end", "row 3: convert_status: expected 0 or 1"]),
    "no volume": (["--COHORT_CSV=good.csv", "--MRI_FOLDER=."], ["a0: ", "a1: ", "can't read it"]),
    "whom to explain": (["--EXPLAIN=nobody"], ["EXPLAIN: expected highest, median, lowest", "received 'nobody'"]),
    "a stage without the one above": (["--STAGES=tlstm"], ["tlstm needs the stage features"]),
    "half a split": (["--TRAIN_CSV=good.csv"], ["expected all three or none"]),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_message_and_exit_2(tmp_path, monkeypatch, capsys, kind):
    """By the program's own code in this process, without the seconds that imports take; one kind as a process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(cohort_text())
    (tmp_path / "bad.csv").write_text(cohort_text().replace("s0,a0,0,", "s0,a0,9,").replace(",1\ns2", ",7\ns2"))
    (tmp_path / "other.csv").write_text(cohort_text().replace("subjectid", "id"))
    for number in range(12):
        (tmp_path / f"a{number}.nii").write_text("no volume")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "metrics.json").write_text("{}")
    arguments, messages = BAD_INPUT[kind]
    if kind == "bad rows":
        done = run(*SMALL, *arguments, cwd=tmp_path)
        code, stderr = done.returncode, done.stderr
    else:
        code, stderr = main.main([*SMALL, *arguments]), capsys.readouterr().err
    assert code == 2, stderr[-3000:]
    assert [message for message in messages if message not in stderr] == []
    assert "Traceback" not in stderr
    assert (tmp_path / "outputs" / "metrics.json").read_text() == "{}"


def cohort_text():
    rows = "".join(f"s{i},a{i},0,{2 + i % 5},{i % 2}\n" for i in range(12))
    return "subjectid,imageid,visit_time,time,convert_status\n" + rows


def test_a_folder_that_cannot_be_written_is_exit_2(tmp_path):
    (tmp_path / "file").touch()
    done = run(*SMALL, f"--OUTPUT_DIR={tmp_path / 'file' / 'outputs'}")
    assert done.returncode == 2 and "expected a folder that can be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_features_that_were_spoilt_are_made_anew(finished, tmp_path):
    source, folder = finished[1], tmp_path / "outputs"
    subprocess.run(["cp", "-r", str(source), str(folder)], check=True)
    path = folder / "features" / "train.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    spoilt = "features/train.parquet: changed, other contents of the same size"
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--TLSTM_EPOCHS=3", "--STAGES=tlstm", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"tlstm needs the stage features of the same settings ({spoilt})" in done.stderr
    told = run("--VERIFY", *SMALL, f"--OUTPUT_DIR={folder}", cwd=tmp_path)
    assert told.returncode == 2 and f"features: {spoilt}" in told.stderr
    (folder / "cnn" / "history.csv").write_text("spoilt")
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--STAGES=cnn,features", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stage 1 goes on after epoch 2, step 0" in done.stderr  # nothing is trained anew for the sake of a table
    assert f"features: done anew, since it depends on what has changed: {spoilt}" in done.stderr
    for name in ("cnn/history.csv", "cnn/best.weights.h5", "features/train.parquet"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    weights = folder / "cnn" / "best.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--EXPLAIN=lowest", "--STAGES=explain", cwd=tmp_path)
    assert done.returncode == 2
    assert "explain needs the stage cnn of the same settings (cnn/best.weights.h5: changed, other" in done.stderr
    (folder / "tlstm" / "history.csv").write_text("spoilt")
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--STAGES=report", cwd=tmp_path)
    assert done.returncode == 2 and "The page can't be made (2):\n  cnn: cnn/best.weights" in done.stderr
    assert "  tlstm: tlstm/history.csv: changed, expected" in done.stderr


def test_an_error_of_stage_2_is_passed_on(finished, tmp_path):
    """In its words, with its exit code."""
    folder = tmp_path / "outputs"
    subprocess.run(["cp", "-r", str(finished[1]), str(folder)], check=True)
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--LANDMARKS=90", "--STAGES=tlstm", cwd=tmp_path)
    assert done.returncode == 2 and "tlstm.py" not in done.stderr  # the tables tell, before any stage begins
    assert "landmark 90 in the test: 0 at risk" in done.stderr and "Traceback" not in done.stderr
    (folder / "metrics.json").write_text("spoilt")
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", "--TLSTM_EPOCHS=4", "--STAGES=tlstm", cwd=tmp_path)
    assert done.returncode == 2
    assert "metrics.json: expected JSON" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.endswith("tlstm.py ended with exit code 2\n")


def test_a_stopped_run_is_143_and_goes_on(finished, tmp_path):
    """SIGTERM in stage 1, then the same command; meanwhile nobody else may work in its folder."""
    source, folder = finished[1], tmp_path / "outputs"
    subprocess.run(["cp", "-r", str(source), str(folder)], check=True)
    state = folder / "cnn" / "backup" / "state.npz"
    state.unlink()
    (folder / ".run.json").unlink()
    arguments = (*SMALL, f"--OUTPUT_DIR={folder}", "--EPOCHS=100000", "--PATIENCE=100000", "--STAGES=cnn")
    process = start(*arguments, cwd=tmp_path)
    with none_outlives(process):
        wait_until((folder / ".run.json").exists, process)
        process.send_signal(signal.SIGSTOP)  # it need not train meanwhile
        for program in ("main.py", "tlstm.py"):
            second = run(*arguments, cwd=tmp_path, program=program)
            assert second.returncode == 2 and "Traceback" not in second.stderr
            assert f"another run is at work in {folder}: process {process.pid} on" in second.stderr
        process.send_signal(signal.SIGCONT)
        wait_until(state.exists, process)
        process.send_signal(signal.SIGTERM)
        ((_, stderr),) = outputs(process)
    assert process.returncode == 143, stderr[-3000:]
    assert "Stopped by SIGTERM. The same command goes on" in stderr and "Traceback" not in stderr
    epochs = len(pd.read_csv(folder / "cnn" / "history.csv"))
    process = start(*arguments, cwd=tmp_path)
    with none_outlives(process):
        wait_until(lambda: len(pd.read_csv(folder / "cnn" / "history.csv")) > epochs, process)
        process.send_signal(signal.SIGINT)
        ((_, stderr),) = outputs(process)
    assert process.returncode == 143, stderr[-3000:]
    assert "Stopped by Ctrl-C" in stderr and "Traceback" not in stderr
    assert "stage 1 goes on after epoch" in stderr


def test_stage_2_alone_works_in_the_folder_of_a_run(finished, tmp_path):
    source, folder = finished[1], tmp_path / "outputs"
    subprocess.run(["cp", "-r", str(source), str(folder)], check=True)
    done = run(*SMALL, f"--OUTPUT_DIR={folder}", program="tlstm.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(folder)["tlstm/model.pt"] == finished[2]["tlstm/model.pt"]


@pytest.mark.parametrize("setting", ["linear", "off"])
def test_the_metrics_tell_of_progress_where_there_is_any(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(main, "evaluate_run", lambda *_, **__: {"cnn": {}})
    pipeline = main.Pipeline(Config(OUTPUT_DIR=tmp_path, PROGRESS=setting))
    pipeline.record = SimpleNamespace(is_done=lambda _: False)
    pipeline.cohort = SimpleNamespace(truth_table=lambda: None)
    figures = pipeline._evaluate({})
    assert figures["cnn"] == {} and ("progress" in figures) == (setting == "linear")
    assert figures.get("progress", {}).get("alarm") is None
