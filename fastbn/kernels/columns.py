"""The sums of a chunk of columns, for ``channels_last``.

Everything is flat and given by its address. In the rows of a tensor registers run along the row, and each column has
sums of its own, in float64; a channel's columns are added up at the end. These are ``inner`` columns side by side, or
where ``inner`` is 1, ``tile`` columns a whole set of channels apart. A *chunk* is a run of whole channels, ``left`` to
``right``. What belongs to columns lies in scratch memory, in whole registers.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Float64Array, Matrix
from fastbn.kernels.coefficients import copy, spread_columns
from fastbn.kernels.formulas import block_moments1, mean_var1, merge_moments1, pivot1
from fastbn.kernels.jit import elementwise, scalar
from fastbn.kernels.lanes import (
    DOUBLES,
    data,
    load_doubles,
    load_first_doubles,
    read,
    spread_doubles,
    stack,
    store,
    store_first_doubles,
    width,
    write,
)
from fastbn.kernels.prefetch import prefetch

CHUNK = 512  # columns whose sums a task keeps at hand: 12 kB
SUM_ROWS = 8  # rows, of two tensors half as many, that are summed together for one load and store of the sums
WIDE = 2 * DOUBLES  # columns that are summed side by side


@scalar
def channels_of(inner: int) -> int:
    """Channels in one chunk of columns whose sums are kept."""
    return max(1, CHUNK // inner)


@elementwise
def _add_squares(
    x: Address, at: int, stride: int, rows: int, size: int, pivot: Address, total: Address, square: Address
) -> None:
    """Add ``rows`` runs of ``size`` values, the first from ``x[at]`` on, to the sums of their columns.

    Two registers side by side, so that a line is taken from the cache once: rows that lie some KB apart crowd each
    other out. The rows after these are asked for one line at a time: all at once, they took twice as long.
    """
    i = 0
    while i + WIDE <= size:
        p0, p1 = load_doubles(pivot, i), load_doubles(pivot, i + DOUBLES)
        t0, t1 = load_doubles(total, i), load_doubles(total, i + DOUBLES)
        s0, s1 = load_doubles(square, i), load_doubles(square, i + DOUBLES)
        for k in range(at + i, at + i + rows * stride, stride):
            for line in range(0, WIDE, width(x)):
                prefetch(x, k + rows * stride + line)
            d0, d1 = load_doubles(x, k) - p0, load_doubles(x, k + DOUBLES) - p1
            t0, t1 = t0 + d0, t1 + d1
            s0, s1 = s0 + d0 * d0, s1 + d1 * d1
        store(total, i, t0)
        store(total, i + DOUBLES, t1)
        store(square, i, s0)
        store(square, i + DOUBLES, s1)
        i += WIDE
    while i < size:
        n = min(DOUBLES, size - i)
        p0, t0, s0 = load_doubles(pivot, i), load_doubles(total, i), load_doubles(square, i)
        for k in range(at + i, at + i + rows * stride, stride):
            prefetch(x, k + rows * stride)
            d0 = load_first_doubles(x, k, n, 0.0) - p0
            t0 = t0 + d0
            s0 = s0 + d0 * d0
        store(total, i, t0)
        store(square, i, s0)
        i += DOUBLES


@elementwise
def _add_products(
    dout: Address,
    x: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    center: Address,
    total: Address,
    product: Address,
) -> None:
    """The same for ``dout`` and ``dout * (x - center)``."""
    i = 0
    while i + WIDE <= size:
        c0, c1 = load_doubles(center, i), load_doubles(center, i + DOUBLES)
        t0, t1 = load_doubles(total, i), load_doubles(total, i + DOUBLES)
        p0, p1 = load_doubles(product, i), load_doubles(product, i + DOUBLES)
        for k in range(at + i, at + i + rows * stride, stride):
            for line in range(0, WIDE, width(x)):
                prefetch(dout, k + rows * stride + line)
                prefetch(x, k + rows * stride + line)
            d0, d1 = load_doubles(dout, k), load_doubles(dout, k + DOUBLES)
            t0, t1 = t0 + d0, t1 + d1
            p0, p1 = p0 + d0 * (load_doubles(x, k) - c0), p1 + d1 * (load_doubles(x, k + DOUBLES) - c1)
        store(total, i, t0)
        store(total, i + DOUBLES, t1)
        store(product, i, p0)
        store(product, i + DOUBLES, p1)
        i += WIDE
    while i < size:
        n = min(DOUBLES, size - i)
        c0, t0, p0 = load_doubles(center, i), load_doubles(total, i), load_doubles(product, i)
        for k in range(at + i, at + i + rows * stride, stride):
            prefetch(dout, k + rows * stride)
            prefetch(x, k + rows * stride)
            d0 = load_first_doubles(dout, k, n, 0.0)
            t0 = t0 + d0
            p0 = p0 + d0 * (load_first_doubles(x, k, n, 0.0) - c0)
        store(total, i, t0)
        store(product, i, p0)
        i += DOUBLES


@scalar
def _clear(columns: Address, size: int) -> None:
    """Zeros in so many columns, and up to a whole register."""
    for i in range(0, size, DOUBLES):
        store(columns, i, spread_doubles(0.0))


@scalar
def _gather(columns: Address, channels: int, inner: int, tile: int, values: Address) -> None:
    """Add up the columns of each channel."""
    for c in range(channels):
        total = 0.0
        for i in range(inner):
            total += read(columns, c * inner + i)
        write(values, c, total)
    for k in range(channels, channels * tile, channels):
        for c in range(channels):
            write(values, c, read(values, c) + read(columns, k + c))


@scalar
def pivots(x: Address, at: int, channels: int, inner: int, pivot: Address) -> None:
    """The pivot of each channel: the first of its columns in the row that begins at ``x[at]``."""
    for c in range(channels):
        write(pivot, c, pivot1(read(x, at + c * inner)))


@scalar
def chunk_moments(
    x: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    origin: Address,
    total: Address,
    m2: Address,
) -> None:
    """Moments about ``origin`` of rows ``start`` to ``stop`` into ``total`` and ``m2``, for ``left`` to ``right``."""
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    pivot, values, squares = stack(origin, CHUNK), stack(origin, CHUNK), stack(origin, CHUNK)
    channel_pivot = stack(origin, CHUNK)
    pivots(x, start * stride + first, right - left, inner, channel_pivot)
    copy(channel_pivot, 0, right - left, pivot)
    spread_columns(pivot, right - left, inner, tile)
    _clear(values, size)
    _clear(squares, size)
    for n in range(start, stop, SUM_ROWS):
        _add_squares(x, n * stride + first, stride, min(SUM_ROWS, stop - n), size, pivot, values, squares)
    _gather(values, right - left, inner, tile, values)
    _gather(squares, right - left, inner, tile, squares)
    count = spread_doubles((stop - start) * inner * tile)
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        i = c - left
        about = load_doubles(channel_pivot, i), load_first_doubles(origin, c, n, 0.0)
        moments = block_moments1(count, about[0], load_doubles(values, i), load_doubles(squares, i), about[1])
        store_first_doubles(total, c, n, moments[1])
        store_first_doubles(m2, c, n, moments[2])


@scalar
def means_vars(left: int, right: int, origin: Address, count: float, total: Address, m2: Address) -> None:
    """Turn moments into means (in ``total``) and biased variances (in ``m2``)."""
    counts = spread_doubles(count)
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        sums = load_first_doubles(total, c, n, 0.0), load_first_doubles(m2, c, n, 0.0)
        mean, var = mean_var1(load_first_doubles(origin, c, n, 0.0), counts, sums[0], sums[1])
        store_first_doubles(total, c, n, mean)
        store_first_doubles(m2, c, n, var)


@scalar
def merge_segments(parts: Float64Array, shape: Matrix, origin: Float64Array, mean: Address, var: Address) -> None:
    """Merge the moments of all segments, (segments, 2, channels), in order, into means and biased variances."""
    rows, tile, channels, inner = shape
    segments = parts.shape[0]
    for c in range(0, channels, DOUBLES):
        n = min(DOUBLES, channels - c)
        count = spread_doubles(rows // segments * inner * tile)
        moments = (
            count,
            load_first_doubles(data(parts), c, n, 0.0),
            load_first_doubles(data(parts), channels + c, n, 0.0),
        )
        for s in range(1, segments):
            size = (rows * (s + 1) // segments - rows * s // segments) * inner * tile
            i = 2 * s * channels + c
            part = load_first_doubles(data(parts), i, n, 0.0), load_first_doubles(data(parts), i + channels, n, 0.0)
            moments = merge_moments1(moments[0], moments[1], moments[2], spread_doubles(size), part[0], part[1])
        store_first_doubles(mean, c, n, moments[1])
        store_first_doubles(var, c, n, moments[2])
    means_vars(0, channels, data(origin), np.float64(rows * inner * tile), mean, var)


@scalar
def add_segments(parts: Float64Array, sum_dout: Address, sum_product: Address) -> None:
    """Add the sums of all segments, (segments, 2, channels), in order."""
    segments, _, channels = parts.shape
    for c in range(0, channels, DOUBLES):
        n = min(DOUBLES, channels - c)
        values = products = spread_doubles(0.0)
        for s in range(segments):
            i = 2 * s * channels + c
            values = values + load_first_doubles(data(parts), i, n, 0.0)
            products = products + load_first_doubles(data(parts), i + channels, n, 0.0)
        store_first_doubles(sum_dout, c, n, values)
        store_first_doubles(sum_product, c, n, products)


@scalar
def chunk_sums(
    dout: Address,
    x: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Address,
    sum_dout: Address,
    sum_product: Address,
) -> None:
    """``sum(dout)`` and ``sum(dout * (x - mean))`` of rows ``start`` to ``stop``, for ``left`` to ``right``."""
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    center, values, products = stack(mean, CHUNK), stack(mean, CHUNK), stack(mean, CHUNK)
    copy(mean, left, right, center)
    spread_columns(center, right - left, inner, tile)
    _clear(values, size)
    _clear(products, size)
    for n in range(start, stop, SUM_ROWS // 2):
        _add_products(dout, x, n * stride + first, stride, min(SUM_ROWS // 2, stop - n), size, center, values, products)
    _gather(values, right - left, inner, tile, values)
    _gather(products, right - left, inner, tile, products)
    for c in range(left, right):
        write(sum_dout, c, read(values, c - left))
        write(sum_product, c, read(products, c - left))
