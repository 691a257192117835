"""What is written for one explained scan: space, signs, sides, and that nothing asks for the network."""

import html
import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from brain_maps import AFFINE, SHAPE, bump, ellipsoid, millimetres
from nilearn.image import resample_to_img
from PIL.GifImagePlugin import GifImageFile

from cohort.grid import Grid
from reporting import brains
from reporting.scene import make_scene

GRID = Grid(SHAPE, AFFINE)
# The same box: as it is; finer and stored from right to left and front to back; axes in another order; turned.
NATIVE = {
    "same": GRID,
    "LPS": Grid((48, 56, 40), np.array([[-2.0, 0, 0, 47], [0, -2, 0, 49], [0, 0, 2, -31], [0, 0, 0, 1]])),
    "SAR": Grid((40, 42, 36), np.array([[0.0, 0, 8 / 3, -46.7], [0, 8 / 3, 0, -60.7], [2.0, 0, 0, -31], [0, 0, 0, 1]])),
    "oblique": Grid(
        (60, 60, 60),
        np.array([[1.97, -0.35, 0, -48], [0.35, 1.97, 0, -72], [0, 0, 2, -52], [0, 0, 0, 1]]),
    ),
}


@pytest.fixture
def volume(rng):
    return ellipsoid(rng)


def scene_of(volume, values):
    return make_scene(volume, values, AFFINE, unit="log-hazard per voxel")


# ---- NIfTI ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_a_map_lies_where_it_lay_to_a_tenth_of_a_voxel(tmp_path, name):
    native = NATIVE[name]
    centre = np.array([-14.0, 10.0, 2.0])
    path = brains.write_nifti(tmp_path / "map.nii.gz", -bump(centre), AFFINE, native=native)
    image = nib.Nifti1Image.from_filename(path)
    assert image.shape == native.shape and image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, native.affine, atol=1e-5)
    mass = -np.asarray(image.dataobj)
    assert mass.max() > 0.9  # signs are kept
    centre_of_mass = np.average(millimetres(native.shape, image.affine).reshape(-1, 3), axis=0, weights=mass.ravel())
    assert np.abs(centre_of_mass - centre).max() < 0.1 * min(native.voxel_mm)


@pytest.mark.parametrize("name", NATIVE)
def test_resampled_as_nilearn_does(tmp_path, rng, name):
    native = NATIVE[name]
    values = rng.normal(size=SHAPE).astype(np.float32)
    path = brains.write_nifti(tmp_path / "map.nii.gz", values, AFFINE, native=native)
    written = nib.Nifti1Image.from_filename(path).get_fdata()
    target = nib.Nifti1Image(np.zeros(native.shape, np.float32), native.affine)
    expected = resample_to_img(
        nib.Nifti1Image(values, AFFINE), target, interpolation="linear", force_resample=True, copy_header=True
    )
    voxel = nib.affines.apply_affine(np.linalg.inv(AFFINE), millimetres(native.shape, native.affine))
    within = ((voxel > 0.01) & (voxel < np.array(SHAPE) - 1.01)).all(axis=-1)  # nilearn gives 0 beyond outer centres
    assert within.sum() > 1000
    np.testing.assert_allclose(written[within], expected.get_fdata()[within], atol=1e-4)


def test_a_map_is_a_density(tmp_path):
    """On voxels of an eighth the volume the sum is eight times as large; the docstring says how to get it back."""
    native = NATIVE["LPS"]
    values = bump([0, 0, 5])
    path = brains.write_nifti(tmp_path / "map.nii.gz", values, AFFINE, native=native)
    ratio = abs(np.linalg.det(native.affine[:3, :3]) / np.linalg.det(AFFINE[:3, :3]))
    assert ratio == pytest.approx(1 / 8)
    assert nib.Nifti1Image.from_filename(path).get_fdata().sum() * ratio == pytest.approx(values.sum(), rel=5e-3)


def test_the_scans_own_grid_keeps_every_value(tmp_path, rng):
    values = rng.normal(size=SHAPE).astype(np.float32)
    path = brains.write_nifti(tmp_path / "map.nii.gz", values, AFFINE, native=GRID)
    np.testing.assert_allclose(nib.Nifti1Image.from_filename(path).get_fdata(), values, atol=1e-6)


