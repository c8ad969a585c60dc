"""Lanes from memory, converted to float64 if need be."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastbn.kernels.addresses import instruction, part
from fastbn.kernels.registers import (
    BYTES,
    DOUBLES,
    REGISTER,
    WIDE,
    WIDE_DOUBLES,
    WIDEST_DOUBLES,
    Lanes,
    each,
    every_lane,
    join,
    lanes_of,
    masked,
    masks_of_first,
    places,
)


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
            masked(builder, "load", vector, vector, [address, rest[0], mask, rest[1]])
            for address, mask in zip(addresses, masks_of_first(builder, args[2], kind), strict=True)
        ]
    if vector != kind.element:
        registers = [builder.fpext(register, kind.element) for register in registers]
    return join(builder, registers)


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
        masks = join(builder, masks_of_first(builder, args[2], values.type))
        return each(builder, builder.select, masks, values, every_lane(context, builder, args[3], lanes))

    return lanes(x, i, types.intp, types.float64), codegen
