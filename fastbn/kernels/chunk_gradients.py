"""The gradient of a chunk of columns, for ``channels_last``: as ``chunk_outputs``, of two tensors."""

from __future__ import annotations

from fastbn._typing import Address, Address4, Matrix
from fastbn.kernels.addresses import offset
from fastbn.kernels.chunks import KEPT, ask_ahead, rows_at_once, spread_all
from fastbn.kernels.formulas import grad_input1
from fastbn.kernels.jit import elementwise, inner
from fastbn.kernels.loads import load, load_first, load_wide, width
from fastbn.kernels.prefetch import AHEAD, ASKING, ask, onward, prefetch_to_write
from fastbn.kernels.registers import WIDE
from fastbn.kernels.stores import aligned, put, store_first


@elementwise
def _gradient_part(
    dout: Address,
    x: Address,
    dx: Address,
    at: int,
    stride: int,
    rows: int,
    i: int,
    n: int,
    values: Address4,
    streaming: bool,
) -> None:
    """As ``chunk_outputs._normalize_part``."""
    a, b = load_first(values[0], i, n), load_first(values[1], i, n)
    c, d = load_first(values[2], i, n), load_first(values[3], i, n)
    for k in range(at + i, at + i + rows * stride, stride):
        if n == width(x):
            put(dx, k, grad_input1(load(dout, k), load(x, k), a, b, c, d), streaming)
        else:
            store_first(dx, k, n, grad_input1(load_first(dout, k, n), load_first(x, k, n), a, b, c, d))


@elementwise
def _gradient_rows(
    dout: Address,
    x: Address,
    dx: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    values: Address4,
    streaming: bool,
    wide: bool,
) -> None:
    """As ``chunk_outputs._normalize_rows``."""
    step = WIDE * width(x)
    following = at + rows * stride
    end = following + size
    i = 0
    while i + step <= size:
        a, b = load_wide(values[0], i), load_wide(values[1], i)
        c, d = load_wide(values[2], i), load_wide(values[3], i)
        for k in range(at + i, at + i + rows * stride, stride):
            for line in range(following, following + step, width(x)):
                ask(dout, line, wide)
                ask(x, line, wide)
            following, end = onward(following, end, step, size, stride)
            put(dx, k, grad_input1(load_wide(dout, k), load_wide(x, k), a, b, c, d), streaming)
        i += step
    while i < size:
        n = min(width(x), size - i)
        _gradient_part(dout, x, dx, at, stride, rows, i, n, values, streaming)
        i += n


@elementwise
def _gradient_pairs(
    dout: Address,
    x: Address,
    dx: Address,
    at: int,
    stride: int,
    pairs: int,
    size: int,
    values: Address4,
    streaming: bool,
) -> None:
    """As ``chunk_outputs._normalize_pairs``."""
    step = WIDE * width(x)
    for k in range(at, at + 2 * pairs * stride, 2 * stride):
        i = 0
        while i + step <= size:
            j = k + i
            if ASKING:
                ask_ahead(dout, j, stride, size)
                ask_ahead(x, j, stride, size)
                ask_ahead(dout, j + stride, stride, size)
                ask_ahead(x, j + stride, stride, size)
            a, b = load_wide(values[0], i), load_wide(values[1], i)
            c, d = load_wide(values[2], i), load_wide(values[3], i)
            put(dx, j, grad_input1(load_wide(dout, j), load_wide(x, j), a, b, c, d), streaming)
            j += stride
            put(dx, j, grad_input1(load_wide(dout, j), load_wide(x, j), a, b, c, d), streaming)
            i += step
        while i < size:
            n = min(width(x), size - i)
            _gradient_part(dout, x, dx, k, stride, 2, i, n, values, streaming)
            i += n


@elementwise
def _gradient_in_order(
    dout: Address,
    x: Address,
    dx: Address,
    at: int,
    stride: int,
    rows: int,
    size: int,
    values: Address4,
    streaming: bool,
) -> None:
    """As ``chunk_outputs._normalize_in_order``."""
    step = WIDE * width(x)
    far = -(-AHEAD // stride) * stride
    for k in range(at, at + rows * stride, stride):
        i = min(aligned(dx, k) - k, size) if streaming else 0
        if i > 0:
            prefetch_to_write(dx, k + far)
            _gradient_part(dout, x, dx, k, stride, 1, 0, i, values, False)
        while i + step <= size:
            ask_ahead(dout, k + i, stride, size)
            ask_ahead(x, k + i, stride, size)
            a, b = load_wide(values[0], i), load_wide(values[1], i)
            c, d = load_wide(values[2], i), load_wide(values[3], i)
            put(dx, k + i, grad_input1(load_wide(dout, k + i), load_wide(x, k + i), a, b, c, d), streaming)
            i += step
        while i < size:
            n = min(width(x), size - i)
            _gradient_part(dout, x, dx, k, stride, 1, i, n, values, streaming)
            i += n


@inner
def gradient_chunk(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Matrix,
    left: int,
    right: int,
    start: int,
    stop: int,
    values: Address4,
    streaming: bool,
) -> None:
    """Write dx for rows and channels as ``normalize_chunk`` does."""
    _, tile, channels, inner = shape
    stride = tile * channels * inner
    first = left * inner * tile
    size = (right - left) * inner * tile
    at = start * stride + first
    head = min(aligned(dx, at) - at, size)
    whole = size == stride
    for j in range(4):
        spread_all(values[j], right - left, inner, tile, head if whole else 0)
    _gradient_part(dout, x, dx, at, stride, 1 if whole else stop - start, 0, head, values, False)
    shifted = (
        offset(values[0], head),
        offset(values[1], head),
        offset(values[2], head),
        offset(values[3], head),
    )
    at += head
    rows = stop - start - 1
    last = at + rows * stride
    wide = 4 * size > KEPT * width(x)
    step = rows_at_once(x, shape, wide, streaming)
    run = size if whole else size - head
    if step <= 2:
        pairs = rows // 2 if step == 2 else 0
        _gradient_pairs(dout, x, dx, at, stride, pairs, run, shifted, streaming)
        _gradient_in_order(dout, x, dx, at + 2 * pairs * stride, stride, rows - 2 * pairs, run, shifted, streaming)
        _gradient_in_order(dout, x, dx, last, stride, 1, size - head, shifted, streaming)
    else:
        for k in range(at, last, step * stride):
            _gradient_rows(dout, x, dx, k, stride, min(step, (last - k) // stride), run, shifted, streaming, wide)
        _gradient_rows(dout, x, dx, last, stride, 1, size - head, shifted, streaming, wide)
