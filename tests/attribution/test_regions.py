"""Regions: parcels, atlases, sums and Shapley values, by hand, by all coalitions, and on planted importance."""

from itertools import combinations
from math import factorial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from attribution import regions
from runs.errors import InputError

AFFINE = np.array([[4.0, 0, 0, -38], [0, 4, 0, -30], [0, 0, 4, -22], [0, 0, 0, 1]])
SHAPE = (20, 16, 12)


@pytest.fixture
def brain():
    at = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))
    return ((at / [34, 28, 20]) ** 2).sum(axis=-1) < 1


@pytest.fixture
def quarters():
    """Four regions of a 4x4x2 volume, and a plane of none."""
    labels = np.zeros((4, 4, 3), np.int16)
    labels[:2, :2, :2], labels[:2, 2:, :2], labels[2:, :2, :2], labels[2:, 2:, :2] = 1, 2, 3, 4
    return regions.Regions(labels, {label: f"region {label}" for label in (1, 2, 3, 4)})


def means(volumes, areas):
    """(B, 5): the mean of each of label 0 ... 4."""
    return np.stack([volumes[:, areas.labels == label].mean(axis=(1, 2)) for label in range(5)], axis=1)


def interacting(areas):
    """A log-hazard with interactions of regions: no sum over regions equals it."""

    def predict(volumes):
        m = means(volumes, areas)
        return m[:, 1] * m[:, 2] + 2 * m[:, 3] - np.maximum(m[:, 4], m[:, 0]) + m[:, 1] * m[:, 3] * m[:, 4]

    return predict


# ---- Parcels and atlases ---------------------------------------------------------------------------------------


def test_parcels_cover_the_brain_and_mirror_each_other(brain):
    parcels = regions.make_parcels(brain, AFFINE, num_parcels=12)
    assert (parcels.labels > 0).sum() == brain.sum() and not parcels.labels[~brain].any()
    assert len(parcels.names) == 12 and len(set(parcels.names.values())) == 12
    sizes = np.bincount(parcels.labels[brain])[1:]
    assert sizes.min() > brain.sum() / 12 / 2
    mirrored = parcels.labels[::-1]  # x = 0 is the middle of this grid
    np.testing.assert_array_equal(mirrored[brain], np.where(parcels.labels % 2, 1, -1)[brain] + parcels.labels[brain])
    for label, name in parcels.names.items():
        x = nib.affines.apply_affine(AFFINE, np.argwhere(parcels.labels == label))[:, 0]
        assert name.startswith("left" if x.max() < 0 else "right") and x.max() * x.min() > 0


def test_parcels_are_the_same_for_the_same_seed(brain):
    first, second = (regions.make_parcels(brain, AFFINE, num_parcels=8) for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)
    with pytest.raises(ValueError, match="expected at least 8 voxels, received 3"):
        regions.make_parcels(np.arange(8).reshape(2, 2, 2) < 3, AFFINE, num_parcels=8)


@pytest.mark.parametrize(
    ("shift", "has_sides"), [(0, True), (15, True), (-15, True), (38, False), (-60, False), (500, False)]
)
def test_sides_are_named_only_where_the_origin_lies_amid_the_brain(brain, shift, has_sides):
    """Where x = 0 is a corner of the grid, every parcel would be called right, and mirrored onto nothing."""
    affine = AFFINE.copy()
    affine[0, 3] += shift
    assert regions.has_midline(brain, affine) == has_sides
    parcels = regions.make_parcels(brain, affine, num_parcels=12)
    sides = {name.split()[0] for name in parcels.names.values()} & {"left", "right"}
    assert sides == ({"left", "right"} if has_sides else set())
    assert len(set(parcels.names.values())) == 12 if shift == 0 or not has_sides else len(parcels.names) >= 8
    assert (parcels.labels > 0).sum() == brain.sum() and set(np.unique(parcels.labels[brain])) == set(parcels.names)
    if not has_sides:
        assert not any("lateral" in name or "medial" in name for name in parcels.names.values())


def test_a_region_cut_out_of_one_side_has_no_sides(brain):
    right = brain.copy()
    right[:10] = False
    assert not regions.has_midline(right, AFFINE) and not regions.has_midline(right[::-1], AFFINE)


