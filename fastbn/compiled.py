"""Batch normalization for callers that are compiled themselves: functions to be called from ``numba.njit`` code.

Tensors are C-contiguous float32 or float64 arrays of three dimensions, (outer, C, inner): what ``reshape`` makes of
(N, C), (N, C, L), (N, C, H, W) and so on, and with ``inner`` 1 of channels last, (N * H * W, C, 1). What is given or
returned per channel is a contiguous (C,) array, the returned ones float64. Every function runs on the thread that calls
it, without Python's lock, and writes where it is told; only arrays of C values are allocated.

Numbers are those of ``fastbn.forward`` and its like on one segment: the same bits where these do not cut the channels'
values to share them out among threads, else the same up to the last digits.

Shapes that do not fit raise ``ValueError``, of which compiled code can only give the name of the argument. Values
(``eps``, variances), overlaps and aliasing are not looked at: ``out`` may be ``x`` in ``inference`` and ``dx`` may be
``dout``; apart from that, what is written must share no memory with what is read.
"""

from __future__ import annotations

import numpy as np

from fastbn._dispatch import STREAM, STREAM_DX, STREAM_ONCE
from fastbn._typing import Array, Float64Array, Shape3
from fastbn.kernels import channels_first, channels_last
from fastbn.kernels.coefficients import affine_of_var, weighted_mean
from fastbn.kernels.families import by_columns
from fastbn.kernels.jit import inner, small
from fastbn.kernels.tiles import matrix_of

# Compiled code can call functions, but not reach for their attributes.
_first_normalize, _last_normalize = (each.normalize.linked["serial"] for each in (channels_first, channels_last))
_first_forward, _last_forward = (each.forward.linked["serial"] for each in (channels_first, channels_last))
_first_backward, _last_backward = (each.backward.linked["serial"] for each in (channels_first, channels_last))

_STREAM_ONCE, _STREAM, _STREAM_DX = STREAM_ONCE[0], STREAM[0], STREAM_DX[0]


@inner
def _shape_of(x: Array) -> Shape3:
    """The shape in which the kernels take ``x``: a single channel is one run of values."""
    outer, channels, inner = x.shape
    return (1, 1, outer * inner) if channels == 1 else (outer, channels, inner)


@small
def inference(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, out: Array) -> None:
    """Write ``out = (x - mean) / sqrt(var + eps) * gamma + beta``.

    Parameters
    ----------
    x, out : (outer, C, inner) array
        Of one dtype. They may be the same.
    mean, var, gamma, beta : (C,) array, float32 or float64
        Statistics, scale and shift.
    eps : float
        Added to the variance.

    Raises
    ------
    ValueError
        For shapes that do not fit.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2, step 11.
    """
    shape = _shape_of(x)
    channels = shape[1]
    if out.shape != x.shape:
        raise ValueError("out: expected the shape of x")
    if mean.shape != (channels,) or var.shape != (channels,):
        raise ValueError("mean, var: expected one value a channel")
    if gamma.shape != (channels,) or beta.shape != (channels,):
        raise ValueError("gamma, beta: expected one value a channel")
    if x.size == 0:
        return
    values = np.empty((3, channels), x.dtype)
    affine_of_var(mean, var, eps, gamma, beta, np.empty(channels), np.empty(channels), values)
    if by_columns(shape, 1):
        _last_normalize(x.reshape(-1), matrix_of(shape), values, out.reshape(-1), False)
    else:
        streaming = 2 * x.nbytes >= _STREAM_ONCE
        _first_normalize(x.reshape(-1), shape, values, out.reshape(-1), streaming)


