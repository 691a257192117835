"""Risk sets: whole subjects, each once, with events everywhere."""

import numpy as np

from training.risk_sets import draw_risk_sets


def test_a_part_knows_its_last_scans_and_the_time_left(parts):
    part = parts["train"]
    assert part.last.tolist() == [False, True] * 20
    assert part.outcome.subject.tolist() == list(np.repeat(range(20), 2))
    np.testing.assert_allclose(part.outcome.time[0::2] - part.outcome.time[1::2], 1.0, atol=1e-6)


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
