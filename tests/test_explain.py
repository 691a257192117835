"""Attributions against hand-worked values, naive twins, shap's own explainer and planted truth."""

import functools
import json
from typing import Any

import keras
import numpy as np
import pytest
from networks import plain_gradient, random_network
from scipy import stats

import explain
from attribution.evidence import NO_GAP, Attribution, has_gap, localisation, smooth
from attribution.gradients import stage_gradient
from attribution.regions import MEASURES, Regions
from model import RESNET_STAGES, build_model
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
    return random_network(SHAPE)


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
    model.fit(volumes[:200], target[:200], batch_size=20, epochs=16, verbose=0)
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


# ---- SHAP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_linear_model_is_explained_exactly(rng, steps):
    weights = rng.normal(size=(5, 4, 3)).astype(np.float32)
    volume, background = (rng.normal(size=(*n, 5, 4, 3, 1)).astype(np.float32) for n in ((), (3,)))
    attribution = explain.expected_gradients(linear_model(weights), volume, background, num_gradients=steps, seed=0)
    expected = weights * (volume - background.mean(axis=0))[..., 0]
    np.testing.assert_allclose(attribution.map, expected, atol=1e-5)
    assert attribution.gap == pytest.approx(expected.sum(), abs=1e-5)
    assert attribution.completeness_error < 1e-4


def test_equals_a_loop_over_the_definition(network, scans):
    volume, background = scans[0], scans[1:]
    rows, alphas = explain._draw_points(NUM_BACKGROUND, 3, seed=4)
    expected = np.zeros((*SHAPE, 1))
    for other, alpha in zip(background[rows], alphas, strict=True):
        expected += (volume - other) * plain_gradient(network, (other + alpha * (volume - other))[None])[0] / len(rows)
    attribution = explain.expected_gradients(network, volume, background, num_gradients=15, seed=4)
    assert attribution.num_gradients == 15
    assert np.linalg.norm(attribution.map - expected[..., 0]) < 1e-4 * np.linalg.norm(expected)
    assert attribution.value == pytest.approx(float(network(volume[None])[0, 0]), rel=1e-5)
    assert attribution.expected == pytest.approx(float(np.mean(network(background))), rel=1e-5)


def test_steps_are_rounded_up_so_that_every_background_counts_equally():
    rows, alphas = explain._draw_points(8, 5, seed=0)
    assert np.bincount(rows).tolist() == [5] * 8
    assert (np.sort(alphas) * 40).astype(int).tolist() == list(range(40))  # one in each fortieth of the line
    for line in range(8):
        np.testing.assert_allclose(np.diff(np.sort(alphas[rows == line])), 1 / 5, atol=1e-6)


def test_completeness_error_vanishes_with_the_steps(learned):
    model, _, volumes, target = learned
    volume, background = volumes[target.argmax()], volumes[:8]
    few = [explain.expected_gradients(model, volume, background, num_gradients=8, seed=seed) for seed in range(5)]
    many = explain.expected_gradients(model, volume, background, num_gradients=800, seed=0)
    assert many.completeness_error < 0.02 < np.mean([attribution.completeness_error for attribution in few])
    assert many.map.sum() == pytest.approx(many.value - many.expected, rel=0.02)


def test_a_bar_is_shown_on_request(network, scans, capsys):
    for progress in (False, True):
        explain.expected_gradients(network, scans[0], scans[1:], num_gradients=5, seed=0, progress=progress)
        assert ("SHAP" in capsys.readouterr().err) == progress


