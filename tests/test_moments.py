from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import SHAPES, same_bits, tensor


def split(x, axis, parts):
    """Uneven parts along an axis that is not the channels'."""
    other = 0 if axis % x.ndim else 1
    cuts = np.sort(np.random.default_rng(1).integers(0, x.shape[other] + 1, parts - 1))
    return np.split(x, cuts, axis=other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_merged_parts_are_the_whole(rng, shape, axis, mean, dtype):
    x = tensor(rng, shape, dtype, mean=mean)
    whole = fastbn.moments(x, axis=axis)
    parts = [fastbn.moments(part, axis=axis) for part in split(x, axis, 4)]
    forwards, backwards = parts[0], parts[-1]
    for part in parts[1:]:
        forwards = forwards.merge(part)
    for part in parts[-2::-1]:
        backwards = part.merge(backwards)
    for merged in (forwards, backwards):
        assert merged.count == whole.count == x.size // shape[axis]
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(merged.var, whole.var, rtol=1e-9)


def test_merge_by_hand():
    a = fastbn.moments(np.array([[1.0], [2.0]]))
    b = fastbn.moments(np.array([[3.0], [6.0]]))
    merged = a.merge(b)
    assert (merged.count, merged.mean, merged.var) == (4, 3.0, 3.5)
    assert (a.count, a.mean, a.var) == (2, 1.5, 0.25)  # unchanged


def test_empty_parts_do_not_count(rng):
    x = tensor(rng, (6, 3))
    some, none = fastbn.moments(x), fastbn.moments(x[:0])
    assert none.count == 0
    for merged in (some.merge(none), none.merge(some)):
        assert merged.count == 6
        assert same_bits(merged.mean, some.mean)
        assert same_bits(merged.var, some.var)
    assert none.merge(none).count == 0


def test_constant_parts_stay_exact():
    merged = fastbn.moments(np.full((5, 2), 0.1)).merge(fastbn.moments(np.full((9, 2), 0.1)))
    assert (merged.mean == 0.1).all()
    assert (merged.var == 0).all()


def test_batch_spread_over_processes(rng):
    """The phases on parts, sums exchanged, give what one call gives on the whole."""
    x, dout = tensor(rng, (12, 5, 4)), tensor(rng, (12, 5, 4))
    gamma, beta = rng.standard_normal(5), rng.standard_normal(5)
    out, cache = fastbn.forward(x, gamma, beta)
    gradients = fastbn.backward(dout, cache)

    parts, dparts = (x[:3], x[3:4], x[4:]), (dout[:3], dout[3:4], dout[4:])
    moments = fastbn.moments(parts[0]).merge(fastbn.moments(parts[1])).merge(fastbn.moments(parts[2]))
    inv_std = 1 / np.sqrt(moments.var + 1e-5)
    outs = [fastbn.normalize(part, moments.mean, inv_std, gamma, beta) for part in parts]
    sums = [fastbn.backward_sums(d, p, moments.mean, inv_std) for d, p in zip(dparts, parts, strict=True)]
    sum_dout, sum_dout_xhat = (np.sum(values, axis=0) for values in zip(*sums, strict=True))
    dxs = [
        fastbn.backward_input(d, p, moments.mean, inv_std, gamma, sum_dout, sum_dout_xhat, moments.count)
        for d, p in zip(dparts, parts, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(outs), out, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(dxs), gradients.dx, atol=1e-6)
    np.testing.assert_allclose(sum_dout_xhat, gradients.dgamma, rtol=1e-12)
    np.testing.assert_allclose(sum_dout, gradients.dbeta, rtol=1e-12)
    assert sum_dout.dtype == sum_dout_xhat.dtype == np.float64


def test_moments_are_frozen(rng):
    moments = fastbn.moments(tensor(rng, (6, 3)))
    with pytest.raises(AttributeError):
        moments.count = 3


def test_phases_write_into_out(rng):
    x, dout = tensor(rng, (12, 5, 4)), tensor(rng, (12, 5, 4))
    moments = fastbn.moments(x)
    inv_std = 1 / np.sqrt(moments.var + 1e-5)
    buffer = x.copy()
    assert fastbn.normalize(buffer, moments.mean, inv_std, out=buffer) is buffer
    assert same_bits(buffer, fastbn.normalize(x, moments.mean, inv_std))
    sums = fastbn.backward_sums(dout, x, moments.mean, inv_std)
    buffer = dout.copy()
    dx = fastbn.backward_input(buffer, x, moments.mean, inv_std, None, *sums, moments.count, out=buffer)
    assert dx is buffer
    assert same_bits(dx, fastbn.backward_input(dout, x, moments.mean, inv_std, None, *sums, moments.count))
