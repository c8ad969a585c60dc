"""Which kernels run on a GPU, and how the work is cut: decided by shape and dtype alone, so that the bits are too.

=====================================================  =======
tensor, as (outer, channels, inner)                    kernels
=====================================================  =======
``inner == 1`` (NC, channels last)                     columns
planes shorter than ``SHORT``                          columns
planes not of whole accesses, many rows that are       columns
everything else                                        planes
=====================================================  =======

*Segments* cut a channel's values to give every multiprocessor several blocks. *Tiles* make one row of several where
rows are short. Training in one kernel, a block a channel (*fused*), pays where all channels that run at once stay in
the second-level cache from the statistics to the output; an H100's holds 50 MB. None of these limits was measured on a
GPU yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastbn._typing import Shape3
from fastbn.kernels import cuda_columns, cuda_planes
from fastbn.kernels.cuda import kernels
from fastbn.kernels.cuda_blocks import LOADS, THREADS
from fastbn.kernels.cuda_warps import BYTES, SIMULATED, WARP

SHORT = 128
"""Bytes of a plane below which a channel's values make poor use of memory transactions."""

ROWS = 64
"""Rows from which on partials for each column, of 16 bytes, are few beside the tensor."""


class Limits(NamedTuple):
    """What depends on the machine."""

    threads: int
    """Of a block; a power of two, as the next two are."""
    whole: int
    """Of a block that has a channel to itself."""
    lanes: int
    """Threads side by side on a row."""
    blocks: int
    """To aim at."""
    resident: int
    """Blocks of a channel each that run at once."""
    channels: int
    """The fewest that can be a block each."""
    cache: int
    """Bytes of the second-level cache that can be counted on."""


GPU = Limits(threads=THREADS, whole=512, lanes=WARP, blocks=2048, resident=264, channels=128, cache=24_000_000)
SIMULATOR = Limits(threads=4, whole=8, lanes=2, blocks=6, resident=8, channels=4, cache=6_000)
"""Threads are Python's there, and slow; everything comes about at small size."""

LIMITS = SIMULATOR if SIMULATED else GPU


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shape is run."""

    kernels: SimpleNamespace
    shape: tuple[int, ...]
    cuts: Shape3
    grid: int
    columns: Shape3
    """(tile, channels, inner) of the partials of a segment,"""
    units: int
    """what segments have a share of,"""
    values: int
    """and of how many values each is."""
    step: int
    """From a channel's first value to the next channel's."""
    count: int
    """Values of a channel."""
    fused: SimpleNamespace
    """Kernels that have a channel to themselves,"""
    fused_shape: Shape3
    """the shape in which they take the tensors,"""
    fused_forward: bool
    """and whether they run."""
    fused_backward: bool

    @property
    def partials(self) -> int:
        """float64 numbers to keep between two kernels."""
        tile, channels, inner = self.columns
        return 2 * self.cuts[0] * tile * channels * inner


@functools.lru_cache(maxsize=1024)
def plan(shape: Shape3, dtype: Any, aligned: bool) -> Plan:
    """The plan for (outer, channels, inner), none of them 0; ``aligned`` tensors start at multiples of an access."""
    outer, channels, inner = shape
    itemsize = np.dtype(dtype).itemsize
    width = BYTES // itemsize
    count = outer * inner
    whole_width = width if inner % width == 0 else 1
    fused = kernels(cuda_planes, dtype, whole_width, aligned)
    active = min(channels, LIMITS.resident) * count * itemsize
    fusible = channels >= LIMITS.channels and inner * itemsize >= SHORT
    common: dict[str, Any] = {
        "step": inner,
        "count": count,
        "fused": fused,
        "fused_shape": shape,
        "fused_forward": fusible and active <= LIMITS.cache,
        "fused_backward": fusible and 2 * active <= LIMITS.cache,
    }
    short = inner * itemsize < SHORT and channels > 1
    if not short and (whole_width > 1 or channels * inner % width or outer < ROWS):
        accesses = outer * (inner // whole_width)
        segments = _segments(channels, accesses, LIMITS.threads)
        return Plan(
            fused, shape, (segments, 0, 0), channels * segments, (1, channels, 1), accesses, whole_width, **common
        )
    tile = _tile(outer, channels * inner)
    rows, columns = outer // tile, channels * inner * tile
    width = width if columns % width == 0 else 1
    lanes = _lanes(columns // width)
    chunks = -(-columns // (width * lanes))
    segments = _segments(chunks, rows, LIMITS.threads // lanes)
    return Plan(
        kernels(cuda_columns, dtype, width, aligned),
        (rows, columns, channels, inner),
        (segments, lanes, chunks),
        segments * chunks,
        (tile, channels, inner),
        rows,
        1,
        **common,
    )


def _segments(blocks: int, accesses: int, threads: int) -> int:
    """Enough for all blocks, but none so short that its threads do not run their loop twice."""
    return max(1, min(-(-LIMITS.blocks // blocks), accesses // (2 * LOADS * threads)))


def _tile(rows: int, columns: int) -> int:
    """Rows to make one of: a power of two that divides them, while that fits the lanes."""
    tile = 1
    while rows % (2 * tile) == 0 and 2 * tile * columns <= 4 * LIMITS.lanes:
        tile *= 2
    return tile


def _lanes(accesses: int) -> int:
    """Threads on a row of so many accesses: a power of two."""
    return int(min(LIMITS.lanes, 1 << (accesses - 1).bit_length()))
