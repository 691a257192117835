"""Every kind of history against its own equations, and the log-hazard that one scan is expected to tell."""

import numpy as np
import pytest

from cohort.courses import KINDS, History, draw_course, draw_visits, expect_from_one_scan

RANGES = [(2, 7), (1, 1), (5, 5), (1, 50)]


def draw(kind, visits=(3, 7), num_subjects=400, seed=1):
    """Each subject's shares of the span at its visits, and its course."""
    history, rng = History(kind, visits), np.random.default_rng(seed)
    years = [draw_visits(history, rng) for _ in range(num_subjects)]
    return [each / history.span for each in years], [draw_course(history, each, rng) for each in years]


# ---- Visits --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("visits", RANGES)
def test_visits_lie_within_three_years_and_apart(visits, rng):
    drawn = [draw_visits(History(visits=visits), rng) for _ in range(500)]
    assert all(years[0] == 0 and years[-1] <= 3 for years in drawn)
    assert all((np.diff(years) > 0.048).all() for years in drawn)  # days are rounded
    numbers = np.bincount([len(years) for years in drawn])
    assert np.flatnonzero(numbers)[[0, -1]].tolist() == [visits[0], visits[1]]
    assert (numbers[visits[0] :] > 500 / (visits[1] - visits[0] + 1) / 5).all()


def test_gaps_of_a_range_are_irregular_and_those_of_three_visits_are_not(rng):
    gaps = {
        visits: np.concatenate([np.diff(draw_visits(History(visits=visits), rng)) for _ in range(300)])
        for visits in (None, (3, 3))
    }
    assert 0.3 <= gaps[None].min() and gaps[None].max() <= 1.1
    assert gaps[(3, 3)].min() < 0.15 and gaps[(3, 3)].max() > 2


# ---- Courses -------------------------------------------------------------------------------------------
def test_the_hazard_of_a_line_is_in_its_level_and_rate():
    shares, drawn = draw("linear")
    for tau, course in zip(shares, drawn, strict=True):
        level, rate = course.line["level"], course.line["rate"]
        np.testing.assert_allclose(course.atrophy, level + rate * 3 * tau)
        assert course.log_hazard == pytest.approx(0.7 * level + 1.4 * np.log(rate / 0.2) / 0.6)


def test_the_hazard_of_a_curve_is_in_its_end():
    shares, drawn = draw("accelerating")
    for tau, course in zip(shares, drawn, strict=True):
        parabola = np.poly1d(np.polyfit(tau, course.atrophy, 2))
        np.testing.assert_allclose(parabola(tau), course.atrophy, atol=1e-6)
        expected = 0.4 * (course.atrophy[-1] - 0.5) + parabola.deriv()(tau[-1]) - 0.6
        assert course.log_hazard == pytest.approx(expected, abs=1e-4)


def test_the_hazard_follows_the_highest_value():
    shares, drawn = draw("highest", num_subjects=2000)
    for course in drawn:
        assert course.log_hazard == pytest.approx(1.5 * (course.atrophy.max() - 1.4))
    first, second = np.array([course.atrophy[:2] for course in drawn]).T
    gap = np.array([tau[1] for tau in shares])
    np.testing.assert_allclose([first.std(), second.std()], 1.2, rtol=0.05)
    near = gap < np.median(gap)
    correlations = [np.corrcoef(first[rows], second[rows])[0, 1] for rows in (near, ~near)]
    expected = [np.exp(-3 * gap[rows]).mean() for rows in (near, ~near)]
    np.testing.assert_allclose(correlations, expected, atol=0.06)


def test_the_hazard_follows_the_spread():
    _, drawn = draw("variable", visits=(40, 40))
    log_spread = np.array([np.log(course.atrophy.std(ddof=1)) for course in drawn])
    level = np.array([course.atrophy.mean() for course in drawn])
    expected = 3 * (log_spread + 0.8) + 0.4 * (level - 0.5)
    hazard = np.array([course.log_hazard for course in drawn])
    assert np.corrcoef(expected, hazard)[0, 1] > 0.96 and abs((expected - hazard).mean()) < 0.1


def test_the_hazard_follows_the_time_since_a_jump():
    shares, drawn = draw("jumping", visits=(2, 20))
    for tau, course in zip(shares, drawn, strict=True):
        after = course.atrophy > course.atrophy.min() + 1
        assert (np.diff(after.astype(int)) >= 0).all()
        steps = course.atrophy - course.atrophy.min()
        np.testing.assert_allclose(steps, 2.0 * after, atol=1e-9)
        if after.any():  # the jump lies between two visits
            jump = tau[-1] + 0.25 * np.log(course.log_hazard / 6 + 0.18)
            assert tau[after.argmax() - 1] <= jump + 1e-9 and jump <= tau[after.argmax()] + 1e-9
    still = [course.log_hazard for course in drawn if np.ptp(course.atrophy) == 0]
    assert np.mean(np.isclose(still, -6 * 0.18)) > 0.05  # not jumped yet; the others had before baseline


def test_the_hazard_follows_the_distance_of_the_last_value():
    _, drawn = draw("u_shaped")
    for course in drawn:
        assert course.log_hazard == pytest.approx(0.8 * ((course.atrophy[-1] - 0.5) ** 2 - 1.2))


@pytest.mark.parametrize("visits", [None, (2, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_atrophy_stays_where_brains_look_like_brains(kind, visits):
    _, drawn = draw(kind, visits, num_subjects=2000)
    atrophy = np.concatenate([course.atrophy for course in drawn])
    assert ((atrophy < -4) | (atrophy > 5)).mean() < 0.001
    hazard = np.array([course.log_hazard for course in drawn])
    assert abs(hazard.mean()) < 0.15 and 1.3 < hazard.std() < 1.75


# ---- What one scan tells -------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_what_one_scan_tells_is_the_mean_of_those_who_look_alike(kind):
    _, drawn = draw(kind, (2, 7), num_subjects=3000, seed=7)
    last, hazard = np.array([(course.atrophy[-1], course.log_hazard) for course in drawn]).T
    expected = expect_from_one_scan(History(kind, (2, 7)), last)
    for group in np.array_split(np.argsort(last), 12):
        assert expected[group].mean() == pytest.approx(
            hazard[group].mean(), abs=0.05 + 4 * hazard[group].std() / len(group) ** 0.5
        )


@pytest.mark.parametrize("visits", [None, (1, 1), (2, 7)])
def test_of_lines_more_atrophy_is_more_hazard(visits):
    """So the atrophy itself is the best that one scan can tell."""
    atrophy = np.linspace(-2, 2, 100)
    assert (np.diff(expect_from_one_scan(History(visits=visits), atrophy)) > 0).all()
