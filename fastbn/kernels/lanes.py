"""Registers and addresses as values: what inner loops are written in where the compiler cannot be left to it.

``Lanes`` hold 64 bytes: sixteen float32 or eight float64, the widest register there is; LLVM makes several narrower
ones of it on other processors. Their arithmetic goes element by element, so the formulas of one value
(``formulas``) are those of sixteen as well. Where nothing is compiled, a slice of the array takes their place.

``data`` is the bare address of an array, and ``stack`` that of scratch memory which lives as long as the function that
asked for it. Compiled, an index is not checked, and an address keeps no array alive.

What arrays and plain loops cost: a function that takes arrays counts its references, two locked instructions an array
and call, on a cache line that all threads share; that was half the time of 28x28 planes. The compiler checks in
front of every loop whether arrays overlap, and where ``out`` is ``x`` takes a scalar loop, 2.1 to 2.6 times slower.
And it has no streaming stores.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

BYTES = 64
"""Of the widest register, and of a cache line of every x86-64 and nearly every arm64."""

DOUBLES = 8
"""Lanes of float64."""

WIDE = 4 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 1
"""Lanes of 64 bytes that are worked on together: as many as 16 or 32 registers hold with all coefficients."""

WIDE_DOUBLES = 2 * DOUBLES * WIDE
"""Lanes of float64 that are summed together."""


class Lanes(types.Type):
    """Numba's type of a vector of ``count`` values."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.dtype = dtype
        self.count = count
        super().__init__(name=f"Lanes({dtype} x {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        element = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(element, lanes.count))


class _ElementByElement(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        left, right = args
        return signature(left, left, left) if isinstance(left, Lanes) and left == right else None


def _define(function: Callable[..., Any], name: str) -> None:
    infer_global(function)(_ElementByElement)

    @lower_builtin(function, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, name)(*args)


for _function, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_function, _name)


def instruction(interpreted: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate what emits LLVM instructions with what does the same where nothing is compiled."""
    return lambda typing: interpreted if numba.config.DISABLE_JIT else intrinsic(prefer_literal=True)(typing)


def pointer(builder: Any, address: Any, index: Any, to: Any) -> Any:
    """``address[index]`` as a pointer to the LLVM type ``to``."""
    return builder.bitcast(builder.gep(address, [index]), to.as_pointer())


def lanes_of(address: Any) -> Lanes:
    """The type of a register full of an address type's values."""
    return Lanes(address.dtype, BYTES * 8 // address.dtype.bitwidth)


def _splat(builder: Any, value: Any, count: int) -> Any:
    vector = ir.VectorType(value.type, count)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), count), None))


def _first(builder: Any, n: Any, count: int) -> Any:
    """The mask of the first ``n`` of ``count`` lanes."""
    numbers = ir.Constant(ir.VectorType(n.type, count), [ir.Constant(n.type, i) for i in range(count)])
    return builder.icmp_signed("<", numbers, _splat(builder, n, count))


def _masked(builder: Any, name: str, vector: Any, result: Any, args: Any) -> Any:
    """A call of ``llvm.masked.load`` or ``llvm.masked.store``."""
    element = "f64" if vector.element == ir.DoubleType() else "f32"
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.declare_intrinsic(f"llvm.masked.{name}.v{vector.count}{element}.p0", (), kind)
    return builder.call(function, args)


def _load(context: Any, builder: Any, x: Any, args: Any, count: int) -> Any:
    """``count`` values; with a third argument, only so many and zeros."""
    vector = ir.VectorType(context.get_value_type(x.dtype), count)
    address = pointer(builder, args[0], args[1], vector)
    alignment = x.dtype.bitwidth // 8
    if len(args) == 2:
        value = builder.load(address)
        value.align = alignment
        return value
    mask = _first(builder, args[2], count)
    operands = [address, ir.Constant(ir.IntType(32), alignment), mask, ir.Constant(vector, None)]
    return _masked(builder, "load", vector, vector, operands)


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
    """Scratch memory for ``count`` values, a constant, of the dtype of ``x``, aligned to a register."""
    number = count.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():  # not cgutils.alloca_once, which fills with zeros, 64 kB in places
            memory = builder.alloca(ir.ArrayType(context.get_value_type(x.dtype), number))
        memory.align = BYTES
        return builder.bitcast(memory, context.get_value_type(types.CPointer(x.dtype)))

    return types.CPointer(x.dtype)(x, count), codegen


