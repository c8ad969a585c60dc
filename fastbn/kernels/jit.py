"""Everything that touches the compiler: Numba's flags, and the guards around a launch.

The functions that a kernel (see ``twins``) calls are compiled by one of these decorators, by what the compiler may do
to their arithmetic. None may reorder sums: those run in registers by
their own text (see ``registers``), and NaN and infinity stay exact.

``inner``        nothing: IEEE rounding, operation by operation. Coefficients, merges, what looks at arguments.
``shared``       the same, for what Python calls, too, as it is; the others are for kernels alone.
``elementwise``  may fuse a multiplication with the addition that uses it. The loops over values.
``inlined``      the same, as a part of every caller.
"""

from __future__ import annotations

import inspect
import os
import types
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numba.extending
import numba.np.ufunc.parallel
import numpy as np

from fastbn.kernels import cache, linking, locks
from fastbn.kernels.objects import Given

P = ParamSpec("P")
R = TypeVar("R")

_COMMON: dict[str, Any] = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}
_ENTRY: dict[str, Any] = {**_COMMON, "pipeline_class": linking.EntryCompiler}
"""For what Python calls."""

_INNER: dict[str, Any] = {**_COMMON, "no_cpython_wrapper": True}
"""For what Python does not call."""


def _linked(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    if numba.config.DISABLE_JIT:
        return function
    return cast(Callable[P, R], linking.LinkedDispatcher(function, _INNER | options))


def inner(function: Callable[P, R], *, parallel: bool = False) -> Callable[P, R]:
    """Compile without any licence to change the arithmetic."""
    return _linked(function, parallel=parallel)


def elementwise(function: Callable[P, R]) -> Callable[P, R]:
    """Compile with fused multiply-add."""
    return _linked(function, fastmath={"contract"})


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile as ``elementwise``, as a part of every caller.

    LLVM calls what is long, and at a call the loads that are under way come to an end: backward of 65536x64 took 1.2
    times as long, of planes of 7x7 1.1 to 1.3 times.
    """
    return _linked(function, fastmath={"contract"}, forceinline=True)


def shared(function: Callable[P, R]) -> Callable[P, R]:
    """Compile for kernels only what plans ask, too: the first plan of a process took 0.1 to 0.3 s longer."""
    options = _INNER | {"pipeline_class": linking.LinkedCompiler}
    return cast(Callable[P, R], numba.extending.register_jitable(**options)(function))


class _Threads:
    """What is known about Numba's thread pool in this process."""

    def __init__(self) -> None:
        self.pool_lost = False
        self.one_at_a_time = True

    def usable(self) -> bool:
        """False where a parallel launch would be pointless (one thread), could kill a forked child, or cannot be."""
        if self.pool_lost:
            return False
        pool = numba.np.ufunc.parallel
        try:
            # get_num_threads asks for the lock that starts the pool, a multiprocessing.RLock, whose __enter__ and
            # __exit__ are Python: an interrupt in them leaves it held, and other threads would wait for ever. It also
            # takes 0.5 us, the question itself 0.1.
            return bool((pool._get_num_threads() if pool._is_initialized else numba.get_num_threads()) > 1)
        except ValueError as error:  # the threading layer that was asked for is not there
            self.pool_lost = True
            warnings.warn(f"fastbn runs on one thread: {error}", RuntimeWarning, stacklevel=2)
            return False

    def launch(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a parallel twin; one at a time while the threading layer is ``workqueue``, or not yet known."""
        if not self.one_at_a_time:
            return function(*args, **kwargs)
        with locks.launch:
            result = function(*args, **kwargs)
            # workqueue aborts the process when two Python threads launch at once; tbb and omp do not.
            self.one_at_a_time = numba.threading_layer() == "workqueue"
            return result

    def after_fork_in_child(self) -> None:
        """GNU OpenMP kills a forked child at its first parallel launch, so a child of a started pool stays serial."""
        self.pool_lost = self.pool_lost or bool(numba.np.ufunc.parallel._is_initialized)


_threads = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.after_fork_in_child)


def _interpreted(function: Callable[P, R]) -> Callable[P, R]:
    """Without warnings of NaN and infinity: compiled code does not warn either."""
    return cast(Callable[P, R], np.errstate(all="ignore")(cast(Callable[P, None], function)))


def with_globals(function: Callable[..., R], name: str, values: dict[str, Any]) -> Callable[..., R]:
    """A copy of a function with a name and some globals of its own."""
    body = cast(types.FunctionType, function)
    copy = types.FunctionType(body.__code__, {**body.__globals__, **values}, name, body.__defaults__, body.__closure__)
    copy.__qualname__, copy.__module__, copy.__doc__ = name, body.__module__, body.__doc__
    copy.__annotations__ = body.__annotations__
    return copy


def threads_usable() -> bool:
    """Whether there are threads now that a parallel twin could run on."""
    return not numba.config.DISABLE_JIT and _threads.usable()


launch = _threads.launch


def entry(function: Callable[P, R], *, parallel: bool) -> Callable[P, R]:
    """Compile what is called from Python, and keep it."""
    if numba.config.DISABLE_JIT:
        return _interpreted(function)
    compiled = numba.njit(parallel=parallel, **_ENTRY)(function)
    cache.attach(compiled)
    return cast(Callable[P, R], compiled)


def small(function: Callable[P, R]) -> Callable[P, R]:
    """Compile what is called from Python and is too little work for threads."""
    return entry(function, parallel=False)


class Entries(list[Callable[..., Any]]):
    """Functions of Python objects (see ``objects``), to be called without Numba's dispatcher.

    Entry ``n * kind + i`` is function ``i`` of ``n`` for arrays of dtype ``dtypes[kind]``; parameters that are
    annotated ``Float64Array`` or ``Int64Array`` are of these dtypes in all, those annotated ``Any`` may be anything.
    Each is compiled, or loaded, when it is first called.
    """

    def __init__(self, *functions: Callable[..., Any], dtypes: tuple[Any, ...] = (np.float32, np.float64)) -> None:
        self._cases = [(function, np.dtype(dtype)) for dtype in dtypes for function in functions]
        self.compiled: list[Any] = []
        pending = self._interpreted if numba.config.DISABLE_JIT else self._pending
        super().__init__(map(pending, range(len(self._cases))))

    def compile(self, position: int) -> None:
        """Compile, or load, one entry."""
        if numba.config.DISABLE_JIT:
            return
        options = _ENTRY | {"nogil": False}  # keeps the lock, to look at objects
        compiled = numba.njit(**options)(self._cases[position][0])
        cache.attach(compiled)
        given = (Given(numba.from_dtype(dtype or np.dtype(np.float32))) for dtype in self._dtypes(position))
        self[position] = compiled.compile(tuple(given))
        self.compiled.append(compiled)

    def _dtypes(self, position: int) -> list[np.dtype[Any] | None]:
        function, dtype = self._cases[position]
        annotated = {"Float64Array": np.dtype(np.float64), "Int64Array": np.dtype(np.int64), "Any": None}
        return [annotated.get(each.annotation, dtype) for each in inspect.signature(function).parameters.values()]

    def _pending(self, position: int) -> Callable[..., Any]:
        def compile_and_call(*args: Any) -> Any:
            self.compile(position)
            return self[position](*args)

        return compile_and_call

    def _interpreted(self, position: int) -> Callable[..., Any]:
        function, dtypes = _interpreted(self._cases[position][0]), self._dtypes(position)

        def call(*args: Any) -> Any:
            given = [(value, dtype) for value, dtype in zip(args, dtypes, strict=True) if dtype is not None]
            arrays = ((value, dtype) for value, dtype in given if isinstance(value, np.ndarray))
            return all(array.dtype == dtype for array, dtype in arrays) and function(*args)

        return call


def threading_layer() -> str:
    """The threading layer that Numba chose; starts it if no parallel kernel has run yet."""
    if numba.config.DISABLE_JIT:
        return "none (NUMBA_DISABLE_JIT)"
    try:
        numba.np.ufunc.parallel._launch_threads()
        return str(numba.threading_layer())
    except ValueError as error:  # a layer that was asked for by name and is not there
        return f"none ({error})"
