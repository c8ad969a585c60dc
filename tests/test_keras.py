"""``from_keras`` and ``to_keras`` with Keras 3, which runs on PyTorch here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastbn
from fastbn.interop import keras as interop
from tests.data_for_tests import same_bits, tensor
from tests.origins.compare import Case, Layer, difference, differences, largest_differences
from tests.origins.keras import KEPT_ARRAYS, KerasLayer, built, library, moved_over
from tests.tolerances import ORIGINS

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings(KEPT_ARRAYS)]

keras = library()
BOUNDS = ORIGINS[np.float32]  # Keras computes in float32, whatever its dtype
PARAMETERS = list(itertools.product([True, False], repeat=2))
SHAPES = [((20, 5), -1), ((20, 5), 1), ((6, 4, 3, 5), -1), ((6, 5, 4, 3), 1), ((3, 4, 2, 3, 5), -1)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "center"), PARAMETERS)
def test_ten_steps(shape, axis, dtype, scale, center):
    layer = built(shape, dtype, axis=axis, scale=scale, center=center, momentum=0.8, epsilon=0.01)
    bn = moved_over(layer)
    assert bn.dtype == dtype
    for quantity, value in largest_differences([Case(Layer(bn), KerasLayer(layer), shape)], dtype).items():
        assert value <= BOUNDS[quantity]


@pytest.mark.parametrize(("scale", "center"), PARAMETERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_way_back(rng, scale, center, dtype):
    """A layer trained here goes on there, with the same numbers."""
    bn = moved_over(built((20, 5), dtype, scale=scale, center=center))
    bn(tensor(rng, (20, 5), dtype))
    config, weights = fastbn.to_keras(bn)
    layer = keras.layers.BatchNormalization.from_config(config)
    layer.build((None, 5))
    layer.set_weights(weights)
    assert repr(moved_over(layer)) == repr(bn)
    for a, b in zip(layer.get_weights(), weights, strict=True):
        assert same_bits(a, b)
    ours, theirs = Layer(bn), KerasLayer(layer)
    x, dout = tensor(rng, (20, 5), dtype), tensor(rng, (20, 5), dtype)
    assert difference(ours.infer(x), theirs.infer(x)) <= BOUNDS["inference output"]
    (out, gradients), (their_out, their_gradients) = ours.train(x, dout), theirs.train(x, dout)
    assert difference(out, their_out) <= BOUNDS["training output"]
    assert max(differences(gradients, their_gradients)) <= BOUNDS["gradients"]
    assert max(differences(ours.running(), theirs.running())) <= BOUNDS["running statistics after ten steps"]


def test_every_key_and_default_is_known():
    layer = keras.layers.BatchNormalization()
    config = layer.get_config()
    assert config.keys() <= interop._DEFAULTS.keys() | interop._IGNORED
    for name, default in interop._DEFAULTS.items():
        assert name == "dtype" or config.get(name, default) == default  # older ones know no renorm
    layer.build((None, 3))
    assert repr(fastbn.from_keras({}, layer.get_weights())) == repr(moved_over(layer))


def test_a_layer_of_a_model(rng):
    """Frozen, with regularizers and constraints, and from a file."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.BatchNormalization(gamma_regularizer="l2", beta_constraint="non_neg", trainable=False),
        ]
    )
    layer = model.layers[0]
    layer.set_weights([rng.uniform(0.5, 2.0, 3).astype(np.float32) for _ in range(4)])
    bn = moved_over(layer)
    x = tensor(rng, (2, 4, 4, 3))
    assert bn.training is False
    for training in (False, True):  # it is not trainable
        assert difference(bn(x), layer(x, training=training).detach().numpy()) <= BOUNDS["inference output"]


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_half_precision_is_refused(policy):
    layer = keras.layers.BatchNormalization(dtype=policy)
    layer.build((None, 3))
    with pytest.raises(TypeError, match="expected dtype float32 or float64, got"):
        moved_over(layer)


@pytest.mark.skipif("renorm" not in keras.layers.BatchNormalization().get_config(), reason="an older Keras")
def test_renormalization_is_refused():
    layer = keras.layers.BatchNormalization(renorm=True)
    layer.build((None, 3))
    with pytest.raises(ValueError, match=r"config\['renorm'\]: expected False"):
        moved_over(layer)


def test_a_layer_that_is_not_built_is_refused():
    layer = keras.layers.BatchNormalization()
    with pytest.raises(ValueError, match=r"weights: expected 4 arrays .* got 0"):
        moved_over(layer)


def test_keras_computes_float64_in_float32(rng):
    """Why its float64 gets the bounds of float32: it is Keras that is off."""
    layer = built((20, 5), np.float64)
    x = tensor(rng, (20, 5), np.float64)
    exact = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * layer.get_weights()[0] + layer.get_weights()[1]
    ours = moved_over(layer)(x)
    assert difference(ours, exact) < 1e-15 < 1e-8 < difference(layer(x, training=True).detach().numpy(), exact)


def test_data_far_from_zero(rng):
    """Keras' variance is ``E[x**2] - E[x]**2``: at mean 1000 and deviation 1, float32 leaves it one digit."""
    layer = built((100, 5), np.float32, momentum=0.0)
    bn = moved_over(layer)
    x = tensor(rng, (100, 5), mean=1000.0)
    layer(x, training=True), bn(x)
    exact = x.astype(np.float64).var(0)
    assert difference(bn.running_var, exact) < 1e-6 < 1e-3 < difference(layer.get_weights()[3], exact)
