"""``forward``, ``backward`` and ``inference`` of arrays on a device: validate -> plan -> kernels -> return.

What the arguments mean and what is refused is said in ``fastbn.functional``; here is what differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn import _validation as check
from fastbn.cuda import _arrays
from fastbn.cuda._arrays import View
from fastbn.cuda._engine import GIVEN, Call, row, rows
from fastbn.functional import Cache, ForwardResult, Gradients


def forward(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
    correction: float = 1,
    out: Any = None,
) -> ForwardResult:
    """``fastbn.forward`` of arrays on a device.

    Parameters, Returns
        As ``fastbn.forward``, with all arrays on the device. ``x`` is in C order or has its channels last in memory;
        ``out`` lies in memory as ``x`` does; what is given per channel lies side by side. The cache refers to ``x``
        and ``gamma``, and its ``mean`` and ``inv_std`` are (C,) float64 arrays on the device.

    Raises
    ------
    ValueError
        For shapes, strides and numbers that do not fit, arrays that overlap or are read-only where they are to be
        written, and memory of another device. Values in arrays are not looked at.
    TypeError
        For arrays in host memory, and dtypes other than float32 and float64.
    MemoryError
        If the device has no memory for the result.
    RuntimeError
        If there is no device.

    Notes
    -----
    Returns when the work is handed to the device. The running arrays are the last that is written; an exception
    before that leaves them as they were.
    """
    options = training, momentum, eps, axis, correction, out, None
    return prepare(x, gamma, beta, running_mean, running_var, *options)


def prepare(
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_var: Any,
    training: Any,
    momentum: Any,
    eps: Any,
    axis: Any,
    correction: Any,
    out: Any,
    channels: int | None,
) -> ForwardResult:
    """``forward`` of an ``x`` with so many channels, or any number if that is ``None``."""
    training = check.flag("training", training)
    tensor = _arrays.tensor("x", x)
    index = check.channel_axis(axis, tensor.ndim)
    if channels is not None:
        check.layer_axis(tensor, axis, channels, None)
    if training:
        return train(tensor, index, gamma, beta, running_mean, running_var, momentum, eps, correction, out)
    return evaluate(tensor, index, gamma, beta, running_mean, running_var, eps, out)


def train(
    x: View,
    axis: int,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,
    eps: Any,
    correction: Any,
    out: Any,
) -> ForwardResult:
    """``forward`` with the batch's statistics."""
    momentum = check.momentum(momentum)
    correction = check.correction(correction)
    eps = check.eps(eps, zero=False)
    channels = x.shape[axis]
    gamma_, beta_ = _parameters(gamma, beta, channels)
    running = None
    if check.both_or_neither(running_mean=running_mean, running_var=running_var):
        running = _running(running_mean, running_var, channels)
        names = {"running_mean": running[0], "running_var": running[1]}
        _arrays.distinct(names, x=x, gamma=gamma_, beta=beta_)
    check.trainable(x, axis, correction if running else 0.0)
    mean_, var_ = running or (None, None)
    others = {"gamma": gamma_, "beta": beta_, "running_mean": mean_, "running_var": var_}
    target = _arrays.out_like("out", out, x, x=x, **others)

    call = Call(x, axis, (target,), (gamma_, beta_, mean_, var_))
    result, statistics = call.result(target), call.statistics()
    call.forward(eps, gamma_, beta_, result, statistics)
    if running and x.size:
        count = x.size // channels
        call.update(*running, statistics, momentum, count / (count - correction))
    return ForwardResult(result.owner, _cache(x, gamma, beta_, statistics, axis, True))


def evaluate(
    x: View, axis: int, gamma: Any, beta: Any, running_mean: Any, running_var: Any, eps: Any, out: Any
) -> ForwardResult:
    """``forward`` with given statistics."""
    call, given, target = _given(x, axis, gamma, beta, running_mean, running_var, out)
    mean, var, gamma_, beta_ = given
    eps = check.eps(eps, zero=True)
    result, statistics = call.result(target), call.statistics()
    call.keep_given(mean, var, eps, statistics)
    call.normalize(x, mean, row(statistics, 1), GIVEN, gamma_, beta_, result)
    return ForwardResult(result.owner, _cache(x, gamma, beta_, statistics, axis, False))


