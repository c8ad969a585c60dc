from __future__ import annotations

import subprocess
import sys
import warnings

import numba
import numpy as np
import pytest

import fastbn
from fastbn import reference
from tests.data_for_tests import LARGE_SHAPES, SHAPES, channels_last, nan_like, read_only, same_bits, tensor
from tests.tolerances import CENTRAL_DIFFERENCE, ULPS, ulps

ALL_SHAPES = SHAPES + [pytest.param(*case, marks=pytest.mark.large) for case in LARGE_SHAPES]
DTYPES = [np.float32, np.float64]


def parameters(rng, channels, dtype):
    return tuple(read_only(rng.standard_normal(channels).astype(dtype)) for _ in range(2))


def column(values, axis, ndim):
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), ALL_SHAPES)
def test_training_agrees_with_the_reference(rng, shape, axis, dtype):
    x = tensor(rng, shape, dtype, mean=3.0, scale=2.0)
    channels, m = shape[axis], x.size // shape[axis]
    gamma, beta = parameters(rng, channels, dtype)
    running_mean, running_var = np.ones(channels, dtype), np.full(channels, 2.0, dtype)
    buffer = nan_like(x)
    out, cache = fastbn.forward(
        x, gamma, beta, running_mean, running_var, momentum=0.3, eps=1e-3, axis=axis, out=buffer
    )
    expected, mean, var = reference.forward(x, gamma, beta, eps=1e-3, axis=axis)
    assert out is buffer
    reach = np.abs(expected - column(beta, axis, x.ndim)).max() + np.abs(beta).max()
    assert ulps(out, expected, dtype, reach) < ULPS[dtype]["out"]
    assert ulps(running_mean, reference.running(1.0, mean, 0.3), dtype) < ULPS[dtype]["running"]
    assert ulps(running_var, reference.running(2.0, var * m / (m - 1), 0.3), dtype) < ULPS[dtype]["running"]
    assert cache.x is x
    assert cache.gamma is gamma
    assert cache.axis == axis % x.ndim
    assert cache.training is True
    assert cache.mean.dtype == cache.inv_std.dtype == np.float64
    np.testing.assert_allclose(cache.mean, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cache.inv_std, 1 / np.sqrt(var + 1e-3), rtol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), ALL_SHAPES)
def test_gradients_agree_with_the_reference(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype, mean=3.0), tensor(rng, shape, dtype, mean=0.5)
    gamma, beta = parameters(rng, shape[axis], dtype)
    _, cache = fastbn.forward(x, gamma, beta, axis=axis)
    buffer = nan_like(x)
    dx, dgamma, dbeta = fastbn.backward(dout, cache, out=buffer)
    expected = reference.backward(dout, x, gamma, axis=axis)
    assert dx is buffer
    inv_std = np.sqrt(1 / (reference.moments(x, axis=axis)[1] + 1e-5))
    reach = column(np.abs(gamma) * inv_std, axis, x.ndim) * (np.abs(dout).max() + 1) * 2
    assert ulps(dx, expected[0], dtype, reach) < ULPS[dtype]["dx"]
    m = x.size // shape[axis]
    reach = np.abs(dout).max() * np.sqrt(m) * 3
    assert ulps(dgamma, expected[1], dtype, reach) < ULPS[dtype]["dgamma"]
    assert ulps(dbeta, expected[2], dtype, reach) < ULPS[dtype]["dbeta"]
    assert dgamma.dtype == dbeta.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), ALL_SHAPES)
