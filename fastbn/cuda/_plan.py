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
rows are short. Training is one of three:

* one kernel, a block a channel (*fused*), where all channels that run at once stay in the second-level cache from the
  statistics to the output; an H100's holds 50 MB;
* one kernel, launched cooperatively, that goes through the channels *group* by group, each as large as stays in the
  cache, with all blocks on it, which wait for each other between statistics and output;
* phases, kernels one after the other, which read everything twice. They take the cuts of a grouped kernel's plan where
  the device cannot launch that one, so that the bits do not depend on it.

Phases move 3 tensors forward and 5 backward, the others 2 and 3. So a group saves the time in which memory moves what
it has in the cache, and costs a wait of the whole grid, some 1.5 to 3 microseconds, and 1 or 2 in which each block
merges the segments of its channels; to share the channels out would take another wait. 4 microseconds are 12 MB of an
H100's 3 TB/s. With 24 MB in the cache at a time, 16 microseconds in place of 24, that leaves half of the 8. Where all
channels stay in the cache together, phases find them there, too. Columns are grouped by whole sectors, or memory would
move what nobody reads. None of these limits was measured on a GPU yet.
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

MERGES = 4
"""Segments that a thread of a group's block merges at the most."""


class Limits(NamedTuple):
    """What depends on the machine."""

    threads: int
    """Of a block; a power of two, as the next two are."""
    whole: int
    """Of a block that has a channel to itself."""
    lanes: int
    """Threads side by side on a row."""
    sector: int
    """Bytes that memory moves at once."""
    blocks: int
    """To aim at."""
    resident: int
    """Blocks of a channel, or of a group, that run at once: two for each of 132 multiprocessors."""
    channels: int
    """The fewest that can be a block each."""
    cache: int
    """Bytes of the second-level cache that can be counted on: half, the other half is for what is written."""
    wait: int
    """Bytes that memory could move while a grid waits for its last block, and merges."""


GPU = Limits(
    threads=THREADS,
    whole=512,
    lanes=WARP,
    sector=32,
    blocks=2048,
    resident=264,
    channels=128,
    cache=24_000_000,
    wait=12_000_000,
)
SIMULATOR = Limits(threads=4, whole=8, lanes=2, sector=16, blocks=6, resident=8, channels=4, cache=6_000, wait=1_500)
"""Threads are Python's there, and slow; everything comes about at small size."""

LIMITS = SIMULATOR if SIMULATED else GPU


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor is shared out among blocks."""

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
    team: int
    """Threads that merge a channel."""
    group: int = 0
    """Channels, or chunks of columns, that a cooperative launch does at a time; 0 where phases are better."""

    @property
    def partials(self) -> int:
        """float64 numbers to keep between two kernels."""
        tile, channels, inner = self.columns
        return 2 * self.cuts[0] * tile * channels * inner


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shape is run."""

    phases: Cut
    """For one operation by itself,"""
    forward: Cut
    """for training forward,"""
    backward: Cut
    """and backward, unless they are fused."""
    count: int
    """Values of a channel."""
    fused: SimpleNamespace
    """Kernels that have a channel to themselves,"""
    fused_shape: Shape3
    """the shape in which they take the tensors,"""
    fused_forward: bool
    """and whether they run."""
    fused_backward: bool


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
    short = inner * itemsize < SHORT and channels > 1
    if not short and (whole_width > 1 or channels * inner % width or outer < ROWS):
        accesses = outer * (inner // whole_width)
        phases = _planes(fused, shape, whole_width, _segments(channels, accesses, LIMITS.threads))
        groups = [_group(channels, tensors * count * itemsize) for tensors in (1, 2)]
        forward, backward = (_planes(fused, shape, whole_width, *group) if group else phases for group in groups)
    else:
        tile = _tile(outer, channels * inner)
        rows, columns = outer // tile, channels * inner * tile
        width = width if columns % width == 0 else 1
        lanes = _lanes(columns // width)
        segments = _segments(-(-columns // (width * lanes)), rows, LIMITS.threads // lanes)
        phases = _columns(kernels(cuda_columns, dtype, width, aligned), shape, tile, lanes, width * lanes, segments)
        forward, backward = (_strips(shape, dtype, aligned, tensors) or phases for tensors in (1, 2))
    return Plan(
        phases=phases,
        forward=forward,
        backward=backward,
        count=count,
        fused=fused,
        fused_shape=shape,
        fused_forward=fusible and active <= LIMITS.cache,
        fused_backward=fusible and 2 * active <= LIMITS.cache,
    )


def _planes(those: SimpleNamespace, shape: Shape3, width: int, segments: int, group: int = 0) -> Cut:
    outer, channels, inner = shape
    accesses = outer * (inner // width)
    return Cut(
        those,
        shape,
        (segments, 0, 0),
        channels * segments,
        (1, channels, 1),
        accesses,
        width,
        inner,
        LIMITS.threads,
        group,
    )


def _columns(
    those: SimpleNamespace, shape: Shape3, tile: int, lanes: int, wide: int, segments: int, group: int = 0
) -> Cut:
    """Of ``tile`` rows made one, in chunks of so many columns, those of ``lanes`` threads."""
    outer, channels, inner = shape
    rows, columns = outer // tile, channels * inner * tile
    chunks = -(-columns // wide)
    cuts, matrix = (segments, lanes, chunks), (rows, columns, channels, inner)
    team = LIMITS.threads // wide if group else LIMITS.threads
    return Cut(those, matrix, cuts, segments * chunks, (tile, channels, inner), rows, 1, inner, team, group)


def _strips(shape: Shape3, dtype: Any, aligned: bool, tensors: int) -> Cut | None:
    """Columns in groups, if that pays: in the widest chunks of whole sectors of which threads have few to merge."""
    outer, channels, inner = shape
    itemsize = np.dtype(dtype).itemsize
    width = BYTES // itemsize
    if inner > 1 or channels * itemsize % LIMITS.sector:
        return None
    lanes = min(LIMITS.lanes, LIMITS.threads // width)
    while lanes * BYTES >= LIMITS.sector:
        group = _group(-(-channels // (lanes * width)), outer * lanes * BYTES * tensors)
        if group and group[0] * lanes * width <= MERGES * LIMITS.threads:
            return _columns(kernels(cuda_columns, dtype, width, aligned), shape, 1, lanes, lanes * width, *group)
        lanes //= 2
    return None


def _group(units: int, nbytes: int) -> tuple[int, int] | None:
    """The segments of each of so many units of so many bytes, and how many units are done at a time, if that pays."""
    if nbytes > LIMITS.cache or units * nbytes <= LIMITS.cache:
        return None
    groups = -(-units // min(LIMITS.cache // nbytes, LIMITS.resident))
    group = -(-units // groups)
    return (LIMITS.resident // group, group) if units * nbytes > groups * LIMITS.wait else None


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
