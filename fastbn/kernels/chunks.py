"""The output of a chunk of columns, for ``channels_last``: rows in order, or short and wide ones side by side.

Everything is flat and given by its address; a *chunk* is that of ``columns``, of at most ``COLUMNS`` columns.
"""

from __future__ import annotations

from fastbn._typing import Address, Address3, Address4, Matrix
from fastbn.kernels.addresses import offset, read, write
from fastbn.kernels.coefficients import spread_columns
from fastbn.kernels.formulas import grad_input1, normalize1
from fastbn.kernels.jit import elementwise, inner
from fastbn.kernels.lanes import BYTES, WIDE, load, load_first, load_wide, store_first, width
from fastbn.kernels.prefetch import AHEAD, ask, onward, prefetch_near, prefetch_to_write
from fastbn.kernels.shares import even
from fastbn.kernels.stores import aligned, drain, put

COLUMNS = 2048  # the most columns of a chunk
SCRATCH = COLUMNS + 2 * (BYTES // 4)  # room for the coefficients of columns
ROWS = 4  # the fewest rows that are written side by side, for one load of the coefficients of their columns
LINES = 128  # cache lines of each tensor up to which there are more
LONG = 8  # cache lines from which rows are written one after another, if they are whole lines,
LARGE = 1 << 21  # or if there are so many values: 12544x251 1083 to 850 us (gradient), but 784x251 29 to 41. Fewer go
# two at a time: on a Zen 4 inference of 0.3 to 6 MB took 0.88 to 0.95 of the time, forward 0.93 to 1.0, backward 0.92
# to 0.99; of 13 to 103 MB 1.0 to 1.2 times as long. Not in a loop over two rows, as for more: 1.05 to 1.15 times.
NEAR, LONG_NEAR = 1 << 18, 16  # and the lines where there are fewer values than these: a second-level cache keeps them.
# On a Zen 4, 28x28x128 took 0.83 to 0.96 of the time so; rows of 256 columns 0.9 to 1.0 in order, two at a time.
KEPT = 320  # the most cache lines of their coefficients, 20 kB, that a first-level cache of 32 kB keeps meanwhile. Four
# wider rows at once, in turns on two cores of a Zen 4: inference of 512x2048 143 to 93 us, of 1568x2048 438 to 321, dx
# of 2048 and of 1024 columns 0.8 to 1.0 of the time. Eight, or with lines of dx asked for: 1.0 to 1.5 times as long as
# four; all rows of one half and then of the other gained nothing.
RUN = 16384  # the fewest values of a task that keeps no sums: enough to repay the spreading of the coefficients,
TASKS = 16  # tasks to aim at, and
LONG_RUN = 1 << 20  # the most values of one. With tasks of RUN values forward took 1.03 to 1.2 times as long, backward
# 1.05 to 1.25 (6 to 26 MB).


@inner
def output_chunks_of(shape: Matrix) -> int:
    """How many chunks there are where there is one pass only, of at most ``COLUMNS``."""
    _, _, channels, inner = shape
    return -(-channels // max(1, COLUMNS // inner))


@inner
def row_blocks_of(shape: Matrix) -> int:
    """Blocks of rows, which are tasks together with these. However a tensor is cut, the bits are the same."""
    rows, tile, channels, inner = shape
    values = rows * tile * channels * inner
    return even(min(rows // ROWS, values // RUN, max(TASKS, values // LONG_RUN)))


@inner
def lead(out: Address, shape: Matrix, left: int, start: int) -> int:
    """Where in scratch memory coefficients begin, so that those of a register on a line of its own lie on one, too.

    NumPy's memory begins 16 bytes after a line; with coefficients that lay across two lines rows in order took 1.1 to
    1.4 times as long.
    """
    _, tile, channels, inner = shape
    at = (start * channels + left) * inner * tile
    return (at - aligned(out, at)) % width(out)


@inner
def _rows_at_once(x: Address, shape: Matrix, wide: bool, streaming: bool) -> int:
    """How many rows are written side by side: several short or near, or ``wide`` ones, or such as end within a line.

    Else they go in order, 1 or 2 at a time. Streamed ones that end within a line always do, one by one, each cut where
    registers are aligned.

    Two threads, in order against four at once: 25088 rows of 512, normalize 1535 to 1290 us, gradient 2930 to 2460;
    3136 of 256, 37 to 35 and 65 to 55; one thread, 1024 of 48, 2.5 to 3.8 and 3.8 to 6.2.
    """
    rows, tile, channels, inner = shape
    stride = tile * channels * inner
    if streaming and stride % width(x) > 0:
        return 1
    long = LONG if rows * stride >= NEAR else LONG_NEAR
    if stride >= long * width(x) and not wide:
        if rows * stride >= LARGE:
            return 1
        if stride % width(x) == 0:
            return 2
    return max(ROWS, LINES * width(x) // stride)


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
def _ask_ahead(x: Address, i: int, stride: int, size: int) -> None:
    """Ask for the wide register that is read some rows of ``size`` after ``x[i]``."""
    ahead = AHEAD if size == stride else stride
    for line in range(i + ahead, i + ahead + WIDE * width(x), width(x)):
        prefetch_near(x, line)


@elementwise
def _normalize_in_order(
    x: Address, out: Address, at: int, stride: int, pairs: int, rows: int, size: int, values: Address3, streaming: bool
) -> None:
    """The same one row after another, as the memory likes it; before that so many ``pairs`` of rows.

    A line in which a streamed row ends is written as usual, so it is asked for: every later store waits for it.
    """
    step = WIDE * width(x)
    far = -(-AHEAD // stride) * stride
    single = at + 2 * pairs * stride
    for k in range(at, single, 2 * stride):
        i = 0
        while i + step <= size:
            j = k + i
            _ask_ahead(x, j, stride, size)
            _ask_ahead(x, j + stride, stride, size)
            a, b, c = load_wide(values[0], i), load_wide(values[1], i), load_wide(values[2], i)
            put(out, j, normalize1(load_wide(x, j), a, b, c), streaming)
            put(out, j + stride, normalize1(load_wide(x, j + stride), a, b, c), streaming)
            i += step
        while i < size:
            n = min(width(x), size - i)
            _normalize_part(x, out, k, stride, 2, i, n, values, streaming)
            i += n
    for k in range(single, single + rows * stride, stride):
        i = min(aligned(out, k) - k, size) if streaming else 0
        if i > 0:
            prefetch_to_write(out, k + far)
            _normalize_part(x, out, k, stride, 1, 0, i, values, False)
        while i + step <= size:
            _ask_ahead(x, k + i, stride, size)
            a, b, c = load_wide(values[0], i), load_wide(values[1], i), load_wide(values[2], i)
            put(out, k + i, normalize1(load_wide(x, k + i), a, b, c), streaming)
            i += step
        while i < size:
            n = min(width(x), size - i)
            _normalize_part(x, out, k, stride, 1, i, n, values, streaming)
            i += n


@inner
def _spread(values: Address, channels: int, inner: int, tile: int, more: int) -> None:
    """Coefficients of channels become those of columns, of all and then once more of the first."""
    spread_columns(values, channels, inner, tile)
    size = channels * inner * tile
    for i in range(size, size + more):
        write(values, i, read(values, i - size))


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
        _spread(values[j], right - left, inner, tile, head if whole else 0)
    _normalize_part(x, out, at, stride, 1 if whole else stop - start, 0, head, values, False)
    shifted = offset(values[0], head), offset(values[1], head), offset(values[2], head)
    at += head
    rows = stop - start - 1
    last = at + rows * stride
    wide = 3 * size > KEPT * width(x)
    step = _rows_at_once(x, shape, wide, streaming)
    run = size if whole else size - head
    if step <= 2:
        pairs = rows // 2 if step == 2 else 0
        _normalize_in_order(x, out, at, stride, pairs, rows - 2 * pairs, run, shifted, streaming)
        _normalize_in_order(x, out, last, stride, 0, 1, size - head, shifted, streaming)
    else:
        for k in range(at, last, step * stride):
            _normalize_rows(x, out, k, stride, min(step, (last - k) // stride), run, shifted, streaming, wide)
        _normalize_rows(x, out, last, stride, 1, size - head, shifted, streaming, wide)
    if streaming:
        drain()


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
    """As ``_normalize_part``."""
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
    """As ``_normalize_rows``."""
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
def _gradient_in_order(
    dout: Address,
    x: Address,
    dx: Address,
    at: int,
    stride: int,
    pairs: int,
    rows: int,
    size: int,
    values: Address4,
    streaming: bool,
) -> None:
    """As ``_normalize_in_order``."""
    step = WIDE * width(x)
    far = -(-AHEAD // stride) * stride
    single = at + 2 * pairs * stride
    for k in range(at, single, 2 * stride):
        i = 0
        while i + step <= size:
            j = k + i
            _ask_ahead(dout, j, stride, size)
            _ask_ahead(x, j, stride, size)
            _ask_ahead(dout, j + stride, stride, size)
            _ask_ahead(x, j + stride, stride, size)
            a, b = load_wide(values[0], i), load_wide(values[1], i)
            c, d = load_wide(values[2], i), load_wide(values[3], i)
            put(dx, j, grad_input1(load_wide(dout, j), load_wide(x, j), a, b, c, d), streaming)
            put(
                dx,
                j + stride,
                grad_input1(load_wide(dout, j + stride), load_wide(x, j + stride), a, b, c, d),
                streaming,
            )
            i += step
        while i < size:
            n = min(width(x), size - i)
            _gradient_part(dout, x, dx, k, stride, 2, i, n, values, streaming)
            i += n
    for k in range(single, single + rows * stride, stride):
        i = min(aligned(dx, k) - k, size) if streaming else 0
        if i > 0:
            prefetch_to_write(dx, k + far)
            _gradient_part(dout, x, dx, k, stride, 1, 0, i, values, False)
        while i + step <= size:
            _ask_ahead(dout, k + i, stride, size)
            _ask_ahead(x, k + i, stride, size)
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
        _spread(values[j], right - left, inner, tile, head if whole else 0)
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
    step = _rows_at_once(x, shape, wide, streaming)
    run = size if whole else size - head
    if step <= 2:
        pairs = rows // 2 if step == 2 else 0
        _gradient_in_order(dout, x, dx, at, stride, pairs, rows - 2 * pairs, run, shifted, streaming)
        _gradient_in_order(dout, x, dx, last, stride, 0, 1, size - head, shifted, streaming)
    else:
        for k in range(at, last, step * stride):
            _gradient_rows(dout, x, dx, k, stride, min(step, (last - k) // stride), run, shifted, streaming, wide)
        _gradient_rows(dout, x, dx, last, stride, 1, size - head, shifted, streaming, wide)
    if streaming:
        drain()
