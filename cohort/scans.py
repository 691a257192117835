"""One NIfTI file: its header is checked before any voxel is read, and no more is unpacked than the header says.

Reads NIfTI-1 and NIfTI-2 in one file, in either byte order, packed by gzip or not whatever the file is called.
An ambiguous header is refused; nothing is guessed.
"""

import gzip
import math
import os
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from runs.errors import InputError

MAX_VOXELS = 512**3  # of a scan, unless the caller gives another limit
HEADERS = {348: (nib.Nifti1Header, b"n+1"), 540: (nib.Nifti2Header, b"n+2")}  # kind and magic, by size in bytes
GREYS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
OTHER_DATATYPES = {32: "the complex", 128: "the RGB", 1536: "the float128", 1792: "the complex", 2304: "the RGBA"}
FLAG = 4  # bytes after the header that say whether extensions follow
MOST_EXTENSIONS = 2**24  # bytes between the header and the voxels
BLOCK = 2**20  # voxels that are unpacked and converted at a time
PACKED = b"\x1f\x8b"  # the first bytes of a gzip file
SMALLEST_MM, LARGEST_MM = 0.01, 100.0  # edge of a head's voxel; a header in metres or micrometres is outside
LEAST_VOLUME = 1e-3  # share: a voxel's volume over the product of its edges; below it the axes lie almost in one plane
MOST_ALIKE, EXAMPLES = 5, 3  # more scans of which the same is said are one line, with so many of them
BOX_SHARE = 1e-3  # of a box's diagonal, by which sform and qform may differ: quaternions in float32 round by 4e-4
SIZE_SHARE = 1e-2  # by which a voxel's edge may differ from pixdim
ANALYZE = (".hdr", ".img")  # suffixes of the two files of a pair, Analyze's or NIfTI's
CONVERT = (
    "python -c \"import nibabel as n; i = n.load('FILE'); "
    "n.save(n.Nifti1Image(i.get_fdata(dtype='float32'), i.affine), 'FILE.nii.gz')\""
)
FROM_PAIR = (
    f"Save it as one .nii.gz: {CONVERT}. A header of Analyze does not say which side is left; nibabel takes its voxels "
    "as stored from right to left, so compare one scan with its source"
)
FROM_DICOM = "Convert its series with dcm2niix"
FROM_POINTER = "Get its content first, with `git annex get`, `datalad get` or `git lfs pull`"
FORMS_REMEDY = (
    "Find out which is right, and copy it over the other: fslorient -copysform2qform FILE, or -copyqform2sform"
)
OTHER_KINDS = (  # that a file begins with: place and bytes, what it is then, and the remedy
    (0, b"\0\0\0\1", "a FreeSurfer volume (.mgz, .mgh)", "Convert it: mri_convert FILE.mgz FILE.nii.gz"),
    (128, b"DICM", "a DICOM file", FROM_DICOM),
    (0, b"\x89HDF", "an HDF5 file, such as MINC 2", "Convert it to .nii.gz: mnc2nii, if it is MINC"),
    (0, b"CDF", "a MINC 1 file", "Convert it to .nii.gz with mnc2nii"),
    (0, b"NRRD", "an NRRD file", "Convert it to .nii.gz, with 3D Slicer or SimpleITK"),
    (0, b"PK\3\4", "a zip archive", "Unpack it"),
    (0, b"BZh", "packed by bzip2", "Unpack it, or pack it by gzip"),
    (0, b"\xfd7zXZ", "packed by xz", "Unpack it, or pack it by gzip"),
    (0, b"\x28\xb5\x2f\xfd", "packed by zstd", "Unpack it, or pack it by gzip"),
    (0, b"version https://git-lfs", "a pointer of git-lfs, not the volume", FROM_POINTER),
    (0, b"/annex/objects/", "a pointer of git-annex, not the volume", FROM_POINTER),
    (0, b"<", "a web page or XML, not a volume", "Download the volume again"),
)
REMEDY_BY_ENDING = {  # of a file that lies where a NIfTI file is expected; {name} and its {stem}; longest ending first
    ".nii.bz2": "unpack it",
    ".nii.zip": "unpack it",
    ".img.gz": "save it as one .nii.gz, in Python with nibabel",
    ".nii.xz": "unpack it",
    ".nii.gz": "rename it to {stem}.nii.gz",
    ".nii": "rename it to {stem}.nii",
    ".mgz": "convert it to NIfTI: mri_convert {name} {stem}.nii.gz",
    ".mgh": "convert it to NIfTI: mri_convert {name} {stem}.nii.gz",
    ".img": "save it as one .nii.gz, in Python with nibabel",
    ".hdr": "save it as one .nii.gz, in Python with nibabel",
    ".mnc": "convert it to NIfTI: mnc2nii {name} {stem}.nii",
    ".nrrd": "convert it to NIfTI, with 3D Slicer or SimpleITK",
    ".dcm": "convert its series with dcm2niix",
}
UNREADABLE = (OSError, EOFError, ValueError, zlib.error)


