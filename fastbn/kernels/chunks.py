"""The output of a chunk of columns, for ``channels_last``: some rows at once, for one load of the coefficients.

Everything is flat and given by its address; a *chunk* is that of ``columns``, of at most ``COLUMNS`` columns.
"""

from __future__ import annotations

from fastbn._typing import Address, Address3, Address6, Matrix
from fastbn.kernels.coefficients import spread_columns
from fastbn.kernels.formulas import grad_input1, normalize1
from fastbn.kernels.jit import elementwise, inlined, scalar
from fastbn.kernels.lanes import load, load_first, store_first, width
from fastbn.kernels.prefetch import prefetch
from fastbn.kernels.stores import aligned, drain, put

COLUMNS = 2048  # the most columns of a chunk
ROWS = 4  # rows that are written together, for one load of the coefficients of their columns


@elementwise
def _normalize_part(
    x: Address, out: Address, at: int, stride: int, rows: int, i: int, n: int, values: Address3
) -> None:
    """Columns ``i`` to ``i + n``, fewer than a register."""
    a, b, c = load_first(values[0], i, n), load_first(values[1], i, n), load_first(values[2], i, n)
    for k in range(at + i, at + i + rows * stride, stride):
        store_first(out, k, n, normalize1(load_first(x, k, n), a, b, c))


@inlined
def _normalize_rows(
    x: Address, out: Address, at: int, stride: int, rows: int, size: int, values: Address3, streaming: bool
) -> None:
    """``rows`` runs of ``size`` values, the first from ``x[at]`` on; ``values`` are the coefficients of the columns."""
    step = width(x)
    i = 0
    if streaming:
        i = min(aligned(out, at) - at, size)
        _normalize_part(x, out, at, stride, rows, 0, i, values)
    while i + step <= size:
        a, b, c = load(values[0], i), load(values[1], i), load(values[2], i)
        for n in range(rows):
            k = at + n * stride + i
            prefetch(x, k + rows * stride)
            put(out, k, normalize1(load(x, k), a, b, c), streaming)
        i += step
    if i < size:
        _normalize_part(x, out, at, stride, rows, i, size - i, values)


@scalar
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

    ``values`` are the coefficients of the channels, with room for those of the columns. First rows first, and the next
    ones asked for: from the last to the first, one core ran at 0.65 of a copy instead of 0.82.
    """
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    for j in range(3):
        spread_columns(values[j], right - left, inner, tile)
    last = start + (stop - start) // ROWS * ROWS
    for n in range(start, last, ROWS):
        _normalize_rows(x, out, n * stride + first, stride, ROWS, size, values, streaming)
    for n in range(last, stop):
        _normalize_rows(x, out, n * stride + first, stride, 1, size, values, streaming)
    if streaming:
        drain()


@elementwise
def _gradient_part(
    dout: Address, x: Address, dx: Address, at: int, stride: int, rows: int, i: int, n: int, values: Address6
) -> None:
    """As ``_normalize_part``."""
    a, b, c = load_first(values[0], i, n), load_first(values[1], i, n), load_first(values[2], i, n)
    d, e, f = load_first(values[3], i, n), load_first(values[4], i, n), load_first(values[5], i, n)
    for k in range(at + i, at + i + rows * stride, stride):
        store_first(dx, k, n, grad_input1(load_first(dout, k, n), load_first(x, k, n), a, b, c, d, e, f))


@inlined
def _gradient_rows(
    dout: Address,
    x: Address,
    dx: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    values: Address6,
    streaming: bool,
) -> None:
    """As ``_normalize_rows``."""
    step = width(x)
    i = 0
    if streaming:
        i = min(aligned(dx, at) - at, size)
        _gradient_part(dout, x, dx, at, stride, rows, 0, i, values)
    while i + step <= size:
        a, b, c = load(values[0], i), load(values[1], i), load(values[2], i)
        d, e, f = load(values[3], i), load(values[4], i), load(values[5], i)
        for n in range(rows):
            k = at + n * stride + i
            prefetch(dout, k + rows * stride)
            prefetch(x, k + rows * stride)
            put(dx, k, grad_input1(load(dout, k), load(x, k), a, b, c, d, e, f), streaming)
        i += step
    if i < size:
        _gradient_part(dout, x, dx, at, stride, rows, i, size - i, values)


@scalar
def gradient_chunk(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    values: Address6,
    streaming: bool,
) -> None:
    """Write dx for rows and channels as ``normalize_chunk`` does."""
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    for j in range(6):
        spread_columns(values[j], right - left, inner, tile)
    last = start + (stop - start) // ROWS * ROWS
    for n in range(start, last, ROWS):
        _gradient_rows(dout, x, dx, n * stride + first, stride, ROWS, size, values, streaming)
    for n in range(last, stop):
        _gradient_rows(dout, x, dx, n * stride + first, stride, 1, size, values, streaming)
    if streaming:
        drain()
