"""The page's tables of models."""

import pytest

from reporting import page_models


@pytest.mark.parametrize(("number", "letter"), [(0, "a"), (25, "z"), (26, "aa"), (53, "bbb")])
def test_a_note_has_a_letter(number, letter):
    assert page_models._letter(number) == letter
