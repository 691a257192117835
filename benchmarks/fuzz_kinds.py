"""Kinds of wrong input whose right answer is known: a silent acceptance is as much a bug as a traceback.

`fuzz.py` runs them. A case has a file, and what must become of it: it is refused by name, or it is read as the sound
file is, but for what the case changed.
"""

import contextlib
import gzip
import re
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from cohort import tables
from cohort.volume import preprocess, read_image
from runs.errors import InputError

SHAPE = (16, 16, 16)
LONGEST_FOLLOW_UP = 100.0  # years; longer ones must be refused
MARKS = [
    "",
    "NA",
    "N/A",
    "n/a",
    "NULL",
    "null",
    "None",
    "NaN",
    "nan",
    "#N/A",
    "<NA>",
    ".",
    "-",
    "?",
    "\u2013",
    "\u2212",
]
IDS = ["1", "20", "s3", "zo\u00e9", "A-5", "6 b", "seven", "0008"]  # of the subjects
AGAIN = {  # spellings of an id that look like it, or that a spreadsheet program makes of it
    "1": ["1.0", "01", "1.", "\uff11", "1\u200b", "\ufeff1", "+1"],
    "20": ["20.0", "0020", "\uff12\uff10", "2\u00ad0", "20,0"],
    "s3": ["S3", "s3\u200b", "\uff533", "s\u200d3", "s3\ufe0f"],
    "zo\u00e9": ["zoe\u0301", "ZO\u00c9", "Zo\u00e9", "zo\u00e9\u2060"],
    "A-5": ["a-5", "A\u20115", "A\u20135", "\uff21-5"],
    "6 b": ["6  b", "6\u00a0b", "6 B", "6\u2003b"],
    "seven": ["Seven", "SEVEN", "sev\u200ben", "\u202aseven"],
    "0008": ["8", "08", "8.00", "\uff18"],
}
NAMES = ["event", "subject", "scan", "log_hazard", "feature_1", "index", "cache_entry", "split", "landmark", "progress"]
NAMES += ["survival_2.0", "attention_1", "out_of_range", "level_0", "Time", "SubjectID", "visit_time ", "time", "0"]
NAMES += ["Unnamed: 0", "event_x", "_x", "a b", "[a]", "__index_level_0__", "CONVERT_STATUS", "imageid", "age:1"]


@dataclass(frozen=True)
class Case:
    """A file and what must become of it; with both answers given, either is right."""

    content: bytes
    read: Callable[[Path], Any]
    refusal: str = ""  # pattern of the message that refuses it; empty: it must be read
    expected: Any = None  # what reading gives; None: it must be refused


class Kind:
    """A kind of wrong input.

    Args:
        name: of the kind, in the report.
        path: where a case's file is written.
        make: draws a case.
    """

    def __init__(self, name: str, path: Path, make: Callable[[np.random.Generator], Case]):
        self.name, self.path, self.make = name, path, make

    def run(self, cases: int, rng: np.random.Generator, bug_folder: Path) -> Counter:
        """Read cases of the kind.

        Args:
            cases: number of cases.
            rng: draws them.
            bug_folder: for the files that show a bug.
        Returns:
            Number of cases by outcome.
        """
        counts: Counter = Counter()
        for number in range(cases):
            case = self.make(rng)
            self.path.write_bytes(case.content)
            outcome = attempt(partial(judge, case, self.path))
            counts[outcome] += 1
            if outcome == "bug":
                keep(bug_folder, f"{self.name}-{number}{self.path.suffix}", case.content)
        return counts


