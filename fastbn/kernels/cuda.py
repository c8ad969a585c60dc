"""Kernels for GPUs: ``batch_stats``, ``normalize``, ``backward_sums``, ``backward_input``, and what goes with them.

Tensors are given by their addresses (see ``cuda_warps``), what is given per channel as *parameters* (``cuda_blocks``).
The four are in ``cuda_planes`` and ``cuda_columns``, with the same arguments in the same order. A tensor is cut into
segments; each leaves a *partial* for each of its columns, of which planes have one a channel, at ``segment * columns +
column``, two float64 numbers half the partials apart. The kernels here merge them, one block a channel, in an order
that the shape alone decides.
"""

from __future__ import annotations

import functools
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda

from fastbn._typing import Address, Moments3, Scalar
from fastbn.kernels import cuda_blocks, cuda_columns, cuda_planes, cuda_warps, formulas
from fastbn.kernels.cuda_blocks import (
    DTYPE,
    LOADS,
    THREADS,
    Parameter,
    cut,
    given,
    keep,
    mean_var1,
    merge_moments1,
    origin_of,
    put,
    read64,
    sum_dout_xhat1,
)
from fastbn.kernels.jit import with_globals

Columns = tuple[int, int, int]
"""(tile, channels, inner) of a row of partials: channel ``c`` has the columns ``(i * channels + c) * inner + j``."""


def place_of(p: int, c: int, columns: Columns) -> int:
    """Where a channel's partial ``p`` is."""
    _, channels, inner = columns
    return (p // inner * channels + c) * inner + p % inner


def merged(a: Moments3, b: Moments3) -> Moments3:
    """``merge_moments1`` of sets that may be empty."""
    if b[0] == 0.0:
        return a
    if a[0] == 0.0:
        return b
    return merge_moments1(a[0], a[1], a[2], b[0], b[1], b[2])


def merge_stats(
    x: Address,
    step: int,
    columns: Columns,
    segments: int,
    units: int,
    values: int,
    partials: Address,
    eps: float,
    statistics: Address,
) -> None:
    """Mean, ``inv_std`` and variance, (3, C). A segment has its share of ``units`` of so many values each.

    ``step`` is how far apart in ``x`` the channels' first values are. Grid: channels.
    """
    tile, channels, inner = columns
    counts = cuda.shared.array(THREADS, np.float64)
    totals = cuda.shared.array(THREADS, np.float64)
    squares = cuda.shared.array(THREADS, np.float64)
    c, t = cuda.blockIdx.x, cuda.threadIdx.x
    moments: Moments3 = np.float64(0.0), np.float64(0.0), np.float64(0.0)
    for p in range(t, segments * tile * inner, cuda.blockDim.x):
        segment, place = p // (tile * inner), place_of(p, c, columns)
        size = np.float64((cut(units, segment + 1, segments) - cut(units, segment, segments)) * values)
        square = read64(partials, segments * tile * channels * inner + place)
        moments = merged(moments, (size, read64(partials, place), square))
    half = cuda.blockDim.x // 2
    while half:
        counts[t], totals[t], squares[t] = moments
        cuda.syncthreads()
        if t < half:
            moments = merged(moments, (counts[t + half], totals[t + half], squares[t + half]))
        cuda.syncthreads()
        half //= 2
    if t == 0:
        mean, var = mean_var1(origin_of(x, c, step), moments[0], moments[1], moments[2])
        keep(statistics, c, channels, mean, var, eps)


def add_sums(
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
    """The gradient's two sums, twice, each in the dtype of where it goes. Grid: channels."""
    tile, channels, inner = columns
    totals = cuda.shared.array(THREADS, np.float64)
    products = cuda.shared.array(THREADS, np.float64)
    c, t = cuda.blockIdx.x, cuda.threadIdx.x
    total: Scalar = np.float64(0.0)
    product: Scalar = np.float64(0.0)
    for p in range(t, segments * tile * inner, cuda.blockDim.x):
        place = place_of(p, c, columns)
        total += read64(partials, place)
        product += read64(partials, segments * tile * channels * inner + place)
    half = cuda.blockDim.x // 2
    while half:
        totals[t], products[t] = total, product
        cuda.syncthreads()
        if t < half:
            total += totals[t + half]
            product += products[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        center = DTYPE(given(mean, c, 0.0))
        product = sum_dout_xhat1(total, product, center, given(mean, c, 0.0), given(inv_std, c, 1.0))
        put(sum_dout, c, total)
        put(sum_dout_xhat, c, product)
        put(dbeta, c, total)
        put(dgamma, c, product)


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


FUNCTIONS: dict[ModuleType, str] = {
    cuda_blocks: "given put inv_std_of affine gradient fold fold_products origin_of cut keep sum_dout_xhat1",
    cuda_planes: "begin advance sum_plane normalize_plane sum_gradient_plane gradient_plane block_of",
    cuda_columns: "own channel_of over_rows gradient_value",
}
"""What kernels call, each after what it calls itself."""

FOUR = ("batch_stats", "normalize", "backward_sums", "backward_input")


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
        "COEFFICIENTS": 6 * width,
        **cuda_warps.instructions(dtype, width, aligned),
    }

    def copy(function: Any) -> Any:
        return with_globals(getattr(function, "py_func", function), f"{function.__name__}_{name}", bound)

    functions = [getattr(each, function) for each in (cuda_blocks, module) for function in FUNCTIONS[each].split()]
    for function in (*FORMULAS, *functions, place_of, merged):
        bound[function.__name__] = cuda_warps.device(copy(function))
    ours = [merge_stats, add_sums, keep_given, merge_given, update_running]
    theirs = [getattr(module, name) for name in (*FOUR, "forward", "backward") if hasattr(module, name)]
    return SimpleNamespace(**{kernel.__name__: cuda.jit(copy(kernel)) for kernel in (*ours, *theirs)})
