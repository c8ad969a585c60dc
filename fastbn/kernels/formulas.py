"""The formulas of batch normalization for one channel or one value, shared by every layout and target.

The suffix 1 marks a function of scalars. Coefficients are computed in float64 and cast to the dtype of ``x`` last;
``x`` is an argument of some functions for its dtype only.
"""

from __future__ import annotations

import math

import numpy as np

from fastbn._typing import Array, Coefficients3, Coefficients6, Moments3, Scalar
from fastbn.kernels.jit import elementwise, scalar


@scalar
def pivot1(value: Scalar) -> float:
    """The number subtracted from a block before it is summed: its first value, or 0 where that is not finite.

    The pivot belongs to the block, so the block's variance is at least ``(pivot - mean)**2 / count``: however far an
    outlier the pivot is, the cancellation in ``sum(d * d) - sum(d)**2 / count`` costs a factor of about ``count`` of
    float64's precision (1e-10 was the worst seen). A constant block gives exact zeros.
    """
    pivot = np.float64(value)
    if math.isfinite(pivot):
        return pivot
    return 0.0


@scalar
def block_moments1(count: float, pivot: float, total: float, square: float, origin: float) -> Moments3:
    """Moments of a block from ``total = sum(x - pivot)`` and ``square = sum((x - pivot)**2)``.

    Moments are a count, the sum of ``x - origin``, and the centred sum of squares. All blocks of a channel share the
    origin, one of the channel's values, so that their sums add up without rounding where the data allow it.
    """
    m2 = square - total / count * total
    if m2 < 0.0:  # rounding; NaN passes
        m2 = 0.0
    return count, total + count * (pivot - origin), m2


@scalar
def merge_moments1(
    count_a: float, total_a: float, m2_a: float, count_b: float, total_b: float, m2_b: float
) -> Moments3:
    """Moments of two disjoint sets together (Chan, Golub and LeVeque 1979, eq. 2.1)."""
    if count_a == 0.0:
        return count_b, total_b, m2_b
    count = count_a + count_b
    delta = total_b / count_b - total_a / count_a
    return count, total_a + total_b, m2_a + m2_b + delta * delta * (count_a * count_b / count)


@scalar
def mean_var1(origin: float, count: float, total: float, m2: float) -> tuple[float, float]:
    """Mean and biased variance from moments."""
    return origin + total / count, m2 / count


@scalar
def inv_std1(var: float, eps: float) -> float:
    """``1 / sqrt(var + eps)``, rounded as NumPy rounds it."""
    return 1.0 / math.sqrt(var + eps)


@scalar
def affine1(x: Array, mean: float, inv_std: float, gamma: float, beta: float) -> Coefficients3:
    """``center, scale, shift`` such that ``out = (x - center) * scale + shift``.

    ``center`` is the mean rounded to the dtype of ``x``; what the rounding lost goes into ``shift``. Near the mean the
    subtraction is exact, so the output of float32 data is as exact at mean 1e4 as at 0 (5e-7 against the 1.5e-3 of
    ``x * scale + shift``), at the same traffic.
    """
    scale = gamma * inv_std
    center = x.dtype.type(mean)
    lost = mean - np.float64(center)
    if lost == 0.0:  # also where scale is infinite (a variance of 0 with eps = 0)
        return center, x.dtype.type(scale), x.dtype.type(beta)
    return center, x.dtype.type(scale), x.dtype.type(beta - lost * scale)


@elementwise
def normalize1(x: Scalar, center: Scalar, scale: Scalar, shift: Scalar) -> Scalar:
    """One value of the output."""
    return (x - center) * scale + shift


@scalar
def gradient1(
    x: Array, mean: float, inv_std: float, gamma: float, sum_dout: float, sum_dout_xhat: float, count: float
) -> Coefficients6:
    """``center, unit, shift, scale, slope, offset`` of ``grad_input1``.

    Ioffe and Szegedy 2015, section 3, collected: ``dx = gamma * inv_std * (dout - sum(dout) / m - x_hat *
    sum(dout * x_hat) / m)``. ``x_hat`` is formed first: multiplied out, its coefficient holds ``inv_std**2``, which
    leaves float32's range for data of deviation 1e20.
    """
    scale = gamma * inv_std
    center, unit, shift = affine1(x, mean, inv_std, 1.0, 0.0)
    slope = x.dtype.type(-scale * (sum_dout_xhat / count))
    offset = x.dtype.type(-scale * (sum_dout / count))
    return center, unit, shift, x.dtype.type(scale), slope, offset


@elementwise
def grad_input1(
    dout: Scalar,
    x: Scalar,
    center: Scalar,
    unit: Scalar,
    shift: Scalar,
    scale: Scalar,
    slope: Scalar,
    offset: Scalar,
) -> Scalar:
    """One value of ``dx``; the arguments after ``x`` are those of ``gradient1``."""
    x_hat = (x - center) * unit + shift
    return scale * dout + (slope * x_hat + offset)
