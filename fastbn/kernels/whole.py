"""What whole calls do (see ``calls``), with the objects that they are given.

``_kernel`` and the globals beside it are bound for each entry of a table. The last two arguments come from the plan and
are 1 and 0 where there are no threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn._typing import Float64Array, Int64Array, Object, Shape3
from fastbn.kernels import coefficients
from fastbn.kernels.addresses import data, empty
from fastbn.kernels.arguments import (
    apart,
    is_expected_vector,
    is_like,
    is_parameter,
    is_running,
    is_vector,
    no_variance_below,
    same_or_apart,
    shape_of_both,
    size_of,
)
from fastbn.kernels.coefficients import is_near
from fastbn.kernels.families import by_columns
from fastbn.kernels.jit import inner
from fastbn.kernels.objects import (
    WRITEABLE,
    acquire,
    dim,
    flat,
    index,
    is_expected,
    is_none,
    ndim,
    number,
    release,
)
from fastbn.kernels.per_channel import given_or, is_usual, parameter, read, round_to

_kernel: Any = None
_kernel_shape: Any = None  # from (outer, channels, inner) to what the kernel takes for its shape
_columns = False  # whether it takes rows of columns
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
        and no_variance_below(parameter(running_var, channels, 0.0), -number(eps))
        and number(correction) < count
    ):
        return shape
    return 0, 0, 0


def forward(
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

    Running arrays are only checked. Where a mean turns out to be far from 0 (see ``_far``), the general way does it
    again.
    """
    shape = _shape_to_train(x, axis, gamma, beta, running_mean, running_var, momentum, eps, correction, out)
    size, channels = size_of(shape), shape[1]
    if not size or by_columns(shape, 2) != _columns:
        return False
    options = _kernel_shape(shape), index(segments), number(eps), index(streaming) == 1
    parameters = parameter(gamma, channels, 1.0), parameter(beta, channels, 0.0)  # before others may change them
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
    return is_near(data(flat(x, 0, size)), data(flat(statistics, 0, channels)), channels)


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
        and is_expected_vector(mean, channels, 0)
        and is_expected_vector(inv_std, channels, 0)
        and (is_none(dgamma) or is_vector(dgamma, channels, WRITEABLE))
        and (is_none(dbeta) or is_vector(dbeta, channels, WRITEABLE))
    ):
        return 0, 0, 0
    return shape


def backward(
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
    if not size or by_columns(shape, 2) != _columns:
        return False
    if not is_near(data(flat(x, 0, size)), data(flat(mean, 0, channels)), channels):
        return False
    options = _kernel_shape(shape), index(segments), index(streaming) == 1
    sum_dout, sum_dout_xhat = empty((channels,), np.float64), empty((channels,), np.float64)
    scale = parameter(gamma, channels, 1.0)
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
    round_to(dbeta, sum_dout)
    round_to(dgamma, sum_dout_xhat)
    return True


def inference(
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
        and by_columns(shape, 1) == _columns
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
    values = empty((3, channels), flat(x, 0, size).dtype)
    mean64, inv_std = flat(statistics, 0, channels), flat(statistics, channels, channels)
    if is_expected(mean) and is_expected(var) and is_usual(gamma) and is_usual(beta):
        given = flat(mean, 0, channels), flat(var, 0, channels)
        scale, shift = given_or(gamma, x, channels, 1.0), given_or(beta, x, channels, 0.0)
        least = _affine_of_var(given[0], given[1], number(eps), scale, shift, mean64, inv_std, values)
    else:  # for all, this would take 0.15 us longer, for 2048 channels 1.6
        read(mean, 0.0, mean64)
        var64 = parameter(var, channels, 0.0)
        scale64, shift64 = parameter(gamma, channels, 1.0), parameter(beta, channels, 0.0)
        least = _affine_of_var(mean64, var64, number(eps), scale64, shift64, mean64, inv_std, values)
    if least < -number(eps) or not is_near(data(values), data(mean64), channels):
        return False
    options = _kernel_shape(shape), index(streaming) == 1
    _run(_kernel, (flat(x, 0, size), options[0], values, flat(out, 0, size), options[1]), size)
    return True


def scale(
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
    if not size or by_columns(shape, 1) != _columns or not same_or_apart(out, x, size):
        return False
    values = flat(coefficients, 0, 3 * shape[1]).reshape((3, shape[1]))
    options = _kernel_shape(shape), index(streaming) == 1
    _run(_kernel, (flat(x, 0, size), options[0], values, flat(out, 0, size), options[1]), size)
    return True


def update(
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
        is_expected_vector(running_mean, channels, WRITEABLE) and is_expected_vector(running_var, channels, WRITEABLE)
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
