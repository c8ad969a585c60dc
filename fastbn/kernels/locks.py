"""Locks, and what becomes of them in a fork.

A forked child has one thread: a lock that another one held would never be given back there, and its first call would
wait for ever. So a fork waits until no other thread launches, compiles or changes the state of a layer. Numba's and
LLVM's locks are among these: without them, one thread that compiles is enough to hang a child.

A module that another thread was importing would be such a lock, too. Numba imports under its own locks, but for
``numpy.ma``, which it names when it first sees an array: that one is imported here, before any thread can.
"""

from __future__ import annotations

import contextlib
import os
import threading

import llvmlite.binding
import numba.np.ufunc.parallel
import numpy.ma  # noqa: F401 - see above
from numba.core.compiler_lock import global_compiler_lock

state = threading.RLock()
"""Held where running arrays and parameters that belong together are read or written."""

launch = threading.RLock()
"""Held while a parallel twin runs, where two at a time would be too many. A signal handler may come back to it."""

_ORDER = (
    # Whoever holds one of these may ask for those after it.
    state,
    launch,
    global_compiler_lock,
    numba.np.ufunc.parallel._backend_init_thread_lock,
    llvmlite.binding.ffi.lib._lock,
)

_held = contextlib.ExitStack()


def _before_fork() -> None:
    for lock in _ORDER:
        _held.enter_context(lock)


def _after_fork_in_child() -> None:
    """Give the locks back, and let Numba make a new one in the place of that which parent and child share.

    A thread of the parent may hold that one. To the child's copy it looks as if the child held it, so that the child
    could take it but would never give it back, and the parent's next launch would wait for ever.
    """
    numba.np.ufunc.parallel._backend_init_process_lock = None
    _held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_held.close, after_in_child=_after_fork_in_child)
