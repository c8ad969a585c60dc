"""Registers as values: what inner loops are written in where the compiler cannot be left to it.

``Lanes`` hold 64 bytes: sixteen float32 or eight float64, the widest register there is, or several times as many.
Their arithmetic goes element by element, so the formulas of one value (``formulas``) are those of sixteen as well.
Where nothing is compiled, a slice of the array takes their place.

To LLVM they are one or more vectors of ``register`` bytes, of which it makes several narrower ones on processors that
have no such registers. How many lanes a register has changes no bit.
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
from numba.extending import lower_builtin, models, register_model

from fastbn.kernels.addresses import instruction, part, pointer

BYTES = 64
"""Of the widest register."""

DOUBLES = 8
"""Lanes of float64."""

HALVES = (numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()) == "znver4"
"""Whether the processor works on registers of 64 bytes in halves.

A Zen 4 has two adders and two multipliers of 32 bytes. Conversions to float64 keep the adders busy, and what the
multipliers add (``plus``) costs nothing, but in registers of 32 bytes only. In the first-level cache (in C) statistics
run at 36 to 39 GB/s in those of 64 bytes however they are added, at 38 in those of 32, at 54 to 59 if multipliers add;
the gradient's sums at 51 to 55, 59, and 78. In the kernels statistics take 0.77 to 0.98 of the time so, the gradient's
sums 0.75 to 0.95; in minutes in which something else seems to run on the same cores, where twice as many instructions
cost more, 0.95 to 1.15 and 0.77 to 1.07.
"""

REGISTER = BYTES // 2 if HALVES else BYTES
"""Bytes of the registers of float64 that are summed."""

WIDE = 4 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 1
"""Lanes of 64 bytes that are worked on together: as many as 16 or 32 registers hold with all coefficients."""

WIDEST_DOUBLES = 2 * DOUBLES * WIDE
"""Lanes of float64 that are summed together, at the most,"""

WIDE_DOUBLES = WIDEST_DOUBLES * REGISTER // BYTES
"""and in registers of ``REGISTER`` bytes."""


class Lanes(types.Type):
    """Numba's type of ``count`` values in registers of ``register`` bytes."""

    def __init__(self, dtype: Any, count: int, register: int = BYTES) -> None:
        self.dtype = dtype
        self.count = count
        self.register = register
        super().__init__(name=f"Lanes({dtype} x {count} in {register} bytes)")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        element = manager.lookup(lanes.dtype).get_value_type()
        count = lanes.register * 8 // lanes.dtype.bitwidth
        super().__init__(manager, lanes, ir.ArrayType(ir.VectorType(element, count), lanes.count // count))


def split(builder: Any, value: Any) -> list[Any]:
    """The registers of lanes; of a scalar, itself."""
    if not isinstance(value.type, ir.ArrayType):
        return [value]
    return [builder.extract_value(value, k) for k in range(value.type.count)]


def _join(builder: Any, registers: list[Any]) -> Any:
    value = ir.Constant(ir.ArrayType(registers[0].type, len(registers)), ir.Undefined)
    for k, register in enumerate(registers):
        value = builder.insert_value(value, register, k)
    return value


def _each(builder: Any, operation: Callable[..., Any], *values: Any) -> Any:
    """``operation`` on the registers of lanes, one after another, or on scalars."""
    results = [operation(*registers) for registers in zip(*(split(builder, value) for value in values), strict=True)]
    return _join(builder, results) if isinstance(values[0].type, ir.ArrayType) else results[0]


class _ElementByElement(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        left, right = args
        return signature(left, left, left) if isinstance(left, Lanes) and left == right else None


def _define(function: Callable[..., Any], name: str) -> None:
    infer_global(function)(_ElementByElement)

    @lower_builtin(function, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _each(builder, getattr(builder, name), *args)


for _function, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_function, _name)


def lanes_of(address: Any) -> Lanes:
    """The type of a register full of an address type's values."""
    return Lanes(address.dtype, BYTES * 8 // address.dtype.bitwidth)


def _splat(builder: Any, value: Any, count: int) -> Any:
    vector = ir.VectorType(value.type, count)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), count), None))


