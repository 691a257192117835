"""Cross-validation without a network: the runs are a function that writes what a run would."""

import json

import numpy as np
import pandas as pd
import pytest
from programs import SMALL, digests, run

import main
from cohort import tables
from cohort.splits import PARTS, split_folds
from cohort.teachers import no_teachers
from config import read_config
from reporting.terminal import folds_table
from runs.errors import InputError
from survival.estimates import concordance
from survival.predictor import curve_years, write_predictions

HORIZONS = (1.0, 2.0)


@pytest.fixture
def cohort(rng):
    """42 subjects with 2 visits each; half of them with an event."""
    num_subjects = 42
    table = pd.DataFrame({"subject": np.repeat([f"s{number:02}" for number in range(num_subjects)], 2)})
    table["scan"] = [f"scan{row}" for row in range(len(table))]
    table["visit_time"] = np.tile([0.0, 0.5], num_subjects)
    table["time"] = np.repeat(rng.uniform(1.0, 5.0, num_subjects).round(3), 2)
    table["event"] = np.repeat(np.arange(num_subjects) % 2 == 0, 2)
    return table.assign(nifti_path="/volumes/" + table["scan"] + ".nii", age=rng.normal(70, 5, len(table)).round(1))


class Runs:
    """In the place of main.py: features and predictions from a risk that is known, on a scale of the fold's own."""

    def __init__(self, stop_at=0):
        self.settings, self.stop_at = [], stop_at

    def __call__(self, program, settings):
        assert program == "main.py"
        self.settings.append(settings)
        if len(self.settings) == self.stop_at:
            raise SystemExit(143)
        config = read_config(
            [f"--{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in settings.items()]
        )
        paths = {part: getattr(config, f"{part.upper()}_CSV") for part in PARTS}
        written = {}
        for part, path in paths.items():
            table = pd.read_csv(path).rename(columns={column: name for name, column in tables.ON_DISK.items()})
            table = table.dropna(subset="event").astype({"event": int})  # the others are in no table of features
            table["log_hazard"] = risk_of(table) + 10 * int(config.OUTPUT_DIR.name)
            tables.write_table(table.drop(columns="nifti_path"), config.OUTPUT_DIR / "features" / f"{part}.parquet")
            last = tables.last_visits(table).assign(split=part, landmark=0.5)
            years = curve_years(config.HORIZONS)
            curves = np.exp(-years * np.exp(risk_of(last).to_numpy()[:, None]) / 4)
            last = last.assign(
                time=last["time"] - 0.5, **{f"survival_{year}": curves[:, i] for i, year in enumerate(years)}
            )
            written[part] = last.drop(columns=["scan", "visit_time", "nifti_path", "age"])
        write_predictions(pd.concat(written.values()), config.OUTPUT_DIR / "tlstm" / "predictions.csv")


def risk_of(table):
    """A risk that is often right, and changes from visit to visit."""
    return np.sin(17 * table["time"]) - 0.7 * table["time"] + table["visit_time"] * np.cos(5 * table["time"])


def settings_of(tmp_path, *arguments):
    settings = "--FOLDS=3 --HORIZONS=1,2 --NUM_RESAMPLES=100 --VAL_TRAIN_RATIO=0.25".split()
    return read_config([f"--OUTPUT_DIR={tmp_path}", *settings, *arguments])


def test_settings_that_mean_nothing_are_named_at_once(tmp_path):
    wrong = ["--TRAIN_CSV=a", "--VAL_CSV=a", "--TEST_CSV=a", "--STAGES=cnn,report", "--SAMPLE_INDEX=1", "--LANDMARKS=1"]
    with pytest.raises(InputError) as error:
        main.check_folds(settings_of(tmp_path, *wrong, "--FOLDS=1"))
    for told in ("(5)", "FOLDS: expected 2", "TRAIN_CSV", "missing features, tlstm", "SAMPLE_INDEX", "LANDMARKS"):
        assert told in str(error.value)
    main.check_folds(settings_of(tmp_path))
    main.check_folds(settings_of(tmp_path, *wrong, "--FOLDS=0"))


def test_a_folds_run_has_its_own_split_and_folder_and_shares_the_cache(cohort, tmp_path):
    runs = Runs()
    config = settings_of(tmp_path, "--EXPLAIN=highest,s00,s01,s02", "--EPOCHS=5")
    main.cross_validate(config, cohort, teachers=no_teachers(), truth=None, run=runs)
    assert [one["OUTPUT_DIR"] for one in runs.settings] == [str(tmp_path / "folds" / str(fold)) for fold in (1, 2, 3)]
    assert {one["CACHE_DIR"] for one in runs.settings} == {str(tmp_path / "cache")}
    assert {one["EPOCHS"] for one in runs.settings} == {5}
    explained = [name for one in runs.settings for name in one["EXPLAIN"]]
    assert sorted(explained) == ["highest"] * 3 + ["s00", "s01", "s02"]
    for one in runs.settings:
        assert "FOLDS" not in one and "COHORT_CSV" not in one
        test = pd.read_csv(one["TEST_CSV"])
        assert set(one["EXPLAIN"]) - {"highest"} <= set(test["subjectid"])
        assert list(test.columns) == [*tables.ON_DISK.values(), "nifti_path", "age"]


@pytest.mark.parametrize("unit", ["years", "months"])
def test_teachers_teach_in_every_fold_and_are_tested_in_none(cohort, tmp_path, unit):
    runs, cohort["nifti_path"] = Runs(), str(tmp_path / "scan.nii")
    (tmp_path / "scan.nii").touch()
    rows = [("t1", "x1", 0.0), ("t1", "x2", 0.75), ("t2", "x3", 0.0)]
    teachers = pd.DataFrame(rows, columns=["subject", "scan", "visit_time"]).assign(nifti_path=cohort["nifti_path"][0])
    for folder, others in (("with", teachers), ("without", teachers[:0])):
        config = settings_of(tmp_path / folder, f"--TIME_UNIT={unit}", "--NUM_RESAMPLES=100")
        main.cross_validate(config, cohort, teachers=others, truth=None, run=runs)
    for one, alone in zip(runs.settings[:3], runs.settings[3:], strict=True):
        read, without = (
            tables.read_parts(
                {part: settings[f"{part.upper()}_CSV"] for part in PARTS}, mri_folder=tmp_path, time_unit=unit
            )
            for settings in (one, alone)
        )
        pd.testing.assert_frame_equal(read[1], teachers)
        assert without[1].empty
        for part in PARTS:
            pd.testing.assert_frame_equal(read[0][part], without[0][part])


def test_a_stopped_fold_stops_all(cohort, tmp_path):
    runs = Runs(stop_at=2)
    with pytest.raises(SystemExit):
        main.cross_validate(settings_of(tmp_path), cohort, teachers=no_teachers(), truth=None, run=runs)
    assert len(runs.settings) == 2 and not (tmp_path / "metrics.json").exists()


def test_pooled_and_per_fold_figures_are_right(cohort, tmp_path):
    """Against the C-index by hand: each fold's is of its own subjects; pooled, a fold's own scale does not matter."""
    found = main.cross_validate(settings_of(tmp_path), cohort, teachers=no_teachers(), truth=None, run=Runs())
    split = split_folds(cohort, 3, val_train_ratio=0.25, seed=0)
    centred = []
    for fold, parts in zip(found["each"], split, strict=True):
        last = {name: tables.last_visits(part) for name, part in parts.items()}
        test, risk = last["test"], risk_of(last["test"])
        expected = concordance(risk.to_numpy(), test["time"].to_numpy() - 0.5, test["event"].to_numpy())
        assert fold["cnn"]["c_index"] == pytest.approx(expected) == fold["tlstm"]["c_index"]
        assert (fold["cnn"]["n"], fold["cnn"]["events"]) == (14, 7)
        centred.append(test.assign(risk=risk - risk_of(last["train"]).median()))
    everyone = pd.concat(centred)
    columns = (everyone["risk"], everyone["time"] - 0.5, everyone["event"])
    pooled = found["pooled"]["cnn"]["test"]
    assert pooled["n"] == 42 and pooled["events"] == 21
    assert pooled["c_index"]["value"] == pytest.approx(concordance(*(column.to_numpy() for column in columns)))
    values = [fold["cnn"]["c_index"] for fold in found["each"]]
    assert found["mean"]["cnn"]["c_index"] == {
        "value": pytest.approx(np.mean(values)),
        "sd": pytest.approx(np.std(values, ddof=1)),
        "folds": 3,
    }
    assert set(found["pooled"]) == {"cnn", "tlstm", "baselines"} and set(found["pooled"]["cnn"]) == {"test"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"folds": json.loads(json.dumps(found))}
    told = folds_table(found)
    assert "42 test subjects, 21 of them" in told
    assert f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})" in told


