"""The output of a group of channels while the next group is summed, for ``channels_first``.

Sums wait for arithmetic and for what they read, output for what it writes. A core does both at a time, if both are
within reach of what it executes out of order: after every ``STRIP`` values of one group that are summed, as many of the
group before it, which the second-level cache has kept, are written. Which group is written when changes no bit.

On an Emerald Rapids, in turns, 3 to 103 MB: forward took 0.88 to 0.99 of the time on two threads and 0.84 to 1.01 on
one, backward 0.83 to 0.98 and 0.85 to 0.97. On a Zen 4, where the next group is asked for while one is written
(``groups.normalize_group``), it gained on two threads in streamed forwards alone (0.86 to 1.05, one 1.24; mean 0.94)
and lost elsewhere: streamed forwards on one thread 0.99 to 1.34 (1.14), forward of 3 to 13 MB 0.95 to 1.37, backward
0.95 to 1.32 (1.1). So this is done where the last-level cache is far, and nowhere else; not measured on others so far.

A group whose output is due is a *pending* one: the tensors, their shape, its channels, their coefficients, and whether
its output is streamed. A *place* in it is a sample, and where in that sample's run; behind the last there is none.
"""

from __future__ import annotations

from typing import TypeAlias

from fastbn._typing import Address, Address3, Address4, Shape3
from fastbn.kernels.groups import ask_for_ends, gradient_run, normalize_run
from fastbn.kernels.jit import inner
from fastbn.kernels.rows import moments_body, sums_body, while_summing
from fastbn.kernels.stores import aligned

NEXT = 128  # values ahead that are asked for, into the first-level cache; 512: 1.0 to 1.05 times as long
ALL = 1 << 62

Place: TypeAlias = tuple[int, int]
Output: TypeAlias = tuple[Address, Address, Shape3, int, int, Address3, bool]
Gradient: TypeAlias = tuple[Address, Address, Address, Shape3, int, int, Address4, bool]


@inner
def _next(
    out: Address, shape: Shape3, left: int, right: int, streaming: bool, place: Place, count: int
) -> tuple[int, int, Place]:
    """Where the run of a place begins, where ``count`` values or some more end in it, and the place behind them."""
    n, first = place
    _, channels, inner = shape
    length = (right - left) * inner
    start = (n * channels + left) * inner
    if streaming and first == 0:
        ask_for_ends(out, start + channels * inner, length)
    last = length if count > length else min(aligned(out, start + first + count) - start, length)
    behind = (n + 1, 0) if last == length else (n, last)
    return start, last, behind


@inner
def write_pending_output(pending: Output, place: Place, count: int) -> Place:
    """Write ``count`` values or some more of what is left, or ``ALL``; returns the place behind them."""
    x, out, shape, left, right, values, streaming = pending
    while count > 0 and place[0] < shape[0]:
        start, last, behind = _next(out, shape, left, right, streaming, place, count)
        normalize_run(x, out, start, place[1], last, shape[2], NEXT, False, values, streaming)
        count -= last - place[1]
        place = behind
    return place


@inner
def write_pending_gradient(pending: Gradient, place: Place, count: int) -> Place:
    """The same for dx."""
    dout, x, dx, shape, left, right, values, streaming = pending
    while count > 0 and place[0] < shape[0]:
        start, last, behind = _next(dx, shape, left, right, streaming, place, count)
        gradient_run(dout, x, dx, start, place[1], last, shape[2], NEXT, False, values, streaming)
        count -= last - place[1]
        place = behind
    return place


moments_and_output = while_summing(moments_body, write_pending_output, "moments_and_output")
"""``group_moments``, and meanwhile ``write_pending_output`` of what is pending."""

sums_and_gradient = while_summing(sums_body, write_pending_gradient, "sums_and_gradient")
"""``group_sums``, and meanwhile ``write_pending_gradient``."""
