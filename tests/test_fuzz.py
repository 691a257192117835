"""A short run of benchmarks/fuzz.py, and properties that hypothesis tries to break."""

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import tables
from runs.errors import InputError
from runs.files import ROOT, read_json

sys.path.insert(0, str(ROOT / "benchmarks"))

import fuzz

HEADER = "subjectid,imageid,visit_time,time,convert_status,age\n"
UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
WITH_FILES = settings(max_examples=100, deadline=None, suppress_health_check=UNHURRIED)


def test_no_reader_raises_anything_but_its_own_error(tmp_path, capsys):
    outcomes = fuzz.run(400, seed=1, kept=tmp_path / "bugs")
    assert all(counts["bug"] == 0 for counts in outcomes.values()), capsys.readouterr().out
    assert len(outcomes) == 13 and all(counts["refused"] for counts in outcomes.values())
    assert outcomes["NIfTI"]["accepted"] and outcomes["feature table"]["accepted"]


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