def test_an_atlas_on_a_finer_grid_gives_the_nearest_label(tmp_path, brain):
    fine = np.zeros((40, 32, 24), np.int16)
    fine[:20], fine[20:] = 7, 9
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = AFFINE[:3, 3] - 1
    nib.save(nib.Nifti1Image(fine, affine), tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.csv").write_text("label,region\n7,left half\n")
    atlas = regions.read_atlas(tmp_path / "atlas.nii.gz", brain, AFFINE)
    assert atlas.names == {7: "left half", 9: "9"}
    np.testing.assert_array_equal(atlas.labels, np.where(np.arange(20) < 10, 7, 9)[:, None, None] + np.zeros(SHAPE))


def test_an_atlas_that_cannot_be_used_is_refused(tmp_path, brain):
    path = tmp_path / "atlas.nii.gz"
    elsewhere = AFFINE.copy()
    elsewhere[0, 3] += 300
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), elsewhere), path)
    with pytest.raises(InputError, match=r"atlas\.nii\.gz: expected labels in the scans' space.*covers 0%"):
        regions.read_atlas(path, brain, AFFINE)
    nib.save(nib.Nifti1Image(np.full(SHAPE, 0.5, np.float32), AFFINE), path)
    with pytest.raises(InputError, match="expected a 3-D image of whole numbers"):
        regions.read_atlas(path, brain, AFFINE)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), AFFINE), path)
    (tmp_path / "atlas.csv").write_text("number,name\n1,all\n")
    with pytest.raises(InputError, match=r"atlas\.csv: expected columns label .*Received: number, name"):
        regions.read_atlas(path, brain, AFFINE)
    (tmp_path / "atlas.csv").write_text("label,region\n1,left\n1,right\n")
    with pytest.raises(InputError, match=r"atlas\.csv: row 3: label 1 stands twice"):
        regions.read_atlas(path, brain, AFFINE)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="can't read it"):
        regions.read_atlas(path, brain, AFFINE)


# ---- Sums ----------------------------------------------------------------------------------------------------------


def test_sums_are_complete_and_in_order(rng, quarters):
    values = rng.normal(size=(4, 4, 3)).astype(np.float32)
    table = regions.sum_by_region(values, quarters).set_index("label")
    assert table["attribution"].sum() == pytest.approx(values.sum(), abs=1e-5)
    assert table["absolute"].sum() == pytest.approx(np.abs(values).sum(), rel=1e-6)
    assert table["share"].sum() == pytest.approx(1)
    assert table.loc[0, "region"] == "elsewhere" and table.loc[0, "num_voxels"] == 16
    assert table.loc[3, "attribution"] == pytest.approx(values[2:, :2, :2].sum(), abs=1e-6)
    assert table["attribution"].abs().is_monotonic_decreasing
    assert regions.sum_by_region(np.zeros_like(values), quarters)["share"].sum() == 0


# ---- Shapley values --------------------------------------------------------------------------------------------------


def exact_shapley(predict, volume, other, areas):
    """Over all 2^5 coalitions."""
    players = range(5)

    def value(coalition):
        return predict(np.where(np.isin(areas.labels, list(coalition))[..., None], volume, other)[None])[0]

    values = np.zeros(5)
    for player in players:
        rest = [p for p in players if p != player]
        for size in range(5):
            weight = factorial(size) * factorial(4 - size) / factorial(5)
            for coalition in combinations(rest, size):
                values[player] += weight * (value((*coalition, player)) - value(coalition))
    return values


def test_shapley_values_are_complete_whatever_is_drawn(rng, quarters):
    predict = interacting(quarters)
    volume, background = rng.normal(size=(4, 4, 3, 1)), rng.normal(size=(3, 4, 4, 3, 1))
    values = regions.region_shapley(predict, volume, background, quarters, rounds=1, seed=0)
    assert values.sum() == pytest.approx(predict(volume[None])[0] - predict(background).mean(), abs=1e-10)