def test_the_same_seed_gives_the_same_map(network, scans):
    first, same, other = (
        explain.expected_gradients(network, scans[0], scans[1:], num_gradients=10, seed=seed).map for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0


def test_agrees_with_shap(learned):
    model, _, volumes, target = learned
    volume, background = volumes[target.argmax()], volumes[:10]
    ours = explain.expected_gradients(model, volume, background, num_gradients=200, seed=0)
    rival = explain.shap_gradients(model, volume, background, num_gradients=1000, seed=0)
    assert rival.map.shape == (16, 16, 16) and rival.map.dtype == np.float32
    assert np.corrcoef(ours.map.ravel(), rival.map.ravel())[0, 1] > 0.98
    assert rival.map.sum() == pytest.approx(ours.gap, rel=0.1)


def test_less_error_than_shap_with_four_times_the_gradients(rng):
    x = volume = keras.Input((5, 4, 3, 1))
    for units, activation in ((8, "tanh"), (1, None)):
        x = keras.layers.Dense(units, activation, kernel_initializer=keras.initializers.HeNormal(seed=units))(
            keras.layers.Flatten()(x)
        )
    model = keras.Model(volume, x)
    scan, background = (rng.normal(size=(*n, 5, 4, 3, 1)).astype(np.float32) for n in ((), (8,)))
    exact = explain.expected_gradients(model, scan, background, num_gradients=4000, seed=9).map

    def error(engine, num_gradients):
        maps = [engine(model, scan, background, num_gradients=num_gradients, seed=seed).map for seed in range(5)]
        return np.mean([np.linalg.norm(values - exact) for values in maps])

    assert error(explain.expected_gradients, 32) < error(explain.shap_gradients, 128)


def test_one_background_has_no_stability(network, scans):
    assert explain.expected_gradients(network, scans[0], scans[1:2], num_gradients=4, seed=0).stability is None
    assert explain.expected_gradients(network, scans[0], scans[1:3], num_gradients=4, seed=0).stability is not None


@pytest.mark.parametrize("copies", [1, 3, 7])
def test_a_volume_that_is_its_background_has_nothing_to_explain(network, scans, copies):
    """A mean of equal log-hazards may differ from each of them in its last bit: no error of 100 % comes of that."""
    background = np.repeat(scans[:1], copies, axis=0)
    labels = np.ones(scans[0].shape[:3], np.int16)
    labels[:8] = 2
    space = explain.Space((1, 1, 1), labels == 2, Regions(labels, {1: "a", 2: "b"}))
    plain = settings(num_gradients=4, randomisation_gradients=0)
    explanation = explain.explain_scan(network, scans[0], background, plain, space)
    metrics = json.loads(json.dumps(explanation["metrics"]["shap"], allow_nan=False))
    assert not explanation["maps"]["shap"].any() and metrics["completeness_error"] is None
    assert metrics["why"] == NO_GAP
    assert [metrics[name] for name in MEASURES] == [None] * 4
    assert metrics["localisation"] == {"auc": 0.5, "enrichment": None, "peak_mm": None}


@pytest.mark.parametrize(
    ("value", "expected", "differs"),
    [(0.5, 0.5, False), (0.5, 0.5000001, False), (0.5, 0.501, True), (40.0, 40.0001, False), (1e-9, 0.0, False)],
)
def test_a_gap_is_more_than_rounding(value, expected, differs):
    attribution = Attribution(np.zeros((2, 2, 2)), value, expected, 0.0, None, 1)
    assert has_gap(value, expected) == differs == has_gap(expected, value)
    assert attribution.completeness_error == (pytest.approx(1.0) if differs else None)


# ---- Grad-CAM ---------------------------------------------------------------------------------------------------


def pooling_model(weight: float):
    """f(x) = weight * mean(x), through four stages that only average."""
    x = volume = keras.Input((64, 64, 64, 1))
    for stage, pool in zip(RESNET_STAGES, (4, 2, 2, 2), strict=True):
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
    values = method(pooling_model(weight), volume, "stage2")
    # The stem looks at 2i + 1, the pool at 4i + 3, stage 2 at 8i + 7 through its convolution and 8i + 3 beside it.
    assert values[21, 45, 13] == pytest.approx(weight / 512)
    assert np.argmax(np.abs(values)) == np.ravel_multi_index((21, 45, 13), values.shape)
    assert values[25, 45, 13] == pytest.approx(weight / 512 / 2)  # half-way to the next cell
    assert np.count_nonzero(values) == 15**3


def test_cells_of_the_last_stage_sum_to_the_log_hazard(network, scans):
    activation, gradient = stage_gradient(network, scans[0], "stage4")
    assert (activation * gradient).sum() == pytest.approx(float(network(scans[:1])[0, 0]), abs=1e-4)
    np.testing.assert_allclose(
        explain.gradcam(network, scans[0], "stage4"), explain.hirescam(network, scans[0], "stage4"), atol=1e-6
    )


def test_unknown_stage_lists_the_stages(network, scans):
    with pytest.raises(InputError, match=r"stage1, stage2, stage3, stage4\. Received: 'layer9'"):
        explain.gradcam(network, scans[0], "layer9")


# ---- Evidence ------------------------------------------------------------------------------------------------------


def test_finds_the_planted_blob(learned):
    model, truth, volumes, target = learned
    volume = volumes[target.argmax()]
    attribution = explain.expected_gradients(model, volume, volumes[:10], num_gradients=40, seed=0)
    measured = localisation(smooth(attribution.map, (1, 1, 1), 2.0), truth, volume[..., 0] != 0, (1, 1, 1))
    assert measured["auc"] > 0.95 and measured["enrichment"] > 10 and measured["peak_mm"] == 0
    assert attribution.map[truth].sum() > 0.7 * attribution.gap > 0  # brighter than most: it raises the log-hazard
    assert attribution.stability is not None and attribution.stability > 0.7  # the network differs by processor


def test_a_randomised_network_is_told_from_the_trained_one(learned):
    model, _, volumes, target = learned
    volume, before = volumes[target.argmax()], model.get_weights()
    reference = explain.expected_gradients(model, volume, volumes[:10], num_gradients=40, seed=0).map
    curve = explain.shap_randomisation(model, volume, volumes[:10], reference, num_gradients=20, seed=0)
    assert list(curve) == ["trained", "log_hazard", "stage4", "stage3", "stage2", "stage1", "stem"]
    assert curve["trained"] > 0.7
    assert abs(curve["stem"]) < 0.3
    for initial, final in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(initial, final)


# ---- One scan, everything --------------------------------------------------------------------------------------------


def settings(**changes: Any) -> explain.ExplainSettings:
    """The settings of `config.py`, but for a few."""
    shipped: dict[str, Any] = {"engine": "expected_gradients", "num_gradients": 128, "seed": 0}
    return explain.ExplainSettings(**(shipped | {"layer": "stage4", "hires_layer": "stage2"} | changes))


@pytest.mark.parametrize("engine", ["expected_gradients", "shap"])
def test_explain_scan_gathers_maps_and_evidence(learned, engine):
    model, truth, volumes, target = learned
    volume = volumes[target.argmin()]
    explanation = explain.explain_scan(
        model,
        volume,
        volumes[:4],
        settings(engine=engine, num_gradients=8, layer="stage3", randomisation_gradients=4),
        explain.Space((1, 1, 1), truth),
    )
    assert set(explanation["maps"]) == set(explanation["origin"]) == {"shap", "gradcam", "hirescam"}
    for values in explanation["maps"].values():
        assert values.shape == (16, 16, 16) and values.dtype == np.float32 and np.isfinite(values).all()
    metrics = json.loads(json.dumps(explanation["metrics"], allow_nan=False))
    assert metrics["shap"]["log_hazard"] == pytest.approx(float(model(volume[None])[0, 0]), rel=1e-4)
    assert metrics["shap"]["log_hazard"] < metrics["shap"]["expected_log_hazard"]
    assert metrics["gradcam"]["layer"] == "stage3" and "1x1x1 cells" in explanation["origin"]["gradcam"]
    assert set(metrics["hirescam"]["localisation"]) == {"auc", "enrichment", "peak_mm"}
    assert set(metrics["randomisation"]) == {"trained", *explain.RANDOMISED}


def test_without_truth_nothing_is_said_of_localisation(network, scans):
    plain = settings(num_gradients=5, randomisation_gradients=0)
    metrics = explain.explain_scan(network, scans[0], scans[1:], plain, explain.Space((1, 1, 1)))["metrics"]
    assert "localisation" not in metrics["shap"] and "randomisation" not in metrics


def test_regions_of_a_scan_are_summed_and_put_to_the_test(learned):
    model, truth, volumes, target = learned
    regions = Regions(np.where(truth, 1, 2) * (volumes[0, ..., 0] != 0), {1: "blob", 2: "rest"})
    volume = volumes[target.argmax()]
    explanation = explain.explain_scan(
        model,
        volume,
        volumes[:8],
        settings(num_gradients=40, shapley_background=8, randomisation_gradients=0),
        explain.Space((1, 1, 1), regions=regions),
    )
    assert explanation["regions"] is not None
    table, metrics = explanation["regions"].set_index("region"), explanation["metrics"]["shap"]
    assert table["attribution"].sum() == pytest.approx(explanation["maps"]["shap"].sum(), abs=1e-5)
    assert table["shapley"].sum() == pytest.approx(metrics["log_hazard"] - metrics["expected_log_hazard"], abs=1e-4)
    assert table.index[0] == "blob" and table["shapley"].idxmax() == "blob"
    assert metrics["deletion"] <= metrics["deletion_random"] and metrics["insertion"] >= metrics["insertion_random"]


def test_the_cohorts_mean_and_where_signs_agree(learned):
    model, truth, volumes, target = learned
    regions = Regions(truth.astype(np.int16), {1: "blob"})
    high = np.flatnonzero(target > 0.4)
    explain_cohort = functools.partial(
        explain.explain_cohort, model, voxel_mm=(4, 4, 4), regions=regions, num_gradients=8, seed=0
    )
    cohort = explain_cohort(((str(i), volumes[i]) for i in high), volumes[:8])
    maps = [
        smooth(explain.expected_gradients(model, volumes[i], volumes[:8], num_gradients=8, seed=0).map, (4,) * 3)
        for i in high
    ]
    inside = volumes[0, ..., 0] != 0
    np.testing.assert_allclose(cohort["mean"][inside], np.mean(maps, axis=0)[inside], atol=1e-7)
    np.testing.assert_allclose(cohort["consistency"][inside], np.mean(np.sign(maps), axis=0)[inside], atol=1e-6)
    assert cohort["num_subjects"] == len(cohort["tables"]) == len(high) and not cohort["mean"][~inside].any()
    assert cohort["consistency"][truth].mean() > 0.8 > np.abs(cohort["consistency"][inside & ~truth]).mean()
    with pytest.raises(ValueError, match="at least one subject"):
        explain_cohort([], volumes[:8])


@pytest.mark.parametrize(
    ("make_map", "setting"), [(explain.gradcam, "GRAD_CAM_LAYER"), (explain.hirescam, "HIRES_CAM_LAYER")]
)
@pytest.mark.parametrize("layer", ["stage5", "stem_conv"])
def test_an_unknown_layer_is_refused_under_its_settings_name(network, scans, make_map, setting, layer):
    with pytest.raises(InputError, match=f"{setting}: expected one of stage1, stage2, .* Received: '{layer}'"):
        make_map(network, scans[0], layer)


@pytest.mark.parametrize("wrong", ["volume", "background", "nobody"])
def test_volumes_of_another_shape_are_refused(network, scans, wrong):
    volume = scans[0, :-1] if wrong == "volume" else scans[0]
    background = {"volume": scans[1:], "background": scans[1:, :, 1:], "nobody": scans[:0]}[wrong]
    with pytest.raises(InputError, match=r"expected a volume \(16, 20, 17, 1\)"):
        explain.expected_gradients(network, volume, background, num_gradients=2, seed=0)


def test_spearman_is_of_ranks(learned):
    model, _, volumes, _ = learned
    reference = explain.expected_gradients(model, volumes[0], volumes[1:5], num_gradients=4, seed=1).map
    curve = explain.shap_randomisation(model, volumes[0], volumes[1:5], np.cbrt(reference), num_gradients=4, seed=0)
    inside = volumes[0, ..., 0] != 0
    assert stats.spearmanr(reference[inside], np.cbrt(reference[inside])).statistic == pytest.approx(1)
    assert curve["trained"] == pytest.approx(1)
