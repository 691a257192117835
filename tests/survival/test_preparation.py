"""From a table to inputs: causality, training subjects only, edge cases."""

import json

import numpy as np
import pytest
from samples import random_table, visits_table

from cohort.tables import feature_columns
from runs import files
from survival import preparation


def fitted(table, num_components=2):
    return preparation.Preparation.fit(table, feature_columns(table), num_components=num_components)


def test_values_are_carried_forward_then_the_training_median():
    table = visits_table()
    prepare = fitted(table)
    assert prepare.missing == ("a",)
    assert prepare.logged == ("lab",)
    state = prepare(table)[:, : prepare.num_state] / prepare.state.factor + prepare.state.centre
    carried = state[:, 0] / prepare.scale.factor[0] + prepare.scale.centre[0]
    np.testing.assert_allclose(carried, [1, 1, 3, 4, 5, 6])  # 4 is the median of 1, 3, 5, 6
    np.testing.assert_allclose(state[:, 2], [0, 1, 0, 1, 0, 0], atol=1e-12)  # missing at this visit
    np.testing.assert_allclose(state[:, 3], np.log1p([0, 0.5, 1.5, 0, 0, 1.0]), atol=1e-12)
    np.testing.assert_allclose(state[:, 4], np.log1p(table["visit_time"]), atol=1e-12)


def test_change_is_from_the_first_visit_in_units_of_its_spread():
    table = visits_table()
    prepare = fitted(table)
    change = prepare(table)[:, prepare.num_state :]
    np.testing.assert_array_equal(change[[0, 3, 4]], 0)
    raw = np.array([0.0, 0, 2, 0, 0, 1])
    np.testing.assert_allclose(change[:, 0], raw / np.sqrt((raw[[1, 2, 5]] ** 2).mean()), atol=1e-12)


def test_inputs_are_causal(rng):
    """What stands at a visit does not change with later visits."""
    table = random_table(rng)
    prepare = fitted(table)
    early = table[table["visit_time"] <= 1.0]
    np.testing.assert_array_equal(prepare(early.reset_index(drop=True)), prepare(table)[early.index])


def test_components_replace_the_image_features_and_log_hazard_stays(rng):
    table = random_table(rng)
    prepare = fitted(table, num_components=2)
    assert prepare.num_state == 2 + 2 + 2  # log_hazard and lab, components, times
    scores = prepare(table)[:, 2:4]
    covariance = scores.T @ scores / len(table)
    assert covariance[0, 0] == pytest.approx(1)
    assert 0 < covariance[1, 1] < 1  # a ridge shrinks the smaller component more
    assert covariance[0, 1] == pytest.approx(0, abs=1e-9)
    everything = fitted(table, num_components=99)
    assert len(everything.components) == 4
    assert fitted(table, num_components=0).num_state == 4


def test_components_equal_scikit_learn(rng):
    from sklearn.decomposition import PCA

    table = random_table(rng)
    features = table.filter(like="feature_").to_numpy()
    expected = PCA(2, whiten=True).fit_transform((features - features.mean(axis=0)) / features.std(axis=0))
    ours = fitted(table)(table)[:, 2:4]
    correlation = np.abs((ours * expected).mean(axis=0)) / (expected.std(axis=0) * ours.std(axis=0))
    np.testing.assert_allclose(correlation, 1, atol=1e-9)


def test_a_constant_column_of_training_becomes_zero(rng):
    table = random_table(rng).assign(flat=2.0)
    prepare = fitted(table)
    column = list(name for name in prepare.columns if not name.startswith("feature_")).index("flat")
    assert (prepare(table.assign(flat=7.0))[:, column] == 0).all()


def test_kept_as_json_and_restored(rng):
    table = random_table(rng)
    prepare = fitted(table)
    saved = json.loads(json.dumps(preparation.dataclasses.asdict(prepare), default=files._plain))
    np.testing.assert_array_equal(preparation.Preparation.from_json(saved)(table), prepare(table))
    with pytest.raises(ValueError, match="columns"):
        preparation.Preparation.from_json(saved | {"missing": ["lab"]})
    with pytest.raises(ValueError, match="finite"):
        preparation.Preparation.from_json(saved | {"median": [float("nan")] * len(saved["median"])})


@pytest.mark.parametrize("columns", [["lab"], ["log_hazard", "lab"], ["feature_0"], ["feature_0", "feature_1", "lab"]])
@pytest.mark.parametrize("num_components", [0, 2])
def test_any_columns_are_kept_as_json_and_restored(rng, columns, num_components):
    table = random_table(rng)
    prepare = preparation.Preparation.fit(table, columns, num_components=num_components)
    saved = json.loads(json.dumps(preparation.dataclasses.asdict(prepare), default=files._plain))
    restored = preparation.Preparation.from_json(saved)
    assert restored.components.shape == prepare.components.shape
    np.testing.assert_array_equal(restored(table), prepare(table))
