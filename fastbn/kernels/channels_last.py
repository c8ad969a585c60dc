"""Kernels for tensors whose channels hold single values or short rows: NC, NHWC and its like, small planes of NCHW.

Tensors are (rows, tile, C * inner), C-contiguous; everything else is (C,) float64. Where ``inner`` is 1, a row may hold
``tile`` values of each channel; else ``tile`` is 1. The columns of a row are cut into chunks (see ``columns``), rows
into segments, which are merged in order. All of this depends on the shape alone, so the bits do not depend on the
number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastbn._typing import Array, Float64Array
from fastbn.kernels.columns import (
    channels_of,
    chunk_moments,
    chunk_sums,
    gradient_chunk,
    means_vars,
    merge_columns,
    normalize_chunk,
    pivots,
)
from fastbn.kernels.formulas import inv_std1
from fastbn.kernels.jit import kernel, scalar

# Without sums to keep, a task takes SPAN columns and as many rows as repay the spreading of the coefficients.
SPAN = 2048
BLOCK_ROWS = 128


@scalar
def _matrix(x: Array) -> Array:
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2])


@kernel
def batch_stats(x: Array, segments: int, mean: Float64Array, var: Float64Array) -> None:
    """Mean and biased variance of each channel.

    Traffic:  reads x once.
    Parallel: over (segments, chunks), each with one writer; a channel's segments are merged in order.
    """
    rows, tile, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    chunks = -(-channels // step)
    matrix = _matrix(x)
    origin = np.empty(channels)
    pivots(matrix[0], inner, origin)
    parts = np.empty((2, segments, channels))
    for task in prange(segments * chunks):
        s = task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        start = rows * s // segments
        stop = rows * (s + 1) // segments
        chunk_moments(matrix, inner, tile, left, right, start, stop, origin, parts[0, s], parts[1, s])
    for s in range(segments):
        before = rows * s // segments * inner * tile
        count = rows * (s + 1) // segments * inner * tile - before
        merge_columns(np.float64(before), mean, var, np.float64(count), parts[0, s], parts[1, s])
    means_vars(origin, np.float64(rows * inner * tile), mean, var)


@kernel
def normalize(
    x: Array, mean: Float64Array, inv_std: Float64Array, gamma: Float64Array, beta: Float64Array, out: Array
) -> None:
    """Write ``out = (x - mean) * inv_std * gamma + beta``. ``out`` may be ``x``.

    Traffic:  reads x once, writes out once, from the last rows to the first: the statistics ended on the last.
    Parallel: over blocks of rows and chunks, each with one writer.
    Numerics: coefficients in float64, elements in x's dtype.
    """
    rows, tile, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = max(1, SPAN // inner)
    chunks = -(-channels // step)
    x_matrix = _matrix(x)
    out_matrix = _matrix(out)
    blocks = max(1, rows // BLOCK_ROWS)
    for task in prange(blocks * chunks):
        b = blocks - 1 - task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        start = rows * b // blocks
        stop = rows * (b + 1) // blocks
        normalize_chunk(x_matrix, inner, tile, left, right, start, stop, mean, inv_std, gamma, beta, out_matrix)


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
    rows, tile, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    x_matrix = _matrix(x)
    out_matrix = _matrix(out)
    origin = np.empty(channels)
    inv_std = np.empty(channels)
    pivots(x_matrix[0], inner, origin)
    for chunk in prange(-(-channels // step)):
        left = chunk * step
        right = min(left + step, channels)
        chunk_moments(x_matrix, inner, tile, left, right, 0, rows, origin, mean, var)
        means_vars(origin[left:right], np.float64(rows * inner * tile), mean[left:right], var[left:right])
        for c in range(left, right):
            inv_std[c] = inv_std1(var[c], eps)
        normalize_chunk(x_matrix, inner, tile, left, right, 0, rows, mean, inv_std, gamma, beta, out_matrix)


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
    rows, tile, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    chunks = -(-channels // step)
    dout_matrix = _matrix(dout)
    x_matrix = _matrix(x)
    parts = np.empty((2, segments, channels))
    for task in prange(segments * chunks):
        s = task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        start = rows * s // segments
        stop = rows * (s + 1) // segments
        chunk_sums(dout_matrix, x_matrix, inner, tile, left, right, start, stop, mean, parts[0, s], parts[1, s])
    sum_dout[:] = parts[0, 0]
    sum_dout_xhat[:] = parts[1, 0]
    for s in range(1, segments):
        for c in range(channels):
            sum_dout[c] += parts[0, s, c]
            sum_dout_xhat[c] += parts[1, s, c]
    for c in range(channels):
        sum_dout_xhat[c] *= inv_std[c]


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
    rows, tile, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = max(1, SPAN // inner)
    chunks = -(-channels // step)
    tensors = (_matrix(dout), _matrix(x), _matrix(dx))
    blocks = max(1, rows // BLOCK_ROWS)
    for task in prange(blocks * chunks):
        b = blocks - 1 - task // chunks
        left = task % chunks * step
        right = min(left + step, channels)
        start = rows * b // blocks
        stop = rows * (b + 1) // blocks
        gradient_chunk(
            tensors, inner, tile, left, right, start, stop, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count
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
    rows, tile, columns = x.shape
    channels = mean.size
    inner = columns // channels
    step = channels_of(inner)
    count = np.float64(rows * inner * tile)
    tensors = (_matrix(dout), _matrix(x), _matrix(dx))
    for chunk in prange(-(-channels // step)):
        left = chunk * step
        right = min(left + step, channels)
        chunk_sums(tensors[0], tensors[1], inner, tile, left, right, 0, rows, mean, sum_dout, sum_dout_xhat)
        for c in range(left, right):
            sum_dout_xhat[c] *= inv_std[c]
        gradient_chunk(tensors, inner, tile, left, right, 0, rows, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count)
