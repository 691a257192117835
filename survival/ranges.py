"""How new subjects differ from those that a model was trained on: values and visits beyond any seen in training.

A prediction there is an extrapolation. It is made all the same, and says so. Shapes: M visits, G values of a visit, as
in `preparation.Seen`. Times are years.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from survival.predictor import Predictor
from survival.preparation import IMAGE_FEATURE, Preparation

FAR = 1.0  # training standard deviations beyond the lowest or highest training value; what lies further out is far
LEAST_YEARS = 1e-6  # times closer than this are the same: months and days are divided
NUM_EXAMPLES = 3  # subjects named in a line
UNKNOWN = "the model was saved without its training ranges: train stage 2 anew to know what lies outside"
Finding = tuple[str, str, str]  # subject; cause, in the same words for every subject; what was received


def find_out_of_range(predictor: Predictor, table: pd.DataFrame) -> pd.DataFrame:
    """Find what of each subject lies beyond the training subjects.

    Args:
        predictor: trained; an old one may not know its training ranges, and that is then a finding of every subject.
        table: M visits in memory's columns, sorted by subject and visit.
    Returns:
        A row a finding: `subject, cause, received`. A value counts as far outside beyond FAR training standard
        deviations from the lowest or highest training value, on the logarithm's scale where the model takes it.
    """
    prepare = predictor.prepare
    coded = prepare.coding(table)
    findings = [*_unseen_levels(prepare, table), *_missing(prepare, coded), *_far_values(prepare, coded)]
    findings += _late_visits(predictor, table)
    if prepare.seen is None:
        findings += [(subject, UNKNOWN, "") for subject in table["subject"].unique()]
    return pd.DataFrame(findings, columns=["subject", "cause", "received"])


def by_subject(found: pd.DataFrame, subjects: pd.Series) -> list[str]:
    """Put each subject's findings into one text.

    Args:
        found: of `find_out_of_range`.
        subjects: (N,) whose texts are wanted.
    Returns:
        N texts, empty where nothing was found.
    """
    texts = found["cause"] + found["received"].map(lambda received: f": {received}" if received else "")
    joined = texts.groupby(found["subject"]).agg("; ".join)
    return [joined.get(subject, "") for subject in subjects]


def lines_of(found: pd.DataFrame, num_subjects: int) -> list[str]:
    """Sum the findings up, a line a cause.

    Args:
        found: of `find_out_of_range`.
        num_subjects: that were looked at.
    Returns:
        For each cause, in how many subjects it was found, and the first of them.
    """
    lines = []
    for cause, rows in found.groupby("cause", sort=False):
        pairs = zip(rows["subject"], rows["received"], strict=True)
        named = [f"{subject} ({received})" if received else str(subject) for subject, received in pairs]
        more = ", …" if len(named) > NUM_EXAMPLES else ""
        who = f"{len(named)} of {num_subjects} subjects: {', '.join(named[:NUM_EXAMPLES])}{more}"
        lines.append(f"{cause}, {who}")
    return lines


def _unseen_levels(prepare: Preparation, table: pd.DataFrame) -> Iterator[Finding]:
    """Levels of text that training did not have."""
    unseen = prepare.coding.unseen(table).astype(str)
    for subject, name, level in unseen[["subject", "column", "level"]].itertuples(index=False):
        yield subject, f"{name} has a level that training did not have, so it counts as missing", level


def _missing(prepare: Preparation, table: pd.DataFrame) -> Iterator[Finding]:
    """Columns without a value at any visit of a subject, and values that a logarithm can't take."""
    subject = table["subject"].astype(str)
    image = [name for name in prepare.columns if IMAGE_FEATURE.fullmatch(name)]
    others = [name for name in prepare.needed if name not in image]
    is_missing = table[prepare.needed].isna().groupby(subject).all()  # (N, columns) bool
    for name in others:
        cause = f"{name} is missing at every visit and counts as the training {_replacement(prepare, name)}"
        yield from ((who, cause, "") for who in is_missing.index[is_missing[name]])
    if image and len(prepare.components):
        count = is_missing[image].sum(axis=1)
        cause = "features of scans are missing at every visit and count as their training medians"
        yield from ((str(who), cause, f"{number} of {len(image)}") for who, number in count[count > 0].items())
    for name in prepare.logged:
        lowest = table[name].where(table[name] <= 0).groupby(subject).min().dropna()
        cause = f"{name} is not above 0, so it counts as missing there: the model takes its logarithm"
        yield from ((str(who), cause, f"{value:.4g}") for who, value in lowest.items())


