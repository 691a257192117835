"""The feature table of a part."""

import numpy as np
from volumes import build, part_of

from cohort import tables
from training.features import feature_table


def test_features_of_every_scan(tmp_path, rng):
    table, _ = part_of(tmp_path, 5, rng)
    model = build()
    found = feature_table(model, table.assign(nifti_path=""), batch_size=4)
    assert len(found) == 10 and list(found["scan"]) == list(table["scan"])
    names = [name for name in found if name.startswith("feature_")]
    assert names == [f"feature_{number}" for number in range(1, 33)]
    kernel = model.get_layer("log_hazard").get_weights()[0]
    np.testing.assert_allclose(found[names].to_numpy() @ kernel[:, 0], found["log_hazard"], atol=1e-5)
    tables.write_table(found, tmp_path / "train.parquet")
    again = tables.read_features(tmp_path / "train.parquet")
    assert tables.feature_columns(again) == ["log_hazard", *names]
