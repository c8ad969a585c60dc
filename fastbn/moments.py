"""The phases of batch normalization one by one, for data that is spread over processes, machines or time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _device, _engine
from fastbn import _validation as check
from fastbn._typing import Array, Float64Array


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Count, mean and biased variance of each channel of some data.

    ``count`` is the number of values per channel, ``mean`` and ``var`` are (C,) float64. Moments of parts of the data
    merge into those of the whole, so a batch may be spread over processes, or a data set over time. Made by
    ``fastbn.moments``, or from such numbers; ``ValueError`` and ``TypeError`` if they do not fit together.
    """

    count: int
    mean: Float64Array
    var: Float64Array

    def __post_init__(self) -> None:
        """Validate what other processes sent."""
        mean = _engine.float64(check.vector("mean", self.mean))
        var = _engine.float64(check.parameter("var", self.var, mean.size))
        check.variance("var", var, 0.0)
        for name, value in (("count", check.size("count", self.count)), ("mean", mean), ("var", var)):
            object.__setattr__(self, name, value)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of data together, up to rounding in float64.

        ``mean`` is a float64 number, whose rounding is up to ``1e-16 * |mean|``: in deviations, that bounds the
        relative error that merging adds to ``var``. Thirty parts about 1e8, deviation 1, gave 7e-10.

        With ``n = n_a + n_b`` and ``delta = mean_b - mean_a``::

            mean = mean_a + delta * n_b / n
            var  = (n_a * var_a + n_b * var_b + delta**2 * n_a * n_b / n) / n

        Raises ``TypeError`` if ``other`` is not a ``Moments`` and ``ValueError`` if it has another number of channels.

        References: Chan, Golub and LeVeque 1979, *Updating formulae and a pairwise algorithm for computing sample
        variances*, eq. 2.1.
        """
        check.instance("other", other, Moments)
        check.parameter("other.mean", other.mean, self.mean.size)
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        weight = other.count / count
        with np.errstate(all="ignore"):  # NaN and infinity in a channel
            delta = other.mean - self.mean
            var = (1.0 - weight) * self.var + weight * other.var + (1.0 - weight) * weight * delta * delta
            return Moments(count, self.mean + weight * delta, var)


def moments(x: ArrayLike, *, axis: int = 1) -> Moments:
    """Mean and biased variance of each channel, over every axis but ``axis``.

    ::

        mean = sum(x) / m
        var  = sum((x - mean)**2) / m

    Parameters
    ----------
    x : array, two or more dimensions, float32 or float64
        The data. With no values, ``count`` is 0 and so are ``mean`` and ``var``.
    axis : int
        The channel axis.

    Returns
    -------
    Moments
        Taken in blocks that are shifted by one of their own values, in float64, and merged: a large mean costs no
        precision.

    Raises
    ------
    ValueError, TypeError
        As ``fastbn.forward``.
    """
    if check.on_device(x):
        there: Moments = _device.front().moments(x, axis=axis)
        return there
    x = check.tensor("x", x)
    axis = check.channel_axis(axis, x.ndim)
    mean, var = _engine.batch_stats(x, axis)
    return Moments(x.size // mean.size if mean.size else math.prod(x.shape[:axis] + x.shape[axis + 1 :]), mean, var)


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    inv_std: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """``out = (x - mean) * inv_std * gamma + beta``, with ``inv_std = 1 / sqrt(var + eps)``.

    Parameters
    ----------
    x : array, two or more dimensions, float32 or float64
        The input.
    mean, inv_std : (C,) array, float32 or float64
        The statistics. For full precision give ``mean`` in float64.
    gamma, beta : (C,) array, float32 or float64, optional
        Scale and shift; ``None`` means ones and zeros.
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
        As ``fastbn.forward``.
    """
    if check.on_device(x):
        there: Array = _device.front().normalize(x, mean, inv_std, gamma, beta, axis=axis, out=out)
        return there
    x = check.tensor("x", x)
    axis = check.channel_axis(axis, x.ndim)
    channels = x.shape[axis]
    mean = check.parameter("mean", mean, channels)
    inv_std = check.parameter("inv_std", inv_std, channels)
    gamma = check.optional_parameter("gamma", gamma, channels)
    beta = check.optional_parameter("beta", beta, channels)
    out = check.out_like("out", out, x, may_be=x, mean=mean, inv_std=inv_std, gamma=gamma, beta=beta)
    return _engine.normalize(x, axis, mean, inv_std, gamma, beta, out)


def backward_sums(
    dout: ArrayLike, x: ArrayLike, mean: ArrayLike, inv_std: ArrayLike, *, axis: int = 1
) -> tuple[Float64Array, Float64Array]:
    """The two sums that the gradient needs of the whole batch; sums of parts add up.

    With ``x_hat = (x - mean) * inv_std``::

        sum_dout      = sum(dout)            (= dbeta)
        sum_dout_xhat = sum(dout * x_hat)    (= dgamma)

    Parameters
    ----------
    dout, x : array
        Gradient of the output, and the input; same shape and dtype.
    mean, inv_std : (C,) array, float32 or float64
        The statistics of the whole batch.
    axis : int
        The channel axis.

    Returns
    -------
    sum_dout, sum_dout_xhat : (C,) float64 array

    Raises
    ------
    ValueError, TypeError
        As ``fastbn.backward``.
    """
    if check.on_device(x):
        there: tuple[Float64Array, Float64Array] = _device.front().backward_sums(dout, x, mean, inv_std, axis=axis)
        return there
    x = check.tensor("x", x)
    axis = check.channel_axis(axis, x.ndim)
    dout = check.tensor_like("dout", dout, x)
    mean = check.parameter("mean", mean, x.shape[axis])
    inv_std = check.parameter("inv_std", inv_std, x.shape[axis])
    return _engine.backward_sums(dout, x, axis, _engine.float64(mean), _engine.float64(inv_std))


def backward_input(
    dout: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    inv_std: ArrayLike,
    gamma: ArrayLike | None,
    sum_dout: ArrayLike,
    sum_dout_xhat: ArrayLike,
    count: float,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """``dx = gamma * inv_std * (dout - sum_dout / count - x_hat * sum_dout_xhat / count)``.

    Parameters
    ----------
    dout, x : array
        Gradient of the output, and the input; same shape and dtype.
    mean, inv_std : (C,) array, float32 or float64
        The statistics of the whole batch.
    gamma : (C,) array, float32 or float64, or None
        ``None`` means ones.
    sum_dout, sum_dout_xhat : (C,) array, float32 or float64
        From ``backward_sums``, added up over all parts of the batch.
    count : float
        Values per channel in the whole batch.
    axis : int
        The channel axis.
    out : array, optional
        Where to write ``dx``: shape and dtype of ``x``. It may be ``dout`` itself.

    Returns
    -------
    dx : array
        Shape and dtype of ``x``.

    Raises
    ------
    ValueError, TypeError
        As ``fastbn.backward``.
    """
    if check.on_device(x):
        given = dout, x, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count
        there: Array = _device.front().backward_input(*given, axis=axis, out=out)
        return there
    count = check.count(count)
    x = check.tensor("x", x)
    axis = check.channel_axis(axis, x.ndim)
    channels = x.shape[axis]
    dout = check.tensor_like("dout", dout, x)
    gamma = check.optional_parameter("gamma", gamma, channels)
    statistics = {"mean": mean, "inv_std": inv_std, "sum_dout": sum_dout, "sum_dout_xhat": sum_dout_xhat}
    arrays = {name: check.parameter(name, value, channels) for name, value in statistics.items()}
    out = check.out_like("out", out, x, may_be=dout, x=x, gamma=gamma, **arrays)
    mean64, inv_std64, *sums = map(_engine.float64, arrays.values())
    return _engine.backward_input(dout, x, axis, mean64, inv_std64, gamma, _engine.Sums(*sums), count, out)
