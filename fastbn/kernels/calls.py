"""Whole calls: one compiled function checks the Python objects it is given and does all the work.

Each returns ``True`` when it is done, or ``False``, with nothing written, where anything is out of the ordinary: the
general way then refuses it with a message, or handles what is rare (lists, other strides). What is taken here may be
less than what is taken there, but never more. The work is done by the kernels themselves: the same bits.

The tables hold an entry for each dtype, twin and module of kernels; ``WAY`` finds that of a tensor. Each has a copy of
the function (see ``whole``) in which ``_kernel`` and its like are bound: with the kernels of both modules an entry
would take two seconds longer to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fastbn._typing import Shape3
from fastbn.kernels import channels_first, channels_last, threads, whole
from fastbn.kernels.arguments import shape_of, size_of
from fastbn.kernels.families import by_columns
from fastbn.kernels.jit import Entries, inner, with_globals
from fastbn.kernels.objects import KNOWN, index, is_none, kind_of
from fastbn.kernels.tiles import matrix_of

LARGE = 2
"""The bit of an entry that runs on threads; the one before it in the table does without."""


def _way(x: Any, axis: Any, channels: Any, passes: Any) -> int:
    """The entry for ``x``, with so many channels if that is not ``None``; -1 for the general way.

    ``passes`` is 2 for training and 1 for inference (see ``threads``).
    """
    kind = kind_of(x)
    if not kind:
        return -1
    shape = shape_of(x, index(axis), 4 * kind)
    size = size_of(shape)
    if not size or not (is_none(channels) or index(channels) == shape[1]):
        return -1
    large = LARGE if threads.pay(shape, index(passes)) else 0
    return 4 * (kind - 1) + large + (1 if by_columns(shape, index(passes)) else 0)


@inner
def _as_it_is(shape: Shape3) -> Shape3:
    return shape


def _entries(function: Callable[..., bool], kernel: str) -> Entries:
    """A table of a function with this kernel's twins in both modules."""
    layouts: Any = ((channels_first, _as_it_is, False), (channels_last, matrix_of, True))
    bound = []
    for twin in ("serial", "parallel"):
        for module, kernel_shape, columns in layouts:
            name = f"{function.__name__}_by_{kernel}_{module.__name__.rpartition('.')[2]}_{twin}"
            values = {
                "_kernel": getattr(module, kernel).linked[twin],
                "_kernel_shape": kernel_shape,
                "_columns": columns,
            }
            bound.append(with_globals(function, name, values))
    return Entries(*bound)


WAY = Entries(_way, dtypes=(np.float32,))
FORWARD, BACKWARD = _entries(whole.forward, "forward"), _entries(whole.backward, "backward")
FORWARD_IN_PHASES = _entries(whole.forward, "forward_in_phases")
BACKWARD_IN_PHASES = _entries(whole.backward, "backward_in_phases")
INFERENCE, SCALE = _entries(whole.inference, "normalize"), _entries(whole.scale, "normalize")
UPDATE = Entries(whole.update)  # by the dtype of the running arrays
if not KNOWN:  # everything goes the general way
    WAY[:] = [lambda *_: -1]
if not KNOWN or numba.config.DISABLE_JIT:  # interpreted, an update could be interrupted
    UPDATE[:] = [lambda *_: False] * len(UPDATE)
