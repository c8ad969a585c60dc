"""The output of a chunk of columns, for ``channels_last``. Everything is flat and given by its address."""

from __future__ import annotations

from fastbn._typing import Address, Address3, Matrix
from fastbn.kernels.addresses import offset
from fastbn.kernels.chunks import KEPT, PAIRED, ask_ahead, rows_at_once, spread_all
from fastbn.kernels.formulas import normalize1
from fastbn.kernels.jit import elementwise, inner
from fastbn.kernels.loads import load, load_first, load_wide, width
from fastbn.kernels.prefetch import AHEAD, ASKING, ask, onward, prefetch_to_write
from fastbn.kernels.registers import WIDE
from fastbn.kernels.stores import aligned, put, store_first


@elementwise
def _normalize_part(
    x: Address, out: Address, at: int, stride: int, rows: int, i: int, n: int, values: Address3, streaming: bool
) -> None:
    """Columns ``i`` to ``i + n``, a register at most. A part of one is not streamed."""
    a, b, c = load_first(values[0], i, n), load_first(values[1], i, n), load_first(values[2], i, n)
    for k in range(at + i, at + i + rows * stride, stride):
        if n == width(x):
            put(out, k, normalize1(load(x, k), a, b, c), streaming)
        else:
            store_first(out, k, n, normalize1(load_first(x, k, n), a, b, c))


@elementwise
def _normalize_rows(
    x: Address, out: Address, at: int, stride: int, rows: int, size: int, values: Address3, streaming: bool, wide: bool
) -> None:
    """``rows`` runs of ``size`` values, the first from ``x[at]`` on; ``values`` are the coefficients of the columns.

    The next rows are asked for in the memory's order; ``wide`` ones not into the first-level cache, which is full.
    """
    step = WIDE * width(x)
    following = at + rows * stride
    end = following + size
    i = 0
    while i + step <= size:
        a, b, c = load_wide(values[0], i), load_wide(values[1], i), load_wide(values[2], i)
        for k in range(at + i, at + i + rows * stride, stride):
            for line in range(following, following + step, width(x)):
                ask(x, line, wide)
            following, end = onward(following, end, step, size, stride)
            put(out, k, normalize1(load_wide(x, k), a, b, c), streaming)
        i += step
    while i < size:
        n = min(width(x), size - i)
        _normalize_part(x, out, at, stride, rows, i, n, values, streaming)
        i += n


@elementwise
def _normalize_pairs(
    x: Address, out: Address, at: int, stride: int, pairs: int, size: int, values: Address3, streaming: bool
) -> None:
    """The same for so many pairs of rows, two at a time."""
    step = WIDE * width(x)
    for k in range(at, at + 2 * pairs * stride, 2 * stride):
        i = 0
        while i + step <= size:
            j = k + i
            if ASKING:
                ask_ahead(x, j, stride, size)
                ask_ahead(x, j + stride, stride, size)
            a, b, c = load_wide(values[0], i), load_wide(values[1], i), load_wide(values[2], i)
            put(out, j, normalize1(load_wide(x, j), a, b, c), streaming)
            put(out, j + stride, normalize1(load_wide(x, j + stride), a, b, c), streaming)
            i += step
        while i < size:
            n = min(width(x), size - i)
            _normalize_part(x, out, k, stride, 2, i, n, values, streaming)
            i += n


@elementwise
def _normalize_in_order(
    x: Address, out: Address, at: int, stride: int, rows: int, size: int, values: Address3, streaming: bool
) -> None:
    """The same one row after another, as the memory likes it.

    A line in which a streamed row ends is written as usual, so it is asked for: every later store waits for it.
    """
    step = WIDE * width(x)
    far = -(-AHEAD // stride) * stride
    for k in range(at, at + rows * stride, stride):
        i = min(aligned(out, k) - k, size) if streaming else 0
        if i > 0:
            prefetch_to_write(out, k + far)
            _normalize_part(x, out, k, stride, 1, 0, i, values, False)
        while i + step <= size:
            ask_ahead(x, k + i, stride, size)
            a, b, c = load_wide(values[0], i), load_wide(values[1], i), load_wide(values[2], i)
            put(out, k + i, normalize1(load_wide(x, k + i), a, b, c), streaming)
            i += step
        while i < size:
            n = min(width(x), size - i)
            _normalize_part(x, out, k, stride, 1, i, n, values, streaming)
            i += n


@inner
def normalize_chunk(
    x: Address,
    out: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    values: Address3,
    streaming: bool,
) -> None:
    """Normalise the rows ``start`` to ``stop`` of the channels ``left`` to ``right``.

    ``values`` are the coefficients of the channels, in ``SCRATCH`` and ``lead`` into it. First rows first, and the next
    ones asked for: from the last to the first, one core ran at 0.65 of a copy instead of 0.82. Rows that follow one
    another in memory are cut where registers are aligned, not where they begin: a store across two lines takes twice as
    long, and NumPy's memory begins 16 bytes after a line.
    """
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    at = start * stride + first
    head = min(aligned(out, at) - at, size)
    whole = size == stride
    for j in range(3):
        spread_all(values[j], right - left, inner, tile, head if whole else 0)
    _normalize_part(x, out, at, stride, 1 if whole else stop - start, 0, head, values, False)
    shifted = offset(values[0], head), offset(values[1], head), offset(values[2], head)
    at += head
    rows = stop - start - 1
    last = at + rows * stride
    wide = 3 * size > KEPT * width(x)
    step = rows_at_once(x, shape, wide, streaming)
    run = size if whole else size - head
    if step <= 2:
        pairs = rows // 2 if step == 2 and stride <= PAIRED * width(x) else 0
        _normalize_pairs(x, out, at, stride, pairs, run, shifted, streaming)
        _normalize_in_order(x, out, at + 2 * pairs * stride, stride, rows - 2 * pairs, run, shifted, streaming)
        _normalize_in_order(x, out, last, stride, 1, size - head, shifted, streaming)
    else:
        for k in range(at, last, step * stride):
            _normalize_rows(x, out, k, stride, min(step, (last - k) // stride), run, shifted, streaming, wide)
        _normalize_rows(x, out, last, stride, 1, size - head, shifted, streaming, wide)
