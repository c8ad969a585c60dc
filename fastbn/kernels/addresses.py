"""Addresses as values: what a hot loop is given instead of an array.

``data`` is the bare address of an array, and ``stack`` that of scratch memory which lives as long as the function that
asked for it. Compiled, an index is not checked, and an address keeps no array alive. Where nothing is compiled, the
array, or a slice of it, takes their place.

A function that takes arrays counts their references, two locked instructions an array and call, on a cache line that
all threads share; that was half the time of 28x28 planes. The compiler checks in front of every loop whether arrays
overlap, and where ``out`` is ``x`` takes a scalar loop, 2.1 to 2.6 times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_new_ref
from numba.core.typing.npydecl import parse_dtype
from numba.extending import intrinsic

LINE = 64
"""Bytes of a cache line of every x86-64 and nearly every arm64."""


def instruction(interpreted: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate what emits LLVM instructions with what does the same where nothing is compiled."""
    return lambda typing: interpreted if numba.config.DISABLE_JIT else intrinsic(prefer_literal=True)(typing)


def pointer(builder: Any, address: Any, index: Any, to: Any) -> Any:
    """``address[index]`` as a pointer to the LLVM type ``to``."""
    return builder.bitcast(builder.gep(address, [index]), to.as_pointer())


@instruction(lambda array: array.reshape(-1))
def data(typingctx: Any, array: Any) -> Any:
    """The address of a contiguous array's first value.

    Numba drops an array of a function's own after the last line that names it: give the address of one only to calls
    that come before another use, or from a loop that it outlives.
    """
    if array.layout != "C":
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@instruction(lambda x, i: x[i:])
def offset(typingctx: Any, x: Any, i: Any) -> Any:
    """The address of ``x[i]``."""
    return x(x, i), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


@instruction(lambda x, count: np.empty(count, x.dtype))
def stack(typingctx: Any, x: Any, count: Any) -> Any:
    """Scratch memory for ``count`` values, a constant, of the dtype of ``x``, aligned to a cache line."""
    number = count.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():  # not cgutils.alloca_once, which fills with zeros, 64 kB in places
            memory = builder.alloca(ir.ArrayType(context.get_value_type(x.dtype), number))
        memory.align = LINE
        return builder.bitcast(memory, context.get_value_type(types.CPointer(x.dtype)))

    return types.CPointer(x.dtype)(x, count), codegen


@instruction(np.empty)
def empty(typingctx: Any, shape: Any, dtype: Any) -> Any:
    """An array of a function's own, from the heap: ``np.empty``, of which Numba compiles one for each kind of shape."""
    result = types.Array(parse_dtype(dtype), len(shape), "C")
    itemsize = result.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lengths = cgutils.unpack_tuple(builder, args[0])
        strides = [context.get_constant(types.intp, itemsize)]
        for length in lengths[::-1]:
            strides.insert(0, builder.mul(strides[0], length))
        size, *strides = strides
        owner = context.nrt.meminfo_alloc_aligned(builder, size=size, align=LINE)  # raises MemoryError
        made = context.make_array(result)(context, builder)
        pointer = builder.bitcast(context.nrt.meminfo_data(builder, owner), made.data.type)
        context.populate_array(made, data=pointer, shape=lengths, strides=strides, itemsize=itemsize, meminfo=owner)
        return impl_ret_new_ref(context, builder, result, made._getvalue())

    return result(shape, dtype), codegen


def part(x: Any, i: int, n: int) -> Any:
    """``x[i : i + n]``, and nothing shorter: interpreted, an address knows its bounds."""
    if not 0 <= i <= len(x) - n:
        raise IndexError(f"{n} values from {i} on, of {len(x)}")
    return x[i : i + n]


@instruction(lambda x, i: part(x, i, 1)[0])
def read(typingctx: Any, x: Any, i: Any) -> Any:
    """``x[i]``."""
    return x.dtype(x, i), lambda context, builder, sig, args: builder.load(builder.gep(args[0], [args[1]]))


@instruction(lambda x, i, value: part(x, i, 1).fill(value))
def write(typingctx: Any, x: Any, i: Any, value: Any) -> Any:
    """``x[i] = value``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(x, i, x.dtype), codegen
