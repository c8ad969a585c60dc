"""``torch.ops.fastbn`` and its autograd functions: contracts with PyTorch, exactness, memory, threads."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from tests.tolerances import ULPS, ulps

torch = pytest.importorskip("torch")
import fastbn.torch as ft  # noqa: E402 - needs PyTorch
from fastbn.torch import threads  # noqa: E402
from fastbn.torch.functions import BatchNormFunction, FrozenFunction  # noqa: E402
from tests.torch_data import saved_by, values  # noqa: E402

pytestmark = pytest.mark.peers

OPS = torch.ops.fastbn
SHAPES = [(6, 5), (4, 5, 7), (4, 5, 3, 6), (2, 5, 3, 2, 4)]
DTYPES = [torch.float32, torch.float64]
PLAIN = lambda x: x  # noqa: E731
LAYOUTS = {
    "contiguous": PLAIN,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided channels last": lambda x: (
        torch.cat([x, x], -1).movedim(1, -1).contiguous().movedim(-1, 1)[..., : x.shape[-1]]
    ),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


def exact(x, weight, bias, dout, eps=1e-5):
    """Output and gradients by PyTorch in float64, and the batch's mean and variance."""
    x, weight, bias = (each.detach().double().clone().requires_grad_() for each in (x, weight, bias))
    out = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    gradients = torch.autograd.grad(out, (x, weight, bias), dout.double())
    dims = [0, *range(2, x.dim())]
    return out.detach(), *gradients, x.detach().mean(dims), x.detach().var(dims, correction=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_in_every_layout(dtype, shape, layout):
    x, dout = LAYOUTS[layout](values(shape, dtype)), LAYOUTS[layout](values(shape, dtype, 1))
    weight, bias = values(5, dtype, 2), values(5, dtype, 3)
    expected = exact(x, weight, bias, dout)
    out, mean, inv_std, var = OPS.batch_norm_forward(x, weight, bias, 1e-5)
    dx, dweight, dbias = OPS.batch_norm_backward(dout, x, weight, mean, inv_std)
    numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
    bounds = ULPS[numpy_dtype]
    actual = {"out": out, "dx": dx, "dgamma": dweight, "dbeta": dbias}
    for (name, value), reference in zip(actual.items(), expected[:4], strict=True):
        assert value.dtype == dtype
        assert ulps(value, reference, numpy_dtype) <= bounds[name], name
    for value, reference in ((mean, expected[4]), (var, expected[5]), (inv_std, (expected[5] + 1e-5).rsqrt())):
        assert value.dtype == torch.float64
        assert ulps(value, reference, numpy_dtype) <= bounds["out"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 5, 1, 1), (1, 5, 3, 3), (4, 1, 3, 3)], ids=str)
def test_results_lie_in_memory_as_pytorchs(shape, layout):
    x = LAYOUTS[layout](values(shape)).requires_grad_()
    out, _, _ = BatchNormFunction.apply(x, None, None, 1e-5)
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    assert out.stride() == expected.stride()
    dx, reference = (torch.autograd.grad(y.sum(), x)[0] for y in (out, expected))
    assert dx.stride() == reference.stride()


