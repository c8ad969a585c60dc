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
