"""Where cells lie among voxels, by hand; a map of cells drawn out to voxels."""

import numpy as np
import pytest

from attribution.cells import cell_coordinates, upsample


@pytest.mark.parametrize(
    ("size", "stage", "first", "stride"),
    [
        (64, 1, 3, 4),  # the stem looks at 2i + 1 and the pool at 4i + 3
        (64, 2, 5, 8),  # the convolution looks at 8i + 7, the shortcut at 8i + 3
        (64, 3, 9, 16),  # 16i + 15 behind 8i + 7's mean of 5, and beside it: 5 + 8 / 2
        (17, 1, 0, 4),  # odd: as much padding in front as behind
    ],
)
def test_the_centres_of_cells_by_hand(size, stage, first, stride):
    coordinates = cell_coordinates(size, stage)
    assert coordinates.shape == (size,)
    assert coordinates[first] == 0 and coordinates[first + stride] == 1
    np.testing.assert_allclose(np.diff(coordinates), 1 / stride)


def test_a_linear_map_stays_linear_between_the_centres_and_constant_beyond():
    cells = np.arange(16.0)[:, None, None] + np.zeros((16, 4, 4))
    values = upsample(cells, (64, 16, 16), 1)
    assert values.shape == (64, 16, 16) and values.dtype == np.float32
    along = np.clip(cell_coordinates(64, 1), 0, 15)
    np.testing.assert_allclose(values, along[:, None, None] + np.zeros((64, 16, 16)), atol=1e-6)
