"""Rows made of several, where there are few channels: by the shape alone, as everything in a plan."""

from __future__ import annotations

from fastbn._typing import Matrix, Shape3
from fastbn.kernels.columns import FAR
from fastbn.kernels.groups import NARROW
from fastbn.kernels.jit import shared
from fastbn.kernels.threads import pay

TILE, FAR_TILE = 512, 1024
"""The most columns of a row that is made of several, and of a far tensor if they end within a cache line."""

WIDE_ROW = 64
"""Columns whose coefficients stay in registers from row to row: 47 GB/s on one core where rows of 512 ran at 35.

A row of several is best so long, or else a few times: sums of 128 columns run at 46 GB/s on one core of a Zen 4, of 256
at 45 and of 512 at 41, as more rows are summed at once. With 512 columns backward of tensors of 128 and 256 channels
took 1.0 to 1.1 times as long, forward 1.0 to 1.13; with 160 columns, which are no whole number of these, not 320, 1.1
times.
"""

MANY = 512
"""The fewest rows that end within a cache line and are made longer on one thread, too.

On a Zen 3, in turns, 1280x3, 2048x4 and 4608x19 took 0.70, 0.75 and 0.69 of the time in inference, 0.74, 0.63 and 0.69
in forward, 0.59, 0.49 and 0.70 in backward; 800x5 0.9, 400x5 and 200x10 1.14 to 1.19 times as long. Rows of whole
lines, 16 to 48 columns, took 0.96 to 1.12 times as long.
"""


@shared
def _best_of(rows: int, channels: int, columns: int) -> int:
    """The divisor of ``rows`` that makes the best row of up to so many columns.

    That is the shortest of whole ``WIDE_ROW``, or the longest of whole registers, or else the longest.
    """
    most = min(rows, columns // channels)
    even = channels & -channels  # the power of two in it
    whole, step = max(1, WIDE_ROW // even), max(1, NARROW // even)
    if whole <= most and rows % whole == 0:
        return whole
    if step > most or rows % step > 0:
        step = 1
    for tile in range(most - most % step, 1, -step):
        if rows % tile == 0:
            return tile
    return 1


@shared
def matrix_of(shape: Shape3) -> Matrix:
    """What ``channels_last`` takes for (outer, channels, inner)."""
    outer, channels, inner = shape
    tile = 1
    if inner == 1 and (pay(shape, 2) or (outer >= MANY and channels % NARROW > 0)):
        tile = _best_of(outer, channels, TILE)
        if tile * channels % NARROW > 0 and outer * channels >= FAR:
            tile = _best_of(outer, channels, FAR_TILE)
    return outer // tile, tile, channels, inner
