"""Inference of small tensors in one call: for (1, 64) the way into a compiled function takes longer than the work."""

from __future__ import annotations

from fastbn._typing import Array, Float64Array, Shape3
from fastbn.kernels.addresses import data, offset, stack
from fastbn.kernels.chunk_outputs import normalize_chunk
from fastbn.kernels.chunks import SCRATCH, lead
from fastbn.kernels.coefficients import affine_channels, statistics_channels
from fastbn.kernels.families import by_columns
from fastbn.kernels.groups import normalize_group
from fastbn.kernels.jit import small
from fastbn.kernels.prefetch import AHEAD
from fastbn.kernels.tiles import matrix_of


@small
def inference(
    x: Array,
    shape: Shape3,
    mean: Array,
    var: Array,
    eps: float,
    gamma: Array,
    beta: Array,
    out: Array,
    mean64: Float64Array,
    inv_std: Float64Array,
) -> float:
    """``affine_of_var``, then ``normalize`` on one thread, unless a variance lies below ``-eps``: the same bits.

    Takes at most ``COLUMNS`` (of ``chunks``) channels, and columns where these are taken. Returns the least variance.
    """
    outer, channels, _ = shape
    matrix = matrix_of(shape)
    shift = lead(data(out), matrix, 0, 0)
    values = offset(stack(x, SCRATCH), shift), offset(stack(x, SCRATCH), shift), offset(stack(x, SCRATCH), shift)
    least = statistics_channels(data(mean), data(var), eps, channels, data(mean64), data(inv_std))
    if least < -eps:
        return least
    affine_channels(data(x), 0, channels, data(mean64), data(inv_std), data(gamma), data(beta), values)
    if by_columns(shape, 1):
        normalize_chunk(data(x), data(out), matrix, 0, channels, 0, matrix[0], values, False)
    else:
        normalize_group(data(x), data(out), shape, 0, channels, 0, outer, 0, 1, AHEAD, False, values, False)
    return least
