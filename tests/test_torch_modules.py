"""The layers of ``fastbn.torch`` against PyTorch's own: ten steps, states, everything that is handed over."""

from __future__ import annotations

import copy
import io
from inspect import signature

import numba
import numpy as np
import pytest

from tests.tolerances import ulps

torch = pytest.importorskip("torch")
import fastbn.torch as ft  # noqa: E402 - needs PyTorch
from fastbn.torch import eager, modules  # noqa: E402
from fastbn.torch.modules import SyncBatchNorm  # noqa: E402
from tests.torch_data import saved_by, values  # noqa: E402

# PyTorch imports its own deprecated TorchScript where it is asked for its sample inputs or dual numbers.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]

nn = torch.nn
PAIRS = [
    (ft.BatchNorm1d, nn.BatchNorm1d, (16, 5)),
    (ft.BatchNorm1d, nn.BatchNorm1d, (8, 5, 9)),
    (ft.BatchNorm2d, nn.BatchNorm2d, (4, 5, 6, 7)),
    (ft.BatchNorm3d, nn.BatchNorm3d, (2, 5, 3, 4, 5)),
    (SyncBatchNorm, nn.SyncBatchNorm, (4, 5, 6)),
]
EACH = pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-2},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    *([{"bias": False}] if "bias" in signature(nn.BatchNorm1d).parameters else []),
]
ROUNDINGS = {"out": 16, "dx": 32, "parameters": 64, "running": 64}
"""Multiples of eps, of the largest value, and for gradients of parameters of 8 sqrt(m): errors of both sides' sums."""


class Subclass(torch.Tensor):
    pass


@pytest.fixture
def fast(monkeypatch):
    """The calls of fastbn's autograd functions."""
    calls = []
    for function in (modules.BatchNormFunction, modules.FrozenFunction):
        apply = function.apply
        name = function.__name__

        def counted(*args, apply=apply, name=name):
            calls.append(name)
            return apply(*args)

        monkeypatch.setattr(function, "apply", counted)
    forward = eager.forward

    def counted_eagerly(*args):
        calls.append("BatchNormFunction")  # what it stands for
        return forward(*args)

    monkeypatch.setattr(eager, "forward", counted_eagerly)
    return calls


def pair(ours, theirs, **options):
    layer, peer = ours(5, **options), theirs(5, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(peer.parameters()):
            parameter.copy_(values(5, seed=seed))
    layer.load_state_dict(peer.state_dict())
    return layer, peer


def assert_close(actual, expected, dtype, multiple, scale=None):
    reach = float(expected.detach().abs().max()) if scale is None else scale
    assert actual.dtype == expected.dtype
    assert ulps(actual.detach(), expected.detach(), dtype, max(reach, 1.0)) <= multiple


@EACH
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ten_steps(fast, ours, theirs, shape, options, channels_last, dtype):
    """Outputs, gradients and states as PyTorch's, through training, and after it in evaluation mode."""
    torch_dtype = torch.float32 if dtype is np.float32 else torch.float64
    layer, peer = (each.to(torch_dtype) for each in pair(ours, theirs, **options))
    assert repr(layer) == repr(peer)
    for step in range(12):
        if step == 10:
            layer.eval()
            peer.eval()
        x, dout = values(shape, torch_dtype, step, mean=step), values(shape, torch_dtype, 99)
        if channels_last:
            x, dout = (each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (x, dout))
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = layer(a), peer(b)
        for each, result in ((layer, out), (peer, expected)):
            each.zero_grad()
            result.backward(dout)
        assert out.stride() == expected.stride()
        assert a.grad.stride() == b.grad.stride()
        assert_close(out, expected, dtype, ROUNDINGS["out"])
        assert_close(a.grad, b.grad, dtype, ROUNDINGS["dx"])
        for p, q in zip(layer.parameters(), peer.parameters(), strict=True):
            assert_close(p.grad, q.grad, dtype, ROUNDINGS["parameters"], (x.numel() / 5) ** 0.5 * 8)
        assert layer.state_dict().keys() == peer.state_dict().keys()
        for name, value in peer.state_dict().items():
            assert_close(layer.state_dict()[name], value, dtype, ROUNDINGS["running"])
    assert fast.count("BatchNormFunction") == (10 if layer.track_running_stats else 12)


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_pytorchs_own_sample_inputs(ours, theirs, shape, training):
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_modules import module_db

    samples = [info for info in module_db if info.module_cls is theirs]
    assert samples or theirs is nn.SyncBatchNorm
    for info in samples:
        for dtype in (torch.float32, torch.float64):
            given = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training)
            for sample in given:
                constructed, forwarded = sample.constructor_input, sample.forward_input
                peer = theirs(*constructed.args, **constructed.kwargs).to(dtype).train(training)
                layer = ours(*constructed.args, **constructed.kwargs).to(dtype).train(training)
                out, expected = (m(*forwarded.args, **forwarded.kwargs) for m in (layer, peer))
                torch.testing.assert_close(out, expected)
                torch.testing.assert_close(layer.state_dict(), peer.state_dict())