def test_inference_agrees_with_the_reference(rng, shape, axis, dtype):
    x = tensor(rng, shape, dtype)
    channels = shape[axis]
    gamma, beta = parameters(rng, channels, dtype)
    mean, var = read_only(rng.standard_normal(channels)), read_only(rng.uniform(0.5, 2.0, channels))
    buffer = nan_like(x)
    out = fastbn.inference(x, mean, var, gamma, beta, axis=axis, out=buffer)
    expected = reference.inference(x, mean, var, gamma, beta, axis=axis)
    assert out is buffer
    assert ulps(out, expected, dtype, 20.0) < ULPS[dtype]["out"]
    again, cache = fastbn.forward(x, gamma, beta, mean, var, training=False, axis=axis)
    assert same_bits(again, out)
    assert cache.training is False

    dout = tensor(rng, shape, dtype)
    dx, dgamma, dbeta = fastbn.backward(dout, cache)
    scale = column(gamma / np.sqrt(var + 1e-5), axis, x.ndim)
    assert ulps(dx, dout * scale, dtype) < ULPS[dtype]["dx"]
    x_hat = reference.inference(x, mean, var, axis=axis)
    over = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    reach = 16 * np.sqrt(x.size / channels)
    assert ulps(dgamma, (dout * x_hat).sum(over), dtype, reach) < ULPS[dtype]["dgamma"]
    assert ulps(dbeta, dout.sum(over, dtype=np.float64), dtype, reach) < ULPS[dtype]["dbeta"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), ALL_SHAPES)
def test_split_phases_give_the_bits_of_the_fused_calls(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype, mean=-2.0), tensor(rng, shape, dtype)
    gamma, beta = parameters(rng, shape[axis], dtype)
    out, cache = fastbn.forward(x, gamma, beta, axis=axis)
    dx, dgamma, dbeta = fastbn.backward(dout, cache)

    moments = fastbn.moments(x, axis=axis)
    inv_std = 1 / np.sqrt(moments.var + 1e-5)
    assert same_bits(moments.mean, cache.mean)
    assert same_bits(inv_std, cache.inv_std)
    assert same_bits(fastbn.normalize(x, moments.mean, inv_std, gamma, beta, axis=axis), out)
    sum_dout, sum_dout_xhat = fastbn.backward_sums(dout, x, moments.mean, inv_std, axis=axis)
    assert same_bits(sum_dout.astype(dtype), dbeta)
    assert same_bits(sum_dout_xhat.astype(dtype), dgamma)
    phased = fastbn.backward_input(
        dout, x, moments.mean, inv_std, gamma, sum_dout, sum_dout_xhat, moments.count, axis=axis
    )
    assert same_bits(phased, dx)


def everything(x, dout, gamma, beta, axis):
    """All that training and inference compute, as one tuple of arrays."""
    running = [np.zeros(gamma.size), np.ones(gamma.size)]
    out, cache = fastbn.forward(x, gamma, beta, *running, axis=axis)
    gradients = fastbn.backward(dout, cache)
    return out, cache.mean, cache.inv_std, *gradients, *running, fastbn.inference(x, *running, gamma, beta, axis=axis)


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), LARGE_SHAPES)
def test_same_bits_for_any_number_of_threads_and_twice(rng, shape, axis, dtype):
    x, dout = tensor(rng, shape, dtype, mean=7.0), tensor(rng, shape, dtype)
    gamma, beta = parameters(rng, shape[axis], dtype)
    first = everything(x, dout, gamma, beta, axis)
    second = everything(x, dout, gamma, beta, axis)
    numba.set_num_threads(1)
    alone = everything(x, dout, gamma, beta, axis)
    for a, b, c in zip(first, second, alone, strict=True):
        assert same_bits(a, b)
        assert same_bits(a, c)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_parameters(rng, dtype):
    x, dout = tensor(rng, (6, 5, 4), dtype), tensor(rng, (6, 5, 4), dtype)
    out, cache = fastbn.forward(x)
    dx, dgamma, dbeta = fastbn.backward(dout, cache)
    assert dgamma is None
    assert dbeta is None
    ones, zeros = np.ones(5, dtype), np.zeros(5, dtype)
    with_ones, cache = fastbn.forward(x, ones, zeros)
    assert same_bits(out, with_ones)
    assert same_bits(dx, fastbn.backward(dout, cache).dx)
    _, cache = fastbn.forward(x, ones)
    assert fastbn.backward(dout, cache).dbeta is None
    _, cache = fastbn.forward(x, None, zeros)
    assert fastbn.backward(dout, cache).dgamma is None
    assert fastbn.backward(dout, cache).dbeta is not None


