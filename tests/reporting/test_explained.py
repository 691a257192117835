"""Whom a run explains, and what it does not explain twice."""

from types import SimpleNamespace

import pandas as pd
import pytest

from config import read_config
from reporting.explained import Explanations, check_choices
from runs.errors import InputError

TEST = pd.DataFrame({"scan": ["a1", "b/1", "c1"], "subject": ["a", "b", "c"]})


def test_what_a_stopped_run_has_explained_is_left_alone(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(Explanations, "__init__", lambda self: None)
    monkeypatch.setattr(Explanations, "_chosen", lambda self: [(0, "highest"), (1, "asked for"), (2, "lowest")])
    monkeypatch.setattr(Explanations, "_explain_scan", lambda self, row, why, folder: done.append((row, why, folder)))
    monkeypatch.setattr(Explanations, "_explain_cohort", lambda self, folder: done.append(folder))
    one = Explanations()
    one.folder, one.test, one.config = tmp_path, TEST, SimpleNamespace(EXPLAIN_COHORT=3)
    for whole, half in (("explain/a1/metrics.json", "explain/c1/shap.nii.gz"), ("x", "explained_cohort/mean.png")):
        for name in (whole, half):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    one.write()
    assert [entry[:2] for entry in done[:2]] == [(1, "asked for"), (2, "lowest")]
    assert done[0][2].parent == tmp_path / "explain" and done[1][2] == tmp_path / "explain" / "c1"
    assert done[2:] == [tmp_path / "explained_cohort"]
    (tmp_path / "explained_cohort" / "regions.csv").touch()
    one.write()
    assert len(done) == 5


def test_whom_the_test_part_does_not_have_is_named():
    check_choices(read_config(["--EXPLAIN=highest,b", "--SAMPLE_INDEX=2"]), TEST)
    with pytest.raises(InputError, match=r"\(2\):\n  EXPLAIN: .* received 'd'\n  SAMPLE_INDEX: .* received 3"):
        check_choices(read_config(["--EXPLAIN=d,a", "--SAMPLE_INDEX=3"]), TEST)
