"""Rows that can't be used: few are named one by one, many of one fault are one line with its likely cause."""

import pytest

from cohort import tables
from cohort.faults import row_fault, row_faults
from runs.errors import InputError, raise_if_any

HEADER = "subjectid,imageid,visit_time,time,convert_status,x\n"


def table_of(row, number=40):
    """A row for each of many subjects, given its number; `row` gives visit_time, time, convert_status and x."""
    return HEADER + "".join(f"s{n},i{n},{row(n)}\n" for n in range(number))


def refused(write, text, **kwargs):
    with pytest.raises(InputError) as error:
        tables.read_features(write(text, volumes=False), **kwargs)
    return str(error.value)


CAUSES = {
    "status 1/2": (lambda n: f"0,3,{1 + n % 2},1", "20 rows: convert_status", "subtract 1 in every row"),
    "status 1/2 as text": (lambda n: f"0,3,{1 + n % 2}.0,1", "20 rows: convert_status", "subtract 1 in every row"),
    "status -1/1": (lambda n: f"0,3,{n % 2 * 2 - 1},1", "20 rows: convert_status", "write 0"),
    "competing": (lambda n: f"0,3,{n % 3},1", "13 rows: convert_status", "competing events"),
    "words": (lambda n: f"0,3,{['dead', 'alive'][n % 2]},1", "40 rows: convert_status", "Words?"),
    "dates": (lambda n: f"0,2019-03-{n % 28 + 1:02},1,1", "40 rows: time: expected a number >= 0", "Dates?"),
    "German dates": (lambda n: f"0,{n % 28 + 1}.3.2019,1,1", "40 rows: time: expected a number >= 0", "Dates?"),
    "calendar years": (lambda n: f"0,{2000 + n % 9},1,1", "40 rows: time: expected years", "Calendar years?"),
    "serial days": (lambda n: f"0,{43000 + n},1,1", "40 rows: time: expected years", "a spreadsheet program numbers"),
    "months": (lambda n: f"0,{121 + n},1,1", "40 rows: time: expected years", "set TIME_UNIT=months"),
    "ages": (lambda n: f"0,{100.5 + n % 9},1,1", "40 rows: time: expected years", "Ages? Then write years since"),
    "days": (lambda n: f"0,{1300 + n},1,1", "40 rows: time: expected years", "set TIME_UNIT=days"),
    "negative": (lambda n: f"-0.{n + 1},3,1,1", "40 rows: visit_time: expected a number >= 0", "before the baseline"),
    "a few late": (lambda n: f"{4 if n < 9 else 0},3,1,1", "9 rows: a visit at or after", "LATE_VISITS=drop"),
    "all late": (lambda n: f"{n + 24},3,0,1", "40 rows: a visit after the end", "another unit than `time`"),
    "a unit": (lambda n: f"0,3,1,{n if n > 9 else f'{n}.5 ml'}", "10 rows: x: expected a number", "with a unit"),
    "a limit": (lambda n: f"0,3,1,{n if n > 9 else f'<{n}'}", "10 rows: x: expected a number", "a limit"),
    "ragged": (lambda n: "0,3,1,1,5" if n < 7 else "0,3,1,1", "7 rows: expected 6 fields", "A comma within a cell"),
}


@pytest.mark.parametrize("what", CAUSES)
def test_many_rows_of_one_cause_are_one_line_with_the_cause(write, what):
    row, line, cause = CAUSES[what]
    message = refused(write, table_of(row))
    assert f"(1):\n  {line}" in message and cause in message
    assert message.count("\n") == 2 and 1 <= message.count("(row ") <= 3


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (lambda n: [(0, 3, 1), (1, 2, 1)], "Does `time` count from each visit?"),
        (lambda n: [(0, 5 + n, 0), (2.5, 2.5 + n, 0)], "Does `time` count from each visit?"),
        (lambda n: [(0, 3, 0), (1, 3, 1)], "not the state at a visit"),
        (lambda n: [(0, 3, 1), (1, 3 + n, 0)], "the same in all rows"),
    ],
)
def test_two_outcomes_have_their_cause(write, rows, cause):
    text = "".join(f"s{n},i{n}v{v[0]},{v[0]},{v[1]},{v[2]},1\n" for n in range(2, 20) for v in rows(n))
    message = refused(write, HEADER + text)
    assert "36 rows: one subject with two outcomes, received 's2' (row 2), 's3' (row 4)" in message
    assert cause in message


def test_files_that_are_all_absent_have_their_cause(write):
    path = write(table_of(lambda n: "0,3,1,1"), volumes=False)
    with pytest.raises(InputError, match=r"40 rows: expected a file, found none at .* check MRI_FOLDER"):
        tables.read_cohort(path, mri_folder=path.parent / "mri")


def test_a_fault_shows_the_value_if_it_is_given():
    assert row_fault(3, "imageid stands twice") == "row 3: imageid stands twice"
    assert (
        row_fault(3, "expected a file", "a.nii", verb="found none at")
        == "row 3: expected a file, found none at 'a.nii'"
    )


def test_few_rows_have_a_line_each_and_many_show_different_values():
    assert row_faults([], "wrong") == []
    assert row_faults([(2, 7), (3, 8)], "wrong", cause="Why.") == [
        "row 2: wrong, received 7",
        "row 3: wrong, received 8. Why.",
    ]
    rows = [(n, n // 4) for n in range(2, 20)]
    assert row_faults(rows, "wrong") == ["18 rows: wrong, received 0 (row 2), 1 (row 4), 2 (row 8), …"]


def test_many_lines_are_counted():
    with pytest.raises(InputError, match="and 10 more"):
        raise_if_any("Rows can't be used", [f"row {n}: wrong" for n in range(1010)], "Fix them.")
