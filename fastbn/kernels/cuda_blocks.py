"""What a thread does with the values that it has loaded, and with what is given per channel.

The functions of this module, ``cuda_planes`` and ``cuda_columns`` are templates: ``cuda`` compiles them once for each
dtype and width of access, with the globals below bound (see ``jit.with_globals``).

Values are summed in their own dtype, a few at a time about the first of them, and these sums in float64. That costs a
GPU with few float64 units half a float64 operation a value, where float64 throughout would cost four, more time than
the memory takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn._typing import Address, Array, Scalar
from fastbn.kernels import formulas

THREADS = 256
"""The most of a block, but where one has a whole channel."""

LOADS = 4
"""Accesses to each tensor that a thread has in flight."""

LEAST, MOST = 1e-30, 1e37
"""Sums of squares between these, if summed in float32, lost nothing to its range."""

Shape = tuple[int, ...]
Parameter = tuple[Address, int]
"""An address and the bytes of a value, or anything and 0: one number a channel."""

DTYPE: Any = np.float32  # of the tensors
WIDTH = 4  # values of one access
CHUNK = LOADS * WIDTH  # the sizes of arrays have to be names
SHARED = THREADS * WIDTH
COEFFICIENTS = 4 * WIDTH
block_sum: Any = None
load: Any = None
store: Any = None
behind: Any = None
read: Any = None
read32: Any = None
read64: Any = None
write32: Any = None
write64: Any = None
pivot1: Any = formulas.pivot1
block_moments1: Any = formulas.block_moments1
merge_moments1: Any = formulas.merge_moments1
mean_var1: Any = formulas.mean_var1
inv_std1: Any = formulas.inv_std1
affine1: Any = formulas.affine1
normalize1: Any = formulas.normalize1
gradient1: Any = formulas.gradient1
grad_input1: Any = formulas.grad_input1


def given(parameter: Parameter, c: int, default: float) -> Scalar:
    """A channel's parameter in float64."""
    if parameter[1] == 8:
        return np.float64(read64(parameter[0], c))
    if parameter[1] == 4:
        return np.float64(read32(parameter[0], c))
    return np.float64(default)


def put(parameter: Parameter, c: int, value: float) -> None:
    """Write it, rounded, if there is an address."""
    if parameter[1] == 8:
        write64(parameter[0], c, value)
    elif parameter[1] == 4:
        write32(parameter[0], c, value)


def inv_std_of(spread: Parameter, c: int, eps: float) -> Scalar:
    """From the variance, or ``inv_std`` itself where ``eps`` is negative."""
    value = given(spread, c, 1.0)
    return value if eps < 0.0 else inv_std1(value, eps, np.float64(1.0))


def affine(
    x: Address, c: int, mean: Parameter, spread: Parameter, eps: float, gamma: Parameter, beta: Parameter
) -> tuple[Any, Any, Any]:
    """``affine1`` in the dtype of ``x``."""
    inv_std = inv_std_of(spread, c, eps)
    a, b, d = affine1(x, given(mean, c, 0.0), inv_std, given(gamma, c, 1.0), given(beta, c, 0.0))
    return DTYPE(a), DTYPE(b), DTYPE(d)


def gradient(
    x: Address,
    c: int,
    mean: Parameter,
    inv_std: Parameter,
    gamma: Parameter,
    sum_dout: float,
    sum_dout_xhat: float,
    count: float,
) -> tuple[Any, Any, Any, Any]:
    """``gradient1`` in the dtype of ``x``."""
    statistics = given(mean, c, 0.0), given(inv_std, c, 1.0), given(gamma, c, 1.0)
    values = gradient1(x, statistics[0], statistics[1], statistics[2], sum_dout, sum_dout_xhat, count)
    return DTYPE(values[0]), DTYPE(values[1]), DTYPE(values[2]), DTYPE(values[3])


def fold(
    values: Array, start: int, step: int, count: int, pivot: Scalar, total: Scalar, square: Scalar
) -> tuple[Scalar, Scalar]:
    """Add ``count`` values to ``sum(x - pivot)`` and ``sum((x - pivot)**2)``.

    About their own mean, so that no choice of the pivot costs float32 data precision; one by one in float64 where the
    squares leave float32's range, or are not numbers.
    """
    first = values[start]
    about_first = DTYPE(0)
    for j in range(1, count):
        about_first += values[start + j * step] - first
    mean = about_first / DTYPE(count)
    about_mean = mean * mean
    for j in range(1, count):
        centred = values[start + j * step] - first - mean
        about_mean += centred * centred
    if LEAST < about_mean and about_mean < MOST:  # noqa: SIM300 - chained, Numba evaluates it as two calls
        shift = np.float64(first) - pivot + np.float64(mean)
        return total + count * shift, square + (np.float64(about_mean) + count * shift * shift)
    for j in range(count):
        d = np.float64(values[start + j * step]) - pivot
        total += d
        square += d * d
    return total, square


def fold_products(
    douts: Array, values: Array, start: int, step: int, count: int, center: Scalar, total: Scalar, product: Scalar
) -> tuple[Scalar, Scalar]:
    """Add ``count`` values to ``sum(dout)`` and ``sum(dout * (x - center))`` likewise."""
    some, products = DTYPE(0), DTYPE(0)
    for j in range(start, start + count * step, step):
        some += douts[j]
        products += douts[j] * (values[j] - center)
    size = abs(products)
    if LEAST < size and size < MOST:  # noqa: SIM300 - as above
        return total + np.float64(some), product + np.float64(products)
    for j in range(start, start + count * step, step):
        dout = np.float64(douts[j])
        total += dout
        product += dout * (np.float64(values[j]) - np.float64(center))
    return total, product


def origin_of(x: Address, c: int, inner: int) -> Scalar:
    """One value of the channel: what its partials are about."""
    return pivot1(read(x, c * inner))


def cut(size: int, segment: int, segments: int) -> int:
    """Where a segment begins."""
    return size * segment // segments


def keep(statistics: Address, c: int, channels: int, mean: float, var: float, eps: float) -> None:
    """Write a channel's mean, ``inv_std`` and variance."""
    write64(statistics, c, mean)
    write64(statistics, channels + c, inv_std1(var, eps, np.float64(1.0)))
    write64(statistics, 2 * channels + c, var)


def sum_dout_xhat1(total: float, product: float, center: Any, mean: float, inv_std: float) -> Scalar:
    """``sum(dout * x_hat)`` from ``sum(dout)`` and ``sum(dout * (x - center))``."""
    return (product - (mean - np.float64(center)) * total) * inv_std
