"""benchdnn's filling, whose mean and variance are exact in any order of summation, over all its shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastbn
from bench.shapes import PROBLEMS
from tests.data_for_tests import channels_last
from tests.tolerances import EXACT_OUTPUT

pytestmark = pytest.mark.large

EXACT_BITS = 24  # of float32's significand
PROBLEMS_TRAINABLE = [problem for problem in PROBLEMS if math.prod(problem.shape) > problem.shape[1]]


def filling(shape):
    """x and the exact means: pairs of values that sum to twice the mean, with a spread of few bits."""
    outer, channels, inner = shape[0], shape[1], math.prod(shape[2:])
    length = outer * inner
    flex_bits = min(EXACT_BITS, (EXACT_BITS - math.ceil(math.log2(length))) // 2 - 1)
    with_mean = flex_bits >= 3
    if not with_mean:
        flex_bits = min(6, EXACT_BITS // 2)
    density = 1.0 if with_mean else 2.0 ** (EXACT_BITS - 2 * flex_bits) / length
    x = np.empty((outer, channels, inner), np.float32)
    means = np.zeros(channels)
    index = np.arange(length)
    for c in range(channels):
        l = index + c * 478  # noqa: E741 - benchdnn's name
        sign = np.where(l % 2 == 0, 1.0, -1.0)
        values = sign * ((l // 2 * 1637) & ((1 << flex_bits) - 1)) / (1 << flex_bits)
        if with_mean:
            means[c] = 0.25 * 2.0 ** (c % 7)
            values = means[c] * (1.0 + values)
        else:
            values[(l // 2 * 257 * 753737) % 1000003 >= density * 1000003] = 0.0
        if length % 2:
            values[-1] = means[c]
        x[:, c] = values.reshape(outer, inner)
    return x.reshape(shape), means


def affine(channels):
    c = np.arange(channels)
    return 2.0 ** (c % 7) / 8, ((c % 3) - 1) * 2.0 ** (c % 7) / 512


def spread(values, ndim):
    return values.reshape((-1,) + (1,) * (ndim - 2))


@pytest.mark.parametrize("problem", PROBLEMS_TRAINABLE, ids=lambda problem: problem.name)
def test_exact_statistics(problem):
    x, means = filling(problem.shape)
    gamma, beta = affine(x.shape[1])
    over = (0, *range(2, x.ndim))
    assert (x.sum(over, dtype=np.float64) == means * (x.size // x.shape[1])).all()  # the filling is what it claims
    variances = np.array([np.square(x[:, c] - means[c], dtype=np.float64).mean() for c in range(x.shape[1])])
    for given in (x, channels_last(x)):
        out, cache = fastbn.forward(given, gamma, beta, eps=problem.eps)
        moments = fastbn.moments(given)
        assert (moments.mean.astype(np.float32) == means.astype(np.float32)).all()
        assert (np.abs(moments.var - variances) <= np.spacing(variances.astype(np.float32))).all()
        scale = gamma / np.sqrt(variances + problem.eps)
        for n in range(x.shape[0]):  # sample by sample, to spare memory
            product = (x[n] - spread(means, x.ndim)) * spread(scale, x.ndim)
            expected = product + spread(beta, x.ndim)
            # Where beta nearly cancels the product, the product's own error counts; where nothing is left, its size.
            cancelled = np.abs(expected - spread(beta, x.ndim)) > np.abs(expected)
            reach = np.abs(np.where(cancelled, product, expected))
            reach[reach < np.finfo(np.float32).tiny] = 1.0
            assert (np.abs(out[n] - expected) / reach).max() <= EXACT_OUTPUT
        assert cache.mean.shape == means.shape
