"""Statuses beyond 1: refused, or named as competing events that count as censoring at `time`."""

import pytest

from cohort import tables
from runs.errors import InputError

HEADER = "subjectid,visit_time,time,convert_status,x\n"
TWO, THREE = ("conversion", "death"), ("relapse", "death", "transplant")


def rows(*states):
    """Two visits of a subject for each state."""
    return HEADER + "".join(f"s{n},{visit},{3 + n},{state},{n}\n" for n, state in enumerate(states) for visit in (0, 1))


@pytest.mark.parametrize(
    ("states", "names", "said"),
    [
        ((0, 1, 2, 2), TWO, ["2 subjects with death (convert_status 2)"]),
        (
            (3, 1, 0, 2),
            THREE,
            ["1 subjects with death (convert_status 2), 1 subjects with transplant (convert_status 3)"],
        ),
        ((3.0, 1, 0, 3), THREE, ["2 subjects with transplant (convert_status 3)"]),
    ],
)
def test_a_competing_event_counts_as_censored_and_is_counted(write, caplog, states, names, said):
    table = tables.read_features(write(rows(*states)), reading=tables.Reading(event_names=names))
    assert table["event"].tolist() == [state == 1 for state in states for _ in range(2)]
    assert [
        words for words in (*said, f"when {names[0]} would come", "overstates its risk") if words not in caplog.text
    ] == []


@pytest.mark.parametrize("names", [(), TWO])
def test_without_a_competing_event_nothing_is_said(write, caplog, names):
    table = tables.read_features(write(rows(0, 1, "true", "False")), reading=tables.Reading(event_names=names))
    assert table["event"].tolist() == [False, False, True, True, True, True, False, False] and caplog.text == ""


@pytest.mark.parametrize(
    ("names", "expected", "mend"),
    [
        ((), "expected 0 or 1", "EVENT_NAMES=first,second"),
        (("relapse",), "expected 0 or 1", "EVENT_NAMES=relapse,another"),
        (TWO, "expected 0 to 2", "EVENT_NAMES=conversion,death,another"),
    ],
)
def test_a_status_beyond_the_names_is_refused_and_the_setting_named(write, names, expected, mend):
    with pytest.raises(InputError) as error:
        tables.read_features(write(rows(0, 1, 2, 3)), reading=tables.Reading(event_names=names))
    assert f"convert_status: {expected}, received '3'" in str(error.value) and mend in str(error.value)


@pytest.mark.parametrize("state", [1.5, -1, "x"])
def test_what_is_no_status_is_refused_with_names_too(write, state):
    with pytest.raises(InputError, match="expected 0 to 2"):
        tables.read_features(write(rows(0, 1, state)), reading=tables.Reading(event_names=TWO))


@pytest.mark.parametrize("late_visits", ["refuse", "drop"])
def test_a_visit_at_a_competing_event_is_late(write, late_visits, caplog):
    reading = tables.Reading(event_names=TWO, late_visits=late_visits)
    text = HEADER + "a,0,2,2,1\na,2,2,2,1\nb,0,3,1,2\nc,0,4,0,2\nc,4,4,0,2\n"
    if late_visits == "refuse":
        with pytest.raises(InputError, match=r"\(1\):\n  row 3: a visit at or after the subject's `time`"):
            tables.read_features(write(text), reading=reading)
    else:
        assert tables.read_features(write(text), reading=reading)["visit_time"].tolist() == [0, 0, 0, 4]
        assert "leaves out 1 visits: 1 at or after their subject's event" in caplog.text


def test_one_subject_with_two_events_is_refused(write):
    text = HEADER + "a,0,2,2,1\na,1,2,0,1\nb,0,3,1,2\n"
    with pytest.raises(InputError, match="one subject with two outcomes"):
        tables.read_features(write(text), reading=tables.Reading(event_names=TWO))
