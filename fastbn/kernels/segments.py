"""Segments of rows, for ``channels_last``: room for their sums, and how these become those of channels, in order."""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Float64Array, Matrix
from fastbn.kernels.addresses import data
from fastbn.kernels.columns import means_vars
from fastbn.kernels.jit import inner
from fastbn.kernels.lanes import spread_wide_doubles
from fastbn.kernels.loads import load_wide_doubles
from fastbn.kernels.registers import WIDE_DOUBLES
from fastbn.kernels.stores import store_first


@inner
def segments_of(segments: int, channels: int) -> Float64Array:
    """Room for two numbers of each segment and channel, for these in whole groups of ``WIDE_DOUBLES``."""
    return np.empty((segments, 2, -(-channels // WIDE_DOUBLES) * WIDE_DOUBLES))


@inner
def merge_segments(parts: Float64Array, shape: Matrix, origin: Float64Array, mean: Address, var: Address) -> None:
    """Merge the moments of all segments, in order, into means and biased variances.

    ``M2 = sum(m2_s + n_s * (mean_s - mean)**2)``. With those of ``merge_moments1``, three divisions each, this took a
    quarter of the time of 1568 rows of 512 in 12 segments; eight channels at a time, each with its own sizes of
    segments, 512 channels in 16 took 7 to 14 us, and so 3.
    """
    rows, tile, channels, inner = shape
    segments, _, stride = parts.shape
    count = np.float64(rows * inner * tile)
    for c in range(0, channels, WIDE_DOUBLES):
        total = m2 = spread_wide_doubles(0.0)
        for s in range(segments):
            total = total + load_wide_doubles(data(parts), 2 * s * stride + c)
        average = total * spread_wide_doubles(1.0 / count)
        for s in range(segments):
            size = np.float64((rows * (s + 1) // segments - rows * s // segments) * inner * tile)
            i = 2 * s * stride + c
            delta = load_wide_doubles(data(parts), i) * spread_wide_doubles(1.0 / size) - average
            m2 = m2 + (load_wide_doubles(data(parts), i + stride) + spread_wide_doubles(size) * delta * delta)
        n = min(WIDE_DOUBLES, channels - c)
        store_first(mean, c, n, total)
        store_first(var, c, n, m2)
    means_vars(0, channels, data(origin), count, mean, var)


@inner
def add_segments(parts: Float64Array, channels: int, sum_dout: Address, sum_product: Address) -> None:
    """Add the sums of all segments, in order."""
    segments, _, stride = parts.shape
    for c in range(0, channels, WIDE_DOUBLES):
        values = products = spread_wide_doubles(0.0)
        for s in range(segments):
            i = 2 * s * stride + c
            values = values + load_wide_doubles(data(parts), i)
            products = products + load_wide_doubles(data(parts), i + stride)
        n = min(WIDE_DOUBLES, channels - c)
        store_first(sum_dout, c, n, values)
        store_first(sum_product, c, n, products)
