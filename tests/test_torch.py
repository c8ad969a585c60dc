"""Against PyTorch on the CPU: the functional API on every benchmark shape, the layers over ten training steps.

Multiples of float32's eps. PyTorch in float64 on the same float32 values is the exact oracle; PyTorch in float32 has
errors of its own, and gets the larger multiple.
"""

from __future__ import annotations

import math
from inspect import signature

import numpy as np
import pytest

import fastbn
from bench.shapes import PROBLEMS
from tests.data_for_tests import channels_last, tensor

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

EPS = np.finfo(np.float32).eps
EXACT = {"out": 4, "dx": 8, "dgamma": 4, "dbeta": 4, "running": 1}  # errors of fastbn alone
SINGLE = {"out": 16, "dx": 32, "dgamma": 64, "dbeta": 64, "running": 64}  # mostly errors of PyTorch in float32

TRAINABLE = [problem for problem in PROBLEMS if math.prod(problem.shape) > problem.shape[1]]


def run_torch(x, dout, gamma, beta, eps, dtype):
    tensors = [torch.tensor(a).to(dtype) for a in (x, gamma, beta)]
    running = torch.zeros(gamma.size, dtype=dtype), torch.ones(gamma.size, dtype=dtype)
    for t in tensors:
        t.requires_grad_()
    out = torch.nn.functional.batch_norm(tensors[0], *running, *tensors[1:], training=True, momentum=0.1, eps=eps)
    out.backward(torch.tensor(dout).to(dtype))
    values = {"out": out, "dx": tensors[0].grad, "dgamma": tensors[1].grad, "dbeta": tensors[2].grad}
    values |= {"running_mean": running[0], "running_var": running[1]}
    return {name: value.detach().numpy() for name, value in values.items()}


@pytest.mark.large
@pytest.mark.parametrize("problem", TRAINABLE, ids=lambda problem: problem.name)
def test_every_shape(rng, problem):
    shape, channels = problem.shape, problem.shape[1]
    m = math.prod(shape) // channels
    x, dout = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    gamma, beta = rng.uniform(0.5, 2, channels).astype(np.float32), rng.standard_normal(channels).astype(np.float32)
    double = torch.float64 if x.size < 2e7 else None  # 20 million values take PyTorch 2 GB and 2 seconds
    theirs = {
        tolerances: run_torch(x, dout, gamma, beta, problem.eps, dtype)
        for tolerances, dtype in (("exact", double), ("single", torch.float32))
        if dtype is not None
    }
    # What an error is measured by: the largest magnitudes that enter the result.
    reach = {
        "out": 2 * np.abs(x).max() + np.abs(beta).max(),
        "dx": 2 * np.abs(dout).max() * 4,
        "dgamma": math.sqrt(m) * 8,
        "dbeta": math.sqrt(m) * 8,
        "running_mean": 1.0,
        "running_var": 2.0,
    }
    for given, gradient in ((x, dout), (channels_last(x), channels_last(dout))):
        running = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        out, cache = fastbn.forward(given, gamma, beta, *running, eps=problem.eps)
        dx, dgamma, dbeta = fastbn.backward(gradient, cache)
        ours = {"out": out, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
        ours |= {"running_mean": running[0], "running_var": running[1]}
        for tolerances, results in theirs.items():
            multiples = EXACT if tolerances == "exact" else SINGLE
            for name, value in ours.items():
                error = np.abs(value - results[name]).max() / (EPS * reach[name])
                assert error <= multiples[name.partition("_")[0]], (tolerances, name, error)


LAYERS = pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (fastbn.BatchNorm1d, torch.nn.BatchNorm1d, (16, 5)),
        (fastbn.BatchNorm1d, torch.nn.BatchNorm1d, (8, 5, 9)),
        (fastbn.BatchNorm2d, torch.nn.BatchNorm2d, (4, 5, 6, 7)),
        (fastbn.BatchNorm3d, torch.nn.BatchNorm3d, (2, 5, 3, 4, 5)),
    ],
)
OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.3, "eps": 1e-2},
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
    ],
    ids=str,
)


