"""Marks of missing values, and columns that mix numbers with text."""

import pandas as pd
import pytest

from cohort import tables
from runs.errors import InputError

MARKS = ["", " ", "NA", "na", "N/A", "n/a", "NULL", "null", "None", "NONE", "NaN", "nan", "#N/A", "#n/a", ".", "-", "?"]
MARKS += [" NA ", "<NA>", "NaT", "\u2013", "\u2014"]


def written(cells, delimiter=","):
    """A table of a subject for each cell of a column `x`."""
    lines = [delimiter.join([f"s{n}", "0", "9", str(n % 2), cell]) for n, cell in enumerate(cells)]
    return "\n".join([delimiter.join(["subjectid", "visit_time", "time", "convert_status", "x"]), *lines]) + "\n"


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_missing_whatever_its_share(write, mark, share):
    cells = [mark if n < share * 20 else f"{n}.25" for n in range(20)]
    for delimiter in (",", ";"):
        read = tables.read_features(write(written(cells, delimiter))).set_index("subject")["x"]
        assert read.isna().sum() == round(share * 20) and read["s19"] == 19.25
    assert read.dtype == float


def test_marks_of_all_sorts_in_one_column_and_in_parquet_are_missing(write, tmp_path):
    cells = [*MARKS, "1.5", "2.5"]
    table = tables.read_features(write(written(cells)))
    assert table["x"].notna().sum() == 2
    pd.DataFrame(
        {
            "subjectid": [f"s{n}" for n in range(len(cells))],
            "visit_time": 0.0,
            "time": 9.0,
            "convert_status": 1,
            "x": cells,
        }
    ).to_parquet(tmp_path / "t.parquet")
    assert tables.read_features(tmp_path / "t.parquet")["x"].notna().sum() == 2


@pytest.mark.parametrize("mark", ["-", "?", "n/a", "null"])
def test_a_mark_is_no_id_and_no_time(write, mark):
    text = written(["1", "2"])
    with pytest.raises(InputError, match="row 2: subjectid: expected an id"):
        tables.read_features(write(text.replace("s0,", f"{mark},")))
    with pytest.raises(InputError, match="row 2: visit_time: expected a number >= 0"):
        tables.read_features(write(text.replace("s0,0,", f"s0,{mark},")))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        ("missing", "A missing value is an empty cell"),
        ("moved", "A missing value is an empty cell"),
        ("<5", "a limit"),
        ("#DIV/0!", "Errors of a spreadsheet program"),
        ("\u22123.5", "for minus"),
        ("3.5 ml", "with a unit"),
    ],
)
def test_numbers_mixed_with_text_are_refused_by_name(write, cell, cause, share):
    cells = [cell if n < share * 20 else f"{n}.25" for n in range(20)]
    with pytest.raises(InputError) as error:
        tables.read_features(write(written(cells)))
    assert f"x: expected a number or nothing, received {cell!r}" in str(error.value) and cause in str(error.value)
    assert "row 2" in str(error.value)


@pytest.mark.parametrize("cell", ["{n}.5 ml", "\u2212{n}.5", "<{n}", "{n}mg/dl"])
def test_a_column_of_misspelt_numbers_alone_is_no_text(write, cell):
    with pytest.raises(InputError, match="20 rows: x: expected a number or nothing"):
        tables.read_features(write(written([cell.format(n=n) for n in range(20)])))


@pytest.mark.parametrize("levels", [("1.5T", "3T"), ("Oslo", "Rome"), ("T", "F"), ("f", "NA")])
def test_text_stays_text(write, levels):
    table = tables.read_features(write(written([levels[n % 2] for n in range(20)])))
    assert table["x"].dropna().unique().tolist() == [level for level in levels if level != "NA"]
