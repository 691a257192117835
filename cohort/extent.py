"""What a preprocessed volume shows of its brain: whether its background is 0, how large it is and where it lies.

A volume's voxels that are not 0 count as its brain. What one volume can't tell, the cohort's others do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cohort.grid import Grid

LEAST_OF_FACES = 0.1  # share of the faces of the brain's box that are not 0; a brain touches them in a few voxels
NEARLY = 0.02  # of the 99th percentile of the distances from the background: values so close to it belong to it
MOST_NEARLY = 0.25  # share of the voxels that are not 0 which may lie so close to it
LEAST_SCANS = 4  # that say what is usual in a cohort
FAR, TOO_FAR = 0.25, 0.5  # shares of the usual brain's radius: a brain whose centre lies so far off is named, refused
UNUSUAL, IMPOSSIBLE = 1.3, 1.75  # times the usual brain's size, or a part of it: a brain so large is named, refused


@dataclass(frozen=True)
class Extent:
    """How large a brain is, and where it lies."""

    volume: float  # mm^3 of voxels that are not 0
    centre: tuple[float, float, float]  # RAS mm, their mean place

    @property
    def radius(self) -> float:
        """Of the ball of the same size, mm."""
        return float((3 * self.volume / (4 * np.pi)) ** (1 / 3))


def measure_extent(volume: np.ndarray, grid: Grid) -> Extent:
    """The size and the centre of the brain in a volume.

    Args:
        volume: (X, Y, Z) numbers, 0 outside the brain.
        grid: of its voxels.
    Returns:
        In mm; a volume of zeros has the size 0, and its centre is that of the box.
    """
    brain = volume != 0
    counts = [brain.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]  # voxels in each slice along X, Y, Z
    total = counts[0].sum()
    voxel = [np.average(np.arange(len(along)), weights=along) if total else (len(along) - 1) / 2 for along in counts]
    x, y, z, _ = grid.affine @ [*voxel, 1]
    return Extent(float(total * abs(np.linalg.det(grid.affine[:3, :3]))), (float(x), float(y), float(z)))


def find_background(values: np.ndarray) -> tuple[float, float] | None:
    """The background of a volume whose background is not 0: a number such as -1024, noise, or a spline's ringing.

    It is looked for where the box of all voxels that are not 0 ends: a stripped brain touches that box in a few voxels,
    a background fills its faces. Greys that fill the box to its faces, as in a cropped region, are no background: they
    differ from each other.

    Args:
        values: (X, Y, Z) greys.
    Returns:
        The background's value, and the share of the voxels other than 0 that lie close to it; None: it is 0.
    """
    brain = values != 0
    for axis in range(3):  # cut to the box of what is not 0
        within = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        if len(within) == 0:
            return None
        cut = [slice(None)] * 3
        cut[axis] = slice(within[0], within[-1] + 1)
        values, brain = values[tuple(cut)], brain[tuple(cut)]
    faces = np.concatenate([values.take((0, -1), axis=axis).ravel() for axis in range(3)])
    if np.count_nonzero(faces) < LEAST_OF_FACES * len(faces):
        return None
    inside = values[brain].astype(np.float64)
    for background in (0.0, float(np.median(faces[faces != 0]))):
        distances = np.abs(inside - background)
        close = float(np.mean(distances <= NEARLY * np.percentile(distances, 99)))
        if close > MOST_NEARLY:
            return background, close
    return None


def compare_extents(extents: Sequence[Extent], usual: Extent | None) -> tuple[list[str], list[str]]:
    """What is wrong, and what is unusual, with each brain's size and place beside those of the others.

    Args:
        extents: of each scan of a cohort.
        usual: what they should be like, such as `median_extent` of them; None: nothing is said.
    Returns:
        A reason to refuse and a reason to name each scan, in the order of `extents`; empty where there is none.
    """
    refused, named = [""] * len(extents), [""] * len(extents)
    if usual is None or usual.volume == 0:
        return refused, named
    for place, extent in enumerate(extents):
        apart, ratio = float(np.linalg.norm(np.subtract(extent.centre, usual.centre))), extent.volume / usual.volume
        size = max(ratio, 1 / ratio) if ratio > 0 else np.inf
        words = []
        if apart > FAR * usual.radius:
            words.append(f"a brain whose centre lies {apart:.0f} mm from the usual one")
        if size > UNUSUAL:
            words.append(f"a brain (voxels that are not 0) of {ratio:.2f} times the usual size")
        reason = " and ".join(words)
        if apart > TOO_FAR * usual.radius or size > IMPOSSIBLE:
            refused[place] = (
                f"expected a brain where and as large as the other scans', received {reason}. Register it to their "
                "space, and strip the skull of all scans or of none"
            )
        elif reason:
            named[place] = f"{reason}; look whether it is registered and skull-stripped as the others"
    return refused, named


def median_extent(extents: Sequence[Extent]) -> Extent | None:
    """What is usual in a cohort: the median size and place of its brains; None of fewer than LEAST_SCANS.

    Args:
        extents: of each scan, in mm.
    """
    if len(extents) < LEAST_SCANS:
        return None
    x, y, z = np.median([extent.centre for extent in extents], axis=0)
    return Extent(float(np.median([extent.volume for extent in extents])), (float(x), float(y), float(z)))
