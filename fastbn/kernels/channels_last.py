"""Kernels for tensors whose channels hold single values or short rows: NC, NHWC and its like, small planes of NCHW.

Tensors are (rows, columns), C-contiguous, with ``columns = C * inner``; everything else is (C,) float64. Columns are
cut into chunks (see ``columns``), rows into segments, which are merged in order. Both depend on the shape alone, so
the bits do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastbn._typing import Array, Float64Array
from fastbn.kernels.columns import channels_of, chunk_moments, chunk_sums, gradient_chunk, normalize_chunk
from fastbn.kernels.formulas import inv_std1, merge_moments1
from fastbn.kernels.jit import kernel


@kernel
def batch_stats(x: Array, segments: int, mean: Float64Array, var: Float64Array) -> None:
    """Mean and biased variance of each channel.

    Traffic:  reads x once.
    Parallel: over (segments, chunks), each with one writer; a channel's segments are merged in order.
    """
    rows, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    chunks = -(-channels // step)
    parts = np.empty((segments, channels, 3))
    for task in prange(segments * chunks):
        s = task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        chunk_moments(x, inner, left, right, rows * s // segments, rows * (s + 1) // segments, parts[s])
    for c in range(channels):
        moments = (0.0, 0.0, 0.0)
        for s in range(segments):
            moments = merge_moments1(moments[0], moments[1], moments[2], parts[s, c, 0], parts[s, c, 1], parts[s, c, 2])
        mean[c] = moments[1]
        var[c] = moments[2] / moments[0]


@kernel
def normalize(
    x: Array, mean: Float64Array, inv_std: Float64Array, gamma: Float64Array, beta: Float64Array, out: Array
) -> None:
    """Write ``out = (x - mean) * inv_std * gamma + beta``. ``out`` may be ``x``.

    Traffic:  reads x once, writes out once, from the last rows to the first: the statistics ended on the last.
    Parallel: over blocks of rows and chunks, each with one writer.
    Numerics: coefficients in float64, elements in x's dtype.
    """
    rows, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    chunks = -(-channels // step)
    blocks = max(1, rows // 64)
    for task in prange(blocks * chunks):
        s = blocks - 1 - task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        start = rows * s // blocks
        stop = rows * (s + 1) // blocks
        normalize_chunk(x, inner, left, right, start, stop, mean, inv_std, gamma, beta, out)


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
    """``batch_stats`` with one segment, then ``normalize``, chunk by chunk: the same bits.

    Traffic:  reads x and writes out once where a chunk stays in cache, else reads x twice.
    Parallel: over chunks.
    """
    rows, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    moments = np.empty((channels, 3))
    inv_std = np.empty(channels)
    for chunk in prange(-(-channels // step)):
        left = chunk * step
        right = min(left + step, channels)
        chunk_moments(x, inner, left, right, 0, rows, moments)
        for c in range(left, right):
            mean[c] = moments[c, 1]
            var[c] = moments[c, 2] / moments[c, 0]
            inv_std[c] = inv_std1(var[c], eps)
        normalize_chunk(x, inner, left, right, 0, rows, mean, inv_std, gamma, beta, out)


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
    Parallel: over (segments, chunks), each with one writer; a channel's segments are added in order.
    """
    rows, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    chunks = -(-channels // step)
    parts = np.empty((segments, channels, 2))
    for task in prange(segments * chunks):
        s = task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        chunk_sums(dout, x, inner, left, right, rows * s // segments, rows * (s + 1) // segments, mean, parts[s])
    for c in range(channels):
        total = 0.0
        product = 0.0
        for s in range(segments):
            total += parts[s, c, 0]
            product += parts[s, c, 1]
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

    Traffic:  reads dout and x once, writes dx once, from the last rows to the first.
    Parallel: over blocks of rows and chunks, each with one writer.
    Numerics: coefficients in float64, elements in x's dtype.
    """
    rows, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    chunks = -(-channels // step)
    blocks = max(1, rows // 64)
    for task in prange(blocks * chunks):
        s = blocks - 1 - task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        start = rows * s // blocks
        stop = rows * (s + 1) // blocks
        gradient_chunk(
            dout,
            x,
            inner,
            left,
            right,
            start,
            stop,
            mean,
            inv_std,
            gamma,
            sum_dout,
            sum_dout_xhat,
            count,
            dx,
        )


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
    """``backward_sums`` with one segment, then ``backward_input``, chunk by chunk: the same bits.

    Traffic:  reads dout and x and writes dx once where a chunk stays in cache, else reads both twice.
    Parallel: over chunks.
    """
    rows, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    count = np.float64(rows * inner)
    parts = np.empty((channels, 2))
    for chunk in prange(-(-channels // step)):
        left = chunk * step
        right = min(left + step, channels)
        chunk_sums(dout, x, inner, left, right, 0, rows, mean, parts)
        for c in range(left, right):
            sum_dout[c] = parts[c, 0]
            sum_dout_xhat[c] = parts[c, 1] * inv_std[c]
        gradient_chunk(dout, x, inner, left, right, 0, rows, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count, dx)
