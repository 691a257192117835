"""What the explanations cost and whether they find what is there: a trained run of the simulated cohort is explained.

    python benchmarks/explain.py [RUN]      RUN: a run's folder, `outputs` unless another is given

One thread, process CPU time; both sides of a line are measured in this run. The 20 test subjects of the highest risk
are explained, by their last scan, against training scans.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from timing import HERE, alternate, report  # first: it sets the threads

sys.path.insert(0, str(HERE))

import keras
import nibabel as nib
import numpy as np
import pandas as pd
import tensorflow as tf
from nibabel.processing import resample_from_to

from attribution.evidence import Attribution, localisation, smooth
from attribution.gradients import stage_gradient, trace_network
from attribution.regions import make_parcels, region_shapley, sum_by_region
from cohort.grid import Grid, read_grid
from cohort.simulate import ATROPHY_LABELS, REGIONS
from cohort.volume import preprocess
from explain import ExplainSettings, expected_gradients, gradcam, hirescam, shap_gradients, shap_randomisation
from model import build_model

NUISANCE_LABELS = tuple(set(REGIONS) - set(ATROPHY_LABELS))
NUM_SUBJECTS, NUM_BACKGROUND = 20, 32
NUM_GRADIENTS = 128  # of a SHAP map
EXACT_GRADIENTS = 512  # of the map that others are compared with
SHAP_GRADIENTS = (64, 256)  # between which shap's error is interpolated
PEAK_MM = 8.0  # from the truth: a peak so near has found it


@dataclass(frozen=True)
class Run:
    """A trained network, the scans to explain with it, and what they should show."""

    model: keras.Model
    volumes: np.ndarray  # (N, X, Y, Z, 1) float32, last scans of the explained subjects
    background: np.ndarray  # (2 * NUM_BACKGROUND, X, Y, Z, 1) float32, training scans
    labels: np.ndarray  # (X, Y, Z) int: the simulation's regions
    grid: Grid  # of the volumes


def main(folder: Path) -> None:
    """Print every figure, a JSON line each."""
    run = load_run(folder)
    bench_stem_gradient()
    bench_shap(run.model, run.volumes[:3], run.background)
    bench_backgrounds(run.model, run.volumes[:5], run.background)
    attributions = bench_shap_maps(run)
    bench_localisation(run, attributions)
    bench_regions(run, attributions[:3])
    bench_randomisation(run, attributions[:5])
    bench_memory()


def load_run(folder: Path) -> Run:
    """Read what a run of the simulated cohort has left; volumes (X, Y, Z) at its TARGET_SHAPE."""
    settings = json.loads((folder / "config.json").read_text())["settings"]
    shape = tuple(settings["TARGET_SHAPE"])
    model = build_model(shape, width=settings["WIDTH"], norm=settings["NORM"])
    model.load_weights(folder / "cnn" / "best.weights.h5")
    (truth,) = folder.glob("simulated/*/truth_regions.nii.gz")
    test = pd.read_parquet(folder / "features" / "test.parquet", columns=["subjectid", "imageid", "log_hazard"])
    explained = test.groupby("subjectid").tail(1).nlargest(NUM_SUBJECTS, "log_hazard")["imageid"]
    train = pd.read_parquet(folder / "features" / "train.parquet", columns=["imageid"])["imageid"]
    drawn = train.sample(2 * NUM_BACKGROUND, random_state=0)

    def load(image_ids: Iterable[str]) -> np.ndarray:
        """Volumes (N, X, Y, Z, 1) of these scans."""
        paths = [truth.parent / "mri" / f"{name}.nii.gz" for name in image_ids]
        return np.stack([preprocess(nib.load(path), shape) for path in paths])[..., None]

    grid = read_grid(truth).resized(shape)
    labels = resample_from_to(nib.load(truth), (grid.shape, grid.affine), order=0)
    return Run(model, load(explained), load(drawn), np.asarray(labels.dataobj), grid)


# ---- What it costs -------------------------------------------------------------------------------------------


def bench_stem_gradient() -> None:
    """The input gradient of the published network's stem, by stride and folded; CPU s."""
    volume = tf.random.stateless_normal((1, 48, 56, 48, 1), (0, 0))
    network = build_model((48, 56, 48), width=64)
    summed = keras.ops.sum(network.get_layer("stem_conv").output, axis=(1, 2, 3, 4))
    stem = keras.Model(network.input, keras.ops.reshape(summed, (-1, 1)))
    folded = trace_network(stem).gradient
    plain = tf.function(lambda values: tf.gradients(stem(values, training=False), values)[0])
    ours, peer = alternate([lambda: folded(volume), lambda: plain(volume)], 5)
    name = "explain: gradient of the stem, width 64"
    report(name, ours, "<= 0.5", peer=peer, peer_name="strided convolution", unit="CPU s")


