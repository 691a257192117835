"""The feature table of a part."""

import numpy as np
import pytest
from volumes import build, part_of

from cohort import tables
from runs.errors import InputError
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


@pytest.mark.parametrize(("spoilt", "named"), [("scan", "s001_0"), ("network", "s000_0, s000_1, s001_0")])
def test_outputs_that_are_not_finite_are_refused_by_scan(tmp_path, rng, spoilt, named):
    table, _ = part_of(tmp_path, 3, rng)
    model = build()
    if spoilt == "scan":
        volume = np.load(table["cache_entry"][2])
        volume[8, 8, 8] = np.inf
        np.save(table["cache_entry"][2], volume)
    else:
        (kernel,) = model.get_layer("log_hazard").get_weights()
        model.get_layer("log_hazard").set_weights([np.nan * kernel])
    with pytest.raises(InputError, match=f"numbers that are not finite for {named}"):
        feature_table(model, table.assign(nifti_path=""), batch_size=4)


@pytest.mark.parametrize("alike", ["scans", "network"])
def test_one_value_for_every_scan_is_told(tmp_path, rng, alike, caplog):
    table, _ = part_of(tmp_path, 3, rng)
    model = build()
    if alike == "scans":
        table["cache_entry"] = table["cache_entry"][0]
    else:
        (kernel,) = model.get_layer("log_hazard").get_weights()
        model.get_layer("log_hazard").set_weights([0 * kernel])
    feature_table(model, table.assign(nifti_path=""), batch_size=4)
    assert "stage 1 gives each of 6 scans the same log-hazard" in caplog.text
    caplog.clear()
    feature_table(model, table[:1].assign(nifti_path=""), batch_size=4)
    assert "the same log-hazard" not in caplog.text