def keep(folder: Path, name: str, content: bytes) -> None:
    """Write a file that shows a bug into the folder of such files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name.replace(" ", "-").replace(",", "")).write_bytes(content)


def attempt(do: Callable[[], object]) -> str:
    """The outcome of a call: `accepted`, `refused`, or `bug`, whose traceback is printed."""
    try:
        with contextlib.redirect_stderr(None), np.errstate(all="ignore"):
            do()
    except InputError:
        return "refused"
    except SystemExit as error:
        return "refused" if error.code == 2 else "accepted"
    except Exception:  # noqa: BLE001 - any other error is a bug of the reader
        traceback.print_exc(file=sys.stdout)
        return "bug"
    return "accepted"


def judge(case: Case, path: Path) -> None:
    """Read a case and assert that its answer is right; what refuses it is raised again."""
    try:
        result = case.read(path)
    except InputError as error:
        assert case.refusal, f"a sound file is refused: {error}"
        assert re.search(case.refusal, str(error)), f"refused for another reason than {case.refusal!r}: {error}"
        raise
    assert case.expected is not None, f"accepted in silence, expected {case.refusal!r}"
    if isinstance(result, pd.DataFrame):
        pd.testing.assert_frame_equal(result, case.expected, check_like=True, check_dtype=False, rtol=1e-9)
    else:
        np.testing.assert_allclose(result, case.expected, atol=2e-3)


# ---- Tables ------------------------------------------------------------------------------------------
def sound_table() -> pd.DataFrame:
    """24 visits of 8 subjects, as text; every second subject has the event, and no number has three decimals."""
    rows = [(subject, visit, n) for n, subject in enumerate(IDS) for visit in range(3)]
    return pd.DataFrame(
        {
            "subjectid": [subject for subject, _, _ in rows],
            "imageid": [f"i{n}v{visit}" for _, visit, n in rows],
            "visit_time": [f"{visit / 2 + 0.25:.2f}" for _, visit, _ in rows],
            "time": [f"{5.25 + n:.2f}" for _, _, n in rows],
            "convert_status": [str(n % 2) for _, _, n in rows],
            "age": [f"{60 + 3.7 * n + visit / 2:.1f}" for _, visit, n in rows],
            "mmse": [str(30 - n - visit) for _, visit, n in rows],
        }
    )


def in_memory(table: pd.DataFrame, per_year: float = 1.0) -> pd.DataFrame:
    """What reading gives of a table like `sound_table`, from its text alone; `per_year` of its unit of time."""
    table = table.rename(columns={column: name for name, column in tables.ON_DISK.items()})
    numbers = table.columns.difference(["subject", "scan"])
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    table[["visit_time", "time"]] /= per_year
    table["event"] = table["event"] == 1
    return table.sort_values(["subject", "visit_time"], kind="stable").reset_index(drop=True)


def as_text(table: pd.DataFrame, delimiter: str = ",") -> bytes:
    """The table as CSV, with quotes where a cell needs them."""
    return table.to_csv(None, index=False, sep=delimiter).encode()


def pick(rng: np.random.Generator, values: Any) -> Any:
    """One of some values, each as likely; as it is, where NumPy would make it a type of its own."""
    return list(values)[int(rng.integers(0, len(values)))]


def with_marks(rng: np.random.Generator) -> Case:
    """Marks of missing values in one or two covariates, at any share; or one in a column that must be whole."""
    table, delimiter = sound_table(), pick(rng, ",;\t")
    if rng.random() < 0.25:
        column = pick(rng, ["subjectid", "visit_time", "time", "convert_status"])
        table.loc[int(rng.integers(0, len(table))), column] = pick(rng, MARKS)
        return Case(as_text(table, delimiter), tables.read_features, rf"row \d+: {column}: expected")
    expected = table.copy()
    for column in rng.permutation(["age", "mmse"])[: int(rng.integers(1, 3))]:
        missing = rng.random(len(table)) < rng.random() * 1.2
        blank = pick(rng, ["", " "])
        marks = [blank + pick(rng, MARKS) + blank for _ in range(len(table))]
        table[column], expected[column] = table[column].where(~missing, marks), expected[column].where(~missing, "")
    return Case(as_text(table, delimiter), tables.read_features, expected=in_memory(expected))


def with_separators(rng: np.random.Generator) -> Case:
    """Decimal commas, which are read; thousands that may be decimals, which are refused, or read as the user says."""
    table = sound_table()
    if rng.random() < 0.3:
        commas = table.copy()
        numbers = ["visit_time", "time", "age"]
        commas[numbers] = commas[numbers].apply(lambda column: column.str.replace(".", ","))
        return Case(as_text(commas, ";"), tables.read_features, expected=in_memory(table))
    table[["visit_time", "age"]] = table[["visit_time", "age"]].astype(float).mul(100).round().astype(int).astype(str)
    column, sign = pick(rng, ["time", "age"]), pick(rng, ".,")
    if column == "age":
        table["time"] = "2000"
    by_subject = 1000 + rng.integers(0, 9000, len(IDS))
    whole = table.assign(**{column: np.repeat(by_subject, 3).astype(str)})
    grouped = table.assign(**{column: whole[column].str.replace(r"(\d{3})$", rf"{sign}\1", regex=True)})
    read = partial(tables.read_features, time_unit="days")
    match int(rng.integers(0, 4)):
        case 0:  # beside whole numbers, too
            plain = rng.random(len(table)) < 0.3
            plain[:3] = False
            mixed = grouped.assign(**{column: grouped[column].where(~np.repeat(plain[::3], 3), "950")})
            return Case(as_text(mixed, ";"), read, rf"{column}: .*DECIMAL|{column}: .*decimals or between thousands")
        case 1:
            delimiter = pick(rng, ",\t")
            commas = grouped.assign(**{column: grouped[column].str.replace(".", ",")})
            return Case(as_text(commas, delimiter), read, f"{column}: expected a number")
        case 2:
            return Case(as_text(grouped, ";"), read, rf"(?s){column}: .*DECIMAL")
        case _:
            other = {".": "comma", ",": "point"}[sign]
            read = partial(read, reading=tables.Reading(decimal=other))  # type: ignore[arg-type]
            return Case(as_text(grouped, ";"), read, expected=in_memory(whole, tables.PER_YEAR["days"]))


def with_ids(rng: np.random.Generator) -> Case:
    """A subject's or a scan's id in two spellings: refused, or two ids if the user says so."""
    table = sound_table()
    if rng.random() < 0.7:
        subject = int(rng.integers(0, len(IDS)))
        again = pick(rng, AGAIN[IDS[subject]])
        rows, column = 3 * subject + rng.permutation(3)[: int(rng.integers(1, 3))], "subjectid"
    else:
        first, other = rng.permutation(len(table))[:2]
        again = pick(
            rng, [str.upper, lambda text: text + "\u200b", lambda text: unicodedata.normalize("NFKC", text) + "\ufeff"]
        )(table.loc[first, "imageid"])
        rows, column = np.array([other]), "imageid"
    table.loc[rows, column] = again
    content = as_text(table, pick(rng, ";\t" if "," in again else ",;\t"))
    if rng.random() < 0.3:
        read = partial(tables.read_features, reading=tables.Reading(similar_ids="allow"))
        return Case(content, read, expected=in_memory(table))
    return Case(content, tables.read_features, rf"(?s){column}: .*spelt in several ways.*SIMILAR_IDS")


def with_units(rng: np.random.Generator) -> Case:
    """Times in one unit, read as another: refused beyond 100 years, never a traceback."""
    table, factor = sound_table(), float(pick(rng, [1, 12, 365.25, 52.18, 24 * 365.25, 1 / 12, 0.1]))
    for column in ("visit_time", "time"):
        table[column] = (table[column].astype(float) * factor).map(repr)
    unit = pick(rng, tables.PER_YEAR)
    expected = in_memory(table, tables.PER_YEAR[unit])
    read = partial(tables.read_features, time_unit=unit)
    if expected["time"].max() > LONGEST_FOLLOW_UP:
        return Case(as_text(table), read, rf"time: expected {unit} since .*100 years at most")
    return Case(as_text(table), read, expected=expected)


def with_names(rng: np.random.Generator) -> Case:
    """A covariate called like one of our own columns: refused by its name, or a column as any other."""
    table, name = sound_table(), pick(rng, NAMES)
    bare = name.strip()
    expected = None if bare in table else in_memory(table).rename(columns={"age": bare})
    content = as_text(table.rename(columns={"age": name}))
    return Case(content, tables.read_features, re.escape(bare) + "|column 6 has no name", expected)


def with_statuses(rng: np.random.Generator) -> Case:
    """`convert_status` in another coding: read where it says the same, else refused; or empty: left out."""
    table = sound_table()
    if rng.random() < 0.2:
        emptied = table["subjectid"].isin(rng.permutation(IDS)[: int(rng.integers(1, len(IDS)))])
        marks = pd.Series([pick(rng, MARKS) for _ in range(len(table))], table.index)
        content = as_text(table.assign(convert_status=table["convert_status"].mask(emptied, marks)))
        return Case(content, tables.read_features, expected=in_memory(table[~emptied]))
    same = {"0": ["0", "0.0", "False", "false", " 0"], "1": ["1", "1.0", "TRUE", "true", "1 "]}
    other = [
        ("1", "2"),
        ("-1", "1"),
        ("alive", "dead"),
        ("0", "2"),
        ("0", "yes"),
        ("0", "1,5"),
        ("0", "0.5"),
        ("0", "1e9"),
    ]
    if rng.random() < 0.4:
        coded = [pick(rng, same[status]) for status in table["convert_status"]]
        return Case(as_text(table.assign(convert_status=coded)), tables.read_features, expected=in_memory(table))
    censored, event = pick(rng, other)
    coded = np.where(table["convert_status"] == "1", event, censored)
    return Case(as_text(table.assign(convert_status=coded)), tables.read_features, "convert_status: expected 0 or 1")


def with_late_visits(rng: np.random.Generator) -> Case:
    """A subject's last visit at or after `time`: a censored subject's at `time` is read, the others are refused."""
    table = sound_table()
    subject, late = int(rng.integers(0, len(IDS))), pick(rng, [0, 1e-6, 0.01, 3])
    row = 3 * subject + 2
    table.loc[row, "visit_time"] = repr(5.25 + subject + late)
    if subject % 2 == 0 and late == 0:
        return Case(as_text(table), tables.read_features, expected=in_memory(table))
    if rng.random() < 0.5:
        read = partial(tables.read_features, reading=tables.Reading(late_visits="drop"))
        return Case(as_text(table), read, expected=in_memory(table.drop(index=row)))
    return Case(as_text(table), tables.read_features, rf"row {row + 2}: a visit (at or )?after")


def table_kinds(folder: Path) -> list[Kind]:
    """The kinds of tables, each written to a file of its own in `folder`."""
    makers = [with_marks, with_separators, with_ids, with_units, with_names, with_statuses, with_late_visits]
    return [Kind(f"tables {make.__name__.replace('_', ' ')}", folder / f"{make.__name__}.csv", make) for make in makers]


# ---- Scans -------------------------------------------------------------------------------------------
def sound_scan() -> nib.Nifti1Image:
    """18 x 20 x 17 voxels of 4 mm, with an sform and a qform that agree, and 0 around a ball."""
    rng = np.random.default_rng(0)
    i, j, k = np.indices((18, 20, 17)) - np.array([8.5, 9.5, 8]).reshape(3, 1, 1, 1)
    greys = np.where(i**2 + j**2 + k**2 < 50, rng.integers(50, 300, (18, 20, 17)), 0).astype(np.int16)
    image = nib.Nifti1Image(greys, np.array([[4.0, 0, 0, -34], [0, 4, 0, -38], [0, 0, 4, -32], [0, 0, 0, 1]]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    return image


def read_volume(path: Path) -> np.ndarray:
    """What the network sees of a scan, (16, 16, 16)."""
    return preprocess(read_image(path, 2**20), SHAPE)


def mirror(field: str) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a row of the sform round, so that its axis runs the other way over the same box."""
    size = {"srow_x": 17, "srow_y": 19, "srow_z": 16}[field]
    return lambda row: np.append(-row[:3], row[3] + 4 * size)


