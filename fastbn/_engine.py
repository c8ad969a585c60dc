"""The operations on validated arguments: layout -> plan -> kernel.

Tensors are as the user gave them, ``axis`` is not negative. Statistics are (C,) float64; what else is given per channel
is (C,) of any dtype, ``gamma`` and ``beta`` may be ``None`` for ones and zeros. ``out`` is ``None`` for a new tensor.
Tensors may be empty.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from fastbn import _far
from fastbn._dispatch import Plan, plan
from fastbn._layout import Layout
from fastbn._typing import Array, Float64Array
from fastbn.kernels import calls, coefficients, small
from fastbn.kernels.jit import Entries, launch, threads_usable


class Sums(NamedTuple):
    """The two sums of the gradient, per channel."""

    sum_dout: Float64Array
    sum_dout_xhat: Float64Array


def inv_std_of(var: Float64Array, eps: float) -> Float64Array:
    """``1 / sqrt(var + eps)`` in float64."""
    with np.errstate(all="ignore"):
        inv_std: Float64Array = 1.0 / np.sqrt(var + eps)
    return inv_std


def float64(values: Array) -> Float64Array:
    """A copy in float64, without NumPy's warning of a signaling NaN."""
    with np.errstate(invalid="ignore"):
        return np.array(values, dtype=np.float64)


def affine(x_dtype: Any, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None) -> Array:
    """The (3, C) coefficients of ``scale``."""
    mean, inv_std, gamma, beta = _alike(mean, inv_std, gamma, beta)
    values = np.empty((3, mean.size), x_dtype)
    coefficients.affine(mean, inv_std, gamma, beta, values)
    return values


def whole(
    entries: Entries,
    in_phases: Entries,
    way: int,
    arguments: tuple[Any, ...],
    x: Array,
    axis: int,
    streamed: str,
) -> bool:
    """Do all of a call in one compiled function of ``kernels.calls``; ``False`` where it does not take the arguments.

    It is one of ``in_phases`` unless the plan says ``at_once``. ``arguments`` end in one segment, no streaming; large
    tensors have these from the plan, where ``streamed`` is the field for whether the result is streamed. ``axis`` may
    be negative.
    """
    if not way & calls.LARGE:
        done: bool = entries[way](*arguments)
        return done
    how = _route(x, axis % x.ndim)[1]
    assert how is not None  # it is not empty
    table = entries if how.at_once else in_phases
    threads = threads_usable()
    arguments = *arguments[:-2], how.segments, int(getattr(how, streamed)[threads])
    return bool(launch(table[way], *arguments) if threads else table[way - calls.LARGE](*arguments))


def scale(x: Array, axis: int, values: Array, out: Array | None, *, like: Array | None = None) -> Array:
    """Normalise with coefficients from ``affine``; a new tensor lies in memory as ``like`` does, or ``x``."""
    layout, how = _route(x if like is None else like, axis)
    result, target = _output(layout, x, out)
    if how is not None:
        tensors = layout.load(x), layout.flat(target)
        streaming = how.stream_out[threads_usable()]
        how.kernels_out.normalize(how.parallel_out, tensors[0], how.shape_out, values, tensors[1], streaming)
        _deliver(target, result)
    return result


def normalize(
    x: Array, axis: int, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None, out: Array | None
) -> Array:
    """``(x - mean) * inv_std * gamma + beta``; ``out`` may be ``x``."""
    far = _far.normalized(x, axis, mean, inv_std, gamma, beta)
    result = scale(x, axis, affine(x.dtype, mean, inv_std, gamma, beta), out)
    _far.put(far, result, axis)
    return result


def inference(
    x: Array,
    axis: int,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    out: Array | None,
) -> tuple[Array, Float64Array, float]:
    """``(x - mean) / sqrt(var + eps) * gamma + beta``; mean and ``inv_std``, (2, C); the least variance.

    Where that is below ``-eps``, nothing is written.
    """
    channels = mean.size
    mean, var, gamma, beta = _alike(mean, var, gamma, beta)
    layout, how = _route(x, axis)
    statistics = np.empty((2, channels))
    far = _far.normalized(x, axis, mean, inv_std_of(float64(var), eps), gamma, beta)
    if how is not None and how.small:
        result, target = _output(layout, x, out)
        tensors = layout.load(x), layout.flat(target)
        least = small.inference(tensors[0], layout.shape, mean, var, eps, gamma, beta, tensors[1], *statistics)
        if not least < -eps:
            _deliver(target, result)
            _far.put(far, result, axis)
        return result, statistics, least
    values = np.empty((3, channels), x.dtype)
    least = coefficients.affine_of_var(mean, var, eps, gamma, beta, statistics[0], statistics[1], values)
    if least < -eps:
        return x, statistics, least
    result = scale(x, axis, values, out)
    _far.put(far, result, axis)
    return result, statistics, least


def batch_stats(x: Array, axis: int) -> tuple[Float64Array, Float64Array]:
    """Mean and biased variance of each channel; zeros where there are no values."""
    mean, var = np.zeros(x.shape[axis]), np.zeros(x.shape[axis])
    layout, how = _route(x, axis)
    if how is not None:
        how.kernels.batch_stats(how.parallel, layout.load(x), how.shape, how.segments, mean, var)
    return mean, var


