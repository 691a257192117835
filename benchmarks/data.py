"""Reading and preprocessing scans, against MONAI and the published original: JSON lines, CPU time, one thread.

    python benchmarks/data.py

The scan is made here: the MNI152 template at 1 mm (197 x 233 x 189, int16, gzipped) with noise in the brain.
"""

import resource
import sys
import tempfile
from pathlib import Path

from timing import HERE, alternate, in_own_process, report  # first: it sets the threads

sys.path.insert(0, str(HERE))

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nilearn.datasets import load_mni152_template
from scipy import ndimage

import data
from cohort.volume import preprocess, read_image

SHAPE = (128, 128, 128)  # voxels of the network's volume in the paper
FEW, MANY = 200, 2000  # numbers of small scans; memory must not grow from one to the other
TINY = (16, 16, 16)  # voxels of a small scan


def write_scan(path: Path) -> None:
    """Write the template with noise, (197, 233, 189) int16; 0 outside the brain."""
    template = load_mni152_template(resolution=1)
    values = np.asarray(template.dataobj, float)
    greys = 800 * values / values.max() + np.random.default_rng(0).normal(0, 30, values.shape)
    nib.save(nib.Nifti1Image(np.where(values > 0, greys.round().clip(1), 0).astype(np.int16), template.affine), path)


def bench_preprocessing(path: Path) -> None:
    """Time the way from a file to (128, 128, 128) z-scores, CPU s, and compare the result with scipy's."""
    from monai.transforms import Compose, LoadImage, NormalizeIntensity, Resize

    peer = Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Resize(SHAPE, mode="trilinear"),
            NormalizeIntensity(nonzero=True),
        ]
    )

    def ours() -> np.ndarray:
        """Read and preprocess the scan, (128, 128, 128)."""
        return preprocess(read_image(path), SHAPE)

    def original() -> np.ndarray:
        """The published original: resampled by SciPy, scored over the whole box."""
        values = np.asarray(nib.load(path).dataobj, np.float64)  # type: ignore[attr-defined]
        values = ndimage.zoom(values, np.divide(SHAPE, values.shape), order=1)
        return (values - values.mean()) / values.std()

    difference = np.abs(ours() - preprocess_by_scipy(path)).max()
    report("preprocessing: largest difference from scipy's, z-scores", difference, "<= 1e-3")
    seconds, monai_seconds, scipy_seconds = alternate([ours, lambda: peer(str(path)), original], repeats=5)
    name, unit = "one 1 mm gzipped scan to 128x128x128", "CPU s"
    peer_name = "MONAI LoadImage + Resize + NormalizeIntensity(nonzero)"
    report(name, seconds, "<= 0.6", peer=monai_seconds, peer_name=peer_name, unit=unit)
    peer_name = "nibabel + scipy zoom + z-score, the original's"
    report(name, seconds, "<= 0.2", peer=scipy_seconds, peer_name=peer_name, unit=unit)


def preprocess_by_scipy(path: Path) -> np.ndarray:
    """What `volume.preprocess` computes, (128, 128, 128) z-scores, by scipy in float64."""
    values = np.asarray(nib.load(path).dataobj, np.float64)  # type: ignore[attr-defined]
    values = ndimage.zoom(values, np.divide(SHAPE, values.shape), order=1, grid_mode=True, mode="nearest")
    brain = values[values != 0]
    return np.where(values != 0, (values - brain.mean()) / brain.std(), 0)


def bench_memory() -> None:
    """Report how the peak of resident memory grows with the number of scans that are preprocessed and read, MB."""
    few, many = (in_own_process("data.py", "memory", str(count))[0] for count in (FEW, MANY))
    growth = (many - few) / (MANY - FEW) * 1000
    report(f"resident memory's growth from {FEW} to {MANY} scans", growth, "<= 10", unit="MB per 1,000 scans")


def read_many(count: int) -> float:
    """Preprocess and read small scans in this process.

    Args:
        count: number of scans.
    Returns:
        The process's peak resident memory, MB.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            values = rng.integers(1, 200, TINY).astype(np.int16)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{number}.nii.gz")
        table = pd.DataFrame({"scan": [str(number) for number in range(count)]})
        table["nifti_path"] = [str(folder / f"{number}.nii.gz") for number in range(count)]
        table, _ = data.build_cache(table, data.Preprocessing(TINY), folder=folder / "cache", jobs=1)
        batches = np.array_split(np.arange(count), count // 8)
        for _ in data.make_dataset(table["cache_entry"].to_list(), TINY, batches):
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print every figure: CPU seconds, z-scores and MB, a JSON line each."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_scan(path)
        bench_preprocessing(path)
    bench_memory()


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(read_many(int(sys.argv[2])))
    else:
        main()
