"""Where the cells of a stage's activation lie among the voxels, and a map of cells drawn out to voxels."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

STEM_KERNELS = ((7,), (3,))  # of the stem's convolution and max-pool, stride 2 each
BLOCK_KERNELS = (3, 1)  # of the convolution and the shortcut that begin stages 2 to 4, stride 2 each


def upsample(cells: np.ndarray, shape: Sequence[int], stage: int) -> np.ndarray:
    """Interpolate a map linearly between the cells' centres; beyond the outermost ones it stays constant.

    Args:
        cells: (x, y, z), a value a cell.
        shape: (X, Y, Z) voxels of the volume.
        stage: of the network, 1 to 4, whose cells they are.
    Returns:
        (X, Y, Z) float32.
    """
    coordinates = [cell_coordinates(size, stage) for size in shape]
    grid = np.meshgrid(*coordinates, indexing="ij")
    return ndimage.map_coordinates(cells, grid, output=np.float32, order=1, mode="nearest")


def cell_coordinates(size: int, stage: int) -> np.ndarray:
    """Coordinates, in cells, of the voxels along one axis; a cell lies at the centre of the voxels that it sees.

    Padding `same` moves that centre. In a block that halves the grid, the convolution and the shortcut have different
    centres; their mean is taken. HiResCAM's AUC and mass over chance, mean of 5 networks by 20 simulated scans, against
    cells placed at the middle of the voxels that they cover: stage 1 .79 and 4.9 (.82, 5.4), stage 2 .83 and 3.1 (.82,
    2.7), stage 3 .80 and 1.8 (.78, 1.8).

    Args:
        size: voxels of the axis.
        stage: of the network, 1 to 4.
    Returns:
        (size,) float64: 0 at the centre of the first cell, 1 at that of the second.
    """
    num_cells, stride, first = size, 1, np.float64(0)  # stride, first: in voxels
    for kernels in (*STEM_KERNELS, *[BLOCK_KERNELS] * (stage - 1)):
        num_out = -(-num_cells // 2)
        margins = [max((num_out - 1) * 2 + kernel - num_cells, 0) // 2 for kernel in kernels]  # padding in front
        first += stride * np.mean([(kernel - 1) / 2 - margin for kernel, margin in zip(kernels, margins, strict=True)])
        num_cells, stride = num_out, 2 * stride
    return (np.arange(size) - first) / stride
