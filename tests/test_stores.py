"""Streaming stores change no bit, at any alignment, and write nothing beside their output."""

from __future__ import annotations

import numba
import numpy as np
import pytest

import fastbn
from fastbn import _dispatch, reference
from fastbn.kernels import chunks
from tests.data_for_tests import other_plans, same_bits, streamed_from, tensor

SHAPES = [
    (5, 4096),
    (7, 160),
    (40, 64),
    (6, 5, 7, 7),
    (3, 33, 16),
    (2, 3, 41, 41),
    (8, 20, 14, 14),
    (5, 64, 3, 3),
    (4, 16, 2, 2),
]
GUARD = 100
STEP = 5 if numba.config.DISABLE_JIT else 1  # interpreted, all stores are one


def results(x, dout, offset):
    """Training forward, backward and inference into memory that begins ``offset`` elements from a cache line."""
    gamma, beta = np.linspace(0.5, 1.5, x.shape[1]), np.linspace(-1, 1, x.shape[1])
    outs = []

    def target():
        memory = np.full(x.size + 2 * GUARD + 16, np.nan, x.dtype)
        start = GUARD + (-(memory.ctypes.data // x.itemsize + GUARD)) % (64 // x.itemsize) + offset
        out = memory[start : start + x.size].reshape(x.shape)
        outs.append((memory, start, out))
        return out

    _, cache = fastbn.forward(x, gamma, beta, out=target())
    fastbn.backward(dout, cache, out=target())
    fastbn.inference(x, cache.mean, cache.inv_std**-2, gamma, beta, out=target())
    same = x.copy()
    fastbn.inference(same, cache.mean, cache.inv_std**-2, gamma, beta, out=same)
    for memory, start, _ in outs:
        assert np.isnan(memory[:start]).all()
        assert np.isnan(memory[start + x.size :]).all()
    return [out for _, _, out in outs] + [same]


@pytest.fixture
def forced():
    """Stream whatever can be."""
    with other_plans(**streamed_from(0)):
        yield


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_at_every_alignment(rng, request, dtype, shape):
    x, dout = tensor(rng, shape, dtype), tensor(rng, shape, dtype)
    expected = results(x, dout, 0)
    assert not any(np.isnan(out).any() for out in expected)
    ordinary = [results(x, dout, offset) for offset in range(1, 64 // x.itemsize, 3)]
    request.getfixturevalue("forced")
    streamed = [results(x, dout, offset) for offset in range(0, 64 // x.itemsize, STEP)]
    for outs in ordinary + streamed:
        for out, wanted in zip(outs, expected, strict=True):
            assert same_bits(out, wanted)


@pytest.mark.large
@pytest.mark.parametrize("columns", [251, 600])
def test_rows_of_a_large_tensor_that_begin_anywhere_in_a_line(rng, columns):
    x, dout = (tensor(rng, (chunks.LARGE // columns + 5, columns)) for _ in range(2))
    expected = results(x, dout, 0)
    gamma, beta = np.linspace(0.5, 1.5, columns), np.linspace(-1, 1, columns)
    np.testing.assert_allclose(expected[0], reference.forward(x, gamma, beta)[0], atol=1e-5)
    np.testing.assert_allclose(expected[1], reference.backward(dout, x, gamma)[0], atol=1e-5)
    for out, wanted in zip(results(x, dout, 5), expected, strict=True):
        assert same_bits(out, wanted)


def test_what_is_forced(forced):
    assert _dispatch.plan(40, 64, 1, 4).stream_out == (True, True)
    assert _dispatch.plan(40, 63, 1, 4).stream_out == (False, False)  # rows that begin anywhere in a cache line
