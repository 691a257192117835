"""Progress: learned from time alone, each subject left out exactly, and what a drifting scanner may not change."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from config import Config
from runs.errors import InputError
from training import progress
from training.devices import Workers
from training.progress import ProgressMap, count_teachers, fit_progress
from training.stage1 import Stage1

SHAPE = (16, 20, 17)


@pytest.fixture
def brain():
    """A smooth blob, 0 outside."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij"))
    radius = np.sqrt((place**2).sum(axis=0))
    texture = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=SHAPE), 1.5)
    return np.where(radius < 0.85, 1 + 4 * texture, 0.0)


def write_scans(folder, brain, *, num_subjects=14, noise=0.02, drift=None, seed=0):
    """Two to four visits a subject; a spot fades by the subject's rate; `drift` grows by a unit a year in everybody."""
    rng = np.random.default_rng(seed)
    spot = np.zeros(SHAPE)
    spot[9:12, 8:11, 6:9] = 1.0
    spot = ndimage.gaussian_filter(spot, 0.8) * (brain != 0)
    rows = []
    for number in range(num_subjects):
        rate = rng.uniform(0.5, 1.5)
        own = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0) * (brain != 0) * 0.2
        for visit in range(int(rng.integers(2, 5))):
            time = visit * 0.5 + rng.uniform(0, 0.2)
            volume = brain + own - rate * time * spot + noise * rng.normal(size=SHAPE) * (brain != 0)
            volume = volume if drift is None else volume + time * drift
            path = folder / f"{seed}_{number}_{visit}.npy"
            np.save(path, volume.astype(np.float16))
            rows.append((f"s{number:02}", path.stem, time, path, rate))
    return pd.DataFrame(rows, columns=["subject", "scan", "visit_time", "cache_entry", "rate"])


def slopes_of(values, table):
    """Each subject's least-squares slope, by its id's order, (S,)."""
    rows = table.assign(value=values).groupby("subject")
    return np.array([np.polyfit(visits["visit_time"], visits["value"], 1)[0] for _, visits in rows])


def rates_of(table):
    return table.groupby("subject")["rate"].first().to_numpy()


def left_out_of(table):
    return fit_progress(table).left_out_of(table)


def less_mean_of_subject(values, table):
    return progress._less_mean_of_subject(np.asarray(values)[:, None], pd.factorize(table["subject"])[0])[:, 0]


def test_progress_of_new_subjects_grows_by_their_rate(tmp_path, brain):
    learned = fit_progress(write_scans(tmp_path, brain, num_subjects=40))
    new = write_scans(tmp_path, brain, num_subjects=30, seed=1)
    slopes = slopes_of(learned(new["cache_entry"]), new)
    assert np.corrcoef(slopes, rates_of(new))[0, 1] > 0.9
    assert 0.8 < slopes.mean() / new["rate"].mean() < 1.2
    assert learned.error < 0.3


def test_each_subject_is_left_out_exactly(tmp_path, brain, monkeypatch):
    """The closed form against a map learned from the others, with the same penalty and the same nuisance fields."""
    table = write_scans(tmp_path, brain, num_subjects=6)
    monkeypatch.setattr(progress, "PENALTIES", np.array([0.1]))
    grid, volumes = progress.CoarseGrid(SHAPE), [np.load(entry).astype(float) for entry in table["cache_entry"]]
    voxels = np.stack([grid.of_volume(volume) for volume in volumes])
    share = np.mean([grid.of_volume(volume != 0) for volume in volumes], axis=0)
    fields = progress._nuisance_fields(voxels.mean(axis=0).reshape(grid.shape), share.reshape(grid.shape))
    voxels -= (voxels @ fields) @ fields.T
    codes = pd.factorize(table["subject"])[0]
    centred = progress._less_mean_of_subject(voxels, codes)
    target = less_mean_of_subject(table["visit_time"], table)
    penalty = 0.1 * np.trace(centred @ centred.T) / len(centred)
    expected = np.empty(len(table))
    for code in range(codes.max() + 1):
        others = codes != code
        kernel = centred[others] @ centred[others].T
        dual = np.linalg.solve(kernel + penalty * np.eye(others.sum()), target[others])
        expected[~others] = voxels[~others] @ (centred[others].T @ dual)
    np.testing.assert_allclose(left_out_of(table), expected, rtol=1e-6, atol=1e-8)