@LAYERS
@OPTIONS
def test_ten_steps_of_a_layer(rng, ours, theirs, shape, options):
    layer, peer = ours(5, **options), theirs(5, **options)
    if layer.affine:
        layer.gamma[:] = rng.standard_normal(5)
        layer.beta[:] = rng.standard_normal(5)
        with torch.no_grad():
            peer.weight.copy_(torch.from_numpy(layer.gamma))
            peer.bias.copy_(torch.from_numpy(layer.beta))
    for step in range(12):
        if step == 10:
            layer.eval()
            layer.keep_for_backward = True
            peer.eval()
        x, dout = tensor(rng, shape, mean=step, scale=2.0), tensor(rng, shape)
        tx = torch.tensor(x).requires_grad_()
        peer.zero_grad()
        out = peer(tx)
        out.backward(torch.tensor(dout))
        np.testing.assert_allclose(layer(x), out.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(layer.backward(dout), tx.grad.numpy(), atol=1e-5)
        if layer.affine:
            np.testing.assert_allclose(layer.dgamma, peer.weight.grad.numpy(), atol=1e-4)
            np.testing.assert_allclose(layer.dbeta, peer.bias.grad.numpy(), atol=1e-4)
        state = {name: value.numpy() for name, value in peer.state_dict().items()}
        assert state.keys() == layer.state_dict().keys()
        for name, value in layer.state_dict().items():
            np.testing.assert_allclose(value, state[name], rtol=1e-5, atol=1e-6)
            assert value.shape == state[name].shape
            assert value.dtype == state[name].dtype


@LAYERS
@OPTIONS
def test_state_dicts_go_both_ways(rng, ours, theirs, shape, options):
    """After ten steps over to fastbn, after ten more on both sides back to a new module, which goes on alike."""
    layer, peer, back = ours(5, **options), theirs(5, **options), theirs(5, **options)
    if peer.affine:
        with torch.no_grad():
            for parameter in (peer.weight, peer.bias):
                parameter.copy_(torch.from_numpy(tensor(rng, 5).copy()))
    batches = [tensor(rng, shape, mean=step, scale=2.0) for step in range(10)]
    for x in batches:
        peer(torch.tensor(x))
    layer.load_state_dict(peer.state_dict())
    given = {name: value.numpy() for name, value in peer.state_dict().items()}
    assert {name: value.tobytes() for name, value in layer.state_dict().items()} == {
        name: value.tobytes() for name, value in given.items()
    }
    for x in batches[::-1]:
        layer(x)
        peer(torch.tensor(x))
    back.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
    for mode in (True, False):
        for x in batches[:2]:
            out = layer.train(mode)(x)
            for module in (peer, back):
                expected = module.train(mode)(torch.tensor(x)).detach().numpy()
                np.testing.assert_allclose(out, expected, atol=1e-5)
    assert layer.num_batches_tracked == (22 if layer.track_running_stats else None)
    for module in (peer, back):
        for name, value in module.state_dict().items():
            np.testing.assert_allclose(layer.state_dict()[name], value.numpy(), rtol=1e-5, atol=1e-6)
            assert layer.state_dict()[name].dtype == value.numpy().dtype


@pytest.mark.skipif("bias" not in signature(torch.nn.BatchNorm1d).parameters, reason="older PyTorch has no bias=False")
def test_weight_alone(rng):
    peer, layer = torch.nn.BatchNorm1d(5, bias=False), fastbn.BatchNorm1d(5, affine="gamma")
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(rng.standard_normal(5)))
    layer.load_state_dict(peer.state_dict())
    x = tensor(rng, (8, 5))
    np.testing.assert_allclose(layer(x), peer(torch.tensor(x)).detach().numpy(), atol=1e-6)
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})


def test_layers_have_pytorchs_defaults():
    for ours, theirs in ((fastbn.BatchNorm1d, torch.nn.BatchNorm1d), (fastbn.BatchNorm3d, torch.nn.BatchNorm3d)):
        layer, peer = ours(3), theirs(3)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            assert getattr(layer, name) == getattr(peer, name)
