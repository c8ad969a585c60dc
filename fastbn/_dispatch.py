"""Which kernels run, and how the work is cut: decided by the shape alone, so that the bits are too.

=====================================  ================  ==========================================
tensor, as (outer, channels, inner)    kernels           segments (a channel's work cut in parts)
=====================================  ================  ==========================================
``inner == 1``: NC, channels last      channels_last     so that there are ``TASKS`` tasks, but no
``inner <= SHORT``, many rows          channels_last     shorter than ``MIN_ROWS`` rows
everything else                        channels_first    1 from ``FEW`` channels on, else as above
=====================================  ================  ==========================================

With one segment the fused kernels run (statistics and normalisation of a channel while it is in cache), else the
phases one after another. Tensors below ``PARALLEL`` values run the serial twins.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from fastbn.kernels import channels_first, channels_last
from fastbn.kernels.columns import channels_of
from fastbn.kernels.rows import blocks_of

PARALLEL = 1 << 15
"""Values from which starting two threads (3 microseconds) pays."""

SHORT = 256
"""Longest row that is better summed by columns: 14x14 planes at 32 images run 1.3 times faster, 28x28 slower."""

MANY = 8
"""Fewest rows for which sums by columns repay the adding up of the columns."""

TASKS = 64
FEW = 16
MIN_ROWS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shape is run."""

    kernels: Any
    """The module: ``channels_first`` or ``channels_last``."""
    shape: tuple[int, ...]
    """The shape in which the kernels take the tensors."""
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
    size = outer * channels * inner
    small = size < PARALLEL
    if inner == 1 or (inner <= SHORT and outer >= MANY):
        chunks = -(-channels // channels_of(inner))
        segments = 1 if small else max(1, min(TASKS // chunks, outer // MIN_ROWS))
        return Plan(channels_last, (outer, channels * inner), outer * inner, segments, not small)
    segments = 1
    if channels < FEW and not small:
        segments = min(blocks_of(outer, inner), -(-TASKS // channels))
    return Plan(channels_first, (outer, channels, inner), outer * inner, segments, not small)
