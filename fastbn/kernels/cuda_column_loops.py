"""What a block does with its part of a matrix of shape (rows, columns, channels, inner).

Column j is of channel j // inner % channels. A thread owns the ``WIDTH`` columns of one access, side by side, and takes
every so many rows of its block's segment. ``cuts`` is (segments, lanes, chunks): ``lanes`` threads stand side by side,
a power of two, and so many times in a row of blocks. Templates, as those of ``cuda_blocks``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from fastbn._typing import Address, Array
from fastbn.kernels.cuda_blocks import (
    CHUNK,
    COEFFICIENTS,
    DTYPE,
    LOADS,
    SHARED,
    WIDTH,
    Parameter,
    Shape,
    affine,
    block_moments1,
    cut,
    fold,
    fold_products,
    given,
    grad_input1,
    gradient,
    load,
    normalize1,
    origin_of,
    pivot1,
    read,
    store,
    write64,
)


def own(shape: Shape, cuts: Shape, block: int) -> tuple[int, int, int, int, int]:
    """Where the segment begins, the thread's first row, where it ends, its first column and its step in rows.

    A thread beyond the last column has no rows.
    """
    rows, columns = shape[0], shape[1]
    segments, lanes, chunks = cuts
    segment = block // chunks
    start = cut(rows, segment, segments)
    column = (block % chunks * lanes + cuda.threadIdx.x % lanes) * WIDTH
    last = cut(rows, segment + 1, segments) if column < columns else start
    return start, start + cuda.threadIdx.x // lanes, last, column, cuda.blockDim.x // lanes


def channel_of(shape: Shape, column: int) -> int:
    """The channel of a column."""
    return column // shape[3] % shape[2]


def over_rows(values: Array, shared: Array, lanes: int) -> None:
    """Add up what the threads of the same columns have; the first of them get the sums."""
    t = cuda.threadIdx.x
    for j in range(WIDTH):
        shared[t * WIDTH + j] = values[j]
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half >= lanes:
        if t < half:
            for j in range(WIDTH):
                shared[t * WIDTH + j] += shared[(t + half) * WIDTH + j]
        cuda.syncthreads()
        half //= 2
    for j in range(WIDTH):
        values[j] = shared[t * WIDTH + j]
    cuda.syncthreads()


def gradient_value(dout: Any, x: Any, coefficients: Array, j: int) -> Any:
    """``grad_input1`` with the coefficients of a column."""
    i = 4 * j
    return grad_input1(dout, x, coefficients[i], coefficients[i + 1], coefficients[i + 2], coefficients[i + 3])


def sum_columns(x: Address, shape: Shape, cuts: Shape, block: int, partials: Address) -> None:
    """A block's moments (see ``formulas``), but for the counts."""
    shared = cuda.shared.array(SHARED, np.float64)
    values = cuda.local.array(CHUNK, DTYPE)
    pivots = cuda.local.array(WIDTH, np.float64)
    totals = cuda.local.array(WIDTH, np.float64)
    squares = cuda.local.array(WIDTH, np.float64)
    start, row, last, column, step = own(shape, cuts, block)
    columns = shape[1]
    for j in range(WIDTH):
        pivots[j] = pivot1(read(x, start * columns + column + j)) if start < last else 0.0
        totals[j] = squares[j] = 0.0
    while row + (LOADS - 1) * step < last:
        for k in range(LOADS):
            load(x, (row + k * step) * columns + column, values, k * WIDTH)
        for j in range(WIDTH):
            totals[j], squares[j] = fold(values, j, WIDTH, LOADS, pivots[j], totals[j], squares[j])
        row += LOADS * step
    while row < last:
        load(x, row * columns + column, values, 0)
        for j in range(WIDTH):
            totals[j], squares[j] = fold(values, j, WIDTH, 1, pivots[j], totals[j], squares[j])
        row += step
    over_rows(totals, shared, cuts[1])
    over_rows(squares, shared, cuts[1])
    if cuda.threadIdx.x < cuts[1] and start < last:
        count = np.float64(last - start)
        place = block // cuts[2] * columns + column
        for j in range(WIDTH):
            origin = origin_of(x, channel_of(shape, column + j), shape[3])
            moments = block_moments1(count, pivots[j], totals[j], squares[j], origin)
            write64(partials, place + j, moments[1])
            write64(partials, cuts[0] * columns + place + j, moments[2])