HANDED_OVER = {
    "one value per channel": lambda m: m(values((1, 5))),
    "other channels": lambda m: m(values((4, 6))),
    "other dimensions": lambda m: m(values((4, 5, 2, 2))),
    "no batch": lambda m: m(values((0, 5))),
    "bfloat16": lambda m: m(values((4, 5)).bfloat16()),
    "float16": lambda m: m.half()(values((4, 5)).half()),
    "mixed dtypes": lambda m: m(values((4, 5)).double()),
    "bfloat16, float32 parameters": lambda m: m(values((4, 5)).bfloat16()),
    "integers": lambda m: m(torch.ones(4, 5, dtype=torch.int64)),
    "complex": lambda m: m(values((4, 5)).to(torch.complex64)),
    "sparse": lambda m: m(values((4, 5)).to_sparse()),
    "meta": lambda m: m.to("meta")(values((4, 5)).to("meta")).shape,
    "no tensor": lambda m: m([1.0, 2.0]),
    "a subclass": lambda m: m(values((4, 5)).as_subclass(Subclass)),
    "a parameter": lambda m: m(nn.Parameter(values((4, 5)))),
    "no running mean": lambda m: (setattr(m, "running_mean", None), m(values((4, 5))))[1],
    "no counter": lambda m: (setattr(m, "num_batches_tracked", None), m(values((4, 5))))[1],
    "no counter to average by": lambda m: (
        setattr(m, "num_batches_tracked", None), setattr(m, "momentum", None), m(values((4, 5)))
    )[2],
    "another counter": lambda m: (setattr(m, "num_batches_tracked", torch.tensor(2.0)), m(values((4, 5))))[1],
    "eps of zero": lambda m: (setattr(m, "eps", 0.0), m(values((4, 5))))[1],
    "eps below zero": lambda m: (setattr(m, "eps", -1e-5), m(values((4, 5))))[1],
    "vmap": lambda m: torch.vmap(m)(values((3, 4, 5))),
    "jvp": lambda m: torch.func.jvp(m, (values((4, 5)),), (values((4, 5), seed=1),)),
    "grad": lambda m: torch.func.grad(lambda x: m(x).square().sum())(values((4, 5))),
    "a function mode": lambda m: in_mode(m, values((4, 5))),
}  # fmt: skip


def in_mode(m, x):
    with torch.device("cpu"):
        return m(x)


def outcome(call, layer):
    try:
        return call(layer)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("case", HANDED_OVER)
def test_what_fastbn_cannot_do_is_pytorchs(fast, case, training, tracked):
    """The same bits, or the same error with the same message, and the same state.

    Of the cases some are special only in training mode or with running statistics.
    """
    layer, peer = pair(ft.BatchNorm1d, nn.BatchNorm1d, track_running_stats=tracked)
    actual, expected = (outcome(HANDED_OVER[case], each.train(training)) for each in (layer, peer))
    assert type(actual) is type(expected), (actual, expected)
    if isinstance(expected, torch.Tensor):
        close = {} if "BatchNormFunction" in fast else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(actual, expected, **close, equal_nan=True)
    elif isinstance(expected, tuple) and isinstance(expected[0], type):
        assert actual == expected
    for name, value in peer.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, equal_nan=True)


