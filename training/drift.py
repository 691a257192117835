"""Whether progress may follow a scanner instead of the brains: the drift alarm.

Progress is learned from time alone, so a scanner that drifts teaches it the date. Brains change each at its own rate; a
scanner changes the scans of all its subjects alike. Two signs are looked for among the training subjects, in paces that
other subjects' scans foretell:

- **One pace.** The slopes of progress differ by less than LEAST_SPREAD of their mean, once the noise around each
  subject's line is taken off. Subjects whose rates differ by just that, with the same visits and the same noise, are
  simulated; the alarm sounds where the slopes differ less than in all but LEVEL of these cohorts.
- **Two paces.** In some direction of the images' change the subjects form two groups with one pace in each, as where
  one of two scanners drifts. The figure is the standard deviation within the groups over the distance of their means.
  Subjects that are spread evenly are simulated: of all distributions with one peak, theirs comes closest to two groups
  (Hartigan and Hartigan 1985). The alarm sounds below MOST_WITHIN, and below all but LEVEL_OF_GROUPS of these cohorts.

Shapes: N scans, S subjects with visits at two times or more, D draws, A angles. A pace is years of progress a year.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

LEAST_SPREAD = 1 / 3  # standard deviation of the true slopes over their mean, where each brain has its own rate
LEVEL = 0.05  # share of false alarms at that spread
POWER = 0.8  # share of alarms where all true slopes are equal, without which silence says nothing
MOST_WITHIN = 0.25  # standard deviation within two groups over the distance of their means; 0.29 if spread evenly
LEVEL_OF_GROUPS = 0.01  # share of false alarms where subjects are spread evenly
SMALLEST_GROUP = 0.15  # share of the subjects
FEWEST = 4  # subjects in two groups
ANGLES = 60  # directions of the plane in which groups are looked for
DRAWS, DRAWS_OF_GROUPS = 1000, 200
MOST_DRAWN = 200  # subjects in a draw of groups; in more, chance matters less
SEED = 0  # of the draws
TINY = np.finfo(float).tiny  # for groups at one place
TO_DO = (
    "Compare with the scanners' upgrades and sites, harmonise the images, or set PROGRESS=off. Until then, slopes of "
    "progress are not rates of a disease."
)


class Sign(NamedTuple):
    """One of the two signs: its figures, whether it is there, and why."""

    figures: Mapping[str, float | None]
    seen: bool | None  # None: can't tell
    why: str


@dataclass(frozen=True)
class Paces:
    """Where each subject's scans go in the plane of the two directions of change that other subjects foretell best."""

    scores: np.ndarray  # (S, 2)
    weights: np.ndarray  # (S,) one over the variance of the noise, up to a factor
    subjects: np.ndarray  # (S,) their ids


def find_drift(progress: np.ndarray, years: np.ndarray, codes: np.ndarray, paces: Paces) -> dict[str, Any]:
    """Look for both signs.

    Args:
        progress: (N,) years, each scan by a map without its subject.
        years: (N,) since the subject's mean visit.
        codes: (N,) numbers of the subjects from 0.
        paces: of the subjects whose visits are at two times or more.
    Returns:
        `mean_slope`; `spread`, the standard deviation of the true slopes over their mean, `spread_by_noise`, what the
        noise alone would give, and `spread_limit`, below which the alarm sounds; `within_groups` and
        `within_groups_limit`, likewise; `smaller_group`, its subjects if there are two groups; `alarm`, None if nothing
        can be said, and `why`.
    """
    rng = np.random.default_rng(SEED)
    one, (two, smaller) = _one_pace(Slopes.of(progress, years, codes), rng), _two_paces(paces, rng)
    alarm = True if one.seen or two.seen else None if None in (one.seen, two.seen) else False
    why = " ".join(sign.why for sign in (one, two) if sign.seen is alarm)
    return {
        **one.figures,
        **two.figures,
        "smaller_group": paces.subjects[smaller].tolist() if two.seen else [],
        "alarm": alarm,
        "why": f"{why} {TO_DO}" if alarm else why,
    }


