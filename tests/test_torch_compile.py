"""``fastbn.torch`` under ``torch.compile``, ``torch.export``, ``torch.fx`` and TorchScript."""

from __future__ import annotations

import copy
import shutil

import pytest

torch = pytest.importorskip("torch")
import fastbn.torch as ft  # noqa: E402 - needs PyTorch
from tests.torch_data import values  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    # PyTorch's compilers import and instantiate what PyTorch itself deprecates.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

nn = torch.nn
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=needs_compiler)]


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """Layers in the company of what compilers would fuse them with."""

    def __init__(self, **options):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.bn = ft.BatchNorm2d(5, **options)
        self.act = ft.BatchNormAct2d(5)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)).relu() + 1)


def train(model, x, steps=3):
    """Outputs, gradients and states of some steps."""
    results = []
    for step in range(steps):
        given = (x + step).detach().requires_grad_()
        out = model(given)
        model.zero_grad()
        out.square().mean().backward()
        results += [out.detach(), given.grad, *(p.grad for p in model.parameters())]
        results += [value.clone() for value in model.state_dict().values()]
    return results


def layer_only(**options):
    return ft.BatchNorm2d(5, **options), values((4, 5, 6, 7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_one_graph_and_the_same_bits(backend, options, channels_last):
    layer, x = layer_only(**options)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(layer), backend=backend, fullgraph=True)
    actual, expected = train(compiled, x), train(layer, x)
    assert all(map(torch.equal, actual, expected))
    assert [each.stride() for each in actual] == [each.stride() for each in expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_a_model(backend):
    """What Inductor makes of the rest of it has roundings of its own."""
    model, x = Block(), values((2, 3, 8, 8))
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
    for actual, expected in zip(train(compiled, x), train(model, x), strict=True):
        torch.testing.assert_close(actual, expected)
    for each in (model, compiled):
        each.eval()
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_that_change(backend):
    layer, _ = layer_only()
    compiled = torch.compile(copy.deepcopy(layer), backend=backend, fullgraph=True, dynamic=True)
    for batch in (2, 3, 7):
        x = values((batch, 5, 4, batch))
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("backend", ["aot_eager"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_updates_once(backend, reentrant):
    """Compiled inside a checkpoint, and with the checkpoint inside."""
    from torch.utils.checkpoint import checkpoint

    for compile_all in (True, False):
        layer, x = layer_only()
        inner = layer if compile_all else torch.compile(layer, backend=backend)

        def checkpointed(x, inner=inner):
            return checkpoint(inner, x, use_reentrant=reentrant)

        run = torch.compile(checkpointed, backend=backend, fullgraph=True) if compile_all else checkpointed
        run(x.requires_grad_()).square().sum().backward()
        expected, _ = layer_only()
        expected(x.detach())
        assert all(map(torch.equal, layer.state_dict().values(), expected.state_dict().values()))


def test_frozen_layers_compile():
    layer, x = ft.FrozenBatchNorm2d(5), values((4, 5, 6, 7)).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()


@pytest.mark.parametrize(("training", "strict"), [(False, False), (False, True), (True, False)])
def test_export_is_pytorchs(training, strict):
    layer, x = layer_only()
    graphs = []
    for each in (layer, nn.BatchNorm2d(5)):
        program = torch.export.export(each.train(training), (x,), strict=strict)
        graphs.append([str(node.target) for node in program.graph.nodes if node.op == "call_function"])
        program.module()(x)
    assert graphs[0] == graphs[1]
    assert "aten.batch_norm.default" in graphs[0]


def test_strict_export_in_training_mode_keeps_operators():
    layer, x = layer_only()
    program = torch.export.export(layer, (x,), strict=True)
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(program.module()(x), expected)
    assert "fastbn.batch_norm_forward" in str(program)


@pytest.mark.parametrize("training", [True, False])
def test_fx_keeps_layers_whole(training):
    model, x = Block().train(training), values((2, 3, 8, 8))
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["conv", "bn", "act"]
    assert torch.equal(traced(x), model(x))
    assert all(map(torch.equal, traced.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("layer", [ft.BatchNorm2d(5), ft.BatchNormAct2d(5), ft.FrozenBatchNorm2d(5)], ids=repr)
@pytest.mark.parametrize("training", [True, False])
def test_torchscript(layer, training):
    layer, x = layer.train(training), values((4, 5, 6, 7))
    expected = copy.deepcopy(layer)(x)
    torch.testing.assert_close(torch.jit.script(layer)(x), expected)
    if not training:
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(x), expected)
        if isinstance(layer, nn.BatchNorm2d):
            assert "aten::batch_norm" in str(traced.inlined_graph)


def test_transforms_inside_a_graph():
    layer, x = ft.BatchNorm2d(5, track_running_stats=False), values((4, 5, 6, 7))
    gradient = torch.func.grad(lambda x: layer(x).square().mean())
    torch.testing.assert_close(torch.compile(gradient, backend="aot_eager", fullgraph=True)(x), gradient(x))
