"""CSV in every dialect, and Parquet; read through `read_features`, which names the rows that `read_rows` refuses."""

import numpy as np
import pandas as pd
import pytest
from cohort_csv import GOOD

from cohort import tables
from cohort.table_files import read_rows
from runs.errors import InputError


@pytest.fixture
def expected(write):
    return tables.read_features(write(GOOD), time_unit="months")


def spread(text, delimiter, decimal="."):
    """A table whose fields stand between something else."""
    return text.replace(",", delimiter).replace(".", decimal)


DIALECTS = {
    "quoted": '"' + GOOD.strip().replace(",", '","').replace("\n", '"\n"') + '"\n',
    "Windows": GOOD.replace("\n", "\r\n"),
    "old Macintosh": GOOD.replace("\n", "\r"),
    "mixed line ends": GOOD.replace("0\nc,", "0\r\nc,").replace("status,age\n", "status,age\r"),
    "blank lines": "\n\n" + GOOD.replace("\n", "\n\n \n,,,,,\n"),
    "no last line end": GOOD.rstrip(),
    "trailing commas": GOOD.replace("\n", ",,\n"),
    "blanks": GOOD.replace(",", " , "),
    "tabs": spread(GOOD, "\t"),
    "a workbook's note": "sep=;\n" + spread(GOOD, ";"),
    "states in words": GOOD.replace("24,1,", "24,True,").replace("30,0,", "30,FALSE,"),
    "states with a point": GOOD.replace("24,1,", "24,1.0,"),
    "missing values": GOOD.replace("24,1,\n", "24,1,NA\n"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_reads_the_same(write, expected, dialect):
    table_read = tables.read_features(write(DIALECTS[dialect]), time_unit="months")
    pd.testing.assert_frame_equal(table_read, expected)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_an_encoding_with_its_mark_is_read(write, tmp_path, expected, encoding, caplog):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "other.csv").write_bytes((mark + GOOD.replace("c,c1", "ç,c1")).encode(encoding))
    table_read = tables.read_features(tmp_path / "other.csv", time_unit="months")
    pd.testing.assert_frame_equal(table_read, expected.replace({"subject": {"c": "ç"}}))
    assert ("UTF-16" in caplog.text) == ("16" in encoding)


def test_a_byte_order_mark_is_no_column_name(write):
    assert tables.read_features(write("\ufeff" + GOOD))["subject"].nunique() == 3


@pytest.mark.parametrize("decimal", [".", ","])
def test_semicolons_and_decimal_commas_are_read_and_said(write, decimal, caplog):
    text = GOOD.replace("70", "70.125").replace("65", "-6.5e1").replace(",6,", ",.5,")
    expected = tables.read_features(write(text), time_unit="months")
    caplog.clear()
    table_read = tables.read_features(write(spread(text, ";", decimal)), time_unit="months")
    pd.testing.assert_frame_equal(table_read, expected)
    assert table_read["age"][2] == 70.125
    assert "fields between semicolons" in caplog.text and ("decimal commas" in caplog.text) == (decimal == ",")


def test_a_comma_that_could_be_either_is_refused(write):
    with pytest.raises(
        InputError, match=r"row 2: age: a decimal point in a table with decimal commas, received '7\.25'"
    ):
        tables.read_features(write(spread(GOOD, ";").replace("70", "7.25").replace("65", "6,5")), time_unit="months")
    with pytest.raises(InputError, match="row 4: age: expected a number or nothing, received '6,5'"):
        tables.read_features(write(spread(GOOD, "\t").replace("65", "6,5")), time_unit="months")
    with pytest.raises(InputError, match=r"3\):\n  row 2: age: .*received '1,070'"):  # every value: no column of text
        tables.read_features(write(spread(GOOD, "\t").replace("70", "1,070").replace("65", "6,5").replace("80", "8,5")))


def test_rows_are_numbered_as_an_editor_shows_them(write):
    text = GOOD.replace("b,b1,0", '"b\nb",b1,0').replace("c,c1,0", "\nc,c1,x")
    with pytest.raises(InputError, match="row 7: visit_time: expected a number >= 0, received 'x'"):
        tables.read_features(write(text), time_unit="months")


def test_a_header_between_two_tables_is_named(write):
    with pytest.raises(InputError) as error:
        tables.read_features(write(GOOD + GOOD.replace("c,c1,0", "d,d1,0")), time_unit="months")
    assert "row 6: the header once more" in str(error.value)
    assert "row 8: two visits of one subject at one time" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("status,age", "status,time", "2 columns are called 'time'"),
        ("status,age", "status, age ,age", r"2 columns are called 'age'"),
        ("status,age", "status,", "column 6 has no name"),
        ("subjectid,", "Unnamed: 0,subjectid,", "column 1 has no name"),
        ("b,b1", '"b,b1', "can't read it"),
        ("b,b1", '"b"b,b1', "can't read it"),
        ("b,b1", "b\0,b1", "line 2 holds NUL bytes"),
    ],
)
def test_a_header_or_a_file_in_doubt_is_refused(write, old, new, message):
    text = GOOD.replace(old, new)
    text = text.replace("\n", ",1\n").replace("age,1", "age") if new.count(",") > old.count(",") else text
    with pytest.raises(InputError, match=message):
        tables.read_features(write(text), time_unit="months")


