"""What is given per channel, of either dtype, as whole calls read and write it (see ``calls``)."""

from __future__ import annotations

import numpy as np

from fastbn._typing import Array, Float64Array, Object
from fastbn.kernels.addresses import empty
from fastbn.kernels.jit import inner
from fastbn.kernels.objects import doubles, flat, floats, is_expected, is_none, kind_of


@inner
def _copy(values: Array, target: Array) -> None:
    """Write values into an array of as many, of either dtype."""
    for c in range(values.size):
        target[c] = values[c]


@inner
def read(a: Object, default: float, values: Float64Array) -> None:
    """What is given per channel, of either dtype, or the default where it is ``None``."""
    channels = values.size
    kind = kind_of(a)
    if kind == 1:
        _copy(floats(a, 0, channels), values)
    elif kind == 2:
        _copy(doubles(a, 0, channels), values)
    else:
        for c in range(channels):
            values[c] = default


@inner
def parameter(a: Object, channels: int, default: float) -> Float64Array:
    """The same in an array of its own."""
    values = empty((channels,), np.float64)
    read(a, default, values)
    return values


@inner
def round_to(target: Object, values: Float64Array) -> None:
    """Write values into an array of either dtype, unless it is ``None``."""
    kind = kind_of(target)
    if kind == 1:
        _copy(values, floats(target, 0, values.size))
    elif kind == 2:
        _copy(values, doubles(target, 0, values.size))


@inner
def is_usual(a: Object) -> bool:
    """Whether it is ``None`` or has the dtype that is expected."""
    return is_none(a) or is_expected(a)


@inner
def given_or(a: Object, x: Object, channels: int, default: float) -> Array:
    """A parameter as it is, or the default in the dtype of ``x``."""
    if not is_none(a):
        return flat(a, 0, channels)
    values = empty((channels,), flat(x, 0, 1).dtype)
    for c in range(channels):
        values[c] = default
    return values
