"""A map over a scan, one slice at a time: colours, planes and places.

Brains are drawn in neurological order: the subject's left is on the left. Red raises the log-hazard, blue lowers it.
Zero is transparent; the colours are symmetric about it and end at the 99.5th percentile of |map| inside the brain.
"""

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image
from scipy import ndimage

PERCENTILE = 99.5  # of |map| inside the brain, at which the colours end
COLOURS = LinearSegmentedColormap.from_list(
    "lowers_raises", ["#9ff6ff", "#1f9bff", "#0a3cff", "#5a2a6e", "#ff1f0a", "#ff8a1f", "#fff59f"]
)
PLANES = ("axial", "coronal", "sagittal")
ACROSS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # axes to the right and up
THROUGH = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis along which a plane's slices follow one another
MM_A_PIXEL = 1.0  # of a slice, where the brain's longest side has MIN_PIXELS to MAX_PIXELS then
MIN_PIXELS, MAX_PIXELS = 150, 400  # of the brain's longest side: a mouse's is drawn larger, a field of view smaller
CLEAR = 0.1  # share of the colours' limit below which a map is transparent
OPAQUE = 0.75  # at most, so that the anatomy shows through
OUTLINE_COLOUR = np.array([235, 235, 235], np.uint8)


@dataclass(frozen=True)
class Scene:
    """A scan, a map over it, and what all slices of the two have in common."""

    grey: np.ndarray  # (X, Y, Z) brightness, 0 to 1
    brain: np.ndarray  # (X, Y, Z) bool
    values: np.ndarray  # (X, Y, Z) float32 signed
    limit: float  # |value| at which the colours end
    affine: np.ndarray  # (4, 4) voxel -> RAS mm
    unit: str  # of the values
    clear: float  # share of the limit below which a colour is transparent, 0 to 1

    @property
    def voxel_mm(self) -> np.ndarray:
        """(3,) size of a voxel along each axis, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def peak(self) -> tuple[int, ...]:
        """The voxel (x, y, z) of the brain where |map| is largest."""
        return tuple(map(int, np.unravel_index(np.argmax(np.abs(self.values) * self.brain), self.values.shape)))

    def slices(self, plane: str) -> tuple[int, int]:
        """Indices of the first and the last slice of a plane that hold brain, in voxels."""
        axis = THROUGH[plane]
        with_brain = np.flatnonzero(self.brain.any(axis=tuple(other for other in range(3) if other != axis)))
        return int(with_brain[0]), int(with_brain[-1])

    @property
    def longest_mm(self) -> float:
        """The longest side of the brain's box, mm."""
        ends = (self.slices(plane) for plane in THROUGH)
        return max(
            self.voxel_mm[THROUGH[plane]] * (last - first + 1)
            for plane, (first, last) in zip(THROUGH, ends, strict=True)
        )

    @property
    def mm_a_pixel(self) -> float:
        """The size of a pixel of a slice, mm: MM_A_PIXEL for a human brain, whatever shows it for any other."""
        return float(np.clip(MM_A_PIXEL, self.longest_mm / MAX_PIXELS, self.longest_mm / MIN_PIXELS))

    def place(self, plane: str, index: int) -> str:
        """Where a slice lies, such as `x = -26 mm, left`, in as many digits as tell neighbouring slices apart.

        The origin tells the side if it lies within the middle half of the brain. A scan whose origin is a corner, or a
        region cut out of one side, has its brain elsewhere.
        """
        digits = max(0, math.ceil(-math.log10(self.voxel_mm.min())))
        mm = round(self.millimetre(plane, index), digits) + 0.0  # no -0
        side = ""
        if plane == "sagittal" and mm != 0:
            first, last = (self.millimetre(plane, end) for end in self.slices(plane))
            is_middle = abs(first + last) / 2 <= abs(last - first) / 4
            side = "" if not is_middle else ", left" if mm < 0 else ", right"
        return f"{'xyz'[THROUGH[plane]]} = {mm:.{digits}f} mm{side}"

    def millimetre(self, plane: str, index: int) -> float:
        """Where a slice of a plane lies along its axis, mm; at the middle of the grid, if the axes are oblique."""
        voxel = (np.array(self.grey.shape) - 1) / 2
        voxel[THROUGH[plane]] = index
        return float(nib.affines.apply_affine(self.affine, voxel)[THROUGH[plane]])


def make_scene(volume: np.ndarray, values: np.ndarray, affine: np.ndarray, *, unit: str, clear: float = CLEAR) -> Scene:
    """Lay a map over the volume that it explains.

    Args:
        volume: (X, Y, Z), 0 outside the brain.
        values: (X, Y, Z) signed map.
        affine: (4, 4) of both, voxel -> RAS mm.
        unit: of the map, in words.
        clear: share of the colours' limit below which the map is transparent, 0 to 1.
    Returns:
        What every picture of the two is drawn from.
    """
    brain = volume != 0
    low, high = np.percentile(volume[brain], [1, 99.9])
    grey = np.where(brain, np.clip((volume - low) / max(high - low, np.finfo(float).tiny), 0, 1), 0)
    limit = float(np.percentile(np.abs(values[brain]), PERCENTILE))
    values, affine = np.asarray(values, np.float32), np.asarray(affine, float)
    return Scene(grey.astype(np.float32), brain, values, limit, affine, unit, clear)


def draw_slice(scene: Scene, plane: str, index: int) -> np.ndarray:
    """Draw one slice in colour, cropped to the brain.

    Args:
        scene: the volume and the map over it.
        plane: one of PLANES.
        index: of the slice along the plane's axis, in voxels.
    Returns:
        (height, width, 3) uint8 of RGB, a pixel for each `scene.mm_a_pixel` mm.
    """
    box = [slice(max(low - 1, 0), high + 2) for low, high in map(scene.slices, reversed(PLANES))]
    box[THROUGH[plane]] = slice(index, index + 1)
    extent = [(box[axis].stop - box[axis].start) * scene.voxel_mm[axis] for axis in ACROSS[plane]]  # mm
    size = [max(round(mm / scene.mm_a_pixel), 1) for mm in extent]

    def enlarged(volume: np.ndarray) -> np.ndarray:
        part = np.squeeze(volume[tuple(box)], axis=THROUGH[plane]).T[::-1]  # up the page is up in the axis
        image = Image.fromarray(np.ascontiguousarray(part, np.float32))
        return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC))

    strength = np.clip(enlarged(scene.values) / scene.limit, -1, 1) if scene.limit > 0 else np.zeros(size[::-1])
    opacity = np.clip((np.abs(strength) - scene.clear) * 2.5, 0, OPAQUE)[..., None]
    colour = COLOURS((strength + 1) / 2)[..., :3]
    grey = np.clip(enlarged(scene.grey), 0, 1)[..., None]
    picture = np.rint(255 * (grey * (1 - opacity) + colour * opacity)).astype(np.uint8)
    inside = enlarged(ndimage.gaussian_filter(scene.brain.astype(np.float32), 0.6)) > 0.5  # no steps of a voxel
    picture[inside & ~ndimage.binary_erosion(inside)] = OUTLINE_COLOUR
    return picture
