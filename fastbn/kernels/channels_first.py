"""Kernels for tensors whose channels hold long contiguous rows: NCHW and its like.

Tensors are (outer, C, inner), C-contiguous; everything else is (C,) float64. The blocks of a channel (see ``rows``)
are cut into segments, which are merged in order. All of this depends on the shape alone, so the bits do not depend on
the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastbn._typing import Array, Float64Array
from fastbn.kernels.coefficients import affine_channels, gradient_channels
from fastbn.kernels.formulas import affine1, gradient1, inv_std1, mean_var1, merge_moments1
from fastbn.kernels.jit import kernel
from fastbn.kernels.rows import (
    blocks_of,
    gradient_row,
    gradient_rows,
    normalize_row,
    normalize_rows,
    origin_of,
    pieces_of,
    rows_at_once,
    segment_moments,
    segment_sums,
)


@kernel
def batch_stats(x: Array, segments: int, mean: Float64Array, var: Float64Array) -> None:
    """Mean and biased variance of each channel.

    Traffic:  reads x once.
    Parallel: over (C, segments), each with one writer; a channel's segments are merged in order.
    """
    outer, channels, inner = x.shape
    blocks = blocks_of(outer, inner)
    parts = np.empty((channels, segments, 3))
    for task in prange(channels * segments):
        c = task // segments
        s = task % segments
        part = segment_moments(x, c, blocks * s // segments, blocks * (s + 1) // segments)
        parts[c, s, 0], parts[c, s, 1], parts[c, s, 2] = part
    for c in range(channels):
        moments = (0.0, 0.0, 0.0)
        for s in range(segments):
            moments = merge_moments1(moments[0], moments[1], moments[2], parts[c, s, 0], parts[c, s, 1], parts[c, s, 2])
        mean[c], var[c] = mean_var1(origin_of(x, c), moments[0], moments[1], moments[2])


@kernel
def normalize(
    x: Array, mean: Float64Array, inv_std: Float64Array, gamma: Float64Array, beta: Float64Array, out: Array
) -> None:
    """Write ``out = (x - mean) * inv_std * gamma + beta``. ``out`` may be ``x``.

    Traffic:  reads x once, writes out once.
    Parallel: over rows, or pieces of long ones, each with one writer.
    Numerics: coefficients in float64, elements in x's dtype.
    """
    outer, channels, inner = x.shape
    rows = outer * channels
    together = rows_at_once(inner)
    pieces = pieces_of(inner)
    coefficients = np.empty((3, channels), x.dtype)
    affine_channels(x, mean, inv_std, gamma, beta, coefficients)
    x_rows = x.reshape(rows, inner)
    out_rows = out.reshape(rows, inner)
    for task in prange(-(-rows // together) * pieces):
        first = task // pieces * together
        normalize_rows(x_rows, out_rows, coefficients, first, min(first + together, rows), task % pieces)


@kernel
def forward(
    x: Array,
    eps: float,
    gamma: Float64Array,
    beta: Float64Array,
    out: Array,
    mean: Float64Array,
    var: Float64Array,
) -> None:
    """``batch_stats`` with one segment, then ``normalize``, channel by channel: the same bits.

    Traffic:  reads x and writes out once where a channel's values stay in cache, else reads x twice. The second pass
              goes backwards, so that it begins on what is still there.
    Parallel: over channels.
    """
    outer, channels, inner = x.shape
    for c in prange(channels):
        count, total, m2 = segment_moments(x, c, 0, blocks_of(outer, inner))
        mean[c], var[c] = mean_var1(origin_of(x, c), count, total, m2)
        center, scale, shift = affine1(x, mean[c], inv_std1(var[c], eps), gamma[c], beta[c])
        for n in range(outer - 1, -1, -1):
            normalize_row(x[n, c], out[n, c], center, scale, shift)


@kernel
def backward_sums(
    dout: Array,
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    segments: int,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
) -> None:
    """The two sums of the gradient: ``sum(dout)`` and ``sum(dout * x_hat)``.

    Traffic:  reads dout and x once.
    Parallel: over (C, segments), each with one writer; a channel's segments are added in order.
    """
    outer, channels, inner = x.shape
    blocks = blocks_of(outer, inner)
    parts = np.empty((channels, segments, 2))
    for task in prange(channels * segments):
        c = task // segments
        s = task % segments
        part = segment_sums(dout, x, c, mean[c], blocks * s // segments, blocks * (s + 1) // segments)
        parts[c, s, 0], parts[c, s, 1] = part
    for c in range(channels):
        total = 0.0
        product = 0.0
        for s in range(segments):
            total += parts[c, s, 0]
            product += parts[c, s, 1]
        sum_dout[c] = total
        sum_dout_xhat[c] = product * inv_std[c]


@kernel
def backward_input(
    dout: Array,
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    count: float,
    dx: Array,
) -> None:
    """Write ``dx`` from finished channel sums. ``dx`` may be ``dout``.

    Traffic:  reads dout and x once, writes dx once.
    Parallel: over rows, or pieces of long ones, each with one writer.
    Numerics: coefficients in float64, elements in x's dtype.
    """
    outer, channels, inner = x.shape
    rows = outer * channels
    together = rows_at_once(inner)
    pieces = pieces_of(inner)
    coefficients = np.empty((6, channels), x.dtype)
    gradient_channels(x, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count, coefficients)
    tensors = (dout.reshape(rows, inner), x.reshape(rows, inner), dx.reshape(rows, inner))
    for task in prange(-(-rows // together) * pieces):
        first = task // pieces * together
        last = min(first + together, rows)
        gradient_rows(tensors[0], tensors[1], tensors[2], coefficients, first, last, task % pieces)


@kernel
def backward(
    dout: Array,
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    dx: Array,
) -> None:
    """``backward_sums`` with one segment, then ``backward_input``, channel by channel: the same bits.

    Traffic:  reads dout and x and writes dx once where a channel's values stay in cache, else reads both twice.
    Parallel: over channels.
    """
    outer, channels, inner = x.shape
    count = np.float64(outer * inner)
    for c in prange(channels):
        total, product = segment_sums(dout, x, c, mean[c], 0, blocks_of(outer, inner))
        sum_dout[c] = total
        sum_dout_xhat[c] = product * inv_std[c]
        center, unit, shift, scale, slope, offset = gradient1(
            x, mean[c], inv_std[c], gamma[c], sum_dout[c], sum_dout_xhat[c], count
        )
        for n in range(outer - 1, -1, -1):
            gradient_row(dout[n, c], x[n, c], dx[n, c], center, unit, shift, scale, slope, offset)