def _spread(context: Any, builder: Any, value: Any, lanes: Lanes) -> Any:
    """``value`` in every lane."""
    kind = context.get_value_type(lanes)
    return _join(builder, [_splat(builder, value, kind.element.count)] * kind.count)


def _first(builder: Any, n: Any, kind: Any) -> list[Any]:
    """For each register of the LLVM type of lanes, the mask of those that are among the first ``n``."""
    count = kind.element.count
    limit = _splat(builder, n, count)
    vector = ir.VectorType(n.type, count)
    starts = range(0, kind.count * count, count)
    numbers = (ir.Constant(vector, [ir.Constant(n.type, start + i) for i in range(count)]) for start in starts)
    return [builder.icmp_signed("<", each, limit) for each in numbers]


def _masked(builder: Any, name: str, vector: Any, result: Any, args: Any) -> Any:
    """A call of ``llvm.masked.load`` or ``llvm.masked.store``."""
    element = "f64" if vector.element == ir.DoubleType() else "f32"
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.declare_intrinsic(f"llvm.masked.{name}.v{vector.count}{element}.p0", (), kind)
    return builder.call(function, args)


def places(builder: Any, address: Any, index: Any, vector: Any, registers: int) -> list[Any]:
    """Pointers to ``address[index]`` and on, one for each of so many LLVM vectors."""
    starts = (builder.add(index, ir.Constant(index.type, k * vector.count)) for k in range(registers))
    return [pointer(builder, address, start, vector) for start in starts]


def _load(context: Any, builder: Any, x: Any, args: Any, lanes: Lanes) -> Any:
    """Values as ``lanes``, converted if need be; with a third argument, only so many and zeros."""
    kind = context.get_value_type(lanes)
    vector = ir.VectorType(context.get_value_type(x.dtype), kind.element.count)
    addresses = places(builder, args[0], args[1], vector, kind.count)
    alignment = x.dtype.bitwidth // 8
    if len(args) == 2:
        registers = [builder.load(address) for address in addresses]
        for register in registers:
            register.align = alignment
    else:
        rest = ir.Constant(ir.IntType(32), alignment), ir.Constant(vector, None)
        registers = [
            _masked(builder, "load", vector, vector, [address, rest[0], mask, rest[1]])
            for address, mask in zip(addresses, _first(builder, args[2], kind), strict=True)
        ]
    if vector != kind.element:
        registers = [builder.fpext(register, kind.element) for register in registers]
    return _join(builder, registers)


