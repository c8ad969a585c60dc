"""The work on one chunk of columns, for ``channels_last``.

A row of the tensor is longer than any channel's part of it, so vector registers run along the row and each column has
sums of its own, in float64; a channel's ``inner`` columns are added up at the end. A *chunk* is a run of whole
channels whose sums stay in the first-level cache.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Array, Float64Array
from fastbn.kernels.formulas import affine1, block_moments1, grad_input1, gradient1, normalize1, pivot1
from fastbn.kernels.jit import elementwise, reduction, scalar
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


@scalar
def chunk_moments(x: Array, inner: int, left: int, right: int, start: int, stop: int, moments: Float64Array) -> None:
    """Count, mean and M2 of rows ``start`` to ``stop`` into ``moments[c]``, for the channels ``left`` to ``right``."""
    first = left * inner
    last = right * inner
    sums = np.zeros((3, last - first))
    pivot, total, square = sums[0], sums[1], sums[2]
    for c in range(left, right):
        pivot[(c - left) * inner : (c - left + 1) * inner] = pivot1(x[start, c * inner])
    tail = start + (stop - start) // 4 * 4
    for n in range(start, tail, 4):
        _add_squares4(
            x[n][first:last],
            x[n + 1][first:last],
            x[n + 2][first:last],
            x[n + 3][first:last],
            pivot,
            total,
            square,
        )
    for n in range(tail, stop):
        _add_squares1(x[n][first:last], pivot, total, square)
    count = np.float64((stop - start) * inner)
    for c in range(left, right):
        i = (c - left) * inner
        part = block_moments1(count, pivot[i], _sum(total[i : i + inner]), _sum(square[i : i + inner]))
        moments[c, 0], moments[c, 1], moments[c, 2] = part


@scalar
def chunk_sums(
    dout: Array,
    x: Array,
    inner: int,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Float64Array,
    parts: Float64Array,
) -> None:
    """``sum(dout)`` and ``sum(dout * (x - mean))`` of rows ``start`` to ``stop`` into ``parts[c]``."""
    first = left * inner
    last = right * inner
    sums = np.zeros((3, last - first))
    center, total, product = sums[0], sums[1], sums[2]
    for c in range(left, right):
        center[(c - left) * inner : (c - left + 1) * inner] = mean[c]
    tail = start + (stop - start) // 2 * 2
    for n in range(start, tail, 2):
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
    for c in range(left, right):
        i = (c - left) * inner
        parts[c, 0] = _sum(total[i : i + inner])
        parts[c, 1] = _sum(product[i : i + inner])


@elementwise
def _normalize_columns(x: Array, out: Array, center: Array, scale: Array, shift: Array) -> None:
    for i in range(center.size):
        out[i] = normalize1(x[i], center[i], scale[i], shift[i])


@scalar
def normalize_chunk(
    x: Array,
    inner: int,
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
    first = left * inner
    last = right * inner
    if inner >= WIDE:
        for c in range(left, right):
            center1, scale1, shift1 = affine1(x, mean[c], inv_std[c], gamma[c], beta[c])
            for n in range(stop - 1, start - 1, -1):
                normalize_row(
                    x[n][c * inner : (c + 1) * inner],
                    out[n][c * inner : (c + 1) * inner],
                    center1,
                    scale1,
                    shift1,
                )
        return
    coefficients = np.empty((3, last - first), x.dtype)
    for c in range(left, right):
        values = affine1(x, mean[c], inv_std[c], gamma[c], beta[c])
        i = (c - left) * inner
        for j in range(3):
            coefficients[j, i : i + inner] = values[j]
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
    dout: Array,
    x: Array,
    inner: int,
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
    dx: Array,
) -> None:
    """``dx`` for the rows ``start`` to ``stop`` of the channels ``left`` to ``right``, last row first."""
    first = left * inner
    last = right * inner
    if inner >= WIDE:
        for c in range(left, right):
            center, unit, shift, scale, slope, offset = gradient1(
                x, mean[c], inv_std[c], gamma[c], sum_dout[c], sum_dout_xhat[c], count
            )
            for n in range(stop - 1, start - 1, -1):
                gradient_row(
                    dout[n][c * inner : (c + 1) * inner],
                    x[n][c * inner : (c + 1) * inner],
                    dx[n][c * inner : (c + 1) * inner],
                    center,
                    unit,
                    shift,
                    scale,
                    slope,
                    offset,
                )
        return
    coefficients = np.empty((6, last - first), x.dtype)
    for c in range(left, right):
        i = (c - left) * inner
        values = gradient1(x, mean[c], inv_std[c], gamma[c], sum_dout[c], sum_dout_xhat[c], count)
        for j in range(6):
            coefficients[j, i : i + inner] = values[j]
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
