"""What inner loops compute with where the compiler cannot be left to it: lanes of values (``registers``)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastbn.kernels.addresses import instruction
from fastbn.kernels.processor import HALVES
from fastbn.kernels.registers import (
    BYTES,
    DOUBLES,
    REGISTER,
    WIDE_DOUBLES,
    Lanes,
    each,
    every_lane,
    halves,
    join,
    lanes_of,
    masks_of_first,
    split,
)


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

        return each(builder, narrow, args[1])

    return value(x, value), codegen


REACH = {4: 2.0**102, 8: 2.0**969}
"""By the size of a value: the largest mean from which no finite number is too far to subtract it (see ``_far``)."""


@instruction(lambda x: REACH[x.itemsize])
def reach(typingctx: Any, x: Any) -> Any:
    """``REACH`` of the dtype of ``x``."""
    limit = REACH[x.dtype.bitwidth // 8]
    return types.float64(x), lambda context, builder, sig, args: context.get_constant(types.float64, limit)


@instruction(lambda value: np.asarray(np.where(value < 0.0, 0.0, value))[()])
def not_negative(typingctx: Any, value: Any) -> Any:
    """float64 values, or lanes, with zeros for the negative ones; NaN passes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def choose(given: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", given, _zero(given)), _zero(given), given)

        return each(builder, choose, args[0])

    return value(value), codegen


@instruction(np.sqrt)
def root(typingctx: Any, value: Any) -> Any:
    """The square root of float64 values, or lanes; NaN of negative ones."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def call(given: Any) -> Any:
            name = f"llvm.sqrt.v{given.type.count}f64" if isinstance(given.type, ir.VectorType) else "llvm.sqrt.f64"
            kind = ir.FunctionType(given.type, [given.type])
            return builder.call(builder.module.declare_intrinsic(name, (), kind), [given])

        return each(builder, call, args[0])

    return value(value), codegen


@instruction(lambda test, a, b: np.asarray(np.where(test == 0.0, a, b))[()])
def if_zero(typingctx: Any, test: Any, a: Any, b: Any) -> Any:
    """``a`` where ``test`` is zero, else ``b``: float64 values or lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def choose(test: Any, a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered("==", test, _zero(test)), a, b)

        return each(builder, choose, *args)

    return a(test, a, b), codegen


@instruction(operator.add)
def plus(typingctx: Any, total: Any, values: Any) -> Any:
    """``total + values``, lanes of float64: on a processor of ``HALVES``, by the multipliers as ``values * 1 + total``.

    The same bits. The 1 is hidden from LLVM, which would make an addition of it.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not (HALVES and total.register == REGISTER):
            return each(builder, builder.fadd, *args)
        vector = args[0].type.element
        count = vector.count
        fence = ir.FunctionType(vector, [vector])
        hide = builder.module.declare_intrinsic(f"llvm.arithmetic.fence.v{count}f64", (), fence)
        one = builder.call(hide, [ir.Constant(vector, [ir.Constant(vector.element, 1.0)] * count)])
        fused = ir.FunctionType(vector, [vector] * 3)
        fma = builder.module.declare_intrinsic(f"llvm.fma.v{count}f64", (), fused)
        return each(builder, lambda a, b: builder.call(fma, [b, one, a]), *args)

    return total(total, total), codegen


@instruction(lambda x, value: np.full(BYTES // x.itemsize, value, x.dtype))
def spread(typingctx: Any, x: Any, value: Any) -> Any:
    """``value`` in every lane of a register of ``x``'s values."""
    lanes = lanes_of(x)
    return lanes(x, x.dtype), lambda context, builder, sig, args: every_lane(context, builder, args[1], lanes)


def _spreading_doubles(count: int) -> Any:
    def typing(typingctx: Any, value: Any) -> Any:
        lanes = Lanes(types.float64, count, REGISTER)
        return lanes(types.float64), lambda context, builder, sig, args: every_lane(context, builder, args[0], lanes)

    return instruction(lambda value: np.full(count, value, np.float64))(typing)


spread_doubles = _spreading_doubles(DOUBLES)
"""A value in each of eight lanes of float64."""

spread_wide_doubles = _spreading_doubles(WIDE_DOUBLES)
"""The same in ``WIDE_DOUBLES`` lanes."""


@instruction(lambda n, a, b: np.concatenate([a[:n], b[n:]]))
def blend(typingctx: Any, n: Any, a: Any, b: Any) -> Any:
    """The first ``n`` lanes of ``a``, then those of ``b``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        masks = join(builder, masks_of_first(builder, args[0], args[1].type))
        return each(builder, builder.select, masks, *args[1:])

    return a(types.intp, a, a), codegen


def _choosing(order: str, interpreted: Callable[[Any, Any], Any]) -> Any:
    def typing(typingctx: Any, values: Any, others: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return each(builder, lambda a, b: _chosen(builder, order, a, b), *args)

        return values(values, values), codegen

    return instruction(interpreted)(typing)


def _chosen(builder: Any, order: str, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(order, a, b), a, b)


lesser = _choosing("<", lambda values, others: np.asarray(np.where(values < others, values, others))[()])
"""The lesser of each two float64 values or lanes; the other one where one of them is NaN."""

greater = _choosing(">", lambda values, others: np.asarray(np.where(values > others, values, others))[()])
"""The greater of each two; the other one where one of them is NaN."""


def _fold(builder: Any, value: Any, operation: Callable[[Any, Any], Any]) -> Any:
    """One value of all lanes, halves first."""
    registers = split(builder, value)
    while len(registers) > 1 or registers[0].type.count > 1:
        registers = [operation(a, b) for a, b in zip(*halves(builder, registers), strict=True)]
    return builder.extract_element(registers[0], ir.Constant(ir.IntType(32), 0))


@instruction(lambda values: float(values.sum()))
def sum_of(typingctx: Any, values: Any) -> Any:
    """The sum of all lanes, halves first; interpreted, in NumPy's order."""
    return values.dtype(values), lambda context, builder, sig, args: _fold(builder, args[0], builder.fadd)


@instruction(lambda values: float(values.min()))
def least_of(typingctx: Any, values: Any) -> Any:
    """The least of all lanes, none of which is NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _fold(builder, args[0], lambda a, b: _chosen(builder, "<", a, b))

    return values.dtype(values), codegen
