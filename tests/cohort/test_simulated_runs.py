"""Whole runs on simulated cohorts with other visits and histories than the default's."""

import pytest
from programs import SMALL, run

from runs.files import read_json


@pytest.mark.slow
def test_a_run_with_single_visits_comes_to_its_end_and_another_history_does_it_anew(tmp_path):
    arguments = [*SMALL, "--SIM_SUBJECTS=40", "--STAGES=cnn,features,tlstm,report", f"--OUTPUT_DIR={tmp_path}"]
    single = run(*arguments, "--SIM_VISITS=1,1")
    assert single.returncode == 0, single.stderr[-2000:]
    assert "nobody has two visits" in single.stderr
    before = read_json(tmp_path / "metrics.json")["oracle"]
    several = run(*arguments, "--SIM_VISITS=1,3", "--SIM_HISTORY=jumping")
    assert several.returncode == 0, several.stderr[-2000:]
    assert "cnn: begins" in several.stderr
    after = read_json(tmp_path / "metrics.json")["oracle"]
    assert set(before) == set(after) == {"last_scan", "longitudinal"} and before != after
