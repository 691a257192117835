"""Numbers that a country writes in its own way: which sign stands before the decimals, and which between thousands.

`1,495` is one and a half, or fifteen hundred. It is read if the table itself or the user says which.
"""

import re
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from cohort.faults import row_faults

Decimal = Literal["auto", "point", "comma"]
SIGNS: dict[str, tuple[str, str]] = {"point": (".", ","), "comma": (",", ".")}  # of decimals, and between thousands
GROUPERS = " '\u2019\u00a0\u2009\u202f"  # stand between thousands besides: blanks and apostrophes
PLAIN_THOUSAND = 100  # a column that writes this or more without a separator, and `1,495`, means thousands


def convert_decimals(table: pd.DataFrame, text: Sequence[str], decimal: Decimal) -> tuple[str, list[str]]:
    """Write the numbers of a table with decimal points and without separators of thousands, in place.

    Args:
        table: (N,) rows; its columns that hold text are converted.
        text: columns that stay as they are written.
        decimal: the sign before the decimals; `auto`: what all cells together say.
    Returns:
        What was taken for what, for the log, or nothing; and the faults of cells that can be read in two ways.
    """
    names = [name for name in table.columns if name not in text and table[name].dtype == object]
    if decimal != "auto":
        return f"DECIMAL={decimal}", [fault for name in names for fault in _convert(table, name, decimal)]
    has_comma = any(_with_sign(table[name], ",").any() for name in names)
    faults = _ambiguous(table, names, "," if has_comma else ".")
    if not has_comma or faults:
        return "", faults
    for name in names:
        points = table.loc[_with_sign(table[name], "."), name]
        faults += row_faults(points.items(), f"{name}: a decimal point in a table with decimal commas")
        table[name] = table[name].where(~_with_sign(table[name], ","), table[name].str.replace(",", "."))
    return "decimal commas", faults


def _ambiguous(table: pd.DataFrame, names: Sequence[str], sign: str) -> list[str]:
    """The faults of columns in which a sign may stand before decimals or between thousands.

    It may where three digits follow it in every cell, and no other column shows what it is, or whole numbers beside
    these cells are as large as if it stood between thousands.
    """
    rows = {name: _with_sign(table[name], sign) for name in names}
    cells = {name: table.loc[rows[name], name] for name in names if rows[name].any()}
    in_doubt = [name for name in cells if cells[name].str.fullmatch(rf"\s*[+-]?[1-9]\d{{0,2}}\{sign}\d{{3}}\s*").all()]
    is_decimal = len(in_doubt) < len(cells)  # another column shows it
    faults = []
    for name in in_doubt:
        others = pd.to_numeric(table.loc[~rows[name], name], errors="coerce")
        if not is_decimal or others.abs().max() >= PLAIN_THOUSAND:
            word, other = ("comma", "point") if sign == "," else ("point", "comma")
            cause = f"Set DECIMAL={word} if it stands before decimals, DECIMAL={other} if it stands between thousands"
            fault = f"{name}: a {word} that can stand before decimals or between thousands"
            faults += row_faults(cells[name].items(), fault, cause=cause)
    return faults


def _convert(table: pd.DataFrame, name: str, decimal: Decimal) -> list[str]:
    """Convert a column in place by the user's word; the faults of cells that deny it."""
    sign, other = SIGNS[decimal]
    between = f"[{re.escape(other + GROUPERS)}]"
    grouped = rf"[+-]?[1-9]\d{{0,2}}(?:{between}\d{{3}})+(?:\{sign}\d+)?"
    column = table[name].str.strip()
    is_grouped = column.str.fullmatch(grouped, na=False)
    faults = row_faults(
        table.loc[_with_sign(column, other) & ~is_grouped, name].items(),
        f"{name}: a decimal {'point' if other == '.' else 'comma'} in a table with DECIMAL={decimal}",
    )
    column = column.where(~is_grouped, column.str.replace(between, "", regex=True))
    table[name] = column.where(~_with_sign(column, sign), column.str.replace(sign, "."))
    return faults


def _with_sign(column: pd.Series, sign: str) -> pd.Series:
    """(N,) bool: which cells are a number with one such sign."""
    return column.str.fullmatch(rf"\s*[+-]?\d*\{sign}\d+([eE][+-]?\d+)?\s*", na=False)
