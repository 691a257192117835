"""When a simulated subject is scanned, the course of its atrophy over these visits, and what of it the hazard follows.

Times t are years from baseline, t_last is the last visit's, and tau = t / span is the share of the span: 1.5 years
for the 3 visits, 3 years for a range of numbers. The atrophy a has the unit of `simulate`; nearly all of it lies
between -4 and 5, where the deformed brains look like brains. N(m, s) has the mean m and the standard deviation s. The
log-hazard of the time left after the last visit is the effect times g:

    linear        a = l + r t, r = 0.4 (1.5 / span) exp(0.6 z) a year
                  g = 0.7 l + 1.4 z                                   l, z ~ N(0, 1)
    accelerating  a = l + m tau + c tau (tau - 1)
                  g = 0.4 (a_last - 0.5) + (a'_last - 0.6)            l ~ N(0, 1), m ~ N(0.6, 0.5), c ~ N(0, 2),
                                                                      a' = m + c (2 tau - 1), the rate a span
    highest       a ~ N(0.5, 1.2) at each visit, correlated by exp(-3 |tau - tau'|)
                  g = 1.5 (max a over the visits - 1.4)
    variable      a = l + s e, e ~ N(0, 1) anew at each visit
                  g = 3 (log s + 0.8) + 0.4 (l - 0.5)                 l ~ N(0.5, 0.6), log s ~ N(-0.8, 0.5)
    jumping       a = l + 2 if tau >= j, else l
                  g = 6 (h - 0.18)                                    l ~ N(0, 0.6), j uniform between -1/3 and 1,
                                                                      h = exp(-(tau_last - j) / 0.25), 0 before j
    u_shaped      a = l + m tau
                  g = 0.8 ((a_last - 0.5)^2 - 1.2)                    l ~ N(0, 1), m ~ N(0.6, 0.6)

The numbers make g's mean about 0 and its standard deviation about 1.5. What one scan can tell is E[g | a_last]: under
`linear` it rises with a_last, so the atrophy itself ranks the subjects as well.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

SPAN_OF_3, SPAN = 1.5, 3.0  # years within which the 3 visits lie, and those of a range of numbers
LEAST_GAP = 0.05  # years between two visits of a range, at least
RATE, RATE_SPREAD = 0.4, 0.6  # of linear: median of the rate r over SPAN_OF_3, a year; standard deviation of log r
LEVEL_EFFECT, RATE_EFFECT = 0.7, 1.4  # of linear: log-hazard per unit of the level l, and of the rate's score z
REFERENCE = 10_000  # subjects over whom the expectation given one scan is fitted
KNOTS = 8  # of that fit, a cubic spline; they are quantiles of the atrophy


@dataclass(frozen=True)
class History:
    """What the histories of a simulated cohort are like."""

    kind: str = "linear"  # of KINDS
    visits: tuple[int, int] | None = None  # fewest and most of a subject; None: 3 visits within 18 months

    @property
    def span(self) -> float:
        """Years within which a subject's visits lie."""
        return SPAN_OF_3 if self.visits is None else SPAN


LINES = History()  # the default: straight lines over 3 visits


@dataclass(frozen=True)
class Course:
    """One subject's atrophy, and what it does."""

    atrophy: np.ndarray  # (V,) at each visit
    log_hazard: float  # g, of the time left after the last visit, at effect 1
    line: dict[str, float] = field(default_factory=dict)  # of linear: `level`, and `rate` a year


def draw_visits(history: History, rng: np.random.Generator) -> np.ndarray:
    """Draw the times of one subject's visits.

    Args:
        history: with the range of their number.
        rng: of the draws.
    Returns:
        (V,) years from baseline, ascending from 0.
    """
    if history.visits is None:
        return np.round([0.0, rng.uniform(0.4, 0.8), rng.uniform(1.1, 1.5)], 3)
    num_later = rng.integers(history.visits[0], history.visits[1] + 1) - 1
    least = LEAST_GAP * np.arange(1, num_later + 1)
    later = least + np.sort(rng.uniform(0, SPAN - LEAST_GAP * num_later, num_later))
    return np.round(np.append(0.0, later), 3)


def draw_course(history: History, years: np.ndarray, rng: np.random.Generator) -> Course:
    """Draw one subject's course.

    Args:
        history: its kind is one of KINDS.
        years: (V,) of the visits, from `draw_visits`.
        rng: of the draws.
    Returns:
        The atrophy at each visit, and the log-hazard that it gives.
    """
    return KINDS[history.kind](years, history.span, rng)


