"""How the output of ``channels_last`` is cut, and what is written side by side: rows in order, or short and wide ones.

A *chunk* is that of ``columns``, of at most ``COLUMNS`` columns. What writes one is in ``chunk_outputs`` and
``chunk_gradients``.
"""

from __future__ import annotations

from fastbn._typing import Address, Matrix
from fastbn.kernels.addresses import read, write
from fastbn.kernels.coefficients import spread_columns
from fastbn.kernels.jit import elementwise, inner
from fastbn.kernels.loads import width
from fastbn.kernels.prefetch import AHEAD, prefetch_near
from fastbn.kernels.registers import BYTES, WHOLE_LINES, WIDE
from fastbn.kernels.shares import even
from fastbn.kernels.stores import aligned

COLUMNS = 2048  # the most columns of a chunk
SCRATCH = COLUMNS + 2 * (BYTES // 4)  # room for the coefficients of columns
ROWS = 4  # the fewest rows that are written side by side, for one load of the coefficients of their columns
LINES = 128  # cache lines of each tensor up to which there are more
LONG = 8  # cache lines from which rows are written one after another, if they are whole lines,
LARGE = 1 << 21  # or if there are so many values: 12544x251 1083 to 850 us (gradient), but 784x251 29 to 41. Fewer go
# two at a time: on a Zen 4 inference of 0.3 to 6 MB took 0.88 to 0.95 of the time, forward 0.93 to 1.0, backward 0.92
# to 0.99; of 13 to 103 MB 1.0 to 1.2 times as long. Not in a loop over two rows, as for more: 1.05 to 1.15 times.
PAIRED = 40  # the most cache lines of such rows in a forward or in inference: of 900 to 1024 columns, nearly a page
# apart, forward of 225 rows took 1.05 to 1.14 times as long two at a time, but dx 0.92 to 0.95
NEAR, LONG_NEAR = 1 << 18, 16  # and the lines where there are fewer values than these: a second-level cache keeps them.
# On a Zen 4, 28x28x128 took 0.83 to 0.96 of the time so; rows of 256 columns 0.9 to 1.0 in order, two at a time.
KEPT = 320  # the most cache lines of their coefficients, 20 kB, that a first-level cache of 32 kB keeps meanwhile. Four
# wider rows at once, in turns on two cores of a Zen 4: inference of 512x2048 143 to 93 us, of 1568x2048 438 to 321, dx
# of 2048 columns 0.8 to 1.0 of the time. Eight, or with lines of dx asked for: 1.0 to 1.5 times as long as
# four; all rows of one half and then of the other gained nothing.
HALF_PAGE = 32  # cache lines
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
def rows_at_once(x: Address, shape: Matrix, wide: bool, streaming: bool) -> int:
    """How many rows are written side by side: several short or near, or ``wide`` ones, or such as end within a line.

    Else they go in order, 1 or 2 at a time. Streamed ones that end within a line always do, one by one, each cut where
    registers are aligned. Nor are four streamed rows written at once that lie half pages or whole ones apart, where a
    line takes two stores: one core of a Zen 3 wrote rows of 2048 columns so at 4 to 9 GB/s, as loops in C did, of 2032
    columns at 29, and writes those of 2048 at 27 to 32 in order or two at a time.

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
    if wide and streaming and not WHOLE_LINES and stride % (HALF_PAGE * width(x)) == 0:
        return 2 if stride <= COLUMNS else 1
    return max(ROWS, LINES * width(x) // stride)


@elementwise
def ask_ahead(x: Address, i: int, stride: int, size: int) -> None:
    """Ask for the wide register that is read some rows of ``size`` after ``x[i]``."""
    ahead = AHEAD if size == stride else stride
    for line in range(i + ahead, i + ahead + WIDE * width(x), width(x)):
        prefetch_near(x, line)


@inner
def spread_all(values: Address, channels: int, inner: int, tile: int, more: int) -> None:
    """Coefficients of channels become those of columns, of all and then once more of the first."""
    spread_columns(values, channels, inner, tile)
    size = channels * inner * tile
    for i in range(size, size + more):
        write(values, i, read(values, i - size))
