"""Subjects without an outcome: who they are, what is refused of them, and what they can't reach."""

import pandas as pd
import pytest
from cohort_csv import GOOD

from cohort import tables
from cohort.splits import split_subjects
from cohort.teachers import COLUMNS, who_can_teach
from runs.errors import InputError

HEADER = "subjectid,imageid,visit_time,time,convert_status"
WITH_OUTCOME = "a,a1,0,24,1\nb,b1,0,30,0\n"
EMPTY = ["", "  ", "NA", "n/a", "NaN", ".", "?", '" "']


def read(path, **kwargs):
    return tables.read_cohort(path, mri_folder=path.parent, time_unit="months", **kwargs)


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("time", ["", "30", "NA"])
def test_an_empty_outcome_makes_a_teacher_whatever_the_mark(write, empty, time):
    text = f"{HEADER},age\na,a1,0,24,1,70\nb,c1,6,{time},{empty},50\nb,b1,0,{time},{empty},\na,a2,6,24,1,71\n"
    table, teachers = read(write(text))
    assert table["scan"].tolist() == ["a1", "a2"] and table["event"].tolist() == [True, True]
    assert table["event"].dtype == bool and table["time"].tolist() == [2.0, 2.0]
    assert list(teachers.columns) == list(COLUMNS)  # no outcome, no covariate
    assert teachers["scan"].tolist() == ["b1", "c1"] and teachers["visit_time"].tolist() == [0.0, 0.5]
    assert teachers["nifti_path"].str.endswith(("b1.nii.gz", "c1.nii.gz")).all()


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_teachers_are_read_in_every_dialect_and_from_parquet(write, tmp_path, delimiter):
    text = HEADER + "\n" + WITH_OUTCOME.replace("0,24", "0.5,24") + "c,c1,1.5,,\n"
    spread = text.replace(",", delimiter)
    _, teachers = read(write(spread.replace(".", ",") if delimiter == ";" else spread))
    assert teachers["scan"].tolist() == ["c1"] and teachers["visit_time"].tolist() == [0.125]
    pd.read_csv(write(text)).to_parquet(tmp_path / "t.parquet")
    table, again = read(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(again, teachers)
    assert table["event"].tolist() == [True, False]


def test_the_subjects_with_an_outcome_are_read_as_if_the_others_were_not_there(write):
    alone, none = read(write(GOOD.replace("c,c1,0,12,1,80\n", "")))
    beside, teachers = read(write(GOOD.replace("c,c1,0,12,1", "c,c1,0,12,")))
    pd.testing.assert_frame_equal(alone, beside)
    assert none.empty and teachers["scan"].tolist() == ["c1"]


MIXED = [
    (GOOD.replace("a,a2,6,24,1", "a,a2,6,24,"), "row 3: convert_status: expected an outcome, as in other rows", "''"),
    (GOOD.replace("a,a1,0,24,1", "a,a1,0,,n/a"), "row 4: convert_status: expected an outcome, as in other rows", "n/a"),
]


@pytest.mark.parametrize(("text", "words", "shown"), MIXED)
def test_a_subject_with_an_outcome_in_some_rows_is_refused_by_row(write, text, words, shown):
    with pytest.raises(InputError, match="leave it empty in all rows of a subject") as error:
        read(write(text))
    assert words in str(error.value) and shown in str(error.value) and "(1):" in str(error.value)


def test_all_faults_are_told_at_once_also_those_of_teachers(write):
    rows = ["a,a1,0,24,1", "a,a2,6,24,", "b,b1,-1,x,", "c,zz,0,,", "c,c1,0,,NA", "d,d1,0,3,2"]
    with pytest.raises(InputError) as error:
        read(write(HEADER + "\n" + "\n".join(rows) + "\n"))
    for words in (
        "(8):",
        "row 3: convert_status: expected an outcome",
        "row 4: visit_time: expected a number >= 0, received -1",
        "row 4: time: expected a number >= 0, received 'x'",
        "row 5: two visits of one subject at one time",
        "row 5: expected a file",
        "row 6: two visits of one subject at one time",
        "row 7: convert_status: expected 0 or 1, received '2'",
        "row 7: expected a file",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("rows", ["a,a1,0,24,\na,a2,6,24,\n", "a,a1,0,,NA\nb,b1,0,30, \nc,c1,0,1,.\n"])
def test_a_table_of_teachers_alone_is_refused_in_words(write, rows):
    for reader in (read, lambda path: tables.read_features(path, time_unit="months")):
        with pytest.raises(
            InputError, match=r"convert_status: empty in all \d rows; subjects without an outcome can't"
        ):
            reader(write(HEADER + "\n" + rows))


@pytest.mark.parametrize("names", [(), ("conversion", "death")])
def test_a_wrong_coding_beside_teachers_keeps_its_cause(write, names):
    states = ["1", "2", "3"] if names else ["1", "2", ""]
    rows = "".join(f"{name},{name}1,0,30,{state}\n" for name, state in zip("abc", states, strict=True))
    with pytest.raises(InputError, match="name them all" if names else "subtract 1 in every row"):
        read(write(HEADER + "\n" + rows), reading=tables.Reading(event_names=names))


def test_a_late_visit_is_that_of_a_subject_with_an_outcome_alone(write, caplog):
    text = HEADER + "\n" + WITH_OUTCOME + "c,c1,40,30,\nb,a2,31,30,0\n"
    with pytest.raises(InputError, match=r"\(1\):\n  row 5: a visit after the end"):
        read(write(text))
    table, teachers = read(write(text), reading=tables.Reading(late_visits="drop"))
    assert table["scan"].tolist() == ["a1", "b1"] and teachers["scan"].tolist() == ["c1"]
    assert "leaves out 1 visits: 0 at or after their subject's event, 1 after" in caplog.text


@pytest.mark.parametrize("rows", ["a,a1,31,30,0\n", "a,a1,24,24,1\nb,b1,31,30,0\n"])
def test_teachers_whom_late_visits_leave_alone_are_no_cohort(write, rows):
    table, teachers = read(write(HEADER + "\n" + rows + "c,c1,0,,\n"), reading=tables.Reading(late_visits="drop"))
    assert table.empty and len(teachers) == 1
    with pytest.raises(InputError, match="the train part has no event"):
        split_subjects(table, test_ratio=0.3, val_train_ratio=0.3, seed=0)


def test_a_table_of_features_leaves_them_out_and_counts_them(write, caplog):
    table = tables.read_features(write(GOOD.replace("24,1", "24,").replace("12,1", "12,NA")), time_unit="months")
    assert table["subject"].tolist() == ["b"]
    assert "2 subjects without an outcome are left out, with their 3 visits" in caplog.text
    caplog.clear()
    tables.read_features(write(GOOD), time_unit="months")
    assert "without an outcome" not in caplog.text


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("24,1", "24,"), GOOD.replace(",convert_status", ",state")])
def test_a_table_to_predict_is_read_whole_whatever_the_outcomes_are(write, caplog, text):
    path = write(text)
    table = tables.read_scans(path, mri_folder=path.parent, time_unit="months")
    assert table["scan"].tolist() == ["a1", "a2", "b1", "c1"] and caplog.text == ""


