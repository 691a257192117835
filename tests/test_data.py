import gzip
import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import data
from cohort import entries, simulate
from cohort.courses import History
from cohort.entries import DAMAGED
from cohort.extent import measure_extent
from cohort.grid import Grid
from cohort.measured import name_identical
from cohort.scans import open_scan
from cohort.teachers import COLUMNS
from cohort.volume import preprocess, read_image
from config import Config, read_config
from runs.errors import InputError
from runs.files import read_json

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (16, 18, 20)


def save(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def brain(rng):
    """A volume with a background of 0."""
    values = rng.uniform(50, 200, (20, 24, 22)).astype(np.float32)
    values[:4] = values[:, :3] = values[..., -5:] = 0
    return values


@pytest.fixture
def table(tmp_path, brain, rng):
    paths = [save(tmp_path / f"s{i}.nii.gz", brain * (1 + i)) for i in range(3)]
    return pd.DataFrame({"scan": ["s0", "s1", "s2"], "nifti_path": list(map(str, paths))})


def build(table, tmp_path, *, folder="cache", jobs=1, **how):
    """The cache of a table, with the paths of its entries."""
    preprocessing = data.Preprocessing(**{"shape": SHAPE} | how)
    table, cache = data.build_cache(table, preprocessing, folder=tmp_path / folder, jobs=jobs)
    return SimpleNamespace(entries=list(map(Path, table["cache_entry"])), **vars(cache))


def test_a_volume_is_z_scored_in_the_brain_and_0_outside(table, tmp_path):
    cache = build(table, tmp_path)
    volume = data.load_volume(cache.entries[1])
    assert volume.shape == (*SHAPE, 1) and volume.dtype == np.float32
    inside = volume[volume != 0]
    assert abs(inside.mean()) < 1e-3 and abs(inside.std() - 1) < 1e-3
    assert (volume[0] == 0).all() and inside.size > 0.3 * volume.size
    np.testing.assert_allclose(volume, data.load_volume(cache.entries[0]), atol=2e-3)  # a gain changes nothing


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, 0), (0.25, -3)])
def test_what_a_file_stores_is_read_as_its_greys(tmp_path, brain, dtype, suffix, scaling):
    """Whole numbers are resampled as they are stored; slope and intercept count."""
    stored = np.where(brain == 0, -scaling[1] / scaling[0], brain).astype(dtype)  # so that the background is 0
    image = nib.Nifti1Image(stored, AFFINE, dtype=np.dtype(dtype))
    image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / f"scan{suffix}")
    greys = np.asarray(nib.load(tmp_path / f"scan{suffix}").dataobj, np.float32)
    expected = preprocess(nib.Nifti1Image(greys, AFFINE), SHAPE)
    found = preprocess(read_image(tmp_path / f"scan{suffix}"), SHAPE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("codes", ["LPS", "SRA", "AIL"])
def test_any_orientation_gives_the_same_volume(tmp_path, brain, codes):
    image = nib.Nifti1Image(brain, AFFINE)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes)))
    )
    nib.save(turned, tmp_path / "turned.nii.gz")
    again = nib.load(tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(preprocess(again, SHAPE), preprocess(image, SHAPE))


def test_what_is_cached_is_not_done_again_and_a_changed_file_is(table, tmp_path, brain):
    assert build(table, tmp_path).num_built == 3
    assert build(table, tmp_path).num_built == 0
    save(table["nifti_path"][1], brain[::-1].copy())
    assert build(table, tmp_path).num_built == 1
    assert build(table, tmp_path, shape=(16, 16, 16)).num_built == 3


def test_several_processes_build_the_same(table, tmp_path):
    one, two = build(table, tmp_path), build(table, tmp_path, folder="other", jobs=2)
    assert [entry.name for entry in one.entries] == [entry.name for entry in two.entries]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one.entries, two.entries, strict=True))