def test_absent_parameters_are_ones_and_zeros():
    x, dout, one, zero = values((4, 5, 3)), values((4, 5, 3), seed=1), torch.ones(5), torch.zeros(5)
    given, absent = OPS.batch_norm_forward(x, one, zero, 1e-5), OPS.batch_norm_forward(x, None, None, 1e-5)
    assert all(map(torch.equal, given, absent))
    gradients = [OPS.batch_norm_backward(dout, x, weight, *given[1:3]) for weight in (one, None)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorchs_own_checks_of_operators(dtype):
    x, weight = values((4, 5, 3, 6), dtype), values(5, dtype)
    out, mean, inv_std, var = OPS.batch_norm_forward(x, weight, None, 1e-5)
    for given in (x, x.to(memory_format=torch.channels_last)):
        for parameters in ((weight, weight), (weight, None), (None, None)):
            torch.library.opcheck(OPS.batch_norm_forward.default, (given, *parameters, 1e-5))
            torch.library.opcheck(OPS.batch_norm_backward.default, (out, given, parameters[0], mean, inv_std))
    for counter, momentum in ((torch.tensor(3), 0.1), (torch.tensor(3), None), (None, 0.1)):
        arguments = weight.clone(), weight.exp(), counter, mean, var, 72, momentum
        torch.library.opcheck(OPS.update_running.default, arguments)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update_of_running_statistics(dtype, momentum):
    mean, var = values(5, torch.float64), values(5, torch.float64, 1).exp()
    running_mean, running_var, counter = values(5, dtype, 2), values(5, dtype, 3).exp(), torch.tensor(3)
    weight = 0.25 if momentum is None else momentum
    expected = running_mean.double().lerp(mean, weight), running_var.double().lerp(var * 8 / 7, weight)
    OPS.update_running(running_mean, running_var, counter, mean, var, 8, momentum)
    for actual, reference in zip((running_mean, running_var), expected, strict=True):
        torch.testing.assert_close(actual, reference.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert counter == 4


def test_update_takes_strides():
    running = torch.zeros(2, 5, 2)
    mean, var = values(5, torch.float64), values(5, torch.float64, 1).exp()
    OPS.update_running(*running[..., 0], None, mean, var, 2, 0.5)
    torch.testing.assert_close(running[..., 0], torch.stack([mean / 2, var]).float())
    assert not running[..., 1].any()


VECTOR, DOUBLES = values(5), values(5, torch.float64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: OPS.batch_norm_forward(values((4, 6)), VECTOR, None, 1e-5),
        lambda: OPS.batch_norm_forward(values((4, 5)), None, values(4), 1e-5),
        lambda: OPS.batch_norm_forward(values(5), None, None, 1e-5),
        lambda: OPS.batch_norm_forward(values((4, 5), torch.bfloat16), None, None, 1e-5),
        lambda: OPS.batch_norm_backward(values((3, 5)), values((4, 5)), VECTOR, DOUBLES, DOUBLES),
        lambda: OPS.batch_norm_backward(values((4, 5), torch.float64), values((4, 5)), VECTOR, DOUBLES, DOUBLES),
        lambda: OPS.batch_norm_backward(values((4, 5)), values((4, 5)), VECTOR, VECTOR, DOUBLES),
        lambda: OPS.batch_norm_backward(values((4, 5)), values((4, 5)), VECTOR, DOUBLES[:4], DOUBLES),
        lambda: OPS.update_running(VECTOR[:4], VECTOR, None, DOUBLES, DOUBLES, 4, 0.1),
        lambda: OPS.update_running(VECTOR, VECTOR, None, DOUBLES, DOUBLES, 1, 0.1),
        lambda: OPS.update_running(VECTOR, VECTOR, None, DOUBLES, DOUBLES, 4, None),
        lambda: OPS.update_running(VECTOR, VECTOR, torch.tensor(0.0), DOUBLES, DOUBLES, 4, 0.1),
        lambda: OPS.update_running(VECTOR.half(), VECTOR.half(), None, DOUBLES, DOUBLES, 4, 0.1),
    ],
)
def test_operators_refuse_what_kernels_would_misread(call):
    with pytest.raises(ValueError, match="fastbn: expected"):
        call()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_every_order(shape):
    x, weight, bias = (values(s, torch.float64, seed).requires_grad_() for seed, s in enumerate((shape, 5, 5)))
    for parameters in ((weight, bias), (weight, None), (None, None)):
        given = [each for each in (x, *parameters) if each is not None]

        def normalized(x, weight=None, bias=None):
            return BatchNormFunction.apply(x, weight, bias, 1e-3)[0]

        assert torch.autograd.gradcheck(normalized, given)
        assert torch.autograd.gradgradcheck(normalized, given)
    mean, var = values(5, torch.float64, 4), values(5, torch.float64, 5).exp()
    for frozen in ((weight.detach(), bias.detach()), (None, None)):
        assert torch.autograd.gradcheck(lambda x, p=frozen: FrozenFunction.apply(x, *p, mean, var, 1e-3), x)
        assert torch.autograd.gradgradcheck(lambda x, p=frozen: FrozenFunction.apply(x, *p, mean, var, 1e-3), x)


def test_only_gradients_that_are_needed():
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        x, weight, bias = (values(s).requires_grad_(need) for s, need in zip(((4, 5), 5, 5), needed, strict=True))
        BatchNormFunction.apply(x, weight, bias, 1e-5)[0].square().sum().backward()
        assert [each.grad is not None for each in (x, weight, bias)] == list(needed)


def test_an_undefined_gradient():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dout):
            return None

    x = values((4, 5)).requires_grad_()
    Nothing.apply(BatchNormFunction.apply(x, None, None, 1e-5)[0]).sum().backward()
    assert x.grad is None


