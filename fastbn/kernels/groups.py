"""The output of a group of channels, for ``channels_first``: runs of neighbouring channels, one run for each sample.

Tensors are flat, given by their addresses; ``shape`` is (outer, channels, inner), ``left`` and ``right`` bound the
group, ``start`` and ``stop`` the samples. The last samples come first: the sums ended on them.
"""

from __future__ import annotations

from fastbn._typing import Address, Address3, Address4, Shape3
from fastbn.kernels.addresses import read
from fastbn.kernels.formulas import grad_input1, normalize1
from fastbn.kernels.jit import elementwise, inner
from fastbn.kernels.lanes import blend, spread
from fastbn.kernels.loads import load, load_first, width
from fastbn.kernels.prefetch import ask, prefetch_to_write
from fastbn.kernels.registers import BYTES
from fastbn.kernels.rows import GROUP
from fastbn.kernels.shares import equal
from fastbn.kernels.stores import aligned, put, store_first

RUN, LONG_RUN = 16384, 65536  # the fewest and the most values of a task where there is one pass only, of
TASKS = 32  # tasks to aim at. A core that takes the next one waits until all it has written is on its way: with these,
# not RUN, and one ``drain``, inference of 3 to 51 MB took 0.92 to 0.98 of the time on an Emerald Rapids. 8 or 16 tasks:
# 1.6 MB on two threads 1.03 to 1.14 times as long.
NARROW = BYTES // 4  # the fewest values of a channel in a run: a register holds two channels at the most


