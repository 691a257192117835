"""The drift alarm: one pace in everybody, two groups with one pace each, and what can't be told."""

import numpy as np
import pytest

from training import drift
from training.drift import Paces, Slopes, find_drift, split_in_two


def draw(rates, *, visits=3, noise=0.05, rng):
    """Years since the mean visit, progress and subject of each scan, of subjects who progress at these rates."""
    codes = np.repeat(np.arange(len(rates)), visits)
    times = np.sort(rng.uniform(0, 1.5, (len(rates), visits)), axis=1)
    years = (times - times.mean(axis=1, keepdims=True)).ravel()
    return rates[codes] * years + 7 * codes + noise * rng.normal(size=len(codes)), years, codes


def paces_of(scores, rng):
    """Scores in the plane, which is turned and stretched at random."""
    turn = rng.normal(size=(2, 2))
    return Paces(scores @ turn, np.ones(len(scores)), np.array([f"s{number:03}" for number in range(len(scores))]))


def of_many_kinds(number, rng):
    """Paces of subjects who form no groups."""
    return paces_of(np.stack([rng.lognormal(sigma=0.6, size=number), rng.normal(size=number)], axis=1), rng)


def of_two_scanners(number, rng, *, share=0.5, within=0.08):
    """Paces of subjects of whom a share is scanned by a scanner that drifts; who they are."""
    drifts = np.arange(number) < share * number
    scores = np.stack([rng.lognormal(sigma=0.6, size=number), drifts + within * rng.normal(size=number)], axis=1)
    return paces_of(scores, rng), drifts


# ---- The whole alarm -------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [25, 60, 192])
@pytest.mark.parametrize("spread", [0.0, 0.06])
def test_one_pace_in_everybody_sounds(rng, number, spread):
    told = find_drift(*draw(1 + spread * rng.normal(size=number), rng=rng), of_many_kinds(number, rng))
    assert told["alarm"] is True and told["smaller_group"] == []
    assert "one pace" in told["why"] and "PROGRESS=off" in told["why"] and "harmonise" in told["why"]
    assert told["spread"] < told["spread_limit"] < drift.LEAST_SPREAD and told["mean_slope"] == pytest.approx(
        1, abs=0.1
    )


@pytest.mark.parametrize("sigma", [0.5, 0.8])
@pytest.mark.parametrize("number", [60, 192])
def test_subjects_with_rates_of_their_own_do_not_sound(rng, number, sigma):
    told = find_drift(*draw(0.4 * rng.lognormal(sigma=sigma, size=number), rng=rng), of_many_kinds(number, rng))
    assert told["alarm"] is False and told["spread"] > told["spread_limit"]
    assert told["within_groups"] > told["within_groups_limit"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("number", [40, 192])
def test_a_drift_in_some_subjects_sounds_and_names_the_smaller_group(rng, number, share):
    paces, drifts = of_two_scanners(number, rng, share=share)
    told = find_drift(*draw(0.4 * rng.lognormal(sigma=0.6, size=number), rng=rng), paces)
    assert told["alarm"] is True and "two paces" in told["why"] and "one pace in" not in told["why"]
    if share != 0.5:
        expected = drifts if share < 0.5 else ~drifts
        assert set(told["smaller_group"]) == set(paces.subjects[expected])


@pytest.mark.parametrize("within", [0.45, 0.7])
def test_patients_and_controls_with_rates_of_their_own_do_not_sound(rng, within):
    paces, _ = of_two_scanners(192, rng, within=within)
    assert find_drift(*draw(0.4 * rng.lognormal(sigma=0.6, size=192), rng=rng), paces)["alarm"] is False


def test_one_subject_far_from_the_others_is_no_group(rng):
    scores = rng.normal(size=(80, 2))
    scores[3] = 60
    assert find_drift(*draw(rng.lognormal(sigma=0.6, size=80), rng=rng), paces_of(scores, rng))["alarm"] is False


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"visits": 2}, "three visits"),
        ({"noise": 3.0, "seed": 2}, "too noisy"),
        ({"number": 6, "noise": 0.3}, "too noisy"),
        ({"mean": -1.0}, "does not grow"),
        ({"number": 3}, "too few to form groups"),
    ],
)
def test_what_cannot_be_told_is_none_with_its_reason(kind, why):
    rng, number = np.random.default_rng(kind.get("seed", 0)), kind.get("number", 50)
    rates = kind.get("mean", 1.0) * rng.lognormal(sigma=0.6, size=number)
    scans = draw(rates, visits=kind.get("visits", 3), noise=kind.get("noise", 0.1), rng=rng)
    told = find_drift(*scans, of_many_kinds(number, rng))
    assert told["alarm"] is None and why in told["why"] and "PROGRESS=off" not in told["why"]


