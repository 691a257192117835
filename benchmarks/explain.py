"""What the explanations cost and whether they find what is there: a trained run of the simulated cohort is explained.

    python benchmarks/explain.py [RUN]      RUN: a run's folder, `outputs` unless said otherwise

One thread, process CPU time; both sides of a line are measured in this run. The 20 test subjects of the highest risk
are explained, by their last scan, against training scans.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pandas as pd
import tensorflow as tf
from nibabel.processing import resample_from_to

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attribution.evidence import localisation, smooth
from attribution.gradients import compiled
from attribution.regions import make_parcels, region_shapley, sum_by_region
from cohort.grid import read_grid
from cohort.simulate import ATROPHY_LABELS, REGIONS
from data import preprocess
from explain import Attribution, expected_gradients, gradcam, hirescam, randomisation, shap_gradients, stage_gradient
from model import build_model

NUISANCE_LABELS = tuple(set(REGIONS) - set(ATROPHY_LABELS))
NUM_SUBJECTS, NUM_BACKGROUND, STEPS = 20, 32, 128


def main(run: Path) -> None:
    """Print every figure, a JSON line each."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model, volumes, background, labels, grid = load_run(run)
    bench_stem_gradient()
    bench_shap(model, volumes[:3], background)
    bench_backgrounds(model, volumes[:5], background)
    found = bench_localisation(model, volumes, background, labels, grid.voxel_mm)
    bench_regions(model, volumes[:3], background, found[:3], grid.affine)
    bench_randomisation(model, volumes[:5], background, found[:5])
    bench_memory()


def report(name: str, ours, goal: str, *, peer=None, peer_name="", unit="") -> None:
    """One line; `ratio` is ours over the peer's."""
    ratio = None if peer is None else round(float(ours / peer), 3)
    row = {"name": f"explain: {name}", "ours": _short(ours), "peer": None if peer is None else _short(peer)}
    row |= {"peer_name": peer_name}
    print(json.dumps(row | {"ratio": ratio, "unit": unit, "goal": goal}), flush=True)


def load_run(run: Path):
    """The trained network; the explained subjects' volumes; the background; the truth's labels."""
    settings = json.loads((run / "config.json").read_text())["settings"]
    shape = tuple(settings["TARGET_SHAPE"])
    model = build_model(shape, width=settings["WIDTH"], norm=settings["NORM"])
    model.load_weights(run / "cnn" / "best.weights.h5")
    (truth,) = run.glob("simulated/*/truth_regions.nii.gz")
    test = pd.read_parquet(run / "features" / "test.parquet", columns=["subjectid", "imageid", "log_hazard"])
    explained = test.groupby("subjectid").tail(1).nlargest(NUM_SUBJECTS, "log_hazard")["imageid"]
    train = pd.read_parquet(run / "features" / "train.parquet", columns=["imageid"])["imageid"]
    drawn = train.sample(2 * NUM_BACKGROUND, random_state=0)

    def load(ids) -> np.ndarray:
        paths = [truth.parent / "mri" / f"{name}.nii.gz" for name in ids]
        return np.stack([preprocess(nib.load(path), shape) for path in paths])[..., None]

    grid = read_grid(truth)
    labels = resample_from_to(nib.load(truth), (grid.resized(shape).shape, grid.resized(shape).affine), order=0)
    return model, load(explained), load(drawn), np.asarray(labels.dataobj), grid.resized(shape)


def cost(call, repeats: int = 1) -> float:
    """CPU seconds of one call, after one that traces it."""
    call()
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def bench_stem_gradient() -> None:
    """The input gradient of the published network's stem, by stride and folded."""
    volume = tf.random.stateless_normal((1, 48, 56, 48, 1), (0, 0))
    network = build_model((48, 56, 48), width=64)
    summed = keras.ops.sum(network.get_layer("stem_conv").output, axis=(1, 2, 3, 4))
    stem = keras.Model(network.input, keras.ops.reshape(summed, (-1, 1)))
    plain = tf.function(lambda values: tf.gradients(stem(values, training=False), values)[0])
    ours, peer = (cost(lambda call=call: call(volume), 5) for call in (compiled(stem).gradient, plain))
    report("gradient of the stem, width 64", ours, "<= 0.5", peer=peer, peer_name="strided convolution", unit="CPU s")


def bench_shap(model, volumes, background) -> None:
    """Time at as many gradients, and time at as small an error, against shap's GradientExplainer."""
    background = background[:NUM_BACKGROUND]
    ours, theirs = (
        cost(lambda engine=engine: engine(model, volumes[0], background, steps=STEPS)) / STEPS
        for engine in (expected_gradients, shap_gradients)
    )
    report("a gradient of SHAP", ours, "<= 0.8", peer=theirs, peer_name="shap", unit="CPU s")
    wanted = [expected_gradients(model, volume, background, steps=512, seed=99).map for volume in volumes]

    def error(engine, steps: int) -> float:
        maps = [engine(model, volume, background, steps=steps).map for volume in volumes]
        parts = [np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in zip(maps, wanted, strict=True)]
        return float(np.mean(parts))

    reached, counts = error(expected_gradients, STEPS), (64, 256)
    errors = [error(shap_gradients, steps) for steps in counts]
    slope, level = np.polyfit(np.log(errors), np.log(counts), 1)
    needed = np.exp(level + slope * np.log(reached))
    peer_name = f"shap with {needed:.0f} gradients; at {counts} its error is {_short(errors)}"
    name = f"SHAP to an error of {reached:.3f} of a 512-gradient map"
    report(name, ours * STEPS, "<= 0.25", peer=theirs * needed, peer_name=peer_name, unit="CPU s")


