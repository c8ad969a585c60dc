"""The work on one chunk of columns, for ``channels_last``.

A row of the tensor is longer than any channel's part of it, so vector registers run along the row and each column has
sums of its own, in float64; a channel's columns are added up at the end. These are ``inner`` columns side by side, or
where ``inner`` is 1, ``tile`` columns a whole set of channels apart. A *chunk* is a run of whole channels, ``left`` to
``right``, whose sums stay in the first-level cache.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Array, Float64Array
from fastbn.kernels.coefficients import affine_channels, gradient_channels, spread
from fastbn.kernels.formulas import block_moments1, grad_input1, mean_var1, merge_moments1, normalize1, pivot1
from fastbn.kernels.jit import elementwise, reduction, scalar
from fastbn.kernels.prefetch import prefetch
from fastbn.kernels.rows import gradient_row, normalize_row

CHUNK = 512  # columns whose sums a task keeps at hand: 12 kB
WIDE = 64  # columns of one channel from which its coefficients are better held in registers than spread over columns


@scalar
def channels_of(inner: int) -> int:
    """Channels in one chunk of columns."""
    return max(1, CHUNK // inner)


@elementwise
def _add_squares4(
    x0: Array, x1: Array, x2: Array, x3: Array, pivot: Float64Array, total: Float64Array, square: Float64Array
) -> None:
    for i in range(pivot.size):
        d0 = np.float64(x0[i]) - pivot[i]
        d1 = np.float64(x1[i]) - pivot[i]
        d2 = np.float64(x2[i]) - pivot[i]
        d3 = np.float64(x3[i]) - pivot[i]
        total[i] += (d0 + d1) + (d2 + d3)
        square[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@elementwise
def _add_squares1(x: Array, pivot: Float64Array, total: Float64Array, square: Float64Array) -> None:
    for i in range(pivot.size):
        d = np.float64(x[i]) - pivot[i]
        total[i] += d
        square[i] += d * d


@elementwise
def _add_products2(
    dout0: Array, dout1: Array, x0: Array, x1: Array, mean: Float64Array, total: Float64Array, product: Float64Array
) -> None:
    for i in range(mean.size):
        d0 = np.float64(dout0[i])
        d1 = np.float64(dout1[i])
        total[i] += d0 + d1
        product[i] += d0 * (np.float64(x0[i]) - mean[i]) + d1 * (np.float64(x1[i]) - mean[i])


@elementwise
def _add_products1(dout: Array, x: Array, mean: Float64Array, total: Float64Array, product: Float64Array) -> None:
    for i in range(mean.size):
        d = np.float64(dout[i])
        total[i] += d
        product[i] += d * (np.float64(x[i]) - mean[i])


@reduction
def _sum(values: Float64Array) -> float:
    total = 0.0
    for i in range(values.size):
        total += values[i]
    return total


@elementwise
def _add(terms: Float64Array, sums: Float64Array) -> None:
    for i in range(sums.size):
        sums[i] += terms[i]


@scalar
def _gather(columns: Float64Array, inner: int, values: Float64Array) -> None:
    """Add up the columns of each channel."""
    channels = values.size
    if inner == 1:
        values[:] = columns[:channels]
        for first in range(channels, columns.size, channels):
            _add(columns[first : first + channels], values)
        return
    for c in range(channels):
        values[c] = _sum(columns[c * inner : (c + 1) * inner])


@scalar
def pivots(x: Array, inner: int, pivot: Float64Array) -> None:
    """The pivot of each channel: the first of its columns in this row."""
    for c in range(pivot.size):
        pivot[c] = pivot1(x[c * inner])


@scalar
def _finish(count: float, pivot: Float64Array, origin: Float64Array, total: Float64Array, square: Float64Array) -> None:
    """Turn sums about ``pivot`` into those about ``origin`` (in ``total``) and centred ones (in ``square``)."""
    for c in range(pivot.size):
        _, total[c], square[c] = block_moments1(count, pivot[c], total[c], square[c], origin[c])


@scalar
def chunk_moments(
    x: Array,
    inner: int,
    tile: int,
    left: int,
    right: int,
    start: int,
    stop: int,
    origin: Float64Array,
    total: Float64Array,
    m2: Float64Array,
) -> None:
    """Moments about ``origin`` of rows ``start`` to ``stop`` into ``total[left:right]`` and ``m2[left:right]``."""
    first = left * inner * tile
    last = right * inner * tile
    sums = np.zeros((3, last - first))
    pivot, column_total, square = sums[0], sums[1], sums[2]
    channel_pivot = np.empty(right - left)
    pivots(x[start][first:last], inner, channel_pivot)
    spread(channel_pivot, inner, pivot)
    tail = start + (stop - start) // 4 * 4
    for n in range(start, tail, 4):
        for ahead in range(n + 4, min(n + 8, stop)):
            prefetch(x[ahead][first:last])
        _add_squares4(
            x[n][first:last],
            x[n + 1][first:last],
            x[n + 2][first:last],
            x[n + 3][first:last],
            pivot,
            column_total,
            square,
        )
    for n in range(tail, stop):
        _add_squares1(x[n][first:last], pivot, column_total, square)
    _gather(column_total, inner, total[left:right])
    _gather(square, inner, m2[left:right])
    count = np.float64((stop - start) * inner * tile)
    _finish(count, channel_pivot, origin[left:right], total[left:right], m2[left:right])


@scalar
def merge_columns(
    count_a: float, total_a: Float64Array, m2_a: Float64Array, count_b: float, total_b: Float64Array, m2_b: Float64Array
) -> None:
    """Merge the moments ``b`` of every channel into ``a``."""
    for c in range(total_a.size):
        _, total_a[c], m2_a[c] = merge_moments1(count_a, total_a[c], m2_a[c], count_b, total_b[c], m2_b[c])


@scalar
def means_vars(origin: Float64Array, count: float, total: Float64Array, m2: Float64Array) -> None:
    """Turn moments into means (in ``total``) and biased variances (in ``m2``)."""
    for c in range(origin.size):
        total[c], m2[c] = mean_var1(origin[c], count, total[c], m2[c])


@scalar
def chunk_sums(
    dout: Array,
    x: Array,
    inner: int,
    tile: int,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Float64Array,
    sum_dout: Float64Array,
    sum_product: Float64Array,
) -> None:
    """``sum(dout)`` and ``sum(dout * (x - mean))`` of rows ``start`` to ``stop`` into the slices ``left:right``."""
    first = left * inner * tile
    last = right * inner * tile
    sums = np.zeros((3, last - first))
    center, total, product = sums[0], sums[1], sums[2]
    spread(mean[left:right], inner, center)
    tail = start + (stop - start) // 2 * 2
    for n in range(start, tail, 2):
        for ahead in range(n + 2, min(n + 4, stop)):
            prefetch(dout[ahead][first:last])
            prefetch(x[ahead][first:last])
        _add_products2(
            dout[n][first:last],
            dout[n + 1][first:last],
            x[n][first:last],
            x[n + 1][first:last],
            center,
            total,
            product,
        )
    for n in range(tail, stop):
        _add_products1(dout[n][first:last], x[n][first:last], center, total, product)
    _gather(total, inner, sum_dout[left:right])
    _gather(product, inner, sum_product[left:right])


@elementwise
def _normalize_columns(x: Array, out: Array, center: Array, scale: Array, shift: Array) -> None:
    for i in range(center.size):
        out[i] = normalize1(x[i], center[i], scale[i], shift[i])


@scalar
def normalize_chunk(
    x: Array,
    inner: int,
    tile: int,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    beta: Float64Array,
    out: Array,
) -> None:
    """Normalise the rows ``start`` to ``stop`` of the channels ``left`` to ``right``, last row first."""
    first = left * inner * tile
    last = right * inner * tile
    values = np.empty((3, right - left), x.dtype)
    part = slice(left, right)
    affine_channels(x, mean[part], inv_std[part], gamma[part], beta[part], values)
    if inner >= WIDE:
        for c in range(left, right):
            i = c * inner
            for n in range(stop - 1, start - 1, -1):
                normalize_row(
                    x[n][i : i + inner],
                    out[n][i : i + inner],
                    values[0, c - left],
                    values[1, c - left],
                    values[2, c - left],
                )
        return
    coefficients = np.empty((3, last - first), x.dtype)
    for j in range(3):
        spread(values[j], inner, coefficients[j])
    for n in range(stop - 1, start - 1, -1):
        _normalize_columns(x[n][first:last], out[n][first:last], coefficients[0], coefficients[1], coefficients[2])


@elementwise
def _gradient_columns(
    dout: Array,
    x: Array,
    dx: Array,
    center: Array,
    unit: Array,
    shift: Array,
    scale: Array,
    slope: Array,
    offset: Array,
) -> None:
    for i in range(center.size):
        dx[i] = grad_input1(dout[i], x[i], center[i], unit[i], shift[i], scale[i], slope[i], offset[i])


@scalar
def gradient_chunk(
    tensors: tuple[Array, Array, Array],
    inner: int,
    tile: int,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    count: float,
) -> None:
    """``tensors`` are dout, x and dx: write dx for rows and channels as ``normalize_chunk`` does."""
    dout, x, dx = tensors
    first = left * inner * tile
    last = right * inner * tile
    values = np.empty((6, right - left), x.dtype)
    part = slice(left, right)
    gradient_channels(x, mean[part], inv_std[part], gamma[part], sum_dout[part], sum_dout_xhat[part], count, values)
    if inner >= WIDE:
        for c in range(left, right):
            i = c * inner
            k = c - left
            for n in range(stop - 1, start - 1, -1):
                gradient_row(
                    dout[n][i : i + inner],
                    x[n][i : i + inner],
                    dx[n][i : i + inner],
                    values[0, k],
                    values[1, k],
                    values[2, k],
                    values[3, k],
                    values[4, k],
                    values[5, k],
                )
        return
    coefficients = np.empty((6, last - first), x.dtype)
    for j in range(6):
        spread(values[j], inner, coefficients[j])
    for n in range(stop - 1, start - 1, -1):
        _gradient_columns(
            dout[n][first:last],
            x[n][first:last],
            dx[n][first:last],
            coefficients[0],
            coefficients[1],
            coefficients[2],
            coefficients[3],
            coefficients[4],
            coefficients[5],
        )
