"""Running statistics: the update rule, and writing several arrays all at once or not at all."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np

from fastbn._layout import contiguous
from fastbn._typing import Array, Float64Array
from fastbn.kernels.coefficients import weighted_mean

Assignment: TypeAlias = tuple[Array, Any]
"""An array, and the values that it is to hold."""


def running_update(
    running_mean: Array,
    running_var: Array,
    mean: Float64Array,
    var: Float64Array,
    *,
    count: int,
    momentum: float,
    correction: float,
) -> list[Assignment]:
    """What the running arrays become: ``(1 - momentum) * running + momentum * batch``.

    The batch's variance is divided by ``count - correction`` instead of ``count``. Computed in float64, stored in the
    dtype of the running arrays.
    """
    new = np.empty_like(running_mean), np.empty_like(running_var)
    weighted_mean(contiguous(running_mean), mean, momentum, 1.0, new[0])
    weighted_mean(contiguous(running_var), var, momentum, count / (count - correction), new[1])
    return [(running_mean, new[0]), (running_var, new[1])]


def assign_together(assignments: Sequence[Assignment]) -> None:
    """Write all values, or on any exception, a signal's ``KeyboardInterrupt`` included, leave all as they were."""
    targets = [target for target, _ in assignments]
    before = [target.copy() for target in targets]
    try:
        _copy_each(targets, [values for _, values in assignments])
    except BaseException:
        _copy_each(targets, before)
        raise


def _copy_each(targets: Sequence[Array], values: Sequence[Any]) -> None:
    """``target[...] = values`` for each, with no chance for a signal handler in between.

    Python runs handlers between bytecodes, and there are none here: loop and assignment are C. ``np.copyto`` would not
    do, as it begins in Python.
    """
    assign: Any = operator.setitem  # its overloads know no arrays
    deque(map(assign, targets, repeat(...), values), maxlen=0)
