"""How far a result may be from ``fastbn.reference``, for data of any mean and deviation: first-order error bounds.

``u`` is the ``eps`` of the tensor's dtype, ``e`` that of float64. Everything is float64 and broadcasts against the
tensor with its channels first. What is ill-conditioned, a deviation that is small against the mean, shows in
``mean_error * inv_std``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.tolerances import ELEMENT, SUMS

E = np.finfo(np.float64).eps


def rows(x, axis):
    """(C, m) float64."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def column(values, channels, default):
    """(C, 1) float64."""
    return np.full((channels, 1), default) if values is None else np.asarray(values, np.float64).reshape(channels, 1)


@dataclass
class Exact:
    """The exact results for ``x`` with given statistics, and their error bounds."""

    x: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    mean_error: np.ndarray
    var_error: np.ndarray
    eps: float
    u: float

    @classmethod
    def of_batch(cls, x, axis, eps):
        """With the batch's own statistics."""
        values = rows(x, axis)
        step = E * SUMS * (4 + np.sqrt(values.shape[1]))
        origin = values[:, :1]
        shifted = values - origin
        shift = shifted.mean(1, keepdims=True)
        mean = origin + shift
        far = np.abs(values - mean)
        reach = far.max(1, keepdims=True)
        error = step * reach + E * SUMS * np.abs(mean)
        var = (far**2).mean(1, keepdims=True)
        return cls(values, mean, var, error, step * (var + reach**2) + error**2, eps, np.finfo(x.dtype).eps)

    @classmethod
    def given(cls, x, axis, mean, var, eps):
        """With running statistics."""
        values = rows(x, axis)
        mean, var = (column(a, len(values), None) for a in (mean, var))
        return cls(values, mean, var, E * SUMS * np.abs(mean), E * SUMS * var, eps, np.finfo(x.dtype).eps)

    def __post_init__(self):
        self.inv_std = 1.0 / np.sqrt(self.var + self.eps)
        self.relative = self.var_error / (self.var + self.eps) + 2 * E
        self.x_hat = (self.x - self.mean) * self.inv_std
        self.x_hat_error = self.mean_error * self.inv_std + np.abs(self.x_hat) * self.relative
        self.lost = self.u * np.abs(self.mean) * self.inv_std
        """What the rounding of the mean to the dtype of ``x`` adds to the terms."""

    @property
    def merged_var(self):
        """The variance and its error where it was merged from parts, whose means were rounded."""
        reach = np.abs(self.x - self.mean).max(1, keepdims=True)
        return self.var, self.var_error + 2 * reach * self.mean_error

    def out(self, gamma, beta):
        """``out`` and its error."""
        gamma, beta = column(gamma, len(self.x), 1.0), column(beta, len(self.x), 0.0)
        terms = np.abs(gamma) * (np.abs(self.x_hat) + self.lost) + np.abs(beta)
        return self.x_hat * gamma + beta, ELEMENT * self.u * terms + np.abs(gamma) * self.x_hat_error

    def sums(self, dout, axis):
        """``sum(dout)`` and ``sum(dout * x_hat)``, (C, 1), each with its error."""
        dout = rows(dout, axis)
        step = E * SUMS * (4 + np.sqrt(dout.shape[1]))
        total, product = dout.sum(1, keepdims=True), (dout * self.x_hat).sum(1, keepdims=True)
        total_error = step * np.abs(dout).sum(1, keepdims=True)
        terms = step * np.abs(dout * self.x_hat) + np.abs(dout) * self.x_hat_error
        return (total, total_error), (product, terms.sum(1, keepdims=True))

    def dx(self, dout, axis, gamma, count=None, sums=None):
        """``dx`` and its error."""
        (total, total_error), (product, product_error) = self.sums(dout, axis) if sums is None else sums
        dout, gamma = rows(dout, axis), column(gamma, len(self.x), 1.0)
        m = self.x.shape[1] if count is None else count
        factor = np.abs(gamma) * self.inv_std
        exact = gamma * self.inv_std * (dout - total / m - self.x_hat * product / m)
        terms = np.abs(dout) + np.abs(total) / m + (np.abs(self.x_hat) + self.lost) * np.abs(product) / m
        error = total_error + np.abs(self.x_hat) * product_error + np.abs(product) * self.x_hat_error
        return exact, factor * ((ELEMENT * self.u + self.relative) * terms + error / m)


def assert_close(actual, expected, axis=0):
    """Within the error; ``expected`` is a pair of exact values and errors."""
    exact, error = expected
    actual = rows(actual, axis) if np.ndim(actual) > 1 else np.asarray(actual, np.float64).reshape(-1, 1)
    assert actual.shape == exact.shape
    excess = np.abs(actual - exact) - error
    assert (excess <= np.finfo(np.float64).tiny).all(), (np.nanmax(excess), np.isnan(actual).any())


def rounded_to(dtype, expected):
    """The error of values that are stored in this dtype."""
    exact, error = expected
    return exact, error + np.finfo(dtype).eps * np.abs(exact)
