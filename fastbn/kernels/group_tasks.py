"""What the kernels of ``channels_first`` do in one task, of one phase. Everything is given by its address."""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Address2, Address3, Address4, Shape3
from fastbn.kernels.addresses import offset, read, write
from fastbn.kernels.coefficients import affine_channels, four_of, gradient_channels, inv_std_channels, three_of
from fastbn.kernels.formulas import mean_var1, merge_moments1
from fastbn.kernels.groups import gradient_group, normalize_group
from fastbn.kernels.jit import inner
from fastbn.kernels.prefetch import AHEAD
from fastbn.kernels.rows import blocks_of, group_moments, group_sums, origin_of


@inner
def group_of(channels: int, groups: int, group: int) -> tuple[int, int]:
    """Channels ``left`` to ``right`` of a group."""
    return channels * group // groups, channels * (group + 1) // groups


@inner
def piece_of(shape: Shape3, cuts: tuple[int, int, int], task: int) -> tuple[int, int, int, int, int]:
    """Channels ``left`` to ``right``, samples ``start`` to ``stop`` and piece of a row of a task that writes output."""
    outer, channels, _ = shape
    groups, parts, pieces = cuts
    part = task // (groups * pieces)
    left, right = group_of(channels, groups, task // pieces % groups)
    return left, right, outer * part // parts, outer * (part + 1) // parts, task % pieces


@inner
def sums_of(parts: Address, channels: int, segment: int) -> Address3:
    """Room for three numbers of each channel of a segment."""
    first = offset(parts, 3 * segment * channels)
    return first, offset(first, channels), offset(first, 2 * channels)


@inner
def add_moments(x: Address, shape: Shape3, groups: int, segments: int, task: int, parts: Address) -> None:
    """Totals, centred sums of squares and counts of a group's channels in a segment."""
    outer, channels, inner = shape
    segment = task // groups
    left, right = group_of(channels, groups, task % groups)
    blocks = blocks_of(outer, inner)
    total, m2, counts = sums_of(parts, channels, segment)
    start, stop = blocks * segment // segments, blocks * (segment + 1) // segments
    count = group_moments(x, shape, left, right, start, stop, total, m2)
    for c in range(left, right):
        write(counts, c, count)


@inner
def merge(
    x: Address, parts: Address, segments: int, shape: Shape3, left: int, right: int, mean: Address, var: Address
) -> None:
    """Merge the moments of all segments, in order, into means and biased variances."""
    channels = shape[1]
    for c in range(left, right):
        total, m2, counts = sums_of(parts, channels, 0)
        moments = read(counts, c), read(total, c), read(m2, c)
        for s in range(1, segments):
            total, m2, counts = sums_of(parts, channels, s)
            part = read(counts, c), read(total, c), read(m2, c)
            moments = merge_moments1(moments[0], moments[1], moments[2], part[0], part[1], part[2])
        result = mean_var1(origin_of(x, shape, c), moments[0], moments[1], moments[2])
        write(mean, c, result[0])
        write(var, c, result[1])


@inner
def write_output(
    x: Address,
    out: Address,
    shape: Shape3,
    cuts: tuple[int, int, int],
    task: int,
    coefficients: Address,
    streaming: bool,
) -> None:
    """The output of a part, from all channels' coefficients."""
    left, right, start, stop, piece = piece_of(shape, cuts, task)
    values = three_of(coefficients, shape[1], left)
    normalize_group(x, out, shape, left, right, start, stop, piece, cuts[2], AHEAD, False, values, streaming)


@inner
def finish(
    x: Address,
    parts: Address,
    segments: int,
    shape: Shape3,
    left: int,
    right: int,
    eps: float,
    parameters: Address2,
    statistics: Address3,
    coefficients: Address3,
) -> None:
    """Mean, variance, ``inv_std`` and coefficients of the channels ``left`` to ``right``; gamma and beta are given."""
    mean, var, inv_std = statistics
    merge(x, parts, segments, shape, left, right, mean, var)
    inv_std_channels(left, right, var, eps, inv_std)
    affine_channels(x, left, right, mean, inv_std, parameters[0], parameters[1], coefficients)


@inner
def add_products(
    dout: Address, x: Address, shape: Shape3, groups: int, segments: int, task: int, mean: Address, parts: Address
) -> None:
    """The two sums of the gradient of a group's channels in a segment."""
    outer, channels, inner = shape
    segment = task // groups
    left, right = group_of(channels, groups, task % groups)
    blocks = blocks_of(outer, inner)
    sums = sums_of(parts, channels, segment)
    start, stop = blocks * segment // segments, blocks * (segment + 1) // segments
    group_sums(dout, x, shape, left, right, start, stop, mean, sums[0], sums[1])


@inner
def add_up(
    parts: Address, segments: int, channels: int, left: int, right: int, inv_std: Address, sums: Address2
) -> None:
    """``sum(dout)`` and ``sum(dout * x_hat)`` of the channels ``left`` to ``right``."""
    for c in range(left, right):
        total = 0.0
        product = 0.0
        for s in range(segments):
            part = sums_of(parts, channels, s)
            total += read(part[0], c)
            product += read(part[1], c)
        write(sums[0], c, total)
        write(sums[1], c, product * read(inv_std, c))


@inner
def write_gradient(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape3,
    cuts: tuple[int, int, int],
    task: int,
    coefficients: Address,
    streaming: bool,
) -> None:
    """The part of dx, as ``write_output``."""
    left, right, start, stop, piece = piece_of(shape, cuts, task)
    values = four_of(coefficients, shape[1], left)
    gradient_group(dout, x, dx, shape, left, right, start, stop, piece, cuts[2], AHEAD, False, values, streaming)


@inner
def finish_gradient(
    x: Address,
    parts: Address,
    segments: int,
    shape: Shape3,
    left: int,
    right: int,
    mean: Address,
    inv_std: Address,
    gamma: Address,
    sums: Address2,
    coefficients: Address4,
) -> None:
    """``add_up``, and the coefficients."""
    outer, channels, inner = shape
    add_up(parts, segments, channels, left, right, inv_std, sums)
    count = np.float64(outer * inner)
    gradient_channels(x, left, right, mean, inv_std, gamma, sums[0], sums[1], count, coefficients)