def bench_shap(model: keras.Model, volumes: np.ndarray, background: np.ndarray) -> None:
    """Time at as many gradients, and time at as small an error, against shap's GradientExplainer; CPU s."""
    background = background[:NUM_BACKGROUND]

    def maps(engine: Callable[..., Attribution], num_gradients: int, seed: int = 0) -> list[np.ndarray]:
        """A map of each volume, (N,) of the volumes' shape."""
        settings = {"num_gradients": num_gradients, "seed": seed}
        return [engine(model, volume, background, **settings).map for volume in volumes]

    engines = (expected_gradients, shap_gradients)
    settings = {"num_gradients": NUM_GRADIENTS, "seed": 0}
    calls: list[Callable] = [lambda e=engine: e(model, volumes[0], background, **settings) for engine in engines]
    ours, peer = (seconds / NUM_GRADIENTS for seconds in alternate(calls, 1))
    report("explain: a gradient of SHAP", ours, "<= 0.8", peer=peer, peer_name="shap", unit="CPU s")
    exact = maps(expected_gradients, EXACT_GRADIENTS, seed=99)

    def error(engine: Callable[..., Attribution], num_gradients: int) -> float:
        """Mean distance from the exact maps, a share of their norm."""
        pairs = zip(maps(engine, num_gradients), exact, strict=True)
        return float(np.mean([np.linalg.norm(values - best) / np.linalg.norm(best) for values, best in pairs]))

    reached = error(expected_gradients, NUM_GRADIENTS)
    errors = [error(shap_gradients, num_gradients) for num_gradients in SHAP_GRADIENTS]
    slope, level = np.polyfit(np.log(errors), np.log(SHAP_GRADIENTS), 1)
    needed = np.exp(level + slope * np.log(reached))
    peer_name = f"shap with {needed:.0f} gradients; at {SHAP_GRADIENTS} its error is {np.round(errors, 4).tolist()}"
    name = f"explain: SHAP to an error of {reached:.3f} of a {EXACT_GRADIENTS}-gradient map"
    report(name, ours * NUM_GRADIENTS, "<= 0.25", peer=peer * needed, peer_name=peer_name, unit="CPU s")


