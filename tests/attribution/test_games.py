"""Shapley values: exact by hand and by every order, random orders within their error, sums to the last bit."""

import itertools
from math import factorial

import numpy as np
import pytest

from attribution import games


def table_game(rng, num_players, num_backgrounds):
    """Any game at all: a random number for each coalition and background, the same for everybody."""
    value = rng.normal(size=(2**num_players, num_backgrounds))
    value[-1] = value[-1, 0]

    def game(members, background):
        return value[members @ (1 << np.arange(num_players)), background]

    return game


def by_every_order(game, num_players, num_backgrounds):
    """(B, P): the mean gain of each player over all orders."""
    values = np.zeros((num_backgrounds, num_players))
    background = np.arange(num_backgrounds)
    for order in itertools.permutations(range(num_players)):
        members = np.zeros((num_backgrounds, num_players), bool)
        for player in order:
            before = game(members, background)
            members[:, player] = True
            values[:, player] += game(members, background) - before
    return values / factorial(num_players)


@pytest.fixture
def only_orders(monkeypatch):
    """No game is small enough for all coalitions."""
    monkeypatch.setattr(games, "MOST_COALITIONS", 0)


def test_the_glove_game():
    """One left glove, two right ones: a pair is worth 1."""
    played = games.play(lambda m, _: (m[:, 0] & (m[:, 1] | m[:, 2])).astype(float), 3, 1, seed=0)
    np.testing.assert_allclose(played.shapley[0, 0], [2 / 3, 1 / 6, 1 / 6])


@pytest.mark.parametrize("num_players", [1, 2, 5])
def test_all_coalitions_as_all_orders(rng, num_players):
    game = table_game(rng, num_players, 3)
    played = games.play(game, num_players, 3, seed=0)
    np.testing.assert_allclose(played.shapley[0], by_every_order(game, num_players, 3), atol=1e-12)
    np.testing.assert_allclose(played.shapley.sum(axis=-1)[0], played.everybody - played.nobody, atol=1e-12)
    assert (games.standard_error(played.shapley) == 0).all()


@pytest.mark.parametrize("num_players", [2, 6])
def test_random_orders_are_complete_whatever_is_drawn(rng, only_orders, num_players):
    played = games.play(table_game(rng, num_players, 4), num_players, 4, seed=0)
    gap = np.broadcast_to(played.everybody - played.nobody, played.shapley.shape[:2])
    np.testing.assert_allclose(played.shapley.sum(axis=-1), gap, atol=1e-12)


def test_random_orders_are_as_exact_as_they_say(rng, monkeypatch):
    """Over 40 seeds, the error in standard errors has a variance of 1."""
    game = table_game(rng, 6, 4)
    exact = games.play(game, 6, 4, seed=0).shapley.mean(axis=(0, 1))
    monkeypatch.setattr(games, "MOST_COALITIONS", 0)
    monkeypatch.setattr(games, "NUM_COALITIONS", 40 * 20)
    errors = []
    for seed in range(40):
        drawn = games.play(game, 6, 4, seed=seed).shapley
        assert len(drawn) == 20
        errors.append((drawn.mean(axis=(0, 1)) - exact) / games.standard_error(drawn))
    assert 0.7 < np.square(errors).mean() < 1.4
    assert abs(np.mean(errors)) < 0.3


def test_the_error_of_a_sum_is_not_the_sum_of_errors(rng, only_orders):
    """All players together are worth the same in every draw."""
    drawn = games.play(table_game(rng, 6, 4), 6, 4, seed=0).shapley
    assert games.standard_error(drawn).min() > 1e-3
    assert games.standard_error(drawn.sum(axis=-1)) < 1e-12


def test_more_draws_are_more_exact(rng, only_orders, monkeypatch):
    game, errors = table_game(rng, 6, 4), []
    for number in (40 * 10, 40 * 160):
        monkeypatch.setattr(games, "NUM_COALITIONS", number)
        errors.append(games.standard_error(games.play(game, 6, 4, seed=0).shapley).mean())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_players_that_do_the_same_are_worth_the_same(rng):
    value = rng.normal(size=5)
    shapley = games.play(lambda m, _: value[m.sum(axis=1)], 4, 2, seed=0).shapley
    np.testing.assert_allclose(shapley, (value[4] - value[0]) / 4, atol=1e-12)


@pytest.mark.parametrize("most", [0, 2**15])
def test_a_sum_gives_each_player_its_term(rng, monkeypatch, most):
    """Exactly, in every draw; a player without a term is worth nothing."""
    monkeypatch.setattr(games, "MOST_COALITIONS", most)
    terms = np.append(rng.normal(size=5), 0)
    nobody = rng.normal(size=3)
    played = games.play(lambda m, b: 2.0 + nobody[b] * (1 - m[:, 0]) + m @ terms, 6, 3, seed=0)
    expected = np.tile(terms, (3, 1))
    expected[:, 0] -= nobody
    np.testing.assert_allclose(played.shapley, np.broadcast_to(expected, played.shapley.shape), atol=1e-12)


def test_orders_follow_the_seed(rng, only_orders):
    game = table_game(rng, 6, 4)
    first, again, other = (games.play(game, 6, 4, seed=seed).shapley for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_coalition_is_asked_for_twice_at_the_ends(rng, only_orders):
    """Everybody is asked for once: what a float32 network gives in another batch would not be the same bits."""
    asked, game = [], table_game(rng, 6, 4)

    def counting(members, background):
        asked.extend(members.sum(axis=1))
        return game(members, background)

    games.play(counting, 6, 4, seed=0)
    assert asked.count(6) == 1 and asked.count(0) == 4


def test_an_order_and_its_reverse_are_exact_for_pairs(rng, only_orders):
    """Each of two players gets half of what they do together."""
    together = np.triu(rng.normal(size=(6, 6)))

    def game(members, background):
        return np.einsum("ki,ij,kj->k", members, together, members)

    shapley = games.play(game, 6, 2, seed=0).shapley
    expected = (together.sum(axis=0) + together.sum(axis=1)) / 2
    np.testing.assert_allclose(shapley, np.broadcast_to(expected, shapley.shape), atol=1e-12)