def test_parameters_of_another_precision(rng):
    x, dout = tensor(rng, (6, 5, 4)), tensor(rng, (6, 5, 4))
    gamma, beta = rng.standard_normal(5), rng.standard_normal(5).astype(np.float32)
    running_mean, running_var = np.zeros(5), np.ones(5, np.float32)
    out, cache = fastbn.forward(x, gamma, beta, running_mean, running_var)
    dx, dgamma, dbeta = fastbn.backward(dout, cache)
    assert (out.dtype, dx.dtype) == (np.float32, np.float32)
    assert (dgamma.dtype, dbeta.dtype) == (np.float64, np.float32)
    assert (running_mean.dtype, running_var.dtype) == (np.float64, np.float32)
    expected = reference.backward(dout, x, gamma)
    np.testing.assert_allclose(dgamma, expected[1], rtol=1e-12, atol=1e-12)


def test_correction(rng):
    x = tensor(rng, (6, 5, 4))
    _, _, var = reference.forward(x)
    for correction, m in ((1, 23), (0, 24), (2.5, 21.5)):
        running = np.zeros(5), np.zeros(5)
        fastbn.forward(x, None, None, *running, momentum=1.0, correction=correction)
        np.testing.assert_allclose(running[1], var * 24 / m, rtol=1e-12)


def test_momentum_at_its_ends(rng):
    x = tensor(rng, (6, 5, 4))
    running = np.full(5, 3.0), np.full(5, 4.0)
    fastbn.forward(x, None, None, *running, momentum=0.0)
    assert (running[0] == 3.0).all()
    assert (running[1] == 4.0).all()
    fastbn.forward(x, None, None, *running, momentum=1.0, correction=0)
    moments = fastbn.moments(x)
    assert same_bits(running[0], moments.mean)
    assert same_bits(running[1], moments.var)


def test_channels_last_memory_runs_in_place(rng):
    """A transposed NHWC tensor: results of the NHWC kernels, in NHWC memory, under NCHW indices."""
    nhwc = tensor(rng, (4, 6, 5, 7))
    x, dout = nhwc.transpose(0, 3, 1, 2), channels_last(tensor(rng, (4, 7, 6, 5)))
    gamma, beta = parameters(rng, 7, np.float32)
    out, cache = fastbn.forward(x, gamma, beta)
    dx, dgamma, _ = fastbn.backward(dout, cache)
    assert out.strides == x.strides
    assert dx.strides == x.strides
    direct, cache = fastbn.forward(nhwc, gamma, beta, axis=-1)
    assert same_bits(out.transpose(0, 2, 3, 1), direct)
    gradients = fastbn.backward(dout.transpose(0, 2, 3, 1), cache)
    assert same_bits(dx.transpose(0, 2, 3, 1), gradients.dx)
    assert same_bits(dgamma, gradients.dgamma)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_agree(rng, dtype):
    x, dout = tensor(rng, (4, 7, 6, 5), dtype, mean=50.0), tensor(rng, (4, 7, 6, 5), dtype)
    gamma, beta = parameters(rng, 7, dtype)
    first = everything(x, dout, gamma, beta, 1)
    last = everything(channels_last(x), channels_last(dout), gamma, beta, 1)
    for a, b in zip(first, last, strict=True):
        assert ulps(a, b, dtype) < ULPS[dtype]["dx"] * (1 if dtype == np.float32 else 50)  # float64: of a mean of 50


def test_frozen_gradients_lie_in_memory_as_x_does(rng):
    x, dout = channels_last(tensor(rng, (4, 7, 6, 5))), tensor(rng, (4, 7, 6, 5))
    for training in (True, False):
        _, cache = fastbn.forward(x, None, None, np.zeros(7), np.ones(7), training=training)
        assert fastbn.backward(dout, cache).dx.strides == x.strides


