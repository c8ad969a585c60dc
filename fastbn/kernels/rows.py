"""The sums of a group of neighbouring channels, for ``channels_first``.

Tensors are flat, given by their addresses; ``shape`` is (outer, channels, inner), ``left`` and ``right`` bound the
group. Sums run in registers, in float64, over a *block* of about ``BLOCK`` values of a channel that share a pivot: a
piece of a row where rows are long, a number of rows where they are short. Blocks are merged one after another. A
channel's sums do not depend on its group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn._typing import Address, Address2, Scalar, Shape3
from fastbn.kernels.addresses import offset, read, stack, write
from fastbn.kernels.formulas import block_moments1, mean_var1, merge_moments1, middle1, pivot1
from fastbn.kernels.jit import inlined, inner, shared, with_globals
from fastbn.kernels.lanes import plus, spread_doubles, sum_of
from fastbn.kernels.loads import load_doubles, load_first_doubles, width
from fastbn.kernels.prefetch import prefetch, prefetch_near
from fastbn.kernels.processor import FAR_CACHE
from fastbn.kernels.registers import DOUBLES
from fastbn.kernels.shares import even_or_more
from fastbn.kernels.stores import store

PARALLEL = 3 << 14  # values of a tensor from which groups are shared out among threads: forward of 1x928x8x8 16.4 to
# 12.3 us, backward 17.0 to 11.9; forward of 1x48x28x28, 38,000 values, 6.3 to 8.1
SLICE = 65536  # values of a group, to stay in the second-level cache from one pass to the next,
NEAR = 4096  # or of all tensors, to stay in the first-level one, where that leaves runs of
NEAR_RUN = 512  # so many values: backward of 1x256x14x14 16 to 12 us, 1x64x56x56 35 to 29, 2x512x28x28 98 to 81
GROUP = 256  # the most channels of a group
GROUP_LANES = GROUP * DOUBLES
GROUPS = 32  # the fewest groups, as far as there are channels: they are what is shared out among threads
STRIP = 256  # values that are summed at a time, of tensors of
LAGGING = 1 << 19  # so many, where the output of the group before is written meanwhile (see ``lagging``). STRIP of 512
# or 1024: as long; of 128: 1.0 to 1.1 times. Tensors of 0.2 to 1.6 MB: forward 1.05 to 1.3 times as long, backward 1.1
PIVOTS = 15  # values from the first to the last of those that a block's pivot is chosen from
BLOCK = 4096  # values that share one pivot; also the longest run that is summed without a merge
PAIR = 2 * DOUBLES  # values that are summed side by side, so that no addition waits for the one before it. Four times
# DOUBLES, and sums of a run that begin with zero: forward of 32x512x7x7 1.05 to 1.1 times as long, backward 1.05


@shared
def rows_at_once(inner: int) -> int:
    """Rows of a block: about ``BLOCK`` values."""
    return max(1, BLOCK // inner)


@shared
def pieces_of(inner: int) -> int:
    """Pieces of a row, of ``BLOCK`` values but for the last."""
    return -(-inner // BLOCK)


@shared
def blocks_of(outer: int, inner: int) -> int:
    """Blocks of one channel: pieces of a row where rows are long, groups of rows where they are short."""
    return -(-outer // rows_at_once(inner)) * pieces_of(inner)


@inner
def values_before(outer: int, inner: int, block: int) -> int:
    """Values of one channel in the blocks before this one."""
    rows, pieces = rows_at_once(inner), pieces_of(inner)
    first = min(outer, block // pieces * rows)
    return first * inner + (min(outer, first + rows) - first) * (block % pieces) * BLOCK


@shared
def group_of(shape: Shape3, tensors: int) -> int:
    """Channels of a group where so many tensors are read; with threads, few enough for ``GROUPS`` groups."""
    outer, channels, inner = shape
    values = tensors * outer * inner
    group = (NEAR + values // 2) // values
    if group * inner < NEAR_RUN:
        group = SLICE // (outer * inner)
    group = max(1, min(GROUP, group))
    return group if channels * outer * inner < PARALLEL else max(1, min(group, channels // GROUPS))


@shared
def groups_of(shape: Shape3, tensors: int) -> int:
    """How many groups there are, all as wide as the others but for a channel."""
    channels = shape[1]
    return even_or_more(-(-channels // group_of(shape, tensors)), channels)


@inner
def _following(shape: Shape3, left: int, right: int, n: int, k: int) -> int:
    """How far it is from piece ``k`` of a row to the run that is read next for the same place in a group."""
    outer, channels, inner = shape
    if (k + 1) * BLOCK < inner:
        return BLOCK
    if n + 1 < outer:
        return channels * inner - k * BLOCK
    return (right - left - n * channels) * inner - k * BLOCK


@inlined
def _add_squares(
    x: Address, start: int, stop: int, pivot: Scalar, following: int, values: Address, squares: Address
) -> None:
    """Add ``sum(x - pivot)`` and ``sum((x - pivot)**2)`` of ``x[start:stop]`` to the lanes of sums."""
    total0, square0 = load_doubles(values, 0), load_doubles(squares, 0)
    total1 = square1 = spread_doubles(0.0)
    shift = spread_doubles(pivot)
    i = start
    while i + PAIR <= stop:
        for k in range(i - start, i - start + PAIR, width(x)):
            prefetch(x, following + k)
        d0 = load_doubles(x, i) - shift
        d1 = load_doubles(x, i + DOUBLES) - shift
        total0, total1 = plus(total0, d0), plus(total1, d1)
        square0, square1 = square0 + d0 * d0, square1 + d1 * d1
        i += PAIR
    prefetch(x, following + i - start)
    if i + DOUBLES <= stop:
        d0 = load_doubles(x, i) - shift
        total0, square0 = plus(total0, d0), square0 + d0 * d0
        i += DOUBLES
    if i < stop:
        d1 = load_first_doubles(x, i, stop - i, pivot) - shift
        total1, square1 = plus(total1, d1), square1 + d1 * d1
    store(values, 0, total0 + total1)
    store(squares, 0, square0 + square1)


@inner
def _pivot_of(x: Address, first: int, length: int) -> float:
    """The pivot of a block that begins with a run of this length: of three values of its first cache lines.

    Lines further on would have to be waited for.
    """
    last = first + min(length - 1, PIVOTS)
    return pivot1(
        middle1(np.float64(read(x, first)), np.float64(read(x, (first + last) // 2)), np.float64(read(x, last)))
    )


@inner
def origin_of(x: Address, shape: Shape3, c: int) -> float:
    """What the moments of a channel are about: the pivot of its first value."""
    return pivot1(read(x, c * shape[2]))


@shared
def is_lagging(shape: Shape3) -> bool:
    """Whether the output of a group is written while the next one is summed."""
    return FAR_CACHE and shape[0] * shape[1] * shape[2] >= LAGGING


@inner
def _strip_of(shape: Shape3) -> int:
    """How many values of a run are summed at a time, as many in every kernel for the same bits; 0: all of it."""
    return STRIP if is_lagging(shape) else 0


@inner
def _meanwhile(pending: Any, place: Any, count: int) -> Any:  # noqa: ARG001 - see ``while_summing``
    """Do something else, after every ``count`` values that are summed: nothing."""
    return place


def while_summing(body: Any, meanwhile: Any, name: str) -> Any:
    """``moments_body`` or ``sums_body`` with something to do meanwhile."""
    return inner(with_globals(body, name, {"_meanwhile": meanwhile}))


def moments_body(
    x: Address,
    shape: Shape3,
    left: int,
    right: int,
    start: int,
    stop: int,
    total: Address,
    m2: Address,
    pending: Any,
    place: Any,
) -> Any:
    """``group_moments``, and meanwhile what is ``pending``, from a ``place`` on; returns how far that is."""
    outer, channels, inner = shape
    strip, due = _strip_of(shape), 0
    pieces = pieces_of(inner)
    rows = rows_at_once(inner)
    pivot, values, squares = stack(total, GROUP), stack(total, GROUP_LANES), stack(total, GROUP_LANES)
    count = 0.0
    for block in range(start, stop):
        k = block % pieces
        first = block // pieces * rows
        last = min(first + rows, outer)
        length = min(BLOCK, inner - k * BLOCK)
        for c in range(right - left):
            write(pivot, c, _pivot_of(x, (first * channels + left + c) * inner + k * BLOCK, length))
            store(values, c * DOUBLES, spread_doubles(0.0))
            store(squares, c * DOUBLES, spread_doubles(0.0))
        for n in range(first, last):
            following = _following(shape, left, right, n, k)
            for c in range(right - left):
                i = (n * channels + left + c) * inner + k * BLOCK
                sums = offset(values, c * DOUBLES), offset(squares, c * DOUBLES)
                end = i + length
                if strip == 0:
                    _add_squares(x, i, end, read(pivot, c), i + following, sums[0], sums[1])
                    continue
                while i < end:
                    until = min(i + strip, end)
                    _add_squares(x, i, until, read(pivot, c), i + following, sums[0], sums[1])
                    due += until - i
                    i = until
                    if due >= strip:
                        place = _meanwhile(pending, place, due)
                        due = 0
        size = np.float64((last - first) * length)
        for c in range(left, right):
            j = c - left
            value, square = sum_of(load_doubles(values, j * DOUBLES)), sum_of(load_doubles(squares, j * DOUBLES))
            moments = block_moments1(size, read(pivot, j), value, square, origin_of(x, shape, c))
            if block > start:
                moments = merge_moments1(count, read(total, c), read(m2, c), moments[0], moments[1], moments[2])
            write(total, c, moments[1])
            write(m2, c, moments[2])
        count += size
    return place


_only_moments = inner(moments_body)


@inner
def group_moments(
    x: Address, shape: Shape3, left: int, right: int, start: int, stop: int, total: Address, m2: Address
) -> None:
    """Moments about ``origin_of`` of the blocks ``start`` to ``stop``, into ``total`` and ``m2``."""
    _only_moments(x, shape, left, right, start, stop, total, m2, 0, 0)


@inner
def means_vars(x: Address, shape: Shape3, left: int, right: int, total: Address, m2: Address) -> None:
    """Turn moments of all blocks into means (in ``total``) and biased variances (in ``m2``)."""
    count = np.float64(shape[0] * shape[2])
    for c in range(left, right):
        mean, var = mean_var1(origin_of(x, shape, c), count, read(total, c), read(m2, c))
        write(total, c, mean)
        write(m2, c, var)


@inlined
def _add_products(
    dout: Address,
    x: Address,
    start: int,
    stop: int,
    mean: Scalar,
    following: int,
    values: Address,
    products: Address,
) -> None:
    """Add ``sum(dout)`` and ``sum(dout * (x - mean))`` from ``start`` to ``stop`` to the lanes of sums.

    Two tensors are asked for no further than the second-level cache: backward of 32x256x56x56 9.9 to 8.7 ms.
    """
    total0, product0 = load_doubles(values, 0), load_doubles(products, 0)
    total1 = product1 = spread_doubles(0.0)
    center = spread_doubles(mean)
    i = start
    while i + PAIR <= stop:
        for k in range(i - start, i - start + PAIR, width(x)):
            prefetch_near(dout, following + k)
            prefetch_near(x, following + k)
        d0 = load_doubles(dout, i)
        d1 = load_doubles(dout, i + DOUBLES)
        total0, total1 = plus(total0, d0), plus(total1, d1)
        product0 = product0 + d0 * (load_doubles(x, i) - center)
        product1 = product1 + d1 * (load_doubles(x, i + DOUBLES) - center)
        i += PAIR
    prefetch_near(dout, following + i - start)
    prefetch_near(x, following + i - start)
    if i + DOUBLES <= stop:
        d0 = load_doubles(dout, i)
        total0 = plus(total0, d0)
        product0 = product0 + d0 * (load_doubles(x, i) - center)
        i += DOUBLES
    if i < stop:
        d1 = load_first_doubles(dout, i, stop - i, 0.0)
        total1 = plus(total1, d1)
        product1 = product1 + d1 * (load_first_doubles(x, i, stop - i, mean) - center)
    store(values, 0, total0 + total1)
    store(products, 0, product0 + product1)


def sums_body(
    dout: Address,
    x: Address,
    shape: Shape3,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Address,
    sums: Address2,
    pending: Any,
    place: Any,
) -> Any:
    """``group_sums``, and meanwhile as ``moments_body``."""
    outer, channels, inner = shape
    strip, due = _strip_of(shape), 0
    pieces = pieces_of(inner)
    rows = rows_at_once(inner)
    values, products = stack(mean, GROUP_LANES), stack(mean, GROUP_LANES)
    for c in range(right - left):
        store(values, c * DOUBLES, spread_doubles(0.0))
        store(products, c * DOUBLES, spread_doubles(0.0))
    for block in range(start, stop):
        k = block % pieces
        first = block // pieces * rows
        length = min(BLOCK, inner - k * BLOCK)
        for n in range(first, min(first + rows, outer)):
            following = _following(shape, left, right, n, k)
            for c in range(right - left):
                i = (n * channels + left + c) * inner + k * BLOCK
                center = read(mean, left + c)
                lanes = offset(values, c * DOUBLES), offset(products, c * DOUBLES)
                end = i + length
                if strip == 0:
                    _add_products(dout, x, i, end, center, i + following, lanes[0], lanes[1])
                    continue
                while i < end:
                    until = min(i + strip, end)
                    _add_products(dout, x, i, until, center, i + following, lanes[0], lanes[1])
                    due += until - i
                    i = until
                    if due >= strip:
                        place = _meanwhile(pending, place, due)
                        due = 0
    for c in range(left, right):
        write(sums[0], c, sum_of(load_doubles(values, (c - left) * DOUBLES)))
        write(sums[1], c, sum_of(load_doubles(products, (c - left) * DOUBLES)))
    return place


_only_sums = inner(sums_body)


@inner
def group_sums(
    dout: Address,
    x: Address,
    shape: Shape3,
    left: int,
    right: int,
    start: int,
    stop: int,
    mean: Address,
    sums: Address2,
) -> None:
    """``sum(dout)`` and ``sum(dout * (x - mean))`` over the blocks ``start`` to ``stop``."""
    _only_sums(dout, x, shape, left, right, start, stop, mean, sums, 0, 0)
