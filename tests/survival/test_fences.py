"""Fences: by hand, robust to a quarter of strange cells, and of no effect on ordinary values."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from runs import files
from survival.fences import NOWHERE, Fences


def fences_of(*values, width=10.0):
    fences = Fences.fit(pd.DataFrame({"x": values}, dtype=float), width, among=["x"])
    return float(fences.low[0]), float(fences.high[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 2, 3, 4), (1 - 20, 3 + 20)),
        ((0, 1, np.nan, 2, 3, 4), (1 - 20, 3 + 20)),
        ((0, 1, 2, 3, 4e30), (1 - 20, 3 + 20)),
        ((0,) * 9 + (1,), (-10, 11)),  # rare: around both values
        ((0,) * 90 + (1,) * 9 + (-9999,), (-10, 11)),
        ((0,) * 7 + (2, 4), (0 - 35, 3.5 + 35)),  # from 0 to the upper quartile of 2 and 4
        ((5,) * 4, (-NOWHERE, NOWHERE)),
        ((np.nan, np.nan), (-NOWHERE, NOWHERE)),
    ],
)
def test_the_fences_of_a_column(values, expected):
    assert fences_of(*values) == pytest.approx(expected)


def test_the_width_is_in_distances_between_the_quartiles():
    assert fences_of(0, 1, 2, 3, 4, width=0.5) == (0, 4)
    assert fences_of(0, 100, 200, 300, 400, width=0.5) == (0, 400)  # whatever the unit


@pytest.mark.parametrize("strange", [-9999.0, 1e30])
def test_almost_a_quarter_of_strange_cells_is_moved_to_the_fence(rng, strange):
    values = rng.normal(size=1000)
    values[:240] = strange
    table = pd.DataFrame({"x": values})
    fences = Fences.fit(table, 10.0, among=["x"])
    assert np.abs(fences.clip(table)["x"]).max() < 40
    assert fences.are_beyond(table)["x"].tolist() == [True] * 240 + [False] * 760
    np.testing.assert_array_equal(fences.clip(table)["x"][240:], values[240:])


@pytest.mark.parametrize("draw", ["normal", "exponential", "logistic", "uniform"])
def test_ordinary_values_lie_within(rng, draw):
    table = pd.DataFrame({"x": getattr(rng, draw)(size=5000)})
    assert not Fences.fit(table, 10.0, among=["x"]).are_beyond(table).to_numpy().any()


def test_only_the_named_columns_have_fences_and_a_gap_stays_one():
    table = pd.DataFrame({"x": [0.0, 1, 2, np.nan, 1e9], "y": [0.0, 1, 2, 3, 1e9]})
    fences = Fences.fit(table, 1.0, among=["x"])
    clipped = fences.clip(table)
    pd.testing.assert_series_equal(clipped["y"], table["y"])
    assert np.isnan(clipped["x"][3]) and not fences.are_beyond(table)["x"][3]
    assert clipped["x"][4] < 1e9


def test_kept_as_json_and_restored():
    fences = Fences.fit(pd.DataFrame({"x": [0.0, 1, 2], "y": [np.nan] * 3}), 10.0, among=["x", "y"])
    restored = Fences.from_json(json.loads(json.dumps(dataclasses.asdict(fences), default=files._plain)))
    np.testing.assert_array_equal(restored.low, fences.low)
    np.testing.assert_array_equal(restored.high, fences.high)
