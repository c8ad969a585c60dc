"""The functions on arrays on a device: on a GPU, or small in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from fastbn import reference
from tests.data_for_tests import channels_last, read_only, same_bits, tensor
from tests.device import POLLED, SIMULATED, Foreign, get, nan_like, needs_device, put, put_askew
from tests.tolerances import DGAMMA, DX, MEAN, OUTPUT, ULPS, VAR, ulps

pytestmark = [pytest.mark.gpu, needs_device]

DTYPES = [np.float32, np.float64]

SMALL = [
    # (shape, axis): what is cut how in the simulator is checked below
    ((2, 23), 1),
    ((16, 4), -1),
    ((40, 3), 1),
    ((301, 8), 1),
    ((5, 1), 1),
    ((3, 2, 4, 40), 1),
    ((7, 3, 37), 1),
    ((70, 4, 7, 5), 1),
    ((4, 6, 5, 7), 1),
    ((4, 6, 5, 7), -1),
    ((4, 6, 5, 7), 0),
    ((2, 5, 4, 16), 1),
    ((2, 3, 4, 5, 6), 1),
    ((3, 5, 21, 9), 1),
    ((60, 32), 1),
]

LARGE = [
    ((8, 24, 40, 40), 1),
    ((128, 512, 7, 7), 1),
    ((32, 256, 14, 14), 1),
    ((33, 70, 7, 7), 1),
    ((64, 3, 225, 225), 1),
    ((4, 64, 112, 112), 1),
    ((2000, 65), 1),
    ((65536, 64), 1),
    ((64, 60, 60, 5), -1),
    ((1, 17, 70, 61), 1),
]

SHAPES = SMALL if SIMULATED else SMALL + LARGE


def over(axis, ndim):
    return tuple(i for i in range(ndim) if i != axis % ndim)


def spread(values, axis, ndim):
    shape = [1] * ndim
    shape[axis] = -1
    return np.reshape(values, shape)


def parameters(rng, channels, dtype, *, running=True):
    above = rng.uniform(0.5, 2.0, (2, channels)).astype(dtype)
    around = rng.standard_normal((2, channels)).astype(dtype)
    return above[0], around[0], around[1], above[1]


def check_forward(out, cache, x, gamma, beta, axis, eps=1e-5):
    dtype = x.dtype.type
    expected, mean, var = reference.forward(x, gamma, beta, eps=eps, axis=axis)
    assert ulps(get(out), expected, dtype) <= ULPS[dtype]["out"]
    assert np.abs(get(cache.mean) - mean).max() <= MEAN
    np.testing.assert_allclose(get(cache.inv_std), 1 / np.sqrt(var + eps), rtol=VAR)


def check_backward(gradients, dout, x, gamma, axis):
    dtype = x.dtype.type
    dx, dgamma, dbeta = (get(each) for each in gradients)
    wanted = reference.backward(dout, x, gamma, axis=axis)
    mean, var = reference.moments(x, axis=axis)
    steepness = np.abs(np.asarray(gamma, np.float64) / np.sqrt(var + 1e-5)).max() * np.abs(dout).max()
    assert ulps(dx, wanted[0], dtype, steepness) <= ULPS[dtype]["dx"]
    terms = np.sqrt(x.size / mean.size)
    assert ulps(dgamma, wanted[1], dtype, 4 * terms) <= ULPS[dtype]["dgamma"]
    assert ulps(dbeta, wanted[2], dtype, 4 * terms) <= ULPS[dtype]["dbeta"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_training(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype, mean=1.0), tensor(rng, shape, dtype)
    gamma, beta, running_mean, running_var = parameters(rng, shape[axis], dtype)
    running = put(running_mean), put(running_var)
    place = nan_like(x)
    device_x = put(x)
    out, cache = fastbn.forward(device_x, put(gamma), put(beta), *running, momentum=0.3, axis=axis, out=place)
    assert out is place
    assert (cache.x is device_x, cache.axis, cache.training) == (True, axis % x.ndim, True)
    check_forward(out, cache, x, gamma, beta, axis)
    mean, var = reference.moments(x, axis=axis)
    count = x.size / mean.size
    wanted = reference.running(running_mean, mean, 0.3), reference.running(running_var, var * count / (count - 1), 0.3)
    for array, value in zip(running, wanted, strict=True):
        assert ulps(get(array), value, dtype) <= ULPS[dtype]["running"]

    gradients = fastbn.backward(put(dout), cache, out=nan_like(x))
    check_backward(gradients, dout, x, gamma, axis)
    assert [each.dtype for each in gradients[1:]] == [dtype, dtype]


@pytest.mark.skipif(not SIMULATED, reason="the simulator's limits")
def test_small_shapes_are_cut_in_every_way():
    from fastbn.cuda._plan import plan

    kinds = set()
    for shape, axis in SMALL:
        last = axis == -1 or len(shape) == 2
        sizes = np.prod(shape[:axis], dtype=int), shape[axis], np.prod(shape[axis + 1 :], dtype=int)
        sizes = (int(np.prod(shape)) // shape[axis], shape[axis], 1) if last else tuple(map(int, sizes))
        sizes = (1, 1, int(np.prod(shape))) if shape[axis] == 1 else sizes
        how = plan(sizes, np.dtype(np.float32), True)
        cut = how.phases
        family = "planes" if len(cut.shape) == 3 else "columns"
        kinds |= {family, f"{family} in {'one' if cut.cuts[0] == 1 else 'several'}"}
        kinds |= {"tiles"} if cut.columns[0] > 1 else set()
        kinds |= {"several columns a channel"} if cut.columns[2] > 1 else set()
        kinds |= {"fused forward"} if how.fused_forward else set()
        kinds |= {"fused backward"} if how.fused_backward else set()
        kinds |= {f"{family} forward in groups"} if how.forward.group else set()
        kinds |= {f"{family} backward in groups"} if how.backward.group else set()
        kinds |= {f"{family} of {'single' if cut.kernels.batch_stats.__name__.endswith('x1') else 'four'}"}
    assert kinds == {
        "planes",
        "planes in one",
        "planes in several",
        "planes of four",
        "planes of single",
        "columns",
        "columns in one",
        "columns in several",
        "columns of four",
        "columns of single",
        "tiles",
        "several columns a channel",
        "fused forward",
        "fused backward",
        "planes forward in groups",
        "planes backward in groups",
        "columns forward in groups",
        "columns backward in groups",
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 4, 40), 1), ((4, 6, 5, 7), 1), ((4, 6, 5, 7), -1), ((40, 3), 1)])
def test_without_parameters(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype, mean=1.0), tensor(rng, shape, dtype)
    out, cache = fastbn.forward(put(x), axis=axis)
    check_forward(out, cache, x, 1.0, 0.0, axis)
    dx, dgamma, dbeta = fastbn.backward(put(dout), cache)
    assert (dgamma, dbeta) == (None, None)
    wanted = reference.backward(dout, x, axis=axis)[0]
    assert ulps(get(dx), wanted, dtype, np.abs(dout).max() * 2) <= ULPS[dtype]["dx"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_inference(rng, shape, axis, dtype):
    x = tensor(rng, shape, dtype)
    gamma, beta, mean, var = parameters(rng, shape[axis], dtype)
    expected = reference.inference(x, mean, var, gamma, beta, axis=axis)
    place = nan_like(x)
    out = fastbn.inference(put(x), put(mean), put(var), put(gamma), put(beta), axis=axis, out=place)
    assert out is place
    assert ulps(get(out), expected, dtype) <= ULPS[dtype]["out"]
    itself = put(x)
    assert fastbn.inference(itself, put(mean), put(var), axis=axis, out=itself) is itself
    assert ulps(get(itself), reference.inference(x, mean, var, axis=axis), dtype) <= ULPS[dtype]["out"]


@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 4, 40), 1), ((4, 6, 5, 7), -1)])
def test_frozen(rng, shape, axis):
    x, dout = tensor(rng, shape), tensor(rng, shape)
    gamma, beta, mean, var = parameters(rng, shape[axis], np.float32)
    arrays = put(gamma), put(beta), put(mean), put(var)
    out, cache = fastbn.forward(put(x), *arrays, training=False, axis=axis)
    assert ulps(get(out), reference.inference(x, mean, var, gamma, beta, axis=axis), np.float32) <= 8
    assert same_bits(get(arrays[2]), mean)
    assert same_bits(get(arrays[3]), var)
    inv_std = 1 / np.sqrt(var.astype(np.float64) + 1e-5)
    dx, dgamma, dbeta = fastbn.backward(put(dout), cache)
    scale = spread(gamma * inv_std, axis, x.ndim)
    assert ulps(get(dx), scale * dout, np.float32) <= 8
    x_hat = (x.astype(np.float64) - spread(mean, axis, x.ndim)) * spread(inv_std, axis, x.ndim)
    assert np.abs(get(dgamma) - (dout * x_hat).sum(over(axis, x.ndim))).max() <= 1e-5
    assert np.abs(get(dbeta) - dout.sum(over(axis, x.ndim), dtype=np.float64)).max() <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 4, 40), 1), ((2, 5, 4, 16), 1), ((4, 6, 5, 7), -1), ((40, 3), 1)])
def test_phases_are_forward_and_backward(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype, mean=3.0), tensor(rng, shape, dtype)
    gamma, beta, *_ = parameters(rng, shape[axis], dtype)
    arrays = put(x), put(gamma), put(beta)
    moments = fastbn.moments(arrays[0], axis=axis)
    mean, inv_std = moments.mean, moments.inv_std(1e-5)
    out = fastbn.normalize(arrays[0], mean, inv_std, *arrays[1:], axis=axis, out=nan_like(x))
    sums = fastbn.backward_sums(put(dout), arrays[0], mean, inv_std, axis=axis)
    count = moments.count
    statistics = mean, inv_std, arrays[1], *sums, count
    dx = fastbn.backward_input(put(dout), arrays[0], *statistics, axis=axis, out=nan_like(x))

    assert moments.count == x.size // shape[axis]
    whole, cache = fastbn.forward(*arrays, axis=axis)
    check_forward(out, cache._replace(mean=mean, inv_std=inv_std), x, gamma, beta, axis)
    check_backward((dx, sums[1], sums[0]), dout, x, gamma, axis)
    gradients = fastbn.backward(put(dout), cache)
    assert ulps(get(out), get(whole), dtype) <= 4
    assert ulps(get(dx), get(gradients.dx), dtype) <= 4


def test_moments_merge_on_the_device(rng):
    x = tensor(rng, (12, 3, 8), np.float64, mean=5.0)
    parts = [fastbn.moments(put(part)) for part in (x[:5], x[5:])]
    merged = parts[0].merge(parts[1]).to_host()
    mean, var = reference.moments(x)
    assert merged.count == 96
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(merged.var, var, rtol=1e-13)
    nothing = fastbn.moments(put(x[:0]))
    assert (nothing.count, get(nothing.mean).any(), get(nothing.var).any()) == (0, False, False)
    assert nothing.merge(parts[0]) is parts[0]
    assert parts[0].merge(nothing) is parts[0]


CUTS = [((16, 3, 8, 16), False), ((16, 5, 8, 16), False), ((40, 3, 6, 2), False), ((16, 3, 6, 16), True)]


@pytest.mark.parametrize(("shape", "last"), CUTS)
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
def test_accuracy_does_not_depend_on_the_mean(rng, shape, last, mean):
    x, dout = tensor(rng, shape, mean=mean), tensor(rng, shape)
    x, dout = (channels_last(x), channels_last(dout)) if last else (x, dout)
    expected, means, var = reference.forward(x)
    out, cache = fastbn.forward(put(x), put(np.ones(shape[1], np.float32)), put(np.zeros(shape[1], np.float32)))
    assert np.abs(get(cache.mean) - means).max() <= MEAN
    np.testing.assert_allclose(get(cache.inv_std), 1 / np.sqrt(var + 1e-5), rtol=VAR / 2)
    assert np.abs(get(out) - expected).max() <= OUTPUT
    dx, dgamma, _ = (get(each) for each in fastbn.backward(put(dout), cache))
    wanted = reference.backward(dout, x)
    assert np.abs(dx - wanted[0]).max() <= DX
    assert np.abs(dgamma - wanted[1]).max() <= DGAMMA * np.sqrt(x.size / shape[1])


@pytest.mark.parametrize(("shape", "last"), CUTS)
@pytest.mark.parametrize("outlier", [1e4, -1e8, 1e20, 3e38])
def test_an_outlier_as_first_value_spoils_nothing(rng, shape, last, outlier):
    x = np.array(tensor(rng, shape))
    x[0, :, 0, 0] = outlier
    x = channels_last(x) if last else read_only(x)
    mean, var = reference.moments(x)
    moments = fastbn.moments(put(x)).to_host()
    deviation = np.sqrt(var)
    assert (np.abs(moments.mean - mean) / deviation).max() <= MEAN
    np.testing.assert_allclose(moments.var, var, rtol=VAR)


@pytest.mark.parametrize(("shape", "last"), CUTS)
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e20])
def test_range_of_float32(rng, shape, last, scale):
    """Their squares are not in it, but variances are float64."""
    x = np.array(tensor(rng, shape, scale=scale, mean=scale))
    x = channels_last(x) if last else read_only(x)
    dout = tensor(rng, shape, scale=scale)
    dout = channels_last(dout) if last else dout
    mean, var = reference.moments(x)
    moments = fastbn.moments(put(x))
    np.testing.assert_allclose(get(moments.mean), mean, rtol=1e-6)
    np.testing.assert_allclose(get(moments.var), var, rtol=VAR)
    inv_std = 1 / np.sqrt(var)
    sums = [get(each) for each in fastbn.backward_sums(put(dout), put(x), put(mean), put(inv_std))]
    x_hat = (x - spread(mean, 1, 4)) * spread(inv_std, 1, 4)
    size = scale * np.sqrt(x.size / shape[1])
    assert np.abs(sums[0] - dout.sum((0, 2, 3), dtype=np.float64)).max() <= DGAMMA * size
    assert np.abs(sums[1] - (dout * x_hat).sum((0, 2, 3))).max() <= DGAMMA * size


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("shape", "last"), CUTS)
def test_what_is_not_a_number_stays_in_its_channel(rng, shape, last, value):
    x = np.array(tensor(rng, shape))
    x[1, 1, 0, 1] = value
    x = channels_last(x) if last else read_only(x)
    out, cache = fastbn.forward(put(x))
    assert np.isnan(get(out)[:, 1]).all()
    assert not np.isfinite(get(cache.mean)[1])
    others = [c for c in range(shape[1]) if c != 1]
    assert np.abs(get(out)[:, others] - reference.forward(x[:, others])[0]).max() <= OUTPUT


@pytest.mark.parametrize(("shape", "last"), CUTS)
def test_constant_channels_give_exact_zeros(shape, last):
    x = np.full(shape, 0.1, np.float32)
    x = channels_last(x) if last else x
    moments = fastbn.moments(put(x))
    assert not get(moments.var).any()
    assert not get(fastbn.forward(put(x))[0]).any()


@pytest.mark.parametrize("dtype", DTYPES[:1] if SIMULATED else DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_same_bits_every_time_and_wherever_it_lies(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype), tensor(rng, shape, dtype)
    gamma, beta, *_ = parameters(rng, shape[axis], dtype)

    def bits(place):
        out, cache = fastbn.forward(place(x), put(gamma), put(beta), axis=axis)
        gradients = fastbn.backward(place(dout), cache)
        return b"".join(get(each).tobytes() for each in (out, cache.mean, cache.inv_std, *gradients))

    assert bits(put) == bits(put) == bits(put_askew)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (16, 3, 6, 16), (2, 1, 3, 4)])
def test_channels_last_by_transpose_runs_in_place(rng, shape):
    x, dout = channels_last(tensor(rng, shape, mean=2.0)), channels_last(tensor(rng, shape))
    out, cache = fastbn.forward(put(x), put(np.ones(shape[1])), put(np.zeros(shape[1])))
    strides = out.strides
    assert shape[1] == 1 or strides == x.strides
    check_forward(out, cache, x, 1.0, 0.0, 1)
    gradients = fastbn.backward(put(dout), cache)
    assert gradients.dx.strides == strides
    check_backward(gradients, dout, x, 1.0, 1)
    turned = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    assert same_bits(get(out), get(fastbn.forward(put(np.moveaxis(turned, 1, -1)), axis=-1)[0]).transpose(0, 3, 1, 2))


def test_mixed_dtypes_of_parameters(rng):
    x = tensor(rng, (6, 4, 8))
    gamma, beta, running_mean, running_var = parameters(rng, 4, np.float64)
    running = put(running_mean.astype(np.float32)), put(running_var)
    out, cache = fastbn.forward(put(x), put(gamma), put(beta.astype(np.float32)), *running)
    check_forward(out, cache, x, gamma, beta.astype(np.float32), 1)
    _, dgamma, dbeta = fastbn.backward(put(x), cache)
    assert (dgamma.dtype, dbeta.dtype) == (np.float64, np.float32)
    mean, _ = reference.moments(x)
    assert ulps(get(running[0]), reference.running(running_mean.astype(np.float32), mean, 0.1), np.float32) <= 2


@pytest.mark.parametrize("correction", [0, 1, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_running_arrays(rng, momentum, correction):
    x = tensor(rng, (6, 2, 8))
    *_, running_mean, running_var = parameters(rng, 2, np.float64)
    running = put(running_mean), put(running_var)
    fastbn.forward(put(x), None, None, *running, momentum=momentum, correction=correction)
    mean, var = reference.moments(x)
    wanted = reference.running(running_var, var * 48 / (48 - correction), momentum)
    np.testing.assert_allclose(get(running[0]), reference.running(running_mean, mean, momentum), rtol=1e-7)
    np.testing.assert_allclose(get(running[1]), wanted, rtol=VAR)


@pytest.mark.parametrize("shape", [(0, 3, 4), (4, 0, 4), (4, 3, 0)])
def test_empty(shape):
    x = put(np.empty(shape, np.float32))
    channels = shape[1]
    running = put(np.full(channels, 2.0)), put(np.full(channels, 3.0))
    parameters = put(np.ones(channels, np.float32)), put(np.zeros(channels, np.float32))
    out, cache = fastbn.forward(x, *parameters, *running)
    assert out.shape == shape
    assert (get(running[0]) == 2.0).all()
    assert (get(running[1]) == 3.0).all()
    np.testing.assert_allclose(get(cache.inv_std), np.full(channels, 1 / np.sqrt(1e-5)))
    dx, dgamma, dbeta = fastbn.backward(x, cache)
    assert dx.shape == shape
    assert not get(dgamma).any()
    assert not get(dbeta).any()
    assert fastbn.inference(x, *running).shape == shape


def test_other_libraries_arrays(rng):
    x, dout = tensor(rng, (4, 3, 8)), tensor(rng, (4, 3, 8))
    gamma, beta, mean, var = parameters(rng, 3, np.float32)
    foreign = [Foreign(put(array)) for array in (x, gamma, beta, mean, var)]
    place = Foreign(nan_like(x))
    out, cache = fastbn.forward(*foreign, out=place)
    assert (out is place, cache.x is foreign[0], cache.gamma is foreign[1]) == (True, True, True)
    check_forward(out, cache, x, gamma, beta, 1)
    given = Foreign(put(dout))
    gradients = fastbn.backward(given, cache, out=given)
    assert gradients.dx is given
    check_backward(gradients, dout, x, gamma, 1)


@pytest.mark.skipif(not SIMULATED, reason="the simulator's own threads")
def test_threads_as_the_simulator_runs_them(rng, monkeypatch):
    from numba.cuda.simulator import kernel

    x, dout = tensor(rng, (2, 3, 5, 4)), tensor(rng, (2, 3, 5, 4))
    results = []
    for manager in (kernel.BlockManager, POLLED):
        with monkeypatch.context() as patched:
            patched.setattr(kernel, "BlockManager", manager)
            out, cache = fastbn.forward(put(x))
            results.append([get(each) for each in (out, cache.mean, fastbn.backward(put(dout), cache).dx)])
    check_forward(out, cache, x, 1.0, 0.0, 1)
    assert all(map(same_bits, *results))


def test_streams(rng):
    from numba import cuda

    x = tensor(rng, (64, 3, 8))
    stream, other = cuda.stream(), cuda.stream()
    device = cuda.to_device(x, stream=stream)
    with fastbn.cuda.on_stream(other):
        out, cache = fastbn.forward(device)
        gradients = fastbn.backward(device, cache)
    other.synchronize()
    if not SIMULATED:
        assert int(out.stream) == int(other)
        assert int(cache.mean.stream) == int(other)
        assert int(fastbn.forward(Foreign(device, stream=int(stream)))[0].stream) == int(stream)
    check_forward(out, cache, x, 1.0, 0.0, 1)
    assert ulps(get(gradients.dx), reference.backward(x, x)[0], np.float32, 4.0) <= ULPS[np.float32]["dx"]


def test_streams_of_other_libraries():
    from fastbn.cuda import _driver

    class PyTorchs:
        cuda_stream = 7

    class CuPys:
        ptr = 8

    class Protocols:
        def __cuda_stream__(self):
            return 0, 9

    for stream, handle in ((PyTorchs(), 7), (CuPys(), 8), (Protocols(), 9), (5, 5)):
        with fastbn.cuda.on_stream(stream):
            assert _driver._chosen.get() == handle
        assert _driver._chosen.get() is None
    with (
        pytest.raises(TypeError, match="stream: expected a stream or its handle, got str 'a'"),
        fastbn.cuda.on_stream("a"),
    ):
        pass


def test_nothing_is_copied_to_the_host(rng, monkeypatch):
    from numba import cuda

    x = put(tensor(rng, (4, 3, 8)))
    arrays = [put(array) for array in parameters(rng, 3, np.float32)]

    def refuse(*_, **__):
        raise AssertionError("a copy, or waiting")

    with monkeypatch.context() as patched:
        patched.setattr(type(x), "copy_to_host", refuse)
        patched.setattr(type(x), "copy_to_device", refuse)
        patched.setattr(cuda, "to_device", refuse)
        patched.setattr(cuda, "synchronize", refuse)
        patched.setattr(cuda.stream if SIMULATED else type(cuda.stream()), "synchronize", refuse)
        _, cache = fastbn.forward(x, *arrays)
        fastbn.backward(x, cache)
        fastbn.inference(x, *arrays[2:])
        moments = fastbn.moments(x)
        fastbn.backward_sums(x, x, moments.mean, moments.inv_std())
