"""A header is believed only where it is sound; what is accepted equals nibabel's own reading."""

import bz2
import gzip
import lzma
import os
import re
import resource
import subprocess
import sys
import unicodedata

import nibabel as nib
import numpy as np
import pytest

from cohort.scans import BLOCK, found_instead, open_scan, read_greys
from runs.errors import InputError
from runs.files import ROOT

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def image_of(values, kind=nib.Nifti1Image, affine=AFFINE):
    return kind(values, affine, dtype=values.dtype)


def altered(image, **fields):
    """The bytes of an image whose header says something else; `name__index` alters one element."""
    content = image.to_bytes()
    header = image.header_class(content[: image.header_class.sizeof_hdr], check=False)
    for name, value in fields.items():
        field, _, index = name.rpartition("__")
        if field:
            header[field][int(index)] = value
        else:
            header[name] = value
    return header.binaryblock + content[len(header.binaryblock) :]


@pytest.fixture
def greys(rng):
    return rng.integers(-100, 3000, (5, 6, 7)).astype(np.int16)


def write(tmp_path, content, name="scan.nii"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def read(path, **kwargs):
    scan = open_scan(path, **kwargs)
    return scan, read_greys(scan)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -3)])
def test_every_kind_is_read_as_nibabel_reads_it(tmp_path, greys, kind, order, dtype, packed, scaling):
    values = np.abs(greys).astype(dtype) if dtype[0] == "u" else greys.astype(dtype)
    header = kind.header_class(endianness=order)
    image = kind(values, AFFINE, header, dtype=np.dtype(dtype))
    image.header.set_slope_inter(*scaling)
    content = image.to_bytes()
    # the suffix is of the other kind: what counts is how the file begins
    path = write(tmp_path, gzip.compress(content) if packed else content, "scan.nii" if packed else "scan.nii.gz")
    scan, greys_read = read(path)
    expected = np.asarray(kind.from_bytes(content).dataobj)
    assert scan.dtype.byteorder in ("|", order, "=" if order == "<" else "|")
    np.testing.assert_array_equal(greys_read, expected.astype(np.float32))
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert greys_read.dtype.isnative and greys_read.dtype in (np.dtype(dtype), np.dtype(np.float32))


def test_a_volume_of_more_than_one_block(tmp_path):
    values = np.arange(101 * 103 * 107, dtype=np.float32).reshape(101, 103, 107, order="F")
    assert BLOCK < values.size < 2 * BLOCK
    path = write(tmp_path, gzip.compress(image_of(values).to_bytes(), 1), "scan.nii.gz")
    np.testing.assert_array_equal(read(path)[1], values)


def test_one_time_of_a_4d_file_is_a_volume(tmp_path, greys):
    path = write(tmp_path, image_of(greys[..., None, None]).to_bytes())
    scan, greys_read = read(path)
    assert scan.shape == greys.shape
    np.testing.assert_array_equal(greys_read, greys)


def test_an_extension_before_the_voxels_is_skipped(tmp_path, greys):
    image = image_of(greys)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note" * 50))
    scan, greys_read = read(write(tmp_path, image.to_bytes()))
    assert scan.offset > 352
    np.testing.assert_array_equal(greys_read, greys)


def test_a_slope_of_0_is_none(tmp_path, greys):
    path = write(tmp_path, altered(image_of(greys), scl_slope=0, scl_inter=7))
    np.testing.assert_array_equal(read(path)[1], greys)


def test_the_qform_stands_in_for_the_sform(tmp_path, greys):
    image = image_of(greys)
    image.set_qform(AFFINE, code=1)
    path = write(tmp_path, altered(image, sform_code=0, pixdim__0=0))  # a qfac of 0 is 1
    np.testing.assert_allclose(open_scan(path).affine, AFFINE)


