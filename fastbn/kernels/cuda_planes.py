"""Kernels on planes, tensors of shape (outer, channels, inner): a block has a segment of a channel's values.

Templates, as those of ``cuda_blocks``. ``cuts`` of planes is (segments, 0, 0).
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from fastbn._typing import Address, Moments3
from fastbn.kernels.cuda_blocks import (
    DTYPE,
    WIDTH,
    Parameter,
    Shape,
    affine,
    affine1,
    given,
    gradient,
    inv_std1,
    keep,
    mean_var1,
    origin_of,
    put,
    sum_dout_xhat1,
    write64,
)
from fastbn.kernels.cuda_merge import channel_moments, channel_sums
from fastbn.kernels.cuda_plane_loops import gradient_plane, normalize_plane, sum_gradient_plane, sum_plane


def block_of(cuts: Shape, block: int) -> tuple[int, int, int]:
    """A block's channel and segment, and how many segments there are."""
    return block // cuts[0], block % cuts[0], cuts[0]


def sum_segment(x: Address, shape: Shape, cuts: Shape, block: int, partials: Address) -> None:
    """A block's moments (see ``formulas``), but for the count."""
    c, segment, segments = block_of(cuts, block)
    moments = sum_plane(x, shape, c, segment, segments)
    if cuda.threadIdx.x == 0:
        write64(partials, segment * shape[1] + c, moments[1])
        write64(partials, (segments + segment) * shape[1] + c, moments[2])


def sum_gradient_segment(
    dout: Address, x: Address, shape: Shape, cuts: Shape, block: int, mean: Parameter, partials: Address
) -> None:
    """A block's ``sum(dout)`` and ``sum(dout * (x - center))``."""
    c, segment, segments = block_of(cuts, block)
    total, product = sum_gradient_plane(dout, x, shape, c, segment, segments, DTYPE(given(mean, c, 0.0)))
    if cuda.threadIdx.x == 0:
        write64(partials, segment * shape[1] + c, total)
        write64(partials, (segments + segment) * shape[1] + c, product)


def batch_stats(x: Address, shape: Shape, cuts: Shape, partials: Address) -> None:
    """Moments of segments. Grid: channels x segments."""
    sum_segment(x, shape, cuts, cuda.blockIdx.x, partials)


def normalize(
    x: Address,
    out: Address,
    shape: Shape,
    cuts: Shape,
    mean: Parameter,
    spread: Parameter,
    eps: float,
    gamma: Parameter,
    beta: Parameter,
) -> None:
    """Grid: channels x segments, from the end: what the statistics read last may still be in the cache."""
    c, segment, segments = block_of(cuts, cuda.gridDim.x - 1 - cuda.blockIdx.x)
    normalize_plane(x, out, shape, c, segment, segments, affine(x, c, mean, spread, eps, gamma, beta))


def backward_sums(dout: Address, x: Address, shape: Shape, cuts: Shape, mean: Parameter, partials: Address) -> None:
    """The gradient's sums of segments. Grid: channels x segments."""
    sum_gradient_segment(dout, x, shape, cuts, cuda.blockIdx.x, mean, partials)


def backward_input(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape,
    cuts: Shape,
    mean: Parameter,
    inv_std: Parameter,
    gamma: Parameter,
    sum_dout: Parameter,
    sum_dout_xhat: Parameter,
    count: float,
) -> None:
    """Grid: channels x segments, from the end as well."""
    c, segment, segments = block_of(cuts, cuda.gridDim.x - 1 - cuda.blockIdx.x)
    coefficients = gradient(x, c, mean, inv_std, gamma, given(sum_dout, c, 0.0), given(sum_dout_xhat, c, 0.0), count)
    gradient_plane(dout, x, dx, shape, c, segment, segments, coefficients)


def finish_forward(
    x: Address,
    out: Address,
    shape: Shape,
    c: int,
    segment: int,
    segments: int,
    moments: Moments3,
    eps: float,
    gamma: Parameter,
    beta: Parameter,
    statistics: Address,
) -> None:
    """Normalise a segment with the channel's moments; the first one keeps its statistics as well."""
    mean, var = mean_var1(origin_of(x, c, shape[2]), moments[0], moments[1], moments[2])
    if segment == 0 and cuda.threadIdx.x == 0:
        keep(statistics, c, shape[1], mean, var, eps)
    inv_std = inv_std1(var, eps, np.float64(1.0))
    a, b, d = affine1(x, mean, inv_std, given(gamma, c, 1.0), given(beta, c, 0.0))
    normalize_plane(x, out, shape, c, segment, segments, (DTYPE(a), DTYPE(b), DTYPE(d)))


