"""The networks are those of their papers, and every variant of a training step is timed on what it says."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("resource")

from torch import nn  # noqa: E402 - after the lines above

from bench import networks, shapes, steps, variants  # noqa: E402
from bench.cases import WrongResultError  # noqa: E402
from bench.models import NETWORKS, Network, conv_bn, head  # noqa: E402

pytestmark = pytest.mark.peers

SIZES = {
    "ResNet-18": (11_689_512, 20),
    "ResNet-50": (25_557_032, 53),
    "MobileNetV2": (3_504_872, 52),
    "DenseNet-121": (7_978_856, 121),
    "MLP": (4_176_872, 3),
}


def tiny():
    return nn.Sequential(*conv_bn(3, 16, 3, act=nn.ReLU), *conv_bn(16, 16, 3), *head(16))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def convert(monkeypatch):
    """What stands in for ``fastbn.torch.convert``."""

    def install(function):
        module = types.ModuleType("fastbn.torch")
        module.convert = function
        monkeypatch.setitem(sys.modules, "fastbn.torch", module)

    return install


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_size(name):
    with torch.device("meta"):
        model = NETWORKS[name].build()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (parameters, len(variants.batch_norms(model))) == SIZES[name]
    assert NETWORKS.keys() == SIZES.keys()


def test_the_cold_shapes_are_those_of_the_networks():
    inputs = set()

    def note(_, arguments):
        inputs.add(tuple(arguments[0].shape))

    for name, batch in (
        ("ResNet-18", 16),
        ("ResNet-18", 32),
        ("ResNet-50", 8),
        ("MobileNetV2", 16),
        ("DenseNet-121", 8),
    ):
        with torch.device("meta"):
            model = NETWORKS[name].build()
            for layer in variants.batch_norms(model):
                model.get_submodule(layer).register_forward_pre_hook(note)
            model(torch.empty(batch, 3, 112, 112))
    assert {problem.shape for problem in shapes.NETWORKS} <= inputs


def test_weights_and_data_are_the_same_each_time():
    network = Network(tiny, 4)
    for layout in network.layouts:
        first, second = (list(network.make(layout).parameters()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        (x, labels), again = network.data(layout, 4, 8), network.data("NCHW", 4, 8)
        assert torch.equal(x, again[0])
        assert torch.equal(labels, again[1])
        assert x.is_contiguous() == (layout == "NCHW")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(4, 16, 5, 6), (32, 48), (2, 3, 5, 7), (4, 64, 32, 32)])
def test_accesses_write_a_new_tensor(shape, last, streaming):
    x, dout = torch.randn(2, *shape)
    if last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    out = variants.AccessesLayer(streaming=streaming)(x)
    out.backward(dout)
    whole = x.numel() // 16 * 16  # a part of a cache line at the end is left out
    assert out.data_ptr() != x.data_ptr()
    for result, wanted in ((out, x), (x.grad, x + dout)):
        assert result.stride() == x.stride()
        flat = [(t.permute(0, 2, 3, 1) if last and t.dim() == 4 else t).reshape(-1).detach() for t in (result, wanted)]
        assert torch.equal(flat[0][:whole], flat[1][:whole])
        assert not flat[0][whole:].any()


def test_each_variant_replaces_all_layers(convert):
    convert(lambda model: model)
    for variant, kind in (
        ("pytorch", nn.BatchNorm2d),
        ("fastbn", nn.BatchNorm2d),
        ("none", nn.Identity),
        ("accesses", variants.AccessesLayer),
    ):
        training = steps.Training(Network(tiny, 4), "NCHW", variant, 4, 8)
        assert [type(layer) for layer in training.layers] == [kind, kind]
        before = [parameter.clone() for parameter in training.model.parameters()]
        assert np.isfinite(training.results()[0])
        assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


class Composed(nn.Module):
    """Three nodes of autograd's graph."""

    def forward(self, x):
        return (2 * x).relu() + x