def test_arguments_in_several_layouts_at_once(rng):
    """x, dout and out need not lie in memory alike."""
    x, dout = tensor(rng, (4, 7, 6, 5)), tensor(rng, (4, 7, 6, 5))
    out, cache = fastbn.forward(x)
    dx = fastbn.backward(dout, cache).dx
    strided = np.full((4, 7, 6, 10), np.nan, np.float32)[..., ::2]
    assert fastbn.forward(x, out=strided).out is strided
    assert same_bits(strided, out)
    turned = nan_like(channels_last(x))
    assert same_bits(fastbn.forward(x, out=turned).out, out)
    assert same_bits(fastbn.backward(channels_last(dout), cache, out=turned).dx, dx)
    assert fastbn.backward(channels_last(dout), cache).dx.flags.c_contiguous


def test_in_place(rng):
    for x in (tensor(rng, (4, 7, 6, 5)), tensor(rng, (4, 7, 6, 10))[..., ::2]):
        mean, var = rng.standard_normal(7), rng.uniform(1, 2, 7)
        expected = fastbn.inference(x, mean, var)
        buffer = x.copy()
        assert fastbn.inference(buffer, mean, var, out=buffer) is buffer
        assert same_bits(buffer, expected)
        buffer = x.copy()
        assert fastbn.forward(buffer, None, None, mean, var, training=False, out=buffer).out is buffer
        assert same_bits(buffer, expected)

        _, cache = fastbn.forward(x)
        dout = tensor(rng, x.shape)
        expected = fastbn.backward(dout, cache).dx
        buffer = dout.copy()
        assert fastbn.backward(buffer, cache, out=buffer).dx is buffer
        assert same_bits(buffer, expected)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_gradients_are_central_differences(rng, shape, axis):
    """Directional derivatives of fastbn's own forward, in float64."""
    x, dout = tensor(rng, shape, np.float64), tensor(rng, shape, np.float64)
    gamma, beta = parameters(rng, shape[axis], np.float64)
    _, cache = fastbn.forward(x, gamma, beta, axis=axis, eps=0.1)
    gradients = fastbn.backward(dout, cache)
    inputs = [x, gamma, beta]
    for position, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = [a + step * direction if i == position else a for i, a in enumerate(inputs)]
            values.append((fastbn.forward(*moved, axis=axis, eps=0.1).out * dout).sum())
        numeric = (values[0] - values[1]) / 2e-5
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(numeric - (gradient * direction).sum()) < CENTRAL_DIFFERENCE * scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_properties_of_the_transform(rng, dtype):
    x, dout = tensor(rng, (16, 6, 5, 5), dtype), tensor(rng, (16, 6, 5, 5), dtype)
    gamma, beta = parameters(rng, 6, dtype)
    out, cache = fastbn.forward(x, gamma, beta, eps=1e-200)
    dx, dgamma, dbeta = fastbn.backward(dout, cache)
    eps = np.finfo(dtype).eps

    # mean beta, deviation |gamma|
    np.testing.assert_allclose(out.mean((0, 2, 3), dtype=np.float64), beta, atol=4 * eps)
    np.testing.assert_allclose(out.std((0, 2, 3), dtype=np.float64), np.abs(gamma), rtol=8 * eps)
    # dx is orthogonal to ones and to x_hat, per channel
    x_hat = reference.forward(x, eps=1e-200)[0]
    assert np.abs(dx.sum((0, 2, 3), dtype=np.float64)).max() < 400 * eps
    assert np.abs((dx * x_hat).sum((0, 2, 3), dtype=np.float64)).max() < 400 * eps
    # powers of two and shifts by them are exact: the same bits, and the gradient scaled
    moved, moved_cache = fastbn.forward(x * dtype(4), gamma, beta, eps=1e-200 * 16)
    assert same_bits(moved, out)
    assert same_bits(fastbn.backward(dout, moved_cache).dx * dtype(4), dx)
    # the negative mirrors the output
    assert ulps(fastbn.forward(-x, gamma, -beta, eps=1e-200).out, -out, dtype) < ULPS[dtype]["out"]
    # channels do not see each other
    order = rng.permutation(6)
    permuted, permuted_cache = fastbn.forward(x[:, order], gamma[order], beta[order], eps=1e-200)
    assert same_bits(permuted, out[:, order])
    permuted_gradients = fastbn.backward(dout[:, order], permuted_cache)
    for a, b in zip(permuted_gradients, (dx[:, order], dgamma[order], dbeta[order]), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4), (4, 0), (4, 0, 2), (1, 0)])
