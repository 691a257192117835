import pandas as pd
import pytest

import tables
from files import InputError

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
    path = write("subjectid,imageid,visit_time,time,convert_status\n007,1e3,0,2,1\nNA,0010,0,2,0\n")
    table = tables.read_features(path)
    assert table["subject"].tolist() == ["007", "NA"]
    assert table["scan"].tolist() == ["1e3", "0010"]


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
        ("a,a2,6,24,1", ",a2,6,24,1", "row 3: subjectid: expected an id"),
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


def cohort_of(num_subjects):
    return pd.DataFrame(
        [(f"s{i}", f"s{i}v{v}", v, 9.0, i % 3 == 0) for i in range(num_subjects) for v in (0, 1)],
        columns=["subject", "scan", "visit_time", "time", "event"],
    )


def test_subjects_are_split_never_scans():
    table = cohort_of(60)
    parts = tables.split_subjects(table, test_ratio=0.25, val_train_ratio=0.2, seed=1)
    subjects = {name: set(part["subject"]) for name, part in parts.items()}
    assert {name: len(found) for name, found in subjects.items()} == {"train": 36, "val": 9, "test": 15}
    assert set.union(*subjects.values()) == set(table["subject"])
    assert sum(len(part) for part in parts.values()) == len(table)
    assert [part.groupby("subject")["event"].first().sum() for part in parts.values()] == [12, 3, 5]


def test_a_split_is_of_its_seed_and_not_of_the_row_order():
    table = cohort_of(60)
    how = {"test_ratio": 0.25, "val_train_ratio": 0.2}
    first = tables.split_subjects(table, **how, seed=1)["test"]["subject"]
    mixed = tables.split_subjects(table.sample(frac=1, random_state=0), **how, seed=1)["test"]["subject"]
    other = tables.split_subjects(table, **how, seed=2)["test"]["subject"]
    assert set(first) == set(mixed) != set(other)


def test_a_subject_in_two_parts_is_refused():
    table = cohort_of(12)
    parts = {"train": table, "val": table[table["subject"] == "s3"], "test": cohort_of(1).replace("s0", "z")}
    with pytest.raises(InputError) as error:
        tables.check_parts(parts)
    assert "subject 's3' is in train and val" in str(error.value)
    assert "scan 's3v0' is in train and val" in str(error.value)


def test_a_part_without_an_event_is_refused():
    table = cohort_of(12)
    parts = {"train": table, "val": table.assign(event=False, subject="v", scan="v"), "test": table.iloc[:0]}
    with pytest.raises(InputError, match="the val part has no event"):
        tables.check_parts(parts)