def inference(
    x: Any,
    running_mean: Any,
    running_var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Any = None,
) -> Any:
    """``fastbn.inference`` of arrays on a device, by one kernel. Raises as ``forward``."""
    eps = check.eps(eps, zero=True)
    tensor = _arrays.tensor("x", x)
    index = check.channel_axis(axis, tensor.ndim)
    call, (mean, var, gamma_, beta_), target = _given(tensor, index, gamma, beta, running_mean, running_var, out)
    result = call.result(target)
    call.normalize(tensor, mean, var, eps, gamma_, beta_, result)
    return result.owner


def backward(dout: Any, cache: Cache, *, out: Any = None) -> Gradients:
    """``fastbn.backward`` for the cache of a ``forward`` on a device.

    ``dout`` and ``out`` lie in memory as the cache's ``x`` does. Raises as ``forward``.
    """
    check.instance("cache", cache, Cache)
    x = _arrays.tensor("cache.x", cache.x)
    axis = cache.axis
    channels = x.shape[axis]
    dout_ = _arrays.like("dout", dout, x)
    gamma = _arrays.optional_parameter("cache.gamma", cache.gamma, channels)
    mean = _arrays.parameter("cache.mean", cache.mean, channels)
    inv_std = _arrays.parameter("cache.inv_std", cache.inv_std, channels)
    target = _arrays.out_like("out", out, x, may_be=dout_, x=x, gamma=gamma, mean=mean, inv_std=inv_std)

    call = Call(x, axis, (dout_, target), (gamma, mean, inv_std))
    dx = call.result(target)
    dgamma = None if gamma is None else call.vector(gamma.dtype)
    dbeta = None if cache.beta_dtype is None else call.vector(cache.beta_dtype)
    if cache.training:
        call.backward(dout_, mean, inv_std, gamma, dgamma, dbeta, dx)
    else:
        if gamma is not None or dbeta is not None:  # else nobody asks for the sums
            call.backward_sums(dout_, mean, inv_std, None, None, dbeta, dgamma)
        call.normalize(dout_, None, inv_std, GIVEN, gamma, None, dx)
    return Gradients(dx.owner, *(None if gradient is None else gradient.owner for gradient in (dgamma, dbeta)))


def _parameters(gamma: Any, beta: Any, channels: int) -> tuple[View | None, View | None]:
    return _arrays.optional_parameter("gamma", gamma, channels), _arrays.optional_parameter("beta", beta, channels)


def _running(running_mean: Any, running_var: Any, channels: int) -> tuple[View, View]:
    """The running arrays, to be updated."""
    mean = _arrays.writable("running_mean", _arrays.parameter("running_mean", running_mean, channels))
    var = _arrays.writable("running_var", _arrays.parameter("running_var", running_var, channels))
    return mean, var


def _given(
    x: View, axis: int, gamma: Any, beta: Any, running_mean: Any, running_var: Any, out: Any
) -> tuple[Call, tuple[View, View, View | None, View | None], View | None]:
    """The call, the parameters and ``out`` where the statistics are given."""
    channels = x.shape[axis]
    if running_mean is None or running_var is None:
        check.both_or_neither(running_mean=running_mean, running_var=running_var)
        raise ValueError("running_mean: expected an array with training=False, got None")
    gamma_, beta_ = _parameters(gamma, beta, channels)
    mean = _arrays.parameter("running_mean", running_mean, channels)
    var = _arrays.parameter("running_var", running_var, channels)
    others = {"gamma": gamma_, "beta": beta_, "running_mean": mean, "running_var": var}
    target = _arrays.out_like("out", out, x, may_be=x, **others)
    return Call(x, axis, (target,), (mean, var, gamma_, beta_)), (mean, var, gamma_, beta_), target


def _cache(x: View, gamma: Any, beta: View | None, statistics: View, axis: int, training: bool) -> Cache:
    mean, inv_std, _ = rows(statistics)
    dtype: np.dtype[Any] | None = None if beta is None else beta.dtype
    return Cache(x.owner, gamma, mean, inv_std, axis, training, dtype)