def test_the_stopwatch_sees_every_node_of_a_layer():
    first, layer = nn.Linear(3, 3), Composed()
    x = first(torch.ones(2, 3))
    nodes = [type(node).__name__ for node in steps.nodes_between(layer(x), x)]
    assert sorted(nodes) == ["AddBackward0", "MulBackward0", "ReluBackward0"]
    norm = nn.BatchNorm1d(3)
    assert [type(node).__name__ for node in steps.nodes_between(norm(x), x)] == ["NativeBatchNormBackward0"]
    assert list(steps.nodes_between(x.detach(), x)) == []


def test_the_stopwatch_leaves_no_hooks(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(ticks))
    training = steps.Training(Network(tiny, 4), "NCHW", "pytorch", 4, 8)
    assert steps.watched(training) == (2, 2)  # a tick for each of two layers
    assert steps.watched(training) == (2, 2)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in training.layers)
    empty = steps.Training(Network(tiny, 4), "NCHW", "none", 4, 8)
    assert steps.watched(empty) == (0, 0)


def test_turns_rotate():
    seen = []
    found = steps.in_turns({"a": 1, "b": 2, "c": 3}, lambda each: seen.append(each) or each, rounds=2)
    assert seen == [3, 1, 2, 1, 2, 3, 2, 3, 1]
    assert found == {"a": [1, 1], "b": [2, 2], "c": [3, 3]}


def test_who_is_wrong_is_not_timed(convert, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", Network(tiny, 4))
    wrong = {"loss": lambda x: 3 * x, "gradient": lambda x: 3 * x - 2 * x.detach()}
    for function in wrong.values():

        class Wrong(nn.BatchNorm2d):
            def forward(self, x, function=function):
                return function(super().forward(x))

        convert(lambda model, kind=Wrong: variants.replaced(model, lambda: kind(16)))
        trainings, missing = networks.ready(networks.Job("tiny", "NCHW", ["fastbn", "pytorch"], 4, 8, 1, 1))
        assert trainings.keys() == {"pytorch"}
        assert "gives a loss of" in missing["fastbn"]
    with pytest.raises(WrongResultError, match="not finite"):
        networks.check((float("nan"), torch.ones(1)), None)


def complete(row, expected):
    assert row["threads"] == 1
    assert row["variants"].keys() | row["missing"].keys() == expected
    assert row["missing"].keys() <= {"fastbn"}
    for name, figures in row["variants"].items():
        assert figures.keys() == {"step", "forward", "backward", "faults"}
        assert figures["step"] > 0
        assert (figures["forward"] > 0) == (figures["backward"] > 0) == (name != "none")


def test_rows(convert, monkeypatch):
    chosen = ["pytorch", "fastbn", "none", "accesses, streaming"]
    job = networks.Job("MLP", "NC", chosen, batch=8, image=8, threads=1, rounds=2)
    monkeypatch.setitem(sys.modules, "fastbn.torch", None)
    row = networks.measure(job)
    complete(row, set(chosen))
    assert "not installed" in row["missing"]["fastbn"]
    convert(lambda model: model)
    row = networks.measure(job)
    complete(row, set(chosen))
    assert row["missing"] == {}
    printed = networks.text({"cpu": "a CPU", "cores": 2, "system": "Linux", "date": "today", "versions": {}}, [row])
    assert "| MLP, 8, 3 layers | NC | fastbn |" in printed
    assert "| batch normalization, PyTorch over fastbn | **" in printed
    assert "| batch normalization, PyTorch over its accesses alone |  |" in printed
    assert "### Missing\n\nNothing." in printed


def test_run_and_report(tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = ["--batch", "4", "--image", "32", "--rounds", "2", "--threads", "1", "--json", str(path)]
    networks.main([*options, "--models", "ResNet-18", "MLP", "--layouts", "NHWC", "NC"])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["network"], row["layout"], row["layers"]) for row in rows] == [
        ("ResNet-18", "NHWC", 20),
        ("MLP", "NC", 3),
    ]
    for row in rows:
        complete(row, {"pytorch", "fastbn", "none", "accesses"})
    printed = capsys.readouterr().out
    assert "| ResNet-18, 4, 32x32, 20 layers | NHWC | accesses |" in printed
    networks.main(["--report", str(path)])
    assert capsys.readouterr().out == printed
