"""Which kernels run, and how the work is cut: decided by the shape alone, so that the bits are too.

====================================================  ==============
tensor, as (outer, channels, inner)                   kernels
====================================================  ==============
``inner == 1`` (NC, channels last)                    channels_last, tiled
``by_columns`` (short runs: see ``kernels.families``)  channels_last
everything else                                       channels_first
====================================================  ==============

*Segments* cut a channel's values where there are too few channels to feed the threads, or too many values to stay in
cache from one pass to the next. With one segment the output of some channels may follow their statistics at once, while
they are in cache, else there are phases, one after another.
*Tiling* makes one row of several where there are few channels, as long rows run faster.
*Streaming* stores go past the caches where operands exceed them; from which size on, the processor decides, too, as no
bit depends on it.
Tensors of too few values for threads (see ``kernels.threads``) run the serial twins, uncut.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba

from fastbn._typing import Matrix, Shape3
from fastbn.kernels import channels_first, channels_last
from fastbn.kernels.chunks import COLUMNS
from fastbn.kernels.columns import LEAST_CHUNKS, chunks_of
from fastbn.kernels.families import by_columns
from fastbn.kernels.groups import NARROW
from fastbn.kernels.processor import FAR_CACHE
from fastbn.kernels.rows import blocks_of
from fastbn.kernels.shares import even
from fastbn.kernels.threads import FEW, pay
from fastbn.kernels.tiles import matrix_of

ALONE, EACH = 6_000_000, 4_500_000
"""Bytes read and written from which streaming stores win where the last-level cache is far: on one thread, and times
the number of threads.

On two cores of an Emerald Rapids, in turns, inference of 3 to 13 MB took 0.72 to 0.89 of the time, forward 0.80 to 0.99
and backward 0.75 to 1.0, on one 0.78 to 0.88, 0.83 to 0.98 and 0.72 to 0.96. Together with somebody who reads the
result at once, on two cores, inference of 3.2 MB took 1.25 to 1.64 times as long, of 4.2 to 5.2 MB 1.05 to 1.39, of 6.4
MB 1.12 to 1.18, of 9.6 MB 1.09 to 1.15, of 12.8 MB 1.0 to 1.17, of 26 MB 0.9; forward of 4.2 to 6.4 MB 1.05 to 1.28,
backward of 3.2 MB 1.0 to 1.14 and of 6.4 MB 1.0 to 1.05; on one core inference and forward of 1.6 MB 1.2 to 1.78, of
3.2 MB 1.05 to 1.28, backward of 1.6 MB 0.98 to 1.22. So this is where one outweighs the other. With more than two
threads not measured: the second-level caches of all keep more, and what holds elsewhere is the most.

NCHW's forward of 6 to 26 MB takes as long unstreamed where the last-level cache has the memory of the result from
before (0.86 to 1.08 of the time, with a reader 0.74 to 0.83), but 1.1 to 1.75 times in the first calls after it has
not.
"""


def _least(alone: int, together: int) -> tuple[int, int]:
    """These, or less where the last-level cache is far."""
    if not FAR_CACHE:
        return alone, together
    return min(alone, ALONE), min(together, EACH * numba.config.NUMBA_NUM_THREADS)


STREAM = _least(17_000_000, 30_000_000)
"""Bytes read and written from which streaming stores win in a training forward: on one thread, and on several.

With 32 MB of last-level cache, forward of 32x96x28x28, 19 MB, gained 10% to 27% on one and lost 60% on two;
26 MB, of 32x128x28x28, lost 30% and gained 3% within minutes, in NCHW lost 25% and nothing; 34 MB, of 32x160x29x29,
gained 20%.
"""

STREAM_DX = _least(17_000_000, 24_000_000)
"""The same for backward, which leaves less of the cache: 29 MB gained 15%, 38 MB 12% to 25%."""

STREAM_ONCE = _least(21_000_000, 33_000_000)
"""The same for inference, where x is read once: 19 MB lost 6% to 22% on one thread, 26 MB gained 13% to 38%.

On two, with more than the 32 MB of the cache: where nothing else used it, 42 MB lost 15% to 30%, 48 MB 3% to 10%, 51 MB
gained 3% and lost 3%, 58 MB gained 4% to 13%; where others did (a Zen 4), 33 to 37 MB took 0.44 to 0.98 of the time, 41
to 46 MB 0.46 to 0.90, and without streaming PyTorch was ahead, 1.1 to 1.5 times. 26 MB took 0.56 to 0.85 there, and as
long a quiet minute later.
"""

TASKS = 32
"""Tasks to aim at where a channel's values are cut,"""

