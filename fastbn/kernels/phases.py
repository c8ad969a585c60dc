"""Forward and backward where a channel's values are cut into segments: the phases one after another, in one call.

Each takes what the fused kernel of the same name takes, but for the shape, with which the number of segments comes.
They are templates: ``_statistics`` and ``_output`` are bound to two twins of a module's kernels, which do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastbn._typing import Array, Float64Array
from fastbn.kernels.addresses import data, offset
from fastbn.kernels.coefficients import affine_channels, gradient_channels, inv_std_channels
from fastbn.kernels.jit import inner, with_globals

_statistics: Any = None  # batch_stats or backward_sums
_output: Any = None  # normalize or backward_input


def _forward(
    x: Array,
    cut: tuple[Any, int],
    eps: float,
    gamma: Float64Array,
    beta: Float64Array,
    out: Array,
    mean: Float64Array,
    var: Float64Array,
    inv_std: Float64Array,
    streaming: bool,
) -> None:
    """``batch_stats``, then ``normalize``."""
    channels = mean.size
    _statistics(x, cut[0], cut[1], mean, var)
    inv_std_channels(0, channels, data(var), eps, data(inv_std))
    coefficients = np.empty((3, channels), x.dtype)
    first = data(coefficients)
    values = first, offset(first, channels), offset(first, 2 * channels)
    affine_channels(data(x), 0, channels, data(mean), data(inv_std), data(gamma), data(beta), values)
    _output(x, cut[0], coefficients, out, streaming)


def _backward(
    dout: Array,
    x: Array,
    cut: tuple[Any, int],
    mean: Float64Array,
    inv_std: Float64Array,
    gamma: Float64Array,
    sum_dout: Float64Array,
    sum_dout_xhat: Float64Array,
    dx: Array,
    streaming: bool,
) -> None:
    """``backward_sums``, then ``backward_input``."""
    channels = mean.size
    _statistics(dout, x, cut[0], mean, inv_std, cut[1], sum_dout, sum_dout_xhat)
    coefficients = np.empty((4, channels), x.dtype)
    first = data(coefficients)
    values = first, offset(first, channels), offset(first, 2 * channels), offset(first, 3 * channels)
    gradient_channels(
        data(x),
        0,
        channels,
        data(mean),
        data(inv_std),
        data(gamma),
        data(sum_dout),
        data(sum_dout_xhat),
        np.float64(x.size // channels),
        values,
    )
    _output(dout, x, cut[0], coefficients, dx, streaming)


_PHASES: dict[str, tuple[Callable[..., None], str, str]] = {
    "forward": (_forward, "batch_stats", "normalize"),
    "backward": (_backward, "backward_sums", "backward_input"),
}


def phases(module: ModuleType, operation: str, twin: str) -> Callable[..., None]:
    """``forward`` or ``backward`` from the twins of a module's kernels."""
    template, statistics, output = _PHASES[operation]
    values = {
        "_statistics": getattr(module, statistics).linked[twin],
        "_output": getattr(module, output).linked[twin],
    }
    return inner(with_globals(template, f"{operation}_{module.__name__.rpartition('.')[2]}_{twin}", values))