# ---- One pace in everybody -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Slopes:
    """Each subject's least-squares line of progress over time, and the noise around the lines."""

    values: np.ndarray  # (S,) years a year
    squares: np.ndarray  # (S,) sum of the squared years since the mean visit; noise / squares: a slope's variance
    noise: float  # variance of progress around a subject's line, years^2; NaN without `freedom`
    freedom: int  # degrees of freedom of that variance

    @classmethod
    def of(cls, progress: np.ndarray, years: np.ndarray, codes: np.ndarray) -> "Slopes":
        """Fit the lines; the arguments are those of `find_drift`."""
        visits, squares = np.bincount(codes), np.bincount(codes, years**2)
        teaches = squares > 0
        slopes = np.bincount(codes, years * progress) / np.where(teaches, squares, 1.0)
        rest = progress - (np.bincount(codes, progress) / visits)[codes] - slopes[codes] * years
        freedom = int(np.sum(visits[teaches] - 2))
        noise = np.sum(rest[teaches[codes]] ** 2) / freedom if freedom else np.nan
        return cls(slopes[teaches], squares[teaches], float(noise), freedom)

    @property
    def mean(self) -> float:
        """Of the slopes, weighted by what is known of each."""
        return float(np.average(self.values, weights=self.squares))

    def spread(self, values: np.ndarray, noise: np.ndarray | float) -> np.ndarray:
        """Standard deviation of the true slopes over their mean, by moments (DerSimonian and Laird 1986).

        Args:
            values: (..., S) slopes, with these visits.
            noise: (...,) as `noise`.
        Returns:
            (...,) 0 if the slopes differ less than noise does; infinite if their mean is not above 0.
        """
        mean = np.average(values, axis=-1, weights=self.squares)
        beyond = np.sum(self.squares * (values - mean[..., None]) ** 2, axis=-1) - noise * (len(self.squares) - 1)
        sd = np.sqrt(np.maximum(beyond / self._scale, 0.0))
        return np.divide(sd, mean, where=mean > 0, out=np.full_like(sd, np.inf))

    @property
    def spread_by_noise(self) -> float:
        """Standard deviation that noise alone gives the slopes, over their mean."""
        return float(np.sqrt(self.noise * (len(self.squares) - 1) / self._scale) / self.mean)

    def draw(self, spread: float, rng: np.random.Generator) -> np.ndarray:
        """(D,) spreads that would be measured if the true slopes, lognormal, had this one."""
        shape = (DRAWS, len(self.squares))
        sigma = np.sqrt(np.log1p(spread**2))
        true = self.mean * np.exp(sigma * rng.normal(size=shape) - sigma**2 / 2)
        noise = self.noise * rng.chisquare(self.freedom, DRAWS) / self.freedom
        return self.spread(true + rng.normal(size=shape) * np.sqrt(self.noise / self.squares), noise)

    @property
    def _scale(self) -> float:
        """What the squares of the true slopes' deviations from their mean are multiplied by, in expectation."""
        return float(self.squares.sum() - np.sum(self.squares**2) / self.squares.sum())


def _one_pace(slopes: Slopes, rng: np.random.Generator) -> Sign:
    names = ("mean_slope", "spread", "spread_by_noise", "spread_limit")
    unknown: dict[str, float | None] = {**dict.fromkeys(names), "mean_slope": slopes.mean}
    if not slopes.mean > 0:
        return Sign(unknown, None, "Progress does not grow with time in subjects that were left out.")
    if not slopes.freedom:
        return Sign(unknown, None, "No subject has three visits, so the noise of the slopes is not known.")
    limit = min(float(np.quantile(slopes.draw(LEAST_SPREAD, rng), LEVEL)), LEAST_SPREAD)
    spread = float(slopes.spread(slopes.values, slopes.noise))
    figures = dict(zip(names, (slopes.mean, spread, slopes.spread_by_noise, limit), strict=True))
    number, apart = len(slopes.values), f"the true slopes differ by {spread:.0%} of their mean"
    if spread < limit:
        why = f"Progress grows at nearly one pace in {number} subjects: {apart}."
        return Sign(figures, True, f"{why} Of brains with rates of their own, {limit:.0%} or more would be measured.")
    if np.mean(slopes.draw(0.0, rng) < limit) < POWER:
        return Sign(figures, None, f"The slopes of {number} subjects are too noisy to tell one pace from many.")
    return Sign(figures, False, f"Progress grows at many paces in {number} subjects: {apart}.")