def test_two_groups_sound_where_one_pace_cannot_be_told(rng):
    """Without a third visit the noise is unknown, but groups need none."""
    told = find_drift(*draw(rng.lognormal(size=60), visits=2, rng=rng), of_two_scanners(60, rng)[0])
    assert told["alarm"] is True and told["spread"] is None and "two paces" in told["why"]


def test_the_same_scans_in_another_order_give_the_same(rng):
    progress, years, codes = draw(rng.lognormal(sigma=0.6, size=40), rng=rng)
    paces, order = of_many_kinds(40, rng), rng.permutation(120)
    told, again = (
        find_drift(progress, years, codes, paces),
        find_drift(progress[order], years[order], codes[order], paces),
    )
    assert again["why"] == told["why"]
    assert [again[name] for name in ("spread", "spread_limit")] == pytest.approx(
        [told[name] for name in ("spread", "spread_limit")]
    )


# ---- Its parts -------------------------------------------------------------------------------------------
def test_the_lines_of_three_subjects_by_hand():
    """Slopes 1 and 2; the first subject's scans lie 0.1, -0.2, 0.1 off its line; the third has one visit."""
    years = np.array([-1, 0, 1, -0.5, 0.5, 0.0])
    progress = np.array([4.1, 4.8, 6.1, 0.0, 2.0, 9.0])
    slopes = Slopes.of(progress, years, np.array([0, 0, 0, 1, 1, 2]))
    np.testing.assert_allclose(slopes.values, [1, 2])
    np.testing.assert_allclose(slopes.squares, [2, 0.5])
    assert slopes.freedom == 1 and slopes.noise == pytest.approx(0.01 + 0.04 + 0.01)
    assert slopes.mean == pytest.approx((2 * 1 + 0.5 * 2) / 2.5)


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.6])
def test_the_spread_is_that_of_the_true_slopes(rng, spread):
    slopes = Slopes.of(*draw(2 * (1 + spread * rng.normal(size=4000)), noise=0.3, rng=rng))
    assert slopes.spread(slopes.values, slopes.noise) == pytest.approx(spread, abs=0.06)


@pytest.mark.parametrize(("spread", "low", "high"), [(drift.LEAST_SPREAD, 0.01, 0.10), (0.6, 0.0, 0.01)])
def test_how_often_one_pace_sounds_where_rates_differ(rng, monkeypatch, spread, low, high):
    monkeypatch.setattr(drift, "DRAWS", 400)
    sigma, sounds = np.sqrt(np.log1p(spread**2)), []
    for _ in range(200):
        slopes = Slopes.of(*draw(rng.lognormal(sigma=sigma, size=25), noise=0.1, rng=rng))
        sounds.append(drift._one_pace(slopes, rng).seen)
    assert low <= np.mean([seen is True for seen in sounds]) <= high


@pytest.mark.parametrize("seed", range(3))
def test_the_best_split_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    scores, weights = rng.normal(size=(23, 2)), rng.uniform(0.5, 2, 23)
    scores -= np.average(scores, axis=0, weights=weights)
    values, vectors = np.linalg.eigh((weights * scores.T) @ scores)
    white = scores @ vectors / np.sqrt(values)
    best = (np.inf, None)
    for angle in np.arange(drift.ANGLES) * np.pi / drift.ANGLES:
        along = white @ [np.cos(angle), np.sin(angle)]
        for cut in np.sort(along):
            groups = along <= cut, along > cut
            if min(group.sum() for group in groups) < drift.SMALLEST_GROUP * 23:
                continue
            means = [np.average(along[group], weights=weights[group]) for group in groups]
            variances = [
                np.average((along[group] - mean) ** 2, weights=weights[group])
                for group, mean in zip(groups, means, strict=True)
            ]
            best = min(best, (np.sqrt(max(variances)) / (means[1] - means[0]), angle), key=lambda pair: pair[0])
    within, smaller = split_in_two(scores, weights)
    assert within == pytest.approx(best[0], rel=0.03) and 4 <= smaller.sum() <= 11
