from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import channels_last, same_bits, tensor


def test_frozen_layers_check_their_ndims():
    with pytest.raises(TypeError, match="ndims: expected a tuple"):
        fastbn.FrozenBatchNorm(np.zeros(3), np.ones(3), ndims=4)


def test_freeze(rng):
    layer = fastbn.BatchNorm2d(3, eps=1e-3)
    layer.gamma[:], layer.beta[:] = [1, 2, 3], [4, 5, 6]
    x = tensor(rng, (4, 3, 5, 6))
    layer(x)
    frozen = layer.freeze()
    expected = layer.eval()(x)
    layer.train()(x)
    layer.gamma[:] = 0
    for given in (x, channels_last(x)):
        assert same_bits(frozen(given), expected)
    buffer = x.copy()
    assert frozen(buffer, out=buffer) is buffer
    assert same_bits(buffer, expected)
    plain = fastbn.BatchNorm1d(3, affine=False).freeze()(x[..., 0])
    np.testing.assert_allclose(plain, x[..., 0] / np.sqrt(1 + 1e-5), rtol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        frozen.mean[0] = 1
    with pytest.raises(ValueError, match="x: expected 3 channels"):
        frozen(np.ones((2, 4, 5, 6)))
    with pytest.raises(ValueError, match="out: expected the input itself or memory of its own"):
        big = np.ones((5, 3, 5, 6))
        frozen(big[1:], out=big[:-1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((3, 1)), np.ones(3)), ValueError, r"running_mean: expected 1 dimension"),
        ((np.ones(3), np.ones(4)), ValueError, r"running_var: expected shape \(3,\)"),
        ((np.ones(3), -np.ones(3)), ValueError, "running_var: expected no value below"),
        ((np.ones(3), np.ones(3), np.ones(2)), ValueError, "gamma: expected shape"),
        ((np.ones(3), np.ones(3), None, [1, 2, 3]), TypeError, "beta: expected dtype"),
    ],
)
def test_frozen_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbn.FrozenBatchNorm(*arguments)
