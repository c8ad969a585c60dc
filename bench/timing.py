"""Timing that a noisy machine cannot spoil much: competitors take turns in one process, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WARM = 0.02
"""Seconds of a turn that do not count, one call at the least.

Each library has a thread pool of its own, which after its work goes on spinning for up to 10 ms (GNU OpenMP) on the
cores that the next library wants; and the next one's threads have to wake and its data to come back to the caches.
"""

COUNT = 0.02
"""Seconds of a turn that count, one call at the least."""


def alternate(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, rest: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median seconds of each call, over ``rounds`` turns each; ``rest`` runs before each call and is not timed."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _turn(call, WARM, rest)
            times[name] += _turn(call, COUNT, rest)
    return {name: median(values) for name, values in times.items()}


def _turn(call: Callable[[], Any], seconds: float, rest: Callable[[], None]) -> list[float]:
    """Call again and again for so many seconds; the seconds of each call."""
    times: list[float] = []
    after = start = time.perf_counter()
    while after < start + seconds:
        rest()
        before = time.perf_counter()
        call()
        after = time.perf_counter()
        times.append(after - before)
    return times


def median(values: Sequence[float]) -> float:
    """What half of the turns stayed below."""
    return statistics.median(values)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return statistics.geometric_mean(values)
