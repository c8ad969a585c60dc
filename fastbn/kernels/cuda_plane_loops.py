"""What a block does with a segment of a channel's values, in tensors of shape (outer, channels, inner).

A thread takes every ``blockDim.x``-th access of the segment. Its *walk* is how it gets from one to the next: how many
accesses a plane has, how far it goes within the plane and in memory, and how far more to the channel's next plane.
Templates, as those of ``cuda_blocks``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from fastbn._typing import Address, Moments3, Scalar
from fastbn.kernels.cuda_blocks import (
    CHUNK,
    DTYPE,
    LOADS,
    WIDTH,
    Shape,
    block_moments1,
    block_sum,
    cut,
    fold,
    fold_products,
    grad_input1,
    load,
    normalize1,
    origin_of,
    pivot1,
    read,
    store,
)


def begin(shape: Shape, c: int, segment: int, segments: int) -> tuple[int, int, int, int, tuple[int, int, int, int]]:
    """The thread's first access, the segment's end, the place in its plane and in memory, and the walk."""
    outer, channels, inner = shape
    plane, step = inner // WIDTH, cuda.blockDim.x
    i = cut(outer * plane, segment, segments) + cuda.threadIdx.x
    last = cut(outer * plane, segment + 1, segments)
    place, ahead = i % plane, step % plane
    offset = (i // plane * channels + c) * inner + place * WIDTH
    walk = plane, ahead, step // plane * channels * inner + ahead * WIDTH, (channels - 1) * inner
    return i, last, place, offset, walk


def advance(place: int, offset: int, walk: tuple[int, int, int, int]) -> tuple[int, int]:
    """The place in its plane and in memory of the next access."""
    place += walk[1]
    offset += walk[2]
    if place >= walk[0]:
        place -= walk[0]
        offset += walk[3]
    return place, offset


def sum_plane(x: Address, shape: Shape, c: int, segment: int, segments: int) -> Moments3:
    """Moments (see ``formulas``) of a segment, to every thread."""
    outer, channels, inner = shape
    values = cuda.local.array(CHUNK, DTYPE)
    i, last, place, offset, walk = begin(shape, c, segment, segments)
    start = cut(outer * walk[0], segment, segments)
    pivot = pivot1(read(x, (start // walk[0] * channels + c) * inner + start % walk[0] * WIDTH))
    total: Scalar = np.float64(0.0)
    square: Scalar = np.float64(0.0)
    step = cuda.blockDim.x
    while i + (LOADS - 1) * step < last:
        for k in range(LOADS):
            load(x, offset, values, k * WIDTH)
            place, offset = advance(place, offset, walk)
        total, square = fold(values, 0, 1, LOADS * WIDTH, pivot, total, square)
        i += LOADS * step
    while i < last:
        load(x, offset, values, 0)
        place, offset = advance(place, offset, walk)
        total, square = fold(values, 0, 1, WIDTH, pivot, total, square)
        i += step
    total = block_sum(total)
    square = block_sum(square)
    count = np.float64((last - start) * WIDTH)
    return block_moments1(count, pivot, total, square, origin_of(x, c, inner))


def normalize_plane(
    x: Address, out: Address, shape: Shape, c: int, segment: int, segments: int, coefficients: tuple[Any, Any, Any]
) -> None:
    """Normalise a segment."""
    values = cuda.local.array(CHUNK, DTYPE)
    center, scale, shift = coefficients
    i, last, place, offset, walk = begin(shape, c, segment, segments)
    step = cuda.blockDim.x
    while i + (LOADS - 1) * step < last:
        begun = place, offset
        for k in range(LOADS):
            load(x, offset, values, k * WIDTH)
            place, offset = advance(place, offset, walk)
        place, offset = begun
        for k in range(LOADS):
            for j in range(k * WIDTH, (k + 1) * WIDTH):
                values[j] = normalize1(values[j], center, scale, shift)
            store(out, offset, values, k * WIDTH)
            place, offset = advance(place, offset, walk)
        i += LOADS * step
    while i < last:
        load(x, offset, values, 0)
        for j in range(WIDTH):
            values[j] = normalize1(values[j], center, scale, shift)
        store(out, offset, values, 0)
        place, offset = advance(place, offset, walk)
        i += step


def sum_gradient_plane(
    dout: Address, x: Address, shape: Shape, c: int, segment: int, segments: int, center: Any
) -> tuple[Scalar, Scalar]:
    """``sum(dout)`` and ``sum(dout * (x - center))`` of a segment, to every thread."""
    douts = cuda.local.array(CHUNK, DTYPE)
    values = cuda.local.array(CHUNK, DTYPE)
    i, last, place, offset, walk = begin(shape, c, segment, segments)
    total: Scalar = np.float64(0.0)
    product: Scalar = np.float64(0.0)
    step = cuda.blockDim.x
    while i + (LOADS - 1) * step < last:
        for k in range(LOADS):
            load(dout, offset, douts, k * WIDTH)
            load(x, offset, values, k * WIDTH)
            place, offset = advance(place, offset, walk)
        total, product = fold_products(douts, values, 0, 1, LOADS * WIDTH, center, total, product)
        i += LOADS * step
    while i < last:
        load(dout, offset, douts, 0)
        load(x, offset, values, 0)
        place, offset = advance(place, offset, walk)
        total, product = fold_products(douts, values, 0, 1, WIDTH, center, total, product)
        i += step
    total = block_sum(total)
    return total, block_sum(product)


def gradient_plane(
    dout: Address,
    x: Address,
    dx: Address,
    shape: Shape,
    c: int,
    segment: int,
    segments: int,
    coefficients: tuple[Any, Any, Any, Any],
) -> None:
    """Write a segment of dx."""
    douts = cuda.local.array(CHUNK, DTYPE)
    values = cuda.local.array(CHUNK, DTYPE)
    center, slope, base, scale = coefficients
    i, last, place, offset, walk = begin(shape, c, segment, segments)
    step = cuda.blockDim.x
    while i + (LOADS - 1) * step < last:
        begun = place, offset
        for k in range(LOADS):
            load(dout, offset, douts, k * WIDTH)
            load(x, offset, values, k * WIDTH)
            place, offset = advance(place, offset, walk)
        place, offset = begun
        for k in range(LOADS):
            for j in range(k * WIDTH, (k + 1) * WIDTH):
                douts[j] = grad_input1(douts[j], values[j], center, slope, base, scale)
            store(dx, offset, douts, k * WIDTH)
            place, offset = advance(place, offset, walk)
        i += LOADS * step
    while i < last:
        load(dout, offset, douts, 0)
        load(x, offset, values, 0)
        for j in range(WIDTH):
            douts[j] = grad_input1(douts[j], values[j], center, slope, base, scale)
        store(dx, offset, douts, 0)
        place, offset = advance(place, offset, walk)
        i += step
