"""Lanes to memory, and past the caches: streaming stores, which leave these to what is still needed.

An ordinary store first reads the cache line that it is about to overwrite, a third of the traffic of a copy. A
streaming store does not, but needs whole aligned registers, and whoever reads the result next finds it in no cache.
LLVM lowers it to what the processor has; where it has none, an ordinary store is left. The bits are the same.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from fastbn._typing import Address, Scalar
from fastbn.kernels.addresses import instruction, part
from fastbn.kernels.jit import inner
from fastbn.kernels.registers import BYTES, masked, masks_of_first, places, split


def _store_all(builder: Any, args: Any, alignment: int) -> list[Any]:
    """The stores of all registers of lanes, at addresses that are multiples of ``alignment`` bytes."""
    registers = split(builder, args[2])
    addresses = places(builder, args[0], args[1], registers[0].type, len(registers))
    stores = [builder.store(register, place) for register, place in zip(registers, addresses, strict=True)]
    for each in stores:
        each.align = alignment
    return stores


def _store_slice(out: Any, i: int, values: Any) -> None:
    part(out, i, len(values))[:] = values


@instruction(_store_slice)
def store(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    """Write all lanes to ``out[i]`` and what follows."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store_all(builder, args, out.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


@instruction(_store_slice)
def _stream(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        for each in _store_all(builder, args, BYTES):
            each.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


def _store_first_slice(out: Any, i: int, n: int, values: Any) -> None:
    part(out, i, n)[:] = values[:n]


@instruction(_store_first_slice)
def store_first(typingctx: Any, out: Any, i: Any, n: Any, values: Any) -> Any:
    """Write the first ``n`` lanes to ``out[i]`` and what follows, rounded to the dtype of ``out``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, count, lanes = args
        vector = ir.VectorType(context.get_value_type(out.dtype), lanes.type.element.count)
        alignment = ir.Constant(ir.IntType(32), out.dtype.bitwidth // 8)
        addresses = places(builder, address, index, vector, lanes.type.count)
        masks = masks_of_first(builder, count, lanes.type)
        for register, place, mask in zip(split(builder, lanes), addresses, masks, strict=True):
            narrow = register if register.type == vector else builder.fptrunc(register, vector)
            masked(builder, "store", vector, ir.VoidType(), [narrow, place, alignment, mask])
        return context.get_dummy_value()

    return types.void(out, i, types.intp, values), codegen


@instruction(lambda: None)
def drain(typingctx: Any) -> Any:
    """Let no later store overtake a streaming one: to be called before another thread is told of the result."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@instruction(lambda out, i: i + -(out.ctypes.data // out.itemsize + i) % (BYTES // out.itemsize))
def aligned(typingctx: Any, out: Any, i: Any) -> Any:
    """The first index from ``i`` on at which ``put`` may stream."""
    size = out.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        index = args[1]
        address = builder.ptrtoint(builder.gep(args[0], [index]), index.type)
        missing = builder.and_(builder.neg(address), ir.Constant(index.type, BYTES - 1))
        return builder.add(index, builder.udiv(missing, ir.Constant(index.type, size)))

    return types.intp(out, types.intp), codegen


@inner
def put(out: Address, i: int, values: Scalar, streaming: bool) -> None:
    """Write a register to ``out[i]`` and what follows; if ``streaming``, ``i`` is ``aligned``."""
    if streaming:
        _stream(out, i, values)
    else:
        store(out, i, values)
