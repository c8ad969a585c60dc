"""What the kernels of ``channels_first`` do in one task, of one phase. Everything is given by its address."""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Shape3
from fastbn.kernels.addresses import offset, read, write
from fastbn.kernels.coefficients import copy, four_of, three_of
from fastbn.kernels.formulas import merge_moments1
from fastbn.kernels.groups import gradient_group, normalize_group
from fastbn.kernels.jit import inner
from fastbn.kernels.prefetch import AHEAD
from fastbn.kernels.rows import blocks_of, group_moments, group_sums, means_vars, values_before
from fastbn.kernels.segments import sums_of


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
def add_moments(x: Address, shape: Shape3, groups: int, segments: int, task: int, parts: Address) -> None:
    """Totals and centred sums of squares of a group's channels in a segment."""
    outer, channels, inner = shape
    segment = task // groups
    left, right = group_of(channels, groups, task % groups)
    blocks = blocks_of(outer, inner)
    sums = sums_of(parts, channels, segment)
    start, stop = blocks * segment // segments, blocks * (segment + 1) // segments
    group_moments(x, shape, left, right, start, stop, sums[0], sums[1])


@inner
def merge(
    x: Address, parts: Address, segments: int, shape: Shape3, left: int, right: int, mean: Address, var: Address
) -> None:
    """Merge the moments of all segments, in order, into means and biased variances, for ``left`` to ``right``."""
    outer, channels, inner = shape
    blocks = blocks_of(outer, inner)
    total, m2 = sums_of(parts, channels, 0)
    copy(total, left, right, offset(mean, left))
    copy(m2, left, right, offset(var, left))
    count = np.float64(values_before(outer, inner, blocks // segments))
    for s in range(1, segments):
        total, m2 = sums_of(parts, channels, s)
        both = np.float64(values_before(outer, inner, blocks * (s + 1) // segments))
        for c in range(left, right):
            moments = merge_moments1(count, read(mean, c), read(var, c), both - count, read(total, c), read(m2, c))
            write(mean, c, moments[1])
            write(var, c, moments[2])
        count = both
    means_vars(x, shape, left, right, mean, var)


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
    group_sums(dout, x, shape, left, right, start, stop, mean, sums)


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