@dataclass(frozen=True)
class Scan:
    """What a sound header says: where the voxels lie, in space and in the file."""

    path: Path
    shape: tuple[int, int, int]  # (X, Y, Z) voxels, as stored
    affine: np.ndarray  # (4, 4) voxel -> RAS mm
    dtype: np.dtype  # as stored, with its byte order
    offset: int  # bytes before the first voxel
    slope: float  # grey = slope * stored + intercept
    intercept: float
    packed: bool  # by gzip
    note: str = ""  # what was chosen where the header allows more than one reading

    @property
    def unscaled(self) -> bool:
        """Whether the stored numbers are the grey values themselves: slope 1, intercept 0."""
        return (self.slope, self.intercept) == (1, 0)


def open_scan(path: str | Path, max_voxels: int = MAX_VOXELS) -> Scan:
    """Read and check the header of a NIfTI file; the voxels are not read.

    Args:
        path: of the file.
        max_voxels: the largest volume that is not refused.
    Returns:
        The scan, (X, Y, Z) voxels; a file of shape (X, Y, Z, 1) counts as 3-D.
    Raises:
        InputError: the file is not NIfTI, not 3-D or too large, does not hold a grey value a voxel, or its scaling,
            voxel size, offset or affine can't be used.
    """
    path = Path(path)
    if not path.is_file():
        raise _unreadable("it is a folder" if path.is_dir() else "there is no such file")
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == PACKED
        with _opened(path, packed) as unpacked:
            content = unpacked.read(max(HEADERS))
    except UNREADABLE as error:
        raise _unreadable(error) from error
    header = _parse_header(content, path)
    shape, (slope, intercept) = _shape(header, max_voxels), _scaling(header)
    affine, note = _affine(header)
    return Scan(
        path=path,
        shape=shape,
        affine=affine,
        dtype=_dtype(header),
        offset=_offset(header),
        slope=slope,
        intercept=intercept,
        packed=packed,
        note=note,
    )


