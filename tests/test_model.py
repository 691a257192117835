import pickle

import h5py
import numpy as np
import pytest

from model import RESNET_STAGES, build_model, feature_model
from runs.errors import InputError
from training.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def model():
    return build_model((24, 16, 20), width=4, seed=1)


def test_the_published_parameter_count():
    """33,170,113 at width 64 with batch normalisation, less the output's bias."""
    assert build_model((32, 32, 32), width=64).count_params() == 33_170_113 - 1


def test_layers_have_the_same_names_however_often_it_is_built(model):
    again = build_model((24, 16, 20), width=4)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    for name in ("stem", *RESNET_STAGES, "stage1_block1_conv1", "stage4_block2_conv2", "features", "log_hazard"):
        assert model.get_layer(name).name == name


def test_shapes(model, rng):
    volumes = rng.normal(size=(3, 24, 16, 20, 1)).astype(np.float32)
    features, log_hazard = feature_model(model)(volumes)
    assert features.shape == (3, 32) and log_hazard.shape == (3, 1)
    assert model.get_layer("stage1").output.shape == (None, 6, 4, 5, 4)
    assert model.get_layer("stage4").output.shape == (None, 1, 1, 1, 32)
    np.testing.assert_allclose(model(volumes), features @ model.get_layer("log_hazard").get_weights()[0], atol=1e-6)


def test_the_seed_is_the_weights():
    weights = [build_model((16, 16, 16), width=4, seed=seed).get_weights() for seed in (1, 1, 2)]
    assert all((a == b).all() for a, b in zip(weights[0], weights[1], strict=True))
    assert any((a != b).any() for a, b in zip(weights[0], weights[2], strict=True))


def test_two_layers_of_one_shape_begin_differently(model):
    one, other = (model.get_layer(f"stage1_block{block}_conv2").get_weights()[0] for block in (1, 2))
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_volume_alone_gets_the_risk_it_gets_in_a_batch(norm, rng):
    model = build_model((16, 16, 16), width=8, norm=norm)
    volumes = rng.normal(size=(4, 16, 16, 16, 1)).astype(np.float32)
    np.testing.assert_allclose(model(volumes)[:1], model(volumes[:1]), atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_of_the_convolutions_alone(precision, rng):
    """Same weights, same risks to half precision; features and risks themselves in float32."""
    half, single = (build_model((16, 16, 16), width=8, seed=1, precision=name) for name in (precision, "float32"))
    assert half.get_layer("stage2").output.dtype == precision.removeprefix("mixed_")
    assert {variable.dtype for variable in half.trainable_variables} == {"float32"}
    volumes = rng.normal(size=(4, 16, 16, 16, 1)).astype(np.float32)
    for found, expected in zip(feature_model(half)(volumes), feature_model(single)(volumes), strict=True):
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
        assert np.abs(found - expected).max() > 0


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="one of float32, mixed_bfloat16"):
        build_model((16, 16, 16), precision="float8")
    with pytest.raises(ValueError, match="'batch' or 'group'"):
        build_model((16, 16, 16), norm="layer")
    with pytest.raises(ValueError, match="at least 16 voxels"):
        build_model((16, 8, 16))


def spoil_nan(path):
    with h5py.File(path, "r+") as file:
        file["layers/dense/vars/0"][0] = np.nan


def spoil_bomb(path):
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars"].create_dataset("0", (10**9, 10**4), np.float64, chunks=(1000, 1000))


def spoil_missing(path):
    with h5py.File(path, "r+") as file:
        del file["layers/dense"]


SPOILT = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"weights": [1.0]})),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:9000]),
    "without its tables": lambda path: path.write_bytes(path.read_bytes()[:2000] + bytes(60_000)),
    "NaN": spoil_nan,
    "a bomb": spoil_bomb,
    "without a layer": spoil_missing,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_weights_that_are_damaged_are_refused_by_name(tmp_path, kind):
    network = build_model((16, 16, 16), width=4)
    path = tmp_path / "best.weights.h5"
    network.save_weights(path)
    load_weights(network, path)
    SPOILT[kind](path)
    with pytest.raises(InputError, match=r"best\.weights\.h5: expected the weights of this network, can't read them"):
        load_weights(network, path)


def test_weights_of_another_width_are_refused(tmp_path):
    build_model((16, 16, 16), width=8).save_weights(tmp_path / "best.weights.h5")
    with pytest.raises(InputError, match="the weights of this network"):
        load_weights(build_model((16, 16, 16), width=4), tmp_path / "best.weights.h5")


def test_the_weights_are_saved_without_the_optimiser(tmp_path):
    network = build_model((16, 16, 16), width=4)
    network.compile(optimizer="adam")
    network.optimizer.build(network.trainable_variables)
    save_weights(network, tmp_path / "best.weights.h5")
    sizes = []
    with h5py.File(tmp_path / "best.weights.h5") as file:
        file.visititems(lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
    states = sum(layer.seed_generator.state.shape[0] for layer in network.layers if hasattr(layer, "seed_generator"))
    assert sum(sizes) == network.count_params() + states
    other = build_model((16, 16, 16), width=4, seed=1)
    load_weights(other, tmp_path / "best.weights.h5")
    assert all((a == b).all() for a, b in zip(other.get_weights(), network.get_weights(), strict=True))