def _part(x: Any, i: int, n: int) -> Any:
    """``x[i : i + n]``, and nothing shorter: interpreted, an address knows its bounds."""
    if not 0 <= i <= len(x) - n:
        raise IndexError(f"{n} values from {i} on, of {len(x)}")
    return x[i : i + n]


@instruction(lambda x, i: _part(x, i, 1)[0])
def read(typingctx: Any, x: Any, i: Any) -> Any:
    """``x[i]``."""
    return x.dtype(x, i), lambda context, builder, sig, args: builder.load(builder.gep(args[0], [args[1]]))


@instruction(lambda x, i, value: _part(x, i, 1).fill(value))
def write(typingctx: Any, x: Any, i: Any, value: Any) -> Any:
    """``x[i] = value``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(x, i, x.dtype), codegen


@instruction(lambda x, value: np.asarray(value).astype(x.dtype).astype(np.float64)[()])
def rounded(typingctx: Any, x: Any, value: Any) -> Any:
    """float64 values, or lanes, rounded to the dtype of ``x``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = args[1]
        if x.dtype == types.float64:
            return given
        element = context.get_value_type(x.dtype)
        narrow = ir.VectorType(element, given.type.count) if isinstance(given.type, ir.VectorType) else element
        return builder.fpext(builder.fptrunc(given, narrow), given.type)

    return value(x, value), codegen


@instruction(lambda value: np.asarray(np.where(value < 0.0, 0.0, value))[()])
def not_negative(typingctx: Any, value: Any) -> Any:
    """float64 values, or lanes, with zeros for the negative ones; NaN passes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None if isinstance(args[0].type, ir.VectorType) else 0.0)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return value(value), codegen


@instruction(np.sqrt)
def root(typingctx: Any, value: Any) -> Any:
    """The square root of float64 values, or lanes; NaN of negative ones."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = "llvm.sqrt.f64" if value == types.float64 else f"llvm.sqrt.v{value.count}f64"
        kind = ir.FunctionType(args[0].type, [args[0].type])
        return builder.call(builder.module.declare_intrinsic(name, (), kind), args)

    return value(value), codegen


@instruction(lambda test, a, b: np.asarray(np.where(test == 0.0, a, b))[()])
def if_zero(typingctx: Any, test: Any, a: Any, b: Any) -> Any:
    """``a`` where ``test`` is zero, else ``b``: float64 values or lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None if isinstance(args[0].type, ir.VectorType) else 0.0)
        return builder.select(builder.fcmp_ordered("==", args[0], zero), args[1], args[2])

    return a(test, a, b), codegen


@instruction(lambda x: BYTES // x.itemsize)
def width(typingctx: Any, x: Any) -> Any:
    """Values of ``x`` in a register."""
    count = lanes_of(x).count
    return types.intp(x), lambda context, builder, sig, args: ir.Constant(ir.IntType(types.intp.bitwidth), count)


def _loading(wide: int) -> Any:
    def typing(typingctx: Any, x: Any, i: Any) -> Any:
        lanes = Lanes(x.dtype, lanes_of(x).count * wide)
        return lanes(x, i), lambda context, builder, sig, args: _load(context, builder, x, args, lanes.count)

    return instruction(lambda x, i: _part(x, i, BYTES // x.itemsize * wide).copy())(typing)


load = _loading(1)
"""The values from ``x[i]`` on, ``width(x)`` of them."""

load_wide = _loading(WIDE)
"""``WIDE`` times as many."""


def _padded(x: Any, i: int, n: int, count: int, fill: float) -> Any:
    return np.concatenate([_part(x, i, n), np.full(count - n, fill, x.dtype)])


@instruction(lambda x, i, n: _padded(x, i, n, BYTES // x.itemsize, 0.0))
def load_first(typingctx: Any, x: Any, i: Any, n: Any) -> Any:
    """``n`` values from ``x[i]`` on, then zeros."""
    lanes = lanes_of(x)
    return lanes(x, i, types.intp), lambda context, builder, sig, args: _load(context, builder, x, args, lanes.count)


def _loading_doubles(count: int) -> Any:
    def typing(typingctx: Any, x: Any, i: Any) -> Any:
        lanes = Lanes(types.float64, count)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = _load(context, builder, x, args, count)
            wide = context.get_value_type(lanes)
            return value if value.type == wide else builder.fpext(value, wide)

        return lanes(x, i), codegen

    return instruction(lambda x, i: _part(x, i, count).astype(np.float64))(typing)


load_doubles = _loading_doubles(DOUBLES)
"""Eight values from ``x[i]`` on as float64."""

load_wide_doubles = _loading_doubles(WIDE_DOUBLES)
"""``WIDE_DOUBLES`` values likewise."""


@instruction(lambda x, i, n, fill: _padded(_part(x, i, n).astype(np.float64), 0, n, DOUBLES, fill))
def load_first_doubles(typingctx: Any, x: Any, i: Any, n: Any, fill: Any) -> Any:
    """``n`` values from ``x[i]`` on as float64, then ``fill`` up to eight."""
    lanes = Lanes(types.float64, DOUBLES)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = _load(context, builder, x, args[:3], DOUBLES)
        wide = context.get_value_type(lanes)
        value = value if value.type == wide else builder.fpext(value, wide)
        return builder.select(_first(builder, args[2], DOUBLES), value, _splat(builder, args[3], DOUBLES))

    return lanes(x, i, types.intp, types.float64), codegen


@instruction(lambda x, value: np.full(BYTES // x.itemsize, value, x.dtype))
def spread(typingctx: Any, x: Any, value: Any) -> Any:
    """``value`` in every lane of a register of ``x``'s values."""
    lanes = lanes_of(x)
    return lanes(x, x.dtype), lambda context, builder, sig, args: _splat(builder, args[1], lanes.count)