BEYOND = {  # scans that reach beyond the network's box: on every side; on one, from right to left; turned
    "wider": Grid((80, 90, 70), np.array([[2.0, 0, 0, -79], [0, 2, 0, -89], [0, 0, 2, -69], [0, 0, 0, 1]])),
    "longer": Grid((40, 42, 60), np.array([[-8 / 3, 0, 0, 50], [0, 8 / 3, 0, -60.7], [0, 0, 3, -31], [0, 0, 0, 1]])),
    "turned": Grid(
        (100, 100, 100),
        np.array([[1.97, -0.35, 0, -80], [0.35, 1.97, 0, -112], [0, 0, 2, -92], [0, 0, 0, 1]]),
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_map_is_0_where_the_network_saw_nothing(tmp_path, rng, name):
    """A map that is strong up to the edge of its box keeps its sum: nothing is smeared beyond the edge."""
    native, values = BEYOND[name], rng.uniform(0.5, 1.5, SHAPE).astype(np.float32)
    path = brains.write_nifti(tmp_path / "map.nii.gz", values, AFFINE, native=native)
    written = nib.Nifti1Image.from_filename(path).get_fdata()
    voxel = nib.affines.apply_affine(np.linalg.inv(AFFINE), millimetres(native.shape, native.affine))
    outside = ((voxel < -0.51) | (voxel > np.array(SHAPE) - 0.49)).any(axis=-1)
    assert outside.mean() > 0.2 and (written[outside] == 0).all()
    seen = np.ones(SHAPE, bool) if name != "longer" else _covered(native)
    ratio = abs(np.linalg.det(native.affine[:3, :3]) / np.linalg.det(AFFINE[:3, :3]))
    assert written.sum() * ratio == pytest.approx(values[seen].sum(), rel=0.03)


def _covered(native):
    """The network's voxels with their centre within the scan's own box, (X, Y, Z) bool."""
    voxel = nib.affines.apply_affine(np.linalg.inv(native.affine), millimetres(SHAPE, AFFINE))
    return ((voxel > -0.5) & (voxel < np.array(native.shape) - 0.5)).all(axis=-1)


def test_a_smaller_scan_within_the_box_is_filled_to_its_edge(tmp_path):
    native = Grid((8, 9, 7), np.array([[1.0, 0, 0, -4], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]))
    path = brains.write_nifti(tmp_path / "map.nii.gz", np.full(SHAPE, 2.0), AFFINE, native=native)
    np.testing.assert_allclose(nib.Nifti1Image.from_filename(path).get_fdata(), 2.0, rtol=1e-6)


def test_unit_sign_and_method_stand_in_the_header(written):
    """Read as any viewer reads them; they survive a further reading and writing."""
    folder = written[1][0].parent
    wanted = {
        "shap": ("log-hazard/voxel", "SHAP, 64 gradients; above 0: raises the risk"),
        "gradcam": ("log-hazard/cell", "Grad-CAM, stage4; above 0: raises the risk"),
        "gradcam_relu": ("log-hazard/cell", "Grad-CAM, stage4; negative parts set to 0"),
        "hirescam": ("log-hazard/cell", "HiResCAM, stage2; above 0: raises the risk"),
    }
    for name, (unit, method) in wanted.items():
        image = nib.Nifti1Image.from_filename(folder / f"{name}.nii.gz")
        nib.save(image, folder / "again.nii.gz")
        for header in (image.header, nib.load(folder / "again.nii.gz").header):
            assert header.get_intent() == ("estimate", (), unit)
            assert header["descrip"].item().decode() == method
            assert header.get_xyzt_units()[0] == "mm"


def test_a_text_too_long_for_the_header_is_cut(tmp_path):
    about = ("log-hazard per cell of a stage", "a ± b " * 30)
    path = brains.write_nifti(tmp_path / "map.nii.gz", np.ones(SHAPE), AFFINE, native=GRID, about=about)
    header = nib.load(path).header
    assert header.get_intent()[2] == "log-hazard per c" and header["descrip"].item() == ("a ? b " * 30)[:79].encode()


# ---- Slices ------------------------------------------------------------------------------------------------------


def test_places_in_millimetres(volume):
    scene = scene_of(volume, np.zeros(SHAPE))
    assert scene.place("sagittal", 4) == "x = -30 mm, left"
    assert scene.place("sagittal", 19) == "x = 30 mm, right"
    assert scene.place("axial", 9) == "z = 6 mm"


def test_the_strongest_voxel_is_among_the_slices(volume):
    scene = scene_of(volume, bump([-14, 10, 2], 4.0))
    assert [8 in brains._chosen_slices(scene, plane) for plane in ("axial", "sagittal")] == [True, True]
    assert len(brains._chosen_slices(scene, "coronal")) == brains.NUM_COLUMNS


# ---- Files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, volume):
    maps = {"shap": bump([-14, 10, 2], 6.0), "gradcam": bump([10, 0, 5]) - 0.4, "hirescam": -bump([10, 0, 5])}
    explanation = {
        "volume": volume,
        "maps": maps,
        "origin": {"shap": "SHAP, 64 gradients", "gradcam": "Grad-CAM, stage4", "hirescam": "HiResCAM, stage2"},
        "regions": pd.DataFrame({"label": [1], "region": ["left"], "attribution": [0.25]}),
        "metrics": {"shap": {"completeness_error": 0.01}},
    }
    files = brains.save_explanation(tmp_path / "S1_v3", explanation, grid=GRID, native=NATIVE["LPS"], title="S1_v3")
    return explanation, files


def test_every_file_is_there_and_nothing_else(written):
    explanation, files = written
    wanted = {"shap.nii.gz", "gradcam.nii.gz", "gradcam_relu.nii.gz", "hirescam.nii.gz", "shap.png", "gradcam.png"}
    wanted |= {"hirescam.png", "shap_3d.gif", "gradcam_3d.gif", "shap.html", "regions.csv", "metrics.json"}
    assert {path.name for path in files} == {path.name for path in files[0].parent.iterdir()} == wanted
    pd.testing.assert_frame_equal(pd.read_csv(files[0].parent / "regions.csv"), explanation["regions"])
    assert json.loads((files[0].parent / "metrics.json").read_text()) == explanation["metrics"]


def test_the_map_is_signed_and_the_published_form_is_not(written):
    folder = written[1][0].parent
    signed, positive = (
        nib.Nifti1Image.from_filename(folder / f"{name}.nii.gz").get_fdata() for name in ("gradcam", "gradcam_relu")
    )
    assert signed.min() < -0.3 and positive.min() == 0
    assert positive.max() == pytest.approx(signed.max())


def test_the_saved_map_is_not_smoothed(written):
    explanation, files = written
    peak = nib.Nifti1Image.from_filename(files[0].parent / "shap.nii.gz").get_fdata().max()
    assert peak > 0.75 * explanation["maps"]["shap"].max()  # between the voxels' centres; smoothed it would be 0.66


@pytest.mark.parametrize("name", ["shap", "gradcam"])
def test_gifs_loop_through_the_brain(written, volume, name):
    longest = max(np.ptp(np.flatnonzero(volume.any(axis=axes))) + 1 for axes in ((1, 2), (0, 2), (0, 1)))
    with GifImageFile(written[1][0].parent / f"{name}_3d.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (longest, 0)
        shown = set()
        for index in range(gif.n_frames):
            gif.seek(index)
            assert gif.info["duration"] == 100
            frame = np.asarray(gif.convert("RGB"))
            assert (frame[26:40, 2:16] > 200).all(axis=-1).any()  # the L of the axial panel
            shown.add(frame.tobytes())
        assert len(shown) == longest


def test_the_viewer_needs_no_network(written):
    page = (written[1][0].parent / "shap.html").read_text()
    assert "brainsprite" in page.lower() and len(page) > 50_000
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//[^"')]*""", page) == []
    assert not {"@import", "fetch(", "XMLHttpRequest("} & set(re.findall(r"@import|fetch\(|XMLHttpRequest\(", page))


@pytest.mark.parametrize(
    "title", ["</script><script>ran()</script>", 'a"b', "<b>é</b> & \\u0041", "title of the viewer"]
)
def test_the_viewers_title_is_text(tmp_path, volume, title):
    page = brains.write_viewer(tmp_path / "a.html", scene_of(volume, bump([0, 0, 5])), title).read_text()
    assert f"<title>Nilearn - {html.escape(title)}</title>" in page
    drawn = re.search(r'"title": ("(?:[^"\\]|\\.)*")', page)[1]
    assert json.loads(drawn) == title and "<" not in drawn
    untitled = brains.write_viewer(tmp_path / "b.html", scene_of(volume, bump([0, 0, 5])), "").read_text()
    assert page.count("<script") == untitled.count("<script") and page.count("</script>") == untitled.count("</script>")


def brain_of(shape, voxel_mm, start):
    """A scene of a block of noise that fills a grid but for its edge."""
    volume = np.zeros(shape, np.float32)
    inside = (slice(1, -1),) * 3
    volume[inside] = np.random.default_rng(0).normal(3, 1, np.array(shape) - 2)
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = start
    return make_scene(volume, np.random.default_rng(1).normal(size=shape) * (volume != 0), affine, unit="log-hazard")


OTHER_BRAINS = {
    "mouse": ((52, 80, 40), (0.2, 0.2, 0.2), (-5, -9, -4)),
    "a hippocampus": ((12, 22, 12), (2, 2, 2), (-36, -40, -24)),
    "a slab": ((40, 48, 5), (4, 4, 4), (-80, -110, 0)),
    "micrometres taken for millimetres": ((20, 24, 20), (8000, 8000, 8000), (-8e4, -1e5, -8e4)),
    "from a corner": ((42, 50, 40), (4, 4, 4), (0, 0, 0)),
}


@pytest.mark.parametrize("name", OTHER_BRAINS)
def test_a_brain_of_any_size_anywhere_is_drawn_large_enough_to_see(tmp_path, name):
    scene = brain_of(*OTHER_BRAINS[name])
    brains.write_mosaic(tmp_path / "a.png", scene, "S1, asked for")
    page = brains.write_viewer(tmp_path / "a.html", scene, "S1").read_text()
    assert len(page) < 5_000_000
    with GifImageFile(brains.write_gif(tmp_path / "a.gif", scene, "S1, asked for")) as gif:
        assert 250 < gif.width < 1500 and 150 < gif.height < 1000 and gif.n_frames > 2
        frame = np.asarray(gif.convert("RGB")).astype(int)
    assert (np.ptp(frame, axis=-1) > 100).mean() > 0.02  # colours of the map and of its bar


def test_the_places_of_a_small_brain_differ_and_a_side_is_told_only_where_the_origin_is_amid():
    mouse = brain_of(*OTHER_BRAINS["mouse"])
    assert mouse.place("sagittal", 10) == "x = -3.0 mm, left" and mouse.place("sagittal", 25) == "x = 0.0 mm"
    assert mouse.place("coronal", 45) == "y = 0.0 mm"
    assert brain_of(*OTHER_BRAINS["from a corner"]).place("sagittal", 5) == "x = 20 mm"
    assert brain_of(*OTHER_BRAINS["a hippocampus"]).place("sagittal", 5) == "x = -26 mm"


@pytest.mark.parametrize(
    "title", [r"$\frac{1$", "a$b$^", "two\nlines\tand a tab", "患者\u200b\x01", "x" * 5000, "%s {0}", ""]
)
def test_any_text_is_drawn(tmp_path, volume, title):
    scene = scene_of(volume, bump([0, 0, 5]))
    assert brains.write_mosaic(tmp_path / "a.png", scene, title).stat().st_size > 5000
    with GifImageFile(brains.write_gif(tmp_path / "a.gif", scene, title)) as gif:
        assert gif.width < 1500


def test_a_map_of_zeros_is_drawn_too(tmp_path, volume):
    scene = scene_of(volume, np.zeros(SHAPE))
    assert scene.limit == 0
    for write, name in (
        (brains.write_mosaic, "a.png"),
        (brains.write_gif, "a.gif"),
        (brains.write_viewer, "a.html"),
    ):
        assert write(tmp_path / name, scene, "nothing").stat().st_size > 5000


def test_the_cohorts_maps_and_table(tmp_path, volume):
    rows = pd.DataFrame({"region": ["left", "right"], "attribution": [1.0, -2.0], "absolute": [1.0, 2.0]})
    cohort = {
        "volume": volume,
        "mean": bump([0, 0, 5]) - 0.5,
        "consistency": np.sign(bump([0, 0, 5]) - 0.5),
        "num_subjects": 2,
        "tables": {"a": rows, "b": rows},
    }
    files = brains.save_cohort(tmp_path / "cohort", cohort, grid=GRID, event={"a": True, "b": False})
    wanted = {"mean.nii.gz", "mean.png", "consistency.nii.gz", "consistency.png", "regions.csv"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "cohort").iterdir()} == wanted
    np.testing.assert_allclose(nib.Nifti1Image.from_filename(files[0]).get_fdata(), cohort["mean"], atol=1e-6)
    assert pd.read_csv(tmp_path / "cohort" / "regions.csv")["group"].value_counts().to_dict() == dict.fromkeys(
        ("all", "converted", "stable"), 2
    )
