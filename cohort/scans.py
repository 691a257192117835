"""One NIfTI file: its header is checked before any voxel is read, and no more is unpacked than the header says.

Reads NIfTI-1 and NIfTI-2 in one file, in either byte order, packed by gzip or not whatever the file is called.
An ambiguous header is refused; nothing is guessed.
"""

import gzip
import math
import zlib
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
    header = _parse_header(content)
    slope, intercept = _scaling(header)
    return Scan(
        path=path,
        shape=_shape(header, max_voxels),
        affine=_affine(header),
        dtype=_dtype(header),
        offset=_offset(header),
        slope=slope,
        intercept=intercept,
        packed=packed,
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


def _opened(path: Path, packed: bool) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path) if packed else open(path, "rb")


def _unreadable(reason: object) -> InputError:
    return InputError(f"expected a NIfTI volume, can't read it: {reason}")


def _parse_header(content: bytes) -> nib.Nifti1Header:
    """The header, in its own byte order; nibabel's repair of headers stays off, since it guesses."""
    for order in "<>":
        size = int.from_bytes(content[:4], "little" if order == "<" else "big")
        if size in HEADERS and len(content) >= size:
            kind, magic = HEADERS[size]
            header = kind(content[:size], endianness=order, check=False)
            if header["magic"] == magic:
                return header
            if header["magic"] in (b"ni1", b"ni2"):
                raise _unreadable("it is the header of a pair of files. Save the volume as one .nii or .nii.gz")
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
        raise InputError(f"expected a scaling, received scl_slope {slope:g} and scl_inter {intercept:g}")
    return slope, intercept


def _affine(header: nib.Nifti1Header) -> np.ndarray:
    """The sform, or else the qform, (4, 4) mm; a header with neither does not say which side is left."""
    sizes = header["pixdim"][1:4]
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(f"expected voxel sizes above 0 mm, received pixdim {', '.join(f'{size:g}' for size in sizes)}")
    if header["pixdim"][0] == 0:  # the standard reads it as 1
        header["pixdim"][0] = 1
    if header["sform_code"] not in range(6) or header["qform_code"] not in range(6):
        codes = f"{header['sform_code']} and {header['qform_code']}"
        raise InputError(f"expected sform_code and qform_code from 0 to 5, received {codes}")
    try:
        affine = header.get_sform(coded=True)[0]
        affine = header.get_qform(coded=True)[0] if affine is None else affine
    except (ValueError, HeaderDataError) as error:
        raise InputError(f"expected a qform that is a rotation, received another: {error}") from error
    if affine is None:
        raise InputError(
            "expected an sform or a qform, received neither: which side is left would be a guess. "
            "Register the scan, or set its sform"
        )
    _check_affine(affine)
    return affine


def _check_affine(affine: np.ndarray) -> None:
    """Refuse an affine, (4, 4) voxel -> mm, that does not place a head's voxels in space."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)  # mm
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > LEAST_VOLUME * edges.prod()):
        raise InputError("expected an affine that can be inverted, received one that is singular or not finite")
    if edges.min() < SMALLEST_MM or edges.max() > LARGEST_MM:
        received = " x ".join(f"{edge:g}" for edge in edges)
        raise InputError(f"expected voxels of {SMALLEST_MM} to {LARGEST_MM:g} mm, received {received}")
