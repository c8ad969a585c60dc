"""Training on tensors that are given by the pointers to their memory, in one compiled call.

For callers whose tensors are no NumPy arrays: what a call costs before its kernel runs is then a few conversions of
numbers, and no Python code of the package. Between the operations of a network that code is in no cache, and takes
four to five times as long as on a bench. Tensors are dense; of two tensors the values lie in memory in the same order.
Results are not streamed: what comes next in a network reads them. Nothing is checked here. The work is done by the
kernels themselves, so results are bitwise those of every other way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.npydecl import parse_dtype

from fastbn.kernels import channels_last
from fastbn.kernels.addresses import data, empty, instruction
from fastbn.kernels.coefficients import is_near, weighted_mean
from fastbn.kernels.jit import entry, inner, launch, with_globals
from fastbn.kernels.tiles import matrix_of

Pointer: TypeAlias = int
"""The number of a first byte, 0 for what is not there."""

_kernel: Any = None
_kernel_shape: Any = None
_dtype: Any = None
_weighted_mean = weighted_mean


@instruction(lambda *_: None)
def _array(typingctx: Any, pointer: Any, size: Any, dtype: Any) -> Any:
    """The ``size`` values of a dtype at a pointer, as an array that owns nothing."""
    result = types.Array(parse_dtype(dtype), 1, "C")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        made = context.make_array(result)(context, builder)
        itemsize = context.get_constant(types.intp, result.dtype.bitwidth // 8)
        first = builder.inttoptr(args[0], context.get_value_type(result.dtype).as_pointer())
        nothing = ir.Constant(context.get_value_type(types.voidptr), None)
        context.populate_array(
            made, data=first, shape=[args[1]], strides=[itemsize], itemsize=itemsize, meminfo=nothing
        )
        return made._getvalue()

    return result(types.int64, types.intp, dtype), codegen


@inner
def _widened(given: Any, is_given: bool, default: float) -> Any:
    """A parameter in float64, or its default where it is not given."""
    values = empty((given.size,), np.float64)
    for c in range(given.size):
        values[c] = given[c] if is_given else default
    return values


def _forward(
    x: Pointer,
    weight: Pointer,
    bias: Pointer,
    out: Pointer,
    statistics: Pointer,
    running_mean: Pointer,
    running_var: Pointer,
    counter: Pointer,
    outer: int,
    channels: int,
    inner: int,
    segments: int,
    eps: float,
    momentum: float,
) -> bool:
    """Write ``out`` and (3, C) float64 ``statistics``: mean, ``inv_std``, biased variance; update what is running.

    A negative ``momentum`` is the cumulative average. ``False``, with nothing updated, where a mean is far from 0 (see
    ``fastbn._far``), and what was written is not the result.
    """
    shape = (outer, channels, inner)
    size = outer * channels * inner
    values = _array(x, size, _dtype)
    mean = _array(statistics, channels, np.float64)
    inv_std = _array(statistics + 8 * channels, channels, np.float64)
    var = _array(statistics + 16 * channels, channels, np.float64)
    gamma = _widened(_array(weight, channels, _dtype), weight != 0, 1.0)
    beta = _widened(_array(bias, channels, _dtype), bias != 0, 0.0)
    result = _array(out, size, _dtype)
    _kernel(values, _kernel_shape(shape), segments, eps, gamma, beta, result, mean, var, inv_std, False)
    if not is_near(data(values), data(mean), channels):
        return False
    if running_mean != 0:
        count = np.float64(outer * inner)
        share = momentum
        if counter != 0:
            batches = _array(counter, 1, np.int64)
            batches[0] += 1
            if share < 0.0:
                share = 1.0 / np.float64(batches[0])
        old_mean, old_var = _array(running_mean, channels, _dtype), _array(running_var, channels, _dtype)
        _weighted_mean(old_mean, mean, share, 1.0, old_mean)
        _weighted_mean(old_var, var, share, count / (count - 1.0), old_var)
    return True


def _backward(
    dout: Pointer,
    x: Pointer,
    weight: Pointer,
    statistics: Pointer,
    dx: Pointer,
    dweight: Pointer,
    dbias: Pointer,
    outer: int,
    channels: int,
    inner: int,
    segments: int,
) -> bool:
    """Write ``dx``, and ``dweight`` and ``dbias`` where they are wanted; ``False``, with nothing written, as above."""
    shape = (outer, channels, inner)
    size = outer * channels * inner
    values = _array(x, size, _dtype)
    mean = _array(statistics, channels, np.float64)
    inv_std = _array(statistics + 8 * channels, channels, np.float64)
    if not is_near(data(values), data(mean), channels):
        return False
    sum_dout, sum_dout_xhat = empty((channels,), np.float64), empty((channels,), np.float64)
    gamma = _widened(_array(weight, channels, _dtype), weight != 0, 1.0)
    gradient, result = _array(dout, size, _dtype), _array(dx, size, _dtype)
    _kernel(
        gradient,
        values,
        _kernel_shape(shape),
        segments,
        mean,
        inv_std,
        gamma,
        sum_dout,
        sum_dout_xhat,
        result,
        False,
    )
    if dweight != 0:
        target = _array(dweight, channels, _dtype)
        for c in range(channels):
            target[c] = sum_dout_xhat[c]
    if dbias != 0:
        target = _array(dbias, channels, _dtype)
        for c in range(channels):
            target[c] = sum_dout[c]
    return True


@inner
def _as_it_is(shape: Any) -> Any:
    return shape


@functools.cache
def compiled(operation: str, module: Any, parallel: bool, at_once: bool, dtype: Any) -> Callable[..., bool]:
    """The entry of an operation, ``forward`` or ``backward``, with one of a module's kernels; compiled when called."""
    kernel = operation if at_once else f"{operation}_in_phases"
    twin = "parallel" if parallel else "serial"
    bound = {
        "_kernel": getattr(module, kernel).linked[twin],
        "_kernel_shape": matrix_of if module is channels_last else _as_it_is,
        "_dtype": dtype,
    }
    layout = module.__name__.rpartition(".")[2]
    name = f"_{kernel}_{layout}_{twin}_{dtype.__name__}"
    body: Any = _forward if operation == "forward" else _backward
    function = entry(with_globals(body, name, bound), parallel=False)
    return functools.partial(launch, function) if parallel else function
