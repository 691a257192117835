"""A table's file as it lies: CSV of whatever dialect, or Parquet. What could be read in two ways is refused, by row.

What is taken for something else than a plain CSV (another delimiter, decimal commas, UTF-16) is logged.
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pandas as pd

from runs.errors import InputError

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None", ".")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by how a file begins; else UTF-8
OTHERS = {b"PK\x03\x04": "a workbook or an archive", b"\x1f\x8b": "a packed file", b"\xd0\xcf\x11\xe0": "a workbook"}
PARQUET = b"PAR1"
WITH_COMMA, WITH_POINT = (rf"\s*[+-]?\d*{sign}\d+([eE][+-]?\d+)?\s*" for sign in (",", r"\."))
SEPARATOR = re.compile(r'"?sep=[,;\t]"?\s*')  # a workbook's own note before the header
UNNAMED = re.compile(r"(Unnamed: \d+.*|__index_level_\d+__|)")  # what pandas calls a column without a name
logger = logging.getLogger(__name__)


def read_rows(path: Path, *, text: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read every sound row; blank ones are left out.

    Args:
        path: CSV in UTF-8 or UTF-16, its fields separated by commas, semicolons (then a decimal comma is read as one)
            or tabs; or Parquet, whatever the file is called.
        text: columns that stay as they are written, such as ids with leading zeros.
    Returns:
        The rows, their index the line that an editor shows (Parquet: counted from 1), missing values NaN but in
        `text`; and the rows that are none: another number of fields, the header once more.
    Raises:
        InputError: no such file, no table, a column without a name, or two of one name.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a table, found no such file. Check the path.")
    with open(path, "rb") as file:
        begin = file.read(4)
    for magic, kind in OTHERS.items():
        if begin.startswith(magic):
            raise InputError(f"{path}: expected a table, can't read it: it is {kind}. Save it as CSV (UTF-8).")
    if begin == PARQUET:
        return _from_parquet(path, text), []
    try:
        return _from_csv(path, text, ENCODINGS.get(begin[:2], "utf-8-sig"))
    except UnicodeError as error:
        raise InputError(f"{path}: expected a table, can't read it: {error}. Save it as CSV (UTF-8).") from error
    except (csv.Error, ValueError) as error:  # pandas' parser raises kinds of ValueError
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a table, can't read it: {error}.") from error


class _Rows:
    """The sound rows of a CSV, one by one; what it leaves out, and where each row lies, is known afterwards."""

    def __init__(self, lines: Iterator[str], delimiter: str):
        self.reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        self.header: list[str] = []
        self.numbers: list[int] = []  # line on which each sound row begins
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[list[str]]:
        line = 1
        for fields in self.reader:
            begin, line = line, self.reader.line_num + 1
            if not any(map(str.strip, fields)):
                continue
            if not self.header:
                self.header = fields
                yield fields
                continue
            width = len(self.header)
            if fields == self.header:
                self.problems.append(f"row {begin}: the header once more")
            elif len(fields) == width:
                self.numbers.append(begin)
                yield fields
            else:
                self.problems.append(f"row {begin}: expected {width} fields, received {len(fields)}")


def _from_csv(path: Path, text: Sequence[str], encoding: str) -> tuple[pd.DataFrame, list[str]]:
    with open(path, encoding=encoding, newline="") as file:
        delimiter = _delimiter(file)
        rows = _Rows(_lines(file), delimiter)
        clean = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
        csv.writer(clean).writerows(rows)
    if not rows.header:
        raise InputError(f"{path}: expected a table, can't read it: it is empty.")
    names = [name.strip() for name in rows.header]
    clean.seek(0)
    table = pd.read_csv(
        clean,
        header=0,
        names=[str(at) for at in range(len(names))],  # so that pandas does not rename two columns of one name
        index_col=False,
        skip_blank_lines=False,
        keep_default_na=False,
        na_values={str(at): [] if name in text else MISSING for at, name in enumerate(names)},
        dtype={str(at): str for at, name in enumerate(names) if name in text or delimiter == ";"},
        float_precision="round_trip",
        low_memory=False,
    ).set_axis(names, axis=1)
    table.index = pd.Index(rows.numbers, dtype=int)
    table = _well_named(path, table)
    noted = [f"fields between {DELIMITERS[delimiter]}"] if delimiter != "," else []
    noted += ["UTF-16"] if encoding == "utf-16" else []
    if delimiter == ";" and (problems := _with_points(table, text)) is not None:
        noted.append("decimal commas")
        rows.problems += problems
    if noted:
        logger.warning("%s: read as a table with %s", path, ", ".join(noted))
    return table, rows.problems


def _delimiter(file: TextIO) -> str:
    """What the header's fields stand between."""
    header = next(filter(str.strip, _lines(file)), "")
    file.seek(0)
    return max(DELIMITERS, key=header.count)


def _lines(file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise ValueError(f"line {number} holds NUL bytes, as no text does")
        yield "\n" if number == 1 and SEPARATOR.fullmatch(line) else line


def _well_named(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table without columns that have neither a name nor a value.

    Raises:
        InputError: a column with values has no name, or two have one.
    """
    unnamed = [at for at, name in enumerate(table.columns) if UNNAMED.fullmatch(str(name))]
    values = {at: table.iloc[:, at].dropna() for at in unnamed}
    problems = [f"column {at + 1} has no name" for at in unnamed if not values[at].isin(MISSING).all()]
    counts = Counter(name for at, name in enumerate(table.columns) if at not in unnamed)
    problems += [f"{count} columns are called {name!r}" for name, count in counts.items() if count > 1]
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}. Give each column a name of its own, or drop it.")
    return table.iloc[:, [at for at in range(len(table.columns)) if at not in unnamed]]


def _with_points(table: pd.DataFrame, text: Sequence[str]) -> list[str] | None:
    """Turn decimal commas into points, in place; None if there are none, else the rows that have points already."""
    numbers = [name for name in table.columns if name not in text]
    commas = {name: table[name].str.fullmatch(WITH_COMMA, na=False) for name in numbers}
    if not any(found.any() for found in commas.values()):
        return None
    problems = []
    for name, found in commas.items():
        for row, value in table.loc[table[name].str.fullmatch(WITH_POINT, na=False), name].items():
            problems.append(f"row {row}: {name}: a decimal point in a table with decimal commas, received {value!r}")
        table[name] = table[name].where(~found, table[name].str.replace(",", "."))
    return problems


def _from_parquet(path: Path, text: Sequence[str]) -> pd.DataFrame:
    """What is neither a number nor text becomes text, so that no date is taken for a number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            content = file.read().replace_schema_metadata(None)
        content.validate(full=True)  # lengths and offsets, which pyarrow takes as the file says
        for at, field in enumerate(content.schema):
            column = content.column(at)
            if not any(is_(field.type) for is_ in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)):
                column = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
            elif field.name in text:
                column = column.cast(pa.string())
            content = content.set_column(at, field.name, column)
        table = content.to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: expected a table, can't read it: {error}.") from error
    table.index = pd.RangeIndex(1, len(table) + 1)
    table = _well_named(path, table)
    for name in table.columns.difference([*text]):
        if table[name].dtype == object:
            table[name] = table[name].where(~table[name].isin(MISSING))
    return table
