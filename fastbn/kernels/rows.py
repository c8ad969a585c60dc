"""The work on one channel of contiguous rows, for ``channels_first``.

Sums run over *strips* of a row in vector registers, in float64; strips add up to a *block* of about ``BLOCK`` values
that share a pivot; blocks are merged one after another.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Array, Moments3, Scalar
from fastbn.kernels.formulas import block_moments1, grad_input1, merge_moments1, normalize1, pivot1
from fastbn.kernels.jit import elementwise, reduction, scalar
from fastbn.kernels.prefetch import prefetch

BLOCK = 4096  # values that share one pivot; also the longest run that is summed without a merge
STRIP = 256  # values between two bursts of prefetches; 512 and 1,024 read 10% to 30% slower


@scalar
def rows_at_once(inner: int) -> int:
    """Rows of a block, or of a task of the second pass: about ``BLOCK`` values."""
    return max(1, BLOCK // inner)


@scalar
def pieces_of(inner: int) -> int:
    """Pieces of a row, of ``BLOCK`` values but for the last."""
    return -(-inner // BLOCK)


@scalar
def blocks_of(outer: int, inner: int) -> int:
    """Blocks of one channel: pieces of a row where rows are long, groups of rows where they are short."""
    return -(-outer // rows_at_once(inner)) * pieces_of(inner)


@scalar
def _following(x: Array, n: int, c: int, k: int) -> Array:
    """The piece of a row that is read after piece ``k`` of row ``(n, c)``, for prefetching."""
    outer, channels, inner = x.shape
    if (k + 1) * BLOCK < inner:
        return x[n, c][(k + 1) * BLOCK : (k + 2) * BLOCK]
    if n + 1 < outer:
        return x[n + 1, c][:BLOCK]
    return x[0, min(c + 1, channels - 1)][:BLOCK]


@reduction
def _strip_squares(x: Array, pivot: float) -> tuple[float, float]:
    total = 0.0
    square = 0.0
    for i in range(x.size):
        d = np.float64(x[i]) - pivot
        total += d
        square += d * d
    return total, square


@scalar
def _piece_squares(x: Array, following: Array, pivot: float) -> tuple[float, float]:
    """``sum(x - pivot)`` and ``sum((x - pivot)**2)`` of one contiguous piece."""
    total = 0.0
    square = 0.0
    for start in range(0, x.size, STRIP):
        prefetch(following[start : start + STRIP])
        strip_total, strip_square = _strip_squares(x[start : start + STRIP], pivot)
        total += strip_total
        square += strip_square
    return total, square


@scalar
def origin_of(x: Array, c: int) -> float:
    """What the moments of a channel are about: the pivot of its first value."""
    return pivot1(x[0, c, 0])


@scalar
def segment_moments(x: Array, c: int, start: int, stop: int) -> Moments3:
    """Moments of the blocks ``start`` to ``stop`` of channel ``c``, about ``origin_of`` the channel."""
    outer, _, inner = x.shape
    pieces = pieces_of(inner)
    rows = rows_at_once(inner)
    origin = origin_of(x, c)
    moments = (0.0, 0.0, 0.0)
    for block in range(start, stop):
        k = block % pieces
        first = block // pieces * rows
        last = min(first + rows, outer)
        pivot = pivot1(x[first, c, k * BLOCK])
        total = 0.0
        square = 0.0
        for n in range(first, last):
            piece = x[n, c][k * BLOCK : (k + 1) * BLOCK]
            piece_total, piece_square = _piece_squares(piece, _following(x, n, c, k), pivot)
            total += piece_total
            square += piece_square
        size = np.float64((last - first) * min(BLOCK, inner - k * BLOCK))
        count, about_origin, m2 = block_moments1(size, pivot, total, square, origin)
        moments = merge_moments1(moments[0], moments[1], moments[2], count, about_origin, m2)
    return moments


@reduction
def _strip_products(dout: Array, x: Array, mean: float) -> tuple[float, float]:
    total = 0.0
    product = 0.0
    for i in range(x.size):
        d = np.float64(dout[i])
        total += d
        product += d * (np.float64(x[i]) - mean)
    return total, product


@scalar
def segment_sums(dout: Array, x: Array, c: int, mean: float, start: int, stop: int) -> tuple[float, float]:
    """``sum(dout)`` and ``sum(dout * (x - mean))`` over the blocks ``start`` to ``stop`` of channel ``c``."""
    outer, _, inner = x.shape
    pieces = pieces_of(inner)
    rows = rows_at_once(inner)
    total = 0.0
    product = 0.0
    for block in range(start, stop):
        k = block % pieces
        first = block // pieces * rows
        for n in range(first, min(first + rows, outer)):
            dout_piece = dout[n, c][k * BLOCK : (k + 1) * BLOCK]
            x_piece = x[n, c][k * BLOCK : (k + 1) * BLOCK]
            dout_following = _following(dout, n, c, k)
            x_following = _following(x, n, c, k)
            for s in range(0, x_piece.size, STRIP):
                prefetch(dout_following[s : s + STRIP])
                prefetch(x_following[s : s + STRIP])
                strip_total, strip_product = _strip_products(dout_piece[s : s + STRIP], x_piece[s : s + STRIP], mean)
                total += strip_total
                product += strip_product
    return total, product


@elementwise
def normalize_row(x: Array, out: Array, center: Scalar, scale: Scalar, shift: Scalar) -> None:
    """One contiguous run of values with one set of coefficients (see ``affine1``)."""
    for i in range(x.size):
        out[i] = normalize1(x[i], center, scale, shift)


@elementwise
def gradient_row(
    dout: Array,
    x: Array,
    dx: Array,
    center: Scalar,
    unit: Scalar,
    shift: Scalar,
    scale: Scalar,
    slope: Scalar,
    offset: Scalar,
) -> None:
    """One contiguous run of values with one set of coefficients (see ``gradient1``)."""
    for i in range(x.size):
        dx[i] = grad_input1(dout[i], x[i], center, unit, shift, scale, slope, offset)


@scalar
def normalize_rows(x: Array, out: Array, coefficients: Array, first: int, last: int, k: int) -> None:
    """Piece ``k`` of the rows ``first`` to ``last`` of a (outer * C, inner) matrix, with ``affine_channels``."""
    channels = coefficients.shape[1]
    start = k * BLOCK
    stop = start + BLOCK
    c = first % channels
    for row in range(first, last):
        normalize_row(
            x[row][start:stop], out[row][start:stop], coefficients[0, c], coefficients[1, c], coefficients[2, c]
        )
        c += 1
        if c == channels:
            c = 0


@scalar
def gradient_rows(dout: Array, x: Array, dx: Array, coefficients: Array, first: int, last: int, k: int) -> None:
    """The same for the gradient, with ``gradient_channels``."""
    channels = coefficients.shape[1]
    start = k * BLOCK
    stop = start + BLOCK
    c = first % channels
    for row in range(first, last):
        gradient_row(
            dout[row][start:stop],
            x[row][start:stop],
            dx[row][start:stop],
            coefficients[0, c],
            coefficients[1, c],
            coefficients[2, c],
            coefficients[3, c],
            coefficients[4, c],
            coefficients[5, c],
        )
        c += 1
        if c == channels:
            c = 0