@instruction(lambda value: np.full(DOUBLES, value, np.float64))
def spread_doubles(typingctx: Any, value: Any) -> Any:
    """``value`` in each of eight lanes of float64."""
    lanes = Lanes(types.float64, DOUBLES)
    return lanes(types.float64), lambda context, builder, sig, args: _splat(builder, args[0], DOUBLES)


@instruction(lambda n, a, b: np.concatenate([a[:n], b[n:]]))
def blend(typingctx: Any, n: Any, a: Any, b: Any) -> Any:
    """The first ``n`` lanes of ``a``, then those of ``b``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_first(builder, args[0], a.count), args[1], args[2])

    return a(types.intp, a, a), codegen


@instruction(lambda values: float(values.sum()))
def sum_of(typingctx: Any, values: Any) -> Any:
    """The sum of all lanes, halves first; interpreted, in NumPy's order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        part = args[0]
        while part.type.count > 1:
            half = part.type.count // 2
            undefined = ir.Constant(part.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    part, undefined, ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half)))
                )
                for start in (0, half)
            )
            part = builder.fadd(low, high)
        return builder.extract_element(part, ir.Constant(ir.IntType(32), 0))

    return values.dtype(values), codegen


def _store_slice(out: Any, i: int, values: Any) -> None:
    _part(out, i, len(values))[:] = values


@instruction(_store_slice)
def store(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    """Write all lanes to ``out[i]`` and what follows."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        written = builder.store(args[2], pointer(builder, args[0], args[1], args[2].type))
        written.align = out.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


def _store_first_slice(out: Any, i: int, n: int, values: Any) -> None:
    _part(out, i, n)[:] = values[:n]


@instruction(_store_first_slice)
def store_first(typingctx: Any, out: Any, i: Any, n: Any, values: Any) -> Any:
    """Write the first ``n`` lanes to ``out[i]`` and what follows."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, n, values = args
        vector = values.type
        address = pointer(builder, address, index, vector)
        alignment = ir.Constant(ir.IntType(32), out.dtype.bitwidth // 8)
        mask = _first(builder, n, vector.count)
        _masked(builder, "store", vector, ir.VoidType(), [values, address, alignment, mask])
        return context.get_dummy_value()

    return types.void(out, i, types.intp, values), codegen


@instruction(_store_first_slice)
def store_first_doubles(typingctx: Any, x: Any, i: Any, n: Any, values: Any) -> Any:
    """The same for eight lanes of float64, rounded to the dtype of ``x``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, n, wide = args
        vector = ir.VectorType(context.get_value_type(x.dtype), DOUBLES)
        narrow = wide if wide.type == vector else builder.fptrunc(wide, vector)
        alignment = ir.Constant(ir.IntType(32), x.dtype.bitwidth // 8)
        operands = [narrow, pointer(builder, address, index, vector), alignment, _first(builder, n, DOUBLES)]
        _masked(builder, "store", vector, ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(x, i, types.intp, values), codegen
