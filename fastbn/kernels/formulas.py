"""The formulas of batch normalization for one channel or one value, shared by every layout and target.

The suffix 1 marks a function of one channel or value. But for ``pivot1`` they take ``lanes`` of
eight channels or sixteen values as well. Coefficients are computed in float64; ``x`` is an argument for its dtype.
"""

from __future__ import annotations

import math

import numpy as np

from fastbn._typing import Address, Coefficients3, Coefficients4, Moments3, Scalar
from fastbn.kernels.jit import elementwise, inner
from fastbn.kernels.lanes import greater, if_zero, lesser, not_negative, root, rounded


@inner
def middle1(a: Scalar, b: Scalar, c: Scalar) -> Scalar:
    """The middle one of three values: no single outlier, or zero beside values far from 0, is taken for a pivot."""
    return greater(lesser(a, b), lesser(greater(a, b), c))


@inner
def pivot1(value: Scalar) -> float:
    """The number subtracted from a block before it is summed: one of its values, or 0 where that is not finite.

    The pivot belongs to the block, so the block's variance is at least ``(pivot - mean)**2 / count``: however far an
    outlier the pivot is, the cancellation in ``sum(d * d) - sum(d)**2 / count`` costs a factor of about ``count`` of
    float64's precision. On a CPU the value is the ``middle1`` of three: where two of these are outliers, variances
    were off by 1e-11 to 8e-11, else by 1e-14 or less. A constant block gives exact zeros.
    """
    pivot = np.float64(value)
    if math.isfinite(pivot):
        return pivot
    return 0.0


@inner
def block_moments1(count: Scalar, pivot: Scalar, total: Scalar, square: Scalar, origin: Scalar) -> Moments3:
    """Moments of a block from ``total = sum(x - pivot)`` and ``square = sum((x - pivot)**2)``.

    Moments are a count, the sum of ``x - origin``, and the centred sum of squares. All blocks of a channel share the
    origin, one of the channel's values, so that their sums add up without rounding where the data allow it.
    """
    m2 = not_negative(square - total / count * total)  # rounding can make it so
    return count, total + count * (pivot - origin), m2


@inner
def merge_moments1(
    count_a: Scalar, total_a: Scalar, m2_a: Scalar, count_b: Scalar, total_b: Scalar, m2_b: Scalar
) -> Moments3:
    """Moments of two disjoint sets together (Chan, Golub and LeVeque 1979, eq. 2.1)."""
    count = count_a + count_b
    delta = total_b / count_b - total_a / count_a
    return count, total_a + total_b, m2_a + m2_b + delta * delta * (count_a * count_b / count)


@inner
def mean_var1(origin: Scalar, count: Scalar, total: Scalar, m2: Scalar) -> tuple[Scalar, Scalar]:
    """Mean and biased variance from moments."""
    return origin + total / count, m2 / count


@inner
def inv_std1(var: Scalar, eps: Scalar, one: Scalar) -> Scalar:
    """``1 / sqrt(var + eps)``, rounded as NumPy rounds it; ``one`` is 1, of the kind of ``var``."""
    return one / root(var + eps)


@inner
def affine1(x: Address, mean: Scalar, inv_std: Scalar, gamma: Scalar, beta: Scalar) -> Coefficients3:
    """``center, scale, shift`` such that ``out = (x - center) * scale + shift``.

    ``center`` is the mean rounded to the dtype of ``x``; what the rounding lost goes into ``shift``. Near the mean the
    subtraction is exact, so the output of float32 data is as exact at mean 1e4 as at 0 (5e-7 against the 1.5e-3 of
    ``x * scale + shift``), at the same traffic.
    """
    scale = gamma * inv_std
    center = rounded(x, mean)
    lost = mean - center
    infinite = scale - scale + (center - center)  # not zero there: a variance of 0 with eps = 0, or an infinite mean
    shift = if_zero(infinite, beta - lost * scale, beta)
    return center, scale, shift


@elementwise
def normalize1(x: Scalar, center: Scalar, scale: Scalar, shift: Scalar) -> Scalar:
    """One value of the output."""
    return (x - center) * scale + shift


@inner
def gradient1(
    x: Address,
    mean: Scalar,
    inv_std: Scalar,
    gamma: Scalar,
    sum_dout: Scalar,
    sum_dout_xhat: Scalar,
    count: Scalar,
) -> Coefficients4:
    """``center, slope, offset, scale`` such that ``dx = (dout - ((x - center) * slope + offset)) * scale``.

    Ioffe and Szegedy 2015, section 3, collected: ``dx = gamma * inv_std * (dout - sum(dout) / m - x_hat *
    sum(dout * x_hat) / m)``; ``center`` is that of ``affine1``. ``scale`` comes last: multiplied out, ``slope`` would
    hold ``inv_std**2``, which leaves float32's range for data of deviation 1e20. With ``x_hat`` formed first there are
    six coefficients, and dx of rows in order took 1.05 to 1.1 times as long.
    """
    center = rounded(x, mean)
    lost = mean - center
    mean_product = sum_dout_xhat / count
    slope = inv_std * mean_product
    shift = if_zero(slope - slope, lost * inv_std * mean_product, lost - lost)
    return center, slope, sum_dout / count - shift, gamma * inv_std


@elementwise
def grad_input1(
    dout: Scalar,
    x: Scalar,
    center: Scalar,
    slope: Scalar,
    offset: Scalar,
    scale: Scalar,
) -> Scalar:
    """One value of ``dx``; the arguments after ``x`` are those of ``gradient1``."""
    return (dout - ((x - center) * slope + offset)) * scale
