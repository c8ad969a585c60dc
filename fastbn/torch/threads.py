"""On how many threads operators run: on as many as PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
import numba.np.ufunc.parallel as pool
import torch

from fastbn.kernels.jit import threads_usable

P = ParamSpec("P")
R = TypeVar("R")


def on_torch_threads(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of fastbn's core on ``torch.get_num_threads()`` threads, at most ``NUMBA_NUM_THREADS``.

    Numba keeps its number for each Python thread, and autograd may run backward in a thread of its own; so the number
    is set for the call, and set back after it. PyTorch's number stays what it is.
    """
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if not (pool._is_initialized or _start_pool()):
        return function(*args, **kwargs)
    before = pool._get_num_threads()
    if before == wanted:
        return function(*args, **kwargs)
    try:
        pool._set_num_threads(wanted)
        return function(*args, **kwargs)
    finally:
        pool._set_num_threads(before)


def run(entries: tuple[Callable[..., R], Callable[..., R]], arguments: tuple[Any, ...]) -> R:
    """Call an entry, that for one thread or that for several, on as many threads as PyTorch has."""
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if wanted == 1 or not (pool._is_initialized or _start_pool()):
        return entries[0](*arguments)
    before = pool._get_num_threads()
    if before == wanted:
        return entries[threads_usable()](*arguments)
    try:
        pool._set_num_threads(wanted)
        return entries[threads_usable()](*arguments)
    finally:
        pool._set_num_threads(before)


def _start_pool() -> bool:
    """Start Numba's threads, if there are any, and return whether there are.

    Their start sets OpenMP's number of threads, which is also PyTorch's, to that of all cores, for the Python
    thread that starts them (numba issue 9387).
    """
    threads = torch.get_num_threads()
    threads_usable()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return bool(pool._is_initialized)
