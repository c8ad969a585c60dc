"""Ordinary eager calls of training: one compiled call, with bitwise the results of the operators."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import pytest

torch = pytest.importorskip("torch")
import fastbn.torch as ft  # noqa: E402
from fastbn.torch import eager, routes  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.large,
    pytest.mark.skipif(numba.config.DISABLE_JIT, reason="there are no pointers without compilation"),
]

operators = torch.ops.fastbn
SHAPES = [
    (32, 5),
    (700, 96),
    (4096, 70),
    (6, 5, 9),
    (4, 3, 5, 6),
    (3, 2, 150, 131),
    (8, 24, 20, 20),
    (64, 20, 4, 4),
    (2, 4, 3, 5, 6),
]
LAYERS = {2: ft.BatchNorm1d, 3: ft.BatchNorm1d, 4: ft.BatchNorm2d, 5: ft.BatchNorm3d}


def tensor(shape, dtype, channels_last, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 3
    if channels_last:
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return x


def layer_for(x, **options):
    layer = LAYERS[x.dim()](x.shape[1], dtype=x.dtype, **options)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return layer


def same(a, b):
    return (a is None and b is None) or (a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b))


CASES = [(shape, False) for shape in SHAPES] + [(shape, True) for shape in SHAPES if len(shape) > 3]


@pytest.mark.parametrize(("shape", "channels_last"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
def test_bitwise_the_operators(shape, channels_last, dtype, affine):
    x, dout = (tensor(shape, dtype, channels_last, seed).requires_grad_(seed == 0) for seed in (0, 1))
    layer = layer_for(x, affine=affine)
    weight, bias = layer.weight, layer.bias
    expected, mean, inv_std, var = operators.batch_norm_forward(x.detach(), weight, bias, layer.eps)
    running = layer.running_mean.clone(), layer.running_var.clone(), layer.num_batches_tracked.clone()
    operators.update_running(*running, mean, var, x.numel() // x.shape[1], layer.momentum)
    out = layer(x)
    assert type(out.grad_fn).__name__ == "EagerFunctionBackward"
    assert same(out, expected)
    for ours, theirs in zip((layer.running_mean, layer.running_var, layer.num_batches_tracked), running, strict=True):
        assert same(ours, theirs)
    out.backward(dout)
    dx, dweight, dbias = operators.batch_norm_backward(dout, x.detach(), weight, mean, inv_std)
    assert same(x.grad, dx)
    if affine:
        assert same(weight.grad, dweight)
        assert same(bias.grad, dbias)
    with torch.no_grad():
        assert same(layer(x), expected)
    assert int(layer.num_batches_tracked) == 2


@pytest.mark.parametrize("shape", [(3, 2, 150, 131), (700, 96)])
def test_any_number_of_threads(shape):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x = tensor(shape, torch.float32, False).requires_grad_()
            layer = LAYERS[x.dim()](x.shape[1])
            out = layer(x)
            out.backward(tensor(shape, torch.float32, False, seed=1))
            results.append((out.detach(), x.grad, layer.weight.grad, layer.running_var))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert same(one, two)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread")
def test_the_number_of_numbas_threads_is_put_back():
    """It belongs to whoever set it; a call has as many as PyTorch."""
    x = tensor((3, 2, 150, 131), torch.float32, False)
    layer = layer_for(x)
    expected = layer(x)
    numba.set_num_threads(1)
    assert torch.equal(layer(x), expected)
    assert numba.get_num_threads() == 1


def test_gradients_that_are_none():
    """From a function behind the layer that has no gradient to give."""

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dout):
            return None

    x = tensor((8, 3), torch.float32, False).requires_grad_()
    layer = layer_for(x)
    (Stop.apply(layer(x)).sum() + x.sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert layer.weight.grad is None


def test_what_is_wanted_alone():
    x = tensor((8, 5, 7), torch.float32, False)
    layer = layer_for(x)
    layer.weight.requires_grad_(False)
    layer(x).backward(torch.ones_like(x))
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((5,), 56.0))
    frozen = layer_for(x).requires_grad_(False)
    assert frozen(x).grad_fn is None


@pytest.mark.parametrize("dout", ["expanded", "channels last", "float64"])
def test_gradients_of_other_layouts(dout):
    """A sum's gradient is one number seen many times; the operators copy it."""
    x = tensor((4, 3, 5, 6), torch.float32, False).requires_grad_()
    given = {
        "expanded": torch.ones(()).expand(x.shape),
        "channels last": tensor(x.shape, torch.float32, True, seed=1),
        "float64": tensor(x.shape, torch.float64, False, seed=1).float(),
    }[dout]
    layer = layer_for(x)
    layer(x).backward(given)
    (expected,) = torch.autograd.grad(layer(x), x, given.contiguous())
    assert same(x.grad, expected)


