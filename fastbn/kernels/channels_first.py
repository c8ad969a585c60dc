"""Kernels for tensors whose channels hold contiguous rows of a register and more: NCHW and its like.

Tensors are flat, C-contiguous; ``shape`` is (outer, C, inner); coefficients are those of ``affine1`` or ``gradient1``,
in the tensors' dtype; everything else is (C,) float64. The blocks of a channel (see ``rows``) are cut into segments,
which are merged in order. All of this depends on the shape alone, so the bits do not depend on the number of threads.

The phases are those of ``channels_last``: sums, of segments and groups of channels, in the memory's order; what becomes
of the sums, by channels; output, of groups of samples and channels, in the memory's order. With the groups of channels
first, inference of 32x160x29x29 took 375 us instead of 300, of 32x64x28x28 70 instead of 65.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastbn._typing import Array, Float64Array, Shape3
from fastbn.kernels.addresses import data, empty, stack
from fastbn.kernels.coefficients import finish_gradient, finish_products, finish_statistics, four_of, three_of
from fastbn.kernels.group_tasks import (
    add_moments,
    add_products,
    group_of,
    merge,
    write_gradient,
    write_output,
)
from fastbn.kernels.groups import cuts_of, gradient_group, normalize_group
from fastbn.kernels.lagging import (
    ALL,
    moments_and_output,
    sums_and_gradient,
    write_pending_gradient,
    write_pending_output,
)
from fastbn.kernels.rows import GROUP, blocks_of, groups_of, is_lagging, means_vars
from fastbn.kernels.scheduling import deal, meet, second_task, signed, turns
from fastbn.kernels.segments import add_segments, segments_of
from fastbn.kernels.shares import channel_tasks, channels_of
from fastbn.kernels.stores import drain
from fastbn.kernels.twins import kernel


@kernel
def batch_stats(x: Array, shape: Shape3, segments: int, mean: Float64Array, var: Float64Array) -> None:
    """Mean and biased variance of each channel. Reads x once."""
    channels = shape[1]
    groups = groups_of(shape, 1)
    sums, merges = segments * groups, channel_tasks(channels)
    parts = segments_of(segments, channels)
    shares = deal(2, max(sums, merges))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], sums, own):
            add_moments(data(x), shape, groups, segments, task, data(parts))
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            merge(data(x), data(parts), segments, shape, left, right, data(mean), data(var))


@kernel
def normalize(x: Array, shape: Shape3, coefficients: Array, out: Array, streaming: bool) -> None:
    """Write ``out = (x - mean) * inv_std * gamma + beta`` from the (3, C) coefficients. ``out`` may be ``x``.

    Reads x once, writes out once.
    """
    cuts = cuts_of(shape)
    tasks = cuts[0] * cuts[1] * cuts[2]
    shares = deal(1, tasks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], tasks, own):
            write_output(data(x), data(out), shape, cuts, task, data(coefficients), streaming)
        drain(streaming)


@kernel
def forward(
    x: Array,
    shape: Shape3,
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
    """``batch_stats`` with one segment, then ``normalize``, group by group of channels: the same bits.

    Reads x and writes out once where a group's values stay in cache, else reads x twice.
    """
    outer, channels, inner = shape
    groups, blocks, lag = groups_of(shape, 1), blocks_of(outer, inner), is_lagging(shape)
    shares = deal(1, groups)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        parameters = data(gamma), data(beta)
        statistics = data(mean), data(var), data(inv_std)
        values = stack(x, GROUP), stack(x, GROUP), stack(x, GROUP)
        pending, place = (data(x), data(out), shape, 0, 0, values, streaming), (outer, 0)
        for task in turns(shares[0], groups, own):
            left, right = group_of(channels, groups, task)
            place = moments_and_output(
                data(x), shape, left, right, 0, blocks, statistics[0], statistics[1], pending, place
            )
            write_pending_output(pending, place, ALL)
            means_vars(data(x), shape, left, right, statistics[0], statistics[1])
            finish_statistics(data(x), left, right, eps, parameters, statistics, values)
            if lag:
                pending, place = (data(x), data(out), shape, left, right, values, streaming), (0, 0)
            else:
                ahead = (right - left) * inner
                normalize_group(data(x), data(out), shape, left, right, 0, outer, 0, 1, ahead, True, values, streaming)
        write_pending_output(pending, place, ALL)
        drain(streaming)


@kernel
def forward_in_phases(
    x: Array,
    shape: Shape3,
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
    channels = shape[1]
    groups, cuts = groups_of(shape, 1), cuts_of(shape)
    sums, merges, outputs = segments * groups, channel_tasks(channels), cuts[0] * cuts[1] * cuts[2]
    parts = segments_of(segments, channels)
    coefficients = empty((3, channels), x.dtype)
    shares = deal(3, max(sums, outputs))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        found, ready = data(parts), data(coefficients)
        parameters = data(gamma), data(beta)
        statistics = data(mean), data(var), data(inv_std)
        for task in turns(shares[0], sums, own):
            add_moments(data(x), shape, groups, segments, task, found)
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            values = three_of(ready, channels, left)
            merge(data(x), found, segments, shape, left, right, data(mean), data(var))
            finish_statistics(data(x), left, right, eps, parameters, statistics, values)
        meet(shares[1], merges)
        for turn in turns(shares[2], outputs, own):
            task = second_task(turn, outputs, len(shares[2]), x.size)
            write_output(data(x), data(out), shape, cuts, task, ready, streaming)
        drain(streaming)


@kernel
def backward_sums(
    dout: Array,
    x: Array,
    shape: Shape3,
    segments: int,
    mean: Float64Array,
    inv_std: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
) -> None:
    """The two sums of the gradient: ``sum(dout)`` and ``sum(dout * x_hat)``. Reads dout and x once."""
    channels = shape[1]
    groups = groups_of(shape, 2)
    sums, merges = segments * groups, channel_tasks(channels)
    parts = segments_of(segments, channels)
    shares = deal(2, max(sums, merges))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], sums, own):
            add_products(data(dout), data(x), shape, groups, segments, task, data(mean), data(parts))
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            totals = data(sum_dout), data(sum_dout_xhat)
            add_segments(data(parts), segments, channels, left, right, totals)
            finish_products(left, right, data(inv_std), totals)


@kernel
def backward_input(dout: Array, x: Array, shape: Shape3, coefficients: Array, dx: Array, streaming: bool) -> None:
    """Write ``dx`` from the (4, C) coefficients. ``dx`` may be ``dout``. Reads dout and x once, writes dx once."""
    cuts = cuts_of(shape)
    tasks = cuts[0] * cuts[1] * cuts[2]
    shares = deal(1, tasks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], tasks, own):
            write_gradient(data(dout), data(x), data(dx), shape, cuts, task, data(coefficients), streaming)
        drain(streaming)


@kernel
def backward(
    dout: Array,
    x: Array,
    shape: Shape3,
    segments: int,  # noqa: ARG001 - 1
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    dx: Array,
    streaming: bool,
) -> None:
    """``backward_sums`` with one segment, then ``backward_input``, group by group of channels: the same bits.

    Reads dout and x and writes dx once where a group's values stay in cache, else reads both twice.
    """
    outer, channels, inner = shape
    count = np.float64(outer * inner)
    groups, blocks, lag = groups_of(shape, 2), blocks_of(outer, inner), is_lagging(shape)
    shares = deal(1, groups)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        statistics = data(mean), data(inv_std), data(gamma)
        totals = data(sum_dout), data(sum_dout_xhat)
        values = stack(x, GROUP), stack(x, GROUP), stack(x, GROUP), stack(x, GROUP)
        pending, place = (data(dout), data(x), data(dx), shape, 0, 0, values, streaming), (outer, 0)
        for task in turns(shares[0], groups, own):
            left, right = group_of(channels, groups, task)
            place = sums_and_gradient(
                data(dout), data(x), shape, left, right, 0, blocks, statistics[0], totals, pending, place
            )
            write_pending_gradient(pending, place, ALL)
            finish_gradient(data(x), left, right, count, statistics, totals, values)
            if lag:
                pending, place = (data(dout), data(x), data(dx), shape, left, right, values, streaming), (0, 0)
            else:
                ahead = (right - left) * inner
                gradient_group(
                    data(dout), data(x), data(dx), shape, left, right, 0, outer, 0, 1, ahead, True, values, streaming
                )
        write_pending_gradient(pending, place, ALL)
        drain(streaming)


@kernel
def backward_in_phases(
    dout: Array,
    x: Array,
    shape: Shape3,
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
    outer, channels, inner = shape
    count = np.float64(outer * inner)
    groups, cuts = groups_of(shape, 2), cuts_of(shape)
    sums, merges, outputs = segments * groups, channel_tasks(channels), cuts[0] * cuts[1] * cuts[2]
    parts = segments_of(segments, channels)
    coefficients = empty((4, channels), x.dtype)
    shares = deal(3, max(sums, outputs))
    for worker in prange(len(shares[0])):
        own = signed(worker)
        found, ready = data(parts), data(coefficients)
        statistics = data(mean), data(inv_std), data(gamma)
        totals = data(sum_dout), data(sum_dout_xhat)
        for task in turns(shares[0], sums, own):
            add_products(data(dout), data(x), shape, groups, segments, task, statistics[0], found)
        meet(shares[0], sums)
        for task in turns(shares[1], merges, own):
            left, right = channels_of(channels, task)
            values = four_of(ready, channels, left)
            add_segments(found, segments, channels, left, right, totals)
            finish_gradient(data(x), left, right, count, statistics, totals, values)
        meet(shares[1], merges)
        for turn in turns(shares[2], outputs, own):
            task = second_task(turn, outputs, len(shares[2]), x.size)
            write_gradient(data(dout), data(x), data(dx), shape, cuts, task, ready, streaming)
        drain(streaming)
