"""Reading and preparing scans against MONAI and the published original: a JSON object a line, CPU time, one thread.

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

SHAPE = (128, 128, 128)
FEW, MANY = 200, 2000  # small scans, whose number memory must not grow with
TINY = (16, 16, 16)


def write_scan(path: Path) -> None:
    """The template with noise, as whole numbers; 0 outside the brain."""
    template = load_mni152_template(resolution=1)
    values = np.asarray(template.dataobj, float)
    greys = 800 * values / values.max() + np.random.default_rng(0).normal(0, 30, values.shape)
    nib.save(nib.Nifti1Image(np.where(values > 0, greys.round().clip(1), 0).astype(np.int16), template.affine), path)


def bench_preprocessing(path: Path) -> None:
    """From a file to 128 x 128 x 128 z-scores."""
    from monai.transforms import Compose, LoadImage, NormalizeIntensity, Resize

    peer = Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Resize(SHAPE, mode="trilinear"),
            NormalizeIntensity(nonzero=True),
        ]
    )

    def ours():
        return data.preprocess(data.read_image(path), SHAPE)

    def original():
        values = np.asarray(nib.load(path).dataobj, np.float64)  # type: ignore[attr-defined]
        values = ndimage.zoom(values, np.divide(SHAPE, values.shape), order=1)
        return (values - values.mean()) / values.std()

    apart = np.abs(ours() - scipy_twin(path)).max()
    report("preprocessing: largest difference from scipy's, z-scores", apart, "<= 1e-3")
    mine, monai, scipy = alternate([ours, lambda: peer(str(path)), original], repeats=5)
    name, unit = "one 1 mm gzipped scan to 128x128x128", "CPU s"
    peer_name = "MONAI LoadImage + Resize + NormalizeIntensity(nonzero)"
    report(name, mine, "<= 0.6", peer=monai, peer_name=peer_name, unit=unit)
    report(name, mine, "<= 0.2", peer=scipy, peer_name="nibabel + scipy zoom + z-score, the original's", unit=unit)


def scipy_twin(path: Path) -> np.ndarray:
    """The same by scipy in float64."""
    values = np.asarray(nib.load(path).dataobj, np.float64)  # type: ignore[attr-defined]
    values = ndimage.zoom(values, np.divide(SHAPE, values.shape), order=1, grid_mode=True, mode="nearest")
    inside = values[values != 0]
    return np.where(values != 0, (values - inside.mean()) / inside.std(), 0)


def bench_memory() -> None:
    """Resident memory at the end, by the number of scans that were preprocessed and read."""
    few, many = (in_own_process("data.py", "memory", str(count))[0] for count in (FEW, MANY))
    growth = (many - few) / (MANY - FEW) * 1000
    report(f"resident memory's growth from {FEW} to {MANY} scans", growth, "<= 10", unit="MB per 1,000 scans")


def read_many(count: int) -> float:
    """Peak resident memory, MB, of a process that preprocesses and reads so many small scans."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            values = rng.integers(1, 200, TINY).astype(np.int16)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{number}.nii.gz")
        table = pd.DataFrame({"scan": [str(number) for number in range(count)]})
        table["nifti_path"] = [str(folder / f"{number}.nii.gz") for number in range(count)]
        cache = data.build_cache(table, shape=TINY, folder=folder / "cache", jobs=1)
        batches = np.array_split(np.arange(count), count // 8)
        for _ in data.make_dataset(cache.entries, TINY, batches):
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print every figure, a JSON line each."""
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
