"""How long it takes until one core hears of what another has written.

On a virtual machine that changes from one minute to the next, by a factor of three or more, and what threads share then
takes longer, their start and their end, too: figures of small tensors are to be read with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from fastbn._typing import Int64Array
from fastbn.kernels.addresses import data
from fastbn.kernels.jit import threads_usable
from fastbn.kernels.scheduling import fetch, fetch_add
from fastbn.kernels.twins import kernel

PASSES = 200
"""From one thread to the other, and as many times back, in one call."""

PATIENCE = 1 << 20
"""Questions of a call after which nobody is expected to answer: there may be one thread for both."""


@kernel
def pass_on(count: Int64Array, passes: int) -> None:
    """Two threads add 1 to ``count`` in turns, each when it sees that the other has."""
    for worker in numba.prange(2):
        patience = PATIENCE
        for i in range(passes):
            while fetch(data(count), 0) != 2 * i + worker and patience > 0:
                patience -= 1
            if patience > 0:
                fetch_add(data(count), 0, 1)


def call() -> Callable[[], None] | None:
    """What takes ``2 * PASSES`` handovers, and the start of the threads; ``None`` where there is one thread."""
    if not threads_usable():
        return None
    count = np.zeros(1, np.int64)

    def run() -> None:
        count[0] = 0
        pass_on(True, count, PASSES)

    return run
