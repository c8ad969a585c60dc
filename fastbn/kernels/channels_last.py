"""Kernels for tensors whose channels hold single values or short rows: NC, NHWC and its like, small planes of NCHW.

Tensors are flat, C-contiguous; ``shape`` is (rows, tile, C, inner); coefficients are those of ``affine1`` or
``gradient1``, in the tensors' dtype; everything else is (C,) float64. Where ``inner`` is 1, a row may hold ``tile``
values of each channel; else ``tile`` is 1. The columns of a row are cut into chunks (see ``columns``), rows into
segments, which are merged in order. All of this depends on the shape alone, so the bits do not depend on the number of
threads.

There are three phases: sums, of segments and chunks; what becomes of the sums, by channels; output, of blocks of rows
and chunks. Output goes in the order of the sums: a thread finds in its core's part of the caches what it has read. From
the last block to the first, it got what the other had read: backward of 12544x256 took 485 us instead of 340 where
nothing else used the cache, 2 to 6% more where others did; that the first blocks had been read last gained nothing, not
even on one thread. Only where the last-level cache is far (``shares.goes_back``) does each thread go through its share
from the last block to the first.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastbn._typing import Array, Float64Array, Matrix
from fastbn.kernels.addresses import data, empty, offset, stack
from fastbn.kernels.chunk_gradients import gradient_chunk
from fastbn.kernels.chunk_outputs import normalize_chunk
from fastbn.kernels.chunk_tasks import (
    add_moments,
    add_products,
    merge,
    part_of,
    write_gradient,
    write_output,
)
from fastbn.kernels.chunks import SCRATCH, lead, output_chunks_of, row_blocks_of
from fastbn.kernels.coefficients import finish_gradient, finish_products, finish_statistics, four_of, three_of
from fastbn.kernels.columns import chunk_moments, chunk_sums, chunks_of, means_vars, pivots, sum_chunks_of
from fastbn.kernels.scheduling import deal, meet, second_task, signed, turns
from fastbn.kernels.segments import add_segments, segments_of
from fastbn.kernels.shares import channel_tasks, channels_of
from fastbn.kernels.stores import drain
from fastbn.kernels.twins import IS_PARALLEL, kernel


@kernel
def batch_stats(x: Array, shape: Matrix, segments: int, mean: Float64Array, var: Float64Array) -> None:
    """Mean and biased variance of each channel. Reads x once."""
    rows, tile, channels, inner = shape
    chunks = sum_chunks_of(shape, segments, IS_PARALLEL)
    sums, merges = segments * chunks, channel_tasks(channels)
    origin = empty((channels,), np.float64)
    pivots(data(x), 0, tile * channels * inner, rows, channels, inner, data(origin))
    parts = segments_of(segments, channels)
    shares = deal(2, max(sums, merges))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], sums, own):
            add_moments(data(x), shape, chunks, segments, task, data(origin), data(parts))
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            merge(data(parts), segments, shape, left, right, data(origin), data(mean), data(var))


@kernel
def normalize(x: Array, shape: Matrix, coefficients: Array, out: Array, streaming: bool) -> None:
    """Write ``out = (x - mean) * inv_std * gamma + beta`` from the (3, C) coefficients. ``out`` may be ``x``.

    Reads x once, writes out once.
    """
    chunks, blocks = output_chunks_of(shape), row_blocks_of(shape)
    tasks = blocks * chunks
    shares = deal(1, tasks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], tasks, own):
            left, right, start, stop = part_of(shape, chunks, blocks, task)
            write_output(data(x), data(out), shape, left, right, start, stop, data(coefficients), streaming)
        drain(streaming)


@kernel
def forward(
    x: Array,
    shape: Matrix,
    segments: int,  # noqa: ARG001 - 1
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

    Reads x and writes out once where a chunk stays in cache, else reads x twice.
    """
    rows, tile, channels, inner = shape
    count = np.float64(rows * inner * tile)
    chunks = chunks_of(shape)
    origin = empty((channels,), np.float64)
    pivots(data(x), 0, tile * channels * inner, rows, channels, inner, data(origin))
    shares = deal(1, chunks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for chunk in turns(shares[0], chunks, own):
            left, right, start, stop = part_of(shape, chunks, 1, chunk)
            parameters = data(gamma), data(beta)
            statistics = data(mean), data(var), data(inv_std)
            shift = lead(data(out), shape, left, start)
            values = (
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
            )
            chunk_moments(data(x), shape, left, right, start, stop, data(origin), data(mean), data(var))
            means_vars(left, right, data(origin), count, data(mean), data(var))
            finish_statistics(data(x), left, right, eps, parameters, statistics, values)
            normalize_chunk(data(x), data(out), shape, left, right, start, stop, values, streaming)
        drain(streaming)


@kernel
def forward_in_phases(
    x: Array,
    shape: Matrix,
    segments: int,
    eps: float,
    gamma: Float64Array,
    beta: Float64Array,
    out: Array,
    mean: Float64Array,
    var: Float64Array,
    inv_std: Float64Array,
    streaming: bool,
) -> None:
    """``batch_stats``, then ``normalize``: the same bits. Reads x twice, writes out once."""
    rows, tile, channels, inner = shape
    chunks, written, blocks = sum_chunks_of(shape, segments, IS_PARALLEL), output_chunks_of(shape), row_blocks_of(shape)
    sums, merges, outputs = segments * chunks, channel_tasks(channels), blocks * written
    origin = empty((channels,), np.float64)
    pivots(data(x), 0, tile * channels * inner, rows, channels, inner, data(origin))
    parts = segments_of(segments, channels)
    coefficients = empty((3, channels), x.dtype)
    shares = deal(3, max(sums, outputs))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        parameters = data(gamma), data(beta)
        statistics = data(mean), data(var), data(inv_std)
        about, found, ready = data(origin), data(parts), data(coefficients)
        for task in turns(shares[0], sums, own):
            add_moments(data(x), shape, chunks, segments, task, about, found)
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            values = three_of(ready, channels, left)
            merge(found, segments, shape, left, right, about, data(mean), data(var))
            finish_statistics(data(x), left, right, eps, parameters, statistics, values)
        meet(shares[1], merges)
        for turn in turns(shares[2], outputs, own):
            task = second_task(turn, outputs, len(shares[2]), x.size)
            left, right, start, stop = part_of(shape, written, blocks, task)
            write_output(data(x), data(out), shape, left, right, start, stop, ready, streaming)
        drain(streaming)


@kernel
def backward_sums(
    dout: Array,
    x: Array,
    shape: Matrix,
    segments: int,
    mean: Float64Array,
    inv_std: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
) -> None:
    """The two sums of the gradient: ``sum(dout)`` and ``sum(dout * x_hat)``. Reads dout and x once."""
    channels = shape[2]
    chunks = sum_chunks_of(shape, segments, IS_PARALLEL)
    sums, merges = segments * chunks, channel_tasks(channels)
    parts = segments_of(segments, channels)
    shares = deal(2, max(sums, merges))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], sums, own):
            add_products(data(dout), data(x), shape, chunks, segments, task, data(mean), data(parts))
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            totals = data(sum_dout), data(sum_dout_xhat)
            add_segments(data(parts), segments, channels, left, right, totals)
            finish_products(left, right, data(inv_std), totals)


