"""A short run of benchmarks/fuzz.py, and properties that hypothesis tries to break."""

import json
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import tables
from runs.errors import InputError
from runs.files import ROOT, read_json

sys.path.insert(0, str(ROOT / "benchmarks"))

import fuzz
import fuzz_kinds

HEADER = "subjectid,imageid,visit_time,time,convert_status,age\n"
UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
WITH_FILES = settings(max_examples=100, deadline=None, suppress_health_check=UNHURRIED)


def test_no_reader_raises_anything_but_its_own_error(tmp_path, capsys):
    outcomes = fuzz.run(400, seed=1, bug_folder=tmp_path / "bugs")
    assert all(counts["bug"] == 0 for counts in outcomes.values()), capsys.readouterr().out
    assert len(outcomes) == 22 and all(counts["refused"] for counts in outcomes.values())
    assert outcomes["NIfTI"]["accepted"] and outcomes["tables with marks"]["accepted"]


def refuse(path):
    raise InputError("row 2: time: expected a number")


@pytest.mark.parametrize(
    ("case", "outcome", "words"),
    [
        (fuzz_kinds.Case(b"", lambda _: np.ones(3), "row 2"), "bug", "accepted in silence, expected 'row 2'"),
        (fuzz_kinds.Case(b"", lambda _: np.ones(3), expected=np.zeros(3)), "bug", "Not equal to tolerance"),
        (fuzz_kinds.Case(b"", lambda _: np.ones(3), "row 2", np.ones(3)), "accepted", ""),
        (fuzz_kinds.Case(b"", refuse, "row 3"), "bug", "refused for another reason than 'row 3': row 2"),
        (fuzz_kinds.Case(b"", refuse, expected=np.ones(3)), "bug", "a sound file is refused: row 2"),
        (fuzz_kinds.Case(b"", refuse, "row 2", np.ones(3)), "refused", ""),
        (fuzz_kinds.Case(b"", lambda _: [][0], "row 2"), "bug", "IndexError"),
    ],
)
def test_whatever_is_not_the_right_answer_is_a_bug(tmp_path, capsys, case, outcome, words):
    kind = fuzz_kinds.Kind("of one case", tmp_path / "t.csv", lambda rng: case)
    assert kind.run(2, np.random.default_rng(0), tmp_path / "bugs") == {outcome: 2}
    assert words in capsys.readouterr().out
    assert len(list(tmp_path.glob("bugs/of-one-case-*.csv"))) == 2 * (outcome == "bug")


@given(rows=st.lists(st.lists(st.text(max_size=8) | st.floats().map(str), min_size=6, max_size=6), max_size=5))
@WITH_FILES
def test_any_table_is_read_or_refused(tmp_path, rows):
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "\n".join(map(",".join, rows)), encoding="utf-8", newline="")
    try:
        fuzz.check_table(tables.read_features(path), None)
    except InputError as error:
        assert str(path) in str(error)


@given(time=st.floats(0.01, 99, allow_subnormal=False), age=st.floats(-1e30, 1e30), comma=st.booleans())
@WITH_FILES
def test_a_number_is_read_as_it_is_written(tmp_path, time, age, comma):
    text = HEADER + f"a,b,0,{time!r},1,{age!r}\n"
    (tmp_path / "table.csv").write_text(text.replace(",", ";").replace(".", ",") if comma else text)
    reading = tables.Reading(decimal="comma" if comma else "auto")  # `1,125` alone could be a thousand
    visit = tables.read_features(tmp_path / "table.csv", reading=reading).iloc[0]
    assert visit["time"] == pytest.approx(time, rel=1e-15) and visit["age"] == pytest.approx(age, rel=1e-15)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
)


@given(value=JSON)
@WITH_FILES
def test_any_json_is_a_finite_object_or_refused(tmp_path, value):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(value))
    try:
        read = read_json(path)
    except InputError as error:
        assert str(path) in str(error)
        assert not isinstance(value, dict) or any(word in path.read_text() for word in ("NaN", "Infinity"))
    else:
        assert json.dumps(read, allow_nan=False) == json.dumps(value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1e400}', '{"a": NaN}', '{"a": -Infinity}', "{}{}", '"x"', ""])
def test_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.json: expected"):
        read_json(tmp_path / "metrics.json")
