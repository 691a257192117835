"""The network of progress: exact gradients, folds that never see their subjects, files, and what it makes of drift."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import ndimage
from volumes import options

from attribution.histories import ImageStage
from config import Config
from loss import Outcome
from runs.errors import InputError
from runs.files import ROOT
from training import progress_folds
from training.devices import Workers
from training.progress_folds import FOLDS, Lesson, ProgressSteps, fit_progress_network
from training.progress_network import RATES, ProgressNetwork, build_network, rate_loss
from training.stage1 import Stage1

SHAPE = (16, 20, 17)


def smooth(rng, sigma):
    return ndimage.gaussian_filter(rng.normal(size=SHAPE), sigma)


def write_scans(folder, *, num_subjects=30, visits=(2, 5), noise=0.02, seed=0):
    """Some visits a subject, of a brain in which a spot fades by the subject's rate."""
    rng, anatomy = np.random.default_rng(seed), np.random.default_rng(5)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij"))
    inside = np.sqrt((place**2).sum(axis=0)) < 0.85
    brain = np.where(inside, 1 + 4 * smooth(anatomy, 1.5), 0.0)
    spot = np.zeros(SHAPE)
    spot[9:12, 8:11, 6:9] = 1.0
    spot = ndimage.gaussian_filter(spot, 0.8) * inside
    rows = []
    for number in range(num_subjects):
        rate, own = rng.uniform(0.5, 1.5), 0.2 * smooth(rng, 1.0) * inside
        for visit in range(int(rng.integers(*visits))):
            time = visit * 0.5 + rng.uniform(0, 0.2)
            volume = brain + own - rate * time * spot + noise * rng.normal(size=SHAPE) * inside
            path = folder / f"{seed}_{number}_{visit}.npy"
            np.save(path, volume.astype(np.float16))
            rows.append((f"s{number:02}", path.stem, time, str(path), rate))
    return pd.DataFrame(rows, columns=["subject", "scan", "visit_time", "cache_entry", "rate"])


def slopes_of(values, table):
    rows = table.assign(value=values).groupby("subject")
    return np.array([np.polyfit(own["visit_time"], own["value"], 1)[0] for _, own in rows if len(own) > 1])


def assert_same(network, other):
    assert network.left_out == other.left_out
    for weights, expected in zip(network.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, expected)


