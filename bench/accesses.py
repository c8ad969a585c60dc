"""The memory accesses of batch normalization alone, in the order in which fastbn makes them.

No statistics, one addition a value: what is left is what the caches, the memory and the loads in flight cost. Whoever
reads a tensor for its statistics and then once more cannot be faster by better arithmetic. A library's time over these
loops is what it leaves to be gained; PyTorch's is the most that fastbn can ever be ahead of it with two passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import DTypeLike

from bench.cases import Array, Case, aligned, aligned_empty, rows
from bench.limit import PARALLEL
from fastbn._typing import Address, Shape3
from fastbn.kernels.addresses import data
from fastbn.kernels.jit import elementwise
from fastbn.kernels.loads import load, load_wide, width
from fastbn.kernels.prefetch import AHEAD, prefetch, prefetch_near
from fastbn.kernels.registers import WIDE
from fastbn.kernels.rows import group_of
from fastbn.kernels.scheduling import deal, meet, signed, turns
from fastbn.kernels.stores import drain, put, store
from fastbn.kernels.twins import kernel

ACCESSES = ("accesses", "accesses, streaming")
"""With normal stores, and past the caches."""

TASKS = 16
"""Parts of a tensor whose channels are last."""

VALUES = 64
"""The most that are read side by side."""


@elementwise
def _read(
    dout: Address, x: Address, start: int, stop: int, both: bool, following: int, near: bool, sums: Address
) -> None:
    """Read whole cache lines of ``x``, or of ``dout`` and ``x``, and ask for those that lie ``following`` further on.

    They come into the second-level cache if ``near``, or if there are two tensors. ``sums`` are ``VALUES`` zeros, and
    as many sums that are added to.
    """
    step = WIDE * width(x)
    a = b = load_wide(sums, 0)
    i = start
    while i + step <= stop:
        for k in range(i + following, i + following + step, width(x)):
            if near:
                prefetch_near(x, k)
            else:
                prefetch(x, k)
            if both:
                prefetch_near(dout, k)
        a = a + load_wide(x, i)
        if both:
            b = b + load_wide(dout, i)
        i += step
    store(sums, VALUES, load_wide(sums, VALUES) + (a + b))
    c = load(sums, VALUES)
    while i < stop:
        c = c + load(x, i)
        if both:
            c = c + load(dout, i)
        i += width(x)
    store(sums, VALUES, c)


@elementwise
def _write(
    dout: Address, x: Address, out: Address, start: int, stop: int, both: bool, following: int, streaming: bool
) -> None:
    """Write ``x``, or the sum of both, to ``out``, and ask for what lies ``following`` further on."""
    for i in range(start, stop, width(x)):
        prefetch_near(x, i + following)
        value = load(x, i)
        if both:
            prefetch_near(dout, i + following)
            value = value + load(dout, i)
        put(out, i, value, streaming)


@kernel
def phases(dout: Array, x: Array, both: bool, out: Array, streaming: bool, sums: Array) -> None:
    """Read everything, then read it once more and write: each part on the thread that has read it."""
    lines = x.size // width(data(x))
    shares = deal(2, TASKS)
    for worker in numba.prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], TASKS, own):
            first = lines * task // TASKS * width(data(x))
            last = lines * (task + 1) // TASKS * width(data(x))
            _read(data(dout), data(x), first, last, both, AHEAD, True, data(sums[task]))
        meet(shares[0], TASKS)
        for task in turns(shares[1], TASKS, own):
            first = lines * task // TASKS * width(data(x))
            last = lines * (task + 1) // TASKS * width(data(x))
            _write(data(dout), data(x), data(out), first, last, both, AHEAD, streaming)
        drain(streaming)


@kernel
def groups(
    dout: Array, x: Array, both: bool, shape: Shape3, group: int, out: Array, streaming: bool, sums: Array
) -> None:
    """The same for groups of channels one after another: each sample has a run of every group."""
    outer, channels, inner = shape
    tasks = -(-channels // group)
    shares = deal(1, tasks)
    for worker in numba.prange(len(shares[0])):
        for task in turns(shares[0], tasks, signed(worker)):
            line = width(data(x))
            left = task * group * inner
            right = min((task + 1) * group, channels) * inner
            for n in range(outer):
                base = n * channels * inner
                following = channels * inner if n + 1 < outer else right - left - base
                _read(
                    data(dout),
                    data(x),
                    (base + left) // line * line,
                    (base + right) // line * line,
                    both,
                    following // line * line,
                    both,
                    data(sums[task]),
                )
            for k in range(outer):
                base = (outer - 1 - k) * channels * inner
                first, last = (base + left) // line * line, (base + right) // line * line
                _write(data(dout), data(x), data(out), first, last, both, (right - left) // line * line, streaming)
        drain(streaming)


class Passes(NamedTuple):
    """The accesses for tensors of one shape: a kernel, and what it takes beside the tensors."""

    run: Callable[..., None]
    parallel: bool
    both: bool
    cut: tuple[Any, ...]
    sums: Array

    def arguments(self, dout: Array, x: Array, out: Array, streaming: bool) -> tuple[Any, ...]:
        """Those of ``run``, for aligned tensors of whole cache lines, as ``flat`` gives them."""
        return self.parallel, dout, x, self.both, *self.cut, out, streaming, self.sums


def passes(shape: tuple[int, ...], dtype: DTypeLike, *, last: bool, both: bool) -> Passes:
    """For tensors of ``shape`` with the channels on axis 1, or ``last`` in memory; ``both`` for a backward."""
    outer, channels = shape[:2]
    inner = math.prod(shape[2:])
    run: Callable[..., None] = phases
    tasks = TASKS
    cut: tuple[Any, ...] = ()
    if inner > 1 and not last:
        group = group_of((outer, channels, inner), 1 + both)
        run, tasks, cut = groups, -(-channels // group), ((outer, channels, inner), group)
    sums = aligned(np.zeros((tasks, 2 * VALUES), dtype))
    return Passes(run, math.prod(shape) >= PARALLEL, both, cut, sums)


def flat(tensor: Array) -> Array:
    """The whole cache lines of a C-ordered tensor."""
    values = tensor.reshape(-1)
    step = 64 // tensor.itemsize
    return values[: values.size // step * step]


def calls(case: Case, operation: str) -> dict[str, Callable[[], Any]]:
    """Each of ``ACCESSES`` for a forward or a backward; none for other operations, which are copies."""
    if operation not in ("forward", "backward"):
        return {}
    made = passes(case.x.shape, case.x.dtype, last=case.last, both=operation == "backward")
    dout, x = (rows(tensor) if case.last else tensor for tensor in (case.dout, case.x))
    if not case.fresh:
        dout, x, out = flat(aligned(dout)), flat(aligned(x)), flat(aligned_empty(x))
        return {name: partial(made.run, *made.arguments(dout, x, out, "streaming" in name)) for name in ACCESSES}
    dout, x = flat(dout), flat(x)

    def run(streaming: bool) -> Array:
        new = aligned_empty(x)
        made.run(*made.arguments(dout, x, new, streaming))
        return new

    return {name: partial(run, "streaming" in name) for name in ACCESSES}
