"""What becomes of each column: used, coded or not used, and why; what is said of it."""

import numpy as np
import pandas as pd
import pytest
from samples import random_table, visits_table

from runs.errors import InputError
from survival.columns import find_columns, usable_columns


def parts_of(rng, num_subjects=12, **columns):
    """Three parts of one visit a subject, whose further columns come from functions of the subject's number."""
    numbers = np.arange(3 * num_subjects)
    table = pd.DataFrame({"subject": [f"s{n}" for n in numbers], "visit_time": 0.0, "time": 2.0, "event": True})
    values = {name: [value_of(n) for n in numbers.tolist()] for name, value_of in columns.items()}
    table = table.assign(**{"age": rng.normal(70, 5, len(numbers))} | values)
    return {part: table.iloc[place::3].reset_index(drop=True) for place, part in enumerate(("train", "val", "test"))}


USED = {
    "two levels": lambda n: "FM"[n // 3 % 2],
    "ten levels": lambda n: f"site {n // 3 % 10}",
    "with gaps": lambda n: [None, "yes", "no"][n // 3 % 3],
    "integers": lambda n: n % 7,
    "tiny": lambda n: 1e-12 * (n % 7),
}
UNUSED = {
    "constant": (lambda n: 3.0, "one value, 3"),
    "constant but for rounding": (lambda n: 1e9 + n % 2 * 1e-7, "one value, 1e+09"),
    "constant text": (lambda n: "Oslo", "one value, 'Oslo'"),
    "empty": (lambda n: np.nan, "every value is missing"),
    "many": (lambda n: f"note {n}", "text of 36 different values, such as 'note 0'"),
    "eleven": (lambda n: f"site {n % 11}", "text of 11 different values, such as 'site 0'"),
    "dates": (lambda n: f"2019-03-{1 + n % 3:02}", "dates, such as '2019-03-01'"),
    "German dates": (lambda n: f"{1 + n}.3.2019", "dates, such as '1.3.2019'"),
    "constant in training": (lambda n: float(n % 3 > 0), "one value, 0 in the training part"),
    "text of training": (lambda n: "b" if n % 3 == 2 else "a", "one value, 'a' in the training part"),
    "empty in training": (lambda n: np.nan if n % 3 == 0 else n, "every value is missing in the training part"),
}


def test_what_is_used_and_what_is_not_is_told_with_the_reason(rng, caplog):
    caplog.set_level("INFO")
    columns = usable_columns(parts_of(rng, **USED, **{name: function for name, (function, _) in UNUSED.items()}))
    assert columns.used == ["age", *USED] and list(columns.unused) == list(UNUSED)
    for name, (_, why) in UNUSED.items():
        assert columns.unused[name].startswith(why) and f"{name} ({why}" in caplog.text
    assert list(columns.coded) == ["two levels", "ten levels", "with gaps"]
    assert columns.coded["with gaps"] == ("no", "yes") and len(columns.coded["ten levels"]) == 10
    assert "6 columns are used: age, two levels" in caplog.text and "11 columns are not used" in caplog.text
    assert "with gaps is text (no, yes), coded as 0 and 1: with gaps=yes" in caplog.text
    assert columns.as_json() == {"used": columns.used, "coded": columns.coded, "unused": columns.unused}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda part: part.drop(columns="age"), "age: absent in val"),
        (lambda part: part.assign(age="old"), "age: numbers in train, text in val, numbers in test"),
        (lambda part: part.assign(sex=1.0), "sex: text in train, numbers in val, text in test"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(rng, change, problem):
    parts = parts_of(rng, sex=USED["two levels"])
    assert find_columns(parts).used == ["age", "sex"]
    assert find_columns(parts | {"val": parts["val"].assign(sex=np.nan, age=np.nan)}).used == ["age", "sex"]
    with pytest.raises(InputError, match=problem):
        find_columns(parts | {"val": change(parts["val"])})


@pytest.mark.parametrize(
    ("columns", "new"),
    [
        ({"sex": lambda n: "FM"[n // 3 % 2], "sex=M": lambda n: float(n)}, "sex=M"),
        ({"grp": lambda n: ["A", "b c"][n // 3 % 2], "grp=b c": lambda n: n % 2}, "grp=b c"),
        ({"a": lambda n: ["A", "b=c"][n // 3 % 2], "a=b": lambda n: "Bc"[n // 3 % 2]}, "a=b=c"),
    ],
)
def test_a_level_that_would_have_the_name_of_another_column_is_refused(rng, columns, new):
    with pytest.raises(InputError, match=f"{next(iter(columns))}: a level of it and another column are called {new}"):
        find_columns(parts_of(rng, **columns))


@pytest.mark.parametrize("name", ["feature_3", "log_hazard", "progress"])
def test_text_in_stage_1s_columns_is_refused(rng, name):
    with pytest.raises(InputError, match=f"{name}: text, though stage 1's numbers are called so"):
        find_columns(parts_of(rng, **{name: lambda n: "ab"[n % 2]}))


@pytest.mark.parametrize("value", [0.0, -1.25])
def test_a_log_hazard_that_tells_no_scan_from_another_is_refused(rng, value):
    with pytest.raises(InputError, match="log_hazard: one value: stage 1 tells no scan from another"):
        find_columns(parts_of(rng, log_hazard=lambda n: value))


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({}, "there is no other column"),
        ({"flat": lambda n: 1.0}, r"flat \(one value, 1\)"),
        ({"note": lambda n: f"n{n}"}, r"note \(text of 36 different values, such as 'n0'\)"),
    ],
)
def test_no_column_that_can_be_used_is_refused_with_the_reasons(rng, columns, why):
    parts = {name: part.drop(columns="age") for name, part in parts_of(rng, **columns).items()}
    with pytest.raises(InputError, match=f"expected a column of numbers or categories.*Not used: {why}"):
        usable_columns(parts)


def test_a_dead_feature_of_stage_1_is_left_out_aloud(rng, caplog):
    caplog.set_level("INFO")
    table = random_table(rng).assign(feature_9=0.0)
    assert "feature_9" not in usable_columns({"train": table}).used
    assert "1 constant features are left out: feature_9" in caplog.text


@pytest.mark.parametrize(("own", "level"), [(True, "WARNING"), (False, "INFO")])
def test_features_of_stage_1_are_said_to_be_replaced(rng, caplog, own, level):
    caplog.set_level("INFO")
    table = random_table(rng)
    columns = usable_columns({"train": table.drop(columns="log_hazard") if own else table})
    lines = [record for record in caplog.records if "their principal components replace them" in record.getMessage()]
    assert [record.levelname for record in lines] == [level] and lines[0].getMessage().startswith("4 columns")
    assert columns.as_json()["used"][-1] == "4 of the form feature_<n>"
    assert ("give them other names" in caplog.text) == own


def test_missing_values_are_counted_aloud(caplog):
    caplog.set_level("INFO")
    usable_columns({"train": visits_table()})
    assert "2 of 12 values are missing" in caplog.text


@pytest.mark.parametrize(("column", "is_named"), [("row", True), ("rid", True), ("age", False), ("grade", False)])
def test_what_looks_like_an_id_or_a_row_number_is_named(rng, caplog, column, is_named):
    subject = np.repeat(np.arange(30), 2)
    table = pd.DataFrame({"subject": [f"s{n}" for n in subject], "visit_time": np.tile([0.0, 1.0], 30)})
    values = {"row": np.arange(60), "rid": 4000 + 7 * subject, "age": rng.normal(70, 5, 60), "grade": subject % 4}
    columns = usable_columns({"table": table.assign(**{column: values[column]})})
    assert columns.used == [column]  # it is used all the same
    assert (f"{column}: looks like an id or a row number" in caplog.text) == is_named


@pytest.mark.parametrize(
    ("name", "is_named"), [("site", True), ("Scanner_1", True), ("opposite", False), ("age", False)]
)
def test_numbers_of_sites_are_named(rng, caplog, name, is_named):
    usable_columns(parts_of(rng, **{name: lambda n: n // 3 % 4}))
    assert (f"{name}: the numbers of sites are no amounts" in caplog.text) == is_named


@pytest.mark.parametrize(("few", "is_named"), [(2, True), (6, False)])
def test_rare_levels_are_named(rng, caplog, few, is_named):
    usable_columns(parts_of(rng, site=lambda n: "Bern" if n // 3 < few / 3 else f"x{n // 3 % 2}"))
    assert ("site: Bern: fewer than 5 subjects have it" in caplog.text) == is_named