FORMS = "(?i)sform.*qform|qform.*sform"
HEADERS: list[
    tuple[str, Any, str]
] = [  # field; its new value, or what makes it; how it is refused, "": the same volume
    *[(f"srow_{axis}", mirror(f"srow_{axis}"), FORMS) for axis in "xyz"],
    *[(f"qoffset_{axis}", lambda mm, by=by: mm + by, FORMS) for axis in "xyz" for by in (-60, -1, 1, 5, 20)],
    *[(f"qoffset_{axis}", lambda mm: mm + 1e-3, "") for axis in "xyz"],
    *[("srow_x", lambda row, by=by: np.add(row, [0, 0, 0, by]), FORMS) for by in (-60, 1, 8)],
    *[("srow_y", lambda row, by=by: row * [1, by, 1, 1], "pixdim") for by in (0.5, 1.2, 2)],
    *[("srow_z", np.array([0, 0, bad, 0]), "affine|pixdim|100 mm") for bad in (0, np.nan, np.inf, 1e30)],
    *[("quatern_b", bad, "") for bad in (2.0, -5.0)],  # no rotation: the sform is used, with a note
    *[("quatern_d", value, FORMS) for value in (0.5, 0.1, -0.9)],
    *[("pixdim", lambda sizes, by=by: sizes * [1, by, 1, 1, 1, 1, 1, 1], "pixdim") for by in (0.5, 1.2, 2, 0, -1)],
    *[("pixdim", lambda sizes, bad=bad: np.append(sizes[:3], [bad, *sizes[4:]]), "pixdim") for bad in (np.nan, np.inf)],
    ("pixdim", lambda sizes: sizes * [-1, 1, 1, 1, 1, 1, 1, 1], FORMS),  # the qform's left and right
    ("pixdim", lambda sizes: sizes * [0, 1, 1, 1, 1, 1, 1, 1], ""),  # read as 1
    ("pixdim", lambda sizes: sizes * [1, 1, 1, 1, 7, 1, 1, 1], ""),  # of time
    *[("sform_code", code, "") for code in (0, 2, 4)],
    *[("qform_code", code, "") for code in (0, 2, 4)],
    *[(f"{form}_code", code, "sform_code") for form in ("sform", "qform") for code in (-1, 7, 300)],
    *[("scl_slope", slope, "scl_slope") for slope in (np.nan, np.inf, -np.inf)],
    *[("scl_slope", slope, "") for slope in (0.0, 1.0, 2.0, 1e-3)],
    *[("scl_inter", inter, "scl_inter|outside the brain") for inter in (np.nan, np.inf, 1000.0, -1024.0)],
    *[("dim", lambda dim, num=num: np.append(num, dim[1:]), "3-D") for num in (-1, 0, 1, 2, 8, 300)],
    *[("dim", lambda dim, num=num: np.append(num, dim[1:]), "") for num in (4, 5, 7)],
    *[("dim", lambda dim, by=by: np.add(dim, [0, by, *[0] * 6]), "ends before|more follows") for by in (-2, -1, 1, 9)],
    *[("dim", lambda dim, size=size: np.append(dim[:3], [size, *dim[4:]]), "3-D") for size in (-17, 0, 1)],
    ("dim", lambda dim: np.array([4, *dim[1:4], 2, 1, 1, 1]), "3-D"),
    *[("vox_offset", offset, "vox_offset") for offset in (1, 100, 348, 352.5, -352, 1e9, np.nan, np.inf)],
    *[("vox_offset", offset, "ends before") for offset in (353, 368, 4000)],
    ("vox_offset", 0, ""),
    *[("magic", magic, "NIfTI|pair") for magic in (b"n+2", b"ni1", b"n+", b"", b"N+1")],
    *[("sizeof_hdr", size, "NIfTI") for size in (0, 347, 540, -348)],
    *[("bitpix", bits, "bitpix") for bits in (0, 8, 32, -16)],
    *[("datatype", code, "datatype|bitpix") for code in (0, 1, 2, 16, 32, 128, 1792, 9999)],
    *[(field, value, "") for field, value in (("xyzt_units", 2), ("descrip", b"<script>"), ("cal_max", np.nan))],
]


