"""Folding against PyTorch: its fusion helpers, and its convolutions followed by its batch normalization."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests import tolerances

torch = pytest.importorskip("torch")
fusion = pytest.importorskip("torch.nn.utils.fusion")
pytestmark = pytest.mark.peers

DTYPES = {np.float32: torch.float32, np.float64: torch.float64}
CONVOLUTIONS = {
    (1, False): (torch.nn.Conv1d, torch.nn.BatchNorm1d, (2, 6, 11)),
    (2, False): (torch.nn.Conv2d, torch.nn.BatchNorm2d, (2, 6, 8, 7)),
    (3, False): (torch.nn.Conv3d, torch.nn.BatchNorm3d, (2, 6, 5, 4, 6)),
    (1, True): (torch.nn.ConvTranspose1d, torch.nn.BatchNorm1d, (2, 6, 11)),
    (2, True): (torch.nn.ConvTranspose2d, torch.nn.BatchNorm2d, (2, 6, 8, 7)),
    (3, True): (torch.nn.ConvTranspose3d, torch.nn.BatchNorm3d, (2, 6, 5, 4, 6)),
}
SLACK = 8
"""Times the tolerance of an output: PyTorch's convolution sums up to 162 products in the dtype itself."""


def trained(kind, channels, affine, dtype):
    """A batch normalization of PyTorch that is worth folding, in evaluation mode."""
    bn = kind(channels, affine=affine, dtype=dtype).eval()
    with torch.no_grad():
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.1, 4.0)
        if affine:
            bn.weight.normal_()
            bn.bias.normal_()
    return bn


def ours(bn, dtype):
    """The same layer of fastbn."""
    layer = fastbn.BatchNorm(bn.num_features, eps=bn.eps, affine=bn.affine, dtype=dtype)
    layer.load_state_dict(bn.state_dict())
    return layer


def numpy(tensor):
    return None if tensor is None else tensor.detach().numpy()


def replaced(module, weight, bias):
    """The module with these parameters."""
    module.weight, module.bias = (torch.nn.Parameter(torch.from_numpy(a)) for a in (weight, bias))
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(("dimensions", "transposed"), CONVOLUTIONS)
def test_convolutions(dimensions, transposed, groups, bias, affine, dtype):
    torch.manual_seed(0)
    convolution, normalization, shape = CONVOLUTIONS[dimensions, transposed]
    options = {"stride": 2, "padding": 1, "groups": groups, "bias": bias, "dtype": DTYPES[dtype]}
    module = convolution(6, 12, 3, **options).eval()
    bn = trained(normalization, 12, affine, DTYPES[dtype])
    x = torch.randn(shape, dtype=DTYPES[dtype])
    with torch.no_grad():
        expected = bn(module(x)).numpy()
        given = numpy(module.weight), numpy(module.bias)
        folded = fastbn.fold.conv(*given, ours(bn, dtype), transposed=transposed)
        if not (transposed and groups > 1):  # PyTorch's helper knows no groups there
            helped = fusion.fuse_conv_bn_eval(module, bn, transposed)
            for mine, theirs in zip(folded, (helped.weight, helped.bias), strict=True):
                assert tolerances.ulps(mine, theirs.numpy(), dtype) <= tolerances.ULPS[dtype]["out"]
        actual = replaced(module, *folded)(x).numpy()
    assert tolerances.ulps(actual, expected, dtype) <= SLACK * tolerances.ULPS[dtype]["out"]
    named = fastbn.fold.conv(*given, ours(bn, dtype).freeze(), transposed=transposed, groups=groups)
    for a, b in zip(named, folded, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers(bias, dtype):
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 12, bias=bias, dtype=DTYPES[dtype]).eval()
    bn = trained(torch.nn.BatchNorm1d, 12, True, DTYPES[dtype])
    x = torch.randn((9, 6), dtype=DTYPES[dtype])
    with torch.no_grad():
        expected = bn(module(x)).numpy()
        folded = fastbn.fold.linear(numpy(module.weight), numpy(module.bias), ours(bn, dtype))
        helped = fusion.fuse_linear_bn_eval(module, bn)
        for mine, theirs in zip(folded, (helped.weight, helped.bias), strict=True):
            assert tolerances.ulps(mine, theirs.numpy(), dtype) <= tolerances.ULPS[dtype]["out"]
        actual = replaced(module, *folded)(x).numpy()
    assert tolerances.ulps(actual, expected, dtype) <= SLACK * tolerances.ULPS[dtype]["out"]
