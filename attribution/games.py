"""Shapley values of a game that is played against several backgrounds.

NumPy alone. Shapes: P players, B backgrounds, K coalitions, D draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import comb

MOST_COALITIONS = 2**15  # against all backgrounds, to be exact: 10 players against 32
NUM_COALITIONS = 6144  # of random orders, against all backgrounds; more, if LEAST_DRAWS ask for them
LEAST_DRAWS = 2  # against each background, so that their spread is known

Game = Callable[[np.ndarray, np.ndarray], np.ndarray]
# who takes part (K, P) bool, and the number of the background (K,) int -> what each coalition is worth (K,)


@dataclass(frozen=True)
class Played:
    """The Shapley values of a game, and what they sum to."""

    shapley: np.ndarray  # (D, B, P) of each draw; D = 1: exact. They sum over P to `everybody - nobody`
    everybody: float  # v(all players), the same against each background
    nobody: np.ndarray  # (B,) v(no player)


def play(game: Game, num_players: int, num_backgrounds: int, *, seed: int) -> Played:
    """Shapley values of the players against each background.

    They are exact if all coalitions are no more than MOST_COALITIONS. Otherwise a draw is a random order and its
    reverse, against each background anew: a player is worth what the coalition gains by its coming. A draw is exact by
    itself if no more than two players matter together.

    Args:
        game: the worth of K coalitions; with all players it is the same against each background.
        num_players: P, at least 1.
        num_backgrounds: B.
        seed: of the orders.
    Returns:
        (D, B, P) values and the worth of everybody and of nobody.
    Source: Castro et al. (2009), Comput Oper Res 36; Mitchell et al. (2022), JMLR 23(43), for the reversed orders.
        Checked against the mean over all orders.
    """
    backgrounds = np.arange(num_backgrounds)
    nobody = game(np.zeros((num_backgrounds, num_players), bool), backgrounds)
    everybody = game(np.ones((1, num_players), bool), backgrounds[:1])[0]
    if 2**num_players * num_backgrounds <= MOST_COALITIONS:
        shapley = _by_all_coalitions(game, num_players, nobody, everybody)[None]
    else:
        rng = np.random.default_rng(seed)
        shapley = _by_random_orders(game, num_players, nobody, everybody, rng)
    return Played(shapley, float(everybody), nobody)


def standard_error(sums: np.ndarray) -> np.ndarray:
    """The standard error of the mean over draws and backgrounds, from the draws' spread against each background.

    Args:
        sums: (D, B, ...) Shapley values, or sums of several players'.
    Returns:
        (...), 0 where D = 1, for then they are exact.
    """
    num_draws, num_backgrounds = sums.shape[:2]
    if num_draws == 1:
        return np.zeros(sums.shape[2:])
    return np.sqrt(sums.var(axis=0, ddof=1).sum(axis=0) / num_draws) / num_backgrounds


def _by_all_coalitions(game: Game, num_players: int, nobody: np.ndarray, everybody: float) -> np.ndarray:
    """(B, P): phi_i = sum over S without i of |S|! (P - |S| - 1)! / P! * (v(S + i) - v(S)).

    The factor is 1 / (P * binomial(P - 1, |S|)).
    """
    num_backgrounds, number = len(nobody), np.arange(2**num_players)
    members = (number[:, None] >> np.arange(num_players)) & 1 == 1  # (2^P, P)
    value = np.concatenate([nobody[None], np.full((len(number) - 1, num_backgrounds), everybody)])  # v(S), (2^P, B)
    inner = members[1:-1]
    of_background = np.tile(np.arange(num_backgrounds), len(inner))
    value[1:-1] = game(inner.repeat(num_backgrounds, axis=0), of_background).reshape(len(inner), num_backgrounds)
    size, shapley = members.sum(axis=1), np.empty((num_backgrounds, num_players))
    for player in range(num_players):
        without = number[~members[:, player]]  # the S without i
        factor = 1 / (num_players * comb(num_players - 1, size[without]))
        shapley[:, player] = factor @ (value[without | 1 << player] - value[without])
    return shapley


def _by_random_orders(
    game: Game, num_players: int, nobody: np.ndarray, everybody: float, rng: np.random.Generator
) -> np.ndarray:
    """(D, B, P): the gain at each player's coming, the mean of an order and its reverse."""
    num_backgrounds, num_inner = len(nobody), num_players - 1  # coalitions of an order between nobody and everybody
    num_draws = max(LEAST_DRAWS, NUM_COALITIONS // (2 * num_backgrounds * num_inner))
    shape = (num_draws, 2, num_backgrounds)
    order = rng.permuted(np.tile(np.arange(num_players), (num_draws, num_backgrounds, 1)), axis=-1)
    order = np.stack([order, order[..., ::-1]], axis=1)  # (D, 2, B, P)
    place = order.argsort(axis=-1)  # of each player
    members = place[..., None, :] <= np.arange(num_inner)[:, None]  # (D, 2, B, P - 1, P)
    of_background = np.broadcast_to(np.arange(num_backgrounds)[:, None], (*shape, num_inner))
    value = np.empty((*shape, num_players + 1))
    value[..., 0], value[..., -1] = nobody, everybody
    value[..., 1:-1] = game(members.reshape(-1, num_players), of_background.ravel()).reshape(*shape, num_inner)
    gain = np.take_along_axis(np.diff(value), place, axis=-1)
    return gain.mean(axis=1)
