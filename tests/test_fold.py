"""Folding without other libraries; convolutions of PyTorch are in test_fold_torch.py."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests import tolerances
from tests.data_for_tests import read_only, same_bits, tensor


def layer(rng, channels, dtype=np.float32, **options):
    """A layer that has seen data, its parameters of both signs."""
    bn = fastbn.BatchNorm(channels, dtype=dtype, **options)
    bn.running_mean[:], bn.running_var[:] = rng.standard_normal(channels), rng.uniform(0.1, 4.0, channels)
    if bn.affine:
        bn.gamma[:], bn.beta[:] = rng.standard_normal(channels), rng.standard_normal(channels)
    return bn.eval()


def correlate(x, weight, bias=None):
    """A convolution in float64, as networks have it: channels on axis 1, no padding, stride 1."""
    x, weight = np.float64(x), np.float64(weight)
    kernel = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=tuple(range(2, x.ndim)))
    over = tuple(range(-len(kernel), 0))
    out = np.moveaxis(np.tensordot(windows, weight, axes=((1, *over), (1, *over))), -1, 1)
    return out if bias is None else out + np.float64(bias).reshape(-1, *(1,) * len(kernel))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("affine", [True, False])
def test_scale_and_shift(rng, dtype, affine):
    bn = layer(rng, 5, dtype, affine=affine, eps=1e-3)
    x = tensor(rng, (7, 5), np.float64)
    scale, shift = fastbn.fold.scale_shift(bn)
    assert scale.dtype == shift.dtype == np.float64
    inv_std = 1 / np.sqrt(np.float64(bn.running_var) + 1e-3)
    np.testing.assert_allclose(scale, (bn.gamma if affine else 1) * inv_std, rtol=1e-15)
    np.testing.assert_allclose(x * scale + shift, bn(x), atol=tolerances.ULPS[np.float64]["out"] * 2.0**-52 * 10)
    for again in (bn.freeze(), bn.train()):  # the mode does not matter
        assert all(same_bits(a, b) for a, b in zip(fastbn.fold.scale_shift(again), (scale, shift), strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kernel", [(3,), (2, 3), (2, 1, 3)])
def test_convolutions(rng, kernel, with_bias, dtype):
    bn = layer(rng, 5, dtype)
    weight = tensor(rng, (5, 4, *kernel), dtype)
    bias = tensor(rng, 5, dtype) if with_bias else None
    x = tensor(rng, (2, 4, 5, 6, 4)[: 2 + len(kernel)], dtype)
    expected = bn(correlate(x, weight, bias))
    before = [a.copy() for a in (bn.running_mean, bn.running_var, bn.gamma, bn.beta)]
    folded = fastbn.fold.conv(weight, bias, bn)
    assert [a.dtype for a in folded] == [dtype, dtype]
    assert [a.shape for a in folded] == [weight.shape, (5,)]
    assert tolerances.ulps(correlate(x, *folded), expected, dtype) <= tolerances.ULPS[dtype]["out"]
    after = bn.running_mean, bn.running_var, bn.gamma, bn.beta
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))
    frozen = fastbn.fold.conv(weight, bias, bn.freeze())
    assert all(same_bits(a, b) for a, b in zip(frozen, folded, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("with_bias", [True, False])
def test_dense_layers(rng, with_bias, dtype):
    bn = layer(rng, 5, dtype)
    weight, x = tensor(rng, (5, 4), dtype), tensor(rng, (7, 4), dtype)
    bias = tensor(rng, 5, dtype) if with_bias else None
    folded = fastbn.fold.linear(weight, bias, bn)
    assert [a.dtype for a in folded] == [dtype, dtype]
    expected = bn(np.float64(x) @ np.float64(weight).T + (0 if bias is None else np.float64(bias)))
    actual = np.float64(x) @ np.float64(folded[0]).T + np.float64(folded[1])
    assert tolerances.ulps(actual, expected, dtype) <= tolerances.ULPS[dtype]["out"]


def test_layer_before_a_dense_one(rng):
    """As the docstring of ``linear`` says."""
    bn = layer(rng, 4, np.float64)
    weight, bias, x = tensor(rng, (5, 4), np.float64), tensor(rng, 5, np.float64), tensor(rng, (7, 4), np.float64)
    scale, shift = fastbn.fold.scale_shift(bn)
    actual = x @ (weight * scale).T + (bias + weight @ shift)
    assert tolerances.ulps(actual, bn(x) @ weight.T + bias, np.float64) <= tolerances.ULPS[np.float64]["out"]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_of_a_transposed_convolution(rng, groups):
    """Each group by itself."""
    bn = layer(rng, 4 * groups)
    weight, bias = tensor(rng, (6, 4, 3, 2)), tensor(rng, 4 * groups)
    folded = fastbn.fold.conv(weight, bias, bn, transposed=True)
    scale, shift = fastbn.fold.scale_shift(bn)
    for group in range(groups):
        inputs, outputs = slice(group * 6 // groups, (group + 1) * 6 // groups), slice(group * 4, (group + 1) * 4)
        expected = weight[inputs] * scale[outputs].reshape(1, 4, 1, 1)
        assert same_bits(folded[0][inputs], expected.astype(np.float32))
    np.testing.assert_allclose(folded[1], bias * scale + shift, rtol=1e-5)
    named = fastbn.fold.conv(weight, bias, bn, transposed=True, groups=groups)
    assert all(same_bits(a, b) for a, b in zip(named, folded, strict=True))
    plain = tensor(rng, (4 * groups, 6, 3, 2))
    named, unnamed = (fastbn.fold.conv(plain, bias, bn, groups=given) for given in (groups, None))
    assert all(same_bits(a, b) for a, b in zip(named, unnamed, strict=True))


def test_large_bias_that_the_mean_cancels(rng):
    """The difference of two numbers near 1e8 is taken in float64, before it is scaled."""
    bn = layer(rng, 3, np.float64)
    bn.running_mean[:] = 1e8 + np.arange(3)
    bias = read_only(np.full(3, 1e8))
    folded = fastbn.fold.linear(np.ones((3, 2), np.float32), bias, bn)[1]
    expected = -np.arange(3) / np.sqrt(bn.running_var + 1e-5) * bn.gamma + bn.beta
    np.testing.assert_allclose(folded, expected, rtol=1e-6)


def test_what_is_out_of_range_stays_in_its_channel(rng):
    bn = layer(rng, 3)
    bn.gamma[1] = 1e38
    weight, bias = fastbn.fold.conv(np.full((3, 2, 3), 1e3, np.float32), None, bn)
    assert np.isinf(weight[1]).all()
    assert np.isfinite(weight[[0, 2]]).all()
    assert np.isfinite(bias[[0, 2]]).all()
    frozen = fastbn.FrozenBatchNorm(np.zeros(2), np.array([0.0, 1.0]), eps=0.0)  # inv_std is infinite
    weight, bias = fastbn.fold.linear(np.ones((2, 3)), None, frozen)
    assert np.isinf(weight[0]).all()
    assert (weight[1] == 1).all()
    assert bias[1] == 0
    assert np.isinf(fastbn.fold.scale_shift(frozen)[0][0])


conv, linear, scale_shift = fastbn.fold.conv, fastbn.fold.linear, fastbn.fold.scale_shift
UNTRACKED = fastbn.BatchNorm(3, track_running_stats=False)
BN = fastbn.BatchNorm(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scale_shift(None), TypeError, "bn: expected a BatchNorm or FrozenBatchNorm, got NoneType None"),
        (lambda: scale_shift(UNTRACKED), ValueError, r"bn.track_running_stats: expected True: .*, got False"),
        (lambda: linear(np.ones((3, 2)), None, UNTRACKED), ValueError, r"bn.track_running_stats: expected True"),
        (lambda: linear(np.ones((2, 3)), None, BN), ValueError, "bn.num_features: expected 2, .*, got 3"),
        (lambda: linear(np.ones((3, 2, 1)), None, BN), ValueError, r"weight: expected 2 dimensions, got shape \(3, 2"),
        (lambda: linear(np.ones((3, 2), int), None, BN), TypeError, "weight: expected dtype float32 or float64"),
        (lambda: conv(np.ones((3, 2)), None, BN), ValueError, "weight: expected 3 or 4 or 5 dimensions"),
        (lambda: conv(np.ones((3, 2, 2)), np.ones(2), BN), ValueError, r"bias: expected shape \(3,\)"),
        (lambda: conv(np.ones((3, 2, 2)), [1, 2, 3], BN), TypeError, "bias: expected dtype float32 or float64"),
        (lambda: conv(np.ones((4, 3, 2)), None, BN), ValueError, "bn.num_features: expected 4, .*, got 3"),
        (lambda: conv(np.ones((3, 2, 2)), None, BN, groups=2), ValueError, "groups: expected a divisor of 3, got 2"),
        (
            lambda: conv(np.ones((3, 2, 2)), None, BN, groups=0),
            ValueError,
            "groups: expected an integer above 0, got 0",
        ),
        (lambda: conv(np.ones((3, 2, 2)), None, BN, groups=1.0), TypeError, "groups: expected an integer"),
        (lambda: conv(np.ones((3, 2, 2)), None, BN, transposed=1), TypeError, "transposed: expected True or False"),
        (lambda: conv(np.ones((3, 2, 2)), None, BN, transposed=True), ValueError, "bn.num_features: expected 2, "),
        (lambda: conv(np.ones((3, 4, 2)), None, BN, transposed=True), ValueError, "bn.num_features: expected 4, "),
        (lambda: conv(np.ones((4, 1, 2)), None, BN, transposed=True), ValueError, "groups: expected a divisor of 4, g"),
        (
            lambda: conv(np.ones((3, 1, 2)), None, BN, transposed=True, groups=1),
            ValueError,
            "bn.num_features: expected 1, .*, got 3",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_replaced_arrays_are_checked():
    bn = fastbn.BatchNorm(3)
    bn.running_var = np.ones(4)
    with pytest.raises(ValueError, match=r"running_var: expected shape \(3,\)"):
        scale_shift(bn)
