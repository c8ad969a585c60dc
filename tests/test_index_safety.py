"""Tensors of more than 2**31 values, which a 32-bit index cannot count, in little memory.

Their pages are those of an anonymous mapping: what is only read is one page of zeros, all over. The last value of the
last channel is marked, and must be found there. What takes minutes runs with ``-m huge``.
"""

from __future__ import annotations

import mmap

import numpy as np
import pytest

import fastbn

pytestmark = pytest.mark.large

SHAPES = [
    pytest.param((3, 2, 2**29 - 3), 1, id="long rows"),
    *(
        pytest.param(*case, id=name, marks=pytest.mark.huge)
        for name, case in {
            "one channel": ((1, 1, 2**31 + 17), 1),
            "2**31 rows": ((2**31 + 17, 1), 1),
            "short rows": ((2**26 + 1, 3, 11), 1),
            "planes": ((2**21 + 1, 64, 17), 1),
            "columns": ((2**27 + 1, 17), -1),
            "wide": ((2**16, 2**15 + 1), 1),
        }.items()
    ),
]


def zeros(shape, dtype=np.float32):
    """Zeros that take no memory where they are only read."""
    memory = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # of which each would be 2 MB of its own
    return np.frombuffer(memory, dtype).reshape(shape)


def marked(shape, axis):
    """``x``, and the mean that its only value, 2, makes in the last channel."""
    x = zeros(shape)
    assert x.size > 2**31
    x[(-1,) * x.ndim] = 2.0
    mean = np.zeros(shape[axis])
    mean[-1] = 2.0 * shape[axis] / x.size
    return x, mean


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="needs Linux")
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_statistics_and_sums(shape, axis):
    x, mean = marked(shape, axis)
    moments = fastbn.moments(x, axis=axis)
    assert moments.count == x.size // shape[axis]
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.var, 2.0 * mean - mean**2, rtol=1e-9)
    sums = fastbn.backward_sums(x, x, np.zeros(shape[axis]), np.ones(shape[axis]), axis=axis)
    for total, expected in zip(sums, (2.0, 4.0), strict=True):
        assert total[-1] == expected
        assert not total[:-1].any()


@pytest.mark.huge
@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="needs Linux, and 9 GB of memory")
@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 2**29 - 3), 1), ((2**27 + 1, 17), -1), ((2**21 + 1, 64, 17), 1)])
def test_outputs(shape, axis):
    """Written from the first value to the last, in place: the ends, and everything in between."""
    x, _ = marked(shape, axis)
    channels = shape[axis]
    mean, var = -np.arange(1.0, channels + 1), np.ones(channels)
    out = fastbn.inference(x, mean, var, eps=0, axis=axis, out=x)
    first, last = out[(0,) * out.ndim], out[(-1,) * out.ndim]
    assert (first, last) == (1.0, channels + 2.0)
    channels_first = np.moveaxis(out, axis, 0)
    for c in {0, channels // 2, channels - 1}:
        values = channels_first[c]
        assert values.min() == c + 1
        assert np.count_nonzero(values != c + 1) == (c == channels - 1)


@pytest.mark.huge
@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="needs Linux, and 9 GB of memory")
@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 2**29 - 3), 1), ((2**27 + 1, 17), -1)])
def test_training_and_gradients(shape, axis):
    """``x`` is nearly all zeros, so ``out`` nearly constant; ``dx`` of a constant ``dout`` is zero."""
    x, mean = marked(shape, axis)
    out, cache = fastbn.forward(x, axis=axis, out=zeros(shape))
    np.testing.assert_allclose(cache.mean, mean, rtol=1e-12)
    inv_std = 1 / np.sqrt(2.0 * mean[-1] - mean[-1] ** 2 + 1e-5)
    np.testing.assert_allclose(out[(-1,) * out.ndim], (2.0 - mean[-1]) * inv_std, rtol=1e-6)
    np.testing.assert_allclose(out[(0,) * out.ndim], 0.0, atol=0)
    assert np.count_nonzero(np.moveaxis(out, axis, 0)[0]) == 0
    out[...] = 1.0
    dx = fastbn.backward(out, cache, out=out).dx
    assert np.abs(dx[(0,) * dx.ndim]) < 1e-3
    assert np.abs(np.moveaxis(dx, axis, 0)[0]).max() < 1e-3
