"""PyTorch four times: eager, eager kernels with new results and on preallocated memory, and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numba
import torch
from torch.nn.functional import batch_norm

from bench.cases import Array, Case, MissingError, Work


def eager(case: Case, operation: str) -> Work:
    """``torch.nn.functional.batch_norm`` and autograd; a new tensor for every result."""
    return _differentiable(batch_norm, case, operation)


def compiled(case: Case, operation: str) -> Work:
    """The same through ``torch.compile``, which needs a C++ compiler."""
    case.compiles()
    torch._dynamo.reset()  # else the ninth shape runs uncompiled
    torch._inductor.config.cpp.threads = numba.get_num_threads()
    torch._inductor.config.compile_threads = 1  # else it forks, under the feet of other libraries' threads
    torch._functorch.config.donated_buffer = False  # else backward runs only once for each forward
    function = torch.compile(batch_norm, dynamic=False, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the compiler uses what PyTorch deprecates
        try:
            return _differentiable(function, case, operation)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).partition("\n\n")[0].split())
            raise MissingError(f"does not compile: {reason}") from error


def functional(case: Case, operation: str) -> Work:
    """PyTorch's own kernels without autograd; a new tensor for every result."""
    x, dout, gamma, beta, *statistics = _tensors(case)
    running = [statistic.clone() for statistic in statistics]
    normalize = torch.ops.aten.native_batch_norm.default
    differentiate = torch.ops.aten.native_batch_norm_backward.default

    def forward() -> Any:
        return normalize(x, gamma, beta, *running, True, 0.1, case.eps)

    def backward(saved: Sequence[Any]) -> Any:
        return differentiate(dout, x, gamma, *running, *saved, True, case.eps, [True, True, True])

    def both() -> tuple[Any, ...]:
        out, *saved = forward()
        return out, *backward(saved)

    def inference() -> Any:
        return normalize(x, gamma, beta, *statistics, False, 0.1, case.eps)

    if operation == "backward":
        saved = forward()[1:]
        return Work(lambda: backward(saved), lambda gradients: _arrays(case, *gradients))
    return {
        "forward": Work(forward, lambda values: _arrays(case, values[0], *running)),
        "forward + backward": Work(both, lambda values: _arrays(case, values[0], *running, *values[1:])),
        "inference": Work(inference, lambda values: _arrays(case, values[0])),
    }[operation]


def preallocated(case: Case, operation: str) -> Work:
    """PyTorch's own kernels through their ``out=`` forms: no autograd, no allocation."""
    case.needs_kept_memory()
    x, dout, gamma, beta, *statistics = _tensors(case)
    running = [statistic.clone() for statistic in statistics]
    out, dx = torch.empty_like(x), torch.empty_like(x)
    saved, gradients = [[torch.empty_like(gamma) for _ in range(2)] for _ in range(2)]
    unused = [torch.empty(0, dtype=x.dtype) for _ in range(2)]
    normalize = torch.ops.aten.native_batch_norm.out
    differentiate = torch.ops.aten.native_batch_norm_backward.out
    targets = {"out0": dx, "out1": gradients[0], "out2": gradients[1]}

    def forward() -> None:
        normalize(x, gamma, beta, *running, True, 0.1, case.eps, out=out, save_mean=saved[0], save_invstd=saved[1])

    def backward() -> None:
        differentiate(dout, x, gamma, *running, *saved, True, case.eps, [True, True, True], **targets)

    def both() -> None:
        forward()
        backward()

    def inference() -> None:
        outputs = {"out": out, "save_mean": unused[0], "save_invstd": unused[1]}
        normalize(x, gamma, beta, *statistics, False, 0.1, case.eps, **outputs)

    if operation == "backward":
        forward()
    return {
        "forward": Work(forward, lambda _: _arrays(case, out, *running)),
        "backward": Work(backward, lambda _: _arrays(case, dx, *gradients)),
        "forward + backward": Work(both, lambda _: _arrays(case, out, *running, dx, *gradients)),
        "inference": Work(inference, lambda _: _arrays(case, out)),
    }[operation]


def _tensors(case: Case) -> list[Any]:
    """x, dout, gamma, beta, running mean and variance, where PyTorch allocates them if the case's are not for all.

    With three dimensions and the channels last, ``native_batch_norm.out`` reads elsewhere: such tensors get a fourth.
    """
    torch.set_num_threads(numba.get_num_threads())
    tensors = [torch.from_numpy(array) for array in (case.x, case.dout)]
    if not case.fresh:
        tensors = [tensor.clone() for tensor in tensors]
    if case.last and case.x.ndim == 3:
        tensors = [tensor.unsqueeze(3) for tensor in tensors]
    return tensors + [torch.from_numpy(array).clone() for array in case.vectors]


def _arrays(case: Case, *tensors: Any) -> Sequence[Array]:
    """NumPy's views, in the shape of the case's tensors."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    return [array if array.ndim == 1 else array.reshape(case.x.shape) for array in arrays]


def _differentiable(function: Callable[..., Any], case: Case, operation: str) -> Work:
    """The work of ``function``, called like PyTorch's ``batch_norm``."""
    x, dout, gamma, beta, *statistics = _tensors(case)
    running = [statistic.clone() for statistic in statistics]
    leaves = x, gamma, beta
    training = operation != "inference"

    def call(running: Sequence[Any]) -> Any:
        return function(x, *running, gamma, beta, training, 0.1, case.eps)

    def both() -> tuple[Any, ...]:
        out = call(running)
        return out, *torch.autograd.grad(out, leaves, dout)

    if operation in ("forward", "inference"):
        without_graph = torch.no_grad()(call)
        without_graph([statistic.clone() for statistic in statistics])  # compiles
        if not training:
            return Work(lambda: without_graph(statistics), lambda out: _arrays(case, out))
        return Work(lambda: without_graph(running), lambda out: _arrays(case, out, *running))

    for leaf in leaves:
        leaf.requires_grad_()
    out = call([statistic.clone() for statistic in statistics])
    torch.autograd.grad(out, leaves, dout, retain_graph=True)  # compiles
    if operation == "backward":
        gradients = lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)  # noqa: E731
        return Work(gradients, lambda values: _arrays(case, *values))
    return Work(both, lambda values: _arrays(case, values[0], *running, *values[1:]))