def test_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        tables.read_features(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.encode("utf-16-le"), "NUL bytes"),
        (GOOD.replace("b", "\xfc").encode("latin-1"), r"can't decode .* Save it as CSV \(UTF-8\)"),
        (b"PK\x03\x04 a workbook", "a workbook or an archive. Save it as CSV"),
        (b"\x1f\x8b packed", "a packed file. Save it as CSV"),
        (bytes(range(256)) * 20, "can't read it"),
        (b"PAR1" * 300, "can't read it"),
        (b"\xff\xfe\x00", "can't read it"),
    ],
)
@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_what_is_no_text_is_refused(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        tables.read_features(tmp_path / name)


def test_a_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "features.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(InputError, match="can't read it"):
        tables.read_features(tmp_path / "features.parquet")


def test_a_parquet_file_is_known_by_its_content(write, expected, tmp_path):
    tables.write_table(expected, tmp_path / "renamed.parquet", time_unit="months")
    (tmp_path / "renamed.parquet").rename(tmp_path / "renamed.csv")
    pd.testing.assert_frame_equal(tables.read_features(tmp_path / "renamed.csv", time_unit="months"), expected)


def test_a_flipped_bit_in_a_parquet_file_is_refused(expected, tmp_path, rng):
    path = tmp_path / "features.parquet"
    tables.write_table(expected.assign(feature_1=rng.random(4)), path, time_unit="months")
    good, content = tables.read_features(path, time_unit="months"), path.read_bytes()
    where = content.index(good["feature_1"].to_numpy()[0].tobytes())
    for bit in rng.integers(0, 64, 20):
        damaged = bytearray(content)
        damaged[where + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="can't read it"):
            tables.read_features(path, time_unit="months")


def test_dates_and_lists_of_a_parquet_file_are_no_numbers(tmp_path, expected):
    table = expected.rename(columns=tables.ON_DISK).assign(
        subjectid=[1.0, 1.0, 2.0, 3.0],
        scanned=pd.to_datetime("2019-01-01"),
        took=pd.to_timedelta(3, "h"),
        site=pd.Categorical(["x", "y", "x", "y"]),
    )
    table.to_parquet(tmp_path / "table.parquet")
    table_read = tables.read_features(tmp_path / "table.parquet")
    assert tables.feature_columns(table_read) == ["age"] and table_read["subject"].tolist() == ["1", "1", "2", "3"]
    assert table_read["scanned"][0].startswith("2019-01-01") and table_read["site"].tolist() == ["x", "y", "x", "y"]
    table.assign(time=pd.to_datetime("2019-01-01")).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(InputError, match="row 1: time: expected a number >= 0, received '2019-01-01"):
        tables.read_features(tmp_path / "table.parquet")


def test_sound_rows_and_the_faults_of_the_others_are_returned(write):
    table, faults = read_rows(write("id,age\n007,NA\n1\nid,age\n2,3\n"), text=("id",))
    assert table.to_dict("index") == {
        2: {"id": "007", "age": pytest.approx(np.nan, nan_ok=True)},
        5: {"id": "2", "age": 3},
    }
    assert faults[0] == "row 4: the header once more"
    assert faults[1].startswith("row 3: expected 2 fields, received 1. A comma within a cell")