def finish_backward(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape,
    c: int,
    segment: int,
    segments: int,
    total: float,
    product: float,
    mean: Parameter,
    inv_std: Parameter,
    gamma: Parameter,
    dgamma: Parameter,
    dbeta: Parameter,
    count: float,
) -> None:
    """Write a segment of dx with the channel's sums, which the first one keeps as ``dbeta`` and ``dgamma``."""
    center = DTYPE(given(mean, c, 0.0))
    sum_dout_xhat = sum_dout_xhat1(total, product, center, given(mean, c, 0.0), given(inv_std, c, 1.0))
    if segment == 0 and cuda.threadIdx.x == 0:
        put(dbeta, c, total)
        put(dgamma, c, sum_dout_xhat)
    coefficients = gradient(x, c, mean, inv_std, gamma, total, sum_dout_xhat, count)
    gradient_plane(dout, x, dx, shape, c, segment, segments, coefficients)


def forward(
    x: Address, out: Address, shape: Shape, eps: float, gamma: Parameter, beta: Parameter, statistics: Address
) -> None:
    """``batch_stats`` and ``normalize``, and what lies between them, of a whole channel. Grid: channels."""
    c = cuda.blockIdx.x
    moments = sum_plane(x, shape, c, 0, 1)
    finish_forward(x, out, shape, c, 0, 1, moments, eps, gamma, beta, statistics)


def backward(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape,
    mean: Parameter,
    inv_std: Parameter,
    gamma: Parameter,
    dgamma: Parameter,
    dbeta: Parameter,
    count: float,
) -> None:
    """``backward_sums`` and ``backward_input`` likewise; the sums become ``dgamma`` and ``dbeta``. Grid: channels."""
    c = cuda.blockIdx.x
    total, product = sum_gradient_plane(dout, x, shape, c, 0, 1, DTYPE(given(mean, c, 0.0)))
    finish_backward(dout, x, dx, shape, c, 0, 1, total, product, mean, inv_std, gamma, dgamma, dbeta, count)


def forward_grouped(
    x: Address,
    out: Address,
    shape: Shape,
    cuts: Shape,
    group: int,
    partials: Address,
    eps: float,
    gamma: Parameter,
    beta: Parameter,
    statistics: Address,
) -> None:
    """``forward`` of ``group`` channels after the other, all blocks on each; the same bits for any grid.

    Launched cooperatively. Each block merges the partials of its channel for itself: that takes less time than another
    wait for the grid would.
    """
    grid = cuda.cg.this_grid()
    segments, columns = cuts[0], (1, shape[1], 1)
    units = shape[0] * (shape[2] // WIDTH)
    for begun in range(0, shape[1], group):
        last = min(begun + group, shape[1]) * segments
        for block in range(begun * segments + cuda.blockIdx.x, last, cuda.gridDim.x):
            sum_segment(x, shape, cuts, block, partials)
        grid.sync()
        for block in range(begun * segments + cuda.blockIdx.x, last, cuda.gridDim.x):
            c, segment, _ = block_of(cuts, block)
            moments = channel_moments(c, cuda.blockDim.x, columns, segments, units, WIDTH, partials)
            finish_forward(x, out, shape, c, segment, segments, moments, eps, gamma, beta, statistics)


def backward_grouped(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape,
    cuts: Shape,
    group: int,
    partials: Address,
    mean: Parameter,
    inv_std: Parameter,
    gamma: Parameter,
    dgamma: Parameter,
    dbeta: Parameter,
    count: float,
) -> None:
    """``backward`` likewise."""
    grid = cuda.cg.this_grid()
    segments, columns = cuts[0], (1, shape[1], 1)
    for begun in range(0, shape[1], group):
        last = min(begun + group, shape[1]) * segments
        for block in range(begun * segments + cuda.blockIdx.x, last, cuda.gridDim.x):
            sum_gradient_segment(dout, x, shape, cuts, block, mean, partials)
        grid.sync()
        for block in range(begun * segments + cuda.blockIdx.x, last, cuda.gridDim.x):
            c, segment, _ = block_of(cuts, block)
            total, product = channel_sums(c, cuda.blockDim.x, columns, segments, partials)
            finish_backward(
                dout, x, dx, shape, c, segment, segments, total, product, mean, inv_std, gamma, dgamma, dbeta, count
            )
