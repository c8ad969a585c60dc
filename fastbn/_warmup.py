"""Everything that is compiled, one by one, in one process or several."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from fastbn.kernels import calls, channels_first, channels_last, coefficients, small
from fastbn.kernels.jit import Entries
from fastbn.kernels.twins import Kernel


def compiled(jobs: int) -> Iterator[str]:
    """Compile all of ``work`` in so many processes; the names of the kernels, in order, as far as they are done."""
    positions = range(len(work()))
    if jobs == 1:
        yield from map(_compile, positions)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_compile, positions)


@functools.cache
def work() -> list[tuple[ModuleType, Callable[..., Any], tuple[Any, ...]]]:
    """Module, function and arguments of each kernel."""
    return list(_usual_calls())


def _compile(position: int) -> str:
    module, function, args = work()[position]
    function(*args)
    return f"{module.__name__.rpartition('.')[2]}.{getattr(function, 'py_func', function).__name__}"


def _usual_calls() -> Iterator[tuple[ModuleType, Callable[..., Any], tuple[Any, ...]]]:
    """Everything that is compiled, with arguments of all the types that the package passes."""
    for entries in vars(calls).values():
        if isinstance(entries, Entries):
            for position in range(len(entries)):
                yield calls, entries.compile, (position,)
    mean, inv_std, var, gamma, beta, sum_dout, sum_dout_xhat = np.ones((7, 3))
    sums = (sum_dout, sum_dout_xhat)
    for dtype in (np.float32, np.float64):
        x, dout, out = np.ones((3, 48), dtype)
        affine, gradient = np.ones((3, 3), dtype), np.ones((4, 3), dtype)
        for given in (np.float32, np.float64):
            four = np.ones((4, 3), given)
            yield coefficients, coefficients.affine, (*four, affine)
            yield coefficients, coefficients.affine_of_var, (*four[:2], 1e-5, *four[2:], mean, inv_std, affine)
            yield small, small.inference, (x, (1, 3, 16), *four[:2], 1e-5, *four[2:], out, mean, inv_std)
        yield coefficients, coefficients.gradient, (mean, inv_std, gamma, *sums, 8.0, gradient)
        yield coefficients, coefficients.weighted_mean, (affine[0], mean, 0.1, 1.0, affine[1])
        for module, shape in ((channels_first, (1, 3, 16)), (channels_last, (16, 1, 3, 1))):
            arguments: dict[Kernel[Any], tuple[Any, ...]] = {
                module.batch_stats: (x, shape, 1, mean, var),
                module.normalize: (x, shape, affine, out, False),
                module.forward: (x, shape, 1, 1e-5, gamma, beta, out, mean, var, inv_std, False),
                module.backward_sums: (dout, x, shape, 1, mean, inv_std, *sums),
                module.backward_input: (dout, x, shape, gradient, out, False),
                module.backward: (dout, x, shape, 1, mean, inv_std, gamma, *sums, out, False),
            }
            arguments[module.forward_in_phases] = arguments[module.forward]
            arguments[module.backward_in_phases] = arguments[module.backward]
            for kernel, args in arguments.items():
                yield module, kernel.serial, args
                yield module, kernel.parallel, args
