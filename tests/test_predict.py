"""Predicting new scans: the run's record decides; what the tables tell is refused first; whom the model never saw."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import predict
import tlstm
from config import Config
from runs.manifest import list_files
from runs.record import LEFT_BY, THE_INPUT, Record
from survival.change import POPULATION_FILE, Population
from survival.link import inner_folds

WIDTH = 4
STAGE1 = ["log_hazard", *(f"feature_{number}" for number in range(1, 8 * WIDTH + 1))]
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
QUICK = dict(NUM_SEEDS=2, HIDDEN=4, TLSTM_EPOCHS=2, COMPONENTS=(2,), PENALTIES=(0.1,))


def write_scan(path, rng, shape=(16, 16, 16)):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(rng.uniform(1, 2, shape).astype(np.float32), AFFINE), path)


def training_table(rng, *, covariate, text):
    """30 subjects, 3 visits within a year, stage 1's columns; if wanted `age`, 60 to 80, and `sex` and `site`."""
    table = pd.DataFrame({"subject": np.repeat([f"s{number:02d}" for number in range(30)], 3)})
    table["visit_time"] = np.tile([0.0, 0.5, 1.0], 30)
    table["time"], table["event"] = np.repeat(1.1 + rng.exponential(3, 30), 3), np.repeat(rng.random(30) < 0.6, 3)
    values = pd.DataFrame(rng.normal(size=(90, len(STAGE1))), columns=STAGE1)
    own = {"age": rng.uniform(60, 80, 90)} if covariate else {}
    own |= {"sex": np.tile(["M", "F"], 45), "site": np.repeat(["Oslo", "Rome", "Bonn"], 30)} if text else {}
    return pd.concat([table, values], axis=1).assign(**own)


def trained_run(folder, rng, *, covariate=True, text=False, **settings):
    """A run's folder as two finished stages leave it; stage 1 is never loaded here, so it is a file of any content."""
    settings = {"WIDTH": WIDTH, "TARGET_SHAPE": (16, 16, 16), "NUM_WORKERS": 1, **QUICK} | settings
    config = Config(OUTPUT_DIR=folder, **settings)
    grid = {"shape": (16, 16, 16), "affine": AFFINE.tolist()}
    record = Record(folder, config.model_dump(mode="json"), inputs="the cohort", grid=grid, threads=1)
    with record.running("cnn"):
        (folder / "cnn").mkdir(parents=True)
        (folder / "cnn" / "best.weights.h5").write_text("weights")
    table = training_table(rng, covariate=covariate, text=text)
    columns = [*STAGE1, *["age"] * covariate, *["sex", "site"] * text]
    validation = inner_folds(table.drop_duplicates("subject")["event"].to_numpy(bool), 2, rng)
    predictor, _ = tlstm.fit(table, validation, columns, grid=(), settings=tlstm.Settings.of(config))
    with record.running("tlstm"):
        tlstm.save(predictor, folder / "tlstm")
    return folder


def new_scans(path, rng, *, visits=(0.0, 0.5), folder="mri", **columns):
    """A table of two new subjects and their scans in `folder` beside it."""
    table = pd.DataFrame({"subjectid": np.repeat(["n1", "n2"], len(visits)), "visit_time": [*visits] * 2})
    table["imageid"] = [f"I{row}" for row in range(len(table))]
    for image in table["imageid"]:
        write_scan(path.parent / folder / f"{image}.nii.gz", rng)
    table.assign(**columns).to_csv(path, index=False)
    return path


@pytest.fixture(autouse=True)
def features_by_no_network(monkeypatch):
    """The features that stage 1 would give; the settings that it was built with are kept."""
    built_with = []

    def features(config, table):
        built_with.append(config)
        values = np.random.default_rng(1).normal(size=(len(table), len(STAGE1)))
        table = table.drop(columns=["nifti_path", "cache_entry"])
        return pd.concat([table, pd.DataFrame(values, columns=STAGE1)], axis=1)

    monkeypatch.setattr(predict, "_features", features)
    return built_with


def run_here(folder, csv, *arguments):
    return predict.main([f"--OUTPUT_DIR={folder}", f"--PREDICT_CSV={csv}", *arguments])


