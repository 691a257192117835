"""One table's file, CSV or Parquet, read row by row as it is written.

A value that could be read in two ways is refused, and its row named. A file that is not a plain CSV (another delimiter,
decimal commas, UTF-16) is read, and what it was taken for is logged.
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pandas as pd

from cohort.decimals import Decimal, convert_decimals
from cohort.faults import row_fault, row_faults
from cohort.names import tidy_name
from runs.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

# what stands for no value, alone in a cell, in any case
MARKS = ("", "NA", "N/A", "#N/A", "<NA>", "NaN", "NaT", "NULL", "None", ".", "-", "\u2013", "\u2014", "\u2212", "?")
MISSING = tuple({spelling for mark in MARKS for spelling in (mark, mark.lower(), mark.upper(), mark.capitalize())})
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by the first bytes of a file; else UTF-8
OTHER_KINDS = {
    b"PK\x03\x04": "a workbook or an archive",
    b"\x1f\x8b": "a packed file",
    b"\xd0\xcf\x11\xe0": "a workbook",
}
PARQUET = b"PAR1"  # the first bytes of such a file
SAVE_AS_CSV = " Save it as CSV (UTF-8)."
SEPARATOR = re.compile(r'"?sep=[,;\t]"?\s*')  # a line that a spreadsheet program puts before the header
UNNAMED = re.compile(r"(Unnamed: \d+.*|__index_level_\d+__|)")  # what pandas calls a column without a name
logger = logging.getLogger(__name__)


def read_rows(path: Path, *, text: Sequence[str], decimal: Decimal = "auto") -> tuple[pd.DataFrame, list[str]]:
    """Read every sound row of a table; blank rows are left out.

    Args:
        path: CSV in UTF-8 or UTF-16, its fields separated by commas, semicolons (then a decimal comma is read as one)
            or tabs; or Parquet, whatever the file is called.
        text: columns that stay as they are written, such as ids with leading zeros.
        decimal: the sign before decimals; `auto`: a point, or a comma where fields stand between semicolons and the
            cells show that it is no separator of thousands.
    Returns:
        The rows, indexed by the line that an editor shows (Parquet: counted from 1), a missing value being NaN except
        in `text`; and the faults of the other rows: another number of fields, or the header once more.
    Raises:
        InputError: there is no such file, it is no table, a column has no name, or two have the same.
    """
    if not path.is_file():
        instead = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: expected a table, found {instead}. Check the path.")
    with open(path, "rb") as file:
        first_bytes = file.read(4)
    for magic, kind in OTHER_KINDS.items():
        if first_bytes.startswith(magic):
            raise _unreadable(path, f"it is {kind}", SAVE_AS_CSV)
    if first_bytes == PARQUET:
        return _read_parquet(path, text, decimal)
    try:
        return _read_csv(path, text, ENCODINGS.get(first_bytes[:2], "utf-8-sig"), decimal)
    except InputError:
        raise
    except UnicodeError as error:
        raise _unreadable(path, error, SAVE_AS_CSV) from error
    except (csv.Error, ValueError) as error:  # pandas' parser raises kinds of ValueError
        raise _unreadable(path, error) from error


def is_missing(cells: pd.Series) -> pd.Series:
    """(N,) bool: which cells are empty, or hold a mark that stands for no value."""
    return cells.isna() | cells.astype(str).str.strip().str.casefold().isin({mark.casefold() for mark in MARKS})


def _unreadable(path: Path, reason: object, mend: str = "") -> InputError:
    return InputError(f"{path}: expected a table, can't read it: {reason}.{mend}")


class _SoundRows:
    """The sound rows of a CSV, one by one, the header first.

    Once they are all read, `numbers` says on which lines they begin, and `problems()` what was left out.
    """

    def __init__(self, lines: Iterator[str], delimiter: str):
        self.reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        self.header: list[str] = []
        self.numbers: list[int] = []  # line on which each sound row begins
        self.headers: list[int] = []  # line of a header that stands between the rows
        self.ragged: list[tuple[int, int]] = []  # line and number of fields of a row of another length

    def __iter__(self) -> Iterator[list[str]]:
        next_line = 1
        for fields in self.reader:
            line, next_line = next_line, self.reader.line_num + 1
            if not any(map(str.strip, fields)):
                continue
            if not self.header:
                self.header = fields
                yield fields
                continue
            width = len(self.header)
            if fields == self.header:
                self.headers.append(line)
            elif len(fields) == width:
                self.numbers.append(line)
                yield fields
            else:
                self.ragged.append((line, len(fields)))

    def problems(self) -> list[str]:
        """The faults of the rows that were left out."""
        cause = "A comma within a cell, or a row cut short? Put quotes around the cell, or complete the row"
        headers = [row_fault(line, "the header once more") for line in self.headers]
        return headers + row_faults(self.ragged, f"expected {len(self.header)} fields", cause=cause)


def _read_csv(path: Path, text: Sequence[str], encoding: str, decimal: Decimal) -> tuple[pd.DataFrame, list[str]]:
    with open(path, encoding=encoding, newline="") as file:
        delimiter = _find_delimiter(file)
        rows = _SoundRows(_lines(file), delimiter)
        plain = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
        csv.writer(plain).writerows(rows)
    if not rows.header:
        raise _unreadable(path, "it is empty")
    plain.seek(0)
    local = delimiter == ";" or decimal != "auto"  # numbers may be written as a country does
    table = _parse_plain_csv(plain, [*map(tidy_name, rows.header)], text, numbers_as_text=local)
    table.index = pd.Index(rows.numbers, dtype=int)
    table = _named_columns(path, table)
    dialect = [f"fields between {DELIMITERS[delimiter]}"] if delimiter != "," else []
    dialect += ["UTF-16"] if encoding == "utf-16" else []
    problems = rows.problems()
    _without_marks(table, text)
    if local:
        numbers, faults = convert_decimals(table, text, decimal)
        dialect += [numbers] if numbers else []
        problems += faults
    if dialect:
        logger.warning("%s: read as a table with %s", path, ", ".join(dialect))
    return table, problems


def _parse_plain_csv(plain: TextIO, names: list[str], text: Sequence[str], *, numbers_as_text: bool) -> pd.DataFrame:
    """Parse a CSV with commas; pandas sees column numbers for names, else it would rename two columns of one name."""
    return pd.read_csv(
        plain,
        header=0,
        names=[str(number) for number in range(len(names))],
        index_col=False,
        skip_blank_lines=False,
        keep_default_na=False,
        na_values={str(number): [] if name in text else MISSING for number, name in enumerate(names)},
        dtype={str(number): str for number, name in enumerate(names) if name in text or numbers_as_text},
        float_precision="round_trip",
        low_memory=False,
    ).set_axis(names, axis=1)


def _without_marks(table: pd.DataFrame, text: Sequence[str]) -> None:
    """Make the marks of missing values NaN, in place, but for the columns of `text`."""
    for name in table.columns.difference([*text]):
        if table[name].dtype == object:
            table[name] = table[name].where(~is_missing(table[name]))


def _find_delimiter(file: TextIO) -> str:
    """The delimiter that stands most often in the header."""
    header = next(filter(str.strip, _lines(file)), "")
    file.seek(0)
    return max(DELIMITERS, key=header.count)


def _lines(file: TextIO) -> Iterator[str]:
    """The file's lines; a spreadsheet program's `sep=` line becomes a blank one."""
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise ValueError(f"line {number} holds NUL bytes, as no text does")
        yield "\n" if number == 1 and SEPARATOR.fullmatch(line) else line


def _named_columns(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table without columns that have neither a name nor a value.

    Raises:
        InputError: a column with values has no name, or two have the same.
    """
    unnamed = [number for number, name in enumerate(table.columns) if UNNAMED.fullmatch(str(name))]
    values = {number: table.iloc[:, number].dropna() for number in unnamed}
    problems = [f"column {number + 1} has no name" for number in unnamed if not is_missing(values[number]).all()]
    counts = Counter(name for number, name in enumerate(table.columns) if number not in unnamed)
    problems += [f"{count} columns are called {name!r}" for name, count in counts.items() if count > 1]
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}. Give each column a name of its own, or drop it.")
    return table.iloc[:, [number for number in range(len(table.columns)) if number not in unnamed]]


def _read_parquet(path: Path, text: Sequence[str], decimal: Decimal) -> tuple[pd.DataFrame, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            content = file.read().replace_schema_metadata(None)
        content.validate(full=True)  # else pyarrow believes the lengths and offsets in the file
        content = content.rename_columns([tidy_name(name) for name in content.column_names])
        table = _numbers_and_text(content, text).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    table.index = pd.RangeIndex(1, len(table) + 1)
    table = _named_columns(path, table)
    _without_marks(table, text)
    return table, convert_decimals(table, text, decimal)[1] if decimal != "auto" else []


def _numbers_and_text(content: "pa.Table", text: Sequence[str]) -> "pa.Table":
    """Columns that are not numbers become text, so that no date is taken for a number; the columns of `text` too."""
    import pyarrow as pa

    for number, field in enumerate(content.schema):
        column = content.column(number)
        if not any(is_(field.type) for is_ in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)):
            column = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
        elif field.name in text:
            column = column.cast(pa.string())
        content = content.set_column(number, field.name, column)
    return content
