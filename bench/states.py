"""In which state the tensors are that a call finds: what the caches and the memory know of them.

*Hot*: every call works on the same tensors and writes to the same memory, one call right after the other. Caches hold
what they can, every page has been touched, threads are awake. That is what kernels are tuned on.

*Cold*: what a network offers. Every call works on other tensors than the call before, its results go to new memory,
and the threads may have gone to sleep since the last call.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from bench.cases import Case, Work

RING = 160_000_000
"""Bytes of all ``x`` of a ring: several times the last-level cache that one process can hope for."""

PAUSE = 0.002
"""Seconds before each cold call, as long as an operation between two batch normalizations may take."""

M_MMAP_THRESHOLD = -3
"""What ``mallopt`` calls the bytes from which on ``malloc`` maps memory; the number is that of ``malloc.h``."""

MAPPED = 1 << 17
"""Its value when a process starts."""


class Hot:
    """One case for all calls."""

    mode: ClassVar = "hot"
    pause = 0.0

    def __init__(self, case: Case) -> None:
        self.cases: Sequence[Case] = [case]

    def work(self, make: Callable[[Case], Work]) -> Work:
        """What ``make`` gives for the case."""
        return make(self.cases[0])

    def call(self, calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
        """The one call for the case."""
        return calls[0]

    def rest(self) -> None:
        """The next call follows at once."""


class Cold:
    """A ring of cases, and the results of the calls.

    All libraries share one position on the ring: whoever calls next gets the next case. Results are kept until there
    is one for each case, and then all go at once, as at the end of a training step. Their memory goes back to the
    system, and the first touch of every page of a result is a page fault.
    """

    mode: ClassVar = "cold"

    def __init__(self, case: Case, pause: float = PAUSE) -> None:
        map_each_array()
        self.cases: Sequence[Case] = [case.in_new_memory() for _ in range(max(2, math.ceil(RING / case.x.nbytes)))]
        self.results: list[Any] = []
        self.pause = pause
        self._positions = itertools.cycle(range(len(self.cases)))

    def work(self, make: Callable[[Case], Work]) -> Work:
        """The work of whichever case is next."""
        works = [make(case) for case in self.cases]
        return Work(self.call([work.run for work in works]), lambda done: works[done[0]].read(done[1]))

    def call(self, calls: Sequence[Callable[[], Any]]) -> Callable[[], tuple[int, Any]]:
        """What makes the call for whichever case is next; gives the position and the result."""

        def run() -> tuple[int, Any]:
            position = next(self._positions)
            result = calls[position]()
            self.results.append(result)
            return position, result

        return run

    def rest(self) -> None:
        """Let the results go if there is one for each case, and let the threads fall asleep."""
        if len(self.results) >= len(self.cases):
            self.results.clear()
        time.sleep(self.pause)


def map_each_array() -> None:
    """Give each array pages of its own, for the rest of the process, where the C library is GNU's.

    That is what its ``malloc`` does with large arrays until the first of them is freed. From then on it may keep memory
    on a heap, which has been touched or not, and is on the huge pages for which NumPy has asked or not, by what any
    library was given there before.
    """
    if os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)


State: TypeAlias = Hot | Cold
