"""Inputs: read-only, so that a mutation fails, and outputs filled with NaN, so that an unwritten element fails."""

from __future__ import annotations

import contextlib
import math
from unittest import mock

import numpy as np

from fastbn import _dispatch, _engine


def read_only(array):
    array.flags.writeable = False
    return array


def tensor(rng, shape, dtype=np.float32, *, mean=0.0, scale=1.0):
    return read_only((rng.standard_normal(shape) * scale + mean).astype(dtype))


def nan_like(x):
    return np.full_like(x, np.nan)


def channels_last(x):
    """The same values with the channels (axis 1) last in memory."""
    out = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return read_only(out)


def threads_for_eight(shape, passes):
    """In place of ``threads.pay``: threads from eight values on."""
    return math.prod(shape) >= 8


@contextlib.contextmanager
def other_plans(**values):
    """Plans that are made with other values in the dispatch table."""

    def forget():
        _dispatch.plan.cache_clear()
        _engine._routes.cache_clear()

    with mock.patch.multiple(_dispatch, **values):
        forget()
        try:
            yield
        finally:
            forget()


def streamed_from(bytes_):
    """Thresholds of the dispatch table: results are streamed from so many bytes read and written on."""
    return {name: (bytes_, bytes_) for name in vars(_dispatch) if name.startswith("STREAM")}


def same_bits(a, b):
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


SHAPES = [
    # (shape, axis): every kernel, segment and tail at small size, 2 to 5 dimensions, odd axes
    ((2, 23), 1),
    ((16, 4), -1),
    ((5, 1), 1),
    ((5, 33, 27), 1),
    ((9, 128, 1), 1),
    ((4, 6, 5, 7), 1),
    ((4, 6, 5, 7), -1),
    ((4, 6, 5, 7), 0),
    ((4, 6, 5, 7), 2),
    ((13, 3, 7, 7), 1),
    ((2, 3, 4, 5, 6), 1),
    ((2, 3, 4, 5, 6), -1),
    ((1, 3, 2, 2), 1),
    ((33, 2, 4, 5), 1),  # short runs of many samples
    ((33, 2, 6, 6), 1),  # the same in inference alone
]

LARGE_SHAPES = [
    # the same for the parallel twins: fused and segmented, both modules, rows longer than a block
    ((8, 24, 40, 40), 1),
    ((3, 2, 150, 131), 1),
    ((33, 70, 7, 7), 1),
    ((40, 20, 14, 14), 1),
    ((2000, 65), 1),
    ((2, 50, 50, 20), -1),
    ((64, 1200), 1),
    ((4, 60, 60, 5), -1),
    ((30, 5, 5, 100), -1),  # rows that are no whole cache lines
    ((100, 1, 30, 30), 1),
    ((1, 17, 70, 61), 1),
    ((70, 90, 4, 5), 1),  # short runs of many samples, in training alone
]
