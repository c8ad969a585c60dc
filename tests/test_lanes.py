"""Each instruction, compiled, does what its interpreted twin does, and touches nothing beside."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from fastbn.kernels import stores
from fastbn.kernels.addresses import LINE, data, empty, offset, read, stack, write
from fastbn.kernels.formulas import affine1
from fastbn.kernels.lanes import blend, if_zero, least_of, lesser, not_negative, root, spread, spread_doubles, sum_of
from fastbn.kernels.loads import (
    load,
    load_doubles,
    load_first,
    load_first_doubles,
    load_wide,
    load_wide_doubles,
    load_widest_doubles,
    width,
)
from fastbn.kernels.registers import DOUBLES, WIDE, WIDE_DOUBLES, WIDEST_DOUBLES
from fastbn.kernels.stores import store, store_first
from tests.data_for_tests import same_bits

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ROOM = 64


def load_and_store(x, out, i, n):
    source, target = data(x), data(out)
    store(target, i, load(source, i))
    store_first(target, i + 16, n, load_first(source, i + 16, n))
    write(offset(target, i), 40, read(source, i + 40))


@DTYPES
@pytest.mark.parametrize("masked", [False, True])
def test_loads_and_stores(rng, monkeypatch, dtype, masked):
    """Some lanes in pieces and by masks, whichever this processor likes better."""
    monkeypatch.setattr(stores, "MASKED", masked)
    compiled = numba.njit(load_and_store)
    for i in 0, 1, 3:
        check_loads_and_stores(compiled, rng, dtype, i)


def check_loads_and_stores(load_and_store, rng, dtype, i):
    x = rng.standard_normal(ROOM).astype(dtype)
    step = 64 // x.itemsize
    for n in range(step + 1):
        out = np.full(ROOM, -1.0, dtype)
        load_and_store(x, out, i, n)
        expected = np.full(ROOM, -1.0, dtype)
        expected[i : i + step] = x[i : i + step]
        expected[i + 16 : i + 16 + n] = x[i + 16 : i + 16 + n]
        expected[i + 40] = x[i + 40]
        assert same_bits(out, expected)


@numba.njit
def wide(x, out, doubles, widest, i):
    store(data(out), i, load_wide(data(x), i))
    store(data(doubles), i, load_wide_doubles(data(x), i))
    store(data(widest), i, load_widest_doubles(data(x), i))


@DTYPES
def test_several_registers_at_once(rng, dtype):
    room = WIDEST_DOUBLES + 8
    x = rng.standard_normal(room).astype(dtype)
    out, doubles, widest = np.full(room, -1.0, dtype), np.full(room, -1.0), np.full(room, -1.0)
    wide(x, out, doubles, widest, 3)
    count = WIDE * 64 // x.itemsize
    for result, n in (out, count), (doubles, WIDE_DOUBLES), (widest, WIDEST_DOUBLES):
        assert same_bits(result[3 : 3 + n], x[3 : 3 + n].astype(result.dtype))
        assert (result[:3] == -1).all()
        assert (result[3 + n :] == -1).all()


@numba.njit
def doubles(x, out, i, n, fill, narrow):
    source, target = data(x), data(out)
    store(target, 0, load_doubles(source, i))
    store(target, DOUBLES, load_first_doubles(source, i, n, fill))
    store_first(data(narrow), 1, n, load_doubles(target, 0))


@DTYPES
def test_float64_lanes(rng, dtype):
    x = rng.standard_normal(ROOM).astype(dtype)
    for n in range(DOUBLES + 1):
        out, narrow = np.zeros(2 * DOUBLES), np.full(ROOM, -1.0, dtype)
        doubles(x, out, 5, n, 0.25, narrow)
        assert same_bits(out[:DOUBLES], x[5 : 5 + DOUBLES].astype(np.float64))
        assert same_bits(out[DOUBLES : DOUBLES + n], x[5 : 5 + n].astype(np.float64))
        assert (out[DOUBLES + n :] == 0.25).all()
        assert same_bits(narrow[1 : 1 + n], x[5 : 5 + n])
        assert (narrow[1 + n :] == -1).all()
        assert narrow[0] == -1


@numba.njit
def functions(x, out, n):
    source, target = data(x), data(out)
    scratch = stack(source, 32)
    store(scratch, 0, load(source, 0))
    a, b = load(scratch, 0), spread(source, 2.5)
    store(target, 0, blend(n, a, b))
    values = load_doubles(source, 0)
    write(target, 16, sum_of(values))
    for i in range(width(source)):
        write(target, 32 + i, read(scratch, i) * 2)


@DTYPES
def test_blend_sum_and_scratch(rng, dtype):
    x = rng.integers(-50, 50, ROOM).astype(dtype)  # sums are exact in any order
    step = 64 // x.itemsize
    for n in range(step + 1):
        out = np.zeros(ROOM, dtype)
        functions(x, out, n)
        assert same_bits(out[:n], x[:n])
        assert (out[n:step] == 2.5).all()
        assert out[16] == x[:8].sum()
        assert same_bits(out[32 : 32 + step], 2 * x[:step])


@numba.njit
def edges(x, out):
    source, target = data(x), data(out)
    values = load_doubles(source, 0)
    zeros = spread_doubles(0.0)
    store(target, 0, not_negative(values))
    store(target, 8, if_zero(values, zeros + zeros, values / values))
    store(target, 16, root(values))
    for i in range(8):
        value = read(source, i)
        write(target, 24 + i, not_negative(value))
        write(target, 32 + i, if_zero(value, 0.0, value / value if value != 0.0 else 1.0))
        write(target, 40 + i, root(value))


def test_nan_infinity_and_zero():
    x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 4.0, -4.0, 1e-320])
    out = np.empty(48)
    with np.errstate(all="ignore"):
        edges(x, out)
        np.testing.assert_array_equal(out[:8], np.where(x < 0, 0.0, x))
        np.testing.assert_array_equal(out[8:16], np.where(x == 0, 0.0, x / x))
        np.testing.assert_array_equal(out[16:24], np.sqrt(x))
        np.testing.assert_array_equal(out[24:32], out[:8])
        np.testing.assert_array_equal(out[40:48], out[16:24])


@numba.njit
def least(x, out):
    source, target = data(x), data(out)
    values = lesser(load_doubles(source, 0), spread_doubles(2.0))
    store(target, 0, values)
    write(target, 8, least_of(values))


@pytest.mark.parametrize("place", range(8))
def test_least(place):
    x, out = np.array([3.0, np.nan, np.inf, 2.0, 5.0, -0.0, 1.5, 7.0]), np.empty(9)
    x[place] = -np.inf if place == 3 else -4.0 - place
    with np.errstate(all="ignore"):
        least(x, out)
        np.testing.assert_array_equal(out[:8], np.where(x < 2, x, 2.0))
    assert out[8] == x[place]


@numba.njit
def one_formula_for_both(x, mean, inv_std, out):
    source, target = data(x), data(out)
    for c in range(DOUBLES):
        one = affine1(source, read(data(mean), c), read(data(inv_std), c), 0.7, -0.3)
        for j in range(3):
            write(target, j * DOUBLES + c, one[j])
    given = load_doubles(data(mean), 0), load_doubles(data(inv_std), 0)
    eight = affine1(source, given[0], given[1], spread_doubles(0.7), spread_doubles(-0.3))
    for j in range(3):
        store(target, (3 + j) * DOUBLES, eight[j])


@DTYPES
def test_formulas_of_one_value_are_those_of_many(rng, dtype):
    out = np.empty(6 * DOUBLES)
    one_formula_for_both(np.empty(1, dtype), rng.standard_normal(8) + 1e4, rng.random(8) + 0.5, out)
    assert same_bits(out[: 3 * DOUBLES], out[3 * DOUBLES :])
    assert (out[:DOUBLES] == out[:DOUBLES].astype(dtype)).all()


def test_an_address_is_of_contiguous_memory(rng):
    if not numba.config.DISABLE_JIT:
        with pytest.raises(numba.TypingError):
            numba.njit(load_and_store)(np.ones(2 * ROOM)[::2], np.ones(ROOM), 0, 1)


@pytest.mark.skipif(not numba.config.DISABLE_JIT, reason="compiled, an index is not checked")
@pytest.mark.parametrize(
    "touch",
    [
        load,
        load_wide,
        load_doubles,
        load_wide_doubles,
        load_widest_doubles,
        read,
        lambda x, i: load_first(x, i, 1),
        lambda x, i: load_first_doubles(x, i, 1, 0.0),
        lambda x, i: store(x, i, np.ones(16, np.float32)),
        lambda x, i: store_first(x, i, 1, np.ones(16, np.float32)),
        lambda x, i: store_first(x, i, 1, np.ones(8)),
        lambda x, i: write(x, i, 1.0),
    ],
)
def test_interpreted_indices_are_checked(touch):
    """So that the tests without compilation find what goes beyond an array, to either side."""
    x = np.zeros(200, np.float32)
    touch(x, 0)
    x[:] = 0
    for i in (-1, 200):
        with pytest.raises(IndexError, match=rf"values from {i} on, of 200"):
            touch(x, i)
    assert not x.any()


def an_empty_array(rows, columns, x):
    made = empty((rows, 3, columns), x.dtype)
    made[...] = x
    return made


@DTYPES
def test_empty(dtype):
    made = numba.njit(an_empty_array)(2, 5, np.full(5, 7, dtype))
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((2, 3, 5), dtype, True)
    assert (made == 7).all()
    assert numba.config.DISABLE_JIT or made.ctypes.data % LINE == 0
    assert numba.njit(an_empty_array)(2, 0, np.ones(0, dtype)).shape == (2, 3, 0)


def a_huge_array(size):
    return empty((size,), np.float64).size


def test_no_memory():
    with pytest.raises(MemoryError):
        numba.njit(a_huge_array)(1 << 48)