def test_values_that_are_not_in_memory():
    """A lazy negation, and zeros without memory."""
    x = tensor((8, 3, 4, 5), torch.float32, False)
    layer = layer_for(x)
    assert torch.equal(layer(torch._neg_view(x)), layer(-x))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(layer(x), x, -torch.ones_like(x))
    (found,) = torch.autograd.grad(layer(x), x, torch._neg_view(torch.ones_like(x)))
    assert torch.equal(found, expected)
    zeros = torch._efficientzerotensor(x.shape)
    (found,) = torch.autograd.grad(layer(x), x, zeros)
    assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_means_far_from_zero(channels_last):
    """The compiled call finds out, updates nothing, and the operators do it; the state is updated once."""
    x = torch.tensor([3.3e38, -3.3e38, -3.3e38]).reshape(3, 1, 1, 1).repeat(1, 2, 1, 1)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    layer = ft.BatchNorm2d(2)
    out = layer(x.requires_grad_())
    assert torch.allclose(out[0], torch.full((2, 1, 1), 2**0.5))
    out.backward(torch.ones_like(out))
    assert torch.isfinite(x.grad).all()
    assert int(layer.num_batches_tracked) == 1
    with torch.no_grad():
        assert torch.equal(layer(x), out)
    assert int(layer.num_batches_tracked) == 2


def test_options_that_are_integers():
    """Of the same compiled functions: another signature would take seconds."""
    x = tensor((8, 3, 4, 5), torch.float32, False)
    ft.BatchNorm2d(3)(x)
    compiled = routes.route_of(x).forward[0]
    before = len(compiled.signatures)
    layer = ft.BatchNorm2d(3, momentum=1, eps=1)
    layer(x)
    assert len(compiled.signatures) == before
    assert torch.allclose(layer.running_mean, x.mean((0, 2, 3)))


def test_modes_see_the_operators():
    """Whatever follows what is done with tensors would not see a compiled call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = tensor((4, 3, 5, 6), torch.float32, False).requires_grad_()
    layer = layer_for(x)
    with Watch():
        out = layer(x)
        assert eager.is_plain() is False
    assert any("fastbn" in name for name in seen)
    with torch.no_grad():
        assert torch.equal(layer(x), out)


def test_shapes_that_are_forgotten(monkeypatch):
    monkeypatch.setattr(routes, "MOST_ROUTES", 3)
    monkeypatch.setattr(routes, "_routes", {})
    layer = ft.BatchNorm1d(3)
    for n in range(2, 12):
        layer(torch.randn(n, 3))
        assert len(routes._routes) <= 3


def test_parametrized_layers_take_the_operators():
    from torch.nn.utils import parametrize

    class Twice(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    x = tensor((8, 3), torch.float32, False)
    layer = ft.BatchNorm1d(3)
    parametrize.register_parametrization(layer, "weight", Twice())
    expected = torch.nn.functional.batch_norm(x, None, None, torch.full((3,), 2.0), torch.zeros(3), training=True)
    assert torch.allclose(layer(x), expected, atol=1e-5)


FORK = """
import os, warnings, torch
import fastbn.torch as ft
warnings.simplefilter("ignore", DeprecationWarning)
layer, x = ft.BatchNorm2d(16), torch.randn(32, 16, 28, 28)
out = layer(x)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(layer(x), out) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(layer(x), out)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child():
    """As a data loader's worker is; its threads are gone."""
    subprocess.run([sys.executable, "-c", FORK], timeout=120, check=True)
