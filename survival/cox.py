"""Risk sets of the Cox model, and the ridge Cox: the linear link of stage 2 and its linear rivals.

NumPy alone. Direction: a higher log-hazard means an earlier event.
"""

import dataclasses
import itertools
from typing import Literal

import numpy as np

Ties = Literal["efron", "breslow"]
NEWTON_STEPS = 50
HALVINGS = 30
TOLERANCE = 1e-9  # of the gradient, per event


@dataclasses.dataclass(frozen=True)
class RiskSets:
    """Who is at risk at which event, as positions after one sort for all strata.

    Sorted by stratum, then from the latest time to the earliest: whoever is at risk at an event stands
    between the start of its stratum and the end of its group of tied times.
    """

    order: np.ndarray  # (R,) row at each position
    bounds: np.ndarray  # (G + 1,) first position of each stratum, and R
    event_bounds: np.ndarray  # (G + 1,) the same among the events
    event: np.ndarray  # (E,) position of each event, ascending
    last: np.ndarray  # (E,) last position of its group of tied times
    tie: np.ndarray  # (E,) number of its group, counted from 0 over the groups with an event
    fraction: np.ndarray  # (E,) Efron: 0, 1/d, ... (d-1)/d over the d tied events; Breslow: 0
    next_event: np.ndarray  # (R,) first event at or after the position's own group; E if there is none

    @property
    def num_ties(self) -> int:
        """Groups of tied times with an event."""
        return int(self.tie[-1]) + 1 if len(self.tie) else 0


def risk_sets(time: np.ndarray, event: np.ndarray, stratum: np.ndarray | None = None, ties: Ties = "efron") -> RiskSets:
    """Sort once and find the risk set of every event.

    Args:
        time: (R,) years left.
        event: (R,) bool.
        stratum: (R,) int, nobody is at risk in another's stratum; None: one stratum.
        ties: Efron's or Breslow's treatment of tied events.
    Returns:
        The positions; O(R) memory.
    Raises:
        ValueError: the shapes differ, or an unknown `ties`.
    """
    if time.shape != event.shape or (stratum is not None and stratum.shape != time.shape):
        raise ValueError(f"expected one shape. Received: time {time.shape}, event {event.shape}, stratum {stratum}")
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties: expected 'efron' or 'breslow'. Received: {ties!r}")
    num_rows = len(time)
    order = np.argsort(-time) if stratum is None else np.lexsort((-time, stratum))
    time, event = time[order], event[order]
    new = np.ones(num_rows, bool)  # a stratum begins here
    new[1:] = False if stratum is None else np.diff(stratum[order]) != 0
    bounds = np.append(np.flatnonzero(new), num_rows)
    new[1:] |= time[1:] != time[:-1]  # a group of tied times begins here
    group = np.cumsum(new) - 1  # (R,)
    ends = np.append(np.flatnonzero(new)[1:], num_rows) - 1  # last position of each group
    positions = np.flatnonzero(event)  # (E,)
    _, first, tie, count = np.unique(group[positions], return_index=True, return_inverse=True, return_counts=True)
    rank = np.arange(len(positions)) - first[tie]
    fraction = rank / count[tie] if ties == "efron" else np.zeros(len(positions))
    events_before = np.concatenate([[0], np.cumsum(event)])  # (R + 1,)
    start = np.flatnonzero(new)[group]  # first position of each row's group
    return RiskSets(
        order, bounds, events_before[bounds], positions, ends[group[positions]], tie, fraction, events_before[start]
    )


def _running(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Cumulative sums along the first axis, begun anew at each of `bounds`."""
    parts = [np.cumsum(values[a:b], axis=0) for a, b in itertools.pairwise(bounds)]
    return np.concatenate(parts) if parts else values


def _running_back(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return _running(values[::-1], len(values) - bounds[::-1])[::-1]


def cox_derivatives(
    coefficients: np.ndarray, inputs: np.ndarray, sets: RiskSets
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean negative log partial likelihood per event of a linear model, its gradient and Hessian.

    Args:
        coefficients: (P,).
        inputs: (R, P) float64, in the order of the rows that `sets` was made of.
        sets: their risk sets, with an event or more.
    Returns:
        Loss, gradient (P,), Hessian (P, P); O(R P) memory.
    Source: Cox (1972); Efron (1977). Checked against lifelines.
    """
    x = inputs[sets.order]  # (R, P)
    log_hazard = x @ coefficients
    top = np.repeat(np.maximum.reduceat(log_hazard, sets.bounds[:-1]), np.diff(sets.bounds))
    weight = np.exp(log_hazard - top)  # (R,); a stratum's largest is 1
    tied = weight[sets.event]
    share = sets.fraction * np.bincount(sets.tie, tied, sets.num_ties)[sets.tie]
    at_risk = _running(weight, sets.bounds)[sets.last] - share  # (E,)
    loss = (np.log(at_risk) + top[sets.event] - log_hazard[sets.event]).mean()
    # (E, P): mean input of those at risk at each event
    tied_x = np.stack([np.bincount(sets.tie, tied * column, sets.num_ties) for column in x[sets.event].T], axis=1)
    mean = _running(weight[:, None] * x, sets.bounds)[sets.last] - sets.fraction[:, None] * tied_x[sets.tie]
    mean /= at_risk[:, None]
    # (R,): a row's weight summed over the events at which it is at risk
    summed = np.append(_running_back(1 / at_risk, sets.event_bounds), 0.0)
    later = np.repeat(sets.event_bounds[1:], np.diff(sets.bounds))
    total = weight * np.where(sets.next_event < later, summed[sets.next_event], 0.0)
    total[sets.event] -= tied * np.bincount(sets.tie, sets.fraction / at_risk, sets.num_ties)[sets.tie]
    num_events = len(sets.event)
    gradient = (mean - x[sets.event]).sum(axis=0) / num_events
    hessian = ((x * total[:, None]).T @ x - mean.T @ mean) / num_events
    return float(loss), gradient, hessian


def ridge_cox(inputs: np.ndarray, sets: RiskSets, penalty: float) -> np.ndarray:
    """Coefficients of the ridge Cox by Newton steps.

    Args:
        inputs: (R, P) float64, standardised.
        sets: risk sets of the rows.
        penalty: weight of half the squared norm of the coefficients, beside the mean loss per event; > 0.
    Returns:
        (P,): minimises loss + penalty / 2 * sum of squares; 0 without an event.
    Source: Verweij and van Houwelingen (1994). lifelines' `penalizer` is penalty * events / rows.
    """
    coefficients = np.zeros(inputs.shape[1])
    if len(sets.event) == 0:
        return coefficients

    def penalised(at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        loss, gradient, hessian = cox_derivatives(at, inputs, sets)
        return loss + penalty / 2 * at @ at, gradient + penalty * at, hessian + penalty * np.eye(len(at))

    loss, gradient, hessian = penalised(coefficients)
    for _ in range(NEWTON_STEPS):
        if np.abs(gradient).max() < TOLERANCE:
            break
        step = np.linalg.solve(hessian, gradient)
        for halving in range(HALVINGS):
            trial = penalised(coefficients - step / 2**halving)
            if trial[0] <= loss:
                break
        else:
            break  # no step goes lower: as good as floats allow
        coefficients, (loss, gradient, hessian) = coefficients - step / 2**halving, trial
    return coefficients


def partial_likelihood_loss(log_hazard: np.ndarray, sets: RiskSets) -> float:
    """Mean negative log partial likelihood per event of given log-hazards (R,)."""
    return cox_derivatives(np.ones(1), np.asarray(log_hazard, float)[:, None], sets)[0]
