"""Layers whose state is on a device."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import same_bits, tensor
from tests.device import Foreign, get, needs_device, put
from tests.tolerances import OUTPUT, ULPS, ulps

pytestmark = [pytest.mark.gpu, needs_device]


def layers(channels, **options):
    """The same layer on the device and on the host."""
    here = fastbn.BatchNorm2d(channels, **options)
    here.load_state_dict({name: value + 0.5 if value.ndim else value for name, value in here.state_dict().items()})
    there = fastbn.BatchNorm2d(channels, device="cuda", **options)
    there.load_state_dict(here.state_dict())
    return there, here


def close_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert isinstance(a[name], np.ndarray)
        assert a[name].dtype == b[name].dtype
        assert ulps(a[name], b[name], np.float32) <= ULPS[np.float32]["running"], name


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"affine": "beta", "correction": 0}])
def test_as_on_the_host(rng, options):
    there, here = layers(3, **options)
    for _ in range(3):
        x, dout = tensor(rng, (4, 3, 5, 4), mean=2.0), tensor(rng, (4, 3, 5, 4))
        assert np.abs(get(there(put(x))) - here(x)).max() <= OUTPUT
        assert np.abs(get(there.backward(put(dout))) - here.backward(dout)).max() <= OUTPUT
        for name in ("dgamma", "dbeta"):
            a, b = getattr(there, name), getattr(here, name)
            assert (a is None) == (b is None)
            assert a is None or np.abs(get(a) - b).max() <= 1e-5
    close_states(there.state_dict(), here.state_dict())
    assert there.num_batches_tracked == 3
    there.eval(), here.eval()
    there.keep_for_backward = here.keep_for_backward = True
    assert np.abs(get(there(put(x))) - here(x)).max() <= OUTPUT
    assert np.abs(get(there.backward(put(dout))) - here.backward(dout)).max() <= OUTPUT
    assert there.num_batches_tracked == 3


def test_without_running_statistics(rng):
    there, here = layers(3, track_running_stats=False)
    x = tensor(rng, (4, 3, 5, 4))
    for layer in (there, here):
        layer.eval()
    assert np.abs(get(there(put(x))) - here(x)).max() <= OUTPUT
    assert there.num_batches_tracked is None


def test_state_is_on_the_device(rng):
    layer = fastbn.BatchNorm(3, device="cuda", dtype=np.float64)
    for name, value in (("gamma", 1), ("beta", 0), ("running_mean", 0), ("running_var", 1)):
        array = getattr(layer, name)
        assert not isinstance(array, np.ndarray)
        assert same_bits(get(array), np.full(3, value, np.float64))
    assert "device='cuda'" in repr(layer)
    assert "device" not in repr(fastbn.BatchNorm(3))
    kept = layer.running_mean
    layer(put(tensor(rng, (8, 3))))
    assert layer.running_mean is kept
    assert get(kept).any()


def test_an_empty_batch_does_not_count():
    layer = fastbn.BatchNorm(3, device="cuda")
    layer(put(np.empty((0, 3), np.float32)))
    assert layer.num_batches_tracked == 0


def test_refused_batches_leave_the_state_alone(rng):
    layer = fastbn.BatchNorm2d(3, device="cuda")
    for wrong in (tensor(rng, (1, 3, 1, 1)), tensor(rng, (4, 2, 5, 4)), tensor(rng, (4, 3, 5))):
        before = layer.state_dict()
        with pytest.raises(ValueError, match="x: expected"):
            layer(put(wrong))
        close_states(layer.state_dict(), before)
    with pytest.raises(ValueError, match="x: expected 4 dimensions, got 2"):
        layer(Foreign(put(tensor(rng, (4, 3)))))


def test_files_copies_and_pickles(rng, tmp_path):
    there, _ = layers(3)
    x = tensor(rng, (4, 3, 5, 4))
    there(put(x))
    there.save(tmp_path / "layer.npz")
    loaded = fastbn.BatchNorm2d.load(tmp_path / "layer.npz")
    again = fastbn.BatchNorm2d.load(tmp_path / "layer.npz", device="cuda")
    assert (loaded.device, again.device) == ("cpu", "cuda")
    for other in (loaded, again, copy.deepcopy(there), pickle.loads(pickle.dumps(there))):
        close_states(other.state_dict(), there.state_dict())
        assert other.num_batches_tracked == 1
    twin = copy.deepcopy(there)
    twin(put(x))
    assert not same_bits(get(twin.running_mean), get(there.running_mean))


def test_replaced_arrays(rng):
    layer = fastbn.BatchNorm(3, device="cuda")
    layer.gamma = Foreign(put(np.array([1.0, 2.0, 3.0], np.float32)))
    assert layer.state_dict()["weight"].tolist() == [1.0, 2.0, 3.0]


def test_wrong_places(rng):
    there, here = layers(3)
    x = tensor(rng, (4, 3, 5, 4))
    with pytest.raises(TypeError, match=r"gamma: expected an array in host memory"):
        there(x)
    with pytest.raises(TypeError, match=r"gamma: expected an array on the device, got ndarray: .*to_device\(gamma\)"):
        here(put(x))
    with pytest.raises(ValueError, match=r"device: expected 'cuda', as x is on a device, got 'cpu'"):
        fastbn.BatchNorm(3, nan_policy="raise")(put(x))
    with pytest.raises(ValueError, match=r"nan_policy: expected 'propagate' with device='cuda', got 'raise'"):
        fastbn.BatchNorm(3, nan_policy="raise", device="cuda")
    with pytest.raises(ValueError, match=r"device: expected one of \('cpu', 'cuda'\), got 'tpu'"):
        fastbn.BatchNorm(3, device="tpu")
    with pytest.raises(ValueError, match=r"device: expected 'cpu', where frozen layers are, got 'cuda'"):
        there.freeze()
