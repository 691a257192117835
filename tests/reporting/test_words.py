import pytest

from reporting import words


def estimate(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (estimate(0.8123, 0.7, 0.9), "0.81 (0.70 to 0.90)"),
        (estimate(None, why="nobody"), "-"),
        (estimate(None, why="infinite: no event"), "infinite"),
        (estimate(3.0, 1.0, None), "3.00 (1.00 to ∞)"),
        (estimate(-1.0, None, 2.0), "−1.00 (−∞ to 2.00)"),  # noqa: RUF001
    ],
)
def test_interval(given, text):
    assert words.interval(given) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"value": 0.8123, "se": 0.0123}, "0.812 (0.012)"),
        ({"value": -0.0456, "se": None}, "−0.046 (-)"),  # noqa: RUF001
        ({"value": None, "se": None}, "-"),
    ],
)
def test_mean_and_its_spread(given, text):
    assert words.mean_and_sd(given, spread="se") == text


def test_p_value_and_names():
    assert words.p_value(0.0123) == "p = 0.012" and words.p_value(1e-9) == "p < 0.001"
    assert words.shorten("x" * 30) == "x" * 17 + "…" and words.shorten("a$b") == "a$b"


@pytest.mark.parametrize(
    ("name", "text"),
    [("a$b", "a$b"), ("two\n lines\t", "two lines"), ("é-Ω", "é-Ω"), ("患者1", "□□1"), ("a\x01b", "a□b"), ("", "")],
)
def test_a_text_of_the_users_can_be_drawn(name, text):
    assert words.shorten(name) == text


def test_digits_and_names_in_words():
    assert words.interval(estimate(0.8123, 0.7, 0.9), 1) == "0.8 (0.7 to 0.9)"
    assert words.in_words("cox_last_slope") == "cox last slope"
