"""Kernels for tensors whose channels hold single values or short rows: NC, NHWC and its like, small planes of NCHW.

Tensors are flat, C-contiguous; ``shape`` is (rows, tile, C, inner); coefficients are those of ``affine1`` or
``gradient1``, in the tensors' dtype; everything else is (C,) float64. Where ``inner`` is
1, a row may hold ``tile`` values of each channel; else ``tile`` is 1. The columns of a row are cut into chunks (see
``columns``), rows into segments, which are merged in order. All of this depends on the shape alone, so the bits do not
depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastbn._typing import Array, Float64Array, Matrix
from fastbn.kernels.addresses import data, offset, stack
from fastbn.kernels.chunk_gradients import gradient_chunk
from fastbn.kernels.chunk_outputs import normalize_chunk
from fastbn.kernels.chunks import SCRATCH, lead, output_chunks_of, row_blocks_of
from fastbn.kernels.coefficients import affine_channels, copy, gradient_channels, inv_std_channels
from fastbn.kernels.columns import (
    chunk_moments,
    chunk_sums,
    chunks_of,
    edge_of,
    fused_chunks,
    means_vars,
    pivots,
)
from fastbn.kernels.scheduling import deal, turns
from fastbn.kernels.segments import add_segments, merge_segments, segments_of
from fastbn.kernels.twins import IS_PARALLEL, kernel


@kernel
def batch_stats(x: Array, shape: Matrix, segments: int, mean: Float64Array, var: Float64Array) -> None:
    """Mean and biased variance of each channel.

    Traffic:  reads x once.
    Parallel: over (segments, chunks), each with one writer; a channel's segments are merged in order.
    """
    rows, _, channels, inner = shape
    chunks = chunks_of(shape)
    origin = np.empty(channels)
    pivots(data(x), 0, channels, inner, data(origin))
    parts = segments_of(segments, channels)
    tasks = segments * chunks
    shares = deal(tasks)
    for worker in prange(len(shares)):
        for task in turns(shares, tasks, worker):
            s = task // chunks
            left = edge_of(shape, chunks, task % chunks)
            right = edge_of(shape, chunks, task % chunks + 1)
            start = rows * s // segments
            stop = rows * (s + 1) // segments
            chunk_moments(data(x), shape, left, right, start, stop, data(origin), data(parts[s, 0]), data(parts[s, 1]))
    merge_segments(parts, shape, origin, data(mean), data(var))


@kernel
def normalize(x: Array, shape: Matrix, coefficients: Array, out: Array, streaming: bool) -> None:
    """Write ``out = (x - mean) * inv_std * gamma + beta`` from the (3, C) coefficients. ``out`` may be ``x``.

    Traffic:  reads x once, writes out once.
    Parallel: over blocks of rows and chunks, each with one writer, in the order of ``batch_stats``: a thread finds in
              its core's part of the caches what it has read. From the last block to the first, it got what the other
              had read: backward of 12544x256 took 485 us instead of 340 where nothing else used the cache, 2 to 6% more
              where others did; that the first blocks had been read last gained nothing, not even on one thread.
    """
    rows, _, channels, _ = shape
    chunks = output_chunks_of(shape)
    blocks = row_blocks_of(shape)
    tasks = blocks * chunks
    shares = deal(tasks)
    for worker in prange(len(shares)):
        for task in turns(shares, tasks, worker):
            b = task // chunks
            left = edge_of(shape, chunks, task % chunks)
            right = edge_of(shape, chunks, task % chunks + 1)
            start = rows * b // blocks
            stop = rows * (b + 1) // blocks
            shift = lead(data(out), shape, left, start)
            values = (
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
            )
            for j in range(3):
                copy(data(coefficients), j * channels + left, j * channels + right, values[j])
            normalize_chunk(data(x), data(out), shape, left, right, start, stop, values, streaming)


@kernel
def forward(
    x: Array,
    shape: Matrix,
    eps: float,
    gamma: Float64Array,
    beta: Float64Array,
    out: Array,
    mean: Float64Array,
    var: Float64Array,
    inv_std: Float64Array,
    streaming: bool,
) -> None:
    """``batch_stats`` with one segment, then ``normalize``, chunk by chunk: the same bits.

    Traffic:  reads x and writes out once where a chunk stays in cache, else reads x twice.
    Parallel: over chunks.
    """
    rows, tile, channels, inner = shape
    chunks = fused_chunks(shape, IS_PARALLEL)
    origin = np.empty(channels)
    pivots(data(x), 0, channels, inner, data(origin))
    shares = deal(chunks)
    for worker in prange(len(shares)):
        for chunk in turns(shares, chunks, worker):
            left = edge_of(shape, chunks, chunk)
            right = edge_of(shape, chunks, chunk + 1)
            chunk_moments(data(x), shape, left, right, 0, rows, data(origin), data(mean), data(var))
            means_vars(left, right, data(origin), np.float64(rows * inner * tile), data(mean), data(var))
            inv_std_channels(left, right, data(var), eps, data(inv_std))
            shift = lead(data(out), shape, left, 0)
            values = (
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
            )
            affine_channels(data(x), left, right, data(mean), data(inv_std), data(gamma), data(beta), values)
            normalize_chunk(data(x), data(out), shape, left, right, 0, rows, values, streaming)


@kernel
def backward_sums(
    dout: Array,
    x: Array,
    shape: Matrix,
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
    rows, _, channels, _ = shape
    chunks = chunks_of(shape)
    parts = segments_of(segments, channels)
    tasks = segments * chunks
    shares = deal(tasks)
    for worker in prange(len(shares)):
        for task in turns(shares, tasks, worker):
            s = task // chunks
            left = edge_of(shape, chunks, task % chunks)
            right = edge_of(shape, chunks, task % chunks + 1)
            start = rows * s // segments
            stop = rows * (s + 1) // segments
            chunk_sums(
                data(dout), data(x), shape, left, right, start, stop, data(mean), data(parts[s, 0]), data(parts[s, 1])
            )
    add_segments(parts, channels, data(sum_dout), data(sum_dout_xhat))
    for c in range(channels):
        sum_dout_xhat[c] *= inv_std[c]


@kernel
def backward_input(dout: Array, x: Array, shape: Matrix, coefficients: Array, dx: Array, streaming: bool) -> None:
    """Write ``dx`` from the (4, C) coefficients. ``dx`` may be ``dout``.

    Traffic:  reads dout and x once, writes dx once.
    Parallel: as ``normalize``.
    """
    rows, _, channels, _ = shape
    chunks = output_chunks_of(shape)
    blocks = row_blocks_of(shape)
    tasks = blocks * chunks
    shares = deal(tasks)
    for worker in prange(len(shares)):
        for task in turns(shares, tasks, worker):
            b = task // chunks
            left = edge_of(shape, chunks, task % chunks)
            right = edge_of(shape, chunks, task % chunks + 1)
            start = rows * b // blocks
            stop = rows * (b + 1) // blocks
            shift = lead(data(dx), shape, left, start)
            values = (
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
            )
            for j in range(4):
                copy(data(coefficients), j * channels + left, j * channels + right, values[j])
            gradient_chunk(data(dout), data(x), data(dx), shape, left, right, start, stop, values, streaming)


@kernel
def backward(
    dout: Array,
    x: Array,
    shape: Matrix,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    dx: Array,
    streaming: bool,
) -> None:
    """``backward_sums`` with one segment, then ``backward_input``, chunk by chunk: the same bits.

    Traffic:  reads dout and x and writes dx once where a chunk stays in cache, else reads both twice.
    Parallel: over chunks.
    """
    rows, tile, _, inner = shape
    chunks = fused_chunks(shape, IS_PARALLEL)
    count = np.float64(rows * inner * tile)
    shares = deal(chunks)
    for worker in prange(len(shares)):
        for chunk in turns(shares, chunks, worker):
            left = edge_of(shape, chunks, chunk)
            right = edge_of(shape, chunks, chunk + 1)
            chunk_sums(
                data(dout), data(x), shape, left, right, 0, rows, data(mean), data(sum_dout), data(sum_dout_xhat)
            )
            for c in range(left, right):
                sum_dout_xhat[c] *= inv_std[c]
            shift = lead(data(dx), shape, left, 0)
            values = (
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
            )
            gradient_channels(
                data(x),
                left,
                right,
                data(mean),
                data(inv_std),
                data(gamma),
                data(sum_dout),
                data(sum_dout_xhat),
                count,
                values,
            )
            gradient_chunk(data(dout), data(x), data(dx), shape, left, right, 0, rows, values, streaming)
