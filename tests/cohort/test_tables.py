import time

import numpy as np
import pandas as pd
import pytest

from cohort import tables
from cohort.splits import check_parts, split_subjects
from runs.errors import InputError

GOOD = """subjectid,imageid,visit_time,time,convert_status,age
b,b1,0,30,0,70
a,a2,6,24,1,
a,a1,0,24,1,65
c,c1,0,12,1,80
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="cohort.csv", volumes=True):
        path = tmp_path / name
        path.write_bytes(text.encode())
        if volumes:
            for image in ("a1", "a2", "b1", "c1"):
                (tmp_path / f"{image}.nii.gz").touch()
        return path

    return write


def read(path, **kwargs):
    return tables.read_cohort(path, mri_folder=path.parent, **kwargs)


def test_a_cohort_is_read_in_memory_columns_years_and_order(write):
    table = read(write(GOOD), time_unit="months")
    assert list(table.columns) == ["subject", "scan", "visit_time", "time", "event", "age", "nifti_path"]
    assert table["scan"].tolist() == ["a1", "a2", "b1", "c1"]
    assert table["time"].tolist() == [2.0, 2.0, 2.5, 1.0]
    assert table["event"].tolist() == [True, True, False, True]
    assert table["nifti_path"][0] == str(write(GOOD).parent / "a1.nii.gz")
    assert tables.feature_columns(table) == ["age"]


def test_time_left_and_last_visits(write):
    table = read(write(GOOD), time_unit="months")
    assert tables.time_left(table).tolist() == [2.0, 1.5, 2.5, 1.0]
    assert tables.last_visits(table)["scan"].tolist() == ["a2", "b1", "c1"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("unit", ["years", "months", "days"])
def test_what_is_written_reads_the_same(write, tmp_path, suffix, unit):
    table = tables.read_features(write(GOOD), time_unit="days")
    tables.write_table(table, tmp_path / f"out.{suffix}", time_unit=unit)
    again = tables.read_features(tmp_path / f"out.{suffix}", time_unit=unit)
    pd.testing.assert_frame_equal(table, again, rtol=0, atol=1e-8)


def test_ids_stay_text(write):
    path = write("subjectid,imageid,visit_time,time,convert_status\n007,1e3,0,2,1\n-1.50,0010,0,2,0\n")
    table = tables.read_features(path)
    assert table["subject"].tolist() == ["-1.50", "007"]
    assert table["scan"].tolist() == ["0010", "1e3"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,a2,6,24,1", "a,a2,24,24,1", "row 3: a visit at or after the subject's `time`, received 24.0"),
        ("a,a2,6,24,1", "a,a2,25,24,1", "row 3: a visit at or after"),
        ("a,a2,6,24,1", "a,a2,0,24,1", "row 3: two visits of one subject at one time"),
        ("a,a2,6,24,1", "a,a2,6,25,1", "row 3: one subject with two outcomes"),
        ("a,a2,6,24,1", "a,a2,6,24,0", "row 4: one subject with two outcomes"),
        ("a,a2,6,24,1", "a,a1,6,24,1", "row 3: imageid stands twice, received 'a1'"),
        ("a,a2,6,24,1", "a,a2,-6,24,1", "row 3: visit_time: expected a number >= 0, received -6"),
        ("a,a2,6,24,1", "a,a2,,24,1", "row 3: visit_time: expected a number >= 0, received nan"),
        ("a,a2,6,24,1", "a,a2,6,inf,1", "row 3: time: expected a number >= 0, received inf"),
        ("a,a2,6,24,1", "a,a2,6,2019-01-01,1", "row 3: time: expected a number >= 0, received '2019-01-01'"),
        ("a,a2,6,24,1", "a,a2,6,24,2", "row 3: convert_status: expected 0 or 1, received '2'"),
        ("a,a2,6,24,1", "a,a2,6,24,yes", "row 3: convert_status: expected 0 or 1, received 'yes'"),
        ("a,a2,6,24,1", ",a2,6,24,1", "row 3: subjectid: expected an id, received ''"),
        ("a,a2,6,24,1", "NA,a2,6,24,1", "row 3: subjectid: expected an id, received 'NA'"),
        ("a,a2,6,24,1", "a, ,6,24,1", "row 3: imageid: expected an id, received ''"),
        ("a,a2,6,24,1", "a,a2,6,1e400,1", "row 3: time: expected a number >= 0, received '1e400'"),
        ("a,a2,6,24,1", "a,a2,6,2019,1", "row 3: time: expected years since the subject's baseline, 100 years at most"),
        ("a,a2,6,24,1", "a,a2,6,0x18,1", "row 3: time: expected a number >= 0, received '0x18'"),
        ("a,a2,6,24,1", 'a,a2,"6,5",24,1', "row 3: visit_time: expected a number >= 0, received '6,5'"),
        ("a,a2,6,24,1", "a,a2,6,24", "row 3: expected 6 fields, received 5"),
        ("a,a2,6,24,1", "a,a2,6,5,24,1", "row 3: expected 6 fields, received 7"),  # an empty last one is one too
        ("24,1,65", "24,1,0.78e3900613295", "row 4: age: expected a number or nothing, received '0.78e3900613295'"),
        ("24,1,65", "24,1,1e39", "row 4: age: expected a number or nothing, received 1e+39"),
        ("24,1,65", '24,1,"65,5"', "row 4: age: expected a number or nothing, received '65,5'"),
        ("a,a2,6,24,1", "a,zz,6,24,1", "row 3: expected a file, found none at"),
        ("a,a2,6,24,1", "a,../a2,6,24,1", "row 3: imageid: expected a plain file name"),
        ("24,1,65", "24,1,6S", "row 4: age: expected a number or nothing, received '6S'"),
        ("24,1,65", "24,1,inf", "row 4: age: expected a number or nothing, received inf"),
    ],
)
def test_a_bad_row_is_named(write, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError) as error:
        read(write(GOOD.replace(old, new)))
    assert message in str(error.value)


def test_every_bad_row_is_named_at_once(write):
    text = GOOD.replace("b,b1,0,30,0", "b,b1,x,30,7").replace("c,c1,0,12,1", "c,c9,13,12,1")
    with pytest.raises(InputError) as error:
        read(write(text))
    told = str(error.value)
    for part in ("row 2: visit_time", "row 2: convert_status", "row 5: a visit at or after", "row 5: expected a file"):
        assert part in told
    assert "(4):" in told


def test_many_bad_rows_are_counted(write):
    rows = "".join(f"s{i},i{i},0,-1,1\n" for i in range(1010))
    with pytest.raises(InputError, match="and 10 more"):
        tables.read_features(write("subjectid,imageid,visit_time,time,convert_status\n" + rows.replace(",0,", ",0.0,")))


def test_other_column_names_are_listed_beside_ours(write):
    with pytest.raises(InputError, match=r"Missing: subjectid, time\. Found: id, imageid"):
        read(write(GOOD.replace("subjectid", "id").replace(",time,", ",months,")))


@pytest.mark.parametrize("text", ["", "subjectid,imageid,visit_time,time,convert_status\n", "\x00\x01\x02"])
def test_a_table_of_nothing_is_refused(write, text):
    with pytest.raises(InputError, match="expected"):
        read(write(text))


def test_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.csv")


def test_a_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "features.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(InputError, match="can't read it"):
        tables.read_features(tmp_path / "features.parquet")


def test_text_columns_are_left_out_and_said(write, caplog):
    text = GOOD.replace(",age", ",site").replace(",70", ",Oslo").replace(",65", ",Rome").replace(",80", ",Bonn")
    table = tables.read_features(write(text))
    assert "site" not in table and "not used: site" in caplog.text


def test_a_byte_order_mark_is_no_column_name(write):
    assert tables.read_features(write("\ufeff" + GOOD))["subject"].nunique() == 3


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
    found = tables.read_features(write(DIALECTS[dialect]), time_unit="months")
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_an_encoding_with_its_mark_is_read(write, tmp_path, expected, encoding, caplog):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "other.csv").write_bytes((mark + GOOD.replace("c,c1", "ç,c1")).encode(encoding))
    found = tables.read_features(tmp_path / "other.csv", time_unit="months")
    pd.testing.assert_frame_equal(found, expected.replace({"subject": {"c": "ç"}}))
    assert ("UTF-16" in caplog.text) == ("16" in encoding)


@pytest.mark.parametrize("decimal", [".", ","])
def test_semicolons_and_decimal_commas_are_read_and_said(write, decimal, caplog):
    text = GOOD.replace("70", "70.125").replace("65", "-6.5e1").replace(",6,", ",.5,")
    expected = tables.read_features(write(text), time_unit="months")
    caplog.clear()
    found = tables.read_features(write(spread(text, ";", decimal)), time_unit="months")
    pd.testing.assert_frame_equal(found, expected)
    assert found["age"][2] == 70.125
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


def test_tables_put_one_after_the_other_are_told(write):
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


def test_dates_and_lists_of_a_parquet_file_are_no_numbers(tmp_path, expected, caplog):
    table = expected.rename(columns=tables.ON_DISK).assign(
        subjectid=[1.0, 1.0, 2.0, 3.0],
        scanned=pd.to_datetime("2019-01-01"),
        took=pd.to_timedelta(3, "h"),
        site=pd.Categorical(["x", "y", "x", "y"]),
    )
    table.to_parquet(tmp_path / "table.parquet")
    found = tables.read_features(tmp_path / "table.parquet")
    assert tables.feature_columns(found) == ["age"] and found["subject"].tolist() == ["1", "1", "2", "3"]
    assert "not used: scanned, took, site" in caplog.text
    table.assign(time=pd.to_datetime("2019-01-01")).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(InputError, match="row 1: time: expected a number >= 0, received '2019-01-01"):
        tables.read_features(tmp_path / "table.parquet")


def test_a_long_table_takes_seconds(tmp_path):
    number = np.arange(200_000)
    table = pd.DataFrame({"subjectid": number // 4, "imageid": number, "visit_time": number % 4 / 2, "time": 9.5})
    table.assign(convert_status=number // 4 % 3 // 2, age=number % 97 / 7).to_csv(tmp_path / "many.csv", index=False)
    began = time.process_time()
    found = tables.read_features(tmp_path / "many.csv")
    assert time.process_time() - began < 10
    assert len(found) == 200_000 and found["age"].max() == 96 / 7


def cohort_of(num_subjects):
    return pd.DataFrame(
        [(f"s{i}", f"s{i}v{v}", v, 9.0, i % 3 == 0) for i in range(num_subjects) for v in (0, 1)],
        columns=["subject", "scan", "visit_time", "time", "event"],
    )


def test_subjects_are_split_never_scans():
    table = cohort_of(60)
    parts = split_subjects(table, test_ratio=0.25, val_train_ratio=0.2, seed=1)
    subjects = {name: set(part["subject"]) for name, part in parts.items()}
    assert {name: len(found) for name, found in subjects.items()} == {"train": 36, "val": 9, "test": 15}
    assert set.union(*subjects.values()) == set(table["subject"])
    assert sum(len(part) for part in parts.values()) == len(table)
    assert [part.groupby("subject")["event"].first().sum() for part in parts.values()] == [12, 3, 5]


def test_a_split_is_of_its_seed_and_not_of_the_row_order():
    table = cohort_of(60)
    how = {"test_ratio": 0.25, "val_train_ratio": 0.2}
    first = split_subjects(table, **how, seed=1)["test"]["subject"]
    mixed = split_subjects(table.sample(frac=1, random_state=0), **how, seed=1)["test"]["subject"]
    other = split_subjects(table, **how, seed=2)["test"]["subject"]
    assert set(first) == set(mixed) != set(other)


def test_a_subject_in_two_parts_is_refused():
    table = cohort_of(12)
    parts = {"train": table, "val": table[table["subject"] == "s3"], "test": cohort_of(1).replace("s0", "z")}
    with pytest.raises(InputError) as error:
        check_parts(parts)
    assert "subject 's3' is in train and val" in str(error.value)
    assert "scan 's3v0' is in train and val" in str(error.value)


def test_a_part_without_an_event_is_refused():
    table = cohort_of(12)
    parts = {"train": table, "val": table.assign(event=False, subject="v", scan="v"), "test": table.iloc[:0]}
    with pytest.raises(InputError, match="the val part has no event"):
        check_parts(parts)
