from pathlib import Path
from typing import get_args

import pytest

from cohort.courses import KINDS
from config import Config, read_config
from runs.errors import InputError

FROM_THE_ORIGINAL = (
    "TRAIN_CSV VAL_CSV TEST_CSV MRI_FOLDER OUTPUT_DIR TARGET_SHAPE DROPOUT_RATE BATCH_SIZE LEARNING_RATE EPOCHS SEED "
    "TEST_RATIO VAL_TRAIN_RATIO SHAP_BACKGROUND_SIZE SHAP_NSAMPLES GRAD_CAM_LAYER"
).split()
OURS = (
    "COHORT_CSV LOSS WIDTH NORM RISK_SET VISIT_ORDER_WEIGHT POOL LINK NUM_SEEDS HORIZONS TIME_UNIT STAGES "
    "SIM_SUBJECTS SIM_NUISANCE"
).split()


def test_every_promised_setting_is_there_and_described():
    assert set(FROM_THE_ORIGINAL + OURS) <= set(Config.model_fields)
    assert [name for name, field in Config.model_fields.items() if not field.description] == []
    assert [name for name in Config.model_fields if not name.isupper()] == []


def test_the_command_line_overrides_a_default():
    config = read_config(["--EPOCHS", "3", "--TARGET_SHAPE=32,40,32", "--COHORT_CSV", "a b.csv", "--RESAMPLE", "on"])
    assert (config.EPOCHS, config.TARGET_SHAPE, config.RESAMPLE) == (3, (32, 40, 32), True)
    assert config.COHORT_CSV == Path("a b.csv")
    assert read_config().EPOCHS == Config.model_fields["EPOCHS"].default


def test_a_switch_needs_no_value():
    config = read_config(["--VERIFY", "--EPOCHS", "3", "--LINK", "off", "--RESAMPLE"])
    assert (config.VERIFY, config.EPOCHS, config.LINK, config.RESAMPLE) == (True, 3, False, True)


def test_the_environment_is_not_read(monkeypatch):
    monkeypatch.setenv("EPOCHS", "99")
    assert read_config().EPOCHS != 99


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(InputError) as error:
        read_config(["--EPOCHS", "0", "--WIDTH=x", "--HORIZONS", "3,2", "--LOSS", "mse", "--TARGET_SHAPE", "9,9,9"])
    told = str(error.value)
    for name in ("EPOCHS", "WIDTH", "HORIZONS", "LOSS", "TARGET_SHAPE.0"):
        assert f"  {name}: expected" in told
    assert "'cox' or 'rank'" in told and "Received: 'mse'" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--TRAIN_CSV", "a.csv"], "expected all three or none, received TRAIN_CSV"),
        (["--COHORT_CSV=a", "--TRAIN_CSV=a", "--VAL_CSV=a", "--TEST_CSV=a"], "COHORT_CSV: expected unset"),
        (["--BATCH_SIZE", "1"], "expected 2 or more with NORM=batch"),
        (["--STAGES", "cnn,nothing"], "STAGES.1: expected 'cnn', 'features'"),
        (["--HORIZONS", "[1"], "Wrong settings"),
        (["--LEARNING_RATE", "nan"], "LEARNING_RATE: expected"),
        (["--SIM_VISITS", "7,2"], "SIM_VISITS: expected the fewest visits, then the most. Received: [7, 2]"),
        (["--SIM_VISITS", "0,3"], "SIM_VISITS.0: expected greater than or equal to 1"),
        (["--SIM_VISITS=2,51"], "SIM_VISITS.1: expected less than or equal to 50"),
        (["--SIM_VISITS=3"], "SIM_VISITS"),
        (["--SIM_HISTORY=square"], "SIM_HISTORY: expected 'linear', 'accelerating'"),
    ],
)
def test_a_wrong_setting_is_told(arguments, message):
    with pytest.raises(InputError) as error:
        read_config(arguments)
    assert message in str(error.value)


def test_the_simulated_histories_are_those_that_can_be_drawn():
    assert list(get_args(Config.model_fields["SIM_HISTORY"].annotation)) == list(KINDS)
    assert read_config(["--SIM_VISITS", "2,7", "--SIM_HISTORY=jumping"]).SIM_VISITS == (2, 7)
    assert read_config(["--SIM_VISITS=[1,1]"]).SIM_VISITS == (1, 1)


def test_an_unknown_setting_ends_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        read_config(["--EPOCH", "3"])
    assert stop.value.code == 2 and "--EPOCH" in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        read_config(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert [name for name in Config.model_fields if f"--{name}" not in told] == []


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("name", ["COHORT_CSV", "OUTPUT_DIR", "CACHE_DIR", "ATLAS"])
def test_a_blank_path_is_named(name, blank):
    with pytest.raises(InputError, match=f"{name}: expected a path. Received: '"):
        read_config([f"--{name}={blank}"])


def test_files_and_folders_that_are_the_other_are_named_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as error:
        read_config(
            [
                *(f"--{name}={tmp_path}" for name in ("COHORT_CSV", "FEATURES", "REFERENCE", "ATLAS", "PREDICT_CSV")),
                *(f"--{name}={tmp_path / 'file'}" for name in ("MRI_FOLDER", "OUTPUT_DIR", "CACHE_DIR")),
            ]
        )
    message = str(error.value)
    assert message.startswith("Wrong settings (8):")
    for name in ("COHORT_CSV", "FEATURES", "REFERENCE", "ATLAS", "PREDICT_CSV"):
        assert f"{name}: expected a file, received the folder {tmp_path}\n" in message
    for name in ("MRI_FOLDER", "OUTPUT_DIR", "CACHE_DIR"):
        assert f"{name}: expected a folder, received the file {tmp_path / 'file'}\n" in message


@pytest.mark.parametrize("arguments", [["--MRI_FOLDER=mri"], ["--VERIFY", "--MRI_FOLDER", "data"]])
def test_a_folder_of_scans_without_their_table_is_refused(arguments):
    """The simulated cohort was not meant."""
    with pytest.raises(InputError, match="MRI_FOLDER: expected the table of its scans too"):
        read_config(arguments)
    assert read_config([*arguments, "--COHORT_CSV=c.csv"]).MRI_FOLDER
    assert read_config(arguments, "predict.py").MRI_FOLDER