def with_header(rng: np.random.Generator) -> Case:
    """A header that contradicts itself or its voxels in one field, packed or not."""
    image = sound_scan()
    content = image.to_bytes()
    field, value, refusal = pick(rng, HEADERS)
    header = nib.Nifti1Header(content[:348], check=False)
    with np.errstate(all="ignore"):
        header[field] = value(np.array(header[field])) if callable(value) else value
    content = header.binaryblock + content[348:]
    expected = None if refusal else preprocess(image, SHAPE)
    return Case(gzip.compress(content, 1) if rng.random() < 0.3 else content, read_volume, refusal, expected)


def with_background(rng: np.random.Generator) -> Case:
    """A background that is not 0: a number, or noise."""
    image = sound_scan()
    greys = image.get_fdata()
    background = pick(rng, [-1024, -1, 1e-5, 1, 7, 1000, "noise"])
    other = 1e-3 * rng.normal(size=greys.shape) if background == "noise" else background
    changed = nib.Nifti1Image(np.where(greys == 0, other, greys).astype(np.float32), image.affine)
    return Case(changed.to_bytes(), read_volume, "outside the brain")


def scan_kinds(folder: Path) -> list[Kind]:
    """The kinds of scans, each written to a file of its own in `folder`."""
    return [
        Kind("scans with a header that contradicts", folder / "header.nii", with_header),
        Kind("scans with a background", folder / "background.nii", with_background),
    ]
