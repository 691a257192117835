"""Ids that are spelt differently and look like one: `1` and `1.0`, `S07` and `s07`, with and without an invisible sign.

Spreadsheet programs and exports change ids so. One person under two ids would stand in two parts of the split.
"""

import re
import unicodedata
from collections.abc import Mapping

import pandas as pd

# shown as nothing, though they are letters or marks: Hangul fillers, variation selectors, grapheme joiner
BLANK_SIGNS = re.compile("[\u115f\u1160\u3164\uffa0\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
HIDDEN = ("Cc", "Cf")  # Unicode's categories of control and format signs
WHOLE_NUMBER = re.compile(r"([+-]?)0*(\d+?)(?:[.,]0*)?")  # such as `007`, `7` or `7.0`
NUM_SHOWN = 3  # pairs that a message shows
SAME_ID = "expected one spelling of each id, received ids that differ only in case, in signs that can't be seen, or in"
SAME_ID += " zeros around a number"
MEND_IDS = "Spell each id in one way, or set SIMILAR_IDS=allow if they are different ones"


def id_key(text: str) -> str:
    """What spellings of one id have in common.

    Args:
        text: an id.
    Returns:
        The id without signs that can't be seen, case, and zeros around a whole number; letters, accents, dashes and
        blanks that look the same are the same.
    """
    text = BLANK_SIGNS.sub("", unicodedata.normalize("NFKC", text))
    text = unicodedata.normalize("NFKC", text.casefold())
    kinds = [(sign, unicodedata.category(sign)) for sign in " ".join(text.split())]
    text = " ".join("".join("-" if kind == "Pd" else sign for sign, kind in kinds if kind not in HIDDEN).split())
    number = WHOLE_NUMBER.fullmatch(text)
    return f"{number[1].replace('+', '')}{number[2]}" if number else text


def similar_ids(places: Mapping[str, str]) -> list[str]:
    """Find the ids that are spelt in several ways.

    Args:
        places: where each id stands, such as `row 3`, by the id.
    Returns:
        For each id that has several spellings, these with their places, such as `'1' (row 2) and '1.0' (row 3)`. What
        can't be seen is written as an escape.
    """
    ids = pd.Series(list(places), dtype=object)
    keys = ids.map(id_key)
    alike = ids[keys.duplicated(keep=False)]
    return [
        " and ".join(f"{name!a} ({places[name]})" for name in names) for _, names in alike.groupby(keys, sort=False)
    ]


def similar_ids_fault(column: str, places: Mapping[str, str]) -> list[str]:
    """The line about ids of a column that are spelt in several ways; none if there are none.

    Args:
        column: its name.
        places: as for `similar_ids`.
    """
    spellings = similar_ids(places)
    if not spellings:
        return []
    shown = "; ".join(spellings[:NUM_SHOWN]) + ("; …" if len(spellings) > NUM_SHOWN else "")
    count = f"{len(spellings)} ids are" if len(spellings) > 1 else "1 id is"
    return [f"{column}: {SAME_ID}: {count} spelt in several ways: {shown}. {MEND_IDS}"]
