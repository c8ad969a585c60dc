"""Software prefetch.

A channel of a channels-first tensor is a set of rows that lie ``C`` rows apart, so the hardware prefetcher starts
anew, and waits for memory, at every row. Asking for the following row while this one is summed brought the statistics
of (32, 64, 112, 112) float32 from 28 to 47 GB/s on two cores of a Zen 5 that read 50 at most.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from fastbn._typing import Address
from fastbn.kernels.addresses import instruction, pointer
from fastbn.kernels.jit import elementwise
from fastbn.kernels.processor import FAR_CACHE

AHEAD = 2048
"""How many values further on lines are asked for in what is read in order and once.

Inference of 32x256x14x14 92 to 74 us, of 2x600x16x16 23 to 20; the second pass of an NCHW forward took 0.9 to 1.04 of
the time so, that of a backward 0.9 to 1.2. dx of 6272 rows of 512, streamed: 280 us without, 180 from 1024 on, 190 so;
forward of 7200 rows of 704 650 us with 1024, 620 so.
"""


def _hint(intent: int, level: int) -> Any:
    def typing(typingctx: Any, x: Any, i: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            byte, i32 = ir.IntType(8), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), i32, i32, i32])
            hint = builder.module.declare_intrinsic("llvm.prefetch", [byte.as_pointer()], kind)
            data_cache = 1
            numbers = (ir.Constant(i32, number) for number in (intent, level, data_cache))
            builder.call(hint, [pointer(builder, args[0], args[1], byte), *numbers])
            return context.get_dummy_value()

        return types.void(x, i), codegen

    return instruction(lambda x, i: None)(typing)


_READ, _WRITE = 0, 1
_FIRST_LEVEL, _SECOND_LEVEL = 3, 2

prefetch = _hint(_READ, _FIRST_LEVEL)
"""Ask for the cache line of ``x[i]``, which may lie before the beginning or beyond the end."""

prefetch_near = _hint(_READ, _SECOND_LEVEL)
"""The same, not into the first-level cache but the second, for what is needed some thousand values later."""

prefetch_to_write = _hint(_WRITE, _FIRST_LEVEL)
"""As ``prefetch``, for a line that is to be written."""


ASKING = not FAR_CACHE
"""Whether what will be written asks for its lines: an Emerald Rapids does so by itself.

There, in turns, without, means of eight to nine shapes on one thread and on two: NCHW of 0.4 to 1.6 MB, forward 0.95
and 0.98 of the time, backward 0.94 and 0.93, of 3 to 103 MB 0.99 to 1.0 and 0.98, channels last of 0.3 to 13 MB
inference 0.98 and 0.96, forward 0.99 and 0.97, backward 0.96. Sums must ask: without, NCHW's forward took 1.07 and 1.09
times as long, of channels last 1.0 to 1.05 times.
"""


@elementwise
def ask(x: Address, i: int, later: bool) -> None:
    """For what will be written: ``prefetch``, or ``prefetch_near`` for what is needed ``later``."""
    if ASKING:
        if later:
            prefetch_near(x, i)
        else:
            prefetch(x, i)


@elementwise
def onward(following: int, end: int, step: int, size: int, stride: int) -> tuple[int, int]:
    """What is asked for next, ``step`` values further in a run of ``size`` that ends at ``end``, or in the next row.

    So lines come in the memory's order where values are worked on in another: the memory reads runs that lie a row
    apart at half its speed or less.
    """
    if following + step < end:
        return following + step, end
    return end - size + stride, end + stride
