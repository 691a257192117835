"""Whole runs on simulated cohorts with other visits than the default's."""

import pytest
from programs import SMALL, run

from runs.files import read_json


@pytest.mark.slow
def test_a_run_with_single_visits_comes_to_its_end(tmp_path):
    stages = "--STAGES=cnn,features,tlstm,report"
    done = run(*SMALL, "--SIM_SUBJECTS=40", "--SIM_VISITS=1,1", stages, f"--OUTPUT_DIR={tmp_path}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nobody has two visits" in done.stderr
    assert set(read_json(tmp_path / "metrics.json")["oracle"]) == {"last_scan", "longitudinal"}
