"""Which thread does which task: each its own share, and then what the others have left of theirs.

Numba gives each thread the same number of tasks, and a parallel loop is as slow as the slowest thread. Cores are not
alike, though: a neighbour uses one of them, or its caches, a thread is still asleep when the loop begins, some cores
are slower by design. So the tasks of a ``prange`` over workers are taken one by one. A worker goes through its share
from the first to the last, in the memory's order and, in the next pass, on the core that has seen it; who has done its
share takes the last ones of another's. Which thread does a task changes no bit.

Starting the threads and waiting for their end takes 2 to 4 us, so a kernel does it once: it has *phases*, of which one
begins when all tasks of the one before are done (``meet``). Only a task that a thread is at work on is waited for, what
nobody has begun the waiting thread would have taken: so it is no matter whether the workers run at the same time, or
how many of them there are.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastbn._typing import Address, Int64Array
from fastbn.kernels.addresses import LINE, data, empty, instruction, part
from fastbn.kernels.jit import inner
from fastbn.kernels.shares import goes_back

COUNTERS = 2 * LINE // 8  # numbers of a worker's share in a phase: two counters, each on a line of its own,
TAKEN = 0  # of its tasks that were taken,
DONE = LINE // 8  # and, with the first worker's share, of all tasks that are done
PATIENCE = 1000  # pauses of some 15 to 50 ns, before another thread is given this core
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
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "acq_rel")

    return x.dtype(x, types.intp, x.dtype), codegen


@instruction(lambda x, i: int(part(x, i, 1)[0]))
def fetch(typingctx: Any, x: Any, i: Any) -> Any:
    """``x[i]``, an integer, as other threads have left it; what they wrote before is there, too."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "acquire", x.dtype.bitwidth // 8)

    return x.dtype(x, types.intp), codegen


@instruction(lambda: None)
def pause(typingctx: Any) -> Any:
    """Leave the core to whoever shares it for an instant, where a processor knows how."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), codegen


@instruction(lambda: None)
def give_way(typingctx: Any) -> Any:
    """Let another thread run, if there is one that waits for this core."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@instruction(lambda worker: worker)
def signed(typingctx: Any, worker: Any) -> Any:
    """The variable of a ``prange``: Numba takes it for signed, then for unsigned, and would compile ``turns`` twice."""
    return types.int64(worker), lambda context, builder, sig, args: args[0]


@instruction(lambda: 2)
def num_threads(typingctx: Any) -> Any:
    """How many threads Numba runs a ``prange`` on; for parallel twins alone, as it must be there. Interpreted, two."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(context.get_value_type(types.intp), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "get_num_threads"), [])

    return types.intp(), codegen


@inner
def one_share(phases: int, tasks: int) -> tuple[tuple[int], tuple[int], tuple[int]]:
    """All tasks of each phase for one worker."""
    return (0,), (0,), (0,)


@inner
def all_tasks(shares: tuple[int], tasks: int, worker: int) -> range:
    """In order."""
    return range(tasks)


@inner
def go_on(shares: tuple[int], tasks: int) -> None:
    """Nobody is waited for."""


@inner
def counters(phases: int, workers: int) -> Int64Array:
    """A row for the share of each worker in each phase, of which nothing is taken and nothing done."""
    shares = empty((phases, workers, COUNTERS), np.int64)
    for phase in range(phases):
        for worker in range(workers):
            shares[phase, worker, TAKEN] = 0
            shares[phase, worker, DONE] = 0
    return shares


@inner
def deal(phases: int, tasks: int) -> Int64Array:
    """Shares of so many tasks, at the most, in each phase: one for each thread, or each task if there are fewer."""
    return counters(phases, min(tasks, num_threads()))


@inner
def _taken(counter: int) -> tuple[int, int]:
    """How many tasks of a share were taken from its start, and from its end."""
    return counter % LAST, counter // LAST


@inner
def share_of(worker: int, workers: int, tasks: int) -> tuple[int, int]:
    """The tasks of a worker, ``start`` to ``stop``."""
    return tasks * worker // workers, tasks * (worker + 1) // workers


@inner
def take(shares: Address, workers: int, tasks: int, worker: int) -> int:
    """The next task of a worker; -1 if there is none left.

    Whether there is any in another's share is looked at first: what is only read, all may have at the same time.
    """
    for k in range(workers):
        owner = (worker + k) % workers
        start, stop = share_of(owner, workers, tasks)
        size = stop - start
        place = owner * COUNTERS + TAKEN
        if k:
            first, last = _taken(fetch(shares, place))
            if first + last >= size:
                continue
        first, last = _taken(fetch_add(shares, place, LAST if k else 1))
        if first + last < size:
            return start + (size - 1 - last if k else first)
    return -1


@inner
def turns(shares: Int64Array, tasks: int, worker: int) -> Iterator[int]:
    """The tasks of a phase that a worker does."""
    done = 0
    task = take(data(shares), len(shares), tasks, worker)
    while task >= 0:
        yield task
        done += 1
        task = take(data(shares), len(shares), tasks, worker)
    fetch_add(data(shares), DONE, done)


@inner
def mirrored(task: int, tasks: int, workers: int) -> int:
    """The task that is as far from the end of a worker's share as this one is from its start."""
    owner = ((task + 1) * workers - 1) // tasks
    start, stop = share_of(owner, workers, tasks)
    return start + stop - 1 - task


@inner
def second_task(turn: int, tasks: int, workers: int, values: int) -> int:
    """Which task a second pass over so many values does at a turn of ``turns``: ``mirrored`` if it ``goes_back``."""
    return mirrored(turn, tasks, workers) if goes_back(values) else turn


@inner
def meet(shares: Int64Array, tasks: int) -> None:
    """Wait until all tasks of a phase are done.

    Whoever is waited for may need this core, where there are more threads than cores.
    """
    patience = PATIENCE
    while fetch(data(shares), DONE) < tasks:
        if patience > 0:
            pause()
            patience -= 1
        else:
            give_way()
