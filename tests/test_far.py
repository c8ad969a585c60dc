"""Means so far from 0 that ``x - mean`` leaves the dtype's range, though the result is an ordinary number."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import same_bits

EPS = np.finfo(np.float32).eps
LAYOUTS = {
    "in order": lambda x: x,
    "strided": lambda x: x.repeat(2, 0)[::2],
    "large": lambda x: np.tile(x, (3000, 1)),
}


def exact(x, mean, var, eps, gamma=1.0, beta=0.0):
    """In the widest floats that NumPy has; float64 where these are the same, which is wide enough for float32."""
    x, mean, var = (np.asarray(values, np.longdouble) for values in (x, mean, var))
    return (x - mean) / np.sqrt(var + eps) * gamma + beta


def exact_gradient(dout, x, eps):
    x, dout = np.asarray(x, np.float64), np.asarray(dout, np.float64)
    inv_std = 1 / np.sqrt(x.var(0) + eps)
    x_hat = (x - x.mean(0)) * inv_std
    return inv_std * (dout - dout.mean(0) - x_hat * (dout * x_hat).mean(0))


@pytest.fixture
def x():
    """A channel whose differences overflow, one with an ordinary mean, one of large numbers that do not overflow."""
    return np.array([[3.3e38, 1.0, 1e37], [-3.3e38, 2.0, 2e37], [-3.3e38, 4.0, 4e37]], np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training(x, layout):
    x = LAYOUTS[layout](x)
    dout = np.tile(np.array([[1.0], [2.0], [4.0]], np.float32), (len(x) // 3, 3))
    out, cache = fastbn.forward(x)
    mean, var = np.mean(x, 0, np.float64), np.var(x.astype(np.float64), 0)
    np.testing.assert_allclose(out, exact(x, mean, var, 1e-5).astype(np.float64), rtol=8 * EPS)
    np.testing.assert_allclose(out[:3, 0], [np.sqrt(2), -np.sqrt(0.5), -np.sqrt(0.5)], rtol=8 * EPS)
    expected = exact_gradient(dout, x, 1e-5)
    dx = fastbn.backward(dout, cache).dx
    tolerance = 16 * EPS * 4 * cache.inv_std + np.finfo(np.float32).smallest_subnormal
    assert (np.abs(dx - expected).max(0) <= tolerance).all()
    in_place = dout.copy()
    assert fastbn.backward(in_place, cache, out=in_place).dx is in_place
    assert same_bits(in_place, dx)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_beside_it_are_as_ever(x, layout):
    x = LAYOUTS[layout](x)
    others = x.copy()
    others[:, 0] = 1.0
    assert same_bits(fastbn.forward(x).out[:, 1], fastbn.forward(others).out[:, 1])


CALLS = {
    "inference": lambda x, mean, var: fastbn.inference(x, mean, var),
    "in place": lambda x, mean, var: fastbn.inference(x.copy(), mean, var, out=x),
    "forward": lambda x, mean, var: fastbn.forward(x, None, None, mean, var, training=False).out,
    "normalize": lambda x, mean, var: fastbn.normalize(x, mean, 1 / np.sqrt(var.astype(np.float64) + 1e-5)),
    "frozen": lambda x, mean, var: fastbn.FrozenBatchNorm(mean, var)(x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_given_statistics(call, layout):
    mean, var = np.array([2e38, -1e31, 0.5], np.float32), np.array([3e38, 1e30, 1.0], np.float32)
    x = LAYOUTS[layout](np.array([[-2e38, 3.4e38, 1.0], [2e38, -1e31, 0.5], [3.4e38, 0.0, 2.0]], np.float32))
    expected = exact(x, mean, var, 1e-5).astype(np.float64)
    with np.errstate(all="raise"):
        found = CALLS[call](x.copy(), mean, var)
    np.testing.assert_allclose(found, expected, rtol=8 * EPS)
    assert found.dtype == np.float32


def test_float64():
    x, mean, var = np.array([[-1.2e308], [1.5e308]]), np.array([1.5e308]), np.array([1e300])
    expected = [[-2.7e158], [0.0]]
    np.testing.assert_allclose(fastbn.inference(x, mean, var), expected, rtol=1e-15)


def test_gradients_of_the_split_phases(x):
    dout = np.array([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]], np.float32)
    cache = fastbn.forward(x).cache
    sums = fastbn.backward_sums(dout, x, cache.mean, cache.inv_std)
    dx = fastbn.backward_input(dout, x, cache.mean, cache.inv_std, None, *sums, 3)
    assert same_bits(dx, fastbn.backward(dout, cache).dx)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_a_variance_of_zero(beta):
    """Without ``eps`` the formula gives an infinity, with the sign of ``x - mean``."""
    x, mean = np.array([[0.0], [1.0], [-5.0]], np.float32), np.array([0.1])
    out = fastbn.inference(x, mean, np.zeros(1), None, np.full(1, beta), eps=0.0)
    assert out.ravel().tolist() == [-np.inf, np.inf, -np.inf]
    out = fastbn.normalize(x, mean, np.array([np.inf]))
    assert out.ravel().tolist() == [-np.inf, np.inf, -np.inf]
    assert np.isnan(fastbn.inference(x, np.zeros(1), np.zeros(1), eps=0.0)[0, 0])  # 0 / 0


def test_infinite_and_missing_means_are_no_far_ones():
    x = np.ones((3, 2), np.float32)
    out = fastbn.inference(x, np.array([np.inf, np.nan]), np.ones(2))
    assert (out[:, 0] == -np.inf).all()
    assert np.isnan(out[:, 1]).all()