def truncated(path, brain):
    content = gzip.compress(nib.Nifti1Image(brain, AFFINE).to_bytes())
    path.write_bytes(content[: len(content) // 2])


def corrupt(path, brain):
    content = bytearray(gzip.compress(nib.Nifti1Image(brain, AFFINE).to_bytes()))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def singular(path, brain):
    image = nib.Nifti1Image(brain, AFFINE)
    image.set_sform(np.diag([2.0, 0, 2, 1]), code=1)
    nib.save(image, path)


def with_nan(path, brain):
    brain = brain.copy()
    brain[10, 10, 10] = np.nan
    save(path, brain)


BAD = {
    "text": (lambda path, brain: path.write_text("no volume"), "can't read it"),
    "empty file": (lambda path, brain: path.write_bytes(b""), "can't read it"),
    "truncated": (truncated, "can't read it"),
    "corrupt": (corrupt, "can't read it"),
    "4-D": (lambda path, brain: save(path, np.stack([brain] * 2, -1)), r"expected a 3-D volume, received shape"),
    "2-D": (lambda path, brain: save(path, brain[0]), r"expected a 3-D volume, received shape"),
    "all 0": (lambda path, brain: save(path, brain * 0), "nothing but 0"),
    "constant": (lambda path, brain: save(path, brain * 0 + 7), "only 7"),
    "one grey": (lambda path, brain: save(path, (brain > 0).astype(np.float32)), "only 1"),
    "nan": (with_nan, "expected finite values, received 1 that"),
    "singular": (singular, "an affine that can be inverted"),
    "another grid": (
        lambda path, brain: save(path, brain, AFFINE + np.diag([0, 0, 0.1, 0])),
        "the grid of the other scans",
    ),
    "another shape": (lambda path, brain: save(path, brain[1:]), "the grid of the other scans, 20 x 24 x 22 voxels"),
    "beyond float32": (lambda path, brain: save(path, brain.astype(np.float64) * 1e37), "finite values, received"),
    "nearly constant": (lambda path, brain: save(path, brain.astype(np.float64) + 1e9), "greys that float32 can tell"),
    "of another kind": (lambda path, brain: save(path, np.ones((20, 24, 22), np.complex64)), "a grey value per voxel"),
    "too large": (lambda path, brain: save(path, np.zeros((513, 513, 513), np.uint8)), "at most MAX_VOXELS"),
    "a background": (
        lambda path, brain: save(path, brain - 1024),
        "expected 0 outside the brain, received greys close to",
    ),
    "tiny outside": (lambda path, brain: save(path, np.where(brain == 0, 1e-5, brain)), "0 outside the brain"),
    "a folder": (lambda path, brain: (path.unlink(), path.mkdir()), "can't read it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_volume_that_is_no_brain_is_refused_by_name(table, tmp_path, brain, kind):
    spoil, message = BAD[kind]
    spoil(Path(table["nifti_path"][1]), brain)
    with pytest.raises(InputError, match=message) as error:
        build(table, tmp_path)
    assert f"s1: {table['nifti_path'][1]}" in str(error.value) and "s0" not in str(error.value)


def test_huge_greys_are_as_good_as_small_ones(table, tmp_path, brain):
    """float64 and whole numbers of 64 bits that float32 reaches, and tiny ones."""
    save(table["nifti_path"][0], brain.astype(np.float64) * 1e35)
    image = nib.Nifti1Image(brain.astype(np.int64) * 2**50, AFFINE, dtype=np.int64)
    nib.save(image, table["nifti_path"][1])
    save(table["nifti_path"][2], brain.astype(np.float64) * 1e-35)
    huge, whole, tiny = (data.load_volume(entry) for entry in build(table, tmp_path).entries)
    expected = preprocess(nib.Nifti1Image(brain, AFFINE), SHAPE)[..., None]
    np.testing.assert_allclose(huge, expected, atol=4e-3)
    np.testing.assert_allclose(tiny, expected, atol=4e-3)
    np.testing.assert_allclose(whole, expected, atol=2e-2)  # the fractions of the greys are lost


def test_an_entry_that_is_not_whole_is_made_anew(table, tmp_path):
    cache = build(table, tmp_path)
    contents = [entry.read_bytes() for entry in cache.entries]
    cache.entries[0].write_bytes(contents[0][:-1])
    cache.entries[1].write_bytes(b"")
    np.save(cache.entries[2], np.zeros((4, 4, 4), np.float16))
    assert build(table, tmp_path).num_built == 3
    assert [entry.read_bytes() for entry in cache.entries] == contents


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_an_entry_that_is_not_finite_is_made_anew_and_told(table, tmp_path, number):
    cache = build(table, tmp_path)
    before, spoilt = cache.entries[2].read_bytes(), np.load(cache.entries[2])
    spoilt[8, 8, 8] = number
    np.save(cache.entries[2], spoilt)
    again = build(table, tmp_path)
    assert again.num_built == 1 and cache.entries[2].read_bytes() == before
    assert [line for line in again.warnings if "not finite" in line] == [f"s2: {table['nifti_path'][2]}: {DAMAGED}"]
    assert build(table, tmp_path).warnings == cache.warnings


# ---- What is known of the volumes --------------------------------------------------------------------
def test_a_second_start_reads_no_volume_and_each_header_once(table, tmp_path, monkeypatch):
    first = build(table, tmp_path)
    opened = []
    monkeypatch.setattr(entries, "open_scan", lambda path, most: opened.append(path) or open_scan(path, most))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("a volume was read"))
    again = build(table, tmp_path, jobs=-1)
    assert again.num_built == 0 and opened == table["nifti_path"].to_list()
    assert again.entries == first.entries and again.warnings == first.warnings


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 1, "volumes": {"a": {"size": 1}}}'])
def test_a_damaged_table_of_what_is_known_is_made_anew(table, tmp_path, caplog, text):
    build(table, tmp_path)
    path = tmp_path / "cache" / "measured.json"
    before = path.read_text()
    path.write_text(text)
    assert build(table, tmp_path).num_built == 0 and path.read_text() == before
    assert "measured.json is damaged, and made anew" in caplog.text


def test_a_table_of_another_version_is_made_anew(table, tmp_path):
    build(table, tmp_path)
    path = tmp_path / "cache" / "measured.json"
    before = path.read_text()
    path.write_text(before.replace('"version": 1', '"version": 0'))
    assert build(table, tmp_path).num_built == 0 and path.read_text() == before


def test_two_runs_that_share_a_cache_share_what_is_known(table, tmp_path):
    build(table[:2], tmp_path)
    build(table[2:], tmp_path)
    known = read_json(tmp_path / "cache" / "measured.json")["volumes"]
    entries = build(table, tmp_path).entries
    assert sorted(known) == sorted(entry.name for entry in entries)
    entries[0].unlink()
    build(table[1:].assign(nifti_path=table["nifti_path"][0]), tmp_path, shape=(16, 16, 16))
    known = read_json(tmp_path / "cache" / "measured.json")["volumes"]
    assert entries[0].name not in known and len(known) == 3


def test_what_is_known_is_the_same_at_every_start(tmp_path, rng):
    rows = []
    for number in range(5):
        values = np.zeros((20, 24, 22), np.float32)
        values[3:15, 4:20, 4 : 16 + number % 2] = rng.uniform(50, 200, (12, 16, 12 + number % 2))
        rows.append((f"s{number}", str(save(tmp_path / f"s{number}.nii", values))))
    table = pd.DataFrame(rows, columns=["scan", "nifti_path"])
    first, again = build(table, tmp_path), build(table, tmp_path)
    (tmp_path / "cache" / "measured.json").unlink()
    assert first.usual == again.usual == build(table, tmp_path).usual is not None
    assert first.num_different == again.num_different == 5


@pytest.mark.parametrize("gain", [1, 2])
def test_scans_that_hold_the_same_volume_are_named(tmp_path, brain, rng, gain):
    """Copies, and copies in another scale: their z-scores are the same."""
    rows = [(f"c{number}", str(save(tmp_path / f"c{number}.nii", brain * gain**number))) for number in range(4)]
    other = save(tmp_path / "other.nii", np.where(brain > 0, rng.uniform(50, 200, brain.shape), 0))
    table = pd.DataFrame([*rows, ("other", str(other))], columns=["scan", "nifti_path"])
    cache = build(table, tmp_path)
    (line,) = cache.warnings
    assert line.startswith("4 scans hold the same volume: c0: ") and "; …. Look" in line and "c3" not in line
    assert cache.num_different == 2
    assert build(table[3:], tmp_path).warnings == ()


def test_many_groups_of_the_same_volume_are_counted():
    names = [f"s{number}" for number in range(14)]
    lines = name_identical(names, [str(number // 2) for number in range(14)])
    assert len(lines) == 6 and lines[0].startswith("2 scans hold the same volume: s0; s1. ")
    assert lines[-1] == "so do 2 more groups of scans"


@pytest.mark.parametrize("parts", [1, 3])
def test_a_cohort_of_one_volume_is_refused_before_training(tmp_path, brain, parts):
    image = save(tmp_path / "a.nii.gz", brain)
    rows = "".join(f"s{i},a{i},0,{2 + i % 5},{i % 2},{image}\n" for i in range(12))
    head = "subjectid,imageid,visit_time,time,convert_status,nifti_path\n"
    (tmp_path / "c.csv").write_text(head + rows)
    arguments = [f"--COHORT_CSV={tmp_path / 'c.csv'}"]
    if parts == 3:
        lines = rows.splitlines(keepends=True)
        for name, of_part in (("train", lines[:6]), ("val", lines[6:9]), ("test", lines[9:])):
            (tmp_path / f"{name}.csv").write_text(head + "".join(of_part))
        arguments = [f"--{name.upper()}_CSV={tmp_path / f'{name}.csv'}" for name in ("train", "val", "test")]
    config = read_config([*arguments, f"--OUTPUT_DIR={tmp_path / 'o'}", "--TARGET_SHAPE=16,16,16", "--NUM_WORKERS=1"])
    with pytest.raises(InputError, match="All 12 scans hold the same volume, so the network would give them one value"):
        data.preprocess_parts(config, *data.read_parts(config))


def test_what_preprocessing_warns_of_is_said_of_the_scan(table, tmp_path, monkeypatch):
    def warn(*arguments):
        warnings.warn("greys are odd", RuntimeWarning, stacklevel=2)
        warnings.warn("use another name", DeprecationWarning, stacklevel=2)
        return preprocess(*arguments)

    monkeypatch.setattr(entries, "preprocess", warn)
    path = table["nifti_path"][1]
    assert build(table[1:2], tmp_path).warnings == (f"s1: {path}: RuntimeWarning: greys are odd",)


def test_a_grey_that_resizing_loses_is_told():
    """The one voxel that differs lies between the neighbours of every new voxel."""
    greys = np.full((60, 60, 60), 5, np.float32)
    greys[3, 3, 3] = 6
    with pytest.raises(InputError, match="expected greys that differ at 16 x 16 x 16 voxels too"):
        preprocess(nib.Nifti1Image(greys, AFFINE), (16, 16, 16))


def test_every_bad_volume_is_named_at_once(table, tmp_path):
    for row in (0, 2):
        with open(table["nifti_path"][row], "w") as file:
            file.write("no volume")
    with pytest.raises(InputError) as error:
        build(table, tmp_path)
    assert "s0: " in str(error.value) and "s2: " in str(error.value) and "(2):" in str(error.value)


def test_another_grid_is_resampled_when_asked(table, tmp_path, brain):
    shifted = AFFINE.copy()
    shifted[0, 3] = 4.0  # two voxels to the right
    moved = np.roll(brain, -2, axis=0)
    moved[-2:] = 0
    save(table["nifti_path"][1], moved, shifted)
    cache = build(table, tmp_path, resample=True)
    first, second = (data.load_volume(entry)[..., 0] for entry in cache.entries[:2])
    assert np.corrcoef(first[2:-2].ravel(), second[2:-2].ravel())[0, 1] > 0.99
    assert cache.grid.shape == SHAPE


def moved(path, brain, mm):
    """A scan whose header places the brain elsewhere along y."""
    affine = AFFINE.copy()
    affine[1, 3] = mm
    return save(path, brain, affine)


@pytest.fixture
def two_grids(tmp_path, brain):
    """Five scans: two of them, the first in the table, lie two voxels off."""
    paths = [moved(tmp_path / f"t{i}.nii.gz", brain, 4.0 if i < 2 else 0.0) for i in range(5)]
    return pd.DataFrame({"scan": [f"t{i}" for i in range(5)], "nifti_path": list(map(str, paths))})


def test_the_target_grid_is_the_commonest_whatever_the_order(two_grids, tmp_path):
    one = build(two_grids, tmp_path, resample=True)
    other = build(two_grids[::-1], tmp_path, resample=True)
    assert one.source.matches(other.source) and one.source.affine[1, 3] == 0
    assert sorted(one.entries) == sorted(other.entries) and other.num_built == 0
    assert one.num_resampled == 2
    assert "20 x 24 x 22 voxels of 2 x 2 x 2 mm from (0.00, 0.00, 0.00), which 3 of 5 scans have" in one.notes[0]
    assert one.notes[1] == "2 of 5 scans were resampled to it from another grid, such as t0, t1"


def test_of_two_grids_as_common_the_first_ids_is_the_target(two_grids, tmp_path):
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        assert build(two_grids.iloc[order], tmp_path, resample=True).source.affine[1, 3] == 4


def test_without_resampling_the_scans_of_the_rarer_grid_are_refused(two_grids, tmp_path):
    with pytest.raises(InputError, match=r"expected the grid of the other scans, 20 x .* from \(0\.00, 0\.00") as error:
        build(two_grids, tmp_path)
    assert "(2):" in str(error.value) and "t0: " in str(error.value) and "t2: " not in str(error.value)


def test_a_stated_reference_is_the_target_and_named(two_grids, tmp_path):
    reference = Grid((20, 24, 22), np.array([[2.0, 0, 0, 0], [0, 2, 0, 4], [0, 0, 2, 0], [0, 0, 0, 1]]))
    stated = {"reference": reference, "reference_name": "REFERENCE"}
    cache = build(two_grids, tmp_path, resample=True, **stated)
    assert cache.source is reference and cache.num_resampled == 3 and "the grid of REFERENCE" in cache.notes[0]
    with pytest.raises(InputError, match="expected the grid of REFERENCE, 20 x 24 x 22") as error:
        build(two_grids, tmp_path, **stated)
    assert "(3):" in str(error.value) and "t4: " in str(error.value) and "t0: " not in str(error.value)


def test_the_setting_reference_is_read_or_refused_by_name(two_grids, tmp_path):
    assert data.read_reference(read_config([])) is None
    grid = data.read_reference(read_config([f"--REFERENCE={two_grids['nifti_path'][0]}"]))
    assert grid.shape == (20, 24, 22) and grid.affine[1, 3] == 4
    (tmp_path / "mni.mgz").write_bytes(b"")
    with pytest.raises(InputError, match=r"REFERENCE: .*mni.nii.gz: .*no such file \(mni.mgz lies there: convert it"):
        data.read_reference(read_config([f"--REFERENCE={tmp_path / 'mni.nii.gz'}"]))


@pytest.mark.parametrize(("mm", "told"), [(60, "received 100% of it outside"), (20, "received .*% of it outside")])
def test_a_brain_outside_the_reference_is_refused(table, tmp_path, brain, mm, told):
    moved(table["nifti_path"][1], brain, mm)
    with pytest.raises(InputError, match=f"s1: .* expected the brain within the reference grid, {told}"):
        build(table, tmp_path, resample=True)


@pytest.mark.parametrize("resample", [False, True])
def test_a_brain_at_another_place_than_the_others_is_refused(tmp_path, rng, resample):
    """It lies within the reference, so only the other scans tell."""
    table = []
    for number in range(5):
        values = np.zeros((40, 40, 40), np.float32)
        begin = 22 if number == 3 else 6
        values[begin : begin + 12, 8:20, 8:20] = rng.uniform(50, 200, (12, 12, 12))
        table.append((f"s{number}", str(save(tmp_path / f"s{number}.nii", values))))
    table = pd.DataFrame(table, columns=["scan", "nifti_path"])
    with pytest.raises(
        InputError, match=r"s3: .*: expected a brain where .*centre lies 3. mm from the usual one"
    ) as error:
        build(table, tmp_path, resample=resample)
    assert "(1):" in str(error.value)
    Path(table["nifti_path"][1]).write_bytes(b"no volume")
    with pytest.raises(InputError, match=r"used \(2\):\n  s1: .*can't read it.*\n  s3: .*centre lies"):
        build(table.iloc[[0, 1, 2, 3, 4]], tmp_path, resample=resample)
    assert build(table.drop([1, 3]), tmp_path, resample=resample).num_resampled == 0


def test_a_few_new_scans_are_compared_with_the_usual_brain_of_a_run(table, tmp_path):
    """Three scans alone say nothing of what is usual; a run's record does."""
    cache = build(table, tmp_path)
    assert cache.usual is None
    own = measure_extent(np.load(cache.entries[0]), cache.grid)
    assert build(table, tmp_path, usual=own).usual == own
    x, y, z = own.centre
    with pytest.raises(InputError, match=r"used \(3\):(\n  s.: .*centre lies 15 mm from the usual one.*){3}"):
        build(table, tmp_path, usual=replace(own, centre=(x, y + 15, z)))
    larger = replace(own, volume=own.volume * 1.5)
    assert sum("0.67 times the usual size" in line for line in build(table, tmp_path, usual=larger).warnings) == 3


def test_what_a_header_leaves_open_is_noted_once_for_all(tmp_path, brain):
    table = []
    for number in range(6):
        image = nib.Nifti1Image(brain, AFFINE)
        image.set_sform(AFFINE, code=4)
        image.set_qform(AFFINE + np.outer([7, 0, 0, 0], [0, 0, 0, 1]), code=1)
        nib.save(image, tmp_path / f"q{number}.nii")
        table.append((f"q{number}", str(tmp_path / f"q{number}.nii")))
    table = pd.DataFrame(table, columns=["scan", "nifti_path"])
    for _ in ("built", "in the cache"):
        note, same = build(table, tmp_path).warnings
        assert same.startswith("6 scans hold the same volume: q0: ")
        assert note.startswith("6 scans: sform and qform differ") and note.count(".nii") == 3


def test_an_entry_with_a_background_that_an_earlier_version_stored_is_refused(table, tmp_path, brain):
    cache = build(table, tmp_path)
    volume = np.load(cache.entries[1])
    np.save(cache.entries[1], np.where(volume == 0, np.float16(-1.5), volume))
    assert build(table, tmp_path).num_built == 1  # the scan itself is sound
    save(table["nifti_path"][1], brain - 1024)
    with pytest.raises(InputError, match="close to -1024"):
        build(table, tmp_path)


def test_many_scans_of_one_fault_are_one_line(table, tmp_path, brain):
    rows = [(f"b{number}", str(save(tmp_path / f"b{number}.nii", brain - 5000))) for number in range(7)]
    table = pd.concat([table, pd.DataFrame(rows, columns=["scan", "nifti_path"])])
    with pytest.raises(InputError, match=r"used \(7\):\n  7 scans: expected 0 outside") as error:
        build(table, tmp_path)
    assert str(error.value).count(".nii") == 3 and "b0: " in str(error.value)


def test_batches_are_the_rows_asked_for(table, tmp_path):
    cache = build(table, tmp_path)
    batches = [np.array([2, 0]), np.array([1]), np.array([0, 1, 2])]
    found = list(data.make_dataset(cache.entries, SHAPE, batches))
    assert [len(batch) for batch in found] == [2, 1, 3]
    for batch, rows in zip(found, batches, strict=True):
        np.testing.assert_array_equal(batch.numpy(), data.load_volumes([cache.entries[row] for row in rows]))


def test_a_full_disk_is_no_bad_scan(table, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        build(table, tmp_path)
    assert [name for name in os.listdir(tmp_path / "cache") if name.endswith(".npy")] == []


@pytest.fixture
def cohort_on_disk(tmp_path):
    """Six scans, two of each part, whose volumes are in the cache."""
    table = pd.DataFrame({"scan": [f"S{number}_v1" for number in range(6)]})
    table["cache_entry"] = [str(tmp_path / f"{number}.npy") for number in range(6)]
    for entry in table["cache_entry"]:
        np.save(entry, np.zeros((4, 4, 4), np.float16))
    parts = {name: table[i : i + 2] for i, name in ((4, "test"), (0, "train"), (2, "val"))}
    grid = Grid((4, 4, 4), np.eye(4))
    return data.Cohort(parts, data.Cache(grid, grid, num_built=0), None)


def test_volumes_that_are_lost_on_the_way_are_named(cohort_on_disk, tmp_path):
    (tmp_path / "5.npy").unlink()
    (tmp_path / "2.npy").write_bytes((tmp_path / "2.npy").read_bytes()[:-1])
    with (
        pytest.raises(OSError, match="the volumes of S2_v1, S5_v1 can't be used any more") as error,
        cohort_on_disk.naming_lost_volumes(),
    ):
        data.load_volume(tmp_path / "2.npy")
    assert str(error.value).startswith(str(tmp_path)) and isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_volumes_that_are_not_finite_are_named_and_made_anew(cohort_on_disk, tmp_path, number):
    """Whatever the error said, such as that the learning rate is too high."""
    volume = np.zeros((4, 4, 4), np.float16)
    volume[1, 2, 3] = number
    np.save(tmp_path / "3.npy", volume)
    with pytest.raises(OSError, match="the volumes of S3_v1 can't be used"), cohort_on_disk.naming_lost_volumes():
        raise InputError("the loss is nan. Lower LEARNING_RATE")
    assert not (tmp_path / "3.npy").exists() and (tmp_path / "2.npy").exists()


def with_teachers(cohort, folder, *visit_times):
    """The cohort with one subject without an outcome, who has a scan at each of these times."""
    rows = [
        ("t", f"t_{number}", float(time), "", str(folder / f"t{number}.npy")) for number, time in enumerate(visit_times)
    ]
    for *_, entry in rows:
        np.save(entry, np.zeros((4, 4, 4), np.float16))
    return replace(cohort, teachers=pd.DataFrame(rows, columns=[*COLUMNS, "cache_entry"]))


def test_lost_volumes_of_teachers_are_named_too(cohort_on_disk, tmp_path):
    cohort = with_teachers(cohort_on_disk, tmp_path, 0.0, 1.0)
    (tmp_path / "t1.npy").unlink()
    with pytest.raises(OSError, match="the volumes of t_1 can't be used any more"), cohort.naming_lost_volumes():
        raise ValueError


def test_other_teachers_are_another_input(cohort_on_disk, tmp_path):
    cohorts = [cohort_on_disk, *(with_teachers(cohort_on_disk, tmp_path, *times) for times in ([0, 1], [0, 2], [0]))]
    hashes = [fingerprint_of(cohort) for cohort in cohorts]
    assert len(set(hashes)) == 4
    assert hashes[1] == fingerprint_of(with_teachers(cohort_on_disk, tmp_path, 0, 1))
    assert hashes[0] == fingerprint_of(replace(cohort_on_disk, teachers=cohorts[1].teachers[:0]))


def test_progress_is_learned_from_training_subjects_and_teachers_without_outcomes(cohort_on_disk, tmp_path):
    parts = {
        name: part.assign(subject=part["scan"].str[:2], visit_time=0.0, time=2.0, event=True)
        for name, part in cohort_on_disk.parts.items()
    }
    cohort = with_teachers(replace(cohort_on_disk, parts=parts), tmp_path, 0.0, 1.0)
    scans = cohort.scans_to_learn_progress()
    assert scans["scan"].tolist() == ["S0_v1", "S1_v1", "t_0", "t_1"]
    assert list(scans.columns) == ["subject", "scan", "visit_time", "cache_entry"]


def without_outcome(cohort, tmp_path, *subjects):
    """The settings for the simulated cohort's table, in which these subjects' outcomes are emptied."""
    table = pd.read_csv(cohort / "cohort.csv", dtype=str)
    table.loc[table["subjectid"].isin(subjects), "convert_status"] = " "
    table["nifti_path"] = [str(cohort / path) for path in table["nifti_path"]]
    table.to_csv(tmp_path / "c.csv", index=False)
    return settings_of(tmp_path)


def settings_of(tmp_path):
    small = "--PROGRESS=linear --TARGET_SHAPE=16,16,16 --NUM_WORKERS=1 --TEST_RATIO=0.3 --VAL_TRAIN_RATIO=0.4".split()
    return read_config([f"--COHORT_CSV={tmp_path / 'c.csv'}", f"--OUTPUT_DIR={tmp_path / 'o'}", *small])


@pytest.mark.parametrize("subjects", [["S0003"], ["S0002", "S0005"]])
def test_the_volumes_of_teachers_are_preprocessed_and_checked_as_all_others(cohort, tmp_path, subjects):
    config = without_outcome(cohort, tmp_path, *subjects)
    parts, teachers = data.read_parts(config)
    assert sorted(set(teachers["subject"])) == subjects and sum(map(len, parts.values())) + len(teachers) == 36
    whole = data.preprocess_parts(config, parts, teachers)
    assert data.load_volumes(whole.teachers["cache_entry"]).shape == (3 * len(subjects), 16, 16, 16, 1)
    (tmp_path / "bad.nii.gz").write_bytes(b"no volume")
    teachers.loc[1, "nifti_path"] = str(tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match=rf"{teachers.loc[1, 'scan']}: .*bad\.nii\.gz"):
        data.preprocess_parts(config, parts, teachers)


def test_the_split_is_the_same_whoever_teaches(cohort, tmp_path):
    """Those with an outcome are split as if the table had nobody else."""
    beside, _ = data.read_parts(without_outcome(cohort, tmp_path, "S0003"))
    table = pd.read_csv(tmp_path / "c.csv", dtype=str)
    table[table["subjectid"] != "S0003"].to_csv(tmp_path / "c.csv", index=False)
    alone, teachers = data.read_parts(settings_of(tmp_path))
    assert teachers.empty
    for name, part in alone.items():
        pd.testing.assert_frame_equal(part, beside[name])


def test_a_copy_of_a_test_scan_among_the_teachers_is_named(cohort, tmp_path):
    config = without_outcome(cohort, tmp_path, "S0003")
    parts, teachers = data.read_parts(config)
    copied = parts["test"].iloc[0]
    teachers.loc[0, "nifti_path"] = copied["nifti_path"]
    (warning,) = data.preprocess_parts(config, parts, teachers).cache.warnings
    assert "2 scans hold the same volume" in warning and copied["scan"] in warning and "S0003_v" in warning


def test_an_error_that_has_nothing_to_do_with_lost_volumes_stays(cohort_on_disk):
    with pytest.raises(InputError, match="another"), cohort_on_disk.naming_lost_volumes():
        raise InputError("another")


def fingerprint_of(cohort, **columns):
    """With further columns of the table, and the columns of paths."""
    parts = {name: part.assign(nifti_path="", **columns) for name, part in cohort.parts.items()}
    return replace(cohort, parts=parts).fingerprint()


def test_a_covariate_that_changes_its_name_or_its_values_is_another_input(cohort_on_disk):
    same = fingerprint_of(cohort_on_disk, age=70.0, sex="F")
    assert same == fingerprint_of(cohort_on_disk, age=70.0, sex="F")
    others = [{"age": 71.0, "sex": "F"}, {"years": 70.0, "sex": "F"}, {"age": 70.0, "gender": "F"}, {"age": 70.0}]
    assert same not in {fingerprint_of(cohort_on_disk, **columns) for columns in others}


def test_every_setting_of_the_simulation_has_a_cohort_of_its_own(tmp_path):
    changes = [
        *({}, {"SIM_VISITS": (2, 7)}, {"SIM_VISITS": (3, 3)}, {"SIM_HISTORY": "jumping"}, {"SIM_EFFECT": 0.0}),
        *({"SIM_HISTORY": "jumping", "SIM_VISITS": (2, 7)}, {"SIM_HISTORY": "variable"}, {"SEED": 1}),
    ]
    folders = [data.simulated_folder(Config(OUTPUT_DIR=tmp_path, **change)).name for change in changes]
    assert folders[0] == "300-subjects_nuisance-1_effect-1_seed-0"
    assert len(set(folders)) == len(changes)


def test_the_embedded_cohort_has_the_history_that_is_asked_for(tmp_path):
    changes = {"SIM_SUBJECTS": 16, "SIM_VISITS": (1, 4), "SIM_HISTORY": "highest", "NUM_WORKERS": 1}
    parts, _ = data.read_parts(Config(OUTPUT_DIR=tmp_path, TEST_RATIO=0.34, VAL_TRAIN_RATIO=0.5, **changes))
    (path,) = tmp_path.glob("simulated/*/truth.csv")
    table, truth = pd.concat(parts.values()).set_index("scan"), pd.read_csv(path).set_index("imageid")
    drawn = simulate.draw_truth(16, history=History("highest", (1, 4))).set_index("imageid")
    pd.testing.assert_frame_equal(truth, drawn)
    assert table["visit_time"].sort_index().tolist() == drawn["visit_time"].sort_index().tolist()
