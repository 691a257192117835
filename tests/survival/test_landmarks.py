"""The visits' arrangement, and histories cut at landmarks: who is event-free, from which visit, edge cases."""

import numpy as np
import pytest
from samples import visits_table

from runs.errors import InputError
from survival.landmarks import Visits, check_landmarks, cut_at_landmarks, landmark_grid


def test_visits_are_in_time_major_order_longest_first():
    table = visits_table()
    visits = Visits.of(table)
    assert visits.sizes.tolist() == [3, 2, 1]
    assert visits.order.tolist() == [0, 4, 3, 1, 5, 2]
    subject, visit = np.array([0, 1, 2, 0, 2, 0]), np.array([0, 0, 0, 1, 1, 2])
    assert visits.order[visits.row(subject, visit)].tolist() == [0, 3, 4, 1, 5, 2]


def test_landmarks_hold_who_is_event_free_and_cut_histories_there():
    table = visits_table()
    rows = cut_at_landmarks(table, Visits.of(table), (0.0, 1.0, 1.5, 3.5))
    assert rows.stratum.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert rows.subject.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]  # r has its event at 1.5, q ends at 3
    assert rows.visit.tolist() == [0, 0, 0, 1, 0, 1, 1, 0, 2]
    assert rows.time.tolist() == [4.0, 3.0, 1.5, 3.0, 2.0, 0.5, 2.5, 1.5, 0.5]


def test_nobody_is_predicted_before_the_first_visit():
    table = visits_table().query("visit_time > 0")
    rows = cut_at_landmarks(table, Visits.of(table), (0.0, 0.6))
    assert rows.subject.tolist() == [0]


def test_last_visits_are_the_landmarks_without_a_grid():
    table = visits_table()
    rows = cut_at_landmarks(table, Visits.of(table))
    assert rows.year.tolist() == [2.0, 0.0, 1.0]
    assert rows.time.tolist() == [2.0, 3.0, 0.5]
    unknown = table.drop(columns=["time", "event"])
    assert np.isnan(cut_at_landmarks(unknown, Visits.of(unknown)).time).all()


@pytest.mark.parametrize(("subject", "end", "years"), [("p", 2.0, [0.5, 0.0, 1.0]), ("q", 0.0, [2.0, 1.0])])
def test_a_visit_at_the_end_is_history_and_no_landmark(subject, end, years):
    """Of p the visit before is the landmark; q, whose only visit it is, has none."""
    table = visits_table()
    table.loc[table["subject"] == subject, ["time", "event"]] = [end, False]
    rows = cut_at_landmarks(table, Visits.of(table))
    assert rows.year.tolist() == years and (rows.time > 0).all()
    at_end = cut_at_landmarks(table, Visits.of(table), (end,))
    assert subject not in np.array(["p", "q", "r"])[at_end.subject]


def test_grid_steps_from_0_and_holds_what_is_wanted(rng):
    table = visits_table()
    assert landmark_grid({"t": table}, (0.7, 1.2), 0.5) == (0.0, 0.5, 0.7, 1.0, 1.2)
    assert landmark_grid({"t": table}, (), 0.5) == ()
    with pytest.raises(InputError, match=r"landmark 9 in the t: 0 at risk"):
        landmark_grid({"t": table}, (0.0, 9.0), 0.5)


def test_uneven_last_visits_are_warned_of(caplog):
    landmark_grid({"t": visits_table()}, (), 0.5)
    assert "Set LANDMARKS" in caplog.text


@pytest.mark.parametrize(
    ("shift", "landmark", "advice"),
    [
        (0.0, 24.0, "the last event is at 4.00 years: choose an earlier one"),  # 2 years in months
        (0.0, 4.0, "the last event is at 4.00 years: choose an earlier one"),
        (64.0, 6.5, "the first visits begin at 64.00 years: choose a later one"),  # ages
        (0.4, 0.1, "the first visits begin at 0.40 years: choose a later one"),
    ],
)
def test_a_refused_landmark_says_in_which_direction_another_lies(shift, landmark, advice):
    table = visits_table()
    table[["visit_time", "time"]] += shift
    with pytest.raises(InputError, match="they are years, whatever TIME_UNIT is") as error:
        check_landmarks({"table": table}, (landmark,))
    assert f"landmark {landmark:g} in the table: 0 at risk, 0 with an event; {advice}" in str(error.value)


def test_a_landmark_of_nobodys_event_says_so():
    with pytest.raises(InputError, match="3 at risk, 0 with an event; nobody has an event"):
        check_landmarks({"table": visits_table().assign(event=False)}, (0.0,))


@pytest.mark.parametrize(("window", "num_parts", "largest"), [(4.0, 1, 3.99), (12.0, 1, 3.99), (1.7, 2, 1.49)])
def test_a_window_after_the_follow_up_is_refused_with_the_largest(window, num_parts, largest):
    """Of two folds, each needs a subject that was followed longer; the follow-ups are 4, 1.5 and 1.4 years."""
    table = visits_table()
    table.loc[table["subject"] == "q", "time"] = 1.4
    bounds = {"num_parts": num_parts, "windows": (window,)}
    with pytest.raises(InputError, match="and as many beyond its window") as error:
        landmark_grid({"table": table}, (0.0,), 0.5, **bounds)
    assert f"window {window:g}; the largest that the data bear is {largest}\n" in str(error.value)
    assert landmark_grid({"table": table}, (0.0,), 0.5, num_parts=num_parts, windows=(largest,)) == (0.0,)
