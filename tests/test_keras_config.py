"""``from_keras`` and ``to_keras`` by themselves; with Keras in tests/test_keras.py."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import read_only, same_bits, tensor

KERAS_3 = {
    "name": "batch_normalization",
    "trainable": True,
    "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None},
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 1e-3,
    "center": True,
    "scale": True,
    "beta_initializer": {"module": "keras.initializers", "class_name": "Zeros", "config": {}, "registered_name": None},
    "beta_regularizer": None,
    "synchronized": False,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
}
WEIGHTS = [
    read_only(np.array(values, np.float32))
    for values in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [0.5, 0.25, 0.125], [2.0, 3.0, 4.0])
]


def test_a_layer():
    bn = fastbn.from_keras(KERAS_3, WEIGHTS)
    assert repr(bn) == repr(fastbn.BatchNorm(3, axis=-1, eps=1e-3, momentum=1 - 0.99, correction=0))
    assert type(bn) is fastbn.BatchNorm
    assert bn.training is True
    for array, weight in zip((bn.gamma, bn.beta, bn.running_mean, bn.running_var), WEIGHTS, strict=True):
        assert same_bits(array, weight)
        assert array.flags.writeable
        assert not np.shares_memory(array, weight)


@pytest.mark.parametrize(
    ("scale", "center", "affine"), [(True, True, True), (True, False, "gamma"), (False, True, "beta"), (0, 0, False)]
)
def test_what_is_missing_is_none(rng, tmp_path, scale, center, affine):
    config = {**KERAS_3, "scale": bool(scale), "center": bool(center)}
    weights = [*WEIGHTS[:1] * scale, *WEIGHTS[1:2] * center, *WEIGHTS[2:]]
    bn = fastbn.from_keras(config, weights)
    assert bn.affine == affine
    assert (bn.gamma is None, bn.beta is None) == (not scale, not center)
    bn(tensor(rng, (6, 3)))
    bn.backward(tensor(rng, (6, 3)))
    assert (bn.dgamma is None, bn.dbeta is None) == (not scale, not center)
    bn.save(tmp_path / "layer.npz")
    assert repr(fastbn.BatchNorm.load(tmp_path / "layer.npz")) == repr(bn)
    back, arrays = fastbn.to_keras(bn)
    assert (back["scale"], back["center"]) == (config["scale"], config["center"])
    assert len(arrays) == len(weights)


@pytest.mark.parametrize("dtype", ["float32", np.dtype("float64").name])
@pytest.mark.parametrize("policy", [str, lambda name: {"class_name": "Policy", "config": {"name": name}}])
def test_dtypes(dtype, policy):
    bn = fastbn.from_keras({**KERAS_3, "dtype": policy(dtype)}, WEIGHTS)
    assert bn.dtype == bn.gamma.dtype == bn.running_var.dtype == np.dtype(dtype)


@pytest.mark.parametrize("missing", [{}, {"dtype": None}])
def test_without_a_dtype_it_is_that_of_the_weights(missing):
    assert fastbn.from_keras(missing, WEIGHTS).dtype == np.float32
    assert fastbn.from_keras(missing, [*WEIGHTS[:3], WEIGHTS[3].astype(float)]).dtype == np.float64


@pytest.mark.parametrize("axis", [[3], (3,), 3, np.int64(3)])
def test_axis(axis):
    assert fastbn.from_keras({**KERAS_3, "axis": axis}, WEIGHTS).axis == 3


def test_not_trainable_is_evaluation_mode():
    assert fastbn.from_keras({**KERAS_3, "trainable": False}, WEIGHTS).training is False


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"renorm": True}, ValueError, r"config\['renorm'\]: expected False: .* got True"),
        ({"units": 3}, ValueError, r"config: got unknown keys \['units'\], expected no others than"),
        ({"axis": [1, 2]}, ValueError, r"config\['axis'\]: expected one axis: .* several, got \[1, 2\]"),
        ({"axis": None}, TypeError, r"config\['axis'\]: expected an integer"),
        ({"epsilon": 0.0}, ValueError, "eps: expected a finite number above 0"),
        ({"epsilon": "1"}, TypeError, r"config\['epsilon'\]: expected a number"),
        ({"momentum": 1.5}, ValueError, "momentum: expected 0 to 1, got 1.5"),
        ({"scale": 1}, TypeError, r"config\['scale'\]: expected True or False"),
        ({"center": None}, TypeError, r"config\['center'\]: expected True or False"),
        ({"trainable": "yes"}, TypeError, r"config\['trainable'\]: expected True or False"),
        ({"dtype": "float16"}, TypeError, r"config\['dtype'\]: .* got float16: half precision is not built yet"),
        ({"dtype": "mixed_float16"}, TypeError, r"config\['dtype'\]: .* got str 'mixed_float16'"),
        ({"dtype": {"config": {"name": "mixed_bfloat16"}}}, TypeError, r"config\['dtype'\]: .* 'mixed_bfloat16'"),
        ({"dtype": {"config": {"mode": "int8"}}}, TypeError, r"config\['dtype'\]: expected float32 or float64, or a"),
        ({"dtype": {"class_name": "DTypePolicy"}}, TypeError, r"config\['dtype'\]: expected float32 or float64, or a"),
        ({"scale": False}, ValueError, r"weights: expected 3 arrays \(beta, moving_mean, moving_variance\), got 4"),
    ],
)
def test_refused_configs(changes, error, message):
    with pytest.raises(error, match=message):
        fastbn.from_keras({**KERAS_3, **changes}, WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ValueError, r"weights: expected 4 arrays \(gamma, beta, moving_mean, moving_variance\), got 0"),
        (None, TypeError, "weights: expected a list of arrays"),
        (np.ones((4, 3)), TypeError, "weights: expected a list of arrays"),
        ([*WEIGHTS[:3], np.ones(4)], ValueError, r"weights: moving_variance: expected shape \(3,\)"),
        ([np.ones((3, 1)), *WEIGHTS[1:]], ValueError, "weights: gamma: expected 1 dimension"),
        ([*WEIGHTS[:3], -np.ones(3, np.float32)], ValueError, "weights: moving_variance: expected no value below"),
        ([WEIGHTS[0].astype(float), *WEIGHTS[1:]], TypeError, "weights: gamma: expected dtype float32.* narrowed"),
        ([[1, 2, 3], *WEIGHTS[1:]], TypeError, "weights: gamma: expected dtype float32 or float64"),
    ],
)
def test_refused_weights(weights, error, message):
    with pytest.raises(error, match=message):
        fastbn.from_keras(KERAS_3, weights)


def test_config_must_be_a_mapping():
    with pytest.raises(TypeError, match="config: expected a mapping, got list"):
        fastbn.from_keras(list(KERAS_3), WEIGHTS)


def test_the_way_back():
    bn = fastbn.from_keras(KERAS_3, WEIGHTS)
    config, weights = fastbn.to_keras(bn)
    assert config == {name: KERAS_3[name] for name in ("axis", "momentum", "epsilon", "center", "scale")} | {
        "dtype": "float32"
    }
    for array, weight in zip(weights, WEIGHTS, strict=True):
        assert same_bits(array, weight)
    weights[0][:] = 7
    assert same_bits(bn.gamma, WEIGHTS[0])
    again = fastbn.from_keras(config, weights)
    assert repr(again) == repr(bn)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"correction": 1}, ValueError, r"bn.correction: expected 0: Keras' moving variance is biased, got 1"),
        ({"momentum": None, "correction": 0}, ValueError, "bn.momentum: expected a number: .*, got None"),
        ({"track_running_stats": False, "correction": 0}, ValueError, "bn.track_running_stats: expected True"),
    ],
)
def test_layers_that_are_none_of_keras(options, error, message):
    with pytest.raises(error, match=message):
        fastbn.to_keras(fastbn.BatchNorm(3, **options))


def test_replaced_arrays_that_do_not_fit_are_refused():
    bn = fastbn.BatchNorm(3, correction=0)
    with pytest.raises(TypeError, match="bn: expected a BatchNorm, got FrozenBatchNorm"):
        fastbn.to_keras(bn.freeze())
    bn.gamma = np.ones(3)
    with pytest.raises(TypeError, match=r"weight: expected dtype float32.* narrowed"):
        fastbn.to_keras(bn)
    bn.gamma = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"gamma: expected shape \(3,\)"):
        fastbn.to_keras(bn)


def test_a_serialised_layer():
    """As ``keras.layers.serialize`` gives it, and with the class's names of Keras 2."""
    config = {"axis": -1, "epsilon": 0.25}
    weights = [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)]
    expected = repr(fastbn.from_keras(config, weights))
    for name in ("BatchNormalization", "BatchNormalizationV1", "Custom>BatchNormalization"):
        layer = {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}
        assert repr(fastbn.from_keras(layer, weights)) == expected
    with pytest.raises(ValueError, match=r"config\['class_name'\]: expected 'BatchNormalization', got 'Dense'"):
        fastbn.from_keras({"class_name": "Dense", "config": config}, weights)
