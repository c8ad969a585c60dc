"""Kernels for GPUs: ``batch_stats``, ``normalize``, ``backward_sums``, ``backward_input``, and what goes with them.

Tensors are given by their addresses (see ``cuda_warps``), what is given per channel as *parameters* (``cuda_blocks``).
The four are in ``cuda_planes`` and ``cuda_columns``, with the same arguments in the same order, and so are
``forward_grouped`` and ``backward_grouped``, which do all of them in one cooperative launch. A tensor is cut into
segments, which leave *partials* (``cuda_merge``); the kernels here merge them.
"""

from __future__ import annotations

import functools
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda

from fastbn._typing import Address
from fastbn.kernels import (
    cuda_blocks,
    cuda_column_loops,
    cuda_columns,
    cuda_merge,
    cuda_plane_loops,
    cuda_planes,
    cuda_warps,
    formulas,
)
from fastbn.kernels.cuda_blocks import LOADS, THREADS, Parameter, given, keep, mean_var1, put, read64
from fastbn.kernels.cuda_merge import Columns, finish_statistics, finish_sums, merged
from fastbn.kernels.jit import with_globals


def merge_stats(
    x: Address,
    step: int,
    team: int,
    columns: Columns,
    segments: int,
    units: int,
    values: int,
    partials: Address,
    eps: float,
    statistics: Address,
) -> None:
    """Mean, ``inv_std`` and variance, (3, C). A segment has its share of ``units`` of so many values each.

    ``step`` is how far apart in ``x`` the channels' first values are. A team a channel.
    """
    c = (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) // team
    finish_statistics(x, step, c, team, columns, segments, units, values, partials, eps, statistics)


def add_sums(
    team: int,
    columns: Columns,
    segments: int,
    partials: Address,
    mean: Parameter,
    inv_std: Parameter,
    sum_dout: Parameter,
    sum_dout_xhat: Parameter,
    dbeta: Parameter,
    dgamma: Parameter,
) -> None:
    """The gradient's two sums, twice, each in the dtype of where it goes. A team a channel."""
    c = (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) // team
    finish_sums(c, team, columns, segments, partials, mean, inv_std, sum_dout, sum_dout_xhat, dbeta, dgamma)


def keep_given(mean: Parameter, var: Parameter, eps: float, channels: int, statistics: Address) -> None:
    """Mean, ``inv_std`` and variance, (3, C), where they are given. A thread a channel."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < channels:
        keep(statistics, c, channels, given(mean, c, 0.0), given(var, c, 0.0), eps)


def merge_given(
    count_a: float,
    mean_a: Parameter,
    var_a: Parameter,
    count_b: float,
    mean_b: Parameter,
    var_b: Parameter,
    eps: float,
    channels: int,
    statistics: Address,
) -> None:
    """Mean, ``inv_std`` and variance, (3, C), of two sets together; the second may be empty. A thread a channel."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < channels:
        origin = given(mean_a, c, 0.0)
        total = (given(mean_b, c, 0.0) - origin) * count_b
        other = count_b, total, given(var_b, c, 0.0) * count_b
        both = merged((count_a, np.float64(0.0), given(var_a, c, 0.0) * count_a), other)
        mean, var = mean_var1(origin, both[0], both[1], both[2])
        keep(statistics, c, channels, mean, var, eps)


def update_running(
    running_mean: Parameter, running_var: Parameter, statistics: Address, channels: int, momentum: float, factor: float
) -> None:
    """``running = (1 - momentum) * running + momentum * batch``, the variance times ``factor``. A thread a channel."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < channels:
        mean, var = read64(statistics, c), read64(statistics, 2 * channels + c)
        put(running_mean, c, (1.0 - momentum) * given(running_mean, c, 0.0) + momentum * mean)
        put(running_var, c, (1.0 - momentum) * given(running_var, c, 0.0) + momentum * (var * factor))


FORMULAS: tuple[Any, ...] = (
    formulas.pivot1,
    formulas.block_moments1,
    formulas.merge_moments1,
    formulas.mean_var1,
    formulas.inv_std1,
    formulas.affine1,
    formulas.normalize1,
    formulas.gradient1,
    formulas.grad_input1,
)


MERGING = "place_of merged share_of channel_moments channel_sums finish_statistics finish_sums"

FUNCTIONS: tuple[tuple[ModuleType, str], ...] = (
    (cuda_blocks, "given put inv_std_of affine gradient fold fold_products origin_of cut keep sum_dout_xhat1"),
    (cuda_merge, MERGING),
)
"""What kernels call, each after what it calls itself,"""

OWN: dict[ModuleType, tuple[tuple[ModuleType, str], ...]] = {
    cuda_planes: (
        (cuda_plane_loops, "begin advance sum_plane normalize_plane sum_gradient_plane gradient_plane"),
        (cuda_planes, "block_of sum_segment sum_gradient_segment finish_forward finish_backward"),
    ),
    cuda_columns: (
        (cuda_column_loops, "own channel_of over_rows gradient_value"),
        (cuda_column_loops, "sum_columns normalize_columns sum_gradient_columns gradient_columns"),
        (cuda_columns, "block_in"),
    ),
}
"""and what those of a module call besides."""

FOUR = ("batch_stats", "normalize", "backward_sums", "backward_input")
WHOLE = ("forward", "backward", "forward_grouped", "backward_grouped")


@functools.cache
def kernels(module: ModuleType, dtype: Any, width: int, aligned: bool) -> SimpleNamespace:
    """The kernels of a module, and those of this one, for a dtype and so many values in an access.

    ``aligned`` as of ``cuda_warps.instructions``.
    """
    name = f"{np.dtype(dtype).name}x{width}{'' if aligned else '_unaligned'}"
    bound: dict[str, Any] = {
        "DTYPE": np.dtype(dtype).type,
        "WIDTH": width,
        "CHUNK": LOADS * width,
        "SHARED": THREADS * width,
        "COEFFICIENTS": 4 * width,
        **cuda_warps.instructions(dtype, width, aligned),
    }

    def copy(function: Any) -> Any:
        return with_globals(getattr(function, "py_func", function), f"{function.__name__}_{name}", bound)

    functions = [getattr(each, function) for each, names in (*FUNCTIONS, *OWN[module]) for function in names.split()]
    for function in (*FORMULAS, *functions):
        bound[function.__name__] = cuda_warps.device(copy(function))
    ours = [merge_stats, add_sums, keep_given, merge_given, update_running]
    theirs = [getattr(module, name) for name in (*FOUR, *WHOLE) if hasattr(module, name)]
    return SimpleNamespace(**{kernel.__name__: cuda.jit(copy(kernel)) for kernel in (*ours, *theirs)})
