"""Attributions against hand-worked values, naive twins, shap's own explainer and planted truth."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import explain
from attribution.evidence import localisation, smooth
from attribution.gradients import compiled
from attribution.regions import Regions
from model import STAGES, build_model
from runs.errors import InputError

# matplotlib deprecates what shap calls when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:The set_:PendingDeprecationWarning")

SHAPE = (16, 20, 17)  # even, even, odd
NUM_BACKGROUND = 5


def blob_volumes(rng, num: int):
    """Brains alike but for noise and a cube at [3:7] that is brighter by the target, the log-hazard to learn."""
    target = rng.uniform(-1, 1, num).astype(np.float32)
    brain = rng.normal(size=(16, 16, 16, 1))
    volumes = (brain + rng.normal(scale=0.2, size=(num, 16, 16, 16, 1))).astype(np.float32)
    volumes[:, 3:7, 3:7, 3:7] += target[:, None, None, None, None]
    volumes[:, :2] = 0  # outside the brain
    return volumes, target


@pytest.fixture(scope="module")
def network():
    """Random weights, with statistics of normalisation that are not the identity."""
    model = build_model(SHAPE, width=4, seed=3)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def scans():
    rng = np.random.default_rng(2)
    return rng.normal(size=(NUM_BACKGROUND + 1, *SHAPE, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def learned():
    """A network that has learned the blob, its truth, and scans that it has not seen."""
    rng = np.random.default_rng(0)
    volumes, target = blob_volumes(rng, 240)
    keras.utils.set_random_seed(0)  # of the order in training
    model = build_model((16, 16, 16), width=4, seed=0)
    model.compile(keras.optimizers.Adam(3e-3), "mse")
    model.fit(volumes[:200], target[:200], batch_size=20, epochs=8, verbose=0)
    truth = np.zeros((16, 16, 16), bool)
    truth[3:7, 3:7, 3:7] = True
    return model, truth, volumes[200:], target[200:]


def linear_model(weights):
    """f(x) = w . x, with no stem to fold."""
    volume = keras.Input((*weights.shape, 1))
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(volume, dense(keras.layers.Flatten()(volume)))
    dense.set_weights([weights.reshape(-1, 1)])
    return model


@tf.function
def traced_gradient(model, volumes):
    with tf.GradientTape() as tape:
        tape.watch(volumes)
        log_hazard = model(volumes, training=False)
    return tape.gradient(log_hazard, volumes)


def plain_gradient(model, volumes):
    return traced_gradient(model, tf.constant(volumes)).numpy()


# ---- SHAP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_linear_model_is_explained_exactly(rng, steps):
    weights = rng.normal(size=(5, 4, 3)).astype(np.float32)
    volume, background = (rng.normal(size=(*n, 5, 4, 3, 1)).astype(np.float32) for n in ((), (3,)))
    found = explain.expected_gradients(linear_model(weights), volume, background, steps=steps)
    wanted = weights * (volume - background.mean(axis=0))[..., 0]
    np.testing.assert_allclose(found.map, wanted, atol=1e-5)
    assert found.gap == pytest.approx(wanted.sum(), abs=1e-5)
    assert found.completeness_error < 1e-4


def test_equals_a_loop_over_the_definition(network, scans):
    volume, background = scans[0], scans[1:]
    row, position = explain._draw_points(NUM_BACKGROUND, 3, seed=4)
    wanted = np.zeros((*SHAPE, 1))
    for b, a in zip(background[row], position, strict=True):
        wanted += (volume - b) * plain_gradient(network, (b + a * (volume - b))[None])[0] / len(row)
    found = explain.expected_gradients(network, volume, background, steps=15, seed=4)
    assert found.num_gradients == 15
    assert np.linalg.norm(found.map - wanted[..., 0]) < 1e-4 * np.linalg.norm(wanted)
    assert found.value == pytest.approx(float(network(volume[None])[0, 0]), rel=1e-5)
    assert found.expected == pytest.approx(float(np.mean(network(background))), rel=1e-5)


def test_steps_are_rounded_up_so_that_every_background_counts_equally():
    row, position = explain._draw_points(8, 5, seed=0)
    assert np.bincount(row).tolist() == [5] * 8
    assert (np.sort(position) * 40).astype(int).tolist() == list(range(40))  # one in each fortieth of the line
    for line in range(8):
        np.testing.assert_allclose(np.diff(np.sort(position[row == line])), 1 / 5, atol=1e-6)


def test_completeness_error_vanishes_with_the_steps(learned):
    model, _, volumes, target = learned
    volume, background = volumes[target.argmax()], volumes[:8]
    few = [explain.expected_gradients(model, volume, background, steps=8, seed=seed) for seed in range(5)]
    many = explain.expected_gradients(model, volume, background, steps=800)
    assert many.completeness_error < 0.02 < np.mean([found.completeness_error for found in few])
    assert many.map.sum() == pytest.approx(many.value - many.expected, rel=0.02)


def test_a_bar_is_shown_on_request(network, scans, capsys):
    for progress in (False, True):
        explain.expected_gradients(network, scans[0], scans[1:], steps=5, progress=progress)
        assert ("SHAP" in capsys.readouterr().err) == progress


def test_the_same_seed_gives_the_same_map(network, scans):
    one, same, other = (
        explain.expected_gradients(network, scans[0], scans[1:], steps=10, seed=seed).map for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


def test_agrees_with_shap(learned):
    model, _, volumes, target = learned
    volume, background = volumes[target.argmax()], volumes[:10]
    ours = explain.expected_gradients(model, volume, background, steps=200)
    theirs = explain.shap_gradients(model, volume, background, steps=1000, seed=0)
    assert theirs.map.shape == (16, 16, 16) and theirs.map.dtype == np.float32
    assert np.corrcoef(ours.map.ravel(), theirs.map.ravel())[0, 1] > 0.98
    assert theirs.map.sum() == pytest.approx(ours.gap, rel=0.1)


def test_less_error_than_shap_with_four_times_the_gradients(rng):
    x = volume = keras.Input((5, 4, 3, 1))
    for units, activation in ((8, "tanh"), (1, None)):
        x = keras.layers.Dense(units, activation, kernel_initializer=keras.initializers.HeNormal(seed=units))(
            keras.layers.Flatten()(x)
        )
    model = keras.Model(volume, x)
    scan, background = (rng.normal(size=(*n, 5, 4, 3, 1)).astype(np.float32) for n in ((), (8,)))
    wanted = explain.expected_gradients(model, scan, background, steps=4000, seed=9).map

    def error(engine, steps):
        maps = [engine(model, scan, background, steps=steps, seed=seed).map for seed in range(5)]
        return np.mean([np.linalg.norm(found - wanted) for found in maps])

    assert error(explain.expected_gradients, 32) < error(explain.shap_gradients, 128)


def test_one_background_has_no_stability(network, scans):
    assert explain.expected_gradients(network, scans[0], scans[1:2], steps=4).stability is None
    assert explain.expected_gradients(network, scans[0], scans[1:3], steps=4).stability is not None


def test_completeness_error_of_no_gap(network, scans):
    found = explain.expected_gradients(network, scans[0], scans[:1], steps=2)
    assert found.gap == 0 and not found.map.any()
    assert found.completeness_error == float("inf")


# ---- The folded stem ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 20, 23), (19, 18, 16)])
def test_folded_stem_changes_neither_value_nor_gradient(rng, shape):
    model = build_model(shape, width=4, seed=1)
    volumes = rng.normal(size=(2, *shape, 1)).astype(np.float32)
    network = compiled(model)
    np.testing.assert_allclose(network.predict(volumes), model(volumes, training=False).numpy()[:, 0], rtol=2e-5)
    wanted = plain_gradient(model, volumes)
    assert np.abs(network.gradient(volumes).numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()


# ---- Grad-CAM ---------------------------------------------------------------------------------------------------


def pooling_model(weight: float):
    """f(x) = weight * mean(x), through four stages that only average."""
    x = volume = keras.Input((64, 64, 64, 1))
    for stage, pool in zip(STAGES, (4, 2, 2, 2), strict=True):
        x = keras.layers.AveragePooling3D(pool)(x)
        x = keras.layers.Activation("linear", name=stage)(x)
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(volume, dense(keras.layers.GlobalAveragePooling3D()(x)))
    dense.set_weights([np.array([[weight]], np.float32)])
    return model


@pytest.mark.parametrize("method", [explain.gradcam, explain.hirescam])
@pytest.mark.parametrize("weight", [3.0, -3.0])
def test_hand_worked_map_is_signed_and_peaks_at_the_cell(method, weight):
    volume = np.zeros((64, 64, 64, 1), np.float32)
    volume[16:24, 40:48, 8:16] = 1  # cell (2, 5, 1) of stage 2: activation 1, gradient weight / 8**3 as everywhere
    found = method(pooling_model(weight), volume, "stage2")
    # The stem looks at 2i + 1, the pool at 4i + 3, stage 2 at 8i + 7 through its convolution and 8i + 3 beside it.
    assert found[21, 45, 13] == pytest.approx(weight / 512)
    assert np.argmax(np.abs(found)) == np.ravel_multi_index((21, 45, 13), found.shape)
    assert found[25, 45, 13] == pytest.approx(weight / 512 / 2)  # half-way to the next cell
    assert np.count_nonzero(found) == 15**3


def test_cells_of_the_last_stage_sum_to_the_log_hazard(network, scans):
    activation, gradient = explain.stage_gradient(network, scans[0], "stage4")
    assert (activation * gradient).sum() == pytest.approx(float(network(scans[:1])[0, 0]), abs=1e-4)
    np.testing.assert_allclose(
        explain.gradcam(network, scans[0], "stage4"), explain.hirescam(network, scans[0], "stage4"), atol=1e-6
    )


def test_stage_gradient_by_finite_differences(network, scans):
    rest = keras.Model(network.get_layer("stage2").output, network.output)
    activation, gradient = explain.stage_gradient(network, scans[0], "stage2")
    step = 1e-3 * gradient / np.linalg.norm(gradient)
    up, down = (float(rest(activation[None] + sign * step)[0, 0]) for sign in (1, -1))
    assert (up - down) / 2e-3 == pytest.approx(np.linalg.norm(gradient), rel=2e-2)


def test_unknown_stage_lists_the_stages(network, scans):
    with pytest.raises(InputError, match=r"stage1, stage2, stage3, stage4\. Received: 'layer9'"):
        explain.gradcam(network, scans[0], "layer9")


# ---- Evidence ------------------------------------------------------------------------------------------------------


def test_finds_the_planted_blob(learned):
    model, truth, volumes, target = learned
    volume = volumes[target.argmax()]
    found = explain.expected_gradients(model, volume, volumes[:10], steps=40)
    measured = localisation(smooth(found.map, (1, 1, 1), 2.0), truth, volume[..., 0] != 0, (1, 1, 1))
    assert measured["auc"] > 0.95 and measured["enrichment"] > 10 and measured["peak_mm"] == 0
    assert found.map[truth].sum() > 0.7 * found.gap > 0  # brighter than most: it raises the log-hazard
    assert found.stability is not None and found.stability > 0.8


def test_a_randomised_network_is_told_from_the_trained_one(learned):
    model, _, volumes, target = learned
    volume, before = volumes[target.argmax()], model.get_weights()
    reference = explain.expected_gradients(model, volume, volumes[:10], steps=40).map
    curve = explain.randomisation(model, volume, volumes[:10], reference, steps=20)
    assert list(curve) == ["trained", "log_hazard", "stage4", "stage3", "stage2", "stage1", "stem"]
    assert curve["trained"] > 0.7
    assert abs(curve["stem"]) < 0.3
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_come_back_when_randomisation_is_interrupted(network, scans, monkeypatch):
    before, permute = network.get_weights(), explain._permute

    def interrupted(model, name, rng):
        permute(model, name, rng)
        raise KeyboardInterrupt

    monkeypatch.setattr(explain, "_permute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explain.randomisation(network, scans[0], scans[1:], np.ones(SHAPE), steps=2)
    assert all(np.array_equal(*pair) for pair in zip(before, network.get_weights(), strict=True))


# ---- One scan, everything --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["expected_gradients", "shap"])
def test_explain_scan_gathers_maps_and_evidence(learned, engine):
    model, truth, volumes, target = learned
    volume = volumes[target.argmin()]
    found = explain.explain_scan(
        model, volume, volumes[:4], engine=engine, steps=8, layer="stage3", truth=truth, randomisation_steps=4
    )
    assert set(found["maps"]) == set(found["origin"]) == {"shap", "gradcam", "hirescam"}
    for values in found["maps"].values():
        assert values.shape == (16, 16, 16) and values.dtype == np.float32 and np.isfinite(values).all()
    metrics = json.loads(json.dumps(found["metrics"], allow_nan=False))
    assert metrics["shap"]["log_hazard"] == pytest.approx(float(model(volume[None])[0, 0]), rel=1e-4)
    assert metrics["shap"]["log_hazard"] < metrics["shap"]["expected_log_hazard"]
    assert metrics["gradcam"]["layer"] == "stage3" and "1x1x1 cells" in found["origin"]["gradcam"]
    assert set(metrics["hirescam"]["localisation"]) == {"auc", "enrichment", "peak_mm"}
    assert set(metrics["randomisation"]) == {"trained", *explain.RANDOMISED}


def test_without_truth_nothing_is_said_of_localisation(network, scans):
    metrics = explain.explain_scan(network, scans[0], scans[1:], steps=5, randomisation_steps=0)["metrics"]
    assert "localisation" not in metrics["shap"] and "randomisation" not in metrics


def test_regions_of_a_scan_are_summed_and_put_to_the_test(learned):
    model, truth, volumes, target = learned
    regions = Regions(np.where(truth, 1, 2) * (volumes[0, ..., 0] != 0), {1: "blob", 2: "rest"})
    volume = volumes[target.argmax()]
    found = explain.explain_scan(
        model, volume, volumes[:8], steps=40, regions=regions, shapley_background=8, randomisation_steps=0
    )
    assert found["regions"] is not None
    table, metrics = found["regions"].set_index("region"), found["metrics"]["shap"]
    assert table["attribution"].sum() == pytest.approx(found["maps"]["shap"].sum(), abs=1e-5)
    assert table["shapley"].sum() == pytest.approx(metrics["log_hazard"] - metrics["expected_log_hazard"], abs=1e-4)
    assert table.index[0] == "blob" and table["shapley"].idxmax() == "blob"
    assert metrics["deletion"] <= metrics["deletion_random"] and metrics["insertion"] >= metrics["insertion_random"]


def test_the_cohorts_mean_and_where_signs_agree(learned):
    model, truth, volumes, target = learned
    regions = Regions(truth.astype(np.int16), {1: "blob"})
    high = np.flatnonzero(target > 0.4)
    explained = functools.partial(explain.explain_cohort, model, voxel_mm=(4, 4, 4), regions=regions, steps=8)
    found = explained(((str(i), volumes[i]) for i in high), volumes[:8])
    single = [smooth(explain.expected_gradients(model, volumes[i], volumes[:8], steps=8).map, (4,) * 3) for i in high]
    inside = volumes[0, ..., 0] != 0
    np.testing.assert_allclose(found["mean"][inside], np.mean(single, axis=0)[inside], atol=1e-7)
    np.testing.assert_allclose(found["consistency"][inside], np.mean(np.sign(single), axis=0)[inside], atol=1e-6)
    assert found["num_subjects"] == len(found["tables"]) == len(high) and not found["mean"][~inside].any()
    assert found["consistency"][truth].mean() > 0.8 > np.abs(found["consistency"][inside & ~truth]).mean()
    with pytest.raises(ValueError, match="at least one subject"):
        explained([], volumes[:8])


@pytest.mark.parametrize("wrong", ["volume", "background", "nobody"])
def test_volumes_of_another_shape_are_refused(network, scans, wrong):
    volume = scans[0, :-1] if wrong == "volume" else scans[0]
    background = {"volume": scans[1:], "background": scans[1:, :, 1:], "nobody": scans[:0]}[wrong]
    with pytest.raises(InputError, match=r"expected a volume \(16, 20, 17, 1\)"):
        explain.expected_gradients(network, volume, background, steps=2)


def test_spearman_is_of_ranks(learned):
    model, _, volumes, _ = learned
    reference = explain.expected_gradients(model, volumes[0], volumes[1:5], steps=4, seed=1).map
    curve = explain.randomisation(model, volumes[0], volumes[1:5], np.cbrt(reference), steps=4, seed=0)
    inside = volumes[0, ..., 0] != 0
    assert stats.spearmanr(reference[inside], np.cbrt(reference[inside])).statistic == pytest.approx(1)
    assert curve["trained"] == pytest.approx(1)
