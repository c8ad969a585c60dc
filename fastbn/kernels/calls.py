"""Whole calls: one compiled function checks the Python objects it is given and does all the work.

Each returns ``True`` when it is done, or ``False``, with nothing written, where anything is out of the ordinary: the
general way then refuses it with a message, or handles what is rare (lists, other strides). What is taken here may be
less than what is taken there, but never more. The work is done by the kernels themselves: the same bits.

The tables hold an entry for each dtype, twin and module of kernels; ``WAY`` finds that of a tensor. Each has a copy of
the function in which ``_kernel`` and its like are bound: with the kernels of both modules an entry would take two
seconds longer to compile. The last two arguments come from the plan and are 1 and 0 where there are no threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fastbn._typing import Array, Float64Array, Int64Array, Object, Shape3
from fastbn.kernels import channels_first, channels_last, coefficients, threads
from fastbn.kernels.arguments import (
    apart,
    is_like,
    is_parameter,
    is_running,
    is_vector,
    no_variance_below,
    same_or_apart,
    shape_of,
    shape_of_both,
    size_of,
)
from fastbn.kernels.groups import NARROW
from fastbn.kernels.jit import Entries, inner, with_globals
from fastbn.kernels.objects import (
    KNOWN,
    WRITEABLE,
    acquire,
    dim,
    doubles,
    flat,
    floats,
    index,
    is_expected,
    is_none,
    kind_of,
    ndim,
    number,
    release,
)
from fastbn.kernels.tiles import matrix_of

LARGE = 2
"""The bit of an entry that runs on threads; the one before it in the table does without."""

_kernel: Any = None
_kernel_shape: Any = None  # from (outer, channels, inner) to what the kernel takes for its shape
_narrow = False  # whether it takes short rows
_affine_of_var, _weighted_mean = coefficients.affine_of_var, coefficients.weighted_mean


@inner
def _run(kernel: Any, arguments: Any, size: int) -> None:
    """Run a kernel, without the interpreter's lock if that pays for so many values."""
    failed = False
    state = release(size)
    try:
        kernel(*arguments)
    except Exception:  # all that a kernel can raise
        failed = True
    acquire(state)
    if failed:
        raise MemoryError


@inner
def _copy(values: Array, target: Array) -> None:
    """Write values into an array of as many, of either dtype."""
    for c in range(values.size):
        target[c] = values[c]


@inner
def _read(a: Object, default: float, values: Float64Array) -> None:
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
def _parameter(a: Object, channels: int, default: float) -> Float64Array:
    """The same in an array of its own."""
    values = np.empty(channels)
    _read(a, default, values)
    return values


@inner
def _shape_to_train(
    x: Object,
    axis: Object,
    gamma: Object,
    beta: Object,
    running_mean: Object,
    running_var: Object,
    momentum: Object,
    eps: Object,
    correction: Object,
    out: Object,
) -> Shape3:
    """The shape of ``x``; zeros if anything is not taken."""
    shape = shape_of_both(x, axis, out)
    outer, channels, inner = shape
    size, count = size_of(shape), outer * inner
    if not (count > 1 and apart(out, size, x, size)):
        return 0, 0, 0
    if not (is_parameter(gamma, channels, out, size) and is_parameter(beta, channels, out, size)):
        return 0, 0, 0
    if not (0.0 <= number(momentum) <= 1.0 and 0.0 < number(eps) < np.inf and 0.0 <= number(correction) < np.inf):
        return 0, 0, 0
    if is_none(running_mean) and is_none(running_var):
        return shape
    if (
        is_running(running_mean, channels, x, out, size, gamma, beta)
        and is_running(running_var, channels, x, out, size, gamma, beta)
        and apart(running_mean, channels, running_var, channels)
        and no_variance_below(_parameter(running_var, channels, 0.0), -number(eps))
        and number(correction) < count
    ):
        return shape
    return 0, 0, 0


def _forward(
    x: Object,
    axis: Object,
    gamma: Object,
    beta: Object,
    running_mean: Object,
    running_var: Object,
    momentum: Object,
    eps: Object,
    correction: Object,
    out: Object,
    statistics: Float64Array,
    segments: Object,
    streaming: Object,
) -> bool:
    """Training: write ``out``, and the rows of ``statistics``, mean, ``inv_std`` and variance.

    Running arrays are only checked.
    """
    shape = _shape_to_train(x, axis, gamma, beta, running_mean, running_var, momentum, eps, correction, out)
    size, channels = size_of(shape), shape[1]
    if not size or (shape[2] < NARROW) != _narrow:
        return False
    options = _kernel_shape(shape), index(segments), number(eps), index(streaming) == 1
    parameters = _parameter(gamma, channels, 1.0), _parameter(beta, channels, 0.0)  # before others may change them
    arguments = (
        flat(x, 0, size),
        options[0],
        options[1],
        options[2],
        parameters[0],
        parameters[1],
        flat(out, 0, size),
        flat(statistics, 0, channels),
        flat(statistics, 2 * channels, channels),
        flat(statistics, channels, channels),
        options[3],
    )
    _run(_kernel, arguments, size)
    return True


