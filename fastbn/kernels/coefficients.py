"""The coefficients of all channels at once, in float64 rounded to the dtype of ``x``: rows of a (n, C) array."""

from __future__ import annotations

from fastbn._typing import Array, Float64Array
from fastbn.kernels.formulas import affine1, gradient1
from fastbn.kernels.jit import scalar


@scalar
def affine_channels(
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    beta: Float64Array,
    coefficients: Array,
) -> None:
    """``center, scale, shift`` of ``affine1``."""
    center, scale, shift = coefficients[0], coefficients[1], coefficients[2]
    for c in range(mean.size):
        center[c], scale[c], shift[c] = affine1(x, mean[c], inv_std[c], gamma[c], beta[c])


@scalar
def gradient_channels(
    x: Array,
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    count: float,
    coefficients: Array,
) -> None:
    """``center, unit, shift, scale, slope, offset`` of ``gradient1``."""
    for c in range(mean.size):
        center, unit, shift, scale, slope, offset = gradient1(
            x, mean[c], inv_std[c], gamma[c], sum_dout[c], sum_dout_xhat[c], count
        )
        coefficients[0, c], coefficients[1, c], coefficients[2, c] = center, unit, shift
        coefficients[3, c], coefficients[4, c], coefficients[5, c] = scale, slope, offset


@scalar
def spread(values: Array, inner: int, columns: Array) -> None:
    """Give each column the value of its channel.

    A channel has ``inner`` columns side by side, or where ``inner`` is 1, columns a whole set of channels apart.
    """
    channels = values.size
    if inner == 1:
        for first in range(0, columns.size, channels):
            columns[first : first + channels] = values
        return
    for c in range(channels):
        columns[c * inner : (c + 1) * inner] = values[c]