@small
def forward(
    x: Array, gamma: Array, beta: Array, eps: float, out: Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Normalise with the batch's own statistics, over the ``m = outer * inner`` values of a channel::

        mean = sum(x) / m
        var  = sum((x - mean)**2) / m
        out  = (x - mean) / sqrt(var + eps) * gamma + beta

    Parameters
    ----------
    x, out : (outer, C, inner) array
        Of one dtype, and apart from each other.
    gamma, beta : (C,) array, float32 or float64
        Scale and shift.
    eps : float
        Added to the variance; above 0.

    Returns
    -------
    mean, var, inv_std : (C,) float64 array
        The statistics, ``var`` biased, and ``1 / sqrt(var + eps)``. For ``update_running`` and ``backward``.

    Raises
    ------
    ValueError
        For shapes that do not fit.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    shape = _shape_of(x)
    channels = shape[1]
    if out.shape != x.shape:
        raise ValueError("out: expected the shape of x")
    if gamma.shape != (channels,) or beta.shape != (channels,):
        raise ValueError("gamma, beta: expected one value a channel")
    mean, var, inv_std = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    if x.size == 0:
        inv_std[:] = 1.0 / np.sqrt(eps)
        return mean, var, inv_std
    scale, shift = gamma.astype(np.float64), beta.astype(np.float64)
    if by_columns(shape, 2):
        _last_forward(x.reshape(-1), matrix_of(shape), 1, eps, scale, shift, out.reshape(-1), mean, var, inv_std, False)
    else:
        streaming = 2 * x.nbytes >= _STREAM
        _first_forward(x.reshape(-1), shape, 1, eps, scale, shift, out.reshape(-1), mean, var, inv_std, streaming)
    return mean, var, inv_std


@small
def update_running(
    running_mean: Array,
    running_var: Array,
    mean: Float64Array,
    var: Float64Array,
    count: int,
    momentum: float,
    correction: float,
) -> None:
    """Update running statistics in place::

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * count / (count - correction)

    Parameters
    ----------
    running_mean, running_var : (C,) array, float32 or float64
        Of one dtype.
    mean, var : (C,) float64 array
        From ``forward``.
    count : int
        Values of a channel in the batch, ``outer * inner``.
    momentum : float
        Weight of the batch, 0 to 1.
    correction : float
        1 for the unbiased variance (PyTorch), 0 for the biased one (Keras, ONNX).

    Raises
    ------
    ValueError
        For shapes that do not fit, and for a ``count`` that is not above ``correction``.
    """
    shape = mean.shape
    if var.shape != shape or running_mean.shape != shape or running_var.shape != shape:
        raise ValueError("running_mean, running_var, mean, var: expected one value a channel")
    if count <= correction:
        raise ValueError("count: expected more than correction")
    weighted_mean(running_mean, mean, momentum, 1.0, running_mean)
    weighted_mean(running_var, var, momentum, count / (count - correction), running_var)


@small
def backward(
    dout: Array, x: Array, gamma: Array, mean: Float64Array, inv_std: Float64Array, dx: Array
) -> tuple[Float64Array, Float64Array]:
    """Gradients of ``forward``. With ``x_hat = (x - mean) * inv_std`` over the ``m`` values of a channel::

        dbeta  = sum(dout)
        dgamma = sum(dout * x_hat)
        dx     = gamma * inv_std * (dout - dbeta / m - x_hat * dgamma / m)

    Parameters
    ----------
    dout, x, dx : (outer, C, inner) array
        Of one dtype. ``dx`` is written; it may be ``dout``.
    gamma : (C,) array, float32 or float64
        Scale.
    mean, inv_std : (C,) float64 array
        From ``forward``.

    Returns
    -------
    dgamma, dbeta : (C,) float64 array
        The gradients of scale and shift.

    Raises
    ------
    ValueError
        For shapes that do not fit.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167, section 3, the six equations collected.
    """
    shape = _shape_of(x)
    channels = shape[1]
    if dout.shape != x.shape or dx.shape != x.shape:
        raise ValueError("dout, dx: expected the shape of x")
    if gamma.shape != (channels,) or mean.shape != (channels,) or inv_std.shape != (channels,):
        raise ValueError("gamma, mean, inv_std: expected one value a channel")
    dgamma, dbeta = np.zeros(channels), np.zeros(channels)
    if x.size == 0:
        return dgamma, dbeta
    scale = gamma.astype(np.float64)
    flat = dout.reshape(-1), x.reshape(-1), dx.reshape(-1)
    if by_columns(shape, 2):
        _last_backward(flat[0], flat[1], matrix_of(shape), 1, mean, inv_std, scale, dbeta, dgamma, flat[2], False)
    else:
        streaming = 3 * x.nbytes >= _STREAM_DX
        _first_backward(flat[0], flat[1], shape, 1, mean, inv_std, scale, dbeta, dgamma, flat[2], streaming)
    return dgamma, dbeta