# ---- Two groups, each with one pace ----------------------------------------------------------------------
def _two_paces(paces: Paces, rng: np.random.Generator) -> tuple[Sign, np.ndarray]:
    """The sign, and (S,) who is in the smaller group."""
    number = len(paces.weights)
    if number < FEWEST:
        unknown: dict[str, float | None] = {"within_groups": None, "within_groups_limit": None}
        return Sign(unknown, None, f"{number} subjects are too few to form groups."), np.zeros(number, bool)
    within, smaller = split_in_two(paces.scores, paces.weights)
    size = min(number, MOST_DRAWN)
    drawn = [
        split_in_two(rng.uniform(size=(size, 2)), rng.choice(paces.weights, size))[0] for _ in range(DRAWS_OF_GROUPS)
    ]
    limit = min(float(np.quantile(drawn, LEVEL_OF_GROUPS)), MOST_WITHIN)
    figures = {"within_groups": within, "within_groups_limit": limit}
    if within >= limit:
        return Sign(figures, False, "Subjects don't form two groups with one pace in each."), smaller
    why = (
        f"The images change at two paces, in {number - smaller.sum()} and {smaller.sum()} subjects: within a group the "
        f"paces differ by {within:.0%} of the distance between the groups. Two scanners of which one drifts look like "
        "this; two kinds of subjects may, too."
    )
    return Sign(figures, True, why), smaller


def split_in_two(scores: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The line through the plane, and the place to cut it, that leave two groups with the least spread in each.

    Args:
        scores: (S, 2) of FEWEST subjects or more.
        weights: (S,) of the subjects.
    Returns:
        The larger standard deviation within a group over the distance of the groups' means; (S,) bool, the smaller
        group, which has SMALLEST_GROUP of the subjects or more.
    """
    angles = np.arange(ANGLES) * np.pi / ANGLES
    root = np.sqrt(weights)[:, None]
    centred = root * (scores - np.average(scores, axis=0, weights=weights))
    white = np.linalg.svd(centred, full_matrices=False)[0] / root  # so that no direction falls between two angles
    along = white @ np.stack([np.cos(angles), np.sin(angles)])  # (S, A)
    order = np.argsort(along, axis=0)
    ordered, weight = np.take_along_axis(along, order, axis=0), weights[order]
    sums = np.stack([np.cumsum(weight * ordered**power, axis=0) for power in range(3)])  # of the group below a cut
    fewest = max(FEWEST // 2, int(np.ceil(SMALLEST_GROUP * len(scores))))
    cuts = slice(fewest - 1, len(scores) - fewest)
    below, above = sums[:, cuts], (sums[:, -1:] - sums)[:, cuts]
    means = [group[1] / group[0] for group in (below, above)]
    variances = [group[2] / group[0] - mean**2 for group, mean in zip((below, above), means, strict=True)]
    spread = np.sqrt(np.maximum(np.maximum(*variances), 0.0)) / np.maximum(means[1] - means[0], TINY)  # (cuts, A)
    cut, angle = np.unravel_index(np.argmin(spread), spread.shape)
    group = np.zeros(len(scores), bool)
    group[order[: cut + fewest, angle]] = True
    return float(spread[cut, angle]), group if 2 * group.sum() <= len(scores) else ~group