HEADERS = {
    "4-D": ({"dim": [4, 5, 6, 7, 2, 1, 1, 1]}, r"3-D volume, received shape \(5, 6, 7, 2\)"),
    "2-D": ({"dim": [2, 5, 42, 1, 1, 1, 1, 1]}, r"3-D volume, received shape \(5, 42\)"),
    "no axes": ({"dim__0": 0}, r"3-D volume, received shape \(\)"),
    "many axes": ({"dim__0": 9}, r"3-D volume, received shape \(\)"),
    "negative axes": ({"dim__0": -3}, r"3-D volume, received shape \(\)"),
    "a negative size": ({"dim__2": -6}, r"3-D volume, received shape \(5, -6, 7\)"),
    "a size of 0": ({"dim__2": 0}, "3-D volume, received shape"),
    "a slice": ({"dim__3": 1}, "3-D volume, received shape"),
    "32767 cubed": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "MAX_VOXELS = 134217728 voxels, received 32767 x"),
    "more than there is": ({"dim__1": 6}, "can't read it: it ends before its 252 voxels"),
    "less than there is": ({"dim__1": 4}, "can't read it: more follows after its 168 voxels"),
    "RGB": ({"datatype": 128, "bitpix": 24}, "received the RGB datatype 128"),
    "complex": ({"datatype": 32, "bitpix": 64}, "a grey value per voxel, received the complex datatype 32"),
    "float128": ({"datatype": 1536, "bitpix": 128}, "a grey value per voxel, received the float128"),
    "no datatype": ({"datatype": 999}, "received the unknown datatype 999"),
    "other bits": ({"bitpix": 32}, "expected 16 bits a voxel of int16, received bitpix 32"),
    "pixdim 0": ({"pixdim__2": 0}, "voxel sizes above 0 mm, received pixdim 2, 0, 4"),
    "pixdim NaN": ({"pixdim__1": np.nan}, "voxel sizes above 0 mm, received pixdim nan"),
    "pixdim negative": ({"pixdim__3": -4}, "voxel sizes above 0 mm"),
    "metres": ({"srow_x": [2e-3, 0, 0, 0]}, "voxels of 0.01 to 100 mm, received 0.002"),
    "singular": ({"srow_x": [0, 3, 0, 0]}, "an affine that can be inverted"),
    "affine inf": ({"srow_y": [0, np.inf, 0, 0]}, "an affine that can be inverted"),
    "no form": ({"sform_code": 0, "qform_code": 0}, "an sform or a qform, received neither"),
    "sform code": ({"sform_code": 77}, "sform_code and qform_code from 0 to 5, received 77 and 0"),
    "no rotation": ({"sform_code": 0, "qform_code": 1, "quatern_b": 5}, "a qform that is a rotation"),
    "slope NaN": (
        {"scl_slope": np.nan},
        "a scaling, received scl_slope nan .* save it anew without a scaling: python -c",
    ),
    "slope inf": ({"scl_slope": np.inf}, "a scaling, received scl_slope inf"),
    "intercept NaN": ({"scl_inter": np.nan}, "a scaling, received scl_slope 1 and scl_inter nan"),
    "offset negative": ({"vox_offset": -352}, "from byte 352 on, received vox_offset -352"),
    "offset in the header": ({"vox_offset": 300}, "vox_offset 300"),
    "offset a fraction": ({"vox_offset": 352.5}, "vox_offset 352.5"),
    "offset NaN": ({"vox_offset": np.nan}, "vox_offset nan"),
    "offset huge": ({"vox_offset": 1e30}, r"vox_offset 1e\+30"),
    "offset later": ({"vox_offset": 384}, "it ends before its 210 voxels"),
    "other sizes": (
        {"pixdim__1": 2.1},
        "one size of a voxel, received 2 x 3 x 4 mm by the sform and 2.1 x 3 x 4 mm by",
    ),
    "no sizes": (
        {"pixdim__1": 1, "pixdim__2": 1, "pixdim__3": 1},
        "4 mm by the sform and 1 x 1 x 1 mm by pixdim. Find",
    ),
    "a pair": ({"magic": b"ni1"}, "the header of a pair of files"),
    "no magic": ({"magic": b"xxx"}, "does not begin with a NIfTI header"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wrong", HEADERS)
def test_an_unsound_header_is_refused(tmp_path, greys, wrong, packed):
    fields, message = HEADERS[wrong]
    content = altered(image_of(greys), **fields)
    path = write(tmp_path, gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=message):
        read(path)


TURNED = np.array([[1.6, -1.8, 0, -40], [1.2, 2.4, 0, 7], [0, 0, 4.0, -3], [0, 0, 0, 1]])  # voxels of 2 x 3 x 4 mm
SHEARED = AFFINE + 0.4 * np.eye(4, k=1) * [[1], [1], [0], [0]]


def with_forms(greys, sform, qform, codes=(1, 1)):
    """The bytes of an image with two forms."""
    image = image_of(greys)
    image.set_qform(qform, code=codes[1])
    image.set_sform(sform, code=codes[0])
    return altered(image)


def moved(affine, mm):
    return affine + np.outer([mm, 0, 0, 0], [0, 0, 0, 1])


@pytest.mark.parametrize("affine", [AFFINE, TURNED, np.diag([-2.0, -3, 4, 1]), np.diag([0.02, 0.03, 0.04, 1])])
def test_forms_that_agree_to_rounding_are_one(tmp_path, greys, affine):
    scan = open_scan(write(tmp_path, with_forms(greys, affine, affine)))
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    assert scan.note == ""


@pytest.mark.parametrize("codes", [(1, 1), (4, 1), (2, 3)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sform_that_mirrors_the_qform_is_refused(tmp_path, greys, codes, axis):
    """Two spaces may differ by a rotation and a scaling; left and right they share."""
    mirrored = TURNED.copy()
    mirrored[:, axis] *= -1
    with pytest.raises(InputError, match=r"that mirror each other: left and right would be a guess\. Find out which"):
        open_scan(write(tmp_path, with_forms(greys, mirrored, TURNED, codes)))


@pytest.mark.parametrize(
    ("sform", "apart"), [(moved(AFFINE, 0.7), "0.7"), (moved(TURNED, -60), "60"), (TURNED, "51.4")]
)
def test_forms_of_one_code_that_differ_are_refused(tmp_path, greys, sform, apart):
    qform = TURNED if apart == "60" else AFFINE
    with pytest.raises(InputError, match=rf"that lie up to {apart} mm apart.*fslorient -copysform2qform FILE"):
        open_scan(write(tmp_path, with_forms(greys, sform, qform)))


@pytest.mark.parametrize("sform", [moved(AFFINE, 60), TURNED, AFFINE @ np.diag([1.1, 1.1, 1.1, 1])])
def test_forms_of_two_spaces_may_differ_and_it_is_noted(tmp_path, greys, sform):
    """As after a registration that wrote its result into the sform."""
    scan = open_scan(write(tmp_path, with_forms(greys, sform, AFFINE, codes=(4, 1))))
    np.testing.assert_allclose(scan.affine, sform, atol=1e-5)
    assert "codes of two spaces" in scan.note and "the sform is used" in scan.note


def test_shears_that_a_qform_cannot_hold_are_no_contradiction(tmp_path, greys):
    scan = open_scan(write(tmp_path, with_forms(greys, SHEARED, SHEARED)))
    np.testing.assert_allclose(scan.affine, SHEARED, atol=1e-5)
    assert "shears" in scan.note


def test_a_qform_that_is_no_rotation_beside_a_sform_is_noted(tmp_path, greys):
    scan = open_scan(write(tmp_path, altered(image_of(greys), qform_code=1, quatern_b=5)))
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert scan.note == "the qform is no rotation; the sform is used"


def test_the_command_for_a_slope_of_nan_mends_it(tmp_path, greys):
    path = write(tmp_path, altered(image_of(greys), scl_slope=np.nan))
    mend(path, tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "FILE.nii.gz")[1], greys)


def mend(path, tmp_path):
    """Run the command of the refusal on a file."""
    with pytest.raises(InputError) as refused:
        open_scan(path)
    (code,) = re.findall(r'python -c "([^"]*)"', str(refused.value))
    program = code.replace("n.load('FILE')", f"n.load({str(path)!r})")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage, nib.Nifti1Pair])