def normalize_columns(
    x: Address,
    out: Address,
    shape: Shape,
    cuts: Shape,
    block: int,
    mean: Parameter,
    spread: Parameter,
    eps: float,
    gamma: Parameter,
    beta: Parameter,
) -> None:
    """Normalise a block's values."""
    values = cuda.local.array(CHUNK, DTYPE)
    centers = cuda.local.array(WIDTH, DTYPE)
    scales = cuda.local.array(WIDTH, DTYPE)
    shifts = cuda.local.array(WIDTH, DTYPE)
    _, row, last, column, step = own(shape, cuts, block)
    columns = shape[1]
    if row >= last:
        return
    for j in range(WIDTH):
        c = channel_of(shape, column + j)
        centers[j], scales[j], shifts[j] = affine(x, c, mean, spread, eps, gamma, beta)
    while row + (LOADS - 1) * step < last:
        for k in range(LOADS):
            load(x, (row + k * step) * columns + column, values, k * WIDTH)
        for k in range(LOADS):
            for j in range(WIDTH):
                i = k * WIDTH + j
                values[i] = normalize1(values[i], centers[j], scales[j], shifts[j])
            store(out, (row + k * step) * columns + column, values, k * WIDTH)
        row += LOADS * step
    while row < last:
        load(x, row * columns + column, values, 0)
        for j in range(WIDTH):
            values[j] = normalize1(values[j], centers[j], scales[j], shifts[j])
        store(out, row * columns + column, values, 0)
        row += step


def sum_gradient_columns(
    dout: Address, x: Address, shape: Shape, cuts: Shape, block: int, mean: Parameter, partials: Address
) -> None:
    """A block's ``sum(dout)`` and ``sum(dout * (x - center))``."""
    shared = cuda.shared.array(SHARED, np.float64)
    douts = cuda.local.array(CHUNK, DTYPE)
    values = cuda.local.array(CHUNK, DTYPE)
    centers = cuda.local.array(WIDTH, DTYPE)
    totals = cuda.local.array(WIDTH, np.float64)
    products = cuda.local.array(WIDTH, np.float64)
    start, row, last, column, step = own(shape, cuts, block)
    columns = shape[1]
    for j in range(WIDTH):
        centers[j] = DTYPE(given(mean, channel_of(shape, column + j), 0.0))
        totals[j] = products[j] = 0.0
    while row + (LOADS - 1) * step < last:
        for k in range(LOADS):
            load(dout, (row + k * step) * columns + column, douts, k * WIDTH)
            load(x, (row + k * step) * columns + column, values, k * WIDTH)
        for j in range(WIDTH):
            folded = fold_products(douts, values, j, WIDTH, LOADS, centers[j], totals[j], products[j])
            totals[j], products[j] = folded
        row += LOADS * step
    while row < last:
        load(dout, row * columns + column, douts, 0)
        load(x, row * columns + column, values, 0)
        for j in range(WIDTH):
            folded = fold_products(douts, values, j, WIDTH, 1, centers[j], totals[j], products[j])
            totals[j], products[j] = folded
        row += step
    over_rows(totals, shared, cuts[1])
    over_rows(products, shared, cuts[1])
    if cuda.threadIdx.x < cuts[1] and start < last:
        place = block // cuts[2] * columns + column
        for j in range(WIDTH):
            write64(partials, place + j, totals[j])
            write64(partials, cuts[0] * columns + place + j, products[j])


def gradient_columns(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape,
    cuts: Shape,
    block: int,
    mean: Parameter,
    inv_std: Parameter,
    gamma: Parameter,
    sum_dout: Parameter,
    sum_dout_xhat: Parameter,
    count: float,
) -> None:
    """Write a block's part of dx."""
    douts = cuda.local.array(CHUNK, DTYPE)
    values = cuda.local.array(CHUNK, DTYPE)
    coefficients = cuda.local.array(COEFFICIENTS, DTYPE)
    _, row, last, column, step = own(shape, cuts, block)
    columns = shape[1]
    if row >= last:
        return
    for j in range(WIDTH):
        c = channel_of(shape, column + j)
        made = gradient(x, c, mean, inv_std, gamma, given(sum_dout, c, 0.0), given(sum_dout_xhat, c, 0.0), count)
        for k in range(4):
            coefficients[4 * j + k] = made[k]
    while row + (LOADS - 1) * step < last:
        for k in range(LOADS):
            load(dout, (row + k * step) * columns + column, douts, k * WIDTH)
            load(x, (row + k * step) * columns + column, values, k * WIDTH)
        for k in range(LOADS):
            for j in range(WIDTH):
                i = k * WIDTH + j
                douts[i] = gradient_value(douts[i], values[i], coefficients, j)
            store(dx, (row + k * step) * columns + column, douts, k * WIDTH)
        row += LOADS * step
    while row < last:
        load(dout, row * columns + column, douts, 0)
        load(x, row * columns + column, values, 0)
        for j in range(WIDTH):
            douts[j] = gradient_value(douts[j], values[j], coefficients, j)
        store(dx, row * columns + column, douts, 0)
        row += step
