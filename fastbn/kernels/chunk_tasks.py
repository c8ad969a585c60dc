"""What the kernels of ``channels_last`` do in one task, of one phase. Everything is given by its address."""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Matrix
from fastbn.kernels.addresses import offset, stack
from fastbn.kernels.chunk_gradients import gradient_chunk
from fastbn.kernels.chunk_outputs import normalize_chunk
from fastbn.kernels.chunks import SCRATCH, lead
from fastbn.kernels.coefficients import copy
from fastbn.kernels.columns import chunk_moments, chunk_sums, edge_of, means_vars
from fastbn.kernels.jit import inner
from fastbn.kernels.lanes import spread_wide_doubles
from fastbn.kernels.loads import load_wide_doubles
from fastbn.kernels.registers import WIDE_DOUBLES
from fastbn.kernels.segments import stride_of, sums_of
from fastbn.kernels.stores import store_first


@inner
def part_of(shape: Matrix, chunks: int, blocks: int, task: int) -> tuple[int, int, int, int]:
    """Channels ``left`` to ``right`` and rows ``start`` to ``stop`` of a task: block by block, chunk by chunk."""
    rows = shape[0]
    block, chunk = task // chunks, task % chunks
    left, right = edge_of(shape, chunks, chunk), edge_of(shape, chunks, chunk + 1)
    return left, right, rows * block // blocks, rows * (block + 1) // blocks


@inner
def add_moments(
    x: Address, shape: Matrix, chunks: int, segments: int, task: int, origin: Address, parts: Address
) -> None:
    """Moments of a chunk in a segment."""
    left, right, start, stop = part_of(shape, chunks, segments, task)
    sums = sums_of(parts, shape[2], task // chunks)
    chunk_moments(x, shape, left, right, start, stop, origin, sums[0], sums[1])


@inner
def merge(
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
    stride = stride_of(channels)
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
def write_output(
    x: Address,
    out: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    coefficients: Address,
    streaming: bool,
) -> None:
    """The output of a part, from all channels' coefficients."""
    shift = lead(out, shape, left, start)
    values = (
        offset(stack(x, SCRATCH), shift),
        offset(stack(x, SCRATCH), shift),
        offset(stack(x, SCRATCH), shift),
    )
    for j in range(3):
        copy(coefficients, j * shape[2] + left, j * shape[2] + right, values[j])
    normalize_chunk(x, out, shape, left, right, start, stop, values, streaming)


@inner
def add_products(
    dout: Address, x: Address, shape: Matrix, chunks: int, segments: int, task: int, mean: Address, parts: Address
) -> None:
    """The two sums of the gradient of a chunk in a segment."""
    left, right, start, stop = part_of(shape, chunks, segments, task)
    sums = sums_of(parts, shape[2], task // chunks)
    chunk_sums(dout, x, shape, left, right, start, stop, mean, sums)


@inner
def write_gradient(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    coefficients: Address,
    streaming: bool,
) -> None:
    """The part of dx, as ``write_output``."""
    shift = lead(dx, shape, left, start)
    values = (
        offset(stack(x, SCRATCH), shift),
        offset(stack(x, SCRATCH), shift),
        offset(stack(x, SCRATCH), shift),
        offset(stack(x, SCRATCH), shift),
    )
    for j in range(4):
        copy(coefficients, j * shape[2] + left, j * shape[2] + right, values[j])
    gradient_chunk(dout, x, dx, shape, left, right, start, stop, values, streaming)
