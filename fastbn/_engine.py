"""The operations on validated arguments: layout -> plan -> kernel.

Tensors are as the user gave them, ``axis`` is not negative. Statistics are (C,) float64; ``gamma`` and ``beta`` are
(C,) of any dtype, or ``None`` for ones and zeros. ``out`` is ``None`` for a new tensor. Tensors may be empty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastbn._dispatch import Plan, plan
from fastbn._layout import layout_of
from fastbn._typing import Array, Float64Array


class Normalized(NamedTuple):
    """A result with the statistics that it was made with; ``var`` is biased."""

    out: Array
    mean: Float64Array
    var: Float64Array
    inv_std: Float64Array


class Sums(NamedTuple):
    """The two sums of the gradient, per channel."""

    sum_dout: Float64Array
    sum_dout_xhat: Float64Array


def inv_std_of(var: Array, eps: float) -> Float64Array:
    """``1 / sqrt(var + eps)`` in float64."""
    with np.errstate(all="ignore"):
        inv_std: Float64Array = 1.0 / np.sqrt(var.astype(np.float64) + eps)
    return inv_std


def batch_stats(x: Array, axis: int) -> tuple[Float64Array, Float64Array]:
    """Mean and biased variance of each channel; zeros where there are no values."""
    if not x.size:
        mean, var = np.zeros((2, x.shape[axis]))
        return mean, var
    layout = layout_of(x, axis)
    how = plan(*layout.shape)
    return _batch_stats(how, layout.load(x), x.shape[axis])


def normalize(
    x: Array,
    axis: int,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Array | None,
    beta: Array | None,
    out: Array | None,
    *,
    like: Array | None = None,
) -> Array:
    """``(x - mean) * inv_std * gamma + beta``; a new tensor lies in memory as ``like`` does, or ``x``."""
    layout = layout_of(x if like is None else like, axis)
    result = layout.empty(x.shape, x.dtype) if out is None else out
    if not x.size:
        return result
    how = plan(*layout.shape)
    gamma64, beta64 = _float64(gamma, mean.size, 1.0), _float64(beta, mean.size, 0.0)
    with layout.target(result) as target:
        _normalize(how, layout.load(x), mean, inv_std, gamma64, beta64, target)
    return result


def forward(x: Array, axis: int, eps: float, gamma: Array | None, beta: Array | None, out: Array | None) -> Normalized:
    """``batch_stats``, then ``normalize``."""
    layout = layout_of(x, axis)
    result = layout.empty(x.shape, x.dtype) if out is None else out
    channels = x.shape[axis]
    if not x.size:
        mean, var = np.zeros((2, channels))
        return Normalized(result, mean, var, inv_std_of(var, eps))
    how = plan(*layout.shape)
    source = layout.load(x)
    gamma64, beta64 = _float64(gamma, channels, 1.0), _float64(beta, channels, 0.0)
    with layout.target(result) as target:
        if how.fused:
            mean, var = np.empty((2, channels))
            tensors = source.reshape(how.shape), target.reshape(how.shape)
            how.kernels.forward(how.parallel, tensors[0], eps, gamma64, beta64, tensors[1], mean, var)
            inv_std = inv_std_of(var, eps)
        else:
            mean, var = _batch_stats(how, source, channels)
            inv_std = inv_std_of(var, eps)
            _normalize(how, source, mean, inv_std, gamma64, beta64, target)
    return Normalized(result, mean, var, inv_std)


def backward_sums(dout: Array, x: Array, axis: int, mean: Float64Array, inv_std: Float64Array) -> Sums:
    """``sum(dout)`` and ``sum(dout * x_hat)``; zeros where there are no values."""
    if not x.size:
        return Sums(*np.zeros((2, mean.size)))
    layout = layout_of(x, axis)
    how = plan(*layout.shape)
    return _backward_sums(how, layout.load(dout), layout.load(x), mean, inv_std)


def backward_input(
    dout: Array,
    x: Array,
    axis: int,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Array | None,
    sums: Sums,
    count: float,
    out: Array | None,
) -> Array:
    """``gamma * inv_std * (dout - sum_dout / count - x_hat * sum_dout_xhat / count)``."""
    layout = layout_of(x, axis)
    result = layout.empty(x.shape, x.dtype) if out is None else out
    if not x.size:
        return result
    how = plan(*layout.shape)
    gamma64 = _float64(gamma, mean.size, 1.0)
    with layout.target(result) as target:
        _backward_input(how, layout.load(dout), layout.load(x), mean, inv_std, gamma64, sums, count, target)
    return result


def backward(
    dout: Array,
    x: Array,
    axis: int,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Array | None,
    out: Array | None,
) -> tuple[Array, Sums]:
    """``backward_sums``, then ``backward_input``."""
    layout = layout_of(x, axis)
    result = layout.empty(x.shape, x.dtype) if out is None else out
    sums = Sums(*np.zeros((2, mean.size)))
    if not x.size:
        return result, sums
    how = plan(*layout.shape)
    dout_source, x_source = layout.load(dout), layout.load(x)
    gamma64 = _float64(gamma, mean.size, 1.0)
    with layout.target(result) as target:
        if how.fused:
            tensors = dout_source.reshape(how.shape), x_source.reshape(how.shape)
            how.kernels.backward(how.parallel, *tensors, mean, inv_std, gamma64, *sums, target.reshape(how.shape))
        else:
            sums = _backward_sums(how, dout_source, x_source, mean, inv_std)
            count = float(how.count)
            _backward_input(how, dout_source, x_source, mean, inv_std, gamma64, sums, count, target)
    return result, sums


def _batch_stats(how: Plan, x: Array, channels: int) -> tuple[Float64Array, Float64Array]:
    mean, var = np.empty((2, channels))
    how.kernels.batch_stats(how.parallel, x.reshape(how.shape), how.segments, mean, var)
    return mean, var


def _normalize(
    how: Plan,
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    beta: Float64Array,
    out: Array,
) -> None:
    tensors = x.reshape(how.element_shape), out.reshape(how.element_shape)
    how.element_kernels.normalize(how.parallel, tensors[0], mean, inv_std, gamma, beta, tensors[1])


def _backward_sums(how: Plan, dout: Array, x: Array, mean: Float64Array, inv_std: Float64Array) -> Sums:
    sums = Sums(*np.empty((2, mean.size)))
    tensors = dout.reshape(how.shape), x.reshape(how.shape)
    how.kernels.backward_sums(how.parallel, *tensors, mean, inv_std, how.segments, *sums)
    return sums


def _backward_input(
    how: Plan,
    dout: Array,
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sums: Sums,
    count: float,
    out: Array,
) -> None:
    dout, x, out = (tensor.reshape(how.element_shape) for tensor in (dout, x, out))
    how.element_kernels.backward_input(how.parallel, dout, x, mean, inv_std, gamma, *sums, count, out)


def _float64(parameter: Array | None, channels: int, default: float) -> Float64Array:
    """A parameter for a kernel; a copy, as a kernel takes neither strides nor read-only arrays."""
    return np.full(channels, default) if parameter is None else np.array(parameter, dtype=np.float64)
