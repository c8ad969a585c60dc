"""Streaming stores: results that go to memory and leave the caches to what is still needed.

An ordinary store first reads the cache line that it is about to overwrite, a third of the traffic of a copy. A
streaming store does not, but needs whole aligned registers, and whoever reads the result next finds it in no cache.
LLVM lowers it to what the processor has; where it has none, an ordinary store is left. The bits are the same.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from fastbn._typing import Address, Scalar
from fastbn.kernels.addresses import instruction
from fastbn.kernels.jit import inner
from fastbn.kernels.lanes import BYTES, places, split, store


@instruction(store)
def _stream(typingctx: Any, out: Any, i: Any, values: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        registers = split(builder, args[2])
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        addresses = places(builder, args[0], args[1], registers[0].type, len(registers))
        for register, place in zip(registers, addresses, strict=True):
            written = builder.store(register, place)
            written.align = BYTES
            written.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(out, i, values), codegen


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