def predictions(folder, name="new"):
    return pd.read_csv(folder / "predictions" / f"{name}.csv", keep_default_na=False)


# ---- The record of the run decides -------------------------------------------------------------------
@pytest.mark.parametrize(("unit", "half_a_year"), [("years", 0.5), ("months", 6.0), ("days", 182.625)])
def test_the_unit_of_time_is_the_runs(rng, tmp_path, unit, half_a_year):
    mri = {"MRI_FOLDER": tmp_path / "mri"}
    folder = trained_run(tmp_path / "o", rng, TIME_UNIT=unit, covariate=False, **mri)
    csv = new_scans(tmp_path / "new.csv", rng, visits=(0.0, half_a_year))
    for arguments in ((), (f"--TIME_UNIT={unit}",)):
        assert run_here(folder, csv, *arguments) == 0
        np.testing.assert_allclose(predictions(folder)["landmark"], 0.5)


def test_the_folder_of_scans_is_the_runs_unless_it_is_given(rng, tmp_path, capsys):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng, folder="elsewhere")
    assert run_here(folder, csv) == 2
    assert f"found none at '{tmp_path / 'mri' / 'I0.nii.gz'}'" in capsys.readouterr().err
    assert run_here(folder, csv, f"--MRI_FOLDER={tmp_path / 'elsewhere'}") == 0


@pytest.mark.parametrize("resample", [True, False])
def test_scans_of_another_grid_are_treated_as_the_run_treats_them(rng, tmp_path, capsys, resample):
    mri = {"MRI_FOLDER": tmp_path / "mri"}
    folder = trained_run(tmp_path / "o", rng, covariate=False, RESAMPLE=resample, **mri)
    csv = new_scans(tmp_path / "new.csv", rng)
    write_scan(tmp_path / "mri" / "I1.nii.gz", rng, shape=(18, 16, 16))
    assert run_here(folder, csv) == (0 if resample else 2)
    assert resample or "I1: " in capsys.readouterr().err


def test_the_largest_scan_is_the_runs(rng, tmp_path, capsys):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MAX_VOXELS=4000, MRI_FOLDER=tmp_path / "mri")
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 2
    assert "4000" in capsys.readouterr().err  # 16 x 16 x 16 are 4096


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--TIME_UNIT=years"], ["TIME_UNIT: the run has months, received years"]),
        (["--RESAMPLE", "--MAX_VOXELS=9"], ["RESAMPLE: the run has off, received on", "MAX_VOXELS: the run has 134"]),
        (["--TARGET_SHAPE=24,24,24", "--SEED=3"], ["TARGET_SHAPE: the run has 16,16,16, received 24,24,24", "SEED: "]),
        (["--HORIZONS=1", "--TIME_UNIT=months"], ["HORIZONS: the run has 2.0,3.0,5.0, received 1.0"]),
        (["--COHORT_CSV=c.csv"], ["COHORT_CSV: the run has None, received c.csv"]),
    ],
)
def test_settings_that_contradict_the_run_are_all_named(rng, tmp_path, capsys, arguments, named):
    folder = trained_run(tmp_path / "o", rng, covariate=False, TIME_UNIT="months", MRI_FOLDER=tmp_path / "mri")
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng), *arguments) == 2
    message = capsys.readouterr().err
    assert [words for words in named if words not in message] == [] and f"({len(named)}):" in message
    assert "Leave them out" in message and not (folder / "predictions").exists()


def test_the_stages_own_settings_count_not_those_of_a_later_command(rng, tmp_path, features_by_no_network):
    """As `main.py --STAGES=report` with other settings leaves it: the record's settings are then the report's."""
    folder = trained_run(tmp_path / "o", rng, covariate=False, HORIZONS=(1.0, 4.0), MRI_FOLDER=tmp_path / "mri")
    record = json.loads((folder / "config.json").read_text())
    record["settings"] |= {"HORIZONS": [2.0], "WIDTH": 64}
    (folder / "config.json").write_text(json.dumps(record))
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 0
    assert {"survival_1.0", "survival_4.0"} <= set(predictions(folder).columns)
    assert features_by_no_network[0].WIDTH == WIDTH


