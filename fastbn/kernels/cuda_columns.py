"""Kernels on columns, for channels last and for short planes: matrices of ``cuda_column_loops``.

Templates, as those of ``cuda_blocks``. Grids: segments x chunks.
"""

from __future__ import annotations

from numba import cuda

from fastbn._typing import Address
from fastbn.kernels.cuda_blocks import WIDTH, Parameter, Shape, behind
from fastbn.kernels.cuda_column_loops import (
    gradient_columns,
    normalize_columns,
    sum_columns,
    sum_gradient_columns,
)
from fastbn.kernels.cuda_merge import finish_statistics, finish_sums


def batch_stats(x: Address, shape: Shape, cuts: Shape, partials: Address) -> None:
    """Moments of segments."""
    sum_columns(x, shape, cuts, cuda.blockIdx.x, partials)


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
    """From the end: what the statistics read last may still be in the cache."""
    normalize_columns(x, out, shape, cuts, cuda.gridDim.x - 1 - cuda.blockIdx.x, mean, spread, eps, gamma, beta)


def backward_sums(dout: Address, x: Address, shape: Shape, cuts: Shape, mean: Parameter, partials: Address) -> None:
    """The gradient's sums of segments."""
    sum_gradient_columns(dout, x, shape, cuts, cuda.blockIdx.x, mean, partials)


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
    """From the end as well."""
    block = cuda.gridDim.x - 1 - cuda.blockIdx.x
    gradient_columns(dout, x, dx, shape, cuts, block, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count)


def block_in(cuts: Shape, begun: int, chunks: int, i: int) -> int:
    """Block ``i`` of those that have so many chunks from ``begun`` on."""
    return i // chunks * cuts[2] + begun + i % chunks


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
    """``batch_stats``, ``merge_stats`` and ``normalize`` of ``group`` chunks after the other, all blocks on each.

    Launched cooperatively; the same bits for any grid. Columns are channels here. Blocks that have the same ones merge
    them each for itself, and write the same.
    """
    grid = cuda.cg.this_grid()
    segments, lanes, chunks = cuts
    rows, channels, wide = shape[0], shape[2], lanes * WIDTH
    columns, team = (1, channels, 1), cuda.blockDim.x // wide
    mean, inv_std = (statistics, 8), (behind(statistics, channels), 8)
    for begun in range(0, chunks, group):
        some = min(group, chunks - begun)
        for i in range(cuda.blockIdx.x, segments * some, cuda.gridDim.x):
            sum_columns(x, shape, cuts, block_in(cuts, begun, some, i), partials)
        grid.sync()
        for i in range(cuda.blockIdx.x, segments * some, cuda.gridDim.x):
            block = block_in(cuts, begun, some, i)
            c = block % chunks * wide + cuda.threadIdx.x // team
            finish_statistics(x, 1, c, team, columns, segments, rows, 1, partials, eps, statistics)
            cuda.syncthreads()
            normalize_columns(x, out, shape, cuts, block, mean, inv_std, -1.0, gamma, beta)


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
    """``backward_sums``, ``add_sums`` and ``backward_input`` likewise. Behind the partials is room for the sums."""
    grid = cuda.cg.this_grid()
    segments, lanes, chunks = cuts
    channels, wide = shape[2], lanes * WIDTH
    columns, team = (1, channels, 1), cuda.blockDim.x // wide
    sums = behind(partials, 2 * segments * channels)
    sum_dout, sum_dout_xhat = (sums, 8), (behind(sums, channels), 8)
    for begun in range(0, chunks, group):
        some = min(group, chunks - begun)
        for i in range(cuda.blockIdx.x, segments * some, cuda.gridDim.x):
            sum_gradient_columns(dout, x, shape, cuts, block_in(cuts, begun, some, i), mean, partials)
        grid.sync()
        for i in range(cuda.blockIdx.x, segments * some, cuda.gridDim.x):
            block = block_in(cuts, begun, some, i)
            c = block % chunks * wide + cuda.threadIdx.x // team
            finish_sums(c, team, columns, segments, partials, mean, inv_std, sum_dout, sum_dout_xhat, dbeta, dgamma)
            cuda.syncthreads()
            gradient_columns(dout, x, dx, shape, cuts, block, mean, inv_std, gamma, sum_dout, sum_dout_xhat, count)
