"""How many tasks there are, so that threads have equal shares of them; by the shape alone, as everything in a plan."""

from __future__ import annotations

from fastbn.kernels.jit import inner, shared
from fastbn.kernels.processor import FAR_CACHE
from fastbn.kernels.registers import WIDEST_DOUBLES

CHANNELS = 2 * WIDEST_DOUBLES  # of a task that does what there is to do for a channel and not for each of its values

BACK = 1 << 23  # values up to which a second pass goes from the last task to the first, where the last-level cache is
# far: it begins with what the second-level cache still has. On two cores of an Emerald Rapids, in turns, forward of
# channels last took 0.94 to 0.99 of the time and backward 0.85 to 1.01, of 51 to 103 MB 0.99 to 1.04. Elsewhere it
# gained nothing.


@shared
def goes_back(values: int) -> bool:
    """Whether a second pass over a tensor of so many values begins where the first one ends."""
    return FAR_CACHE and values <= BACK


@shared
def even(tasks: int) -> int:
    """So many tasks or one less, an even number, if there is more than one."""
    return max(1, tasks - tasks % 2)


@shared
def even_or_more(tasks: int, most: int) -> int:
    """So many tasks or one more, an even number, and at most ``most``."""
    return min(most, tasks + tasks % 2)


@shared
def equal(tasks: int, most: int) -> int:
    """So many tasks, or some more, that 2, 4, 8 and 16 threads have equal shares, as far as there are enough.

    13 groups of 5 channels, seven of them one thread's, took 1.1 times as long as 16 of 4.
    """
    if tasks > 8:
        return min(most, -(-tasks // 16) * 16)
    more = 2
    while more < tasks:
        more *= 2
    return min(most, more)


@inner
def channel_tasks(channels: int) -> int:
    """Tasks of ``CHANNELS`` channels."""
    return -(-channels // CHANNELS)


@inner
def channels_of(channels: int, task: int) -> tuple[int, int]:
    """Those of such a task, ``left`` to ``right``."""
    return task * CHANNELS, min(channels, (task + 1) * CHANNELS)
