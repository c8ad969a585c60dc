"""Running statistics: the update rule, and writing several arrays all at once or not at all."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np

from fastbn._layout import contiguous
from fastbn._typing import Array, Float64Array
from fastbn.kernels import calls, locks
from fastbn.kernels.coefficients import weighted_mean

Assignment: TypeAlias = tuple[Array, Any]
"""An array, and the values that it is to hold."""

_PIECE = 256
"""Values; NumPy gives the interpreter's lock away for more than 500."""

Batch: TypeAlias = tuple[Array, Array, Float64Array, Array, float, float]
"""The first arguments of ``update``."""


def update(
    running_mean: Array,
    running_var: Array,
    statistics: Float64Array,
    x: Array,
    momentum: float,
    correction: float,
    counter: Array | None = None,
    cumulative: bool = False,
) -> None:
    """``running = (1 - momentum) * running + momentum * batch``, and a step of the counter; all or nothing.

    ``statistics`` has the rows mean, ``inv_std`` and variance; the variance is divided by ``count - correction``
    instead of ``count``. In place of ``momentum`` a cumulative average has ``1 / counter``. Computed in float64, stored
    in the dtype of the running arrays. Ordinary arrays are written by one compiled call, in which no signal handler and
    no other thread runs. The caller holds ``locks.state``.
    """
    if cumulative:
        assert counter is not None
        momentum = 1.0 / (int(counter) + 1)
    if calls.UPDATE[running_mean.itemsize // 8](
        running_mean, running_var, statistics, x, momentum, correction, counter
    ):
        return
    mean, _, var = statistics
    count = x.size // mean.size
    assignments = [
        (running_mean, _weighted(running_mean, mean, momentum, 1.0)),
        (running_var, _weighted(running_var, var, momentum, count / (count - correction))),
    ]
    if counter is not None:
        assignments.append((counter, counter + 1))
    assign_together(assignments)


def _weighted(running: Array, batch: Float64Array, momentum: float, factor: float) -> Array:
    new = np.empty_like(running)
    weighted_mean(contiguous(running), batch, momentum, factor, new)
    return new


def assign_together(assignments: Iterable[Assignment]) -> None:
    """Write all values, or on any exception, a signal's ``KeyboardInterrupt`` included, leave all as they were.

    For other threads, too, all change at once.
    """
    pairs = [(target.reshape(-1), np.broadcast_to(values, target.shape).reshape(-1)) for target, values in assignments]
    with np.errstate(all="ignore"):  # out of range is infinite or zero, whatever the user's error state
        new = [values.astype(target.dtype) for target, values in pairs]
    with locks.state:
        targets = [target for target, _ in pairs]
        before = [target.copy() for target in targets]
        try:
            _copy_each(targets, new)
        except BaseException:
            _copy_each(targets, before)
            raise


def _copy_each(targets: Sequence[Array], values: Sequence[Array]) -> None:
    """``target[:] = values`` for each, with no chance for a signal handler or another thread in between.

    Python runs these between bytecodes, and there are none here: loop and assignment are C. ``np.copyto`` would not do,
    as it begins in Python.
    """
    assign: Any = operator.setitem  # its overloads know no arrays
    deque(map(assign, _pieces(targets), repeat(...), _pieces(values)), maxlen=0)


def _pieces(arrays: Sequence[Array]) -> list[Array]:
    """Views so short that NumPy does not let other threads run while it copies one."""
    return [array[i : i + _PIECE] for array in arrays for i in range(0, array.size, _PIECE)]


def snapshot(*arrays: Array | None) -> list[Any]:
    """Copies of arrays that belong together, as they are at one moment."""
    with locks.state:
        return list(map(_copy, arrays))


def _copy(array: Array | None) -> Array | None:
    return None if array is None else array.copy()
