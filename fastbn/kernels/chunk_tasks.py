"""What the kernels of ``channels_last`` do in one task, of one phase. Everything is given by its address."""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Address2, Address3, Matrix
from fastbn.kernels.addresses import offset, read, stack, write
from fastbn.kernels.chunk_gradients import gradient_chunk
from fastbn.kernels.chunk_outputs import normalize_chunk
from fastbn.kernels.chunks import SCRATCH, lead
from fastbn.kernels.coefficients import affine_channels, copy, four_of, gradient_channels, inv_std_channels, three_of
from fastbn.kernels.columns import chunk_moments, chunk_sums, edge_of
from fastbn.kernels.jit import inner
from fastbn.kernels.segments import add_segments, merge_segments, sums_of


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
def finish(
    x: Address,
    parts: Address,
    segments: int,
    shape: Matrix,
    left: int,
    right: int,
    origin: Address,
    eps: float,
    parameters: Address2,
    statistics: Address3,
    coefficients: Address,
) -> None:
    """Mean, variance, ``inv_std`` and coefficients of the channels ``left`` to ``right``; gamma and beta are given."""
    mean, var, inv_std = statistics
    merge_segments(parts, segments, shape, left, right, origin, mean, var)
    inv_std_channels(left, right, var, eps, inv_std)
    values = three_of(coefficients, shape[2], left)
    affine_channels(x, left, right, mean, inv_std, parameters[0], parameters[1], values)


@inner
def add_products(
    dout: Address, x: Address, shape: Matrix, chunks: int, segments: int, task: int, mean: Address, parts: Address
) -> None:
    """The two sums of the gradient of a chunk in a segment."""
    left, right, start, stop = part_of(shape, chunks, segments, task)
    sums = sums_of(parts, shape[2], task // chunks)
    chunk_sums(dout, x, shape, left, right, start, stop, mean, sums[0], sums[1])


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


@inner
def add_up(
    parts: Address,
    segments: int,
    shape: Matrix,
    left: int,
    right: int,
    inv_std: Address,
    sums: Address2,
) -> None:
    """``sum(dout)`` and ``sum(dout * x_hat)`` of the channels ``left`` to ``right``."""
    add_segments(parts, segments, shape[2], left, right, sums[0], sums[1])
    for c in range(left, right):
        write(sums[1], c, read(sums[1], c) * read(inv_std, c))


@inner
def finish_gradient(
    x: Address,
    parts: Address,
    segments: int,
    shape: Matrix,
    left: int,
    right: int,
    mean: Address,
    inv_std: Address,
    gamma: Address,
    sums: Address2,
    coefficients: Address,
) -> None:
    """``add_up``, and the coefficients."""
    rows, tile, channels, inner = shape
    add_up(parts, segments, shape, left, right, inv_std, sums)
    values = four_of(coefficients, channels, left)
    count = np.float64(rows * inner * tile)
    gradient_channels(x, left, right, mean, inv_std, gamma, sums[0], sums[1], count, values)
