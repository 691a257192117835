import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cohort.grid import Grid, check_grid, commonest_grid, grid_of, read_grid, resize
from runs.errors import InputError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def test_resizing_equals_scipy(rng):
    values = rng.normal(size=(37, 41, 33)).astype(np.float32)
    for shape in ((24, 26, 40), (37, 41, 33), (64, 20, 33)):
        zoom = np.divide(shape, values.shape)
        expected = ndimage.zoom(values, zoom, order=1, grid_mode=True, mode="nearest")
        np.testing.assert_allclose(resize(values, shape), expected, atol=1e-5)


def test_the_affine_of_a_resized_volume_is_right():
    """A linear image of x, y, z in mm reads the same at the new voxels' own mm."""
    affine = np.array([[2.0, 0, 0, -30], [0, 3, 0, 5], [0, 0, 1.5, 7], [0, 0, 0, 1]])
    grid = Grid((30, 20, 40), affine)
    mm = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) @ affine[:3, :3] + affine[:3, 3]
    small = grid.resized((15, 10, 16))
    at = np.stack(np.meshgrid(*map(np.arange, small.shape), indexing="ij"), -1) @ small.affine[:3, :3].T
    for axis in range(3):
        resized = resize(mm[..., axis].astype(np.float32), small.shape)
        expected = at[..., axis] + small.affine[axis, 3]
        np.testing.assert_allclose(resized[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=1e-3)


@pytest.mark.parametrize("codes", ["LPS", "SRA", "AIL"])
def test_a_grid_is_read_in_ras_order(tmp_path, codes):
    image = nib.Nifti1Image(np.zeros((20, 24, 22), np.float32), AFFINE)
    assert grid_of(image).matches(Grid(image.shape, AFFINE))
    to_codes = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes)))
    nib.save(image.as_reoriented(to_codes), tmp_path / "turned.nii.gz")
    turned = nib.load(tmp_path / "turned.nii.gz")
    grid = read_grid(tmp_path / "turned.nii.gz")
    np.testing.assert_allclose(grid.affine, nib.as_closest_canonical(turned).affine, atol=1e-6)
    assert grid.matches(Grid(image.shape, AFFINE)) and grid_of(turned).matches(grid)


def test_another_grid_is_refused_in_words():
    grid = Grid((20, 24, 22), AFFINE)
    for affine in (AFFINE, AFFINE + np.diag([0, 0, 1e-4, 0])):
        check_grid(Grid(grid.shape, affine), grid)
    with pytest.raises(InputError, match=r"received 19 x 24 x 22 voxels of 2 x 2 x 2 mm .* or set RESAMPLE=on"):
        check_grid(Grid((19, 24, 22), AFFINE), grid)
    with pytest.raises(
        InputError, match=r"the grid of the other scans, 20 x .* received 20 x 24 x 22 voxels of 2\.1 x"
    ):
        check_grid(Grid(grid.shape, np.diag([2.1, 2, 2, 1])), grid)


def test_a_grids_words_stay():
    """They stand in messages and logs."""
    affine = np.array([[1.25, 0, 0, -90.126], [0, 1, 0, 7], [0, 0, 0.8754, -0.001], [0, 0, 0, 1]])
    words = "121 x 145 x 3 voxels of 1.25 x 1 x 0.875 mm from (-90.13, 7.00, -0.00)"
    assert Grid((121, 145, 3), affine).describe() == words


def test_grids_are_compared_at_their_own_corners():
    """Wide along one axis, narrow along the other: the difference in voxel size counts along its own axis."""
    narrow, wide = Grid((10, 200, 3), np.eye(4)), Grid((200, 10, 3), np.eye(4))
    wider = np.diag([1.001, 1, 1, 1])  # 0.009 mm off after 10 voxels, 0.199 mm after 200
    assert narrow.matches(Grid(narrow.shape, wider))
    assert not wide.matches(Grid(wide.shape, wider))


def shifted(mm, shape=(20, 24, 22)):
    affine = AFFINE.copy()
    affine[0, 3] = mm
    return Grid(shape, affine)


def test_the_commonest_grid_is_chosen_to_rounding():
    grids = [
        shifted(7),
        shifted(0),
        shifted(0, (20, 24, 21)),
        shifted(0.004),
        shifted(7),
        shifted(-0.004),
        shifted(7.001),
    ]
    grid, number = commonest_grid(grids)
    assert (grid.affine[0, 3], number) == (7, 3)
    grid, number = commonest_grid([*grids[1:], shifted(0)])
    assert (grid.affine[0, 3], number) == (0, 4)
    assert commonest_grid([shifted(1), shifted(2)])[0].affine[0, 3] == 1  # as common: the first


def test_a_reference_is_named_by_who_gave_it():
    with pytest.raises(InputError, match=r"expected the grid of REFERENCE, 20 x 24 x 22 voxels of 2 x 2 x 2 mm from"):
        check_grid(shifted(3), shifted(0), "REFERENCE")


@pytest.mark.parametrize("change", [(0, 0, 0.004), (0, 1, 0.3), (1, 3, 0.002)])
def test_grids_of_the_same_words_have_keys_of_their_own(change):
    """A voxel 0.004 mm larger, axes that are turned, an origin 0.002 mm away: the resampled volume is another."""
    row, column, by = change
    affine = AFFINE.copy()
    affine[row, column] += by
    assert Grid((20, 24, 22), affine).key() != Grid((20, 24, 22), AFFINE).key()
    assert Grid((20, 24, 22), AFFINE + 1e-7).key() == Grid((20, 24, 22), AFFINE).key()


def test_what_a_grid_covers_ends_half_a_voxel_beyond_its_outer_centres():
    box = Grid((4, 5, 6), np.diag([2.0, 2, 2, 1]))
    fine = Grid((12, 3, 3), np.array([[1.0, 0, 0, -2], [0, 1, 0, 4], [0, 0, 1, 4], [0, 0, 0, 1]]))
    mm = np.arange(-2, 10)
    np.testing.assert_array_equal(box.covers(fine)[:, 1, 1], (mm >= -1) & (mm <= 7))