def test_empty(shape):
    channels = shape[1]
    x = np.empty(shape, np.float32)
    gamma, running = np.ones(channels), (np.ones(channels), np.ones(channels))
    out, cache = fastbn.forward(x, gamma, gamma, *running, momentum=0.5)
    assert out.shape == shape
    dx, dgamma, dbeta = fastbn.backward(x, cache)
    assert dx.shape == shape
    assert (dgamma == 0).all()
    assert dbeta.shape == (channels,)
    assert (running[0] == 1).all()
    assert (running[1] == 1).all()
    assert fastbn.inference(x, *running).shape == shape
    assert (fastbn.moments(x).mean == 0).all()
    assert fastbn.normalize(x, gamma, gamma).shape == shape
    sums = fastbn.backward_sums(x, x, gamma, gamma)
    assert fastbn.backward_input(x, x, gamma, gamma, gamma, *sums, 1).shape == shape
    with pytest.raises(ValueError, match=r"gamma: expected shape"):
        fastbn.forward(x, np.ones(channels + 1))


def test_nan_and_infinity_stay_in_their_channel(rng):
    for bad in (np.nan, np.inf, -np.inf):
        for layout in (lambda a: a, channels_last):
            clean = rng.standard_normal((9, 4, 7, 7)).astype(np.float32)
            dirty = clean.copy()
            for position in ((0, 2, 0, 0), (3, 2, 1, 1)):
                dirty[position] = bad
            running = [np.zeros(4), np.ones(4)], [np.zeros(4), np.ones(4)]
            out, cache = fastbn.forward(layout(clean), None, None, *running[0])
            bad_out, bad_cache = fastbn.forward(layout(dirty), None, None, *running[1])
            good = [0, 1, 3]
            assert same_bits(out[:, good], bad_out[:, good])
            assert np.isnan(bad_out[:, 2]).all()
            assert not np.isfinite(bad_cache.mean[2])
            assert np.isnan(running[1][1][2])
            assert same_bits(running[0][1][good], running[1][1][good])
            ones = np.ones(clean.shape, np.float32)
            dx, bad_dx = fastbn.backward(ones, cache).dx, fastbn.backward(ones, bad_cache).dx
            assert same_bits(dx[:, good], bad_dx[:, good])
            assert np.isnan(bad_dx[:, 2]).all()


def test_infinite_mean_is_that_of_numpy():
    x = np.ones((64, 3), np.float32)
    x[0, 0] = x[5, 1] = np.inf
    x[5, 2], x[6, 2] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(fastbn.moments(x).mean, x.mean(0))


def test_constant_channels_are_exact():
    for value in (0.1, -3e-39, 1e30, 12345.678, 0.0):
        for shape in ((5, 3), (16, 3, 7, 7), (2, 3, 100, 100)):
            x = np.full(shape, value, np.float32)
            beta = np.array([0.1, -0.7, 3.3], np.float32)
            out, cache = fastbn.forward(x, np.full(3, 7.7, np.float32), beta)
            moments = fastbn.moments(x)
            assert (moments.mean == np.float64(np.float32(value))).all()
            assert (moments.var == 0).all()
            assert (out == beta.reshape((1, 3) + (1,) * (len(shape) - 2))).all()
            assert np.isfinite(fastbn.backward(np.ones_like(x), cache).dx).all()


def test_subnormal_values_are_not_flushed():
    x = (np.array([[1.0], [2.0], [3.0], [6.0]]) * 1e-42).astype(np.float32)
    moments = fastbn.moments(x)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    out = fastbn.inference(x, np.zeros(1), np.ones(1), eps=0.0)
    assert same_bits(out, x)


def test_extreme_scales(rng):
    """Deviations from 1e-18 to 1e30, whose squares leave float32's range."""
    for scale in (1e-18, 1e18, 1e30):
        x, dout = tensor(rng, (64, 3, 5), scale=scale), tensor(rng, (64, 3, 5))
        out, cache = fastbn.forward(x, eps=1e-300)
        assert ulps(out, reference.forward(x, eps=1e-300)[0], np.float32) < ULPS[np.float32]["out"]
        dx, expected = fastbn.backward(dout, cache).dx, reference.backward(dout, x, eps=1e-300)[0]
        assert ulps(dx, expected, np.float32) < ULPS[np.float32]["dx"]