@pytest.mark.parametrize("suffix", [".img", ".hdr"])
def test_a_pair_is_refused_with_a_command_that_mends_it(tmp_path, greys, kind, suffix):
    nib.save(kind(greys, np.diag([-2.0, 3, 4, 1])), tmp_path / "scan.img")
    with pytest.raises(InputError, match=r"pair .*Save it as one .nii.gz"):
        open_scan(tmp_path / f"scan{suffix}")
    mend(tmp_path / f"scan{suffix}", tmp_path)
    scan, greys_read = read(tmp_path / "FILE.nii.gz")
    np.testing.assert_array_equal(greys_read, greys)
    np.testing.assert_allclose(np.abs(np.diag(scan.affine)), [2, 3, 4, 1])


def test_other_formats_are_named_with_their_remedy(tmp_path, greys):
    nib.save(nib.MGHImage(greys, AFFINE), tmp_path / "scan.mgz")
    nib.save(nib.MGHImage(greys, AFFINE), tmp_path / "scan.mgh")
    for path in (tmp_path / "scan.mgz", tmp_path / "scan.mgh"):
        with pytest.raises(InputError, match=r"a FreeSurfer volume .* mri_convert FILE.mgz FILE.nii.gz"):
            open_scan(path)
    content = image_of(greys).to_bytes()
    for begin, message in (
        (bytes(128) + b"DICM" + bytes(500), "a DICOM file. Convert its series with dcm2niix"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of git-lfs.*Get its content first"),
        (b"/annex/objects/MD5E-s9--0.nii.gz\n", "a pointer of git-annex.*datalad get"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (bz2.compress(content), "packed by bzip2. Unpack it"),
        (lzma.compress(content), "packed by xz. Unpack it"),
    ):
        with pytest.raises(InputError, match=message):
            open_scan(write(tmp_path, begin))


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path, greys, packed):
    content = image_of(greys).to_bytes()
    content = gzip.compress(content) if packed else content
    for length in {0, 1, 2, 3, 10, 100, 347, 348, 351, 352, len(content) // 2, len(content) - 1} - {len(content)}:
        with pytest.raises(InputError, match="can't read it"):
            read(write(tmp_path, content[:length]))


def test_a_flipped_bit_in_a_packed_file_is_refused(tmp_path, greys, rng):
    content = gzip.compress(image_of(greys).to_bytes())
    for at in rng.integers(20 * 8, len(content) * 8, 100):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(InputError):
            read(write(tmp_path, bytes(flipped)))


def test_a_limit_on_voxels(tmp_path, greys):
    path = write(tmp_path, image_of(greys).to_bytes())
    assert open_scan(path, max_voxels=greys.size).shape == greys.shape
    with pytest.raises(InputError, match="expected at most MAX_VOXELS = 209 voxels, received 5 x 6 x 7"):
        open_scan(path, max_voxels=greys.size - 1)


def test_names_are_only_names(tmp_path, greys):
    content = image_of(greys).to_bytes()
    for name in ("a b.nii", "a'b\".nii", "Größe 脳.nii", "two\nlines.nii", "<script>.nii", "-rf.nii", "%s{0}.nii"):
        np.testing.assert_array_equal(read(write(tmp_path, content, name))[1], greys)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "nowhere.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("folder.nii", "loop.nii", "dangling.nii", "pipe.nii", "none.nii", "nul\0.nii"):
        with pytest.raises(InputError, match="can't read it"):
            open_scan(tmp_path / name)


def test_text_is_refused(tmp_path):
    for content in (b"subjectid,imageid\n" * 100, b"\0" * 1000, gzip.compress(b"no volume" * 100), b"\x1f\x8b"):
        with pytest.raises(InputError, match="can't read it"):
            open_scan(write(tmp_path, content))


PEAK = """
import resource, sys
from data import Preprocessing, build_cache
import pandas as pd
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
table = pd.DataFrame({"scan": ["scan"], "nifti_path": [sys.argv[1]]})
import gzip, scipy.ndimage
before = peak()
try:
    build_cache(table, Preprocessing((16, 16, 16), max_voxels=int(sys.argv[3])), folder=sys.argv[2], jobs=1)
except ValueError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def peak_of(path, folder, max_voxels):
    """Bytes by which a process grows while it preprocesses one scan; its address space is bounded too."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(folder), str(max_voxels)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)),
    )
    return int(done.stdout), done.stderr


@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_memory_is_twice_the_largest_volume_in_float32_at_most(tmp_path, dtype):
    """The largest valid volume needs 4 bytes a voxel, whatever it is stored in."""
    shape = (224, 224, 224)
    values = np.random.default_rng(0).integers(0, 200, (224, 224)).astype(dtype)
    image = image_of(np.broadcast_to(values, shape).astype(dtype))
    path = write(tmp_path, gzip.compress(image.to_bytes(), 1))
    grown, message = peak_of(path, tmp_path / "cache", 224**3)
    assert "can't be used" not in message
    assert grown < 2 * 4 * 224**3


def test_a_bomb_is_not_unpacked(tmp_path):
    """1 GB of zeros behind a small volume, in 1 MB; and a header that asks for more than MAX_VOXELS."""
    bomb = gzip.compress(image_of(np.ones((16, 16, 16), np.uint8)).to_bytes())
    path = write(tmp_path, bomb + gzip.compress(bytes(2**20)) * 1000)
    grown, message = peak_of(path, tmp_path / "cache", 64**3)
    assert "more follows after its 4096 voxels" in message and grown < 2**25
    path = write(tmp_path, altered(image_of(np.ones((16, 16, 16), np.uint8)), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))
    grown, message = peak_of(path, tmp_path / "cache", 64**3)
    assert "expected at most MAX_VOXELS" in message and grown < 2**25


OTHER_NAMES = {  # what lies there instead of s1.nii.gz, and what the user is told
    "s1.nii": "s1.nii lies there: name that in the table",
    "S1.NII.GZ": "S1.NII.GZ lies there: rename it to s1.nii.gz",
    "s1.Nii": "s1.Nii lies there: rename it to s1.nii",
    "s1.mgz": "s1.mgz lies there: convert it to NIfTI: mri_convert s1.mgz s1.nii.gz",
    "s1.img": "s1.img lies there: save it as one .nii.gz",
    "s1.HDR": "s1.HDR lies there: save it as one .nii.gz",
    "s1.mnc": "s1.mnc lies there: convert it to NIfTI",
    "s1.nii.bz2": "s1.nii.bz2 lies there: unpack it",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_what_lies_there_instead_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert found_instead(tmp_path / "s1.nii.gz").startswith(f" ({OTHER_NAMES[name]}")
    assert found_instead(tmp_path / "s2.nii.gz") == "" == found_instead(tmp_path / "no folder" / "s1.nii.gz")


@pytest.mark.parametrize("stem", ["Zoë_1", "señor", "한글"])
def test_a_name_in_other_characters_that_look_alike_is_told(tmp_path, stem):
    """As macOS writes it, with the accents apart, and the other way round."""
    composed, decomposed = (unicodedata.normalize(form, f"{stem}.nii.gz") for form in ("NFC", "NFD"))
    for lying, expected in ((composed, decomposed), (decomposed, composed)):
        folder = tmp_path / str(lying == composed)
        folder.mkdir()
        (folder / lying).touch()
        assert f" ({lying} lies there, in other Unicode characters" in found_instead(folder / expected)
        (folder / lying).rename(folder / lying.replace(".nii.gz", ".mgz"))
        assert "lies there: convert it to NIfTI: mri_convert" in found_instead(folder / expected)


@pytest.mark.parametrize("name", ["series", "s1.nii.gz"])
def test_a_folder_in_the_place_of_a_scan_is_told(tmp_path, name):
    (tmp_path / name).mkdir()
    assert "it is a folder: name the file in it" in found_instead(tmp_path / name)


def test_a_link_to_nowhere_is_told(tmp_path):
    """As a volume whose content git-annex or DataLad has not fetched."""
    (tmp_path / "s1.nii.gz").symlink_to(".git/annex/objects/aa/MD5E-s9--0.nii.gz")
    (tmp_path / "s2.nii").symlink_to("moved.nii")
    assert "its content is not here: get it with `git annex get` or `datalad get`" in found_instead(
        tmp_path / "s1.nii.gz"
    )
    assert found_instead(tmp_path / "s2.nii") == " (it is a link to moved.nii, which is not there)"