def test_saved_tensors():
    x, weight, bias = (values(s).requires_grad_() for s in ((4, 5, 3), 5, 5))
    saved = saved_by(lambda: BatchNormFunction.apply(x, weight, bias, 1e-5))
    assert [each.shape for each in saved] == [x.shape, (5,), (5,), (5,)]
    assert saved[0].data_ptr() == x.data_ptr()
    assert saved[1].data_ptr() == weight.data_ptr()
    mean, var = values(5), values(5).exp()
    saved = saved_by(lambda: FrozenFunction.apply(x, weight.detach(), bias.detach(), mean, var, 1e-5))
    assert [each.shape for each in saved] == [(5,)]


THREADS = """
import sys
import torch
torch.set_num_threads({threads}) if {threads} else None
expected = torch.get_num_threads()
import numba
import fastbn.torch
from fastbn.torch import threads
assert torch.get_num_threads() == expected
used = []
usable = threads.threads_usable
def spy():
    used.append(numba.get_num_threads())
    return usable()
threads.threads_usable = spy
layer = fastbn.torch.BatchNorm2d(16)
for step in range(2):
    x = torch.randn(8, 16, 64, 64, requires_grad=True)
    layer(x).square().sum().backward()
    assert torch.get_num_threads() == expected, torch.get_num_threads()
wanted = min(expected, numba.config.NUMBA_NUM_THREADS)
if wanted > 1:
    assert len(used) >= 4 and used[-4:] == [wanted] * 4, used
else:  # nothing is asked of Numba's threads
    assert used == [], used
numba.set_num_threads(1)
layer(x)
assert numba.get_num_threads() == 1
"""


@pytest.mark.large
@pytest.mark.parametrize("threads", [0, 1, 2, 64])
def test_pytorchs_number_of_threads(threads):
    """It is used, whatever Numba's is, and is the same after the first launch and later; so is Numba's."""
    command = [sys.executable, "-c", THREADS.format(threads=threads)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(("pytorchs", "numbas"), [(1, 2), (2, 1), (2, 2), (99, 1)])
def test_a_call_has_pytorchs_number_of_threads(monkeypatch, pytorchs, numbas):
    available = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(min(numbas, available))
    monkeypatch.setattr(torch, "get_num_threads", lambda: pytorchs)
    assert threads.on_torch_threads(numba.get_num_threads) == min(pytorchs, available)
    assert numba.get_num_threads() == min(numbas, available)


@pytest.mark.parametrize("counts", [(3, 3), (3, 8)])
def test_the_first_call(monkeypatch, counts):
    """It starts the pool, which may change PyTorch's number, and goes on where no threading layer is there."""
    number, given = iter((3, *counts)), []
    monkeypatch.setattr(threads.pool, "_is_initialized", False)
    monkeypatch.setattr(threads, "threads_usable", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: next(number))
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    assert threads.on_torch_threads(lambda *args: args, 1, 2) == (1, 2)
    assert given == [3] * (counts[0] != counts[1])


def test_backward_in_another_thread_and_several_at_once():
    layers = [ft.BatchNorm1d(5) for _ in range(4)]
    x = values((300, 5))

    def train(layer):
        for _ in range(10):
            out = layer(x.clone().requires_grad_())
            thread = threading.Thread(target=out.square().sum().backward)
            thread.start()
            thread.join()
        return layer.weight.grad

    with ThreadPoolExecutor(4) as pool:
        gradients = list(pool.map(train, layers))
    assert all(torch.equal(each, gradients[0]) for each in gradients)


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"fastbn's extra \[torch\]: pip install torch"):
        runpy.run_path(ft.__file__)


def test_the_core_does_not_import_pytorch():
    program = "import sys, fastbn, fastbn.compiled; assert not {'torch', 'fastbn.torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
