"""What segments have left of a channel, merged by a *team*: in an order that the shape alone decides.

A team is so many threads of a block, a power of two, side by side; those of channels that there are not have no work.
A segment's partials are two float64 numbers for each of its columns, of which planes have one a channel: at ``segment *
columns + column``, and half the partials further. Templates, as those of ``cuda_blocks``.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from fastbn._typing import Address, Moments3, Scalar
from fastbn.kernels.cuda_blocks import (
    DTYPE,
    THREADS,
    Parameter,
    cut,
    given,
    keep,
    mean_var1,
    merge_moments1,
    origin_of,
    put,
    read64,
    sum_dout_xhat1,
)

Columns = tuple[int, int, int]
"""(tile, channels, inner) of a row of partials: channel ``c`` has the columns ``(i * channels + c) * inner + j``."""


def place_of(p: int, c: int, columns: Columns) -> int:
    """Where a channel's partial ``p`` is."""
    _, channels, inner = columns
    return (p // inner * channels + c) * inner + p % inner


def merged(a: Moments3, b: Moments3) -> Moments3:
    """``merge_moments1`` of sets that may be empty."""
    if b[0] == 0.0:
        return a
    if a[0] == 0.0:
        return b
    return merge_moments1(a[0], a[1], a[2], b[0], b[1], b[2])


def share_of(c: int, team: int, columns: Columns, segments: int) -> tuple[int, int]:
    """A thread's place in its team, and of how many partials the team has a share each."""
    tile, channels, inner = columns
    return cuda.threadIdx.x % team, segments * tile * inner if c < channels else 0


def channel_moments(
    c: int, team: int, columns: Columns, segments: int, units: int, values: int, partials: Address
) -> Moments3:
    """To the whole team. A segment has its share of ``units`` of so many values each."""
    tile, channels, inner = columns
    counts = cuda.shared.array(THREADS, np.float64)
    totals = cuda.shared.array(THREADS, np.float64)
    squares = cuda.shared.array(THREADS, np.float64)
    t, (rank, shared) = cuda.threadIdx.x, share_of(c, team, columns, segments)
    moments: Moments3 = np.float64(0.0), np.float64(0.0), np.float64(0.0)
    for p in range(rank, shared, team):
        segment, place = p // (tile * inner), place_of(p, c, columns)
        size = np.float64((cut(units, segment + 1, segments) - cut(units, segment, segments)) * values)
        square = read64(partials, segments * tile * channels * inner + place)
        moments = merged(moments, (size, read64(partials, place), square))
    half = team // 2
    while half:
        counts[t], totals[t], squares[t] = moments
        cuda.syncthreads()
        if rank < half:
            moments = merged(moments, (counts[t + half], totals[t + half], squares[t + half]))
        cuda.syncthreads()
        half //= 2
    counts[t], totals[t], squares[t] = moments
    cuda.syncthreads()
    moments = counts[t - rank], totals[t - rank], squares[t - rank]
    cuda.syncthreads()
    return moments


def channel_sums(c: int, team: int, columns: Columns, segments: int, partials: Address) -> tuple[Scalar, Scalar]:
    """``sum(dout)`` and ``sum(dout * (x - center))``, to the whole team."""
    tile, channels, inner = columns
    totals = cuda.shared.array(THREADS, np.float64)
    products = cuda.shared.array(THREADS, np.float64)
    t, (rank, shared) = cuda.threadIdx.x, share_of(c, team, columns, segments)
    total: Scalar = np.float64(0.0)
    product: Scalar = np.float64(0.0)
    for p in range(rank, shared, team):
        place = place_of(p, c, columns)
        total += read64(partials, place)
        product += read64(partials, segments * tile * channels * inner + place)
    half = team // 2
    while half:
        totals[t], products[t] = total, product
        cuda.syncthreads()
        if rank < half:
            total += totals[t + half]
            product += products[t + half]
        cuda.syncthreads()
        half //= 2
    totals[t], products[t] = total, product
    cuda.syncthreads()
    total, product = totals[t - rank], products[t - rank]
    cuda.syncthreads()
    return total, product


def finish_statistics(
    x: Address,
    step: int,
    c: int,
    team: int,
    columns: Columns,
    segments: int,
    units: int,
    values: int,
    partials: Address,
    eps: float,
    statistics: Address,
) -> None:
    """Mean, ``inv_std`` and variance of a channel; ``step`` is how far apart in ``x`` channels' first values are."""
    count, total, square = channel_moments(c, team, columns, segments, units, values, partials)
    if cuda.threadIdx.x % team == 0 and c < columns[1]:
        mean, var = mean_var1(origin_of(x, c, step), count, total, square)
        keep(statistics, c, columns[1], mean, var, eps)


def finish_sums(
    c: int,
    team: int,
    columns: Columns,
    segments: int,
    partials: Address,
    mean: Parameter,
    inv_std: Parameter,
    sum_dout: Parameter,
    sum_dout_xhat: Parameter,
    dbeta: Parameter,
    dgamma: Parameter,
) -> None:
    """The gradient's two sums of a channel, twice, each in the dtype of where it goes."""
    total, product = channel_sums(c, team, columns, segments, partials)
    if cuda.threadIdx.x % team == 0 and c < columns[1]:
        center = DTYPE(given(mean, c, 0.0))
        product = sum_dout_xhat1(total, product, center, given(mean, c, 0.0), given(inv_std, c, 1.0))
        put(sum_dout, c, total)
        put(sum_dout_xhat, c, product)
        put(dbeta, c, total)
        put(dgamma, c, product)
