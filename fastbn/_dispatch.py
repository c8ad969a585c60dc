"""Which kernels run, and how the work is cut: decided by the shape alone, so that the bits are too.

=====================================  =============================  =================================
tensor, as (outer, channels, inner)    fused kernels and sums         normalize and backward_input alone
=====================================  =============================  =================================
``inner == 1``: NC, channels last      channels_last, tiled           channels_last, tiled
``inner`` up to ``SHORT``, many rows   channels_last                  channels_first from ``WIDE`` on
everything else                        channels_first                 channels_first
=====================================  =============================  =================================

*Segments* cut a channel's values where there are too few channels to feed the threads. With one segment the fused
kernels run (statistics and normalisation of a channel while it is in cache), else the phases one after another.
*Tiling* makes one row of several where there are few channels, as long rows run faster.
Tensors below ``PARALLEL`` values run the serial twins, uncut.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from fastbn.kernels import channels_first, channels_last
from fastbn.kernels.columns import CHUNK, WIDE, channels_of
from fastbn.kernels.rows import blocks_of

PARALLEL = 1 << 16
"""Values from which two threads pay: here forward takes 53 microseconds on one and 23 on two, if they are awake."""

SHORT = 256
"""Longest row that is better summed by columns: 14x14 planes at 32 images run twice as fast, 28x28 a third slower."""

MANY = 8
"""Fewest rows for which sums by columns repay the adding up of the columns."""

TASKS = 64
"""Tasks to aim at where a channel's values are cut."""

FEW = 16
"""Channels from which the channels themselves are tasks enough."""

MIN_ROWS = 64
"""Fewest rows of a segment in ``channels_last``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shape is run."""

    kernels: Any
    """The module for fused kernels and sums."""
    shape: tuple[int, int, int]
    """The shape in which it takes the tensors."""
    element_kernels: Any
    """The module for ``normalize`` and ``backward_input`` alone."""
    element_shape: tuple[int, int, int]
    """The shape in which that one takes them."""
    count: int
    """Values per channel."""
    segments: int
    parallel: bool

    @property
    def fused(self) -> bool:
        """Whether one kernel does all phases."""
        return self.segments == 1


@functools.lru_cache(maxsize=1024)
def plan(outer: int, channels: int, inner: int) -> Plan:
    """The plan for a tensor of this shape; none of the three is 0."""
    count = outer * inner
    parallel = count * channels >= PARALLEL
    rows, columns = (outer, channels, inner), (outer, 1, channels * inner)
    if inner == 1:
        tile = _tile(outer, channels) if parallel else 1
        columns = (outer // tile, tile, channels)
        segments = _row_segments(outer // tile, channels, 1) if parallel else 1
        return Plan(channels_last, columns, channels_last, columns, count, segments, parallel)
    if inner <= SHORT and outer >= MANY:
        segments = _row_segments(outer, channels, inner) if parallel else 1
        by_rows = inner >= WIDE
        element_kernels, element_shape = (channels_first, rows) if by_rows else (channels_last, columns)
        return Plan(channels_last, columns, element_kernels, element_shape, count, segments, parallel)
    segments = 1
    if channels < FEW and parallel:
        segments = min(blocks_of(outer, inner), -(-TASKS // channels))
    return Plan(channels_first, rows, channels_first, rows, count, segments, parallel)


def _row_segments(rows: int, channels: int, inner: int) -> int:
    """Segments for ``channels_last``: enough tasks together with the chunks of columns, but none too short."""
    chunks = -(-channels // channels_of(inner))
    return max(1, min(TASKS // chunks, rows // MIN_ROWS))


def _tile(rows: int, channels: int) -> int:
    """The largest divisor of ``rows`` that makes a row fill one chunk at the most."""
    return max(tile for tile in range(1, max(1, CHUNK // channels) + 1) if rows % tile == 0)