@inner
def _shape_to_differentiate(
    dout: Object,
    x: Object,
    axis: Object,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Object,
    dx: Object,
    dgamma: Object,
    dbeta: Object,
) -> Shape3:
    """The shape of ``x``; zeros if anything is not taken. ``dx`` may be ``dout``."""
    shape = shape_of_both(x, axis, dx)
    size, channels = size_of(shape), shape[1]
    if not (
        size
        and is_like(dout, x)
        and apart(dx, size, x, size)
        and same_or_apart(dx, dout, size)
        and is_parameter(gamma, channels, dx, size)
        and is_expected(mean)
        and is_vector(mean, channels, 0)
        and is_expected(inv_std)
        and is_vector(inv_std, channels, 0)
        and (is_none(dgamma) or is_vector(dgamma, channels, WRITEABLE))
        and (is_none(dbeta) or is_vector(dbeta, channels, WRITEABLE))
    ):
        return 0, 0, 0
    return shape


@inner
def _round_to(target: Object, values: Float64Array) -> None:
    """Write values into an array of either dtype, unless it is ``None``."""
    kind = kind_of(target)
    if kind == 1:
        _copy(values, floats(target, 0, values.size))
    elif kind == 2:
        _copy(values, doubles(target, 0, values.size))


def _backward(
    dout: Object,
    x: Object,
    axis: Object,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Object,
    dx: Object,
    dgamma: Object,
    dbeta: Object,
    segments: Object,
    streaming: Object,
) -> bool:
    """Gradients of training; ``dgamma`` and ``dbeta`` may be ``None``, ``dx`` may be ``dout``."""
    shape = _shape_to_differentiate(dout, x, axis, mean, inv_std, gamma, dx, dgamma, dbeta)
    size, channels = size_of(shape), shape[1]
    if not size or (shape[2] < NARROW) != _narrow:
        return False
    options = _kernel_shape(shape), index(segments), index(streaming) == 1
    sum_dout, sum_dout_xhat = np.empty(channels), np.empty(channels)
    scale = _parameter(gamma, channels, 1.0)
    arguments = (
        flat(dout, 0, size),
        flat(x, 0, size),
        options[0],
        options[1],
        flat(mean, 0, channels),
        flat(inv_std, 0, channels),
        scale,
        sum_dout,
        sum_dout_xhat,
        flat(dx, 0, size),
        options[2],
    )
    _run(_kernel, arguments, size)
    _round_to(dbeta, sum_dout)
    _round_to(dgamma, sum_dout_xhat)
    return True


@inner
def _is_usual(a: Object) -> bool:
    """Whether it is ``None`` or has the dtype that is expected."""
    return is_none(a) or is_expected(a)


@inner
def _given_or(a: Object, x: Object, channels: int, default: float) -> Array:
    """A parameter as it is, or the default in the dtype of ``x``."""
    if not is_none(a):
        return flat(a, 0, channels)
    values = np.empty(channels, flat(x, 0, 1).dtype)
    for c in range(channels):
        values[c] = default
    return values


