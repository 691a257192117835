"""A small cohort of volumes on disk, for the tests of training."""

import numpy as np
import pytest
from volumes import part_of


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    return {"train": part_of(folder, 20, rng)[1], "val": part_of(folder, 12, rng, "v")[1]}
