"""Risk sets of the Cox model, its partial likelihood, and the ridge Cox, in NumPy.

The link of stage 2 and its linear rivals are ridge Cox models. A higher log-hazard means an earlier event. Shapes:
R rows, E events among them, G strata, P inputs. Times are years.

Symbols: eta_j, the log-hazard of row j; R_i, the rows at risk at event i; D_i, the d_i events tied with event i;
f_i = 0, 1/d_i, ... (d_i - 1)/d_i, Efron's share for the events of one tie (0 with Breslow).
"""

import dataclasses
import itertools
from typing import Literal

import numpy as np

Ties = Literal["efron", "breslow"]
NEWTON_STEPS = 50  # at most
HALVINGS = 30  # of one step, at most
ROUNDING = 1e-15  # share of the loss
TOLERANCE = 1e-9  # of the gradient per event; below it the search ends


@dataclasses.dataclass(frozen=True)
class RiskSets:
    """Who is at risk at which event, as positions after one sort for all strata.

    Sorted by stratum, then from the latest time to the earliest: whoever is at risk at an event stands
    between the start of its stratum and the end of its group of tied times.
    """

    order: np.ndarray  # (R,) int, row at each position
    bounds: np.ndarray  # (G + 1,) int, first position of each stratum, and R
    event_bounds: np.ndarray  # (G + 1,) int, the same among the events: first event of each stratum, and E
    event: np.ndarray  # (E,) int, position of each event, ascending
    last: np.ndarray  # (E,) int, last position of its group of tied times: R_i ends there
    tie: np.ndarray  # (E,) int, number of its group, counted from 0 over the groups with an event
    fraction: np.ndarray  # (E,) f_i, from 0 to below 1
    next_event: np.ndarray  # (R,) int, first event at or after the position's own group; E if there is none

    @property
    def num_ties(self) -> int:
        """The number of groups of tied times with an event; the (E,) numbers in `tie` are below it."""
        return int(self.tie[-1]) + 1 if len(self.tie) else 0


def risk_sets(time: np.ndarray, event: np.ndarray, stratum: np.ndarray | None = None, ties: Ties = "efron") -> RiskSets:
    """Sort the rows once and find the risk set of every event.

    Args:
        time: (R,) years left to the event or censoring.
        event: (R,) bool.
        stratum: (R,) int; a row is at risk at the events of its own stratum only; None: one stratum.
        ties: Efron's or Breslow's treatment of tied events.
    Returns:
        The positions; O(R) memory.
    Raises:
        ValueError: the shapes differ, or `ties` is unknown.
    """
    if time.shape != event.shape or (stratum is not None and stratum.shape != time.shape):
        raise ValueError(f"expected one shape. Received: time {time.shape}, event {event.shape}, stratum {stratum}")
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties: expected 'efron' or 'breslow'. Received: {ties!r}")
    num_rows = len(time)
    order = np.argsort(-time) if stratum is None else np.lexsort((-time, stratum))
    time, event = time[order], event[order]
    begins = np.ones(num_rows, bool)  # whether a stratum begins at this position
    begins[1:] = False if stratum is None else np.diff(stratum[order]) != 0
    bounds = np.append(np.flatnonzero(begins), num_rows)
    begins[1:] |= time[1:] != time[:-1]  # from here on: whether a group of tied times begins
    group = np.cumsum(begins) - 1  # (R,)
    ends = np.append(np.flatnonzero(begins)[1:], num_rows) - 1  # last position of each group
    positions = np.flatnonzero(event)  # (E,)
    _, first, tie, count = np.unique(group[positions], return_index=True, return_inverse=True, return_counts=True)
    rank = np.arange(len(positions)) - first[tie]
    fraction = rank / count[tie] if ties == "efron" else np.zeros(len(positions))
    events_before = np.concatenate([[0], np.cumsum(event)])  # (R + 1,)
    start = np.flatnonzero(begins)[group]  # first position of each row's group
    return RiskSets(
        order, bounds, events_before[bounds], positions, ends[group[positions]], tie, fraction, events_before[start]
    )


