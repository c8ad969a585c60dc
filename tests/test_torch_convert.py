"""``convert`` and ``revert``: what changes in a model, and all that does not."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import fastbn.torch as ft  # noqa: E402 - needs PyTorch
from fastbn.torch.modules import SyncBatchNorm  # noqa: E402
from tests.torch_data import values  # noqa: E402

pytestmark = pytest.mark.peers

nn = torch.nn
parametrize = nn.utils.parametrize
CLASSES = [
    (nn.BatchNorm1d, ft.BatchNorm1d, (8, 5)),
    (nn.BatchNorm2d, ft.BatchNorm2d, (4, 5, 3, 3)),
    (nn.BatchNorm3d, ft.BatchNorm3d, (4, 5, 2, 3, 3)),
    (nn.SyncBatchNorm, SyncBatchNorm, (4, 5, 3)),
]
EACH = pytest.mark.parametrize(("theirs", "ours", "shape"), CLASSES)


@EACH
def test_both_ways(theirs, ours, shape):
    """A model that is a layer itself; nothing but its class changes."""
    layer = theirs(5, eps=1e-3, momentum=None).eval()
    layer.weight.requires_grad_(False)
    layer.anything = "kept"
    before = {name: id(value) for name, value in layer.__dict__.items()}
    tensors = [*layer.parameters(), *layer.buffers()]
    assert ft.convert(layer) is layer
    assert type(layer) is ours
    assert ft.convert(layer) is layer
    assert {name: id(value) for name, value in layer.__dict__.items()} == before
    assert all(a is b for a, b in zip([*layer.parameters(), *layer.buffers()], tensors, strict=True))
    layer.train()(values(shape))
    assert ft.revert(layer) is layer
    assert type(layer) is theirs
    assert layer.num_batches_tracked == 1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.head(self.blocks(self.first(self.conv(x)).relu()))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_model_trains_alike(channels_last):
    torch.manual_seed(0)
    model = Network()
    x, target = values((64, 3, 4, 4)), torch.arange(64) % 2
    x += target[:, None, None, None]
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    curves, states = [], []
    for each in (model, ft.convert(copy.deepcopy(model))):
        optimizer, curve = torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9), []
        for step in range(20):
            batch = slice(step % 4 * 16, step % 4 * 16 + 16)
            loss = nn.functional.cross_entropy(each(x[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
        states.append(each.state_dict())
    assert curves[0][-1] < 0.5 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3, atol=1e-4)  # roundings, carried on by twenty steps
    assert list(states[0]) == list(states[1])


def test_an_optimizer_goes_on():
    model = Network()
    optimizer = torch.optim.Adam(model.parameters())
    for change in (ft.convert, ft.revert):
        change(model)
        before = model.first.weight.detach().clone()
        model(values((16, 3, 4, 4))).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model.first.weight, before)


def test_hooks_stay():
    layer, calls = nn.BatchNorm2d(5), []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    layer.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    for change in (ft.convert, ft.revert):
        change(layer)(values((4, 5, 3, 3)).requires_grad_()).sum().backward()
        layer.load_state_dict(layer.state_dict())
        assert calls == ["before", "after", "backward", "state", "load"]
        calls.clear()


def test_shared_layers_stay_shared():
    layer = nn.BatchNorm1d(5)
    model = ft.convert(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))
    assert model["a"] is model["b"][0] is layer
    assert type(layer) is ft.BatchNorm1d


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()

    def right_inverse(self, x):
        return x.log()


def test_parametrizations():
    peer = nn.BatchNorm1d(5)
    parametrize.register_parametrization(peer, "weight", Exponential())
    parametrize.register_parametrization(peer, "bias", nn.Tanh(), unsafe=True)
    layer, twin = copy.deepcopy(peer), copy.deepcopy(peer)
    original = layer.parametrizations.weight.original
    ft.convert(layer)
    assert parametrize.type_before_parametrizations(layer) is ft.BatchNorm1d
    assert type(layer).__name__ == "ParametrizedBatchNorm1d"
    assert not any(isinstance(each, ft.BatchNorm1d) for each in (peer, twin))  # a class that copies share
    torch.testing.assert_close(layer(values((8, 5))), peer(values((8, 5))))
    layer(values((8, 5))).square().sum().backward()
    assert original.grad is not None
    copy.deepcopy(layer)(values((8, 5)))
    ft.revert(layer)
    assert parametrize.type_before_parametrizations(layer) is nn.BatchNorm1d
    assert layer.parametrizations.weight.original is original
    ft.convert(layer)
    for name in ("weight", "bias"):
        parametrize.remove_parametrizations(layer, name)
    assert type(layer) is ft.BatchNorm1d
    layer(values((8, 5)))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_weight_and_spectral_norm(norm):
    torch.manual_seed(0)
    peer = norm(nn.BatchNorm1d(5))
    torch.manual_seed(0)
    layer = ft.convert(norm(nn.BatchNorm1d(5)))
    assert isinstance(layer, ft.BatchNorm1d)
    for _ in range(2):
        torch.testing.assert_close(layer(values((8, 5))), peer(values((8, 5))))
    torch.testing.assert_close(layer.state_dict(), peer.state_dict())


class Special(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_what_is_left_alone_is_logged(caplog):
    patched = nn.BatchNorm2d(5)
    patched.forward = lambda x: x
    left = {
        "special": Special(5),
        "lazy": nn.LazyBatchNorm2d(),
        "instance": nn.InstanceNorm2d(5),
        "patched": patched,
        "parametrized": parametrize.register_parametrization(Special(5), "weight", Exponential()),
    }
    model = nn.ModuleDict({**left, "ours": ft.BatchNorm2d(5), "act": ft.BatchNormAct2d(5), "plain": nn.BatchNorm2d(5)})
    before = {name: type(each) for name, each in left.items()}
    with caplog.at_level(logging.INFO, "fastbn.torch"):
        ft.convert(model)
    assert {name: type(model[name]) for name in left} == before
    assert {record.args[0] for record in caplog.records} == {*left, "act"}
    caplog.clear()
    with caplog.at_level(logging.INFO, "fastbn.torch"):
        ft.convert(left["special"])
    assert "the model" in caplog.text
    ft.revert(model)
    assert type(model["act"]) is ft.BatchNormAct2d
    assert type(model["plain"]) is nn.BatchNorm2d


def test_a_lazy_layer_after_its_first_batch():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    model(values((8, 5)))
    assert type(ft.convert(model)[0]) is ft.BatchNorm1d


def test_synchronized_layers_in_one_process_and_in_several(monkeypatch):
    from torch import distributed

    layer = ft.convert(nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(5)))
    x = values((4, 5, 3, 3))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 1)
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(5)(x))
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
        layer(x)
    layer.eval()(x)
    with pytest.raises(ValueError, match="non-zero"):
        layer(values((4, 0, 3)))


def test_frozen_layers_have_torchvisions_interface():
    layer = ft.FrozenBatchNorm2d(5, eps=1e-3)
    assert repr(layer) == "FrozenBatchNorm2d(5, eps=0.001)"
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(layer.parameters())
    peer = nn.BatchNorm2d(5, eps=1e-3)
    for tensor in (*peer.parameters(), peer.running_mean):
        nn.init.uniform_(tensor)
    layer.load_state_dict(peer.state_dict())  # with a counter
    x = values((4, 5, 3, 3))
    for given in (x, x.requires_grad_(), x.double(), x.bfloat16().float(), x[0]):
        expected = peer.eval()(given.float() if given.dim() == 4 else given[None].float())
        torch.testing.assert_close(layer(given).float(), expected)
        assert layer(given).dtype == given.dtype
    assert layer(x.half()).dtype == torch.float32  # as torchvision's, by promotion


def test_activations_have_timms_interface():
    layer = ft.BatchNormAct2d(5, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.3}, unknown=1)
    assert isinstance(layer, nn.BatchNorm2d)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(5).state_dict())
    x = values((4, 5, 3, 3))
    expected = nn.BatchNorm2d(5)(x)
    torch.testing.assert_close(layer(x), nn.functional.leaky_relu(expected, 0.3))
    assert layer.act.inplace
    for name, act in (("relu", nn.ReLU), ("swish", nn.SiLU), ("sigmoid", nn.Sigmoid)):
        assert type(ft.BatchNormAct2d(5, act_layer=name, inplace=False).act) is act
    for options in ({"apply_act": False}, {"act_layer": None}, {"act_layer": ""}):
        torch.testing.assert_close(ft.BatchNormAct2d(5, **options)(x), expected)
    dropped = ft.BatchNormAct2d(5, drop_layer=lambda: nn.Hardtanh(-0.5, 0.5))
    torch.testing.assert_close(dropped(x), expected.clamp(0, 0.5))
    with pytest.raises(ValueError, match="act_layer: expected one of"):
        ft.BatchNormAct2d(5, act_layer="no such")
    given = x.requires_grad_()
    ft.BatchNormAct2d(5)(given).square().sum().backward()
    assert given.grad is not None