@inner
def cuts_of(shape: Shape3) -> tuple[int, int, int]:
    """For one pass only: groups of channels, groups of samples, and pieces of a row that is a group of its own.

    However a tensor is cut, the bits are the same.
    """
    outer, channels, inner = shape
    values = outer * channels * inner
    run = max(RUN, min(LONG_RUN, values // TASKS))
    group = max(1, min(GROUP, run // inner))
    groups = equal(-(-channels // group), channels)
    tasks = -(-values // run)
    parts = min(outer, -(-tasks // groups))
    pieces = 1 if group > 1 else min(-(-inner // run), -(-tasks // (groups * parts)))
    return groups, parts, pieces


@elementwise
def normalize_run(
    x: Address,
    out: Address,
    start: int,
    first: int,
    last: int,
    inner: int,
    following: int,
    later: bool,
    values: Address3,
    streaming: bool,
) -> None:
    """The values ``first`` to ``last`` of a run of channels, ``inner`` values each, side by side from ``x[start]`` on.

    A run is cut only where ``out`` is ``aligned``; ``values`` are the coefficients of its channels, as of ``affine1``.
    A register that holds values of two channels gets the coefficients of both: planes of any size from a register
    up run at full width, and a streaming store is never cut. What lies ``following`` values ahead is asked for, into
    the second-level cache if it is for ``later``; with the same of ``out``, too, tensors up to 3 MB took 1.05 times as
    long, others as long as without.
    """
    step = width(x)
    center, scale, shift = values
    channel = first // inner
    a, b, c = spread(x, read(center, channel)), spread(x, read(scale, channel)), spread(x, read(shift, channel))
    begin, stop = start + first, start + last
    i = aligned(out, begin)
    if i > begin:
        store_first(out, begin, i - begin, normalize1(load_first(x, begin, i - begin), a, b, c))
    while True:
        channel += 1
        end = min(start + channel * inner, stop)
        while i + step <= end:
            ask(x, i + following, later)
            put(out, i, normalize1(load(x, i), a, b, c), streaming)
            i += step
        n = end - i
        if end == stop:
            if n > 0:
                store_first(out, i, n, normalize1(load_first(x, i, n), a, b, c))
            return
        ask(x, i + following, later)
        a0, b0, c0 = a, b, c
        a, b, c = spread(x, read(center, channel)), spread(x, read(scale, channel)), spread(x, read(shift, channel))
        put(out, i, normalize1(load(x, i), blend(n, a0, a), blend(n, b0, b), blend(n, c0, c)), streaming)
        i += step


@elementwise
def gradient_run(
    dout: Address,
    x: Address,
    dx: Address,
    start: int,
    first: int,
    last: int,
    inner: int,
    following: int,
    later: bool,
    values: Address4,
    streaming: bool,
) -> None:
    """As ``normalize_run``; ``values`` as of ``gradient1``."""
    step = width(x)
    v0, v1, v2, v3 = values
    channel = first // inner
    a, b = spread(x, read(v0, channel)), spread(x, read(v1, channel))
    c, d = spread(x, read(v2, channel)), spread(x, read(v3, channel))
    begin, stop = start + first, start + last
    i = aligned(dx, begin)
    n = i - begin
    if n > 0:
        store_first(dx, begin, n, grad_input1(load_first(dout, begin, n), load_first(x, begin, n), a, b, c, d))
    while True:
        channel += 1
        end = min(start + channel * inner, stop)
        while i + step <= end:
            ask(dout, i + following, later)
            ask(x, i + following, later)
            if not (streaming or later):
                prefetch_to_write(dx, i + following)
            put(dx, i, grad_input1(load(dout, i), load(x, i), a, b, c, d), streaming)
            i += step
        n = end - i
        if end == stop:
            if n > 0:
                store_first(dx, i, n, grad_input1(load_first(dout, i, n), load_first(x, i, n), a, b, c, d))
            return
        ask(dout, i + following, later)
        ask(x, i + following, later)
        a0, b0, c0, d0 = a, b, c, d
        a, b = spread(x, read(v0, channel)), spread(x, read(v1, channel))
        c, d = spread(x, read(v2, channel)), spread(x, read(v3, channel))
        a0, b0, c0, d0 = blend(n, a0, a), blend(n, b0, b), blend(n, c0, c), blend(n, d0, d)
        put(dx, i, grad_input1(load(dout, i), load(x, i), a0, b0, c0, d0), streaming)
        i += step


@inner
def ask_for_ends(out: Address, start: int, length: int) -> None:
    """Ask for the two lines of a run to be streamed that it fills in part only.

    They are written as usual, and every later store waits for them: in turns, NCHW forward took 0.85 to 1.0 of the time
    so, backward 0.87 to 1.04.
    """
    prefetch_to_write(out, start)
    prefetch_to_write(out, start + length - 1)


@inner
def normalize_group(
    x: Address,
    out: Address,
    shape: Shape3,
    left: int,
    right: int,
    start: int,
    stop: int,
    k: int,
    pieces: int,
    ahead: int,
    later: bool,
    values: Address3,
    streaming: bool,
) -> None:
    """Normalise piece ``k`` of ``pieces`` of each row; ``values`` are the coefficients of the group.

    What lies ``ahead`` of a value is asked for: ``AHEAD`` where there is one pass only, else what the next group
    begins with, ``later``, so that the memory is read while results are written. On two cores of a Zen 4, instead of
    the next run of the same group: forward of 32x512x28x28 3.45 to 2.64 ms, backward 5.18 to 3.91; 32x256x14x14 as
    long.
    """
    _, channels, inner = shape
    first = inner * k // pieces
    last = inner * (k + 1) // pieces
    length = (right - left) * (last - first)
    for n in range(stop - 1, start - 1, -1):
        i = (n * channels + left) * inner + first
        if streaming:
            ask_for_ends(out, i - channels * inner, length)
        normalize_run(x, out, i, 0, length, last - first, ahead, later, values, streaming)


@inner
def gradient_group(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape3,
    left: int,
    right: int,
    start: int,
    stop: int,
    k: int,
    pieces: int,
    ahead: int,
    later: bool,
    values: Address4,
    streaming: bool,
) -> None:
    """Write piece ``k`` of ``pieces`` of each row of dx, as ``normalize_group``."""
    _, channels, inner = shape
    first = inner * k // pieces
    last = inner * (k + 1) // pieces
    length = (right - left) * (last - first)
    for n in range(stop - 1, start - 1, -1):
        i = (n * channels + left) * inner + first
        if streaming:
            ask_for_ends(dx, i - channels * inner, length)
        gradient_run(dout, x, dx, i, 0, length, last - first, ahead, later, values, streaming)
