"""Estimates, p-values and names as the words of the page, the figures and the terminal."""

from collections.abc import Mapping
from typing import Any

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


def p_value(p: float) -> str:
    """A p-value, 0 to 1, as `p = 0.012` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def shorten(name: str, most: int = 18) -> str:
    r"""A name that fits over a panel of a figure.

    Args:
        name: of a subject.
        most: characters that fit.
    Returns:
        The name, cut if need be; a `$`, which would open matplotlib's mathematics, as `\$`.
    """
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def in_words(name: str) -> str:
    """A name of the code as the page and the terminal show it: `cox_last_slope` as `cox last slope`."""
    return name.replace("_", " ")