def test_a_function_that_raises_changes_no_state(monkeypatch):
    layer = ft.BatchNorm1d(5)
    before = copy.deepcopy(layer.state_dict())

    def interrupt(*_):
        raise KeyboardInterrupt

    eagerly = [] if numba.config.DISABLE_JIT else [(eager, "run")]
    for place, name in [*eagerly, (modules, "update_running")]:
        monkeypatch.setattr(place, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            layer(values((4, 5)))
        monkeypatch.setattr(eager, "is_plain", lambda: False)  # then the operators
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_forward_mode_differentiation(fast):
    layer, peer = pair(ft.BatchNorm1d, nn.BatchNorm1d)
    results = []
    for each in (layer, peer):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(values((4, 5)), values((4, 5), seed=1))
            results.append(torch.autograd.forward_ad.unpack_dual(each(dual)))
    assert all(map(torch.equal, *results))
    assert not fast


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpointing_updates_once(reentrant, momentum):
    from torch.utils.checkpoint import checkpoint

    layer, plain = ft.BatchNorm1d(5, momentum=momentum), ft.BatchNorm1d(5, momentum=momentum)
    for step in range(3):
        a, b = (values((8, 5), seed=step).requires_grad_() for _ in range(2))
        checkpoint(nn.Sequential(layer, nn.Tanh()), a, use_reentrant=reentrant).square().sum().backward()
        plain(b).tanh().square().sum().backward()
        assert torch.equal(a.grad, b.grad)
    assert all(map(torch.equal, layer.state_dict().values(), plain.state_dict().values()))
    assert layer.num_batches_tracked == 3


def test_two_forwards_before_one_backward():
    """As of a model under DistributedDataParallel, which writes its buffers before each forward."""
    layer, x = ft.BatchNorm1d(5), values((8, 5)).requires_grad_()
    first = layer(x)
    with torch.no_grad():
        for buffer in layer.buffers():
            buffer.copy_(buffer.clone())
    (first + layer(x * 2)).square().sum().backward()


def test_batches_of_gradients():
    layer, peer = pair(ft.BatchNorm1d, nn.BatchNorm1d)
    x, dout = values((4, 5)).requires_grad_(), values((3, 4, 5), seed=1)
    batched = [torch.autograd.grad(each(x), x, dout, is_grads_batched=True)[0] for each in (layer, peer)]
    torch.testing.assert_close(*batched)
    function = torch.autograd.functional.jacobian
    torch.testing.assert_close(function(layer, x, vectorize=True), function(peer, x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.autograd.detect_anomaly])
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_modes_of_autograd(fast, mode):
    layer, peer = pair(ft.BatchNorm1d, nn.BatchNorm1d)
    with mode():
        torch.testing.assert_close(layer(values((4, 5))), peer(values((4, 5))))
    torch.testing.assert_close(layer.state_dict(), peer.state_dict())
    assert fast == ["BatchNormFunction"]


def test_a_tensor_changed_after_forward_is_noticed():
    x = values((4, 5)).requires_grad_() * 1
    out = ft.BatchNorm1d(5)(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_result_may_be_changed():
    layer, x = ft.BatchNorm1d(5), values((4, 5)).requires_grad_()
    layer(x).mul_(2).relu_().sum().backward()
    gradient, x.grad = x.grad, None
    (layer(x) * 2).relu().sum().backward()
    assert torch.equal(gradient, x.grad)


def test_double_backward():
    layer = ft.BatchNorm2d(3).double()
    x = values((2, 3, 2, 2), torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert layer.weight.grad is not None
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("layer", [ft.BatchNorm2d(5).eval(), ft.FrozenBatchNorm2d(5)], ids=["eval", "frozen"])
def test_frozen_layers_save_no_tensor(fast, layer):
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = values((4, 5, 6, 7)).requires_grad_()
    assert [each.shape for each in saved_by(lambda: layer(x))] == [(5,)]
    assert fast == ["FrozenFunction"]
    with torch.no_grad():
        layer(x)
    assert fast == ["FrozenFunction"]


def test_copies_and_files():
    layer = ft.BatchNorm2d(5)
    layer(values((4, 5, 3, 3)))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert type(other) is ft.BatchNorm2d
        assert all(map(torch.equal, other.state_dict().values(), layer.state_dict().values()))
        other(values((4, 5, 3, 3)))
        assert layer.num_batches_tracked == 1
    old = {name: value for name, value in layer.state_dict().items() if name != "num_batches_tracked"}
    layer.load_state_dict(old)
    assert layer._version == nn.BatchNorm2d._version


def test_averaged_models_recalibrate():
    layer, peer = pair(ft.BatchNorm1d, nn.BatchNorm1d)
    for each in (layer, peer):
        torch.optim.swa_utils.update_bn([values((8, 5), seed=seed) for seed in range(4)], each)
    torch.testing.assert_close(layer.state_dict(), peer.state_dict())


def test_functional_call():
    layer, peer = pair(ft.BatchNorm1d, nn.BatchNorm1d)
    for each in (layer, peer):
        state = {name: value.clone() for name, value in each.state_dict().items()}
        torch.func.functional_call(each, state, (values((8, 5)),))
        assert state["num_batches_tracked"] == 1
        assert each.num_batches_tracked == 0