def bench_backgrounds(model, volumes, background) -> None:
    """How alike two maps against disjoint backgrounds are, by their size, at as many gradients."""
    for size in (8, NUM_BACKGROUND):
        alike = []
        for volume in volumes:
            sets = background[:size], background[NUM_BACKGROUND : NUM_BACKGROUND + size]
            one, other = (expected_gradients(model, volume, part, steps=STEPS).map for part in sets)
            alike.append(np.corrcoef(one.ravel(), other.ravel())[0, 1])
        report(f"correlation of maps against two disjoint sets of {size} scans", np.mean(alike), "higher with more")


def bench_localisation(model, volumes, background, labels, voxel_mm) -> list[Attribution]:
    """AUC, enrichment and peak of each kind of map over the subjects; the nuisance's region; completeness."""
    found = [expected_gradients(model, volume, background[:NUM_BACKGROUND], steps=STEPS) for volume in volumes]
    kinds = {
        "SHAP": lambda index: smooth(found[index].map, voxel_mm),
        "signed HiResCAM, stage 1": lambda index: hirescam(model, volumes[index], "stage1"),
        "signed HiResCAM, stage 2": lambda index: hirescam(model, volumes[index], "stage2"),
        "Grad-CAM, stage 4": lambda index: gradcam(model, volumes[index], "stage4"),
    }
    truth, nuisance = np.isin(labels, ATROPHY_LABELS), np.isin(labels, NUISANCE_LABELS)
    for kind, draw in kinds.items():
        maps = [(draw(index), volume[..., 0] != 0) for index, volume in enumerate(volumes)]
        rows = pd.DataFrame([localisation(values, truth, brain, voxel_mm) for values, brain in maps])
        beside = [localisation(values, nuisance, brain, voxel_mm)["enrichment"] for values, brain in maps]
        report(f"{kind}: AUC", rows["auc"].mean(), ">= 0.80")
        report(f"{kind}: mass over chance", rows["enrichment"].mean(), ">= 4")
        report(f"{kind}: share of subjects with the peak within 8 mm", (rows["peak_mm"] <= 8).mean(), ">= 0.8")
        report(f"{kind}: mass over chance in the nuisance's region", np.mean(beside), "<= 1.5")
    errors = [part.completeness_error for part in found]
    report("SHAP: completeness error, largest of the subjects", max(errors), "<= 0.02", unit="share of the gap")
    report("SHAP: completeness error, mean", np.mean(errors), "<= 0.02", unit="share of the gap")
    cells = [np.prod(stage_gradient(model, volume, "stage4"), axis=0).sum() for volume in volumes]
    apart = np.abs(np.subtract(cells, [part.value for part in found])).max()
    report("HiResCAM, stage 4: |sum - log-hazard|, largest", apart, "<= 1e-4")
    return found


def bench_regions(model, volumes, background, found, affine) -> None:
    """Sums of the SHAP map by parcel against Shapley values with parcels as players."""
    predict, background = compiled(model).predict, background[:NUM_BACKGROUND]
    parcels = make_parcels((volumes != 0).any(axis=(0, -1)), affine)
    alike, apart = [], []
    for volume, part in zip(volumes, found, strict=True):
        shapley = region_shapley(predict, volume, background, parcels)
        sums = sum_by_region(part.map, parcels).set_index("label")["attribution"]
        alike.append(np.corrcoef(shapley, sums.loc[shapley.index])[0, 1])
        apart.append(abs(shapley.sum() - part.gap))
    report("regions: correlation of sums and Shapley values", np.mean(alike), ">= 0.95")
    report("regions: efficiency of the Shapley values, largest error", max(apart), "<= 1e-5", unit="log-hazard")


def bench_randomisation(model, volumes, background, found) -> None:
    """Spearman correlation with the map of the network as trained, down to where all of it is random."""
    curves = [
        randomisation(model, volume, background[:NUM_BACKGROUND], part.map, steps=16)
        for volume, part in zip(volumes, found, strict=True)
    ]
    curve = pd.DataFrame(curves).mean().round(3).to_dict()
    report(f"randomised to the stem, Spearman; on the way {curve}", abs(curve["stem"]), "<= 0.3")


def bench_memory() -> None:
    """Peak memory of the published network at the published size, in a process of its own."""
    code = (
        "import re, numpy as np; from attribution import expected_gradients; from model import build_model;"
        "scans = np.random.default_rng(0).normal(size=(3, 128, 128, 128, 1)).astype('float32');"
        "expected_gradients(build_model((128,) * 3, width=64), scans[0], scans[1:], steps=4);"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1e6)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    report("peak memory at 128x128x128, width 64", float(done.stdout.split()[-1]), "<= 2.5", unit="GB")


def _short(value):
    return np.round(np.asarray(value, float), 8 if np.max(np.abs(value)) < 1e-3 else 4).tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs"))