# ---- The user's own split --------------------------------------------------------------------------------
def parts_of(write, **rows):
    """The paths of three tables; a part that is not given has one subject with an event."""
    usual = {"train": "a,a1,0,24,1", "val": "b,b1,0,30,1", "test": "c,c1,0,12,1"}
    return {
        name: write("\n".join([HEADER, usual[name], *rows.get(name, [])]) + "\n", name=f"{name}.csv") for name in usual
    }


def test_train_alone_may_hold_teachers(write, tmp_path):
    paths = parts_of(write, train=["d,a2,0,,"])
    parts, teachers = tables.read_parts(paths, mri_folder=tmp_path)
    assert teachers["scan"].tolist() == ["a2"] and [len(part) for part in parts.values()] == [1, 1, 1]


@pytest.mark.parametrize(("part", "empty"), [("val", ""), ("test", "NA"), ("test", "  ")])
@pytest.mark.parametrize("names", [(), ("conversion", "death")])
def test_val_and_test_may_not_and_their_rows_are_named(write, tmp_path, part, empty, names):
    paths = parts_of(write, **{part: [f"d,a2,0,,{empty}", f"e,b1,0,9,{len(names)}"]})
    with pytest.raises(InputError) as error:
        tables.read_parts(paths, mri_folder=tmp_path, reading=tables.Reading(event_names=names))
    assert f"{part}.csv" in str(error.value) and "row 3: convert_status: expected 0 " in str(error.value)
    assert "Empty? Only TRAIN_CSV or COHORT_CSV may hold subjects without an outcome" in str(error.value)