def bench_memory() -> None:
    """Peak memory of the published network at the published size, in a process of its own; GB."""
    code = (
        "import re, numpy as np; from explain import expected_gradients; from model import build_model;"
        "scans = np.random.default_rng(0).normal(size=(3, 128, 128, 128, 1)).astype('float32');"
        "expected_gradients(build_model((128,) * 3, width=64), scans[0], scans[1:], num_gradients=4, seed=0);"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1e6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    name = "explain: peak memory at 128x128x128, width 64"
    report(name, float(done.stdout.split()[-1]), "<= 2.5", unit="GB")


# ---- Whether it finds what is there ------------------------------------------------------------------------------


def bench_backgrounds(model: keras.Model, volumes: np.ndarray, background: np.ndarray) -> None:
    """How alike two maps of volumes (N, X, Y, Z, 1) against disjoint backgrounds are, by the size of these."""
    for size in (8, NUM_BACKGROUND):
        correlations = []
        for volume in volumes:
            disjoint = background[:size], background[NUM_BACKGROUND : NUM_BACKGROUND + size]
            first, second = (
                expected_gradients(model, volume, scans, num_gradients=NUM_GRADIENTS, seed=0).map for scans in disjoint
            )
            correlations.append(np.corrcoef(first.ravel(), second.ravel())[0, 1])
        name = f"explain: correlation of maps against two disjoint sets of {size} scans"
        report(name, float(np.mean(correlations)), "higher with more")


def bench_shap_maps(run: Run) -> list[Attribution]:
    """Explain every subject by SHAP; how far the maps are from the gap, and HiResCAM's cells from the log-hazard."""
    background = run.background[:NUM_BACKGROUND]
    attributions = [
        expected_gradients(run.model, volume, background, num_gradients=NUM_GRADIENTS, seed=0) for volume in run.volumes
    ]
    errors = [error for each in attributions if (error := each.completeness_error) is not None]
    name, unit = "explain: SHAP: completeness error", "share of the gap"
    report(f"{name}, largest of the subjects", max(errors), "<= 0.02", unit=unit)
    report(f"{name}, mean", float(np.mean(errors)), "<= 0.02", unit=unit)
    sums = [np.prod(stage_gradient(run.model, volume, "stage4"), axis=0).sum() for volume in run.volumes]
    differences = np.abs(np.subtract(sums, [attribution.value for attribution in attributions]))
    report("explain: HiResCAM, stage 4: |sum - log-hazard|, largest", differences.max(), "<= 1e-4")
    return attributions


def bench_localisation(run: Run, attributions: Sequence[Attribution]) -> None:
    """AUC, enrichment and peak of each kind of map over the subjects, and the enrichment of the nuisance's region."""
    model, voxel_mm = run.model, run.grid.voxel_mm
    maps = {
        "SHAP": [smooth(attribution.map, voxel_mm) for attribution in attributions],
        "signed HiResCAM, stage 1": [hirescam(model, volume, "stage1") for volume in run.volumes],
        "signed HiResCAM, stage 2": [hirescam(model, volume, "stage2") for volume in run.volumes],
        "Grad-CAM, stage 4": [gradcam(model, volume, "stage4") for volume in run.volumes],
    }
    truth, nuisance = np.isin(run.labels, ATROPHY_LABELS), np.isin(run.labels, NUISANCE_LABELS)
    brains = [volume[..., 0] != 0 for volume in run.volumes]
    for kind, of_subjects in maps.items():
        pairs = list(zip(of_subjects, brains, strict=True))
        rows = pd.DataFrame([localisation(values, truth, brain, voxel_mm) for values, brain in pairs])
        beside = pd.DataFrame([localisation(values, nuisance, brain, voxel_mm) for values, brain in pairs])
        near = (rows["peak_mm"] <= PEAK_MM).mean()
        report(f"explain: {kind}: AUC", rows["auc"].mean(), ">= 0.80")
        report(f"explain: {kind}: mass over chance", rows["enrichment"].mean(), ">= 4")
        report(f"explain: {kind}: share of subjects with the peak within {PEAK_MM:g} mm", near, ">= 0.8")
        report(f"explain: {kind}: mass over chance in the nuisance's region", beside["enrichment"].mean(), "<= 1.5")


def bench_regions(run: Run, attributions: Sequence[Attribution]) -> None:
    """Sums of the SHAP map by parcel against Shapley values with parcels as players; log-hazard."""
    predict, background = trace_network(run.model).predict, run.background[:NUM_BACKGROUND]
    volumes = run.volumes[: len(attributions)]
    parcels = make_parcels((volumes != 0).any(axis=(0, -1)), run.grid.affine)
    correlations, errors = [], []
    for volume, attribution in zip(volumes, attributions, strict=True):
        shapley = region_shapley(predict, volume, background, parcels, seed=0)
        sums = sum_by_region(attribution.map, parcels).set_index("label")["attribution"]
        correlations.append(np.corrcoef(shapley, sums.loc[shapley.index])[0, 1])
        errors.append(abs(shapley.sum() - attribution.gap))
    report("explain: regions: correlation of sums and Shapley values", float(np.mean(correlations)), ">= 0.95")
    name = "explain: regions: efficiency of the Shapley values, largest error"
    report(name, max(errors), "<= 1e-5", unit="log-hazard")


def bench_randomisation(run: Run, attributions: Sequence[Attribution]) -> None:
    """Spearman correlation with the trained network's map (X, Y, Z), down to where the whole network is random."""
    background = run.background[:NUM_BACKGROUND]
    settings = {"num_gradients": ExplainSettings.randomisation_gradients, "seed": 0}
    curves = [
        shap_randomisation(run.model, volume, background, attribution.map, **settings)
        for volume, attribution in zip(run.volumes, attributions, strict=False)  # of the first subjects
    ]
    curve = pd.DataFrame(curves).mean().round(3).to_dict()
    report(f"explain: randomised to the stem, Spearman; on the way {curve}", abs(curve["stem"]), "<= 0.3")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs"))
