"""Lanes to memory, and past the caches: streaming stores, which leave these to what is still needed.

An ordinary store first reads the cache line that it is about to overwrite, a third of the traffic of a copy. A
streaming store does not, but needs whole aligned registers, and whoever reads the result next finds it in no cache.
LLVM lowers it to what the processor has; where it has none, an ordinary store is left. The bits are the same.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastbn._typing import Address, Scalar
from fastbn.kernels.addresses import instruction, part
from fastbn.kernels.jit import inner
from fastbn.kernels.registers import BYTES, MASKED, halves, masked, masks_of_first, places, split


def _store_all(builder: Any, place: tuple[Any, Any], registers: list[Any], alignment: int) -> list[Any]:
    """The stores of all registers at an address and index; both are multiples of ``alignment`` bytes together."""
    addresses = places(builder, *place, registers[0].type, len(registers))
    stores = [builder.store(register, address) for register, address in zip(registers, addresses, strict=True)]
    for each in stores:
        each.align = alignment
    return stores


def _store_slice(out: Any, i: int, values: Any) -> None:
    part(out, i, len(values))[:] = values


@instruction(_store_slice)
def store(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    """Write all lanes to ``out[i]`` and what follows."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store_all(builder, args[:2], split(builder, args[2]), out.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


@instruction(_store_slice)
def _stream(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        for each in _store_all(builder, args[:2], split(builder, args[2]), BYTES):
            each.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


def _store_first_slice(out: Any, i: int, n: int, values: Any) -> None:
    part(out, i, n)[:] = values[:n]


@instruction(_store_first_slice)
def store_first(typingctx: Any, out: Any, i: Any, n: Any, values: Any) -> Any:
    """Write the first ``n`` lanes, 0 to all, to ``out[i]`` and what follows, rounded to the dtype of ``out``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        registers = split(builder, args[3])
        narrow = ir.VectorType(context.get_value_type(out.dtype), registers[0].type.count)
        if registers[0].type != narrow:
            registers = [builder.fptrunc(register, narrow) for register in registers]
        write = _store_masked if MASKED else _store_pieces
        write(builder, args[:2], args[2], registers, out.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(out, i, types.intp, values), codegen


def _store_masked(builder: Any, place: tuple[Any, Any], count: Any, registers: list[Any], alignment: int) -> None:
    """Each register with the mask of those of its lanes that are among the first ``count``."""
    vector = registers[0].type
    addresses = places(builder, *place, vector, len(registers))
    masks = masks_of_first(builder, count, ir.ArrayType(vector, len(registers)))
    multiple = ir.Constant(ir.IntType(32), alignment)
    for register, address, mask in zip(registers, addresses, masks, strict=True):
        masked(builder, "store", vector, ir.VoidType(), [register, address, multiple, mask])


def _store_pieces(builder: Any, place: tuple[Any, Any], count: Any, registers: list[Any], alignment: int) -> None:
    """All lanes, a half of them, a quarter and so on: those that the bits of ``count`` say.

    That is a function of its own, one a module: in every place it took two seconds longer to compile.
    """
    vector = registers[0].type
    name = f"fastbn_store_{len(registers)}_of_{vector.count}_times_{alignment}_bytes"
    kinds = place[0].type, place[1].type, count.type, *[vector] * len(registers)
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
    if function.is_declaration:
        _define_pieces(function, alignment)
    builder.call(function, [*place, count, *registers])


def _define_pieces(function: Any, alignment: int) -> None:
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    address, index, count, *registers = function.args
    whole = size = len(registers) * registers[0].type.count
    low = high = registers
    while size:
        if size < whole:
            low, high = halves(builder, registers)
        number = ir.Constant(count.type, size)
        chosen = builder.icmp_signed("!=", builder.and_(count, number), ir.Constant(count.type, 0))
        with builder.if_then(chosen):
            _store_all(builder, (address, index), low, alignment)
        index = builder.select(chosen, builder.add(index, number), index)
        registers = [builder.select(chosen, b, a) for a, b in zip(low, high, strict=True)]
        size //= 2
    builder.ret_void()


@instruction(lambda streaming: None)
def drain(typingctx: Any, streaming: Any) -> Any:
    """If ``streaming``, let no later store overtake a streaming one: before a thread tells others that it is done.

    Once for all its tasks, as a core waits here: after every 64 kB, inference of NCHW took 1.05 times as long on one
    thread of an Emerald Rapids.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.if_then(cgutils.is_not_null(builder, args[0])):
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(types.boolean), codegen


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
