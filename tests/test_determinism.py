"""The same bits wherever the tensors lie and whatever was called before; for threads and layers see ``test_matrix``."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.cells import digest, work
from tests.data_for_tests import LARGE_SHAPES, SHAPES, same_bits

pytestmark = pytest.mark.large

OFFSETS = (0, 4, 8, 12, 20, 32, 36, 60, 1, 3)
"""Bytes from the start of a cache line on; values that are not aligned to their size go through a copy."""


def at(offset, array):
    """A copy of an array that begins so many bytes after the start of a cache line."""
    memory = np.empty(array.nbytes + 64 + max(OFFSETS), np.uint8)
    start = -memory.ctypes.data % 64 + offset
    place = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    place[...] = array
    return place


def everything(x, dout, axis, offset, other):
    """All results for tensors at one offset and outputs at another."""
    layer = fastbn.BatchNorm(x.shape[axis], axis=axis, dtype=x.dtype)
    x, dout = at(offset, x), at(other, dout)
    out, dx = (at(place, np.full(x.shape, np.nan, x.dtype)) for place in (other, offset))
    results = [layer(x, out=out).copy(), layer.backward(dout, out=dx), layer.dgamma, layer.dbeta]
    results += [layer.eval()(x, out=out).copy(), layer.freeze()(x, out=out), *layer.state_dict().values()]
    return [*results, fastbn.moments(x, axis=axis).var]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), SHAPES + LARGE_SHAPES)
def test_any_alignment(rng, dtype, shape, axis):
    x, dout = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    expected = everything(x, dout, axis, 0, 0)
    for offset, other in zip(OFFSETS, OFFSETS[1:] + OFFSETS[:1], strict=True):
        for a, b in zip(everything(x, dout, axis, offset, other), expected, strict=True):
            assert same_bits(a, b), (offset, other)


def test_any_history(rng):
    """Calls of other shapes, dtypes and layouts in between, buffers used again and freed."""
    x = rng.standard_normal((40, 20, 14, 14), dtype=np.float32)
    expected = digest(fastbn.forward(x)[:1])
    first = work()
    for _ in range(20):
        assert digest(fastbn.forward(x)[:1]) == expected
    assert work() == first
