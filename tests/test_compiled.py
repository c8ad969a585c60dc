"""The functions for compiled callers: the bits of the public ones, and no way around their shapes."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba import njit, prange

import fastbn
from fastbn import compiled
from tests.conftest import JIT
from tests.data_for_tests import read_only, same_bits

EPS, MOMENTUM = 1e-3, 0.25
SHAPES = [(8, 5, 33), (40, 7, 1), (9, 3, 4), (1, 3, 50), (2, 1, 1), (3, 2100, 1), (0, 4, 6), (3, 0, 20)]


@njit
def train(x, gamma, beta, running_mean, running_var, correction, dout):
    out, dx = np.empty_like(x), np.empty_like(x)
    mean, var, inv_std = compiled.forward(x, gamma, beta, EPS, out)
    if x.size:
        count = x.shape[0] * x.shape[2]
        compiled.update_running(running_mean, running_var, mean, var, count, MOMENTUM, correction)
    dgamma, dbeta = compiled.backward(dout, x, gamma, mean, inv_std, dx)
    return out, dx, dgamma, dbeta, mean, inv_std


@njit
def evaluate(x, mean, var, gamma, beta):
    out = np.empty_like(x)
    compiled.inference(x, mean, var, gamma, beta, EPS, out)
    return out


def vectors(rng, channels, dtype):
    return [(rng.standard_normal(channels) ** 2 + 0.5).astype(dtype) for _ in range(4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [np.float32, np.float64])
@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_bits_of_the_public_functions(rng, shape, dtype, parameters, correction):
    x, dout = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gamma, beta, mean, var = vectors(rng, shape[1], parameters)
    ours, theirs = [mean.copy(), var.copy()], [mean.copy(), var.copy()]
    options = {"eps": EPS, "momentum": MOMENTUM, "correction": correction}
    out, cache = fastbn.forward(x, gamma, beta, *theirs, **options)
    expected = fastbn.backward(dout, cache)

    result, dx, dgamma, dbeta, batch_mean, inv_std = train(x, gamma, beta, *ours, correction, dout)
    assert same_bits(result, out)
    assert same_bits(dx, expected.dx)
    assert same_bits(dgamma.astype(parameters), expected.dgamma)
    assert same_bits(dbeta.astype(parameters), expected.dbeta)
    assert same_bits(batch_mean, cache.mean)
    assert same_bits(inv_std, cache.inv_std)
    for mine, other in zip(ours, theirs, strict=True):
        assert same_bits(mine, other)
    assert same_bits(evaluate(x, mean, var, gamma, beta), fastbn.inference(x, mean, var, gamma, beta, eps=EPS))


@pytest.mark.large
def test_large_tensors_agree(rng):
    """Beyond the caches, with streaming stores, and cut in segments by the public functions."""
    for shape in (4, 16, 50_000), (100_000, 32, 1):
        x, dout = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        gamma, beta, mean, var = vectors(rng, shape[1], np.float32)
        out, cache = fastbn.forward(x, gamma, beta, eps=EPS)
        expected = fastbn.backward(dout, cache)
        result, dx, dgamma, dbeta, *_ = train(x, gamma, beta, mean, var, 1.0, dout)
        np.testing.assert_allclose(result, out, rtol=0, atol=1e-6)
        np.testing.assert_allclose(dx, expected.dx, rtol=0, atol=1e-6)
        np.testing.assert_allclose(dgamma, expected.dgamma, rtol=1e-6, atol=1e-3)
        np.testing.assert_allclose(dbeta, expected.dbeta, rtol=1e-6, atol=1e-3)


def test_in_place(rng):
    x = rng.standard_normal((5, 4, 20))
    gamma, beta, mean, var = vectors(rng, 4, np.float64)
    expected, same = evaluate(x, mean, var, gamma, beta), x.copy()
    compiled.inference(same, mean, var, gamma, beta, EPS, same)
    assert same_bits(same, expected)
    dout = rng.standard_normal(x.shape)
    dx, target = np.empty_like(x), dout.copy()
    inv_std = 1 / np.sqrt(var)
    wanted = compiled.backward(dout, x, gamma, mean, inv_std, dx)
    given = compiled.backward(target, x, gamma, mean, inv_std, target)
    assert same_bits(target, dx)
    assert all(map(same_bits, given, wanted))


def test_what_may_only_be_read(rng):
    x, dout = rng.standard_normal((2, 5, 4, 20))
    given = vectors(rng, 4, np.float64)
    gamma, beta, mean, var = given
    expected = [*train(x, gamma, beta, mean.copy(), var.copy(), 0.0, dout), evaluate(x, *given)]
    for array in (x, dout, *given):
        read_only(array)
    out, dx, evaluated = (np.empty_like(x) for _ in range(3))
    batch_mean, _, inv_std = compiled.forward(x, gamma, beta, EPS, out)
    sums = compiled.backward(dout, x, gamma, batch_mean, inv_std, dx)
    compiled.inference(x, *given, EPS, evaluated)
    assert all(map(same_bits, [out, dx, *sums, batch_mean, inv_std, evaluated], expected))


def test_inside_a_parallel_loop_of_the_caller(rng):
    @njit(parallel=True)
    def each(xs, mean, var, gamma, beta):
        out = np.empty_like(xs)
        for i in prange(xs.shape[0]):
            compiled.inference(xs[i], mean, var, gamma, beta, EPS, out[i])
        return out

    xs = rng.standard_normal((6, 3, 4, 50))
    gamma, beta, mean, var = vectors(rng, 4, np.float64)
    result = each(xs, mean, var, gamma, beta)
    for x, out in zip(xs, result, strict=True):
        assert same_bits(out, evaluate(x, mean, var, gamma, beta))


def test_shapes_are_refused():
    x, v, wrong = np.zeros((3, 4, 5)), np.ones(4), np.ones(5)
    good, other = np.full_like(x, np.nan), np.full((3, 4, 6), np.nan)
    with pytest.raises(ValueError, match="out: expected the shape of x"):
        compiled.inference(x, v, v, v, v, EPS, other)
    for k in range(4):
        given = [wrong if j == k else v for j in range(4)]
        with pytest.raises(ValueError, match="expected one value a channel"):
            compiled.inference(x, *given, EPS, good)
    with pytest.raises(ValueError, match="out: expected the shape of x"):
        compiled.forward(x, v, v, EPS, other)
    for given in (wrong, v), (v, wrong):
        with pytest.raises(ValueError, match="gamma, beta"):
            compiled.forward(x, *given, EPS, good)
    for tensors in (other, x, good), (x, x, other):
        with pytest.raises(ValueError, match="dout, dx"):
            compiled.backward(tensors[0], tensors[1], v, v, v, tensors[2])
    for k in range(3):
        given = [wrong if j == k else v for j in range(3)]
        with pytest.raises(ValueError, match="gamma, mean, inv_std"):
            compiled.backward(x, x, *given, good)
    for k in range(4):
        given = [wrong.copy() if j == k else v.copy() for j in range(4)]
        with pytest.raises(ValueError, match="expected one value a channel"):
            compiled.update_running(*given, 15, MOMENTUM, 1.0)
        assert all((array == 1).all() for array in given)
    with pytest.raises(ValueError, match="count"):
        compiled.update_running(v.copy(), v.copy(), v, v, 1, MOMENTUM, 1.0)
    assert np.isnan(good).all()
    assert np.isnan(other).all()


@pytest.mark.skipif(not JIT, reason="the compiler's own check")
def test_other_strides_do_not_compile():
    x, v = np.zeros((3, 4, 10))[:, :, ::2], np.ones(4)
    with pytest.raises(numba.core.errors.TypingError):
        compiled.inference(x, v, v, v, v, EPS, np.empty((3, 4, 5)))