def forward(
    x: Array, axis: int, eps: float, gamma: Array | None, beta: Array | None, out: Array | None
) -> tuple[Array, Float64Array]:
    """``batch_stats``, then ``scale``; mean, ``inv_std`` and biased variance, (3, C)."""
    layout, how = _route(x, axis)
    result, target = _output(layout, x, out)
    statistics = np.zeros((3, x.shape[axis]))
    mean, inv_std, var = statistics
    if how is None:
        inv_std[...] = inv_std_of(var, eps)
        return result, statistics
    parameters = _float64(gamma, mean.size, 1.0), _float64(beta, mean.size, 0.0)
    tensors = layout.load(x), layout.flat(target)
    streaming = how.stream_training[threads_usable()]
    kernel = how.kernels.forward if how.at_once else how.kernels.forward_in_phases
    kernel(
        how.parallel, tensors[0], how.shape, how.segments, eps, *parameters, tensors[1], mean, var, inv_std, streaming
    )
    _deliver(target, result)
    _far.put(_far.normalized(x, axis, mean, inv_std, gamma, beta), result, axis)
    return result, statistics


def backward_sums(dout: Array, x: Array, axis: int, mean: Float64Array, inv_std: Float64Array) -> Sums:
    """``sum(dout)`` and ``sum(dout * x_hat)``; zeros where there are no values."""
    sums = Sums(np.zeros(mean.size), np.zeros(mean.size))
    layout, how = _route(x, axis)
    if how is not None:
        tensors = layout.load(dout), layout.load(x)
        how.kernels.backward_sums(how.parallel, *tensors, how.shape, how.segments, mean, inv_std, *sums)
    return sums


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
    layout, how = _route(x, axis)
    result, target = _output(layout, x, out)
    if how is not None:
        tensors = layout.load(dout), layout.load(x), layout.flat(target)
        values = np.empty((4, mean.size), x.dtype)
        coefficients.gradient(mean, inv_std, _float64(gamma, mean.size, 1.0), *sums, count, values)
        far = _far.differentiated(dout, x, axis, mean, inv_std, gamma, sums, count)
        streaming = how.stream_dx[threads_usable()]
        how.kernels.backward_input(how.parallel, *tensors[:2], how.shape, values, tensors[2], streaming)
        _deliver(target, result)
        _far.put(far, result, axis)
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
    layout, how = _route(x, axis)
    result, target = _output(layout, x, out)
    sums = Sums(np.zeros(mean.size), np.zeros(mean.size))
    if how is None:
        return result, sums
    inputs, dx = (layout.load(dout), layout.load(x)), layout.flat(target)
    scale = _float64(gamma, mean.size, 1.0)
    streaming = how.stream_dx[threads_usable()]
    kernel = how.kernels.backward if how.at_once else how.kernels.backward_in_phases
    if _far.is_far(x.dtype, mean):  # dx may be dout, which the sums need and the far channels, too
        sums = backward_sums(dout, x, axis, mean, inv_std)
        return backward_input(dout, x, axis, mean, inv_std, gamma, sums, x.size // mean.size, out), sums
    kernel(how.parallel, *inputs, how.shape, how.segments, mean, inv_std, scale, *sums, dx, streaming)
    _deliver(target, result)
    return result, sums


def _route(x: Array, axis: int) -> tuple[Layout, Plan | None]:
    """How ``x`` lies in memory and is worked on; no plan if it is empty."""
    channels_last = not x.flags.c_contiguous and np.moveaxis(x, axis, -1).flags.c_contiguous
    return _routes(x.shape, axis, channels_last, x.itemsize)


@functools.lru_cache(maxsize=1024)
def _routes(shape: tuple[int, ...], axis: int, channels_last: bool, itemsize: int) -> tuple[Layout, Plan | None]:
    layout = Layout.of(shape, axis, channels_last)
    return layout, plan(*layout.shape, itemsize) if 0 not in shape else None


def _output(layout: Layout, x: Array, out: Array | None) -> tuple[Array, Array]:
    """The result, and where a kernel writes it: there, or in a buffer if ``out`` cannot be worked on in place."""
    if out is None:
        result = layout.empty(x.shape, x.dtype)
        return result, result
    return out, out if layout.holds(out) else layout.empty(x.shape, x.dtype)


def _deliver(target: Array, result: Array) -> None:
    """Copy a buffer to the result."""
    if target is not result:
        np.copyto(result, target)


def _alike(a: Array, b: Array, gamma: Array | None, beta: Array | None) -> tuple[Array, Array, Array, Array]:
    """Four arrays of one dtype that a kernel can take: those that were given, if they are all ready, else copies."""
    dtype = a.dtype
    gamma = _constant(a.size, dtype, 1.0) if gamma is None else gamma
    beta = _constant(a.size, dtype, 0.0) if beta is None else beta
    arrays = a, b, gamma, beta
    if all([array.dtype is dtype and array.flags.carray for array in arrays]):  # noqa: C419 - a generator takes longer
        return arrays
    return float64(a), float64(b), float64(gamma), float64(beta)


def _float64(parameter: Array | None, channels: int, default: float) -> Float64Array:
    """What is given per channel for a kernel; a copy, as kernels take neither strides nor read-only arrays."""
    if parameter is None:
        return _constant(channels, np.dtype(np.float64), default)
    return float64(parameter)


def _constant(channels: int, dtype: Any, value: float) -> Array:
    """An array that kernels read and nobody else sees."""
    return _kept(channels, dtype, value) if channels <= 1 << 16 else np.full(channels, value, dtype)


@functools.lru_cache(maxsize=256)
def _kept(channels: int, dtype: Any, value: float) -> Array:
    return np.full(channels, value, dtype)
