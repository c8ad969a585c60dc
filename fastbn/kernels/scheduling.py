"""Which thread does which task: each its own share, and then what the others have left of theirs.

Numba gives each thread the same number of tasks, and a parallel loop is as slow as the slowest thread. Cores are not
alike, though: a neighbour uses one of them, or its caches, a thread is still asleep when the loop begins, some cores
are slower by design. So the tasks of a ``prange`` over workers are taken one by one. A worker goes through its share
from the first to the last, in the memory's order and, in the next pass, on the core that has seen it; who has done its
share takes the last ones of another's. Which thread does a task changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastbn._typing import Address, Int64Array
from fastbn.kernels.addresses import LINE, data, instruction, part
from fastbn.kernels.jit import inner

COUNTER = LINE // 8  # numbers from one counter to the next, each on a line of its own
LAST = 1 << 32  # a counter's upper half counts tasks that were taken from the end, its lower half those from the start


def _add(x: Any, i: int, value: int) -> int:
    cell = part(x, i, 1)
    before = int(cell[0])
    cell += value
    return before


@instruction(_add)
def fetch_add(typingctx: Any, x: Any, i: Any, value: Any) -> Any:
    """Add to ``x[i]``, an integer, in one step that no thread can come between; what it was before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "monotonic")

    return x.dtype(x, types.intp, x.dtype), codegen


@instruction(lambda: 2)
def num_threads(typingctx: Any) -> Any:
    """How many threads Numba runs a ``prange`` on; for parallel twins alone, as it must be there. Interpreted, two."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(context.get_value_type(types.intp), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "get_num_threads"), [])

    return types.intp(), codegen


@inner
def one_share(tasks: int) -> tuple[int]:
    """All tasks for one worker."""
    return (0,)


@inner
def all_tasks(shares: tuple[int], tasks: int, worker: int) -> range:
    """In order."""
    return range(tasks)


@inner
def counters(workers: int) -> Int64Array:
    """A row for the share of each worker, of which nothing is taken."""
    shares = np.empty((workers, COUNTER), np.int64)
    for worker in range(workers):
        shares[worker, 0] = 0
    return shares


@inner
def deal(tasks: int) -> Int64Array:
    """Give each thread a share of the tasks, or each task a worker if there are fewer."""
    return counters(min(tasks, num_threads()))


@inner
def take(shares: Address, workers: int, tasks: int, worker: int) -> int:
    """The next task of a worker; -1 if there is none left."""
    for k in range(workers):
        owner = (worker + k) % workers
        start = tasks * owner // workers
        size = tasks * (owner + 1) // workers - start
        taken = fetch_add(shares, owner * COUNTER, LAST if k else 1)
        first, last = taken % LAST, taken // LAST
        if first + last < size:
            return start + (size - 1 - last if k else first)
    return -1


@inner
def turns(shares: Int64Array, tasks: int, worker: int) -> Iterator[int]:
    """The tasks that a worker does."""
    own: Any = np.int64(worker)  # unsigned in the loop of a parallel twin, for which all would be compiled once more
    task = take(data(shares), len(shares), tasks, own)
    while task >= 0:
        yield task
        task = take(data(shares), len(shares), tasks, own)