@pytest.fixture
def short(monkeypatch):
    """Trainings of two epochs."""
    monkeypatch.setattr(progress_folds, "EPOCHS", 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def learned(table, tmp_path_factory):
    return fit_progress_network(table, options(), tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def quick(table, tmp_path_factory):
    """A training of two epochs, and its folder."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_folds, "EPOCHS", 2)
        return fit_progress_network(table, options(), folder), folder


@pytest.fixture
def folds(quick, tmp_path, short):
    """A folder with the files of all folds of `quick`."""
    return Path(shutil.copytree(quick[1], tmp_path / "backup"))


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("new"), num_subjects=20, seed=1)


@pytest.fixture
def visits(rng):
    """Subject and years of 12 scans, in disorder: one subject has one visit, one has two on the same day."""
    subject = np.array([3, 0, 1, 0, 3, 2, 0, 3, 3, 1, 4, 4], np.int32)
    years = rng.uniform(0, 3, 12)
    years[-1] = years[-2]
    return tf.constant(subject), tf.constant(years)


# ---- The loss --------------------------------------------------------------------------------------------
def naive_loss(progress, subject, years):
    total = 0.0
    for own in (subject == number for number in np.unique(subject)):
        time = years[own] - years[own].mean()
        error = progress[own] - progress[own].mean() - time
        total += error @ np.linalg.solve(np.eye(own.sum()) + RATES * np.outer(time, time), error)
    return total / len(np.unique(subject))


def test_the_loss_is_that_of_lines_with_random_slopes(visits, rng):
    subject, years = visits
    progress = rng.normal(size=12)
    expected = naive_loss(progress, subject.numpy(), years.numpy())
    assert float(rate_loss(tf.constant(progress), subject, years)) == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_loss_is_that_of_differences(visits, rng):
    subject, years = visits
    progress, step = rng.normal(size=12), 1e-3
    with tf.GradientTape() as tape:
        values = tf.constant(progress)
        tape.watch(values)
        loss = rate_loss(values, subject, years)
    gradient = tape.gradient(loss, values).numpy()
    for index, unit in enumerate(np.eye(12) * step):
        up, down = (float(rate_loss(tf.constant(progress + sign * unit), subject, years)) for sign in (1, -1))
        assert gradient[index] == pytest.approx((up - down) / (2 * step), abs=1e-9)


def test_the_loss_is_the_same_with_time_reversed_and_in_any_order(visits, rng):
    subject, years = visits
    progress, order = tf.constant(rng.normal(size=12)), rng.permutation(12)
    loss = float(rate_loss(progress, subject, years))
    assert float(rate_loss(-progress, subject, -years)) == loss
    assert float(rate_loss(progress + 7, subject, years)) == pytest.approx(loss, rel=1e-12)
    shuffled = (tf.gather(values, order) for values in (progress, subject, years))
    assert float(rate_loss(*shuffled)) == pytest.approx(loss, rel=1e-12)


def test_a_rate_of_ones_own_costs_less_than_noise():
    subject, years = tf.zeros(3, tf.int32), tf.constant([-1.0, 0.0, 1.0]) / 2**0.5
    slower, noisy = (tf.constant([-a, b, a]) / 2**0.5 for a, b in ((0.5, 0.0), (1.0, 0.5 * 3**0.5)))
    assert float(rate_loss(slower, subject, years)) < 0.2 * float(rate_loss(noisy, subject, years))
    assert float(rate_loss(years, subject, years)) == 0
    assert float(rate_loss(years[:1], subject[:1], years[:1])) == 0


# ---- Its gradient by steps ---------------------------------------------------------------------------------
def exact_steps(batch_size, workers, num_scans=11):
    """The gradient that a step over random voxels accumulates in float64, and what it is computed from."""
    rng = np.random.default_rng(2)
    voxels = rng.normal(size=(num_scans, 5, 6, 4, 1)).astype(np.float32)
    subject = np.sort(np.arange(num_scans, dtype=np.int32) % 4)
    outcome = Outcome(subject, rng.uniform(0, 2, num_scans).astype(np.float32), subject, subject > 9)
    lesson = SimpleNamespace(outcome=outcome, voxels=voxels)
    steps, total = ProgressSteps(options(batch_size=batch_size), lesson, workers, dtype="float64"), []
    steps.apply = lambda: total.extend(
        workers.strategy.reduce(tf.distribute.ReduceOp.SUM, part, axis=None).numpy() for part in steps.gradients
    )
    rows = np.arange(num_scans)[::-1].copy()
    steps.step(rows, workers.hand_out(voxels, steps.reading_order(steps.micro_batches(rows))), 0)
    return total, steps.model, voxels, outcome


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_the_gradient_is_that_of_all_scans_at_once(batch_size):
    total, model, voxels, outcome = exact_steps(batch_size, Workers())
    with tf.GradientTape() as tape:
        progress = model(voxels, training=True)[:, 0]
        loss = rate_loss(progress, tf.constant(outcome.subject), tf.cast(outcome.visit_time, tf.float64))
    for part, expected in zip(total, tape.gradient(loss, model.trainable_variables), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-9)
        assert np.abs(part).max() > 1e-6


TWO_DEVICES = f"""
import sys, tempfile
from pathlib import Path
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests" / "training")!r}, {str(ROOT)!r}]
import numpy as np
import tensorflow as tf
(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from training import progress_folds
from training.devices import Workers, join_training
from test_progress_network import exact_steps, options, write_scans
both = join_training("mirrored")
assert both.num_devices == 2
one, two = (exact_steps(3, workers)[0] for workers in (Workers(), both))
for a, b in zip(one, two, strict=True):
    np.testing.assert_allclose(b, a, atol=1e-9)
    assert np.abs(a).max() > 1e-6
progress_folds.EPOCHS = 2
folder = Path(tempfile.mkdtemp())
table = write_scans(folder, num_subjects=9)
one, two = (progress_folds.fit_progress_network(table, options(), folder / name, workers=workers)
            for name, workers in (("one", Workers()), ("two", both)))
np.testing.assert_allclose(two(table["cache_entry"]), one(table["cache_entry"]), atol=1e-4)
few = write_scans(folder, num_subjects=2, visits=(2, 3), seed=3)
assert len(progress_folds.fit_progress_network(few, options(), folder / "few", workers=both).left_out) == 4
"""


@pytest.mark.slow
def test_two_devices_are_as_one():
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


# ---- What it learns ----------------------------------------------------------------------------------------
def test_progress_of_new_subjects_grows_by_their_rate(learned, new):
    slopes = slopes_of(learned(new["cache_entry"]), new)
    rates = new.groupby("subject")["rate"].first().to_numpy()
    assert np.corrcoef(slopes, rates)[0, 1] > 0.8
    assert 0.4 < slopes.mean() / rates.mean() < 1.2
    assert 0 < learned.error < 0.7


def test_the_network_is_the_mean_of_those_of_the_folds(table, quick):
    mean, folder = quick
    lesson = Lesson.of(table, seed=options().seed, show=False)
    folds = [progress_folds.Fold.load(folder / f"progress_{fold + 1}.npz") for fold in range(FOLDS)]
    own = mean.left_out_of(table)[lesson.fold_of == 0]
    (epoch,) = [epoch for epoch in range(2) if np.allclose(own, lesson.unit * folds[0].left_out[epoch], rtol=1e-6)]
    networks = [build_network(lesson.grid.shape) for _ in folds]
    for network, fold in zip(networks, folds, strict=True):
        network.set_weights([values[epoch] for values in fold.weights])
    np.testing.assert_allclose(lesson.unit * networks[0](lesson.voxels).numpy()[lesson.fold_of == 0, 0], own, atol=1e-5)
    expected = lesson.unit * np.mean([network(lesson.voxels)[:, 0] for network in networks], axis=0)
    np.testing.assert_allclose(mean(table["cache_entry"]), expected, atol=1e-5)


def test_nobody_teaches_the_network_that_measures_them(table):
    lesson = Lesson.of(table, seed=0, show=False)
    for fold in range(FOLDS):
        taught = np.concatenate(lesson.teachers(fold))
        own = np.flatnonzero(lesson.fold_of == fold)
        assert len(own) and not set(lesson.outcome.subject[own]) & set(lesson.outcome.subject[taught])
    assert all(len(set(folds)) == 1 for _, folds in pd.Series(lesson.fold_of).groupby(lesson.outcome.subject))


def test_a_scan_is_measured_alike_in_any_company(learned, new):
    entries = new["cache_entry"].to_list()
    together = learned(entries)
    alone = [learned([entry])[0] for entry in entries[:3]]
    np.testing.assert_allclose(together[:3], alone, atol=1e-5)
    np.testing.assert_allclose(learned(entries[::-1])[::-1], together, atol=1e-5)


def test_the_order_of_the_rows_does_not_matter(table, quick, tmp_path, short):
    other = fit_progress_network(table.sample(frac=1, random_state=3), options(), tmp_path)
    assert_same(other, quick[0])


def test_another_seed_is_another_network(table, quick, tmp_path, short):
    other = fit_progress_network(table, options(seed=1), tmp_path)
    assert not np.allclose(other.left_out_of(table), quick[0].left_out_of(table), atol=1e-6)


@pytest.mark.parametrize(("visits", "num_subjects"), [((2, 3), 2), ((1, 3), 9)])
def test_few_visits_and_few_subjects(tmp_path, short, visits, num_subjects):
    table = write_scans(tmp_path, num_subjects=num_subjects, visits=visits)
    learned = fit_progress_network(table, options(), tmp_path)
    assert np.isfinite(learned.left_out_of(table)).all() and np.isfinite(learned(table["cache_entry"])).all()


def test_what_a_scanner_may_change_is_not_seen(table, learned, new):
    """More of the mean training brain is a gain of the scanner, more of where brains lie an offset."""
    trained_on, volumes = ([np.load(entry) for entry in part["cache_entry"]] for part in (table, new[:3]))
    volumes = np.stack(volumes)[..., None].astype(np.float32)
    gain, offset = np.mean(trained_on, axis=0, dtype=float), np.mean([volume != 0 for volume in trained_on], axis=0)
    before = learned.of_volumes(volumes)
    for drift in (gain, offset):
        np.testing.assert_allclose(learned.of_volumes(volumes + 0.2 * drift[..., None]), before, atol=2e-3)
    assert np.abs(learned.of_volumes(volumes + 0.2 * np.roll(gain, 3, axis=0)[..., None]) - before).min() > 0.05


# ---- How it is explained -------------------------------------------------------------------------------------
def halved(values):
    x, y, z = (-(-size // 2) for size in values.shape)
    padded = np.pad(values, [(0, size % 2) for size in values.shape])
    return padded.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))


def naive_progress(learned, volume):
    """In NumPy and float64, channel by channel."""
    kernel, bias, dense = learned.model.get_weights()
    voxels = learned.grid.of_volume(volume)
    fields = learned.nuisance.astype(float)
    voxels = halved((voxels - fields @ (voxels @ fields)).reshape(learned.grid.shape))
    channels = [
        halved(np.maximum(ndimage.correlate(voxels, kernel[..., 0, channel], mode="constant") + bias[channel], 0))
        for channel in range(len(bias))
    ]
    return float(np.stack(channels, axis=-1).ravel() @ dense[:, 0])


def test_progress_and_its_gradient_by_voxels_are_those_of_a_naive_network(learned, new, rng):
    volumes = np.stack([np.load(entry).astype(np.float32)[..., None] for entry in new["cache_entry"][4:7]])
    expected = [naive_progress(learned, volume[..., 0]) for volume in volumes]
    np.testing.assert_allclose(learned.of_volumes(volumes), expected, atol=2e-3)
    gradient = learned.gradient(volumes)[1, ..., 0].astype(float)
    volume = volumes[1, ..., 0].astype(float)
    for direction in (gradient / np.linalg.norm(gradient), rng.normal(size=SHAPE)):
        up, down = (naive_progress(learned, volume + sign * 1e-6 * direction) for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(np.vdot(gradient, direction), rel=1e-3)


def test_it_is_one_more_output_of_the_image_stage(learned, new):
    volumes = np.stack([np.load(entry) for entry in new["cache_entry"][:2]])[..., None].astype(np.float32)
    stage = ImageStage(
        ["log_hazard"], lambda volumes: volumes.mean(axis=(1, 2, 3)), lambda volumes, weights: 0 * volumes
    ).with_progress(learned.of_volumes, learned.gradient)
    assert [*stage.names] == ["log_hazard", "progress"]
    np.testing.assert_array_equal(stage.outputs(volumes)[:, 1], learned.of_volumes(volumes))
    gradient = stage.gradient_of_weighted_outputs(volumes, np.array([[1.0, 2.0], [1.0, 0.0]]))
    np.testing.assert_allclose(gradient[0], 2 * learned.gradient(volumes)[0], rtol=1e-6)
    assert not gradient[1].any()


# ---- Files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("finished", [0, 2])
def test_a_stopped_training_goes_on_to_the_same_network(table, quick, tmp_path, short, monkeypatch, finished):
    fit, trained = ProgressSteps.fit, []

    def stopping(self, fold, bar):
        trained.append(fold)
        if fold == finished and trained.count(fold) == 1:
            raise KeyboardInterrupt
        return fit(self, fold, bar)

    monkeypatch.setattr(ProgressSteps, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_progress_network(table, options(), tmp_path)
    resumed = fit_progress_network(table, options(), tmp_path)
    assert trained == [*range(finished + 1), *range(finished, FOLDS)]
    assert_same(resumed, quick[0])


@pytest.mark.parametrize("damage", [lambda content: content[:300], lambda content: b""])
def test_a_damaged_fold_is_refused_by_name(table, folds, damage):
    path = folds / "progress_2.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"progress_2\.npz: can't be read: .* Delete it"):
        fit_progress_network(table, options(), folds)


def test_a_saved_network_measures_the_same(table, learned, new, tmp_path):
    learned.save(tmp_path / "progress.npz")
    loaded = ProgressNetwork.load(tmp_path / "progress.npz")
    np.testing.assert_array_equal(loaded(new["cache_entry"]), learned(new["cache_entry"]))
    np.testing.assert_array_equal(loaded.left_out_of(table), learned.left_out_of(table))
    assert loaded.error == learned.error


@pytest.mark.parametrize("damage", [lambda content: content[:500], lambda content: b"", lambda content: b"x" * 300])
def test_a_damaged_network_is_refused_by_name(learned, tmp_path, damage):
    path = tmp_path / "progress.npz"
    learned.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"progress\.npz: expected a network of progress"):
        ProgressNetwork.load(path)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused(table, folds, value):
    path = folds / "progress_3.npz"
    fold = progress_folds.Fold.load(path)
    fold.left_out[1, 2] = value
    fold.save(path)
    with pytest.raises(InputError, match="not finite"):
        fit_progress_network(table, options(), folds)


def test_stage_1_learns_it_once(table, quick, folds, monkeypatch):
    config = Config(PROGRESS="network")
    stage1 = SimpleNamespace(config=config, join=Workers)  # a real one would set TensorFlow's threads
    Stage1.learn_progress(stage1, table, folds.parent)
    assert_same(ProgressNetwork.load(folds.parent / "progress.npz"), quick[0])
    monkeypatch.setattr(Lesson, "of", lambda *_, **__: pytest.fail("learned again"))
    Stage1.learn_progress(stage1, table, folds.parent)