def expect_from_one_scan(history: History, atrophy: np.ndarray) -> np.ndarray:
    """What the atrophy in the last scan tells of the log-hazard.

    Args:
        history: its kind and its visits.
        atrophy: (N,) at the last visit.
    Returns:
        (N,) E[g | a_last], a spline fitted by least squares to subjects drawn for this alone. Six decimals, so that
        the number of threads changes nothing.
    """
    return np.round(_fit_one_scan(history)(atrophy), 6)


@cache
def _fit_one_scan(history: History) -> Callable[[np.ndarray], np.ndarray]:
    """(N,) atrophy in the last scan -> (N,) expected g."""
    from sklearn.linear_model import LinearRegression  # slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer

    rng = np.random.default_rng(0)
    drawn = [draw_course(history, draw_visits(history, rng), rng) for _ in range(REFERENCE)]
    spline = make_pipeline(SplineTransformer(KNOTS, knots="quantile", extrapolation="linear"), LinearRegression())
    spline.fit([course.atrophy[-1:] for course in drawn], [course.log_hazard for course in drawn])
    return lambda atrophy: spline.predict(np.reshape(atrophy, (-1, 1)))


# ---- The kinds, whose equations are the module's; each takes the years of the visits and of the span -------------
def _linear(years: np.ndarray, span: float, rng: np.random.Generator) -> Course:
    """A line; the hazard follows its level and its rate."""
    level, z = rng.normal(size=2)
    rate = RATE * np.exp(RATE_SPREAD * z) * (SPAN_OF_3 / span)
    return Course(level + rate * years, LEVEL_EFFECT * level + RATE_EFFECT * z, {"level": level, "rate": rate})


def _accelerating(years: np.ndarray, span: float, rng: np.random.Generator) -> Course:
    """A parabola; the hazard follows the last value, and the rate at the end."""
    level, mean_rate, bend = rng.normal([0.0, 0.6, 0.0], [1.0, 0.5, 2.0])
    shares = years / span
    atrophy = level + mean_rate * shares + bend * shares * (shares - 1)
    last_rate = mean_rate + bend * (2 * shares[-1] - 1)
    return Course(atrophy, 0.4 * (atrophy[-1] - 0.5) + (last_rate - 0.6))


def _highest(years: np.ndarray, span: float, rng: np.random.Generator) -> Course:
    """Ups and downs about a middle; the hazard follows the highest value at a visit."""
    shares = years / span
    covariance = 1.2**2 * np.exp(-3 * np.abs(shares[:, None] - shares))  # (V, V)
    atrophy = rng.multivariate_normal(np.full(len(years), 0.5), covariance, method="cholesky")
    return Course(atrophy, 1.5 * (atrophy.max() - 1.4))


def _variable(years: np.ndarray, span: float, rng: np.random.Generator) -> Course:
    """Noise about a level; the hazard follows the subject's own spread."""
    level, log_spread = rng.normal([0.5, -0.8], [0.6, 0.5])
    atrophy = level + np.exp(log_spread) * rng.normal(size=len(years))
    return Course(atrophy, 3.0 * (log_spread + 0.8) + 0.4 * (level - 0.5))


def _jumping(years: np.ndarray, span: float, rng: np.random.Generator) -> Course:
    """A step up at some time; the hazard is raised after it, and falls back."""
    level, jump = rng.normal(0.0, 0.6), rng.uniform(-1 / 3, 1)
    shares = years / span
    raised = np.exp(-(shares[-1] - jump) / 0.25) if shares[-1] >= jump else 0.0
    return Course(level + 2.0 * (shares >= jump), 6.0 * (raised - 0.18))


def _u_shaped(years: np.ndarray, span: float, rng: np.random.Generator) -> Course:
    """A line; the hazard follows the square of its last value's distance from the middle."""
    level, mean_rate = rng.normal([0.0, 0.6], [1.0, 0.6])
    atrophy = level + mean_rate * years / span
    return Course(atrophy, 0.8 * ((atrophy[-1] - 0.5) ** 2 - 1.2))


KINDS: dict[str, Callable[[np.ndarray, float, np.random.Generator], Course]] = {
    "linear": _linear,
    "accelerating": _accelerating,
    "highest": _highest,
    "variable": _variable,
    "jumping": _jumping,
    "u_shaped": _u_shaped,
}
