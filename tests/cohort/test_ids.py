"""One person under two ids: what counts as one id, and how it is refused."""

import pytest
from cohort_csv import GOOD

from cohort import tables
from cohort.ids import id_key, similar_ids
from runs.errors import InputError

ALLOW = tables.Reading(similar_ids="allow")
VARIANTS = {
    "a spreadsheet's point": ("12", "12.0"),
    "a decimal comma": ("12", "12,0"),
    "lost zeros": ("0012", "12"),
    "case": ("ab-3", "AB-3"),
    "sharp s": ("straße", "STRASSE"),
    "zero-width space": ("ab3", "a\u200bb3"),
    "byte order mark": ("ab3", "\ufeffab3"),
    "soft hyphen": ("ab3", "ab\u00ad3"),
    "variation selector": ("ab3", "ab3\ufe0f"),
    "composed accent": ("zo\u00e9", "zoe\u0301"),
    "full-width digits": ("ab3", "ab\uff13"),
    "no-break space": ("ab 3", "ab\u00a03"),
    "two blanks": ("ab 3", "ab  3"),
    "another dash": ("ab-3", "ab\u20133"),
}


@pytest.mark.parametrize("what", VARIANTS)
def test_two_spellings_of_one_id_are_one(what):
    first, second = VARIANTS[what]
    assert id_key(first) == id_key(second) != ""


@pytest.mark.parametrize(
    "pair", [("1", "10"), ("1.5", "15"), ("-1", "1"), ("ab", "a b"), ("s1", "s1.0"), ("a-1", "a_1"), ("0", "00a")]
)
def test_two_ids_stay_two(pair):
    assert id_key(pair[0]) != id_key(pair[1])
    assert similar_ids(dict.fromkeys(pair, "row 2")) == []


@pytest.mark.parametrize("what", VARIANTS)
def test_one_subject_under_two_ids_is_refused_by_name(write, what):
    first, second = (f'"{name}"' for name in VARIANTS[what])
    text = GOOD.replace("a,a2", f"{first},a2").replace("a,a1", f"{second},a1")
    with pytest.raises(InputError, match="subjectid: expected one spelling of each id") as error:
        tables.read_features(write(text))
    for name, row in zip(VARIANTS[what], (3, 4), strict=True):
        assert f"{name!a} (row {row})" in str(error.value)
    assert "SIMILAR_IDS=allow" in str(error.value)
    allowed = tables.read_features(write(text), reading=ALLOW)
    assert allowed["subject"].nunique() == 4


def test_two_spellings_of_an_image_are_refused(write):
    with pytest.raises(InputError, match=r"imageid: .* 'b1' \(row 2\) and 'B1' \(row 3\)"):
        tables.read_features(write(GOOD.replace("a,a2", "a,B1")))


@pytest.mark.parametrize("hidden", ["\u200b", "\u2060\u200d", "\u3164"])
def test_an_id_that_can_not_be_seen_is_none(write, hidden):
    with pytest.raises(InputError, match="row 3: subjectid: expected an id"):
        tables.read_features(write(GOOD.replace("a,a2", f"{hidden},a2")))


def test_many_spellings_are_one_line(write):
    rows = "".join(f"{name},{name},0,9,1\n" for number in range(50) for name in (f"s{number}", f"S{number}"))
    with pytest.raises(InputError, match="50 ids are spelt in several ways: 's0'") as error:
        tables.read_features(write("subjectid,imageid,visit_time,time,convert_status\n" + rows))
    assert str(error.value).count("\n") == 3  # a line for the subjects, one for the images


@pytest.mark.parametrize(("first", "second"), [("7", "7.0"), ("Zo\u00e9", "zoe\u0301")])
def test_one_subject_under_two_ids_in_two_tables_is_refused(write, first, second):
    header = "subjectid,imageid,visit_time,time,convert_status\n"
    ids = {"train": (first, "a1"), "val": (second, "b1"), "test": ("other", "c1")}
    paths = {part: write(f"{header}{name},{scan},0,9,1\n", f"{part}.csv") for part, (name, scan) in ids.items()}
    with pytest.raises(InputError) as error:
        tables.read_parts(paths, mri_folder=paths["train"].parent)
    assert f"{first!a} (train part) and {second!a} (val part)" in str(error.value)
    parts, _ = tables.read_parts(paths, mri_folder=paths["train"].parent, reading=ALLOW)
    assert parts["val"]["subject"].tolist() == [second]
