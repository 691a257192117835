"""What is known of a cache's volumes."""

import numpy as np
import pytest

from cohort.grid import Grid
from cohort.measured import MeasuredVolumes, brain_volumes, measure

GRID = Grid((6, 5, 4), np.diag([10.0, 10.0, 5.0, 1.0]))  # a voxel has 0.5 ml


@pytest.mark.parametrize("sizes", [(40, 12), (120, 1, 77)])
def test_brain_volumes_are_counted_voxels_and_unknown_where_a_file_changed(tmp_path, sizes):
    known, entries = MeasuredVolumes(tmp_path), []
    for row, size in enumerate(sizes):
        volume = (np.arange(120) < size).reshape(GRID.shape).astype(np.float16)
        entries.append(str(tmp_path / f"{row}.npy"))
        np.save(entries[-1], volume)
        known.add(tmp_path / f"{row}.npy", measure(volume, GRID))
    known.write()
    np.testing.assert_allclose(brain_volumes(tmp_path, entries), np.array(sizes) / 2)
    np.save(entries[0], np.zeros((2, 2, 2), np.float16))
    volumes = brain_volumes(tmp_path, [entries[1], entries[0], str(tmp_path / "none.npy")])
    np.testing.assert_allclose(volumes, [sizes[1] / 2, np.nan, np.nan])