def test_the_left_out_error_is_that_of_the_left_out_progress(tmp_path, brain):
    table = write_scans(tmp_path, brain)
    learned = fit_progress(table)
    target, own = (less_mean_of_subject(values, table) for values in (table["visit_time"], learned.left_out_of(table)))
    assert learned.error == pytest.approx(((target - own) ** 2).sum() / (target**2).sum(), rel=1e-6)


def test_the_map_is_linear_and_has_no_bias(tmp_path, brain):
    table = write_scans(tmp_path, brain)
    learned, pair = fit_progress(table), table["cache_entry"][:2]
    first, second = (np.load(entry).astype(np.float32) for entry in pair)
    paths = [tmp_path / f"{name}.npy" for name in ("difference", "reverse", "nothing")]
    for path, volume in zip(paths, (second - first, first - second, 0 * first), strict=True):
        np.save(path, volume)
    difference, reverse, nothing = learned(paths)
    assert difference == pytest.approx(np.diff(learned(pair))[0], abs=1e-5)
    assert reverse == pytest.approx(-difference, abs=1e-6) and nothing == 0


def test_volumes_in_memory_are_measured_as_files_are(tmp_path, brain):
    table = write_scans(tmp_path, brain, num_subjects=4)
    learned, entries = fit_progress(table), table["cache_entry"][:3]
    volumes = np.stack([np.load(entry).astype(np.float32)[..., None] for entry in entries])
    np.testing.assert_allclose(learned.of_volumes(volumes), learned(entries), atol=1e-5)
    gradient = learned.gradient(volumes)
    np.testing.assert_array_equal(gradient, np.stack([learned.weights[..., None]] * 3))


def test_the_order_of_the_scans_does_not_matter(tmp_path, brain):
    table = write_scans(tmp_path, brain)
    shuffled = table.sample(frac=1, random_state=3)
    learned, again = fit_progress(table), fit_progress(shuffled)
    np.testing.assert_allclose(again.left_out_of(table), learned.left_out_of(table), atol=1e-6)
    np.testing.assert_allclose(again.weights, learned.weights, atol=1e-6)


def drifts(brain):
    """What a scanner may do to the mean brain in a year, by name."""
    x = np.linspace(-1, 1, SHAPE[0])[:, None, None]
    return {
        "a bias field": brain * x * 0.3,
        "a quadratic bias field": brain * x**2 * 0.3,
        "a gain": brain * 0.3,
        "an offset": 0.3 * (brain != 0),
        "a shift": 0.3 * np.gradient(brain)[1],
        "a stretch": 0.3 * np.gradient(brain)[0] * x,
    }


@pytest.mark.parametrize("name", [*drifts(np.zeros(SHAPE))])
def test_a_drift_of_the_scanner_does_not_become_the_clock(tmp_path, brain, name):
    table = write_scans(tmp_path, brain, num_subjects=40, drift=drifts(brain)[name])
    slopes = slopes_of(left_out_of(table), table)
    assert np.corrcoef(slopes, rates_of(table))[0, 1] > 0.8
    assert slopes.std() > 0.1 * slopes.mean()


def test_a_saved_map_measures_the_same(tmp_path, brain):
    table = write_scans(tmp_path, brain)
    learned = fit_progress(table)
    learned.save(tmp_path / "progress.npz")
    loaded = ProgressMap.load(tmp_path / "progress.npz")
    np.testing.assert_array_equal(loaded(table["cache_entry"]), learned(table["cache_entry"]))
    np.testing.assert_array_equal(loaded.left_out_of(table), learned.left_out_of(table))
    assert (loaded.penalty, loaded.error) == (learned.penalty, learned.error)


@pytest.mark.parametrize("damage", [lambda content: content[:200], lambda content: b"", lambda content: b"x" * 300])
def test_a_damaged_map_is_refused_by_name(tmp_path, brain, damage):
    path = tmp_path / "progress.npz"
    fit_progress(write_scans(tmp_path, brain, num_subjects=3)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"progress\.npz"):
        ProgressMap.load(path)


@pytest.mark.parametrize("visits", [[1, 1, 1, 1], [3, 1, 1, 1]])
def test_without_two_subjects_of_two_visits_there_is_no_progress(tmp_path, caplog, visits):
    table = pd.DataFrame({"subject": np.repeat(["a", "b", "c", "d"], visits)})
    assert count_teachers(table) == sum(np.array(visits) > 1) < 2
    stage1 = SimpleNamespace(
        config=Config(PROGRESS="linear"), join=Workers
    )  # a real one would set TensorFlow's threads
    Stage1.learn_progress(stage1, table, tmp_path)
    assert "no progress" in caplog.text and not (tmp_path / "progress.npz").exists()