def _replacement(prepare: Preparation, name: str) -> str:
    """What a missing value of a column is replaced by, if the subject never had one."""
    if name in prepare.coding.levels:
        return "subjects' most frequent level"
    median = prepare.median[prepare.columns.index(name)]
    return f"median {np.exp(median) if name in prepare.logged else median:.4g}"


def _far_values(prepare: Preparation, table: pd.DataFrame) -> Iterator[Finding]:
    """Values far outside those of training; each subject's farthest."""
    seen = prepare.seen
    if seen is None:
        return
    values = dataclasses.replace(prepare, fences=None).values(table)  # (M, G), as they are
    beyond = np.maximum(seen.low - values, values - seen.high)
    beyond = np.divide(beyond, seen.spread, out=np.zeros_like(beyond), where=seen.spread > 0)
    names = [name for name in prepare.columns if not IMAGE_FEATURE.fullmatch(name)]
    subject = table["subject"].to_numpy(str)
    for place in np.flatnonzero((beyond > FAR).any(axis=0)):
        farthest = pd.Series(beyond[:, place]).groupby(subject).idxmax()  # row by subject
        rows = farthest[beyond[farthest, place] > FAR]
        if place < len(names):
            name, shown = names[place], table[names[place]].to_numpy(float)
            low, high = _unscaled(prepare, name, seen.low[place], seen.high[place])
            cause = (
                f"{name} is far outside the training values {low:.4g} to {high:.4g}{_clipping(prepare, table, name)}"
            )
        else:
            spread = seen.spread[place]
            shown, low, high = values[:, place] / spread, seen.low[place] / spread, seen.high[place] / spread
            component = f"component {place - len(names) + 1} of the scans' features"
            cause = f"{component} is far outside the training values {low:.4g} to {high:.4g}"
        yield from ((str(who), cause, f"{shown[row]:.4g}") for who, row in rows.items())


def _unscaled(prepare: Preparation, name: str, *values: float) -> np.ndarray:
    """Standardised values of a column in the table's own unit."""
    place = prepare.columns.index(name)
    own = np.array(values) / prepare.scale.factor[place] + prepare.scale.centre[place]
    return np.exp(own) if name in prepare.logged else own


def _clipping(prepare: Preparation, table: pd.DataFrame, name: str) -> str:
    """What the values of a column that lie beyond its fences count as, if there are any."""
    if not prepare.are_clipped(table)[name].any():
        return ""
    low, high = prepare.fences_of(name)
    return f" (below {low:.4g} it counts as that, and so above {high:.4g})"


def _late_visits(predictor: Predictor, table: pd.DataFrame) -> Iterator[Finding]:
    """First visits that lie later than any first visit of training, and last visits later than any visit."""
    seen, visits = predictor.prepare.seen, table["visit_time"].groupby(table["subject"].astype(str))
    latest_first = seen.first_visit if seen is not None else 0.0
    limits = [(max(predictor.grid), "the last landmark")] if predictor.grid else []  # no history of training went on
    limits += [(seen.last_visit, "any visit")] if seen is not None else []
    causes = [(visits.min(), latest_first, f"the first visit is not at {_at_most(latest_first)}")]
    if limits:
        limit, what = min(limits)
        causes.append((visits.max(), limit, f"visits are later than {what} of training, {limit:.2f} years"))
    for times, limit, cause in causes:
        late = times[times > limit + LEAST_YEARS]
        yield from ((str(who), cause, f"{years:.2f} years") for who, years in late.items())


def _at_most(years: float) -> str:
    return "0" if years <= LEAST_YEARS else f"0 to {years:.2f} years, as in training"