def change_record(folder, change):
    record = json.loads((folder / "config.json").read_text())
    change(record)
    (folder / "config.json").write_text(json.dumps(record))


def test_another_network_of_the_same_settings_is_refused(rng, tmp_path, capsys):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    change_record(folder, lambda record: record["stages"]["tlstm"]["needs"].update({f"{LEFT_BY} cnn": "another"}))
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 2
    assert "the results of cnn: stage 1 was trained anew since" in capsys.readouterr().err


def test_the_file_of_the_runs_reference_is_not_needed(rng, tmp_path):
    (tmp_path / "mni.nii").write_text("read by main.py alone")
    settings = {"REFERENCE": tmp_path / "mni.nii", "MRI_FOLDER": tmp_path / "mri"}
    folder = trained_run(tmp_path / "o", rng, covariate=False, **settings)
    (tmp_path / "mni.nii").unlink()
    csv = new_scans(tmp_path / "new.csv", rng)
    assert run_here(folder, csv) == 0
    assert run_here(folder, csv, f"--REFERENCE={tmp_path / 'mni.nii'}") == 0
    assert run_here(folder, csv, f"--REFERENCE={tmp_path / 'other.nii'}") == 2


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda brain: None, 0, ""),
        (lambda brain: brain.update(centre=[30, 42, 30]), 0, "centre lies 12 mm from the usual one"),
        (lambda brain: brain.update(volume=1.5 * 64**3), 0, "of 0.67 times the usual size"),
        (lambda brain: brain.update(centre=[30, 60, 30]), 2, "centre lies 30 mm from the usual one"),
        (lambda brain: brain.update(volume=0.5 * 64**3), 2, "of 2.00 times the usual size"),
        (lambda brain: brain.update(centre=[30, 60]), 2, "expected the record of a run, received another"),
        (lambda brain: brain.pop("volume"), 2, "expected the record of a run, received another"),
    ],
)
def test_one_new_scan_is_compared_with_the_usual_brain_of_the_run(rng, tmp_path, capsys, change, code, words):
    """One scan alone can't say what is usual. Its brain fills the box of 64 mm, so its centre is at 30 mm."""
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    brain = {"volume": 64.0**3, "centre": [30.0, 30.0, 30.0]}
    change(brain)
    change_record(folder, lambda record: record["grid"].update(usual_brain=brain))
    csv = new_scans(tmp_path / "new.csv", rng, visits=(0.0,))
    csv.write_text("\n".join(csv.read_text().splitlines()[:2]))
    assert run_here(folder, csv) == code
    message = capsys.readouterr().err
    assert words in message and ("the usual" in message) == ("usual" in words)


@pytest.mark.parametrize("spoil", ["a file", "a dangling link"])
def test_where_predictions_cannot_be_written_is_refused_before_features(
    rng, tmp_path, capsys, features_by_no_network, spoil
):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    place = folder / "predictions"
    place.touch() if spoil == "a file" else place.symlink_to(tmp_path / "none")
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 2
    assert f"{place}: expected a folder, found a" in capsys.readouterr().err and features_by_no_network == []


@pytest.mark.parametrize(("need", "value"), [("WIDTH", 8), ("SEED", 5), (THE_INPUT, "another cohort")])
def test_two_stages_that_were_trained_apart_are_refused(rng, tmp_path, capsys, need, value):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    record = json.loads((folder / "config.json").read_text())
    record["stages"]["cnn"]["needs"][need] = value
    (folder / "config.json").write_text(json.dumps(record))
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 2
    message = capsys.readouterr().err
    assert "trained on the features of another stage 1" in message and f"{need}: " in message and str(value) in message


# ---- What the tables tell is refused first -----------------------------------------------------------
@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({}, ["age: the model was trained on it"]),
        ({"Age": 70.0}, ["age: the model was trained on it"]),
        ({"age": 70.0, "feature_32": 1.0, "log_hazard": 0.0}, ["feature_32: stage 1 makes", "log_hazard: stage 1"]),
    ],
)
def test_columns_are_refused_before_a_scan_is_read(rng, tmp_path, capsys, features_by_no_network, columns, named):
    folder = trained_run(tmp_path / "o", rng, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng, **columns)
    assert run_here(folder, csv) == 2
    message = capsys.readouterr().err
    assert [words for words in named if words not in message] == [] and f"{csv}: columns can't be used" in message
    assert not (folder / "cache").exists() and features_by_no_network == []


