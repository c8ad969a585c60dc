"""The sums of a chunk of columns, for ``channels_last``.

Everything is flat and given by its address. In the rows of a tensor registers run along the row, and each column has
sums of its own, in float64; a channel's columns are added up at the end. These are ``inner`` columns side by side, or
where ``inner`` is 1, ``tile`` columns a whole set of channels apart. A *chunk* is a run of whole channels, ``left`` to
``right``. What belongs to columns lies in scratch memory, in whole registers.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Address2, Matrix
from fastbn.kernels.addresses import read, stack, write
from fastbn.kernels.coefficients import copy, spread_columns
from fastbn.kernels.formulas import block_moments1, mean_var1, middle1, pivot1
from fastbn.kernels.jit import elementwise, inlined, inner, shared, with_globals
from fastbn.kernels.lanes import if_zero, plus, spread_doubles
from fastbn.kernels.loads import load_doubles, load_first_doubles, load_wide_doubles, load_widest_doubles, width
from fastbn.kernels.prefetch import AHEAD, onward, prefetch_near
from fastbn.kernels.registers import DOUBLES, WIDE_DOUBLES, WIDEST_DOUBLES
from fastbn.kernels.stores import store, store_first

BLOCK_ROWS = 8192  # rows whose sums are added up one by one: sums of millions of rows are as exact as of thousands
CHUNK = 2048  # the most columns whose sums a task keeps at hand: 48 kB
NEAR_CHUNK = 512  # and of tensors that the caches keep
LEAST_CHUNKS = 4  # chunks where each takes all rows; 16, narrower ones, took 1.2 to 1.5 times as long
FAR = 3_000_000  # values from which a tensor comes from far, in order if rows are whole. On a Zen 4 the gradient's sums
# of 4096x1024 took 0.72 to 0.79 of the time in chunks of 1024 columns, not 512, of 3136x1024 0.83 to 0.92, but of
# 3136x768 1.0 to 1.08; of 6272x2048 0.82 to 0.85 in those of 2048, not 1024, of 1568x2048 0.88 to 1.01. Statistics 0.8
# to 1.05.
ROWS = 8  # rows of a tensor that are summed together for one load and store of the sums,
SHORT = 4096  # and of short rows so many values. 16 rows or 4: 0.95 to 1.1 times as long. Fewer of far tensors, with
# lines asked for in the order of the sums, took on two cores of a Zen 4 4310 us instead of 3550 (forward of 25088 rows
# of 512) and 8210 instead of 5050 (100352 of 256), on one core 8400 instead of 5160 (25088 of 512). 2048 values of rows
# of 64: statistics 1.0 to 1.3 times as long.


@shared
def _size(shape: Matrix) -> int:
    return shape[0] * shape[1] * shape[2] * shape[3]


@shared
def chunks_of(shape: Matrix) -> int:
    """How many chunks of columns there are, each of as many channels as a task keeps the sums of."""
    _, _, channels, inner = shape
    return -(-channels // max(1, (CHUNK if _size(shape) >= FAR else NEAR_CHUNK) // inner))


@inner
def sum_chunks_of(shape: Matrix, segments: int, parallel: bool) -> int:
    """How many chunks there are in a segment: with threads and one segment at least some, for their sake.

    On one core of a Zen 4, all 512 columns of 128 rows at once took 0.75 to 0.9 of the time.
    """
    _, tile, channels, inner = shape
    chunks = chunks_of(shape)
    if tile > 1 or segments > 1 or not parallel:
        return chunks
    return max(chunks, min(LEAST_CHUNKS, channels * inner // WIDE_DOUBLES))


@inner
def edge_of(shape: Matrix, chunks: int, chunk: int) -> int:
    """The first channel of a chunk: all are as wide as the others, but for some registers.

    Of 15x15x960, where one was narrower, on two threads, forward and backward took 1.25 to 1.35 times as long.
    """
    _, tile, channels, inner = shape
    edge = channels * chunk // chunks
    return min(channels, -(-edge // WIDE_DOUBLES) * WIDE_DOUBLES) if tile * inner == 1 else edge


@inner
def _cut(stride: int, tensors: int) -> tuple[int, int]:
    """Rows that are summed together, and how many values ahead of them others are asked for."""
    step = max(ROWS, SHORT // stride) // tensors
    return step, max(step, AHEAD // stride) * stride


@elementwise
def _add_squares(
    x: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    ahead: int,
    pivot: Address,
    total: Address,
    square: Address,
) -> None:
    """Add ``rows`` runs of ``size`` values, the first from ``x[at]`` on, to the sums of their columns.

    Meanwhile the rows ``ahead`` are asked for, in the memory's order: they are what the next call begins with.
    """
    stop = at + rows * stride
    following = at + ahead
    end = following + size
    i = 0
    while i + WIDE_DOUBLES <= size:
        p, t, s = load_wide_doubles(pivot, i), load_wide_doubles(total, i), load_wide_doubles(square, i)
        for k in range(at + i, stop + i, stride):
            for line in range(following, following + WIDE_DOUBLES, width(x)):
                prefetch_near(x, line)
            following, end = onward(following, end, WIDE_DOUBLES, size, stride)
            d = load_wide_doubles(x, k) - p
            t = plus(t, d)
            s = s + d * d
        store(total, i, t)
        store(square, i, s)
        i += WIDE_DOUBLES
    while i < size:
        n = min(DOUBLES, size - i)
        p, t, s = load_doubles(pivot, i), load_doubles(total, i), load_doubles(square, i)
        for k in range(at + i, stop + i, stride):
            prefetch_near(x, k + ahead)
            d = load_first_doubles(x, k, n, 0.0) - p
            t = plus(t, d)
            s = s + d * d
        store(total, i, t)
        store(square, i, s)
        i += DOUBLES


def _products(
    dout: Address,
    x: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    ahead: int,
    center: Address,
    total: Address,
    product: Address,
) -> int:
    """``_add_products`` as far as there are ``WIDE_DOUBLES`` columns; returns where they end."""
    stop = at + rows * stride
    following = at + ahead
    end = following + size
    i = 0
    while i + WIDE_DOUBLES <= size:
        c, t, p = load_wide_doubles(center, i), load_wide_doubles(total, i), load_wide_doubles(product, i)
        for k in range(at + i, stop + i, stride):
            for line in range(following, following + WIDE_DOUBLES, width(x)):
                prefetch_near(dout, line)
                prefetch_near(x, line)
            following, end = onward(following, end, WIDE_DOUBLES, size, stride)
            d = load_wide_doubles(dout, k)
            t = plus(t, d)
            p = p + d * (load_wide_doubles(x, k) - c)
        store(total, i, t)
        store(product, i, p)
        i += WIDE_DOUBLES
    return i


_WIDEST = {"load_wide_doubles": load_widest_doubles, "WIDE_DOUBLES": WIDEST_DOUBLES}
_wide_products = inlined(_products)
_widest_products = inlined(with_globals(_products, "_widest_products", _WIDEST))


@elementwise
def _add_products(
    dout: Address,
    x: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    ahead: int,
    center: Address,
    total: Address,
    product: Address,
) -> None:
    """The same for ``dout`` and ``dout * (x - center)``.

    Rows of ``WIDEST_DOUBLES`` are read as they lie: in two halves, backward of 65536x64 took 1.1 to 1.3 times as long.
    """
    stop = at + rows * stride
    if WIDE_DOUBLES < WIDEST_DOUBLES and size == WIDEST_DOUBLES:
        i = _widest_products(dout, x, at, stride, rows, size, ahead, center, total, product)
    else:
        i = _wide_products(dout, x, at, stride, rows, size, ahead, center, total, product)
    while i < size:
        n = min(DOUBLES, size - i)
        c, t, p = load_doubles(center, i), load_doubles(total, i), load_doubles(product, i)
        for k in range(at + i, stop + i, stride):
            prefetch_near(dout, k + ahead)
            prefetch_near(x, k + ahead)
            d = load_first_doubles(dout, k, n, 0.0)
            t = plus(t, d)
            p = p + d * (load_first_doubles(x, k, n, 0.0) - c)
        store(total, i, t)
        store(product, i, p)
        i += DOUBLES


@inner
def _clear(columns: Address, size: int) -> None:
    """Zeros in so many columns, and up to a whole register."""
    for i in range(0, size, DOUBLES):
        store(columns, i, spread_doubles(0.0))


@inner
def _gather(columns: Address, channels: int, inner: int, tile: int) -> None:
    """Add up the columns of each channel, in place: there are many where rows are short, or several in a tile."""
    if inner > 1:
        for c in range(channels):
            total = 0.0
            for i in range(inner):
                total += read(columns, c * inner + i)
            write(columns, c, total)
    for k in range(channels, channels * tile, channels):
        for c in range(channels):
            write(columns, c, read(columns, c) + read(columns, k + c))


@inner
def pivots(x: Address, at: int, stride: int, rows: int, channels: int, inner: int, pivot: Address) -> None:
    """The pivot of each channel: of its first columns in the first, middle and last of some rows from ``x[at]`` on."""
    middle, last = at + rows // 2 * stride, at + (rows - 1) * stride
    if inner > 1:
        for c in range(channels):
            i = c * inner
            a, b, e = np.float64(read(x, at + i)), np.float64(read(x, middle + i)), np.float64(read(x, last + i))
            write(pivot, c, pivot1(middle1(a, b, e)))
        return
    for c in range(0, channels, DOUBLES):
        n = min(DOUBLES, channels - c)
        a, b = load_first_doubles(x, at + c, n, 0.0), load_first_doubles(x, middle + c, n, 0.0)
        value = middle1(a, b, load_first_doubles(x, last + c, n, 0.0))
        store_first(pivot, c, n, if_zero(value - value, value, spread_doubles(0.0)))  # as pivot1


@inner
def _carry(sums: Address, carried: Address, size: int) -> None:
    """Add the sums of so many columns to those carried on, and begin them anew."""
    for i in range(0, size, DOUBLES):
        store(carried, i, load_doubles(carried, i) + load_doubles(sums, i))
    _clear(sums, size)


@inner
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
    all_values, all_squares = stack(origin, CHUNK), stack(origin, CHUNK)
    channel_pivot = stack(origin, CHUNK)
    pivots(x, start * stride + first, stride, stop - start, right - left, inner, channel_pivot)
    copy(channel_pivot, 0, right - left, pivot)
    spread_columns(pivot, right - left, inner, tile)
    for sums in (values, squares, all_values, all_squares):
        _clear(sums, size)
    step, ahead = _cut(stride, 1)
    for block in range(start, stop, BLOCK_ROWS):
        end = min(stop, block + BLOCK_ROWS)
        for n in range(block, end, step):
            _add_squares(x, n * stride + first, stride, min(step, end - n), size, ahead, pivot, values, squares)
        _carry(values, all_values, size)
        _carry(squares, all_squares, size)
    _gather(all_values, right - left, inner, tile)
    _gather(all_squares, right - left, inner, tile)
    count = spread_doubles((stop - start) * inner * tile)
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        i = c - left
        about = load_doubles(channel_pivot, i), load_first_doubles(origin, c, n, 0.0)
        moments = block_moments1(count, about[0], load_doubles(all_values, i), load_doubles(all_squares, i), about[1])
        store_first(total, c, n, moments[1])
        store_first(m2, c, n, moments[2])


@inner
def means_vars(left: int, right: int, origin: Address, count: float, total: Address, m2: Address) -> None:
    """Turn moments into means (in ``total``) and biased variances (in ``m2``)."""
    counts = spread_doubles(count)
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        sums = load_first_doubles(total, c, n, 0.0), load_first_doubles(m2, c, n, 0.0)
        mean, var = mean_var1(load_first_doubles(origin, c, n, 0.0), counts, sums[0], sums[1])
        store_first(total, c, n, mean)
        store_first(m2, c, n, var)


@inner
def chunk_sums(
    dout: Address,
    x: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Address,
    sums: Address2,
) -> None:
    """``sum(dout)`` and ``sum(dout * (x - mean))`` of rows ``start`` to ``stop``, for ``left`` to ``right``."""
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    center, values, products = stack(mean, CHUNK), stack(mean, CHUNK), stack(mean, CHUNK)
    all_values, all_products = stack(mean, CHUNK), stack(mean, CHUNK)
    copy(mean, left, right, center)
    spread_columns(center, right - left, inner, tile)
    for each in (values, products, all_values, all_products):
        _clear(each, size)
    step, ahead = _cut(stride, 2)
    for block in range(start, stop, BLOCK_ROWS):
        end = min(stop, block + BLOCK_ROWS)
        for n in range(block, end, step):
            at, rows = n * stride + first, min(step, end - n)
            _add_products(dout, x, at, stride, rows, size, ahead, center, values, products)
        _carry(values, all_values, size)
        _carry(products, all_products, size)
    _gather(all_values, right - left, inner, tile)
    _gather(all_products, right - left, inner, tile)
    for c in range(left, right):
        write(sums[0], c, read(all_values, c - left))
        write(sums[1], c, read(all_products, c - left))
