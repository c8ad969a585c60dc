"""Options of a layer that are changed later on: each is honoured, or cannot be changed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import same_bits, tensor


def trained(rng, **options):
    layer = fastbn.BatchNorm(3, **options)
    layer(tensor(rng, (8, 3), mean=2.0))
    return layer


def state_of(layer):
    return {name: value.tobytes() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["one compiled call", "the general way"])
def test_statistics_that_are_not_tracked_any_more(rng, dtype):
    """As in PyTorch, whose own tests do this: running arrays stay as they are, and evaluation goes on using them."""
    layer = trained(rng)
    x = tensor(rng, (8, 3), dtype)
    before = state_of(layer)
    layer.track_running_stats = False
    assert same_bits(layer(x), fastbn.forward(x, layer.gamma, layer.beta).out)  # the batch's statistics
    assert state_of(layer) == before
    assert layer.num_batches_tracked == 1
    running = layer.running_mean, layer.running_var
    expected = fastbn.inference(x, *running, layer.gamma, layer.beta)
    assert same_bits(layer.eval()(x), expected)
    assert same_bits(layer.freeze()(x), expected)
    assert state_of(layer) == before
    layer.track_running_stats = True
    layer.train()(x)
    assert layer.num_batches_tracked == 2
    assert state_of(layer) != before


def test_statistics_that_are_not_tracked_survive(rng, tmp_path):
    layer = trained(rng)
    layer.track_running_stats = False
    layer.save(tmp_path / "layer.npz")
    for again in (fastbn.BatchNorm.load(tmp_path / "layer.npz"), copy.deepcopy(layer)):
        assert again.track_running_stats is False
        assert state_of(again) == state_of(layer)
    fastbn.recalibrate(layer, [tensor(rng, (8, 3), mean=5.0)])  # asked for by name
    assert (layer.running_mean > 3).all()


def test_statistics_that_were_never_there():
    layer = fastbn.BatchNorm(3, track_running_stats=False)
    layer.track_running_stats = False
    with pytest.raises(ValueError, match="track_running_stats: expected False, as the layer has no running arrays"):
        layer.track_running_stats = True
    layer.running_mean, layer.running_var = np.zeros(3), np.ones(3)
    layer.track_running_stats = True
    layer(np.array([[1.0, 2, 3], [3, 4, 5]]))
    assert layer.num_batches_tracked == 1
    np.testing.assert_allclose(layer.running_mean, [0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("name", "value"), [("num_features", 4), ("affine", False), ("dtype", np.float64), ("device", "cuda")]
)
def test_options_that_cannot_be_changed(name, value):
    layer = fastbn.BatchNorm(3)
    before = getattr(layer, name)
    with pytest.raises(AttributeError, match=f"{name}: expected to be set when the layer is made, got "):
        setattr(layer, name, value)
    assert getattr(layer, name) == before
    assert copy.deepcopy(layer).num_features == 3


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("axis", 1.0, TypeError),
        ("eps", -1e-5, ValueError),
        ("eps", "1e-5", TypeError),
        ("momentum", 1.5, ValueError),
        ("correction", -1, ValueError),
        ("training", "yes", TypeError),
        ("track_running_stats", 1, TypeError),
        ("keep_for_backward", None, TypeError),
        ("nan_policy", "omit", ValueError),
    ],
)
def test_options_are_validated_at_once(rng, name, value, error):
    layer = trained(rng)
    before = getattr(layer, name)
    with pytest.raises(error, match=name):
        setattr(layer, name, value)
    assert getattr(layer, name) == before


def test_options_are_honoured(rng):
    x = tensor(rng, (8, 3, 5))
    layer = fastbn.BatchNorm(3)
    layer.eps, layer.momentum, layer.correction = 0.5, None, 0
    assert same_bits(layer(x), fastbn.forward(x, layer.gamma, layer.beta, eps=0.5).out)
    np.testing.assert_allclose(layer.running_var, x.var((0, 2)), rtol=1e-6)  # the average of one batch, biased
    layer.axis = -1
    layer(x.transpose(0, 2, 1))
    layer.nan_policy = "raise"
    with pytest.raises(ValueError, match="nan_policy='raise'"):
        layer(np.full((8, 5, 3), np.nan, np.float32))
    assert layer.num_batches_tracked == 2


KINDS = {
    "one compiled call": lambda x: x,
    "the general way": lambda x: x.repeat(2, 0)[::2],
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_keeps_no_input(rng, kind):
    layer = fastbn.BatchNorm(3).eval()
    x = KINDS[kind](tensor(rng, (8, 3, 4)))
    gone = weakref.ref(x)
    layer(x)
    del x
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match=r"backward: expected a call of forward .* keep_for_backward is True"):
        layer.backward(np.ones((8, 3, 4), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_keeps_its_input_where_asked(rng, kind):
    """For the gradients of a frozen layer."""
    layer = fastbn.BatchNorm(3).eval()
    layer.keep_for_backward = True
    x, dout = KINDS[kind](tensor(rng, (8, 3, 4))), tensor(rng, (8, 3, 4))
    layer(x)
    running = layer.running_mean, layer.running_var
    cache = fastbn.forward(x, layer.gamma, layer.beta, *running, training=False).cache
    assert same_bits(layer.backward(dout), fastbn.backward(dout, cache).dx)


def test_evaluation_drops_the_input_of_training(rng):
    """Else ``backward`` would give the gradient of another call than the last one."""
    layer = trained(rng)
    x = tensor(rng, (8, 3))
    layer.eval()(x)
    with pytest.raises(RuntimeError, match="keep_for_backward"):
        layer.backward(x)


def test_batch_statistics_are_kept_in_both_modes(rng):
    """Where there are no running statistics, evaluation is differentiated as training is."""
    layer = fastbn.BatchNorm(3, track_running_stats=False).eval()
    x, dout = tensor(rng, (8, 3)), tensor(rng, (8, 3))
    layer(x)
    cache = fastbn.forward(x, layer.gamma, layer.beta).cache
    assert same_bits(layer.backward(dout), fastbn.backward(dout, cache).dx)


COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "protocol 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
}


@pytest.mark.parametrize("duplicate", COPIES)
def test_frozen_arrays_stay_read_only(rng, duplicate):
    frozen = trained(rng).freeze()
    again = COPIES[duplicate](frozen)
    x = tensor(rng, (8, 3))
    assert same_bits(again(x), frozen(x))
    for name in ("mean", "inv_std", "gamma", "beta"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(again, name)[:] = 0
    assert same_bits(fastbn.fold.scale_shift(again)[0], fastbn.fold.scale_shift(frozen)[0])


def read_only_layer(rng):
    layer = trained(rng, correction=0)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        getattr(layer, name).flags.writeable = False
    return layer


READERS = {
    "state_dict": lambda layer, path: layer.state_dict(),
    "save": lambda layer, path: layer.save(path),
    "freeze": lambda layer, path: layer.freeze(),
    "fold": lambda layer, path: fastbn.fold.scale_shift(layer),
    "to_keras": lambda layer, path: fastbn.to_keras(layer),
    "deepcopy": lambda layer, path: copy.deepcopy(layer),
    "pickle": lambda layer, path: pickle.dumps(layer),
    "eval": lambda layer, path: layer.eval()(np.ones((4, 3), np.float32)),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_takes_read_only_arrays(rng, reader, tmp_path):
    """Memory maps, and what joblib gives to its workers."""
    READERS[reader](read_only_layer(rng), tmp_path / "layer.npz")


def test_recalibration_writes_statistics_alone(rng):
    layer = trained(rng)
    layer.gamma.flags.writeable = layer.beta.flags.writeable = False
    fastbn.recalibrate(layer, [tensor(rng, (8, 3))])
    layer.running_var.flags.writeable = False
    before = state_of(layer)
    with pytest.raises(ValueError, match="running_var: expected a writable array"):
        fastbn.recalibrate(layer, [tensor(rng, (8, 3))])
    assert state_of(layer) == before


def test_writing_needs_writable_arrays(rng):
    layer = read_only_layer(rng)
    before = state_of(layer)
    with pytest.raises(ValueError, match="gamma: expected a writable array"):
        layer.load_state_dict(layer.state_dict())
    with pytest.raises(ValueError, match="running_mean: expected a writable array"):
        layer(tensor(rng, (8, 3)))
    assert state_of(layer) == before


def test_eps_of_zero_is_for_evaluation(rng, tmp_path):
    layer = trained(rng)
    layer.eps = 0
    x = tensor(rng, (8, 3))
    expected = fastbn.inference(x, layer.running_mean, layer.running_var, layer.gamma, layer.beta, eps=0)
    layer.save(tmp_path / "layer.npz")
    for each in (layer, fastbn.BatchNorm.load(tmp_path / "layer.npz"), copy.deepcopy(layer)):
        assert each.eps == 0
        assert same_bits(each.eval()(x), expected)
        assert same_bits(each.freeze()(x), expected)
        before = state_of(each)
        with pytest.raises(ValueError, match="eps: expected a finite number above 0 in training"):
            each.train()(x)
        assert state_of(each) == before
    with pytest.raises(ValueError, match="eps: expected a finite number above 0 in training"):
        fastbn.BatchNorm(3, eps=0)