@kernel
def backward_input(dout: Array, x: Array, shape: Matrix, coefficients: Array, dx: Array, streaming: bool) -> None:
    """Write ``dx`` from the (4, C) coefficients. ``dx`` may be ``dout``. Reads dout and x once, writes dx once."""
    chunks, blocks = output_chunks_of(shape), row_blocks_of(shape)
    tasks = blocks * chunks
    shares = deal(1, tasks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], tasks, own):
            left, right, start, stop = part_of(shape, chunks, blocks, task)
            values = data(coefficients)
            write_gradient(data(dout), data(x), data(dx), shape, left, right, start, stop, values, streaming)
        drain(streaming)


@kernel
def backward(
    dout: Array,
    x: Array,
    shape: Matrix,
    segments: int,  # noqa: ARG001 - 1
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    dx: Array,
    streaming: bool,
) -> None:
    """``backward_sums`` with one segment, then ``backward_input``, chunk by chunk: the same bits.

    Reads dout and x and writes dx once where a chunk stays in cache, else reads both twice.
    """
    rows, tile, _, inner = shape
    count = np.float64(rows * inner * tile)
    chunks = chunks_of(shape)
    shares = deal(1, chunks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for chunk in turns(shares[0], chunks, own):
            left, right, start, stop = part_of(shape, chunks, 1, chunk)
            statistics = data(mean), data(inv_std), data(gamma)
            totals = data(sum_dout), data(sum_dout_xhat)
            shift = lead(data(dx), shape, left, start)
            values = (
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
                offset(stack(x, SCRATCH), shift),
            )
            chunk_sums(data(dout), data(x), shape, left, right, start, stop, data(mean), totals)
            finish_gradient(data(x), left, right, count, statistics, totals, values)
            gradient_chunk(data(dout), data(x), data(dx), shape, left, right, start, stop, values, streaming)
        drain(streaming)


@kernel
def backward_in_phases(
    dout: Array,
    x: Array,
    shape: Matrix,
    segments: int,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    dx: Array,
    streaming: bool,
) -> None:
    """``backward_sums``, then ``backward_input``: the same bits. Reads dout and x twice, writes dx once."""
    rows, tile, channels, inner = shape
    count = np.float64(rows * inner * tile)
    chunks, written, blocks = sum_chunks_of(shape, segments, IS_PARALLEL), output_chunks_of(shape), row_blocks_of(shape)
    sums, merges, outputs = segments * chunks, channel_tasks(channels), blocks * written
    parts = segments_of(segments, channels)
    coefficients = empty((4, channels), x.dtype)
    shares = deal(3, max(sums, outputs))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        found, ready = data(parts), data(coefficients)
        statistics = data(mean), data(inv_std), data(gamma)
        totals = data(sum_dout), data(sum_dout_xhat)
        for task in turns(shares[0], sums, own):
            add_products(data(dout), data(x), shape, chunks, segments, task, statistics[0], found)
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            values = four_of(ready, channels, left)
            add_segments(found, segments, channels, left, right, totals)
            finish_gradient(data(x), left, right, count, statistics, totals, values)
        meet(shares[1], merges)
        for turn in turns(shares[2], outputs, own):
            task = second_task(turn, outputs, len(shares[2]), x.size)
            left, right, start, stop = part_of(shape, written, blocks, task)
            write_gradient(data(dout), data(x), data(dx), shape, left, right, start, stop, ready, streaming)
        drain(streaming)
