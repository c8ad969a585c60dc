"""Channels so far from 0 that ``x - mean`` may leave the dtype's range, although the result is an ordinary number.

Kernels subtract in the dtype of ``x``: no difference from a mean within ``REACH`` overflows, and other means are so
rare that their channels are worked on here, by NumPy in float64 and with all terms halved, after or before the kernel
has done the rest. Extra memory is that of these channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from fastbn._typing import Array, Float64Array
from fastbn.kernels.lanes import REACH

Results: TypeAlias = list[tuple[int, Array]]
"""Channels, and their values in the order of the tensor's other axes."""


def is_far(dtype: Any, mean: Array) -> bool:
    """Whether a channel with this mean may be one."""
    return bool(_channels(dtype, mean).size)


def normalized(x: Array, axis: int, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None) -> Results:
    """``(x - mean) * inv_std * gamma + beta`` of the channels that are far."""
    results: Results = []
    with np.errstate(all="ignore"):
        for c, center in _centers(x.dtype, mean):
            scale = inv_std[c] * (1.0 if gamma is None else np.float64(gamma[c]))
            shift = 0.0 if beta is None else np.float64(beta[c])
            out = (_half(x, axis, c) - center) * (2.0 * scale) + shift
            results.append((c, out.astype(x.dtype)))
    return results


def differentiated(
    dout: Array,
    x: Array,
    axis: int,
    mean: Array,
    inv_std: Array,
    gamma: Array | None,
    sums: tuple[Array, Array],
    count: float,
) -> Results:
    """``gamma * inv_std * (dout - sum_dout / count - x_hat * sum_dout_xhat / count)`` of the channels that are far."""
    results: Results = []
    with np.errstate(all="ignore"):
        for c, center in _centers(x.dtype, mean):
            scale = inv_std[c] * (1.0 if gamma is None else np.float64(gamma[c]))
            x_hat = (_half(x, axis, c) - center) * (2.0 * inv_std[c])
            gradient = np.moveaxis(dout, axis, 0)[c] - sums[0][c] / count - x_hat * (sums[1][c] / count)
            results.append((c, (gradient * scale).astype(x.dtype)))
    return results


def put(results: Results, out: Array, axis: int) -> None:
    """Write the results of channels over what a kernel made of them."""
    for c, values in results:
        np.moveaxis(out, axis, 0)[c] = values


def _channels(dtype: Any, mean: Array) -> Array:
    with np.errstate(all="ignore"):
        size = np.abs(mean)
        return np.flatnonzero((size > REACH[np.dtype(dtype).itemsize]) & (size < np.inf))


def _centers(dtype: Any, mean: Array) -> Iterator[tuple[int, float]]:
    """The channels that are far, with half of their means."""
    return ((int(c), 0.5 * float(mean[c])) for c in _channels(dtype, mean))


def _half(x: Array, axis: int, c: int) -> Float64Array:
    half: Float64Array = np.moveaxis(x, axis, 0)[c] * np.float64(0.5)
    return half
