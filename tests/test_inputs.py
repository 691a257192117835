"""What happens when the cache loses volumes while a run is on its way."""

import numpy as np
import pandas as pd
import pytest

from cohort.grid import Grid
from data import Cache, Cohort, load_volume
from runs.errors import InputError

GRID = Grid((4, 4, 4), np.eye(4))


@pytest.fixture
def inputs(tmp_path):
    entries = [tmp_path / f"{number}.npy" for number in range(6)]
    for entry in entries:
        np.save(entry, np.zeros((4, 4, 4), np.float16))
    scans = [f"S{number}_v1" for number in range(6)]
    parts = {name: pd.DataFrame({"scan": scans[i : i + 2]}) for i, name in ((4, "test"), (0, "train"), (2, "val"))}
    return Cohort(parts, Cache(entries, GRID, GRID, num_built=0), None)


def test_scans_that_are_lost_on_the_way_are_named(inputs, tmp_path):
    inputs.entries("test")[1].unlink()
    whole = inputs.entries("val")[0].read_bytes()
    inputs.entries("val")[0].write_bytes(whole[:-1])
    with (
        pytest.raises(OSError, match="the volumes of S2_v1, S5_v1 can't be read any more") as found,
        inputs.naming_lost(),
    ):
        load_volume(inputs.entries("val")[0])
    assert str(found.value).startswith(str(tmp_path)) and isinstance(found.value.__cause__, ValueError)


def test_an_error_that_has_nothing_to_do_with_them_stays(inputs):
    with pytest.raises(InputError, match="another"), inputs.naming_lost():
        raise InputError("another")
