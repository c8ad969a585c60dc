"""What kernels on a GPU are written with: bare addresses, 16-byte accesses, sums over a block.

Each has a second form for Numba's simulator, which has no warps and no intrinsics: there an *address* is a flat array
in a ``Memory``. Indices count values, not bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import cuda

from fastbn._typing import Address, Array, Scalar

F = TypeVar("F", bound=Callable[..., Any])

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

BYTES = 16
"""Of the widest access."""

WARP = 32
MOST_THREADS = 1024
"""In a block."""


class Memory:
    """Where an address leads in the simulator. Out of bounds is an error."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def behind(self, count: int) -> Memory:
        """The address of what comes after so many values."""
        return Memory(self.values[count:])

    def part(self, i: int, count: int) -> Array:
        """Some values side by side."""
        if not 0 <= i <= self.values.size - count:
            raise IndexError(f"values {i} to {i + count} of {self.values.size}")
        return self.values[i : i + count]


def device(function: F) -> F:
    """A function that kernels call; always inlined, for arrays of its caller to stay in registers."""
    compiled: F = cuda.jit(device=True)(function) if SIMULATED else cuda.jit(device=True, forceinline=True)(function)
    return compiled


if SIMULATED:

    def _loading(count: int, dtype: Any, aligned: bool) -> Callable[..., None]:
        del dtype, aligned  # those of the memory

        def load(address: Address, i: int, values: Array, k: int) -> None:
            values[k : k + count] = address.part(i, count)

        return load

    def _storing(count: int, dtype: Any, aligned: bool) -> Callable[..., None]:
        del dtype, aligned

        def store(address: Address, i: int, values: Array, k: int) -> None:
            address.part(i, count)[:] = values[k : k + count]

        return store

    def _reading(dtype: Any) -> Callable[..., Scalar]:
        del dtype
        return lambda address, i: address.part(i, 1)[0]

    def _writing(dtype: Any) -> Callable[..., None]:
        del dtype
        return lambda address, i, value: address.part(i, 1).__setitem__(0, value)

    @device
    def block_sum(value: Scalar) -> Scalar:
        """The sum over the threads of a block, to each of them; in an order of its own, the same every time."""
        shared = cuda.shared.array(MOST_THREADS, np.float64)
        shared[cuda.threadIdx.x] = value
        cuda.syncthreads()
        total: Scalar = shared[: cuda.blockDim.x].sum()
        cuda.syncthreads()
        return total

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    def _pointer(context: Any, builder: Any, address: Any, i: Any, count: int, dtype: Any) -> Any:
        """To ``count`` values in global memory, from bits that are an address."""
        element = context.get_value_type(dtype)
        values = builder.gep(builder.inttoptr(address, element.as_pointer(1)), [i])
        return values if count == 1 else builder.bitcast(values, ir.VectorType(element, count).as_pointer(1))

    def _register(context: Any, builder: Any, array: Any, value: Any, k: Any, count: int) -> Any:
        """To ``count`` values of a local array."""
        struct = context.make_array(array)(context, builder, value)
        values = builder.gep(struct.data, [k])
        element = context.get_value_type(array.dtype)
        return values if count == 1 else builder.bitcast(values, ir.VectorType(element, count).as_pointer())

    def _loading(count: int, dtype: Any, aligned: bool) -> Callable[..., None]:
        """``values[k:k + count] = address[i:i + count]``, in one access where addresses are ``aligned``."""
        kind, itemsize = numba.from_dtype(np.dtype(dtype)), np.dtype(dtype).itemsize
        alignment = count * itemsize if aligned else itemsize

        @intrinsic
        def load(typingctx: Any, address: Any, i: Any, values: Any, k: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                source = _pointer(context, builder, args[0], args[1], count, kind)
                target = _register(context, builder, values, args[2], args[3], count)
                loaded = builder.load(source, align=alignment)
                builder.store(loaded, target, align=itemsize)
                return context.get_dummy_value()

            return numba.void(address, i, values, k), codegen

        return load

    def _storing(count: int, dtype: Any, aligned: bool) -> Callable[..., None]:
        """``address[i:i + count] = values[k:k + count]`` likewise."""
        kind, itemsize = numba.from_dtype(np.dtype(dtype)), np.dtype(dtype).itemsize
        alignment = count * itemsize if aligned else itemsize

        @intrinsic
        def store(typingctx: Any, address: Any, i: Any, values: Any, k: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                source = _register(context, builder, values, args[2], args[3], count)
                target = _pointer(context, builder, args[0], args[1], count, kind)
                stored = builder.load(source, align=itemsize)
                builder.store(stored, target, align=alignment)
                return context.get_dummy_value()

            return numba.void(address, i, values, k), codegen

        return store

    def _reading(dtype: Any) -> Callable[..., Scalar]:
        kind = numba.from_dtype(np.dtype(dtype))

        @intrinsic
        def read(typingctx: Any, address: Any, i: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                return builder.load(_pointer(context, builder, args[0], args[1], 1, kind))

            return kind(address, i), codegen

        return read

    def _writing(dtype: Any) -> Callable[..., None]:
        kind = numba.from_dtype(np.dtype(dtype))

        @intrinsic
        def write(typingctx: Any, address: Any, i: Any, value: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                rounded = context.cast(builder, args[2], value, kind)
                builder.store(rounded, _pointer(context, builder, args[0], args[1], 1, kind))
                return context.get_dummy_value()

            return numba.void(address, i, value), codegen

        return write

    @device
    def _warp_sum(value: Scalar) -> Scalar:
        offset = WARP // 2
        while offset:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, offset)
            offset //= 2
        return value

    @device
    def block_sum(value: Scalar) -> Scalar:
        """The sum over the threads of a block, whole warps, to each; in an order of its own, always the same."""
        shared = cuda.shared.array(WARP, numba.float64)
        lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
        value = _warp_sum(value)
        if lane == 0:
            shared[warp] = value
        cuda.syncthreads()
        total = shared[lane] if lane < cuda.blockDim.x // WARP else 0.0
        cuda.syncthreads()
        return _warp_sum(total)


def instructions(dtype: Any, width: int, aligned: bool) -> dict[str, Callable[..., Any]]:
    """What the templates of ``cuda_blocks`` are bound to, for a dtype and so many values in an access.

    Tensors that are not ``aligned`` for it are read and written value by value, and otherwise worked on alike.
    """
    narrow = np.dtype(dtype).type

    def rounded(x: Address, value: float) -> float:
        return np.float64(narrow(value))

    def not_negative(value: float) -> float:
        return np.float64(0.0) if value < 0.0 else value

    def if_zero(test: float, a: float, b: float) -> float:
        return a if test == 0.0 else b

    def behind(address: Address, count: int) -> Address:
        return address + 8 * count  # float64 numbers

    def root(value: float) -> float:
        return math.sqrt(value)  # NaN of negative ones, but in Python

    return {
        "block_sum": block_sum,
        "load": _loading(width, dtype, aligned),
        "store": _storing(width, dtype, aligned),
        "read": _reading(dtype),
        "read32": _reading(np.float32),
        "read64": _reading(np.float64),
        "write32": _writing(np.float32),
        "write64": _writing(np.float64),
        **{function.__name__: device(function) for function in (rounded, not_negative, if_zero)},
        "root": np.sqrt if SIMULATED else device(root),
        "behind": Memory.behind if SIMULATED else device(behind),
    }