ROW_TASKS = 16
"""and in ``channels_last``, where merging costs more: with 32, forward of 32x1024x14x14 took 1.1 times as long."""

RAGGED = 400
"""The fewest columns of rows that end within a cache line and are streamed all the same.

Lines that two rows share are written as usual, and asked for. On two threads of a Zen 4, in turns, inference, forward
and backward of rows of 900 to 1001 columns took 0.69 to 0.86, 0.77 to 0.97 and 0.82 to 0.96 of the time, of 400 to 514
0.74 to 1.0, 0.85 to 1.07 and 0.89 to 1.02, of 260 and 333 0.94 to 1.10, 0.89 to 1.07 and 0.88 to 0.98; on one thread
rows of 900 to 1001 columns 0.77 to 0.94, 0.80 to 0.97 and 0.94 to 1.05, of 400 to 514 0.87 to 1.09, 0.92 to 1.07 and
0.94 to 1.0. dx of 1801, whose coefficients a first-level cache does not keep, 0.95 to 0.97 on two and 1.11 on one.
"""

MIN_ROWS = 128
"""Fewest rows of a segment in ``channels_last``."""


Stream: TypeAlias = tuple[bool, bool]
"""Whether results are streamed on one thread, and on several. The bits are the same."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shape is run."""

    kernels: Any
    """The module for training,"""
    shape: tuple[int, ...]
    """and the shape in which it takes the tensors;"""
    kernels_out: Any
    """the module for inference, which gives the same bits,"""
    shape_out: tuple[int, ...]
    """and its shape."""
    count: int
    """Values per channel."""
    segments: int
    at_once: bool
    """Whether a channel is written as soon as it is summed, and not in phases, one after another."""
    parallel: bool
    """Whether training runs on threads,"""
    parallel_out: bool
    """and inference."""
    small: bool
    """Whether one call can do all of inference."""
    stream_out: Stream
    """Whether the output is streamed in inference,"""
    stream_training: Stream
    """in a training forward,"""
    stream_dx: Stream
    """and in backward."""


@functools.lru_cache(maxsize=1024)
def plan(outer: int, channels: int, inner: int, itemsize: int) -> Plan:
    """The plan for a tensor of this shape and item size; none of the three dimensions is 0."""
    tensor = outer, channels, inner
    (kernels, shape, streamable), (kernels_out, shape_out, streamable_out) = (_family(tensor, 2), _family(tensor, 1))
    parallel, parallel_out = pay(tensor, 2), pay(tensor, 1)
    if kernels is channels_last:
        matrix = matrix_of(tensor)
        segments = _row_segments(matrix) if parallel else 1
        at_once = segments == 1 and not (parallel and _narrow(matrix))
    else:
        segments = min(blocks_of(outer, inner), -(-TASKS // channels)) if channels < FEW and parallel else 1
        at_once = segments == 1
    size = outer * channels * inner * itemsize
    return Plan(
        kernels,
        shape,
        kernels_out,
        shape_out,
        outer * inner,
        segments,
        at_once,
        parallel,
        parallel_out,
        small=not parallel_out and channels * (inner if kernels_out is channels_last else 1) <= COLUMNS,
        stream_out=_stream(streamable_out, 2 * size, STREAM_ONCE),
        stream_training=_stream(streamable, 2 * size, STREAM),
        stream_dx=_stream(streamable, 3 * size, STREAM_DX),
    )


def _family(shape: Shape3, passes: int) -> tuple[Any, tuple[int, ...], bool]:
    """The module for an operation of so many passes, the shape that it takes, and whether it can stream."""
    if not by_columns(shape, passes):
        return channels_first, shape, True
    matrix = matrix_of(shape)
    stride = matrix[1] * matrix[2] * matrix[3]
    return channels_last, matrix, stride % NARROW == 0 or stride >= RAGGED


def _stream(streamable: bool, size: int, least: tuple[int, int]) -> Stream:
    return streamable and size >= least[0], streamable and size >= least[1]


def _narrow(shape: Matrix) -> bool:
    """Whether chunks of columns are narrower for the threads' sake: such are summed, but not written.

    It seems that a core that writes a run asks for the lines after it, too, and takes them from the other core, which
    is about to write them: with narrow chunks written at once forward and backward of 225x736 to 512x480 took 1.2 to
    2.2 times as long on two cores of a Zen 4.
    """
    return chunks_of(shape) < LEAST_CHUNKS


def _row_segments(shape: Matrix) -> int:
    """Segments for ``channels_last``: enough tasks together with the chunks of columns, but none too short."""
    return even(min(ROW_TASKS // chunks_of(shape), shape[0] // MIN_ROWS))
