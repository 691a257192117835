"""Numbers with decimal commas or separators of thousands: read as the table or the user says, else refused."""

import pandas as pd
import pytest

from cohort import tables
from runs.errors import InputError

DAYS = [("0", "603", "44"), ("0", "1,495", "1"), ("0", "1,747", "13"), ("12", "2,001", "7")]


def written(rows, delimiter=";"):
    """A table of subjects with visit_time, time and x as they are written."""
    quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in row] for row in rows]
    lines = [delimiter.join([f"s{n}", v, t, str(n % 2), x]) for n, (v, t, x) in enumerate(quoted)]
    return "\n".join([delimiter.join(["subjectid", "visit_time", "time", "convert_status", "x"]), *lines]) + "\n"


def swapped(rows):
    """The same with points and commas in each other's place."""
    return [tuple(cell.translate({44: ".", 46: ","}) for cell in row) for row in rows]


def refused(write, rows, **kwargs):
    with pytest.raises(InputError) as error:
        tables.read_features(write(written(rows, **kwargs)), time_unit="days")
    return str(error.value)


@pytest.mark.parametrize("sign", ["comma", "point"])
def test_thousands_that_could_be_decimals_are_refused(write, sign):
    rows = DAYS if sign == "comma" else swapped(DAYS)
    message = refused(write, rows)
    assert f"row 3: time: a {sign} that can stand before decimals or between thousands" in message
    assert f"Set DECIMAL={sign} if it stands before decimals" in message


def test_whole_numbers_beside_them_are_a_doubt_although_another_column_has_decimals(write):
    rows = [(visit, time, "2,5") for visit, time, _ in DAYS]
    assert "row 4: time: a comma that can stand" in refused(write, rows)
    small = [("0", "1,495", "2,5"), ("0", "2,125", "3,25"), ("0,5", "3,001", "7")]
    table = tables.read_features(write(written(small)))
    assert table["time"].tolist() == [1.495, 2.125, 3.001]


@pytest.mark.parametrize(
    "rows", [[("0", "1,495", "0,495"), ("0", "2", "7,125")], [("0", "1,5", "1,495"), ("0", "2", "7,125")]]
)
@pytest.mark.parametrize("swap", [False, True])
def test_one_cell_that_can_only_be_a_decimal_settles_it(write, rows, swap):
    table = tables.read_features(write(written(swapped(rows) if swap else rows)))
    assert table["x"].tolist() == [float(row[2].replace(",", ".")) for row in rows]


@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
@pytest.mark.parametrize(
    ("decimal", "cells", "values"),
    [
        ("point", ["603", "1,495", "1,747,001.5", "-2,001"], [603, 1495, 1747001.5, -2001]),
        ("comma", ["603", "1,495", "1.747.001,5", "-,5e1"], [603, 1.495, 1747001.5, -5]),
        ("comma", ["1 495,25", "1'495,25", "1\u202f495", "7"], [1495.25, 1495.25, 1495, 7]),
        ("point", ["1 495.25", "1\u2019495", "0.125", "1e3"], [1495.25, 1495, 0.125, 1000]),
    ],
)
def test_the_user_says_which_sign_it_is(write, delimiter, decimal, cells, values):
    rows = [("0", "9", cell) for cell in cells]
    reading = tables.Reading(decimal=decimal)
    table = tables.read_features(write(written(rows, delimiter)), reading=reading)
    assert table["x"].tolist() == values


@pytest.mark.parametrize(("decimal", "cell"), [("comma", "65.5"), ("point", "65,5"), ("comma", "0.125")])
@pytest.mark.parametrize("delimiter", [";", ","])
def test_a_cell_that_denies_the_user_is_refused(write, decimal, cell, delimiter):
    rows = [("0", "9", cell), ("0", "9", "1")]
    with pytest.raises(InputError, match=f"row 2: x: a decimal .* in a table with DECIMAL={decimal}"):
        tables.read_features(write(written(rows, delimiter)), reading=tables.Reading(decimal=decimal))


def test_the_text_of_a_parquet_file_is_read_as_the_user_says(tmp_path):
    table = pd.DataFrame({"subjectid": ["a", "b"], "visit_time": 0.0, "time": ["1.495,5", "2,5"], "convert_status": 1})
    table.to_parquet(tmp_path / "t.parquet")
    read = tables.read_features(tmp_path / "t.parquet", time_unit="days", reading=tables.Reading(decimal="comma"))
    assert (read["time"] * 365.25).round(9).tolist() == [1495.5, 2.5]


@pytest.mark.parametrize("cells", [("1,495", "6,5"), ("1.113,5", "2.000,25")])
def test_the_refusal_of_a_number_names_the_setting(write, cells):
    rows = [("0", "9", cell) for cell in cells]
    message = refused(write, rows, delimiter="\t")
    assert "row 2: x: expected a number or nothing" in message and "DECIMAL=comma or DECIMAL=point" in message


@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
def test_true_and_false_are_1_and_0_whatever_the_delimiter(write, delimiter):
    rows = [("0", "9", "True"), ("0", "9", "FALSE"), ("0", "9", "NA")]
    assert tables.read_features(write(written(rows, delimiter)))["x"].tolist()[:2] == [1.0, 0.0]