def test_shapley_values_tend_to_those_of_all_coalitions(rng, quarters):
    predict = interacting(quarters)
    volume, background = rng.normal(size=(4, 4, 3, 1)), rng.normal(size=(2, 4, 4, 3, 1))
    expected = np.mean([exact_shapley(predict, volume, other, quarters) for other in background], axis=0)
    values = regions.region_shapley(predict, volume, background, quarters, rounds=400, seed=0)
    np.testing.assert_allclose(values.loc[[0, 1, 2, 3, 4]], expected, atol=0.02)


def test_an_additive_hazard_needs_one_order(rng, quarters):
    weights = np.array([0.5, 1.0, -2.0, 3.0, 0.0])
    volume, background = rng.normal(size=(4, 4, 3, 1)), rng.normal(size=(3, 4, 4, 3, 1))
    values = regions.region_shapley(lambda v: means(v, quarters) @ weights, volume, background, quarters, seed=0)
    expected = weights * (means(volume[None], quarters)[0] - means(background, quarters).mean(axis=0))
    np.testing.assert_allclose(values.loc[list(range(5))], expected, atol=1e-10)


def test_regions_turn_one_by_one_in_order(quarters):
    after, before = np.ones((4, 4, 3, 1)), np.zeros((4, 4, 3, 1))
    curve = regions.replace_regions(
        lambda v: v.sum(axis=(1, 2, 3, 4)), before, after, quarters, np.array([0, 2, 1, 4, 3])
    )
    np.testing.assert_allclose(curve, [0, 16, 24, 32, 40, 48])


# ---- Deletion and insertion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_the_true_order_beats_chance_and_the_reverse_loses(quarters, sign):
    weights = sign * np.array([0.0, 8.0, 4.0, 2.0, 1.0])
    volume, absent = np.ones((4, 4, 3, 1)), np.zeros((4, 4, 3, 1))
    scores = pd.Series(weights, index=range(5))

    def measured(attribution):
        return regions.deletion_insertion(
            lambda v: means(v, quarters) @ weights, volume, absent, quarters, attribution, seed=0
        )

    right, wrong = measured(scores), measured(-scores)
    # left of 15 once 0 ... 5 regions are out: 15, 7, 3, 1, 0, 0
    assert right["deletion"] == pytest.approx((15 + 7 + 3 + 1) / 15 / 6)
    assert right["insertion"] == pytest.approx(1 - right["deletion"])
    assert right["deletion"] < right["deletion_random"] < wrong["deletion"]
    assert right["insertion"] > right["insertion_random"] > wrong["insertion"]


def test_without_a_gap_there_is_nothing_to_delete(quarters):
    volume, scores = np.ones((4, 4, 3, 1)), pd.Series(np.zeros(5), index=range(5))
    measures = regions.deletion_insertion(lambda v: v.sum(axis=(1, 2, 3, 4)), volume, volume, quarters, scores, seed=0)
    assert set(measures.values()) == {None}


# ---- The cohort ----------------------------------------------------------------------------------------


def test_cohort_table_by_hand():
    values = {"a": (1.0, 4.0), "b": (3.0, -2.0), "c": (5.0, 1.0)}
    tables = {
        subject: pd.DataFrame({"region": ["x", "y"], "attribution": pair, "absolute": np.abs(pair)})
        for subject, pair in values.items()
    }
    tables["b"] = tables["b"].iloc[::-1]  # each subject's own order
    rows = (
        regions.cohort_table(tables, {"a": True, "b": True, "c": False}, seed=0)
        .set_index(["region", "group"])
        .T.to_dict()
    )
    assert rows["x", "all"]["attribution"] == 3 and rows["y", "all"]["attribution"] == 1
    assert rows["y", "converted"]["attribution"] == 1 and rows["y", "converted"]["absolute"] == 3
    assert rows["y", "stable"]["num_subjects"] == 1 and np.isnan(rows["y", "stable"]["absolute_low"])
    pair, everyone = rows["x", "converted"], rows["x", "all"]
    assert (pair["attribution_low"], pair["attribution_high"]) == (1, 3)
    assert 1 <= everyone["attribution_low"] < 3 < everyone["attribution_high"] <= 5
