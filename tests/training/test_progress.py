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
from training.progress import MAP, ProgressMap, count_teachers, figures_of_progress, fit_progress
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


def test_more_teachers_make_progress_follow_the_rates_better(tmp_path, brain, caplog):
    """Whether or not they are in the training part, whose own progress can be read as before."""
    caplog.set_level("INFO")
    new, alone, beside = write_scans(tmp_path, brain, num_subjects=30, noise=1.0, seed=1), [], []
    for seed in (2, 3, 4):
        few = write_scans(tmp_path, brain, num_subjects=4, noise=1.0, seed=seed)
        others = write_scans(tmp_path, brain, num_subjects=30, noise=1.0, seed=seed + 10)
        whole = pd.concat([few, others.assign(subject="t" + others["subject"])])
        for table, correlations in ((few, alone), (whole, beside)):
            learned = fit_progress(table)
            slopes = slopes_of(learned(new["cache_entry"]), new)
            correlations.append(np.corrcoef(slopes, rates_of(new))[0, 1])
            assert np.isfinite(learned.left_out_of(few)).all()
    assert np.mean(beside) > np.mean(alone) + 0.1
    assert "from 4 subjects with two scans" in caplog.text and "from 34 subjects with two scans" in caplog.text


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
    assert (loaded.penalty, loaded.error, loaded.drift) == (learned.penalty, learned.error, learned.drift)


def test_a_map_of_before_the_drift_alarm_can_be_read(tmp_path, brain):
    learned = fit_progress(write_scans(tmp_path, brain))
    learned.save(tmp_path / MAP)
    with np.load(tmp_path / MAP) as saved:
        np.savez_compressed(tmp_path / "old.npz", **{name: saved[name] for name in saved if name != "drift"})
    (tmp_path / "old.npz").rename(tmp_path / MAP)
    assert ProgressMap.load(tmp_path / MAP).drift is None
    figures = figures_of_progress(tmp_path)
    assert figures["error"] == learned.error and figures["alarm"] is None and "earlier version" in figures["why"]


def test_the_figures_of_progress(tmp_path, brain):
    assert figures_of_progress(tmp_path)["alarm"] is None
    learned = fit_progress(write_scans(tmp_path, brain))
    learned.save(tmp_path / MAP)
    assert figures_of_progress(tmp_path) == {"error": learned.error, **learned.drift}


# ---- The second map, and the drift alarm -----------------------------------------------------------------
def fit_naively(centred, years, codes, rows, penalty):
    """Weights (V,) of a second map, learned from these rows alone; each pace from a first map without its subject."""

    def weights(rows, target):
        kernel = centred[rows] @ centred[rows].T
        return centred[rows].T @ np.linalg.solve(kernel + penalty * np.eye(rows.sum()), target[rows])

    slopes, squares, target = {}, {}, np.zeros(len(years))
    for code in np.unique(codes[rows]):
        own = codes == code
        squares[code] = years[own] @ years[own]
        seen = centred[own] @ weights(rows & ~own, years)
        slopes[code] = years[own] @ seen / squares[code] if squares[code] else 0.0
    mean = sum(slopes[code] * squares[code] for code in slopes) / sum(squares.values())
    for code, slope in slopes.items():
        target[codes == code] = slope / mean * years[codes == code]
    return weights(rows, target)


@pytest.mark.parametrize("visits", [[2, 3, 4, 2, 3, 1, 3, 4, 2], [2, 2, 2, 5]])
def test_the_second_map_leaves_each_subject_out_exactly(rng, visits):
    codes = rng.permutation(np.repeat(np.arange(len(visits)), visits))
    times = rng.uniform(0, 3, len(codes))
    voxels = rng.normal(size=(len(codes), 40)) + np.outer(times * rng.uniform(0.2, 1, len(visits))[codes], np.ones(40))
    centred = progress._less_mean_of_subject(voxels, codes)
    years = progress._less_mean_of_subject(times[:, None], codes)[:, 0]
    ridge = progress._Ridge(centred @ centred.T, years, codes)
    dual, left_out = ridge.solve_at_own_paces(0.3, voxels @ centred.T)
    penalty, all_rows = 0.3 * ridge.scale, np.ones(len(codes), bool)
    np.testing.assert_allclose(centred.T @ dual, fit_naively(centred, years, codes, all_rows, penalty), atol=1e-9)
    for code in range(len(visits)):
        own = codes == code
        expected = voxels[own] @ fit_naively(centred, years, codes, ~own, penalty)
        np.testing.assert_allclose(left_out[own], expected, atol=1e-9)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_second_map_follows_the_rates_better(tmp_path, brain, monkeypatch, seed):
    """A weak drift that no field holds; the map is learned with and without the subjects' own paces."""
    table = write_scans(
        tmp_path, brain, num_subjects=40, noise=0.2, drift=0.05 * local_drifts(brain)["a spot"], seed=seed
    )
    second = np.corrcoef(slopes_of(left_out_of(table), table), rates_of(table))[0, 1]
    monkeypatch.setattr(progress, "LEAST_AT_OWN_PACES", 41)
    first = np.corrcoef(slopes_of(left_out_of(table), table), rates_of(table))[0, 1]
    assert second > first + 0.01


def local_drifts(brain):
    """What no nuisance field holds, by name."""
    place = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    spot = np.exp(-((place[0] + 0.5) ** 2 + place[1] ** 2 + (place[2] - 0.3) ** 2) / 0.1)
    return {"a spot": brain * spot, "ripples": brain * np.sin(9 * place[1])}


@pytest.mark.parametrize("name", ["a spot", "ripples"])
@pytest.mark.parametrize(("of", "words"), [(1, "one pace"), (2, "two paces")])
def test_a_drift_that_no_field_holds_sounds_the_alarm(tmp_path, brain, caplog, name, of, words):
    """In every subject, or in every second one."""
    table = write_scans(tmp_path, brain, num_subjects=40)
    for number, (entry, years) in enumerate(zip(table["cache_entry"], table["visit_time"], strict=True)):
        if int(table["subject"][number][1:]) % of == 0:
            np.save(entry, (np.load(entry) + years * local_drifts(brain)[name]).astype(np.float16))
    drift = fit_progress(table).drift
    assert drift["alarm"] is True and words in drift["why"]
    assert [record.levelname for record in caplog.records if words in record.message] == ["WARNING"]
    if of == 2:
        sides = {int(subject[1:]) % 2 for subject in drift["smaller_group"]}
        assert len(sides) == 1 and len(drift["smaller_group"]) == 20


@pytest.mark.parametrize("seed", range(3))
def test_without_a_drift_the_alarm_does_not_sound(tmp_path, brain, seed):
    """Rates from 0.5 to 1.5 are evenly spread: few differ by more of their mean, and none come closer to two groups."""
    assert fit_progress(write_scans(tmp_path, brain, num_subjects=40, noise=0.1, seed=seed)).drift["alarm"] is not True


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