def _inference(
    x: Object,
    axis: Object,
    mean: Object,
    var: Object,
    gamma: Object,
    beta: Object,
    eps: Object,
    out: Object,
    statistics: Float64Array,
    segments: Object,  # noqa: ARG001 - as the others
    streaming: Object,
) -> bool:
    """Normalise with given statistics; mean and ``inv_std`` into the rows of ``statistics``. ``out`` may be ``x``."""
    shape = shape_of_both(x, axis, out)
    size, channels = size_of(shape), shape[1]
    if not (
        size
        and (shape[2] < NARROW) == _narrow
        and same_or_apart(out, x, size)
        and 0.0 <= number(eps) < np.inf
        and is_parameter(gamma, channels, out, size)
        and is_parameter(beta, channels, out, size)
        and is_vector(mean, channels, 0)
        and is_vector(var, channels, 0)
        and apart(out, size, mean, channels)
        and apart(out, size, var, channels)
    ):
        return False
    values = np.empty((3, channels), flat(x, 0, size).dtype)
    mean64, inv_std = flat(statistics, 0, channels), flat(statistics, channels, channels)
    if is_expected(mean) and is_expected(var) and _is_usual(gamma) and _is_usual(beta):
        given = flat(mean, 0, channels), flat(var, 0, channels)
        scale, shift = _given_or(gamma, x, channels, 1.0), _given_or(beta, x, channels, 0.0)
        least = _affine_of_var(given[0], given[1], number(eps), scale, shift, mean64, inv_std, values)
    else:  # for all, this would take 0.15 us longer, for 2048 channels 1.6
        _read(mean, 0.0, mean64)
        var64 = _parameter(var, channels, 0.0)
        scale64, shift64 = _parameter(gamma, channels, 1.0), _parameter(beta, channels, 0.0)
        least = _affine_of_var(mean64, var64, number(eps), scale64, shift64, mean64, inv_std, values)
    if least < -number(eps):
        return False
    options = _kernel_shape(shape), index(streaming) == 1
    _run(_kernel, (flat(x, 0, size), options[0], values, flat(out, 0, size), options[1]), size)
    return True


def _scale(
    x: Object,
    axis: Object,
    coefficients: Object,
    out: Object,
    segments: Object,  # noqa: ARG001 - as the others
    streaming: Object,
) -> bool:
    """Normalise with coefficients, (3, C); ``out`` may be ``x``."""
    shape = shape_of_both(x, axis, out)
    size = size_of(shape)
    if not size or (shape[2] < NARROW) != _narrow or not same_or_apart(out, x, size):
        return False
    values = flat(coefficients, 0, 3 * shape[1]).reshape((3, shape[1]))
    options = _kernel_shape(shape), index(streaming) == 1
    _run(_kernel, (flat(x, 0, size), options[0], values, flat(out, 0, size), options[1]), size)
    return True


def _update(
    running_mean: Object,
    running_var: Object,
    statistics: Float64Array,
    x: Object,
    momentum: Object,
    correction: Object,
    counter: Int64Array,
) -> bool:
    """Update running arrays in place, and add 1 to a counter that is not ``None``. ``x`` is that of the batch."""
    channels = dim(statistics, 1)
    if not (
        is_expected(running_mean)
        and is_vector(running_mean, channels, WRITEABLE)
        and is_expected(running_var)
        and is_vector(running_var, channels, WRITEABLE)
    ):
        return False
    size = 1
    for i in range(ndim(x)):
        size *= dim(x, i)
    count = np.float64(size // channels)
    factor = count / (count - number(correction))
    mean, var = flat(running_mean, 0, channels), flat(running_var, 0, channels)
    _weighted_mean(mean, flat(statistics, 0, channels), number(momentum), 1.0, mean)
    _weighted_mean(var, flat(statistics, 2 * channels, channels), number(momentum), factor, var)
    if not is_none(counter):
        flat(counter, 0, 1)[0] += 1
    return True


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
    return 4 * (kind - 1) + (LARGE if threads.pay(shape, index(passes)) else 0) + (1 if shape[2] < NARROW else 0)


@inner
def _as_it_is(shape: Shape3) -> Shape3:
    return shape


def _entries(function: Callable[..., bool], kernel: str) -> Entries:
    """A table of a function with this kernel's twins in both modules."""
    layouts: Any = ((channels_first, _as_it_is, False), (channels_last, matrix_of, True))
    bound = []
    for twin in ("serial", "parallel"):
        for module, kernel_shape, narrow in layouts:
            name = f"{function.__name__}_by_{kernel}_{module.__name__.rpartition('.')[2]}_{twin}"
            values = {
                "_kernel": getattr(module, kernel).linked[twin],
                "_kernel_shape": kernel_shape,
                "_narrow": narrow,
            }
            bound.append(with_globals(function, name, values))
    return Entries(*bound)


WAY = Entries(_way, dtypes=(np.float32,))
FORWARD, BACKWARD = _entries(_forward, "forward"), _entries(_backward, "backward")
FORWARD_IN_PHASES = _entries(_forward, "forward_in_phases")
BACKWARD_IN_PHASES = _entries(_backward, "backward_in_phases")
INFERENCE, SCALE = _entries(_inference, "normalize"), _entries(_scale, "normalize")
UPDATE = Entries(_update)  # by the dtype of the running arrays
if not KNOWN:  # everything goes the general way
    WAY[:] = [lambda *_: -1]
if not KNOWN or numba.config.DISABLE_JIT:  # interpreted, an update could be interrupted
    UPDATE[:] = [lambda *_: False] * len(UPDATE)