def read_greys(scan: Scan) -> np.ndarray:
    """Read the grey values, block by block; a packed file is read to the checksum at its end.

    Args:
        scan: of `open_scan`.
    Returns:
        (X, Y, Z) in Fortran order: unscaled integers of 8 or 16 bits as they are stored; anything else scaled, in
        float32, where a value beyond float32's range is infinite.
    Raises:
        InputError: the file is damaged, or holds fewer or more bytes than its header says.
    """
    exact = scan.dtype.kind in "iu" and scan.dtype.itemsize <= 2 and scan.unscaled
    greys = np.empty(math.prod(scan.shape), scan.dtype.newbyteorder("=") if exact else np.float32)
    try:
        with _opened(scan.path, scan.packed) as file:
            file.seek(scan.offset)
            for begin in range(0, len(greys), BLOCK):
                block = greys[begin : begin + BLOCK]
                content = file.read(len(block) * scan.dtype.itemsize)
                if len(content) < len(block) * scan.dtype.itemsize:
                    raise _unreadable(f"it ends before its {len(greys)} voxels do")
                stored = np.frombuffer(content, scan.dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    block[:] = stored if scan.unscaled else stored * np.float64(scan.slope) + scan.intercept
            if file.read(1):
                raise _unreadable(f"more follows after its {len(greys)} voxels")
    except InputError:
        raise
    except UNREADABLE as error:
        raise _unreadable(error) from error
    return greys.reshape(scan.shape, order="F")


def found_instead(path: str | Path) -> str:
    """What lies in the place of a volume that is not there, and how to make it readable; empty if nothing does.

    Args:
        path: where the volume is expected, `.nii.gz` or `.nii`.
    Returns:
        Such as ` (I1.NII.GZ lies there: rename it to I1.nii.gz)`, to follow the path in a message.
    """
    path = Path(path)
    try:
        if path.is_symlink():
            target = os.readlink(path)
            annexed = "its content is not here: get it with `git annex get` or `datalad get`"
            return f" ({annexed if 'annex' in target else f'it is a link to {target}, which is not there'})"
        if path.is_dir():
            return " (it is a folder: name the file in it; a DICOM series has to be converted with dcm2niix first)"
        names = sorted(os.listdir(path.parent))
    except (OSError, ValueError):
        return ""
    stem = _stem(path.name)
    for name in (name for name in names if _in_one_spelling(_stem(name)) == _in_one_spelling(stem)):
        ending = name[len(_stem(name)) :].lower()
        if name != path.name and unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", path.name):
            return f" ({name} lies there, in other Unicode characters that look alike: copy its name into the table)"
        if name in (f"{stem}.nii", f"{stem}.nii.gz"):
            return f" ({name} lies there: name that in the table)"
        if ending in REMEDY_BY_ENDING:
            return f" ({name} lies there: {REMEDY_BY_ENDING[ending].format(name=name, stem=stem)})"
    return ""


def name_alike(found: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each scan, and one line for many scans of which the same is said.

    Args:
        found: a scan (its id, and path if that helps) and what is said of it.
    Returns:
        `<scan>: <words>`, or `<number> scans: <words> Such as <scan>; <scan>; <scan>`.
    """
    scans_of: dict[str, list[str]] = {}
    for scan, words in found:
        scans_of.setdefault(words, []).append(scan)
    lines = []
    for words, scans in scans_of.items():
        if len(scans) > MOST_ALIKE:
            lines.append(f"{len(scans)} scans: {words}. Such as {'; '.join(scans[:EXAMPLES])}")
        else:
            lines += [f"{scan}: {words}" for scan in scans]
    return lines


def _in_one_spelling(name: str) -> str:
    """A name without case, its letters composed with their accents."""
    return unicodedata.normalize("NFC", name).lower()


def _stem(name: str) -> str:
    """A file's name without its ending, of two parts if it is packed."""
    lower = name.lower()
    return next((name[: -len(end)] for end in REMEDY_BY_ENDING if lower.endswith(end)), name)


def _opened(path: Path, packed: bool) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path) if packed else open(path, "rb")


def _unreadable(reason: object) -> InputError:
    return InputError(f"expected a NIfTI volume, can't read it: {reason}")


def _parse_header(content: bytes, path: Path) -> nib.Nifti1Header:
    """The header, in its own byte order; nibabel's repair of headers stays off, since it guesses."""
    for order in "<>":
        size = int.from_bytes(content[:4], "little" if order == "<" else "big")
        if size in HEADERS and len(content) >= size:
            kind, magic = HEADERS[size]
            header = kind(content[:size], endianness=order, check=False)
            if header["magic"] == magic:
                return header
            if header["magic"] in (b"ni1", b"ni2"):
                raise _unreadable(f"it is the header of a pair of files. {FROM_PAIR}")
    for place, begin, other_kind, remedy in OTHER_KINDS:
        if content[place:].startswith(begin):
            raise _unreadable(f"it is {other_kind}. {remedy}")
    if {suffix.lower() for suffix in path.suffixes[-2:]} & set(ANALYZE):  # .img holds nothing but voxels
        raise _unreadable(f"it is half of a pair of Analyze or NIfTI (.hdr and .img). {FROM_PAIR}")
    raise _unreadable("it does not begin with a NIfTI header")


def _shape(header: nib.Nifti1Header, max_voxels: int) -> tuple[int, int, int]:
    num_axes = int(header["dim"][0])
    shape = tuple(map(int, header["dim"][1 : num_axes + 1])) if 0 < num_axes <= 7 else ()
    if len(shape) < 3 or min(shape[:3]) < 2 or set(shape[3:]) - {1}:
        raise InputError(f"expected a 3-D volume, received shape {shape}")
    x, y, z = shape[:3]
    if x * y * z > max_voxels:
        raise InputError(f"expected at most MAX_VOXELS = {max_voxels} voxels, received {x} x {y} x {z}")
    return x, y, z


def _dtype(header: nib.Nifti1Header) -> np.dtype:
    code = int(header["datatype"])
    if code not in GREYS:
        raise InputError(
            f"expected a grey value per voxel, received {OTHER_DATATYPES.get(code, 'the unknown')} datatype {code}"
        )
    dtype = np.dtype(header.endianness + GREYS[code])
    if header["bitpix"] != 8 * dtype.itemsize:
        raise InputError(f"expected {8 * dtype.itemsize} bits a voxel of {dtype}, received bitpix {header['bitpix']}")
    return dtype


def _offset(header: nib.Nifti1Header) -> int:
    begin = int(header["sizeof_hdr"]) + FLAG
    offset = float(header["vox_offset"]) or float(begin)  # 0: right after the header
    if not (begin <= offset <= begin + MOST_EXTENSIONS and offset.is_integer()):
        raise InputError(f"expected voxels from byte {begin} on, received vox_offset {offset:g}")
    return int(offset)


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:  # by the standard: no scaling
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(
            f"expected a scaling, received scl_slope {slope:g} and scl_inter {intercept:g}. If the stored numbers are "
            f"the greys themselves, save it anew without a scaling: {CONVERT}"
        )
    return slope, intercept


def _affine(header: nib.Nifti1Header) -> tuple[np.ndarray, str]:
    """The sform, or else the qform, (4, 4) mm, and a note if they differ with a reason.

    A header with neither does not say which side is left.
    """
    sizes = header["pixdim"][1:4]
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(f"expected voxel sizes above 0 mm, received pixdim {', '.join(f'{size:g}' for size in sizes)}")
    if header["pixdim"][0] == 0:  # the standard reads it as 1
        header["pixdim"][0] = 1
    if header["sform_code"] not in range(6) or header["qform_code"] not in range(6):
        codes = f"{header['sform_code']} and {header['qform_code']}"
        raise InputError(f"expected sform_code and qform_code from 0 to 5, received {codes}")
    sform, qform, note = header.get_sform(coded=True)[0], None, ""
    try:
        qform = header.get_qform(coded=True)[0]
    except (ValueError, HeaderDataError) as error:
        if sform is None:
            raise InputError(f"expected a qform that is a rotation, received another: {error}") from error
        note = "the qform is no rotation; the sform is used"
    affine = qform if sform is None else sform
    if affine is None:
        raise InputError(
            "expected an sform or a qform, received neither: which side is left would be a guess. "
            "Register the scan, or set its sform"
        )
    _check_affine(affine)
    if sform is None:
        return affine, note
    _check_sizes(header, affine)
    return affine, note if qform is None else _compare_forms(header, sform, qform)


def _check_sizes(header: nib.Nifti1Header, sform: np.ndarray) -> None:
    """Refuse an sform, (4, 4) mm, whose voxels have other sizes than pixdim; with a code of its own, the qform has."""
    edges, sizes = np.linalg.norm(sform[:3, :3], axis=0), np.asarray(header["pixdim"][1:4], float)  # mm
    of_the_qform = header["qform_code"] not in (0, header["sform_code"])
    if not of_the_qform and (np.abs(edges - sizes) > SIZE_SHARE * edges).any():
        of_sform, of_pixdim = (" x ".join(f"{size:.4g}" for size in three) for three in (edges, sizes))
        raise InputError(
            f"expected one size of a voxel, received {of_sform} mm by the sform and {of_pixdim} mm by pixdim. Find out "
            f"which is right; if it is the sform, save it anew: {CONVERT}"
        )


def _compare_forms(header: nib.Nifti1Header, sform: np.ndarray, qform: np.ndarray) -> str:
    """A note if sform and qform, (4, 4) mm, lie in two spaces, as their codes say; refused if they contradict."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in header["dim"][1:4]], [1])).reshape(
        4, -1
    )  # voxels, and 1
    diagonal = np.linalg.norm(np.asarray(header["dim"][1:4]) * np.linalg.norm(sform[:3, :3], axis=0))  # mm

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())  # mm, at the corner that differs most

    if apart(sform, qform) <= BOX_SHARE * diagonal:
        return ""
    codes = f"sform (code {header['sform_code']}) and qform (code {header['qform_code']})"
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise InputError(
            f"expected sform and qform of one handedness, received {codes} that mirror each other: left and right "
            f"would be a guess. {FORMS_REMEDY}"
        )
    if header["sform_code"] != header["qform_code"]:
        return "sform and qform differ and have codes of two spaces, as after a registration; the sform is used"
    rigid = header.copy()
    rigid.set_qform(sform, strip_shears=True)
    if apart(rigid.get_qform(), qform) <= BOX_SHARE * diagonal:  # a qform can't hold the sform's shears
        return "the sform has shears, which the qform lacks; the sform is used"
    raise InputError(
        f"expected sform and qform of one code to place the voxels alike, received {codes} that lie up to "
        f"{apart(sform, qform):.3g} mm apart. {FORMS_REMEDY}"
    )


def _check_affine(affine: np.ndarray) -> None:
    """Refuse an affine, (4, 4) voxel -> mm, that does not place a head's voxels in space."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)  # mm
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > LEAST_VOLUME * edges.prod()):
        raise InputError("expected an affine that can be inverted, received one that is singular or not finite")
    if edges.min() < SMALLEST_MM or edges.max() > LARGEST_MM:
        received = " x ".join(f"{edge:g}" for edge in edges)
        raise InputError(f"expected voxels of {SMALLEST_MM} to {LARGEST_MM:g} mm, received {received}")
