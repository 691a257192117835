"""Where progress is read: weights times mean change, and a map learned from shuffled times beside it."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from attribution.regions import Regions
from cohort.grid import Grid
from data import Cache, Cohort
from reporting import progress_map
from reporting.progress_map import write_progress_map
from runs.files import read_json
from training.progress import fit_progress

SHAPE = (16, 20, 17)
SPOT = (slice(9, 12), slice(8, 11), slice(6, 9))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A training part of 40 subjects, whose spot fades by their rates; the truth is where the spot is."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(3)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij"))
    inside = np.sqrt((places**2).sum(axis=0)) < 0.85
    brain = inside * (1 + 4 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5))
    truth = np.zeros(SHAPE, bool)
    truth[SPOT] = True
    spot, rows = ndimage.gaussian_filter(truth.astype(float), 0.8) * inside, []
    for number in range(40):
        rate, own = rng.uniform(0.5, 1.5), 0.2 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0) * inside
        for visit in range(int(rng.integers(1, 5))):
            time = 0.5 * visit + rng.uniform(0, 0.2)
            volume = brain + own - rate * time * spot + 0.02 * rng.normal(size=SHAPE) * inside
            entry = folder / f"{number}_{visit}.npy"
            np.save(entry, volume.astype(np.float16))
            rows.append((f"s{number:02}", entry.stem, time, str(entry)))
    train = pd.DataFrame(rows, columns=["subject", "scan", "visit_time", "cache_entry"])
    grid = Grid(SHAPE, np.diag([8.0, 8, 8, 1]))
    made = Cohort({"train": train, "val": train.iloc[:0], "test": train.iloc[:0]}, Cache(grid, grid, 0), None)
    object.__setattr__(made, "truth", lambda: truth)
    return made


@pytest.fixture(scope="module")
def regions():
    labels = np.where(np.arange(SHAPE[0])[:, None, None] < 8, 1, 2) * np.ones(SHAPE, int)
    return Regions(labels, {1: "without the spot", 2: "with the spot"})


@pytest.fixture(scope="module")
def written(cohort, regions, tmp_path_factory):
    """The map of progress and the folder that tells of it."""
    folder = tmp_path_factory.mktemp("run") / "explained_progress"
    progress = fit_progress(cohort.parts["train"])
    write_progress_map(folder, cohort, progress, regions, seed=0)
    return progress, folder


def test_every_file_is_there_and_none_is_half(written):
    names = ["map.nii.gz", "map.png", "metrics.json", "regions.csv", "weights.nii.gz"]
    assert sorted(path.name for path in written[1].iterdir()) == names


def test_the_map_sums_to_the_mean_rate_by_the_weights(written, cohort):
    """The pooled slope of the training subjects' progress about their own means, scan by scan."""
    progress, folder = written
    train = cohort.parts["train"].assign(progress=progress(cohort.parts["train"]["cache_entry"]))
    by_subject = train.groupby("subject")
    t, v = (train[name] - by_subject[name].transform("mean") for name in ("visit_time", "progress"))
    values = np.asarray(nib.load(folder / "map.nii.gz").dataobj)
    assert values.sum() == pytest.approx((t * v).sum() / (t**2).sum(), rel=1e-4)
    assert read_json(folder / "metrics.json")["map"]["sum"] == pytest.approx(values.sum(), rel=1e-4)
    regions = pd.read_csv(folder / "regions.csv").set_index("region")["attribution"]
    assert regions.sum() == pytest.approx(values.sum(), rel=1e-4)
    assert regions["with the spot"] > 0.8 * regions.sum()
    np.testing.assert_allclose(np.asarray(nib.load(folder / "weights.nii.gz").dataobj), progress.weights, rtol=1e-5)


def test_the_map_finds_the_spot_and_shuffled_times_teach_nothing(written):
    evidence = read_json(written[1] / "metrics.json")
    assert evidence["weights"]["explained"] > 0.7 and evidence["shuffled"]["explained"] < 0.1
    assert abs(evidence["shuffled"]["sum"]) < 0.2 * evidence["map"]["sum"]
    assert evidence["map"]["localisation"]["auc"] > 0.95 and evidence["weights"]["localisation"]["auc"] > 0.9
    assert evidence["shuffled"]["localisation"]["auc"] < evidence["weights"]["localisation"]["auc"]
    assert evidence["map"]["outside_brain"] == 0


@pytest.mark.parametrize("seed", [0, 7])
def test_visits_are_shuffled_within_subjects(cohort, seed):
    train = cohort.parts["train"]
    shuffled = progress_map._shuffle_visits(train, np.random.default_rng(seed))
    assert shuffled["visit_time"].ne(train["visit_time"]).mean() > 0.3
    pd.testing.assert_frame_equal(shuffled.drop(columns="visit_time"), train.drop(columns="visit_time"))
    for (_, before), (_, after) in zip(train.groupby("subject"), shuffled.groupby("subject"), strict=True):
        np.testing.assert_array_equal(np.sort(after["visit_time"]), before["visit_time"])


def test_what_is_there_is_left_alone_and_what_is_half_is_made_anew(written, cohort, regions):
    progress, folder = written
    (folder / "map.png").write_text("a picture")
    write_progress_map(folder, cohort, progress, regions, seed=0)
    assert (folder / "map.png").read_text() == "a picture"
    before = (folder / "metrics.json").read_bytes()
    (folder / "metrics.json").unlink()  # the last file: the run was stopped before
    write_progress_map(folder, cohort, progress, regions, seed=0)
    assert (folder / "map.png").read_bytes()[1:4] == b"PNG" and (folder / "metrics.json").read_bytes() == before


def test_without_a_truth_nothing_is_said_of_it(cohort, regions, tmp_path):
    own = Cohort(cohort.parts, cohort.cache, None)
    write_progress_map(tmp_path / "p", own, fit_progress(cohort.parts["train"]), regions, seed=1)
    evidence = read_json(tmp_path / "p" / "metrics.json")
    assert "localisation" not in evidence["map"] and "map_localisation" not in evidence["shuffled"]
    assert evidence["change"] == {} and evidence["shuffled"]["explained"] < 0.1
