"""Estimates, p-values and names as the words of the page, the figures and the terminal."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MISSING = "\N{WHITE SQUARE}"
MINUS = "\N{MINUS SIGN}"


def interval(estimate: Mapping[str, Any], digits: int = 2) -> str:
    """An estimate with its interval, such as `0.81 (0.74 to 0.88)`.

    Args:
        estimate: `value`, `low`, `high`, and perhaps `why` there is no value. A limit that is None is infinite.
        digits: after the point.
    Returns:
        The text; `infinite`, or a dash, where there is no value.
    """
    if estimate["value"] is None:
        return "infinite" if str(estimate.get("why", "")).startswith("infinite") else "-"
    low, high = (
        f"{estimate[end]:.{digits}f}" if estimate[end] is not None else infinite
        for end, infinite in (("low", "-∞"), ("high", "∞"))
    )
    return f"{estimate['value']:.{digits}f} ({low} to {high})".replace("-", MINUS)


def mean_and_sd(estimate: Mapping[str, Any], digits: int = 3, spread: str = "sd") -> str:
    """A mean over folds with its spread, such as `0.812 (0.034)`.

    Args:
        estimate: `value` and its spread; None: there is none.
        digits: after the point.
        spread: the key of the standard deviation or error.
    Returns:
        The text; dashes for what there is none of.
    """
    if estimate["value"] is None:
        return "-"
    value = f"{estimate['value']:.{digits}f}".replace("-", MINUS)
    return f"{value} (-)" if estimate[spread] is None else f"{value} ({estimate[spread]:.{digits}f})"


def p_value(p: float) -> str:
    """A p-value, 0 to 1, as `p = 0.012` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def shorten(name: str, most: int = 18) -> str:
    """A text of the user's that fits in a picture, on one line, in characters that the pictures' font has.

    Args:
        name: of a subject, a scan, a region or a column.
        most: characters that fit.
    Returns:
        The name, cut if need be; for a character that can't be drawn, a square.
    """
    line = " ".join(name.split())
    drawable = "".join(character if ord(character) in _drawable() else MISSING for character in line)
    return drawable if len(drawable) <= most else drawable[: most - 1] + "…"


@lru_cache
def _drawable() -> frozenset[int]:
    """The characters of the pictures' font."""
    from matplotlib import font_manager, ft2font  # slow to import

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def in_words(name: str) -> str:
    """A name of the code as the page and the terminal show it: `cox_last_slope` as `cox last slope`."""
    return name.replace("_", " ")
