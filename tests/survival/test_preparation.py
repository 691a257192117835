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


@pytest.mark.parametrize("power", [-30, -11, -1, 4, 30])
@pytest.mark.parametrize("columns", [["lab"], ["log_hazard"], ["feature_0", "feature_2"], ["log_hazard", "lab"]])
def test_the_unit_of_a_column_changes_no_input(rng, power, columns):
    table = random_table(rng)
    expected, prepare = fitted(table)(table), fitted(table)
    scaled = table.assign(**{name: table[name] * 10.0**power for name in columns})
    assert fitted(scaled).logged == prepare.logged == ("lab",)
    np.testing.assert_allclose(fitted(scaled)(scaled), expected, rtol=1e-9, atol=1e-9)
    winsorised = preparation.Preparation.fit(scaled, prepare.columns, num_components=2, winsorise=10.0)
    np.testing.assert_allclose(winsorised(scaled), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [-3.0, 1e6, -1e9])
def test_a_shifted_column_changes_no_input(rng, shift):
    """But for a column whose logarithm is taken, which has a zero."""
    table = random_table(rng)
    shifted = table.assign(**{name: table[name] + shift for name in ("log_hazard", "feature_1")})
    np.testing.assert_allclose(fitted(shifted)(shifted), fitted(table)(table), atol=1e-6)


CONSTANT = {
    "large, with rounding": lambda rng, number: 1e9 + 1e-7 * rng.integers(-2, 3, number),
    "tiny, with rounding": lambda rng, number: 3e-20 * (1 + 2.2e-16 * rng.integers(0, 3, number)),
    "a tenth, summed": lambda rng, number: np.where(rng.random(number) < 0.5, 0.1 + 0.2, 0.3),
    "nothing": lambda rng, number: np.zeros(number),
}
VARYING = {
    "large": lambda rng, number: 1e12 + rng.choice([-1.0, 1.0], number),
    "tiny": lambda rng, number: 2e-11 * rng.normal(size=number),
    "tiny and far from 0": lambda rng, number: 1.0 + 1e-10 * rng.normal(size=number),
    "rare": lambda rng, number: (np.arange(number) == 5).astype(float),
}


@pytest.mark.parametrize("kind", [*CONSTANT, *VARYING])
def test_a_column_is_constant_if_it_varies_by_rounding_alone(rng, kind):
    table = random_table(rng)
    values = (CONSTANT | VARYING)[kind](rng, len(table))
    for name in ("own", "feature_9"):
        scale = fitted(table.assign(**{name: values})).scale
        assert (scale.factor[-1] > 0) == (kind in VARYING)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e15])
def test_rounding_is_no_change_since_the_first_visit(rng, unit):
    """The column is fixed, but its last digits vary, as after a conversion of units."""
    table = random_table(rng)
    fixed = rng.normal(size=20)[table["subject"].str[1:].astype(int)] + 50.0
    rounded = unit * fixed * (1 + 2.2e-16 * rng.integers(-2, 3, len(table)))
    prepare = fitted(table.assign(own=rounded, feature_9=rounded))
    place = [name for name in prepare.columns if not name.startswith("feature")].index("own")
    assert prepare.change.factor[place] == 0 and prepare.scale.factor[-2:].all()
    assert prepare.change.factor.astype(bool).sum() == len(prepare.change.factor) - 1


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_scans_that_are_alike_but_for_rounding_have_no_change(rng, offset):
    table = random_table(rng)
    subject = table["subject"].str[1:].astype(int)
    for number in range(4):
        values = rng.normal(size=20)[subject] + offset
        table[f"feature_{number}"] = values * (1 + 2.2e-16 * rng.integers(-2, 3, len(table)))
    prepare = fitted(table)
    own = len(prepare.change.factor) - len(prepare.components)
    assert len(prepare.components) == 2 and not prepare.change.factor[own:].any()
    assert (prepare(table)[:, prepare.num_state + own :] == 0).all()


# ---- Winsorising ---------------------------------------------------------------------------------
def winsorised(table, width=10.0):
    return preparation.Preparation.fit(table, feature_columns(table), num_components=2, winsorise=width)


@pytest.mark.parametrize("column", ["log_hazard", "lab"])
@pytest.mark.parametrize("cell", [1e30, -9999.0, -3e6])
def test_one_cell_decides_no_scale(rng, column, cell):
    table = random_table(rng, num_subjects=60)
    spoilt = table.copy()
    spoilt.loc[7, column] = cell
    place = ["log_hazard", "lab"].index(column)
    expected, with_fences, without = (
        prepare(table)[spoilt["subject"] != spoilt["subject"][7], place]
        for prepare in (winsorised(table), winsorised(spoilt), fitted(spoilt))
    )
    assert winsorised(spoilt).logged == ("lab",)
    assert 0.6 < with_fences.std() / expected.std() < 1.1
    assert np.corrcoef(with_fences, expected)[0, 1] > 1 - 1e-9
    assert without.std() / expected.std() < 0.5
    assert np.abs(winsorised(spoilt)(spoilt)).max() < 20


def test_ordinary_values_are_not_touched(rng):
    table = random_table(rng, num_subjects=200)
    np.testing.assert_array_equal(winsorised(table)(table), fitted(table)(table))
    assert not winsorised(table).are_clipped(table).to_numpy().any()


def test_the_fences_are_of_the_training_subjects_and_in_the_tables_unit(rng):
    table = random_table(rng, num_subjects=60)
    prepare = winsorised(table)
    low, high = prepare.fences_of("lab")
    logs = np.log(table["lab"]).quantile([0.25, 0.75])
    assert np.log(high) == pytest.approx(logs[0.75] + 10 * (logs[0.75] - logs[0.25]))
    new = table.assign(lab=np.where(table.index == 0, 2 * high, np.where(table.index == 1, high, table["lab"])))
    assert prepare.are_clipped(new)["lab"].tolist() == [True] + [False] * (len(table) - 1)
    np.testing.assert_allclose(prepare(new)[0], prepare(new.assign(lab=new["lab"].clip(low, high)))[0])
    far = table.assign(feature_0=1e9)
    assert not prepare.are_clipped(far).to_numpy().any()  # a feature of stage 1


@pytest.mark.parametrize("width", [0.0, 10.0])
def test_fences_are_kept_as_json_and_restored(rng, width):
    table = random_table(rng)
    prepare = winsorised(table, width)
    saved = json.loads(json.dumps(preparation.dataclasses.asdict(prepare), default=files._plain))
    new = table.assign(lab=1e300, log_hazard=-1e300)
    np.testing.assert_array_equal(preparation.Preparation.from_json(saved)(new), prepare(new))
    del saved["fences"]  # by a version without them
    np.testing.assert_array_equal(preparation.Preparation.from_json(saved)(table), prepare(table))
    for wrong in ({"low": [0.0], "high": [1.0]}, {"low": [0.0] * 6, "high": [float("nan")] * 6}):
        with pytest.raises(ValueError, match=r"fences: expected 6 columns|finite"):
            preparation.Preparation.from_json(saved | {"fences": wrong})


# ---- As JSON, and the columns ----------------------------------------------------------------------
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
