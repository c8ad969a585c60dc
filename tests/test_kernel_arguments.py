"""What ``kernels.arguments`` says of shapes, memory and overlaps, beside what NumPy says."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numba
import numpy as np
import pytest

from fastbn._typing import Float64Array, Object
from fastbn.kernels import arguments as ask
from fastbn.kernels.jit import Entries
from fastbn.kernels.objects import WRITEABLE, flat, index, itemsize, number
from tests.data_for_tests import read_only

DTYPES = [np.float32, np.float64]
DTYPE = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [shape for n in range(4) for shape in itertools.product((1, 2, 3), repeat=n)]
SHAPES += [(2, 3, 1, 2), (2, 2, 3, 2), (0, 3), (2, 0, 3), (2, 1, 0)]
STRANGE = [None, 1.5, [1.0, 2.0], "text", np.float64(1)]


def shape_of(x: Object, axis: Object) -> Any:
    return ask.shape_of(x, index(axis), itemsize(x))


def size_of(x: Object, axis: Object) -> int:
    return ask.size_of(ask.shape_of(x, index(axis), itemsize(x)))


def shape_of_both(x: Object, axis: Object, out: Object) -> Any:
    return ask.shape_of_both(x, axis, out)


def is_like(a: Object, x: Object) -> bool:
    return ask.is_like(a, x)


def is_vector(a: Object, channels: Object, writeable: Object) -> bool:
    return ask.is_vector(a, index(channels), index(writeable))


def apart(a: Object, a_size: Object, b: Object, b_size: Object) -> bool:
    return ask.apart(a, index(a_size), b, index(b_size))


def same_or_apart(a: Object, b: Object, size: Object) -> bool:
    return ask.same_or_apart(a, b, index(size))


def is_parameter(a: Object, channels: Object, out: Object, size: Object) -> bool:
    return ask.is_parameter(a, index(channels), out, index(size))


def is_running(a: Object, channels: Object, x: Object, out: Object, size: Object, gamma: Object, beta: Object) -> bool:
    return ask.is_running(a, index(channels), x, out, index(size), gamma, beta)


def no_variance_below(var: Float64Array, channels: Object, least: Object) -> bool:
    return ask.no_variance_below(flat(var, 0, index(channels)), number(least))


@functools.cache
def entry(function, dtype):
    """A question, compiled."""
    entries, position = Entries(function), DTYPES.index(dtype)
    entries.compile(position)
    return entries[position]


def nothing(shape):
    """Whether it says that there is none; interpreted, an array of another dtype gets no farther than the table."""
    return shape in ((0, 0, 0), False)


def strided(shape, strides, dtype, offset=0):
    """An array with these strides, in values, in memory that holds every element; ``offset`` is in bytes."""
    reaches = [step * (n - 1) for step, n in zip(strides, shape, strict=True) if n]
    first = -sum(reach for reach in reaches if reach < 0)
    size = np.dtype(dtype).itemsize
    memory = np.zeros((first + sum(reach for reach in reaches if reach > 0) + 2) * size, np.uint8)
    steps = [step * size for step in strides]
    return np.ndarray(shape, dtype, memory.data, first * size + offset, steps)


def in_order(shape, order):
    """The strides of a dense array whose axes lie in memory in this order."""
    strides = [0] * len(shape)
    for i, axis in enumerate(order):
        strides[axis] = math.prod(shape[later] for later in order[i + 1 :])
    return strides


def layouts(shape, dtype):
    """Arrays of a shape: dense in every order of the axes, and with one axis reversed, broadcast or stepped."""
    for order in itertools.permutations(range(len(shape))):
        strides = in_order(shape, order)
        yield strided(shape, strides, dtype)
        yield strided(shape, strides, dtype, offset=1)
        for axis, n in enumerate(shape):
            for step in (-1, 0, 2) if n > 1 else (77, -5):  # the stride of a single value means nothing
                yield strided(shape, [*strides[:axis], step * (strides[axis] or 1), *strides[axis + 1 :]], dtype)


def expected_shape(x, axis):
    if x.ndim < 2 or not -x.ndim <= axis < x.ndim or not x.flags.aligned:
        return 0, 0, 0
    axis %= x.ndim
    channels, outer, inner = x.shape[axis], math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    if not x.flags.c_contiguous:
        if not np.moveaxis(x, axis, -1).flags.c_contiguous:
            return 0, 0, 0
        outer, inner = outer * inner, 1
    return (1, 1, outer * inner) if channels == 1 else (outer, channels, inner)


@DTYPE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_of(shape, dtype):
    ask_shape, ask_size, taken = entry(shape_of, dtype), entry(size_of, dtype), 0
    for x in layouts(shape, dtype):
        for axis in (*range(-x.ndim - 1, x.ndim + 1), -(2**63), 1.0):
            expected = expected_shape(x, axis) if isinstance(axis, int) else (0, 0, 0)
            assert ask_shape(x, axis) == expected, (x.strides, axis)
            assert ask_size(x, axis) == math.prod(expected)
            taken += math.prod(expected)
    assert (taken > 0) == (len(shape) > 1 and 0 not in shape)


def alike(a, x):
    steps = [[step for step, n in zip(each.strides, each.shape, strict=True) if n > 1] for each in (a, x)]
    return a.flags.aligned and a.shape == x.shape and steps[0] == steps[1]


@DTYPE
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape and len(shape) in (2, 3)], ids=str)
def test_is_like(shape, dtype):
    ask_like, both = entry(is_like, dtype), entry(shape_of_both, dtype)
    others = [np.zeros((*shape[:i], n + 1, *shape[i + 1 :]), dtype) for i, n in enumerate(shape)]
    others += [np.zeros(wrong, dtype) for wrong in (shape[1:], (*shape, 1), (1, *shape), ())]
    arrays = [*layouts(shape, dtype), *others]
    dense = [x for x in arrays[: -len(others)] if any(math.prod(expected_shape(x, axis)) for axis in range(x.ndim))]
    for x in dense[:: max(1, len(dense) // 9)]:
        for a in arrays:
            expected = alike(a, x)
            assert ask_like(a, x) == expected, (a.strides, x.strides)
            assert both(x, 1, a) == (expected_shape(x, 1) if expected else (0, 0, 0))
        for a in (
            *STRANGE,
            x.astype(x.dtype.newbyteorder()),
            x.view(np.recarray),
            x.astype(DTYPES[dtype is np.float32]),
        ):
            assert not ask_like(a, x)
        assert both(x, 1, read_only(x.copy("K"))) == (0, 0, 0)


@DTYPE
def test_shape_of_both_refuses(dtype):
    both, x = entry(shape_of_both, dtype), np.zeros((2, 3), dtype)
    assert both(x, 1, x) == (2, 3, 1)
    for given in (*STRANGE, x.view(np.recarray), x[0], x[:0], x[:, ::2]):
        assert nothing(both(given, 1, x))
        assert nothing(both(given, 1, given))
        assert nothing(both(x, 1, given))
    for axis in (2, -3, 1.0, None, np.int64(1), 2**70):
        assert nothing(both(x, axis, x))


@DTYPE
def test_is_vector(dtype):
    vector, sound = entry(is_vector, dtype), np.zeros(3, dtype)
    others = [sound[:, None], sound[None], np.zeros((), dtype), np.zeros(6, dtype)[::2], sound[::-1], sound[:2]]
    others += [strided((3,), (1,), dtype, offset=1), np.zeros(4, dtype), sound[:0], sound.view(np.recarray), *STRANGE]
    for writeable in (0, WRITEABLE):
        assert vector(sound, 3, writeable)
        assert vector(np.zeros(7, dtype)[2:5], 3, writeable)
        for a in others:
            assert not vector(a, 3, writeable)
        assert vector(read_only(np.zeros(3, dtype)), 3, writeable) == (not writeable)
        assert vector(np.zeros(6, dtype)[::6], 1, writeable)
        for each in (np.float32, np.float64, ">f4", ">f8", np.float16, np.int32, np.int64, np.complex64, object):
            of_either = np.dtype(each) in ((dtype,) if numba.config.DISABLE_JIT else DTYPES)
            assert vector(np.zeros(3, each), 3, writeable) == of_either


def pairs(dtype):
    """Two pieces of one memory, of all lengths and at all distances, some of them one and the same."""
    memory = np.zeros(12, dtype)
    for n, m in itertools.product((1, 2, 3), repeat=2):
        for at in range(12 - m + 1):
            yield memory[5 : 5 + n], memory[at : at + m]


@DTYPE
def test_apart(dtype):
    ask_apart, ask_same = entry(apart, dtype), entry(same_or_apart, dtype)
    for a, b in pairs(dtype):
        expected = not np.may_share_memory(a, b)
        assert ask_apart(a, a.size, b, b.size) == expected
        if a.size == b.size:
            assert ask_same(a, b, a.size) == (expected or a.ctypes.data == b.ctypes.data)
    if not numba.config.DISABLE_JIT:
        other = DTYPES[dtype == np.float32]
        memory = np.zeros(12)
        b = memory.view(dtype)[4:8]
        for at in range(memory.view(other).size - 2):
            a = memory.view(other)[at : at + 3]
            assert ask_apart(a, 3, b, 4) == ask_apart(b, 4, a, 3) == (not np.may_share_memory(a, b))
    raw = np.zeros(64, np.uint8)
    for shift in range(17):  # in bytes: memory maps and buffers can be told so
        a, b = raw[:16].view(dtype), raw[shift : shift + 16].view(dtype)
        assert ask_apart(a, a.size, b, b.size) == ask_apart(b, b.size, a, a.size) == (shift == 16)
    assert ask_apart(a, a.size, None, 100)


@DTYPE
def test_is_parameter(dtype):
    parameter, memory = entry(is_parameter, dtype), np.zeros(9, dtype)
    out = memory[3:6]
    assert parameter(None, 2, out, 3)
    for at in range(8):
        assert parameter(read_only(memory[at : at + 2]), 2, out, 3) == (at <= 1 or at >= 6)
    for a in (*STRANGE[1:], memory[:3], memory[:4:2], memory[:2][None], memory[:1]):
        assert not parameter(a, 2, out, 3)


@DTYPE
def test_is_running(dtype):
    running, memory = entry(is_running, dtype), np.zeros(19, dtype)
    x, out, gamma, beta = memory[2:6].reshape(2, 2), memory[8:12].reshape(2, 2), memory[13:15], memory[15:17]
    free = {0, 6, 17}
    for at in range(18):
        a = memory[at : at + 2]
        apart_from = [not np.may_share_memory(a, other) for other in (x, out, gamma, beta)]
        assert running(a, 2, x, out, 4, gamma, beta) == all(apart_from) == (at in free)
        assert running(a, 2, x, out, 4, None, None) == all(apart_from[:2])
    for a in (None, read_only(np.zeros(2, dtype)), np.zeros(3, dtype), np.zeros(4, dtype)[::2]):
        assert not running(a, 2, x, out, 4, gamma, beta)


def test_no_variance_below():
    none_below, eps = entry(no_variance_below, np.float64), 1e-3
    sound = np.array([0.0, np.nan, np.inf, -0.0, -1e-4])
    assert none_below(sound, 5, -eps)
    assert none_below(np.full(3, -0.5), 3, -0.5)
    for at, bad in itertools.product(range(5), (-np.inf, -1.0, np.nextafter(-eps, -1.0))):
        var = sound.copy()
        var[at] = bad
        assert not none_below(var, 5, -eps)
        assert not none_below(np.repeat(var, 2), 10, -eps)
        assert none_below(var[:at], at, -eps)  # what lies behind is not looked at