def _store_first(context: Any, builder: Any, out: Any, args: Any) -> Any:
    """Write the first lanes, as many as the third argument says, converted if need be."""
    address, index, n, values = args
    vector = ir.VectorType(context.get_value_type(out.dtype), values.type.element.count)
    alignment = ir.Constant(ir.IntType(32), out.dtype.bitwidth // 8)
    addresses = places(builder, address, index, vector, values.type.count)
    masks = _first(builder, n, values.type)
    for register, place, mask in zip(split(builder, values), addresses, masks, strict=True):
        narrow = register if register.type == vector else builder.fptrunc(register, vector)
        _masked(builder, "store", vector, ir.VoidType(), [narrow, place, alignment, mask])
    return context.get_dummy_value()


def _zero(value: Any) -> Any:
    return ir.Constant(value.type, None if isinstance(value.type, ir.VectorType) else 0.0)


@instruction(lambda x, value: np.asarray(value).astype(x.dtype).astype(np.float64)[()])
def rounded(typingctx: Any, x: Any, value: Any) -> Any:
    """float64 values, or lanes, rounded to the dtype of ``x``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if x.dtype == types.float64:
            return args[1]
        element = context.get_value_type(x.dtype)

        def narrow(given: Any) -> Any:
            vector = isinstance(given.type, ir.VectorType)
            kind = ir.VectorType(element, given.type.count) if vector else element
            return builder.fpext(builder.fptrunc(given, kind), given.type)

        return _each(builder, narrow, args[1])

    return value(x, value), codegen


@instruction(lambda value: np.asarray(np.where(value < 0.0, 0.0, value))[()])
def not_negative(typingctx: Any, value: Any) -> Any:
    """float64 values, or lanes, with zeros for the negative ones; NaN passes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def choose(given: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", given, _zero(given)), _zero(given), given)

        return _each(builder, choose, args[0])

    return value(value), codegen


@instruction(np.sqrt)
def root(typingctx: Any, value: Any) -> Any:
    """The square root of float64 values, or lanes; NaN of negative ones."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def call(given: Any) -> Any:
            name = f"llvm.sqrt.v{given.type.count}f64" if isinstance(given.type, ir.VectorType) else "llvm.sqrt.f64"
            kind = ir.FunctionType(given.type, [given.type])
            return builder.call(builder.module.declare_intrinsic(name, (), kind), [given])

        return _each(builder, call, args[0])

    return value(value), codegen


@instruction(lambda test, a, b: np.asarray(np.where(test == 0.0, a, b))[()])
def if_zero(typingctx: Any, test: Any, a: Any, b: Any) -> Any:
    """``a`` where ``test`` is zero, else ``b``: float64 values or lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def choose(test: Any, a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered("==", test, _zero(test)), a, b)

        return _each(builder, choose, *args)

    return a(test, a, b), codegen


@instruction(operator.add)
def plus(typingctx: Any, total: Any, values: Any) -> Any:
    """``total + values``, lanes of float64: on a processor of ``HALVES``, by the multipliers as ``values * 1 + total``.

    The same bits. The 1 is hidden from LLVM, which would make an addition of it.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not (HALVES and total.register == REGISTER):
            return _each(builder, builder.fadd, *args)
        vector = args[0].type.element
        count = vector.count
        fence = ir.FunctionType(vector, [vector])
        hide = builder.module.declare_intrinsic(f"llvm.arithmetic.fence.v{count}f64", (), fence)
        one = builder.call(hide, [ir.Constant(vector, [ir.Constant(vector.element, 1.0)] * count)])
        fused = ir.FunctionType(vector, [vector] * 3)
        fma = builder.module.declare_intrinsic(f"llvm.fma.v{count}f64", (), fused)
        return _each(builder, lambda a, b: builder.call(fma, [b, one, a]), *args)

    return total(total, total), codegen


@instruction(lambda x: BYTES // x.itemsize)
def width(typingctx: Any, x: Any) -> Any:
    """Values of ``x`` in a register."""
    count = lanes_of(x).count
    return types.intp(x), lambda context, builder, sig, args: ir.Constant(ir.IntType(types.intp.bitwidth), count)


def _loading(wide: int) -> Any:
    def typing(typingctx: Any, x: Any, i: Any) -> Any:
        lanes = Lanes(x.dtype, lanes_of(x).count * wide)
        return lanes(x, i), lambda context, builder, sig, args: _load(context, builder, x, args, lanes)

    return instruction(lambda x, i: part(x, i, BYTES // x.itemsize * wide).copy())(typing)


load = _loading(1)
"""The values from ``x[i]`` on, ``width(x)`` of them."""

load_wide = _loading(WIDE)
"""``WIDE`` times as many."""


def _padded(x: Any, i: int, n: int, count: int, fill: float) -> Any:
    return np.concatenate([part(x, i, n), np.full(count - n, fill, x.dtype)])


@instruction(lambda x, i, n: _padded(x, i, n, BYTES // x.itemsize, 0.0))
def load_first(typingctx: Any, x: Any, i: Any, n: Any) -> Any:
    """``n`` values from ``x[i]`` on, then zeros."""
    lanes = lanes_of(x)
    return lanes(x, i, types.intp), lambda context, builder, sig, args: _load(context, builder, x, args, lanes)


def _loading_doubles(count: int, register: int) -> Any:
    def typing(typingctx: Any, x: Any, i: Any) -> Any:
        lanes = Lanes(types.float64, count, register)
        return lanes(x, i), lambda context, builder, sig, args: _load(context, builder, x, args, lanes)

    return instruction(lambda x, i: part(x, i, count).astype(np.float64))(typing)


load_doubles = _loading_doubles(DOUBLES, REGISTER)
"""Eight values from ``x[i]`` on as float64."""

load_wide_doubles = _loading_doubles(WIDE_DOUBLES, REGISTER)
"""``WIDE_DOUBLES`` values likewise."""

load_widest_doubles = _loading_doubles(WIDEST_DOUBLES, BYTES)
"""``WIDEST_DOUBLES`` values likewise, in the widest registers."""


@instruction(lambda x, i, n, fill: _padded(part(x, i, n).astype(np.float64), 0, n, DOUBLES, fill))
def load_first_doubles(typingctx: Any, x: Any, i: Any, n: Any, fill: Any) -> Any:
    """``n`` values from ``x[i]`` on as float64, then ``fill`` up to eight."""
    lanes = Lanes(types.float64, DOUBLES, REGISTER)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = _load(context, builder, x, args[:3], lanes)
        masks = _join(builder, _first(builder, args[2], values.type))
        return _each(builder, builder.select, masks, values, _spread(context, builder, args[3], lanes))

    return lanes(x, i, types.intp, types.float64), codegen


@instruction(lambda x, value: np.full(BYTES // x.itemsize, value, x.dtype))
def spread(typingctx: Any, x: Any, value: Any) -> Any:
    """``value`` in every lane of a register of ``x``'s values."""
    lanes = lanes_of(x)
    return lanes(x, x.dtype), lambda context, builder, sig, args: _spread(context, builder, args[1], lanes)


def _spreading_doubles(count: int) -> Any:
    def typing(typingctx: Any, value: Any) -> Any:
        lanes = Lanes(types.float64, count, REGISTER)
        return lanes(types.float64), lambda context, builder, sig, args: _spread(context, builder, args[0], lanes)

    return instruction(lambda value: np.full(count, value, np.float64))(typing)


spread_doubles = _spreading_doubles(DOUBLES)
"""A value in each of eight lanes of float64."""

spread_wide_doubles = _spreading_doubles(WIDE_DOUBLES)
"""The same in ``WIDE_DOUBLES`` lanes."""


@instruction(lambda n, a, b: np.concatenate([a[:n], b[n:]]))
def blend(typingctx: Any, n: Any, a: Any, b: Any) -> Any:
    """The first ``n`` lanes of ``a``, then those of ``b``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        masks = _join(builder, _first(builder, args[0], args[1].type))
        return _each(builder, builder.select, masks, *args[1:])

    return a(types.intp, a, a), codegen


@instruction(lambda values: float(values.sum()))
def sum_of(typingctx: Any, values: Any) -> Any:
    """The sum of all lanes, halves first; interpreted, in NumPy's order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        registers = split(builder, args[0])
        while len(registers) > 1:
            half = len(registers) // 2
            registers = [builder.fadd(a, b) for a, b in zip(registers[:half], registers[half:], strict=True)]
        total = registers[0]
        while total.type.count > 1:
            half = total.type.count // 2
            undefined = ir.Constant(total.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    total, undefined, ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half)))
                )
                for start in (0, half)
            )
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return values.dtype(values), codegen


def _store_slice(out: Any, i: int, values: Any) -> None:
    part(out, i, len(values))[:] = values


@instruction(_store_slice)
def store(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    """Write all lanes to ``out[i]`` and what follows."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        registers = split(builder, args[2])
        addresses = places(builder, args[0], args[1], registers[0].type, len(registers))
        for register, place in zip(registers, addresses, strict=True):
            builder.store(register, place).align = out.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


def _store_first_slice(out: Any, i: int, n: int, values: Any) -> None:
    part(out, i, n)[:] = values[:n]


@instruction(_store_first_slice)
def store_first(typingctx: Any, out: Any, i: Any, n: Any, values: Any) -> Any:
    """Write the first ``n`` lanes to ``out[i]`` and what follows, rounded to the dtype of ``out``."""
    return types.void(out, i, types.intp, values), lambda context, builder, sig, args: _store_first(
        context, builder, out, args
    )
