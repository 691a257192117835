"""Risk sets: whole subjects, each once, with events everywhere."""

import numpy as np
import pandas as pd
import pytest

from training.risk_sets import Scans, draw_risk_sets


def test_a_part_knows_its_last_scans_and_the_time_left(parts):
    part = parts["train"]
    assert part.last.tolist() == [False, True] * 20
    assert part.outcome.subject.tolist() == list(np.repeat(range(20), 2))
    np.testing.assert_allclose(part.outcome.time[0::2] - part.outcome.time[1::2], 1.0, atol=1e-6)


@pytest.mark.parametrize("end", [1.0, 0.1 + 0.2])
def test_a_scan_without_time_left_is_not_learned_from_nor_a_last_scan(end):
    visit_time = [0.0, end, 0.0, 0.5, 0.3]
    rows = zip("aabbc", ["a1", "a2", "b1", "b2", "c1"], visit_time, [end, end, 2.0, 2.0, 0.3], strict=True)
    table = pd.DataFrame(rows, columns=["subject", "scan", "visit_time", "time"])
    scans = Scans.of(table.assign(event=table["subject"] == "b", cache_entry=table["scan"]))
    assert scans.entries == scans.scan.tolist() == ["a1", "b1", "b2"]
    assert scans.outcome.subject.tolist() == [0, 1, 1] and scans.last.tolist() == [True, False, True]
    assert (scans.outcome.time > 0).all()


def test_risk_sets_are_whole_subjects_each_once_with_events_everywhere(parts):
    part = parts["train"]
    sets = draw_risk_sets(part, 6, np.random.default_rng(0))
    assert sorted(np.concatenate(sets)) == list(range(40))
    assert [len(set(part.outcome.subject[rows])) for rows in sets] == [6, 6, 6, 2]
    for rows in sets:
        assert set(rows) == set(np.flatnonzero(np.isin(part.outcome.subject, part.outcome.subject[rows])))
        assert part.outcome.event[rows].any()
    assert [4 <= len(set(part.outcome.subject[rows][part.outcome.event[rows]])) <= 5 for rows in sets[:3]] == [True] * 3
    again = draw_risk_sets(part, 6, np.random.default_rng(0))
    other = draw_risk_sets(part, 6, np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(sets, again, strict=True))
    assert any((a != b).any() for a, b in zip(sets, other, strict=True))