def test_no_warnings_from_zero_variance_without_eps(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = fastbn.inference(tensor(rng, (4, 2)), np.zeros(2), np.array([0.0, 1.0]), eps=0.0)
    assert np.isinf(out[:, 0]).all()
    assert np.isfinite(out[:, 1]).all()


MEMORY = """
import numpy as np, fastbn
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
rng = np.random.default_rng(0)
for shape in ({small}, {large}):  # the first loads the compiled kernels
    x = rng.standard_normal(shape, dtype=np.float32){view}
    dout, out, dx = np.ones_like(x), np.ones_like(x), np.ones_like(x)
    gamma, beta, running_mean, running_var = np.ones((4, x.shape[1]), np.float32)
    if shape == {small}:
        fastbn.backward(dout, fastbn.forward(x, gamma, beta, running_mean, running_var, out=out).cache, out=dx)
        fastbn.inference(x, running_mean, running_var, gamma, beta, out=out)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = peak()
out, cache = fastbn.forward(x, gamma, beta, running_mean, running_var, out=out)
fastbn.backward(dout, cache, out=dx)
fastbn.inference(x, running_mean, running_var, gamma, beta, out=out)
print(x.nbytes, peak() - before)
"""


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(
    ("small", "large", "view"),
    [
        ((8, 64, 32, 32), (32, 64, 112, 112), ""),
        ((32, 64, 7, 7), (100, 5000, 7, 7), ""),
        ((200, 200, 7, 7), (500, 1000, 7, 7), ""),
        ((32, 14, 14, 64), (32, 112, 112, 64), ".transpose(0, 3, 1, 2)"),
        ((4096, 64), (400_000, 64), ""),
    ],
)
def test_peak_memory(small, large, view):
    """Under 2 MB for tensors of 98 MB: no temporary of tensor size."""
    code = MEMORY.format(small=small, large=large, view=view)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    tensor_bytes, extra_kb = map(int, run.stdout.split())
    assert tensor_bytes > 97e6
    assert extra_kb < 2 * 1024


def test_a_cache_is_an_object(rng):
    """Though a tuple inside: compared by identity, and printed without its tensors."""
    x = tensor(rng, (4, 3))
    cache, other = fastbn.forward(x).cache, fastbn.forward(x).cache
    assert cache == cache
    assert cache != other
    assert not cache == other  # noqa: SIM201 - as above
    assert not cache != cache  # noqa: SIM202 - as above
    assert len({cache, other, cache}) == 2
    assert repr(cache).startswith("<fastbn.functional.Cache object at")


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_inference_needs_statistics(rng, missing):
    statistics = {"running_mean": np.zeros(3), "running_var": np.ones(3), missing: None}
    with pytest.raises(TypeError, match=f"^{missing}: expected dtype float32 or float64, got object"):
        fastbn.inference(tensor(rng, (4, 3)), **statistics)


def test_a_cache_of_a_module_that_was_imported_again(rng):
    """In notebooks: the class has the same name, and is another."""
    cache = fastbn.forward(tensor(rng, (4, 3))).cache
    other = type("Cache", (), {})()
    with pytest.raises(TypeError, match="cache: expected a Cache, got one of a module that was imported again since"):
        fastbn.backward(tensor(rng, (4, 3)), other)
    with pytest.raises(TypeError, match="cache: expected a Cache, got tuple"):
        fastbn.backward(tensor(rng, (4, 3)), tuple(cache))


def test_a_negative_variance_is_refused_before_anything_is_written():
    """For large tensors on the general way, too."""
    x = np.ones((400, 400), np.float32).repeat(2, 0)[::2]
    out = nan_like(x)
    with pytest.raises(ValueError, match="running_var: expected no value below -eps"):
        fastbn.inference(x, np.zeros(400), np.full(400, -1.0), out=out)
    assert np.isnan(out).all()
