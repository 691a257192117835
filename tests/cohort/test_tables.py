import re
import time

import numpy as np
import pandas as pd
import pytest
from cohort_csv import GOOD

from cohort import tables
from runs.errors import InputError


def read(path, **kwargs):
    table, teachers = tables.read_cohort(path, mri_folder=path.parent, **kwargs)
    assert teachers.empty
    return table


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


@pytest.mark.parametrize(("unit", "years"), [("years", 24.0), ("months", 2.0), ("days", 24 / 365.25)])
def test_times_are_converted_there_and_back(unit, years):
    times = pd.Series([24.0, 0.0, 0.1])
    assert tables.to_years(times, unit)[0] == years
    assert tables.from_years(tables.to_years(times, unit), unit).tolist() == times.tolist()


def test_columns_of_ours_are_no_features(write):
    table = read(write(GOOD), time_unit="months").assign(cache_entry="/cache/entry.npy")
    assert tables.feature_columns(table) == ["age"]
    assert tables.feature_columns(table.assign(cache_entry=0)) == ["age"]


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
        (
            "b,b1,0,30,0",
            "b,b1,31,30,0",
            "row 2: a visit after the end of the subject's follow-up, `time`, received 31.0",
        ),
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
    message = str(error.value)
    for part in ("row 2: visit_time", "row 2: convert_status", "row 5: a visit at or after", "row 5: expected a file"):
        assert part in message
    assert "(4):" in message


@pytest.mark.parametrize(("unit", "end"), [("months", "30"), ("days", "0.3")])
def test_a_censored_subjects_visit_at_the_end_is_kept_counted_and_not_last(write, caplog, unit, end):
    caplog.set_level("INFO")
    text = GOOD.replace("b,b1,0,30,0", f"b,b1,0.1,{end},0").replace("c,c1,0,12,1,80", f"b,c1,{end},{end},0,80")
    table = tables.read_features(write(text), time_unit=unit)
    assert len(table) == 4 and tables.time_left(table)[3] == 0
    assert "1 last visits of censored subjects lie at `time`" in caplog.text
    assert tables.last_visits(table)["scan"].tolist() == ["a2", "b1"]
    unknown = table.drop(columns=["time", "event"])
    assert tables.last_visits(unknown)["scan"].tolist() == ["a2", "c1"]


LATE = [
    (GOOD.replace("a,a2,6", "a,a2,24"), "1 visits: 1 at or after their subject's event, 0 after", ["a1", "b1", "c1"]),
    (GOOD.replace("a,a2,6", "a,a2,25"), "1 visits: 1 at or after their subject's event, 0 after", ["a1", "b1", "c1"]),
    (GOOD.replace("b,b1,0", "b,b1,30.5"), "1 visits: 0 at or after their subject's event, 1 after", ["a1", "a2", "c1"]),
]


@pytest.mark.parametrize(("text", "said", "left"), LATE)
def test_late_visits_are_dropped_and_counted_if_that_is_asked_for(write, caplog, text, said, left):
    path = write(text, volumes=False)
    for image in left:  # the scans of visits that are left out need not be there
        (path.parent / f"{image}.nii.gz").touch()
    table = read(path, time_unit="months", reading=tables.Reading(late_visits="drop"))
    assert table["scan"].tolist() == left and said in caplog.text
    with pytest.raises(InputError, match="a visit a"):
        read(path, time_unit="months")


def test_nothing_but_late_visits_is_refused(write):
    text = "subjectid,visit_time,time,convert_status\na,3,2,1\nb,4,1,0\n"
    with pytest.raises(InputError, match="every visit is at or after its subject's `time`"):
        tables.read_features(write(text), reading=tables.Reading(late_visits="drop"))


def test_other_column_names_are_listed_beside_ours(write):
    with pytest.raises(InputError, match=r"Missing: subjectid, time\. Found: id, imageid"):
        read(write(GOOD.replace("subjectid", "id").replace(",time,", ",months,")))


@pytest.mark.parametrize("text", ["", "subjectid,imageid,visit_time,time,convert_status\n", "\x00\x01\x02"])
def test_a_table_of_nothing_is_refused(write, text):
    with pytest.raises(InputError, match="expected"):
        read(write(text))


