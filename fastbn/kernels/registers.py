"""Registers as a type of Numba's, and what LLVM is told of them.

``Lanes`` hold 64 bytes: sixteen float32 or eight float64, the widest register there is, or several times as many.
Their arithmetic goes element by element, so the formulas of one value (``formulas``) are those of sixteen as well.
Where nothing is compiled, a slice of the array takes their place.

To LLVM they are one or more vectors of ``register`` bytes, of which it makes several narrower ones on processors that
have no such registers. How many lanes a register has changes no bit. What is done with them is in ``lanes``, ``loads``
and ``stores``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, models, register_model

from fastbn.kernels import processor
from fastbn.kernels.addresses import pointer

BYTES = 64
"""Of the widest register."""

DOUBLES = 8
"""Lanes of float64."""

REGISTER = BYTES // 2 if processor.HALVES else BYTES
"""Bytes of the registers of float64 that are summed."""


_AVX512 = processor.has("avx512f")

WIDE = 4 if _AVX512 else 1
"""Lanes of 64 bytes that are worked on together: as many as 16 or 32 registers hold with all coefficients."""

WIDEST_DOUBLES = 2 * DOUBLES * WIDE
"""Lanes of float64 that are summed together, at the most,"""

WIDE_DOUBLES = WIDEST_DOUBLES * REGISTER // BYTES
"""and in registers of ``REGISTER`` bytes."""

MASKED = _AVX512
"""Whether some lanes of a register are stored as fast as all; else they go in pieces, a half, a quarter and so on.

With AVX2's own masked stores inference of rows of 4 columns took 9 to 15 ns a row on a Zen 3. In turns, one thread,
rows of 4, 12, 19 and 24 columns: inference took 0.21, 0.24 to 0.31, 0.38 to 0.43 and 0.44 to 0.48 of the time in
pieces, forward 0.43 to 0.68, backward 0.44 to 0.73.
"""


WHOLE_LINES = _AVX512
"""Whether one store fills a cache line."""


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


def join(builder: Any, registers: list[Any]) -> Any:
    """The inverse of ``split``."""
    value = ir.Constant(ir.ArrayType(registers[0].type, len(registers)), ir.Undefined)
    for k, register in enumerate(registers):
        value = builder.insert_value(value, register, k)
    return value


def halves(builder: Any, registers: list[Any]) -> tuple[list[Any], list[Any]]:
    """The first half of the lanes in these registers, and the other one."""
    if len(registers) > 1:
        half = len(registers) // 2
        return registers[:half], registers[half:]
    (whole,) = registers
    half = whole.type.count // 2
    undefined = ir.Constant(whole.type, ir.Undefined)
    vector = ir.VectorType(ir.IntType(32), half)
    starts = (ir.Constant(vector, list(range(start, start + half))) for start in (0, half))
    low, high = (builder.shuffle_vector(whole, undefined, numbers) for numbers in starts)
    return [low], [high]


def each(builder: Any, operation: Callable[..., Any], *values: Any) -> Any:
    """``operation`` on the registers of lanes, one after another, or on scalars."""
    results = [operation(*registers) for registers in zip(*(split(builder, value) for value in values), strict=True)]
    return join(builder, results) if isinstance(values[0].type, ir.ArrayType) else results[0]


class _ElementByElement(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        left, right = args
        return signature(left, left, left) if isinstance(left, Lanes) and left == right else None


def _define(function: Callable[..., Any], name: str) -> None:
    infer_global(function)(_ElementByElement)

    @lower_builtin(function, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return each(builder, getattr(builder, name), *args)


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


def splat(builder: Any, value: Any, count: int) -> Any:
    """A vector of ``count`` times the value."""
    vector = ir.VectorType(value.type, count)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), count), None))


def every_lane(context: Any, builder: Any, value: Any, lanes: Lanes) -> Any:
    """``value`` in every lane."""
    kind = context.get_value_type(lanes)
    return join(builder, [splat(builder, value, kind.element.count)] * kind.count)


def masks_of_first(builder: Any, n: Any, kind: Any) -> list[Any]:
    """For each register of the LLVM type of lanes, the mask of those that are among the first ``n``."""
    count = kind.element.count
    number = ir.IntType(32)  # half as many registers to compare as with those of 64 bits
    limit = splat(builder, builder.trunc(n, number), count)
    vector = ir.VectorType(number, count)
    starts = range(0, kind.count * count, count)
    numbers = (ir.Constant(vector, list(range(start, start + count))) for start in starts)
    return [builder.icmp_signed("<", each, limit) for each in numbers]


def masked(builder: Any, name: str, vector: Any, result: Any, args: Any) -> Any:
    """A call of ``llvm.masked.load`` or ``llvm.masked.store``."""
    element = "f64" if vector.element == ir.DoubleType() else "f32"
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.declare_intrinsic(f"llvm.masked.{name}.v{vector.count}{element}.p0", (), kind)
    return builder.call(function, args)


def places(builder: Any, address: Any, index: Any, vector: Any, registers: int) -> list[Any]:
    """Pointers to ``address[index]`` and on, one for each of so many LLVM vectors."""
    starts = (builder.add(index, ir.Constant(index.type, k * vector.count)) for k in range(registers))
    return [pointer(builder, address, start, vector) for start in starts]