def test_columns_that_the_model_does_not_know_are_named(rng, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = trained_run(tmp_path / "o", rng, MRI_FOLDER=tmp_path / "mri")
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng, age=70.0, weight=60.0, site="Oslo")) == 0
    assert "not used, since the model was not trained on them: weight, site" in caplog.text


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"sex": "M"}, ["site: the model was trained on it; found no column of text of that name"]),
        ({"sex": 1, "site": [1, 2, 3, 4]}, ["sex: the model was trained on it; found no column of text", "site: "]),
        ({"sex": "M", "Site": "Oslo"}, ["site: the model was trained on it"]),
    ],
)
def test_text_that_the_model_needs_is_refused_before_a_scan_is_read(rng, tmp_path, capsys, columns, named):
    folder = trained_run(tmp_path / "o", rng, covariate=False, text=True, MRI_FOLDER=tmp_path / "mri")
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng, **columns)) == 2
    message = capsys.readouterr().err
    assert [words for words in named if words not in message] == [] and f"({len(named)}):" in message


def test_text_of_new_subjects_is_read_and_levels_that_training_had_not_are_told(rng, tmp_path, caplog):
    folder = trained_run(tmp_path / "o", rng, covariate=False, text=True, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng, sex=["M", "m", "F", None], site=["Bern", "Bern", " oslo", "Oslo"])
    assert run_here(folder, csv) == 0
    first, second = predictions(folder)["out_of_range"]
    assert "site has a level that training did not have, so it counts as missing: Bern" in first
    assert "site is missing at every visit and counts as the training subjects' most frequent level" in first
    assert "site" not in second and "sex" not in first + second
    assert "1 of 2 subjects: n1 (Bern)" in caplog.text


@pytest.mark.parametrize("content", ["{}", '{"stages": {"cnn": {"done": true}, "tlstm": {"done": false}}}'])
def test_no_finished_run_is_one_message(rng, tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    assert run_here(tmp_path, new_scans(tmp_path / "new.csv", rng)) == 2
    assert "expected a finished run, found none" in capsys.readouterr().err


# ---- Whom the model never saw ------------------------------------------------------------------------
def test_what_lies_beyond_training_is_told_by_subject(rng, tmp_path, caplog):
    folder = trained_run(tmp_path / "o", rng, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng, visits=(0.0, 1.0), age=[71.0, 840.0, 70.0, 71.0])
    assert run_here(folder, csv) == 0
    far, within = predictions(folder)["out_of_range"]
    assert far.startswith("age is far outside the training values 6") and far.endswith(": 840")
    assert "age" not in within
    assert "out of range: age is far outside the training values" in caplog.text
    assert "1 of 2 subjects: n1 (840)" in caplog.text
    csv = new_scans(tmp_path / "late.csv", rng, visits=(0.5, 3.0), age=np.nan)
    assert run_here(folder, csv) == 0
    for text in predictions(folder, "late")["out_of_range"]:
        for words in (
            "age is missing at every visit",
            "the first visit is not at 0: 0.50",
            "later than any visit of training",
        ):
            assert words in text


def test_a_run_of_an_earlier_version_predicts_and_says_what_it_cannot_know(rng, tmp_path, caplog):
    folder = trained_run(tmp_path / "o", rng, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng, age=70.0)
    assert run_here(folder, csv) == 0
    expected = predictions(folder)
    predictor = tlstm.load(folder / "tlstm")
    without = dataclasses.replace(predictor, prepare=dataclasses.replace(predictor.prepare, seen=None))
    record = json.loads((folder / "config.json").read_text())
    tlstm.save(without, folder / "tlstm")
    record["stages"]["tlstm"]["files"] = {}
    (folder / "config.json").write_text(json.dumps(record))
    assert run_here(folder, csv) == 0
    old = predictions(folder)
    pd.testing.assert_frame_equal(old.drop(columns="out_of_range"), expected.drop(columns="out_of_range"))
    assert old["out_of_range"].str.contains("saved without its training ranges").all()
    assert "saved without its training ranges" in caplog.text


# ---- The rate of progress ----------------------------------------------------------------------------
POPULATION = Population(mean_rate=0.7, mean_rate_error=0.02, rate_sd=0.4, noise=0.15, mean_level=0.1)


def with_progress(monkeypatch, values):
    """Stage 1 gives `progress` too, these numbers in the order of the scans."""
    features = predict._features
    monkeypatch.setattr(predict, "_features", lambda *arguments: features(*arguments).assign(progress=values))


def finish_features(folder, population=POPULATION):
    """What the stage `features` leaves in the folder and in the record."""
    population.save(folder / POPULATION_FILE)
    record = json.loads((folder / "config.json").read_text())
    record["stages"]["features"] = {"done": True, "files": list_files(folder, [POPULATION_FILE])}
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize("gap", [0.5, 2.0])
def test_a_new_subjects_rate_is_given_with_its_interval(rng, tmp_path, monkeypatch, caplog, gap):
    """n1 grows by 1 over the gap, n2 has one visit: the training subjects' rate."""
    caplog.set_level("INFO")
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng, visits=(0.0, gap))
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]))
    finish_features(folder)
    with_progress(monkeypatch, [3.0, 4.0, 9.0])
    assert run_here(folder, csv) == 0
    table = predictions(folder)
    share = 0.16 / (0.16 + 0.15**2 / (gap**2 / 2))
    rate = 0.7 + share * (1 / gap - 0.7)
    np.testing.assert_allclose(table["rate"].astype(float), [rate, 0.7])
    reach = 1.959964 * np.sqrt([(1 - share) * 0.16 + (1 - share) ** 2 * 0.0004, 0.16 + 0.0004])
    np.testing.assert_allclose(table["rate_high"].astype(float) - table["rate"].astype(float), reach, rtol=1e-6)
    assert list(table.columns)[-4:] == ["rate", "rate_low", "rate_high", "out_of_range"]
    assert f"n1: rate {rate:.2f} (" in caplog.text and "1 of 2 subjects have one visit" in caplog.text


