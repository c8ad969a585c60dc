"""Segments of a tensor: room for their sums, and how these become those of channels, in order.

A segment has two sums, of all channels each, that lie side by side; ``parts`` is the address of the first.
"""

from __future__ import annotations

import numpy as np

from fastbn._typing import Address, Address2, Float64Array
from fastbn.kernels.addresses import empty, offset
from fastbn.kernels.jit import inner
from fastbn.kernels.lanes import spread_wide_doubles
from fastbn.kernels.loads import load_wide_doubles
from fastbn.kernels.registers import WIDE_DOUBLES
from fastbn.kernels.stores import store_first


@inner
def stride_of(channels: int) -> int:
    """From one sum to the next: ``WIDE_DOUBLES`` can be read from any channel on."""
    return channels + WIDE_DOUBLES


@inner
def segments_of(segments: int, channels: int) -> Float64Array:
    """Room for the sums."""
    return empty((segments, 2, stride_of(channels)), np.float64)


@inner
def sums_of(parts: Address, channels: int, segment: int) -> Address2:
    """The two sums of a segment."""
    stride = stride_of(channels)
    return offset(parts, 2 * segment * stride), offset(parts, (2 * segment + 1) * stride)


@inner
def add_segments(parts: Address, segments: int, channels: int, left: int, right: int, sums: Address2) -> None:
    """Add the sums of all segments, in order, for ``left`` to ``right``."""
    stride = stride_of(channels)
    for c in range(left, right, WIDE_DOUBLES):
        values = products = spread_wide_doubles(0.0)
        for s in range(segments):
            i = 2 * s * stride + c
            values = values + load_wide_doubles(parts, i)
            products = products + load_wide_doubles(parts, i + stride)
        n = min(WIDE_DOUBLES, right - c)
        store_first(sums[0], c, n, values)
        store_first(sums[1], c, n, products)