def _running_sum(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Running sums along the first axis, which begin anew at each of `bounds`; the shape of `values`."""
    parts = [np.cumsum(values[a:b], axis=0) for a, b in itertools.pairwise(bounds)]
    return np.concatenate(parts) if parts else values


def _running_sum_from_the_end(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """As `_running_sum`, from the last value of each stratum to its first."""
    return _running_sum(values[::-1], len(values) - bounds[::-1])[::-1]


def cox_derivatives(
    coefficients: np.ndarray, inputs: np.ndarray, sets: RiskSets
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean negative log partial likelihood per event of a linear model, its gradient and Hessian.

    loss = 1/E sum_i [ log( sum_{j in R_i} exp(eta_j) - f_i sum_{k in D_i} exp(eta_k) ) - eta_i ], eta = X beta.

    Args:
        coefficients: (P,) beta.
        inputs: (R, P) float64, X, in the order of the rows that `sets` was made from.
        sets: their risk sets, with an event or more.
    Returns:
        Loss, gradient (P,), Hessian (P, P); O(R P) memory.
    Source: Cox (1972); Efron (1977). Checked against lifelines.
    """
    x = inputs[sets.order]  # (R, P)
    loss, weight, at_risk, total = _weigh(x @ coefficients, sets)
    tied = weight[sets.event]  # (E,)
    # xbar_i, (E, P): the weighted mean input of the rows at risk at each event
    tied_x = np.stack([np.bincount(sets.tie, tied * column, sets.num_ties) for column in x[sets.event].T], axis=1)
    mean = _running_sum(weight[:, None] * x, sets.bounds)[sets.last] - sets.fraction[:, None] * tied_x[sets.tie]
    mean /= at_risk[:, None]
    num_events = len(sets.event)
    gradient = (mean - x[sets.event]).sum(axis=0) / num_events  # 1/E sum_i (xbar_i - x_i)
    hessian = ((x * total[:, None]).T @ x - mean.T @ mean) / num_events  # 1/E (X' diag(w) X - sum_i xbar_i xbar_i')
    return loss, gradient, hessian


def expected_events(log_hazard: np.ndarray, sets: RiskSets) -> np.ndarray:
    """How many events each row should have had by the model: its weight, summed over the events it was at risk at.

    The gradient of the summed loss by the log-hazards is this less whether the row had the event.

    Args:
        log_hazard: (R,) float64, in the order of the rows that `sets` was made from.
        sets: their risk sets, with an event or more.
    Returns:
        (R,) >= 0; they sum to the number of events.
    """
    expected = np.empty(len(log_hazard))
    expected[sets.order] = _weigh(log_hazard[sets.order], sets)[-1]
    return expected


def _weigh(log_hazard: np.ndarray, sets: RiskSets) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """What the loss and its derivatives are made of, for log-hazards eta, (R,) in the order of `sets`.

    Returns:
        The mean loss per event; (R,) exp(eta_j), scaled so that the largest of a stratum is 1; (E,) their sums over
        R_i less f_i times their sums over D_i; (R,) each row's weight, summed over the events at which it is at risk.
        The loss is infinite, and all else NaN, where floats can't hold what some R_i weighs beside its stratum.
    """
    largest = np.repeat(np.maximum.reduceat(log_hazard, sets.bounds[:-1]), np.diff(sets.bounds))  # of each stratum
    weight = np.exp(log_hazard - largest)
    tied = weight[sets.event]  # (E,)
    tied_share = sets.fraction * np.bincount(sets.tie, tied, sets.num_ties)[sets.tie]  # f_i sum_D exp(eta_k)
    at_risk = _running_sum(weight, sets.bounds)[sets.last] - tied_share
    if not (at_risk > 0).all():
        return np.inf, *(np.full_like(part, np.nan) for part in (weight, at_risk, weight))
    loss = (np.log(at_risk) + largest[sets.event] - log_hazard[sets.event]).mean()
    summed = np.append(_running_sum_from_the_end(1 / at_risk, sets.event_bounds), 0.0)
    end_of_stratum = np.repeat(sets.event_bounds[1:], np.diff(sets.bounds))
    total = weight * np.where(sets.next_event < end_of_stratum, summed[sets.next_event], 0.0)
    total[sets.event] -= tied * np.bincount(sets.tie, sets.fraction / at_risk, sets.num_ties)[sets.tie]
    return float(loss), weight, at_risk, total


def ridge_cox(inputs: np.ndarray, sets: RiskSets, penalty: float, start: np.ndarray | None = None) -> np.ndarray:
    """Fit the ridge Cox by Newton steps.

    Args:
        inputs: (R, P) float64, standardised.
        sets: risk sets of the rows.
        penalty: > 0, weight of half the squared norm of the coefficients, beside the mean loss per event.
        start: (P,) where the search begins; None: at 0.
    Returns:
        (P,) beta, which minimises loss + penalty / 2 * |beta|^2; 0 without an event.
    Source: Verweij and van Houwelingen (1994). lifelines' `penalizer` is penalty * events / rows.
    """
    origin = np.zeros(inputs.shape[1])
    if len(sets.event) == 0:
        return origin

    def penalised(beta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Loss, gradient and Hessian with the ridge's penalty."""
        loss, gradient, hessian = cox_derivatives(beta, inputs, sets)
        return loss + penalty / 2 * beta @ beta, gradient + penalty * beta, hessian + penalty * np.eye(len(beta))

    coefficients = origin if start is None else start
    loss, gradient, hessian = penalised(coefficients)
    if not np.isfinite(loss):  # a start too far
        coefficients, (loss, gradient, hessian) = origin, penalised(origin)
    for _ in range(NEWTON_STEPS):
        if np.abs(gradient).max() < TOLERANCE:
            break
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < ROUNDING * abs(loss):
            break  # twice what the step would gain: less than a float can show
        for halving in range(HALVINGS):
            trial = penalised(coefficients - step / 2**halving)
            if trial[0] <= loss:
                break
        else:
            break  # no step lowers the loss: this is as exact as floats allow
        coefficients, (loss, gradient, hessian) = coefficients - step / 2**halving, trial
    return coefficients


def partial_likelihood_loss(log_hazard: np.ndarray, sets: RiskSets) -> float:
    """Mean negative log partial likelihood per event of given log-hazards.

    Args:
        log_hazard: (R,) float; higher = earlier event; in the order of the rows that `sets` was made from.
        sets: their risk sets, with an event or more.
    Returns:
        The loss of `cox_derivatives`, with eta = `log_hazard`.
    """
    return cox_derivatives(np.ones(1), np.asarray(log_hazard, float)[:, None], sets)[0]
