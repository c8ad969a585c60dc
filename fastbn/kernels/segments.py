"""Segments of rows, for ``channels_last``: room for their sums, and how these become those of channels, in order.

The two sums of a segment lie side by side, those of all channels each; ``parts`` is the address of the first.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Float64Array, Matrix
from fastbn.kernels.addresses import offset
from fastbn.kernels.columns import means_vars
from fastbn.kernels.jit import inner
from fastbn.kernels.lanes import spread_wide_doubles
from fastbn.kernels.loads import load_wide_doubles
from fastbn.kernels.registers import WIDE_DOUBLES
from fastbn.kernels.stores import store_first


@inner
def _stride(channels: int) -> int:
    """From one sum to the next: ``WIDE_DOUBLES`` can be read from any channel on."""
    return channels + WIDE_DOUBLES


@inner
def segments_of(segments: int, channels: int) -> Float64Array:
    """Room for the sums."""
    return np.empty((segments, 2, _stride(channels)))


@inner
def sums_of(parts: Address, channels: int, segment: int) -> tuple[Address, Address]:
    """The two sums of a segment."""
    stride = _stride(channels)
    return offset(parts, 2 * segment * stride), offset(parts, (2 * segment + 1) * stride)


@inner
def merge_segments(
    parts: Address,
    segments: int,
    shape: Matrix,
    left: int,
    right: int,
    origin: Address,
    mean: Address,
    var: Address,
) -> None:
    """Merge the moments of all segments, in order, into means and biased variances, for ``left`` to ``right``.

    ``M2 = sum(m2_s + n_s * (mean_s - mean)**2)``. With those of ``merge_moments1``, three divisions each, this took a
    quarter of the time of 1568 rows of 512 in 12 segments; eight channels at a time, each with its own sizes of
    segments, 512 channels in 16 took 7 to 14 us, and so 3.
    """
    rows, tile, channels, inner = shape
    stride = _stride(channels)
    count = np.float64(rows * inner * tile)
    for c in range(left, right, WIDE_DOUBLES):
        total = m2 = spread_wide_doubles(0.0)
        for s in range(segments):
            total = total + load_wide_doubles(parts, 2 * s * stride + c)
        average = total * spread_wide_doubles(1.0 / count)
        for s in range(segments):
            size = np.float64((rows * (s + 1) // segments - rows * s // segments) * inner * tile)
            i = 2 * s * stride + c
            delta = load_wide_doubles(parts, i) * spread_wide_doubles(1.0 / size) - average
            m2 = m2 + (load_wide_doubles(parts, i + stride) + spread_wide_doubles(size) * delta * delta)
        n = min(WIDE_DOUBLES, right - c)
        store_first(mean, c, n, total)
        store_first(var, c, n, m2)
    means_vars(left, right, origin, count, mean, var)


@inner
def add_segments(
    parts: Address, segments: int, channels: int, left: int, right: int, sum_dout: Address, sum_product: Address
) -> None:
    """Add the sums of all segments, in order, for ``left`` to ``right``."""
    stride = _stride(channels)
    for c in range(left, right, WIDE_DOUBLES):
        values = products = spread_wide_doubles(0.0)
        for s in range(segments):
            i = 2 * s * stride + c
            values = values + load_wide_doubles(parts, i)
            products = products + load_wide_doubles(parts, i + stride)
        n = min(WIDE_DOUBLES, right - c)
        store_first(sum_dout, c, n, values)
        store_first(sum_product, c, n, products)