def test_without_what_the_training_subjects_tell_there_are_no_rates(rng, tmp_path, monkeypatch, caplog):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    csv = new_scans(tmp_path / "new.csv", rng)
    with_progress(monkeypatch, [3.0, 4.0, 9.0, 9.5])
    assert run_here(folder, csv) == 0
    assert (predictions(folder)[["rate", "rate_low", "rate_high"]] == "").all(axis=None)
    assert (
        f"no rates of progress: the run's training subjects did not tell how rates differ (no {folder}" in caplog.text
    )


def test_a_run_without_progress_has_no_columns_of_rates(rng, tmp_path):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 0
    assert "rate" not in predictions(folder).columns


def test_a_population_that_was_changed_is_refused(rng, tmp_path, monkeypatch, capsys):
    folder = trained_run(tmp_path / "o", rng, covariate=False, MRI_FOLDER=tmp_path / "mri")
    finish_features(folder)
    dataclasses.replace(POPULATION, noise=0.01).save(folder / POPULATION_FILE)
    with_progress(monkeypatch, [3.0, 4.0, 9.0, 9.5])
    assert run_here(folder, new_scans(tmp_path / "new.csv", rng)) == 2
    assert f"{POPULATION_FILE}" in (message := capsys.readouterr().err) and "is not as its run left it" in message


def test_many_new_subjects_are_not_all_on_the_screen(caplog, tmp_path):
    caplog.set_level("INFO")
    table = pd.DataFrame({"subject": np.repeat([f"n{row}" for row in range(8)], 2), "visit_time": [0.0, 1.0] * 8})
    POPULATION.save(tmp_path / POPULATION_FILE)
    rates = predict._rates(tmp_path / POPULATION_FILE, table.assign(progress=table["visit_time"]))
    assert list(rates["subject"]) == [f"n{row}" for row in range(8)] and np.ptp(rates["rate"]) == 0
    assert "n4: rate" in caplog.text and "n5: rate" not in caplog.text
    assert "the rates of 3 more subjects" in caplog.text
