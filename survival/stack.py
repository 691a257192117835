"""The stack of stage 2: its arms summed up with weights that are not negative, by what they tell of held-out subjects.

The linear arms together are one linear model, the `link` of a `Predictor`; the trees and the T-LSTM correct it. Shapes:
R landmark rows, P inputs, S seeds, A arms.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from survival.arms import ARMS, Arms, HeldOut
from survival.boosting import BoostedCox
from survival.cox import RiskSets, cox_derivatives
from survival.landmarks import Histories
from survival.predictor import Correction, Predictor

NETWORK = "tlstm"  # the arm that is a network; it follows ARMS
ALL_ARMS = (*ARMS, NETWORK)
LEAST_EVENTS = 10  # subjects with an event; of fewer, nothing that is held out tells which arm is better
LEAST_GAIN = 8.0  # twice the events times the held-out gain per event; a stack that gains less is not used


@dataclasses.dataclass(frozen=True)
class Weights:
    """How the arms are summed up, and why."""

    of_arms: np.ndarray  # (A,) >= 0; the first arm alone where the others did not earn theirs
    gain: float  # twice the events times the held-out gain per event over the first arm, a likelihood ratio


def stack_arms(held_out: np.ndarray, sets: RiskSets, num_events: int) -> Weights:
    """Find the weights with which the arms' held-out log-hazards tell most, shrunk to the first arm alone.

    With the best weights w, the first arm's e and the gain g, the weights are e + (1 - LEAST_GAIN / g) (w - e), as in
    the positive part of James and Stein's estimator; e where the gain is smaller.

    Args:
        held_out: (R, A) log-hazards, each from subjects without the row's; the first arm is the one to fall back on.
        sets: risk sets of the rows.
        num_events: subjects with an event among them.
    Returns:
        The weights. An arm of which more would be better than all has a weight above 1: the scale of the risk is
        learned too.
    """
    from scipy.optimize import minimize  # slow to import

    first = np.eye(held_out.shape[1])[0]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The held-out loss and its gradient (A,)."""
        return cox_derivatives(weights, held_out, sets)[:2]

    best = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(first)).x
    gain = float(2 * num_events * (loss(first)[0] - loss(best)[0]))
    share = 1 - LEAST_GAIN / gain if gain > LEAST_GAIN else 0.0
    return Weights(first + share * (best - first), gain)


# ---- Its predictor -------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class StackedCorrection:
    """What the trees and the T-LSTM add to the linear arms of a stack."""

    weights: Weights
    boosted: BoostedCox
    network: Correction  # the T-LSTM, which does not correct the link but is an arm by itself

    def correct(self, data: Histories) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute the weighted sum of the trees and the T-LSTM.

        Args:
            data: histories with R landmark rows.
        Returns:
            Log-hazards (S, R), or (1, R) where the T-LSTM has no weight; its attention scores (S, M), or None.
        """
        of_boosted, of_network = self.weights.of_arms[len(ARMS) - 1 :]
        trees = of_boosted * self.boosted(data.inputs[data.rows])[None]
        if of_network == 0:
            return trees, None
        log_hazard, scores = self.network.correct(data)
        return trees + of_network * log_hazard, scores

    def to_json(self) -> dict[str, Any]:
        """Give everything but the network as dictionaries, lists and arrays."""
        return {"weights": dataclasses.asdict(self.weights), "boosted": dataclasses.asdict(self.boosted)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], network: Correction, *, num_inputs: int) -> "StackedCorrection":
        """Restore what `to_json` gave, after a way through JSON.

        Args:
            saved: that.
            network: the T-LSTM.
            num_inputs: P.
        Raises:
            KeyError, TypeError, ValueError: not what `to_json` gave, or numbers that are not finite.
        """
        of_arms = np.asarray(saved["weights"]["of_arms"], float)
        if of_arms.shape != (len(ALL_ARMS),) or not np.isfinite(of_arms).all():
            raise ValueError(f"weights: expected {len(ALL_ARMS)} numbers, received {of_arms}")
        weights = Weights(of_arms, float(saved["weights"]["gain"]))
        return cls(weights, BoostedCox.from_json(saved["boosted"], num_inputs=num_inputs), network)


def stacked(arms: Arms, network: Correction, weights: Weights, grid: Sequence[float]) -> Predictor:
    """Put the arms together, without baseline hazards.

    Args:
        arms: those without a network.
        network: the T-LSTM.
        weights: of ALL_ARMS.
        grid: landmarks they were trained at, years from baseline.
    """
    link, rich_link = weights.of_arms[0] * arms.link, weights.of_arms[1] * arms.rich_link
    correction = StackedCorrection(weights, arms.boosted, network)
    return Predictor(arms.prepare, tuple(grid), (link + rich_link)[None], correction)


def fit_stack(
    arms: Arms,
    held_out: HeldOut,
    network: Correction,
    of_network: np.ndarray,
    *,
    grid: Sequence[float],
    recalibrate: bool,
) -> Predictor:
    """Weigh the arms by what they say of held-out subjects, and calibrate the stack and each arm on it.

    Args:
        arms: those without a network.
        held_out: what they say of subjects that were held out.
        network: the T-LSTM.
        of_network: (R,) what it says of them.
        grid: landmarks they were trained at, years from baseline.
        recalibrate: as for `Predictor.calibrated`.
    Returns:
        The stack, with the predictors of its arms.
    """
    log_hazards, rows = np.column_stack([held_out.log_hazards, of_network]), held_out.data.landmarks

    def calibrated(weights: Weights) -> Predictor:
        """The predictor of arms with these weights."""
        draft = stacked(arms, network, weights, grid)
        return draft.calibrated_on(log_hazards @ weights.of_arms, rows, ties=held_out.ties, recalibrate=recalibrate)

    alone = {name: calibrated(Weights(row, 0.0)) for name, row in zip(ALL_ARMS, np.eye(len(ALL_ARMS)), strict=True)}
    whole = calibrated(stack_arms(log_hazards, held_out.sets, rows.num_events))
    return dataclasses.replace(whole, arms=alone)


def weights_of(predictor: Predictor) -> dict[str, float]:
    """The weight of each arm in a stack, by name; empty for another predictor."""
    if not isinstance(predictor.network, StackedCorrection):
        return {}
    return dict(zip(ALL_ARMS, predictor.network.weights.of_arms.tolist(), strict=True))
