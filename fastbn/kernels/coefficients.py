"""The coefficients of channels: computed in float64, eight channels at once, and rounded to the dtype of ``x`` last.

The ``small`` functions are called from Python for all channels; the others serve them, and kernels that make their own
statistics, by address. What is given per channel is float32 or float64.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Address2, Address3, Address4, Array, Float64Array
from fastbn.kernels.addresses import data, offset, read, write
from fastbn.kernels.formulas import affine1, gradient1, inv_std1
from fastbn.kernels.jit import inner, small
from fastbn.kernels.lanes import greater, if_zero, least_of, lesser, reach, spread_doubles
from fastbn.kernels.loads import load_first_doubles
from fastbn.kernels.registers import DOUBLES
from fastbn.kernels.stores import store_first


@inner
def three_of(coefficients: Address, channels: int, left: int) -> Address3:
    """Where those of the channels from ``left`` on lie, of (3, C)."""
    first = offset(coefficients, left)
    return first, offset(first, channels), offset(first, 2 * channels)


@inner
def four_of(coefficients: Address, channels: int, left: int) -> Address4:
    """The same of (4, C)."""
    first = offset(coefficients, left)
    return first, offset(first, channels), offset(first, 2 * channels), offset(first, 3 * channels)


@inner
def affine_channels(
    x: Address,
    left: int,
    right: int,
    mean: Address,
    inv_std: Address,
    gamma: Address,
    beta: Address,
    coefficients: Address3,
) -> None:
    """``center, scale, shift`` of ``affine1`` for the channels ``left`` to ``right``, from index 0 on."""
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        values = affine1(
            x,
            load_first_doubles(mean, c, n, 0.0),
            load_first_doubles(inv_std, c, n, 0.0),
            load_first_doubles(gamma, c, n, 0.0),
            load_first_doubles(beta, c, n, 0.0),
        )
        for j in range(3):
            store_first(coefficients[j], c - left, n, values[j])


@inner
def gradient_channels(
    x: Address,
    left: int,
    right: int,
    mean: Address,
    inv_std: Address,
    gamma: Address,
    sum_dout: Address,
    sum_dout_xhat: Address,
    count: float,
    coefficients: Address4,
) -> None:
    """``center, slope, offset, scale`` of ``gradient1`` likewise."""
    counts = spread_doubles(count)
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        values = gradient1(
            x,
            load_first_doubles(mean, c, n, 0.0),
            load_first_doubles(inv_std, c, n, 0.0),
            load_first_doubles(gamma, c, n, 0.0),
            load_first_doubles(sum_dout, c, n, 0.0),
            load_first_doubles(sum_dout_xhat, c, n, 0.0),
            counts,
        )
        for j in range(4):
            store_first(coefficients[j], c - left, n, values[j])


@inner
def finish_statistics(
    x: Address,
    left: int,
    right: int,
    eps: float,
    parameters: Address2,
    statistics: Address3,
    coefficients: Address3,
) -> None:
    """``inv_std`` and coefficients of the channels ``left`` to ``right`` from gamma and beta, mean and variance."""
    mean, var, inv_std = statistics
    inv_std_channels(left, right, var, eps, inv_std)
    affine_channels(x, left, right, mean, inv_std, parameters[0], parameters[1], coefficients)


@inner
def finish_products(left: int, right: int, inv_std: Address, sums: Address2) -> None:
    """``sum(dout * x_hat)`` of the channels ``left`` to ``right`` from ``sum(dout * (x - mean))``."""
    for c in range(left, right):
        write(sums[1], c, read(sums[1], c) * read(inv_std, c))


@inner
def finish_gradient(
    x: Address,
    left: int,
    right: int,
    count: float,
    statistics: Address3,
    sums: Address2,
    coefficients: Address4,
) -> None:
    """``finish_products``, and the coefficients, from mean, ``inv_std`` and gamma."""
    mean, inv_std, gamma = statistics
    finish_products(left, right, inv_std, sums)
    gradient_channels(x, left, right, mean, inv_std, gamma, sums[0], sums[1], count, coefficients)


@small
def affine(mean: Array, inv_std: Array, gamma: Array, beta: Array, coefficients: Array) -> None:
    """``coefficients``, (3, C), of ``affine1``."""
    x = data(coefficients)
    values = three_of(x, mean.size, 0)
    affine_channels(x, 0, mean.size, data(mean), data(inv_std), data(gamma), data(beta), values)


@inner
def inv_std_channels(left: int, right: int, var: Address, eps: float, inv_std: Address) -> None:
    """``inv_std1`` of the channels ``left`` to ``right``: 1024 of them one by one took 3 us longer."""
    for c in range(left, right, DOUBLES):
        n = min(DOUBLES, right - c)
        inverse = inv_std1(load_first_doubles(var, c, n, 1.0), spread_doubles(eps), spread_doubles(1.0))
        store_first(inv_std, c, n, inverse)


@inner
def statistics_channels(
    mean: Address, var: Address, eps: float, channels: int, mean64: Address, inv_std: Address
) -> float:
    """Write the mean in float64 and ``inv_std``; the least variance.

    NaN is not compared; where there is nothing else the least is infinity.
    """
    least = spread_doubles(np.inf)
    for c in range(0, channels, DOUBLES):
        n = min(DOUBLES, channels - c)
        store_first(mean64, c, n, load_first_doubles(mean, c, n, 0.0))
        least = lesser(load_first_doubles(var, c, n, np.inf), least)
    inv_std_channels(0, channels, var, eps, inv_std)
    return least_of(least)


@inner
def is_near(x: Address, mean: Address, channels: int) -> bool:
    """Whether no finite mean is out of ``reach`` of the dtype of ``x``."""
    none = spread_doubles(0.0)
    farthest = none
    for c in range(0, channels, DOUBLES):
        value = load_first_doubles(mean, c, min(DOUBLES, channels - c), 0.0)
        value = if_zero(value - value, value, none)
        farthest = greater(greater(value, none - value), farthest)
    return -least_of(none - farthest) <= reach(x)


@small
def affine_of_var(
    mean: Array,
    var: Array,
    eps: float,
    gamma: Array,
    beta: Array,
    mean64: Float64Array,
    inv_std: Float64Array,
    coefficients: Array,
) -> float:
    """The same from variances; also ``statistics_channels``."""
    least = statistics_channels(data(mean), data(var), eps, mean.size, data(mean64), data(inv_std))
    x = data(coefficients)
    values = three_of(x, mean.size, 0)
    affine_channels(x, 0, mean.size, data(mean64), data(inv_std), data(gamma), data(beta), values)
    return least


@small
def gradient(
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    count: float,
    coefficients: Array,
) -> None:
    """``coefficients``, (4, C), of ``gradient1``."""
    x = data(coefficients)
    values = four_of(x, mean.size, 0)
    statistics = data(mean), data(inv_std), data(gamma), data(sum_dout), data(sum_dout_xhat)
    gradient_channels(
        x, 0, mean.size, statistics[0], statistics[1], statistics[2], statistics[3], statistics[4], count, values
    )


@small
def weighted_mean(old: Array, batch: Float64Array, momentum: float, factor: float, new: Array) -> None:
    """``new = (1 - momentum) * old + momentum * (batch * factor)`` in float64; ``new`` may be ``old``."""
    weights = spread_doubles(1.0 - momentum), spread_doubles(momentum), spread_doubles(factor)
    for c in range(0, old.size, DOUBLES):
        n = min(DOUBLES, old.size - c)
        values = load_first_doubles(data(old), c, n, 0.0), load_first_doubles(data(batch), c, n, 0.0)
        store_first(data(new), c, n, weights[0] * values[0] + weights[1] * (values[1] * weights[2]))


@inner
def copy(values: Address, left: int, right: int, target: Address) -> None:
    """``values[left:right]``, to index 0 and on."""
    for c in range(left, right):
        write(target, c - left, read(values, c))


@inner
def spread_columns(columns: Address, channels: int, inner: int, tile: int) -> None:
    """Give each column the value of its channel, in place, from the last to the first.

    A channel has ``inner`` columns side by side, or where ``inner`` is 1, ``tile`` columns a set of channels apart.
    """
    if inner > 1:
        for c in range(channels - 1, -1, -1):
            value = read(columns, c)
            for i in range(c * inner, (c + 1) * inner):
                write(columns, i, value)
    for i in range(channels, channels * tile):
        write(columns, i, read(columns, i - channels))