def test_a_long_table_takes_seconds(tmp_path):
    """Of this processor, whatever its speed: what pandas alone takes is the measure."""
    number = np.arange(200_000)
    table = pd.DataFrame({"subjectid": number // 4, "imageid": number, "visit_time": number % 4 / 2, "time": 9.5})
    table.assign(convert_status=number // 4 % 3 // 2, age=number % 97 / 7).to_csv(tmp_path / "many.csv", index=False)
    began = time.process_time()
    pd.read_csv(tmp_path / "many.csv", dtype=str)
    read_alone = time.process_time()
    table_read = tables.read_features(tmp_path / "many.csv")
    assert time.process_time() - read_alone < 100 * (read_alone - began)
    assert len(table_read) == 200_000 and table_read["age"].max() == 96 / 7


@pytest.mark.parametrize(
    ("there", "told"), [("a1.NII.GZ", "rename it to a1.nii.gz"), ("a1.mgz", "convert it to NIfTI: mri_convert a1.mgz")]
)
def test_a_volume_of_another_name_is_told_with_its_remedy(tmp_path, there, told):
    (tmp_path / there).write_bytes(b"")
    (tmp_path / "cohort.csv").write_text("subjectid,imageid,visit_time,time,convert_status\na,a1,0,1,1\n")
    with pytest.raises(InputError, match=rf"found none at '.*a1\.nii\.gz' \({re.escape(there)} lies there: {told}"):
        tables.read_cohort(tmp_path / "cohort.csv", mri_folder=tmp_path)


@pytest.mark.parametrize("blank", ["", "  ", "NA", "n/a"])
def test_a_blank_path_of_a_scan_is_named_with_its_row(write, blank):
    rows = "".join(f"{name},{name}1,0,2,1,{blank if name == 'b' else f' {name}1.nii.gz '}\n" for name in "abc")
    path = write("subjectid,imageid,visit_time,time,convert_status,nifti_path\n" + rows)
    with pytest.raises(InputError, match=r"\(1\):\n  row 3: nifti_path: expected the path of a scan, received"):
        read(path)
    path.write_text(path.read_text().replace(f",{blank}\n", ",b1.nii.gz\n"))
    assert [name[-9:] for name in read(path)["nifti_path"]] == ["a1.nii.gz", "b1.nii.gz", "c1.nii.gz"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", ""])
def test_a_folder_in_the_place_of_a_table_is_called_a_folder(tmp_path, suffix):
    folder = tmp_path / f"table.{suffix}"
    folder.mkdir()
    with pytest.raises(InputError, match="expected a table, found a folder"):
        tables.read_features(folder)


# ---- Names -------------------------------------------------------------------------------------------
HEADER = "subjectid,imageid,visit_time,time,convert_status"


def with_columns(*names):
    """A sound table of three scans with further columns of these names."""
    rows = (f"{row},{','.join(str(n + k) for k in range(len(names)))}" for n, row in enumerate(ROWS))
    return "\n".join([",".join([HEADER, *names]), *rows]) + "\n"


ROWS = ["a,a1,0,2,1", "b,b1,0,3,0", "c,c1,0,1,1"]
TAKEN = [
    ["event"],
    ["subject", "scan"],
    ["cache_entry", "event"],
    ["Time"],
    ["SubjectID", "subject_id"],
    ["Visit Time", "NIfTI_path"],
    ["convert\u200b_status"],
]


@pytest.mark.parametrize("names", TAKEN)
def test_columns_that_would_be_taken_for_ours_are_all_named_at_once(write, names):
    for reader in (tables.read_features, read, lambda path: tables.read_scans(path, mri_folder=path.parent)):
        with pytest.raises(InputError, match=rf"columns can't be used \({len(names)}\)") as error:
            reader(write(with_columns("age", *names)))
        assert [name for name in names if name not in str(error.value) and repr(name) not in str(error.value)] == []
        assert "Rename these columns" in str(error.value) and "age" not in str(error.value)


@pytest.mark.parametrize("names", [["feature_1", "feature_07"], ["log_hazard"], ["progress", "event"]])
def test_covariates_of_scans_that_bear_the_names_of_stage_1_are_refused(write, names):
    for reader in (read, lambda path: tables.read_scans(path, mri_folder=path.parent)):
        with pytest.raises(InputError, match=rf"columns can't be used \({len(names)}\)") as error:
            reader(write(with_columns(*names)))
        assert f"{names[0]}: stage 1 makes a column of this name" in str(error.value)
    if "event" not in names:  # a table of features may hold those of stage 1
        assert tables.read_features(write(with_columns(*names)))[names[0]].tolist() == [0, 1, 2]


def test_a_column_of_ours_in_another_spelling_is_named_if_ours_is_absent(write):
    with pytest.raises(InputError, match=r"(?s)Missing: subjectid, time\..*'Subject ID': differs .*'TIME': differs"):
        read(write(with_columns().replace("subjectid", "Subject ID").replace(",time", ",TIME")))


ORDINARY = [
    "index",
    "level_0",
    "split",
    "landmark",
    "survival_2.0",
    "attention_1",
    "out_of_range",
    "part",
    "row",
    "risk",
]
ORDINARY += [
    "x[1]",
    "a+b",
    "C(z)",
    "Intercept",
    "_x",
    "__x__",
    "1",
    "2.5",
    "x=1",
    "<b>",
    "na\u00efve",
    "Age",
    "age",
    "$x_1$",
]
ORDINARY += ["columns", "missing", "coding", "scale", "values", "time left", "feature_x", "feature", "features"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_any_other_name_is_an_ordinary_column(write, tmp_path, suffix):
    table = read(write(with_columns(*ORDINARY)))
    assert tables.feature_columns(table) == ORDINARY
    tables.write_table(table, tmp_path / f"out.{suffix}")
    pd.testing.assert_frame_equal(tables.read_features(tmp_path / f"out.{suffix}"), table)


@pytest.mark.parametrize("name", ['"MMSE\nscore"', '" MMSE   score\t"', "MMSE\u00a0score", '"MMSE\x1b\x00 score"'])
def test_a_name_is_tidied_to_one_line(write, tmp_path, name):
    plain = name.strip('"')
    if "\0" not in name:
        assert tables.feature_columns(read(write(with_columns(name)))) == ["MMSE score"]
    sound = pd.read_csv(write(with_columns("x"))).rename(columns={"x": plain, "time": " time"})
    sound.to_parquet(tmp_path / "t.parquet")
    assert tables.feature_columns(tables.read_features(tmp_path / "t.parquet")) == ["MMSE score"]
    sound.assign(**{"MMSE score": 1}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="2 columns are called 'MMSE score'"):
        tables.read_features(tmp_path / "t.parquet")
