"""The specification: batch normalization in float64 NumPy, formula by formula.

Slow, allocates freely, and checks nothing. Tensors have their channels on ``axis``; parameters and statistics are
(C,). The equations are those of Ioffe and Szegedy 2015, arXiv:1502.03167. Tests and benchmarks measure against this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F = NDArray[np.float64]


def _over(axis: int, ndim: int) -> tuple[int, ...]:
    """Every axis but the channel axis."""
    return tuple(i for i in range(ndim) if i != axis % ndim)


@np.errstate(all="ignore")
def _spread(values: Any, axis: int, ndim: int) -> F:
    """(C,) values with the shape that broadcasts along the channel axis."""
    shape = [1] * ndim
    shape[axis] = -1
    spread: F = np.asarray(values, dtype=np.float64).reshape(shape)
    return spread


@np.errstate(all="ignore")
def moments(x: Any, *, axis: int = 1) -> tuple[F, F]:
    """``mean = sum(x) / m`` and ``var = sum((x - mean)**2) / m``, in two passes."""
    x = np.asarray(x, dtype=np.float64)
    over = _over(axis, x.ndim)
    mean: F = x.mean(axis=over)
    var: F = ((x - _spread(mean, axis, x.ndim)) ** 2).mean(axis=over)
    return mean, var


@np.errstate(all="ignore")
def normalize(x: Any, mean: Any, inv_std: Any, gamma: Any = 1.0, beta: Any = 0.0, *, axis: int = 1) -> F:
    """``x_hat = (x - mean) * inv_std`` and ``out = gamma * x_hat + beta``."""
    x = np.asarray(x, dtype=np.float64)
    mean, inv_std, gamma, beta = (_spread(value, axis, x.ndim) for value in (mean, inv_std, gamma, beta))
    out: F = gamma * ((x - mean) * inv_std) + beta
    return out


@np.errstate(all="ignore")
def forward(x: Any, gamma: Any = 1.0, beta: Any = 0.0, *, eps: float = 1e-5, axis: int = 1) -> tuple[F, F, F]:
    """Algorithm 1: the output, the batch's mean and its biased variance."""
    mean, var = moments(x, axis=axis)
    return normalize(x, mean, 1.0 / np.sqrt(var + eps), gamma, beta, axis=axis), mean, var


@np.errstate(all="ignore")
def running(old: Any, batch: Any, momentum: float) -> F:
    """``(1 - momentum) * old + momentum * batch``."""
    return np.asarray((1.0 - momentum) * np.asarray(old, np.float64) + momentum * np.asarray(batch, np.float64))


@np.errstate(all="ignore")
def inference(x: Any, mean: Any, var: Any, gamma: Any = 1.0, beta: Any = 0.0, *, eps: float = 1e-5, axis: int = 1) -> F:
    """Algorithm 2: given statistics in place of the batch's."""
    return normalize(x, mean, 1.0 / np.sqrt(np.asarray(var, np.float64) + eps), gamma, beta, axis=axis)


@np.errstate(all="ignore")
def backward(dout: Any, x: Any, gamma: Any = 1.0, *, eps: float = 1e-5, axis: int = 1) -> tuple[F, F, F]:
    """The gradients in closed form: ``dx``, ``dgamma``, ``dbeta``."""
    x, dout = np.asarray(x, np.float64), np.asarray(dout, np.float64)
    over = _over(axis, x.ndim)
    mean, var = moments(x, axis=axis)
    m = x.size / max(mean.size, 1)
    inv_std = _spread(1.0 / np.sqrt(var + eps), axis, x.ndim)
    x_hat = (x - _spread(mean, axis, x.ndim)) * inv_std
    dbeta = dout.sum(axis=over)
    dgamma = (dout * x_hat).sum(axis=over)
    sum_dout, sum_dout_xhat = _spread(dbeta, axis, x.ndim), _spread(dgamma, axis, x.ndim)
    dx = _spread(gamma, axis, x.ndim) * inv_std / m * (m * dout - sum_dout - x_hat * sum_dout_xhat)
    return dx, dgamma, dbeta


@np.errstate(all="ignore")
def backward_by_chain_rule(dout: Any, x: Any, gamma: Any = 1.0, *, eps: float = 1e-5, axis: int = 1) -> tuple[F, F, F]:
    """The same gradients step by step, as section 3 of the paper gives them."""
    x, dout = np.asarray(x, np.float64), np.asarray(dout, np.float64)
    over = _over(axis, x.ndim)
    mean, var = moments(x, axis=axis)
    m = x.size / max(mean.size, 1)
    centred = x - _spread(mean, axis, x.ndim)
    std = np.sqrt(_spread(var, axis, x.ndim) + eps)

    dx_hat = dout * _spread(gamma, axis, x.ndim)
    dvar = (dx_hat * centred * -0.5 * std**-3).sum(axis=over, keepdims=True)
    dmean = (dx_hat * (-1.0 / std)).sum(axis=over, keepdims=True) + dvar * (-2.0 * centred).mean(
        axis=over, keepdims=True
    )
    dx = dx_hat / std + dvar * 2.0 * centred / m + dmean / m
    dgamma = (dout * centred / std).sum(axis=over)
    dbeta = dout.sum(axis=over)
    return dx, dgamma, dbeta
