"""The link: its rows and folds by seed, training rows alone, the choice on validation."""

import numpy as np
import pytest
from samples import random_table, survival_data

from cohort.tables import feature_columns
from runs.errors import InputError
from survival import cox
from survival.landmarks import Landmarks
from survival.link import LinkSettings, choose_link, fit_link, inner_folds, split_rows, stack_seeds


def rows_of(time, event):
    zeros = np.zeros(len(time), int)
    return Landmarks(np.arange(len(time)), zeros, zeros.astype(float), zeros, time, event)


def test_split_without_an_event_is_refused():
    rows = rows_of(np.arange(1.0, 5.0), np.array([True, True, False, False]))
    with pytest.raises(InputError, match="no event among the validation subjects"):
        split_rows(rows, np.array([[False, False, True, True]]), "efron")
    with pytest.raises(InputError, match="no event among the training subjects"):
        split_rows(rows, np.array([[True, True, False, False]]), "efron")


def test_link_learns_from_training_rows_alone(rng):
    inputs, time, event, _ = survival_data(rng)
    validation = np.zeros((2, len(time)), bool)
    validation[0, :20] = validation[1, 20:40] = True
    rows = rows_of(time, event)
    _, before = fit_link(inputs, split_rows(rows, validation, "efron"), 0.1)
    changed = inputs.copy()
    changed[:20] = rng.normal(size=(20, 3))
    loss, after = fit_link(changed, split_rows(rows, validation, "efron"), 0.1)
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1])
    assert np.isfinite(loss)


def test_inner_folds_hold_out_everyone_once_and_are_stratified(rng):
    event = np.arange(50) < 20
    folds = inner_folds(event, 5, rng)
    assert (folds.sum(axis=0) == 1).all()
    assert (folds[:, event].sum(axis=1) == 4).all()
    assert inner_folds(event, 7, rng).shape == (7, 50)


def test_all_seeds_in_one_loss_are_the_mean_of_their_losses_weighted_by_events(rng):
    _, time, event, stratum = survival_data(rng)
    zeros = np.zeros(len(time), int)
    rows = Landmarks(np.arange(len(time)), zeros, zeros.astype(float), stratum, time, event)
    validation = np.zeros((2, len(time)), bool)
    validation[0, :20] = validation[1, 20:40] = True
    splits = split_rows(rows, validation, "efron")
    log_hazard = rng.normal(size=(2, len(time)))
    places, sets = stack_seeds(rows, splits, "efron")
    losses = [
        cox.partial_likelihood_loss(of_seed[split.train], split.train_sets)
        for of_seed, split in zip(log_hazard, splits, strict=True)
    ]
    num_events = [len(split.train_sets.event) for split in splits]
    together = cox.partial_likelihood_loss(log_hazard.ravel()[places], sets)
    assert together == pytest.approx(np.average(losses, weights=num_events), abs=1e-12)


def test_the_link_with_the_lowest_validation_loss_is_chosen(rng):
    table = random_table(rng, num_subjects=60)
    event = table.drop_duplicates("subject")["event"].to_numpy(bool)
    validation = inner_folds(event, 2, rng)
    columns, components, penalties = feature_columns(table), (0, 2), (0.01, 0.3)

    def choose(columns, components, penalties):
        settings = LinkSettings(components=components, penalties=penalties, winsorise=10.0, ties="efron")
        return choose_link(table, validation, columns, grid=(0.5, 1.0), settings=settings)

    chosen = choose(columns, components, penalties)
    alone = [choose(columns, (number,), (penalty,)) for number in components for penalty in penalties]
    assert chosen.loss == min(link.loss for link in alone)
    assert chosen.coefficients.shape == (2, chosen.prepare.num_inputs)
    without = choose(["log_hazard"], (2,), (0.1,))
    assert len(without.prepare.components) == 0  # no feature of stage 1, no component
