"""Batch normalization of arrays: ``forward``, ``backward``, ``inference``.

Every function goes validate -> layout -> plan -> kernel -> return; nothing is written before validation is finished.
Ordinary calls do all of that in one compiled function (see ``kernels.calls``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _device, _engine, _state
from fastbn import _validation as check
from fastbn._typing import Array, Float64Array
from fastbn.kernels import calls, locks


class Cache(NamedTuple):
    """What ``backward`` needs of a ``forward``. References ``x`` and ``gamma``; copies nothing of tensor size.

    ``mean`` and ``inv_std`` are those that were used, (C,) float64: the batch's in training mode, the running ones
    otherwise. ``axis`` is not negative. ``beta_dtype`` is ``None`` where no ``beta`` was given.
    """

    x: Array
    gamma: Array | None
    mean: Float64Array
    inv_std: Float64Array
    axis: int
    training: bool
    beta_dtype: np.dtype[Any] | None

    # An object, not a collection. A frozen dataclass would be one, and takes half a microsecond longer to make.

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return object.__repr__(self)


class ForwardResult(NamedTuple):
    """What ``forward`` returns."""

    out: Array
    cache: Cache


class Gradients(NamedTuple):
    """What ``backward`` returns; ``dgamma`` or ``dbeta`` is ``None`` where ``gamma`` or ``beta`` was."""

    dx: Array
    dgamma: Array | None
    dbeta: Array | None


def forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
    correction: float = 1,
    out: Array | None = None,
) -> ForwardResult:
    """Batch normalization, with what its gradient needs.

    In training mode, over the ``m`` values of a channel::

        mean = sum(x) / m
        var  = sum((x - mean)**2) / m
        out  = (x - mean) / sqrt(var + eps) * gamma + beta

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * m / (m - correction)

    With ``training=False`` the running arrays take the place of ``mean`` and ``var`` and stay as they are.

    Parameters
    ----------
    x : array, two or more dimensions, float32 or float64
        Statistics are taken over every axis but ``axis``. C order and channels last (in memory) are used in place,
        other strides through a copy.
    gamma, beta : (C,) array, float32 or float64, optional; half precision is widened
        Scale and shift; ``None`` means ones and zeros.
    running_mean, running_var : (C,) array, float32 or float64, optional
        Both or neither. Updated in place in training mode, required otherwise. The update is made for both or, after
        any exception, for neither.
    training : bool
        Whether the batch's own statistics are used.
    momentum : float
        Weight of the batch in the running arrays, 0 to 1.
    eps : float
        Added to the variance, in the units of ``x`` squared. Above 0; 0 is allowed with ``training=False``.
    axis : int
        The channel axis.
    correction : float
        1: ``running_var`` follows the unbiased variance (PyTorch, the paper). 0: the biased one (Keras, ONNX).
    out : array, optional
        Where to write the result: shape and dtype of ``x``; filled through a copy if it does not lie in memory as
        ``x`` does. It may be ``x`` only with ``training=False``, and then spoils the cache for ``backward``.

    Returns
    -------
    out : array
        Shape and dtype of ``x``; a new array lies in memory as ``x`` does (C order or channels last).
    cache : Cache
        For ``backward``.

    Raises
    ------
    ValueError
        For shapes and values that do not fit, a single value per channel in training mode, missing running arrays,
        a ``running_var`` below ``-eps``, or arrays to be written that overlap others or are read-only.
    TypeError
        For dtypes other than float32 and float64, masked arrays, matrices, and arguments of the wrong kind.

    Notes
    -----
    An empty ``x`` gives an empty ``out`` and changes no running array.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1; algorithm 2 for ``training=False``.
    """
    result, update = prepare(
        x, gamma, beta, running_mean, running_var, training, momentum, eps, axis, correction, out, None
    )
    if update is not None:
        with locks.state:
            _state.update(*update)
    return result


def inference(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """Normalise with given statistics: ``out = (x - running_mean) / sqrt(running_var + eps) * gamma + beta``.

    Parameters
    ----------
    x : array, two or more dimensions, float32 or float64
        The input; ``axis`` is its channel axis.
    running_mean, running_var : (C,) array, float32 or float64
        The statistics; never written.
    gamma, beta : (C,) array, float32 or float64, optional
        Scale and shift; ``None`` means ones and zeros.
    eps : float
        Added to the variance; 0 or above.
    axis : int
        The channel axis.
    out : array, optional
        Where to write the result: shape and dtype of ``x``. It may be ``x`` itself.

    Returns
    -------
    out : array
        Shape and dtype of ``x``.

    Raises
    ------
    ValueError, TypeError
        As ``forward``.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2, step 11.
    """
    evaluated = evaluate(x, gamma, beta, running_mean, running_var, eps, axis, out, None)
    if evaluated is not None:
        return evaluated[0]
    if check.on_device(x):
        arrays = x, running_mean, running_var, gamma, beta
        result: Array = _device.front().inference(*arrays, eps=eps, axis=axis, out=out)
        return result
    eps = check.eps(eps, zero=True)
    x = check.tensor("x", x)
    axis = check.channel_axis(axis, x.ndim)
    if running_mean is None or running_var is None:
        check.parameter("running_mean", running_mean, x.shape[axis])
        check.parameter("running_var", running_var, x.shape[axis])
    return frozen(x, gamma, beta, running_mean, running_var, eps=eps, axis=axis, out=out)[0]


def backward(dout: ArrayLike, cache: Cache, *, out: Array | None = None) -> Gradients:
    """Gradients of batch normalization.

    With ``x_hat = (x - mean) * inv_std`` over the ``m`` values of a channel::

        dbeta  = sum(dout)
        dgamma = sum(dout * x_hat)
        dx     = gamma * inv_std * (dout - dbeta / m - x_hat * dgamma / m)

    For the cache of a ``forward`` with ``training=False`` the statistics are constants: ``dx = gamma * inv_std *
    dout``.

    Parameters
    ----------
    dout : array
        Gradient with respect to the output of ``forward``: shape and dtype of ``x``.
    cache : Cache
        From ``forward``. ``x`` and ``gamma`` must hold the values they had then.
    out : array, optional
        Where to write ``dx``: shape and dtype of ``x``. It may be ``dout`` itself.

    Returns
    -------
    dx : array
        Shape and dtype of ``x``.
    dgamma, dbeta : (C,) array or None
        In the dtypes of ``gamma`` and ``beta``; ``None`` where these were ``None``.

    Raises
    ------
    ValueError
        If ``dout`` or ``out`` has another shape than ``x``, or ``out`` overlaps ``x`` or a part of ``dout``.
    TypeError
        If ``dout`` or ``out`` has another dtype than ``x``, or ``cache`` is not a ``Cache``.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167, section 3, the six equations collected.
    """
    check.instance("cache", cache, Cache)
    x, gamma, mean, inv_std, axis, training, beta_dtype = cache
    way = calls.WAY[0](x, axis, None, 2)
    if way >= 0 and training is True:
        dx = np.empty_like(x) if out is None else out
        dgamma = None if gamma is None else gamma.copy()
        dbeta = None if beta_dtype is None else np.empty(mean.shape, beta_dtype)
        arguments = dout, x, axis, mean, inv_std, gamma, dx, dgamma, dbeta, 1, 0
        if _engine.whole(calls.BACKWARD, calls.BACKWARD_IN_PHASES, way, arguments, x, axis, "stream_dx"):
            return Gradients(dx, dgamma, dbeta)
    if check.on_device(x):
        gradients: Gradients = _device.front().backward(dout, cache, out=out)
        return gradients
    dout = check.tensor_like("dout", dout, x)
    gamma_dtype = None if gamma is None else gamma.dtype
    out = check.out_like("out", out, x, may_be=dout, x=x, gamma=gamma)
    gamma = check.optional_parameter("cache.gamma", gamma, mean.size)
    if training:
        dx, sums = _engine.backward(dout, x, axis, mean, inv_std, gamma, out)
    else:
        zeros = np.zeros_like(mean)
        sums = _engine.Sums(zeros, zeros)
        if gamma is not None or beta_dtype is not None:  # else nobody asks for them
            sums = _engine.backward_sums(dout, x, axis, mean, inv_std)
        values = _engine.affine(x.dtype, zeros, inv_std, gamma, None)
        dx = _engine.scale(dout, axis, values, out, like=x)
    with np.errstate(all="ignore"):  # out of range is infinite or zero, whatever the user's error state
        dgamma = None if gamma_dtype is None else sums.sum_dout_xhat.astype(gamma_dtype)
        dbeta = None if beta_dtype is None else sums.sum_dout.astype(beta_dtype)
    return Gradients(dx, dgamma, dbeta)


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
) -> tuple[ForwardResult, _state.Batch | None]:
    """``forward``, but for the update of the running arrays, whose arguments it returns.

    ``x`` may have any number of channels if ``channels`` is ``None``.
    """
    way = calls.WAY[0](x, axis, channels, 2)
    if way >= 0 and training is True:
        result = np.empty_like(x) if out is None else out
        statistics = np.empty((3, x.shape[axis]))
        # fmt: off
        arguments = (x, axis, gamma, beta, running_mean, running_var, momentum, eps, correction, result, statistics,
                     1, 0)
        # fmt: on
        if _engine.whole(calls.FORWARD, calls.FORWARD_IN_PHASES, way, arguments, x, axis, "stream_training"):
            cache = make_cache(x, gamma, beta, statistics, axis, True)
            tracked = running_mean is not None
            batch = (running_mean, running_var, statistics, x, momentum, correction) if tracked else None
            return ForwardResult(result, cache), batch
    if check.on_device(x):
        arrays = x, gamma, beta, running_mean, running_var
        options = training, momentum, eps, axis, correction, out, channels
        return _device.front().functional.prepare(*arrays, *options), None
    if channels is not None:
        x, axis = check.features(x, axis, channels, None)
    training = check.flag("training", training)
    momentum = check.momentum(momentum)
    correction = check.correction(correction)
    if not training:
        evaluated = evaluate(x, gamma, beta, running_mean, running_var, eps, axis, out, channels)
        if evaluated is not None:
            return ForwardResult(evaluated[0], make_cache(x, gamma, beta, evaluated[1], axis, False)), None
    eps = check.eps(eps, zero=not training)
    x = check.tensor("x", x)
    axis = check.channel_axis(axis, x.ndim)
    if not training:
        return ForwardResult(*frozen(x, gamma, beta, running_mean, running_var, eps=eps, axis=axis, out=out)), None
    channels = x.shape[axis]
    given = gamma, beta
    gamma = check.optional_parameter("gamma", gamma, channels)
    beta = check.optional_parameter("beta", beta, channels)
    tracked = check.both_or_neither(running_mean=running_mean, running_var=running_var)
    if tracked:
        running_mean = check.running("running_mean", running_mean, channels)
        running_var = check.running("running_var", running_var, channels)
        check.distinct({"running_mean": running_mean, "running_var": running_var}, x=x, gamma=gamma, beta=beta)
        check.variance("running_var", running_var, eps)
    check.trainable(x, axis, correction if tracked else 0.0)
    others = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    out = check.out_like("out", out, x, x=x, **others)

    scale, shift = _state.snapshot(gamma, beta)
    result, statistics = _engine.forward(x, axis, eps, scale, shift, out)
    kept = _as_given(given[0], gamma), _as_given(given[1], beta)
    forwarded = ForwardResult(result, make_cache(x, *kept, statistics, axis, True))
    if not tracked or not x.size:
        return forwarded, None
    return forwarded, (running_mean, running_var, statistics, x, momentum, correction)


def evaluate(
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_var: Any,
    eps: Any,
    axis: Any,
    out: Any,
    channels: int | None,
) -> tuple[Array, Float64Array] | None:
    """Inference, with mean and ``inv_std``, in one compiled call; ``None`` where anything is out of the ordinary."""
    way = calls.WAY[0](x, axis, channels, 1)
    if way < 0:
        return None
    result = np.empty_like(x) if out is None else out
    statistics = np.empty((2, x.shape[axis]))
    arguments = x, axis, running_mean, running_var, gamma, beta, eps, result, statistics, 1, 0
    done = _engine.whole(calls.INFERENCE, calls.INFERENCE, way, arguments, x, axis, "stream_out")
    return (result, statistics) if done else None


def make_cache(
    x: Array, gamma: Array | None, beta: Array | None, statistics: Float64Array, axis: int, training: bool
) -> Cache:
    """The cache of a call; ``statistics`` begins with the rows mean and ``inv_std``."""
    if axis < 0:
        axis += x.ndim
    return Cache(x, gamma, statistics[0], statistics[1], axis, training, None if beta is None else beta.dtype)


def frozen(
    x: Array, gamma: Any, beta: Any, running_mean: Any, running_var: Any, *, eps: float, axis: int, out: Any
) -> tuple[Array, Cache]:
    """Forward with given statistics; ``x``, ``eps`` and ``axis`` are validated."""
    if running_mean is None or running_var is None:
        check.both_or_neither(running_mean=running_mean, running_var=running_var)
        raise ValueError("running_mean: expected an array with training=False, got None")
    channels = x.shape[axis]
    given = gamma, beta
    gamma = check.optional_parameter("gamma", gamma, channels)
    beta = check.optional_parameter("beta", beta, channels)
    kept = _as_given(given[0], gamma), _as_given(given[1], beta)
    mean = check.parameter("running_mean", running_mean, channels)
    var = check.parameter("running_var", running_var, channels)
    if out is not None:
        out = check.out_like("out", out, x, may_be=x, gamma=gamma, beta=beta, running_mean=mean, running_var=var)
    mean, var, scale, shift = _state.snapshot(mean, var, gamma, beta)
    result, statistics, least = _engine.inference(x, axis, mean, var, scale, shift, eps, out)
    check.least_variance("running_var", least, eps)
    return result, make_cache(x, *kept, statistics, axis, False)


def _as_given(given: Any, read: Array | None) -> Array | None:
    """What a cache keeps of a parameter: gradients come in half precision where the parameter was in it."""
    return given if isinstance(given, np.ndarray) and check.is_half(given.dtype) else read
