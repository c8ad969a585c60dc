"""Statistics, outputs and gradients of float32 data are as exact at mean 1e4 as at mean 0."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import channels_last, read_only
from tests.tolerances import DGAMMA, DX, MEAN, OUTPUT, VAR

pytestmark = pytest.mark.large

SHAPES = [(32, 64, 56, 56), (8, 64, 112, 112), (32, 256, 7, 7)]
MEANS = [0.0, 1.0, 100.0, 1e4]


def data(shape, mean, layout):
    rng = np.random.default_rng(7)
    x = (rng.standard_normal(shape) + mean).astype(np.float32)
    return read_only(x) if layout == "first" else channels_last(x)


def columns(x):
    """(C, m) float64."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_the_mean(shape, mean, layout):
    x = data(shape, mean, layout)
    dout = read_only(np.random.default_rng(8).standard_normal(shape, dtype=np.float32))
    out, cache = fastbn.forward(x, np.ones(shape[1]), np.zeros(shape[1]))
    dx, dgamma, dbeta = fastbn.backward(dout, cache)

    moments = fastbn.moments(x)
    rows, drows = columns(x), columns(dout)
    m = rows.shape[1]
    exact_mean = rows.mean(1)
    centred = rows - exact_mean[:, None]
    exact_var = (centred**2).mean(1)
    assert np.abs(moments.mean - exact_mean).max() <= MEAN
    assert np.abs(moments.var / exact_var - 1).max() <= VAR

    inv_std = 1 / np.sqrt(exact_var + 1e-5)[:, None]
    x_hat = centred * inv_std
    assert np.abs(columns(out) - x_hat).max() <= OUTPUT
    exact_dgamma, exact_dbeta = (drows * x_hat).sum(1), drows.sum(1)
    assert np.abs(dgamma - exact_dgamma).max() <= DGAMMA * np.sqrt(m)
    assert np.abs(dbeta - exact_dbeta).max() <= DGAMMA * np.sqrt(m)
    exact_dx = inv_std * (drows - exact_dbeta[:, None] / m - x_hat * exact_dgamma[:, None] / m)
    assert np.abs(columns(dx) - exact_dx).max() <= DX


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("outlier", [1e3, -1e6, 3e7])
def test_a_first_value_that_is_an_outlier(layout, outlier):
    """The first value of a block is its pivot; far from the rest it must cost nothing."""
    x = data((8, 16, 56, 56), 1.0, layout).copy(order="K")
    x[0, :, 0, 0] = outlier
    moments, rows = fastbn.moments(x), columns(x)
    exact_var = rows.var(1)
    assert np.abs((moments.mean - rows.mean(1)) / np.maximum(1, np.abs(rows.mean(1)))).max() <= MEAN
    assert np.abs(moments.var / exact_var - 1).max() <= VAR


def test_large_mean_in_float64():
    x = np.random.default_rng(7).standard_normal((32, 8, 28, 28)) + 1e8
    exact = columns(x - 1e8).var(1)
    for given in (x, channels_last(x)):
        assert np.abs(fastbn.moments(given).var / exact - 1).max() < 1e-7


def test_a_channel_of_many_values():
    """More than 2**24 values, where float32 counters and sums stop counting."""
    x = np.full((3, 1, 2**23 - 1), 0.1, np.float32)
    x[:, :, ::2] = 0.3
    moments = fastbn.moments(x)
    assert moments.count == 3 * (2**23 - 1)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(), rtol=1e-12)
    np.testing.assert_allclose(moments.var, exact.var(), rtol=1e-9)


def exact_moments(x):
    """In the widest floats that NumPy has."""
    x = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.longdouble)
    mean = x.mean(1)
    return mean, ((x - mean[:, None]) ** 2).mean(1)


def variance_error(x):
    return float(np.abs(fastbn.moments(x).var / exact_moments(x)[1] - 1).max())


@pytest.mark.parametrize("rows", [3_000_017, 3_000_000])
def test_millions_of_rows(rows):
    """However many there are: a prime number of rows cannot be folded into longer ones."""
    x = np.random.default_rng(0).standard_normal((rows, 3), dtype=np.float32) + np.float32(24)
    assert variance_error(x) < 1e-14
    dout = np.random.default_rng(1).standard_normal((rows, 3), dtype=np.float32)
    cache = fastbn.forward(x).cache
    sums = np.array(fastbn.backward_sums(dout, x, cache.mean, cache.inv_std))
    x_hat = (x.astype(np.longdouble) - cache.mean) * cache.inv_std
    exact = np.array([dout.sum(0, dtype=np.longdouble), (dout * x_hat).sum(0)])
    assert np.abs(sums - exact).max() / rows < 1e-15


OUTLIERS = {
    "a zero": 0.0,
    "a large number": 1e8,
    "a negative one": -3e5,
}


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("shape", [(100_000, 4), (4, 4, 160, 160), (64, 40, 6, 6), (2, 64, 17, 19)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_outlier_as_the_first_value(shape, outlier, dtype):
    """What a block is summed about is not taken from a single value."""
    x = (np.random.default_rng(0).standard_normal(shape) + 1e4).astype(dtype)
    x[(0, slice(None)) + (0,) * (len(shape) - 2)] = OUTLIERS[outlier]
    assert variance_error(x) < 2e-13


def test_merging_is_good_to_the_means_rounding():
    """As the docstring of ``merge`` says: the rounding of the means, in deviations, of thirty parts."""
    for center in (1e8, 1e4, 0.0):
        x = np.random.default_rng(0).standard_normal((3000, 4)) + center
        merged = fastbn.moments(x[:100])
        for start in range(100, 3000, 100):
            merged = merged.merge(fastbn.moments(x[start : start + 100]))
        assert float(np.abs(merged.var / exact_moments(x)[1] - 1).max()) < 1e-16 * center + 1e-14