TWINS = {
    "the same subject": ("b,a2,0,,", "subject 'b' is in train and val"),
    "the same image": ("d,c1,0,,", "scan 'c1' is in train and test"),
    "a subject of a similar id": ("B,a2,0,,", "SIMILAR_IDS"),
}


@pytest.mark.parametrize("kind", TWINS)
def test_a_teacher_who_is_in_another_part_too_is_refused(write, tmp_path, kind):
    row, words = TWINS[kind]
    paths = parts_of(write, train=[row])
    with pytest.raises(InputError, match=words):
        tables.read_parts(paths, mri_folder=tmp_path)


# ---- Who is of use ---------------------------------------------------------------------------------------
def scans_of(*num_visits):
    subjects = [f"t{number}" for number, count in enumerate(num_visits) for _ in range(count)]
    scans = [f"i{row}" for row in range(len(subjects))]
    return pd.DataFrame({"subject": subjects, "scan": scans, "visit_time": 0.0, "nifti_path": ""})


@pytest.mark.parametrize(("num_visits", "left", "words"), [((3, 1, 2), 5, "1 subjects"), ((1, 1), 0, "2 subjects")])
def test_subjects_of_one_scan_are_counted_and_left_out(caplog, num_visits, left, words):
    assert len(who_can_teach(scans_of(*num_visits), is_progress_learned=True)) == left
    assert f"{words} without an outcome are left out: they have one scan" in caplog.text


def test_without_progress_all_are_counted_and_left_out(caplog):
    assert who_can_teach(scans_of(3, 1, 2), is_progress_learned=False).empty
    assert "3 subjects without an outcome are left out, with their 6 scans" in caplog.text


@pytest.mark.parametrize("is_progress_learned", [True, False])
def test_nothing_is_said_where_there_is_nobody(caplog, is_progress_learned):
    assert who_can_teach(scans_of(), is_progress_learned=is_progress_learned).empty
    assert who_can_teach(scans_of(2, 2), is_progress_learned=True)["scan"].tolist() == ["i0", "i1", "i2", "i3"]
    assert caplog.text == ""


# ---- On disk again ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("unit", ["years", "months"])
def test_a_training_table_with_teachers_reads_the_same_once_it_is_written(write, tmp_path, unit):
    text = HEADER + ",age,sex\na,a1,0,24,1,70,F\nb,b1,0,30,0,,M\nc,c1,6,,,50,F\nc,a2,0,,,50,F\n"
    table, teachers = read(write(text))
    tables.write_table(pd.concat([table, teachers]), tmp_path / "again.csv", time_unit=unit)
    again = tables.read_cohort(tmp_path / "again.csv", mri_folder=tmp_path, time_unit=unit)
    pd.testing.assert_frame_equal(again[0], table)
    pd.testing.assert_frame_equal(again[1], teachers)
    tables.write_table(teachers, tmp_path / "teachers.csv", time_unit=unit)
    columns = pd.read_csv(tmp_path / "teachers.csv").columns
    assert columns.tolist() == ["subjectid", "imageid", "visit_time", "nifti_path"]