def test_other_figures_of_the_folder_stay(cohort, tmp_path):
    (tmp_path / "metrics.json").write_text('{"cnn": 1, "folds": 2}')
    main.cross_validate(settings_of(tmp_path), cohort, teachers=no_teachers(), truth=None, run=Runs())
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept["cnn"] == 1 and set(kept["folds"]) == {"pooled", "each", "mean"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_whole_pipeline_by_folds_with_cross_fitting(tmp_path):
    """Real runs, and the same command again: nothing that is finished is repeated, and the figures are the same."""
    folder = tmp_path / "outputs"
    stages = '--STAGES=["cnn","features","tlstm"]'
    arguments = [*SMALL, f"--OUTPUT_DIR={folder}", "--EPOCHS=1", "--FOLDS=2", "--CROSS_FIT=2", stages]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr[-3000:]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["folds"]["pooled"]["tlstm"]["test"]["n"] == 24
    assert metrics["folds"]["pooled"]["oracle"]["longitudinal"]["value"] > 0.5
    tested = []
    for fold in ("1", "2"):
        own = json.loads((folder / "folds" / fold / "metrics.json").read_text())
        each = metrics["folds"]["each"][int(fold) - 1]
        assert each["tlstm"]["c_index"] == pytest.approx(own["tlstm"]["test"]["c_index"]["value"])
        tested += sorted(set(pd.read_csv(folder / "folds" / fold / "splits" / "test.csv")["subjectid"]))
        for name in ("cnn/history.tfevents", "cnn/crossfit/2/history.tfevents", "tlstm/history.tfevents"):
            assert (folder / "folds" / fold / name).stat().st_size > 0
        main, cross = (
            pd.read_parquet(folder / "folds" / fold / name)
            for name in ("features/train.parquet", "cnn/crossfit/1/features.parquet")
        )
        assert list(main["imageid"]) == list(cross.loc[cross["part"] == "train", "scan"])
    assert sorted(tested) == sorted(set(tested)) and len(tested) == 24
    before = digests(folder / "folds")
    again = run(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("cnn: done already") == again.stderr.count("tlstm: done already") == 2
    after = digests(folder / "folds")
    assert [
        name for name in before if before[name] != after[name] and not name.endswith((".html", "config.json"))
    ] == []
    assert json.loads((folder / "metrics.json").read_text()) == metrics
