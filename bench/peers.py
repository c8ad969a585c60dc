"""Who is compared: operation -> library -> a call without arguments that does the work once.

A peer is a function that takes a ``Case`` and returns its calls, each of which returns what it computed, so that it can
be checked before it is timed. Buffers are made beforehand and written into wherever a library can. A peer whose library
is not installed raises ``ImportError``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import fastbn
from bench.shapes import Problem
from fastbn import reference

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[], Sequence[Array]]

OPERATIONS = {
    # operation: (what its call returns, tensors read and written at the least)
    "forward": (("out", "running_mean", "running_var"), 2),
    "backward": (("dx", "dgamma", "dbeta"), 3),
    "inference": (("out",), 2),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One shape with its data; ``last`` means that the channels are last in memory (axis 1 all the same)."""

    problem: Problem
    x: Array
    dout: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array

    @property
    def eps(self) -> float:
        """The problem's."""
        return self.problem.eps


def make_case(problem: Problem, dtype: type = np.float32, *, last: bool = False) -> Case:
    """Random data of mean 0.5 and deviation 1."""
    rng = np.random.default_rng(0)
    channels = problem.shape[1]

    def tensor() -> Array:
        values = rng.standard_normal(problem.shape, dtype=np.float32).astype(dtype) + dtype(0.5)
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1) if last else values

    above: Array = rng.uniform(0.5, 2.0, (2, channels)).astype(dtype)
    around: Array = rng.standard_normal((2, channels)).astype(dtype)
    return Case(
        problem, tensor(), tensor(), gamma=above[0], beta=around[0], running_mean=around[1], running_var=above[1]
    )


def fastbn_calls(case: Case) -> dict[str, Call]:
    """The package itself, with ``out=``."""
    out, dx = np.empty_like(case.x), np.empty_like(case.x)
    running = case.running_mean.copy(), case.running_var.copy()
    _, cache = fastbn.forward(case.x, case.gamma, case.beta, eps=case.eps)

    def forward() -> Sequence[Array]:
        fastbn.forward(case.x, case.gamma, case.beta, *running, eps=case.eps, out=out)
        return out, *running

    def backward() -> Sequence[Array]:
        return [array for array in fastbn.backward(case.dout, cache, out=dx) if array is not None]

    def inference() -> Sequence[Array]:
        statistics = case.running_mean, case.running_var
        return [fastbn.inference(case.x, *statistics, case.gamma, case.beta, eps=case.eps, out=out)]

    return {"forward": forward, "backward": backward, "inference": inference}


def numpy_calls(case: Case) -> dict[str, Call]:
    """The formulas as courses teach them: whole-array NumPy in the dtype of ``x``."""
    over = (0, *range(2, case.x.ndim))
    column = (-1,) + (1,) * (case.x.ndim - 2)
    gamma, beta = case.gamma.reshape(column), case.beta.reshape(column)
    running = case.running_mean.copy(), case.running_var.copy()
    m = case.x.size // case.gamma.size
    eps = case.x.dtype.type(case.eps)
    cache: list[Array] = []

    def forward() -> Sequence[Array]:
        mean, var = case.x.mean(over, keepdims=True), case.x.var(over, keepdims=True)
        inv_std = 1 / np.sqrt(var + eps)
        x_hat = (case.x - mean) * inv_std
        cache[:] = x_hat, inv_std
        for array, batch in zip(running, (mean, var * m / (m - 1)), strict=True):
            array[:] = 0.9 * array + 0.1 * batch.ravel()
        return gamma * x_hat + beta, *running

    def backward() -> Sequence[Array]:
        x_hat, inv_std = cache
        dbeta, dgamma = case.dout.sum(over, keepdims=True), (case.dout * x_hat).sum(over, keepdims=True)
        dx = gamma * inv_std / m * (m * case.dout - dbeta - x_hat * dgamma)
        return dx, dgamma.ravel(), dbeta.ravel()

    def inference() -> Sequence[Array]:
        mean, var = case.running_mean.reshape(column), case.running_var.reshape(column)
        return [gamma * (case.x - mean) / np.sqrt(var + eps) + beta]

    forward()
    running[0][:], running[1][:] = case.running_mean, case.running_var
    return {"forward": forward, "backward": backward, "inference": inference}


def torch_calls(case: Case) -> dict[str, Call]:
    """PyTorch's own kernels through their ``out=`` forms: no autograd, no allocation."""
    import torch

    x, dout, gamma, beta = (torch.from_numpy(a) for a in (case.x, case.dout, case.gamma, case.beta))
    statistics = torch.from_numpy(case.running_mean), torch.from_numpy(case.running_var)
    running = [statistic.clone() for statistic in statistics]
    out, dx = torch.empty_like(x), torch.empty_like(x)
    saved, dgamma, dbeta = [torch.empty_like(gamma) for _ in range(2)], torch.empty_like(gamma), torch.empty_like(beta)
    unused = [torch.empty(0, dtype=x.dtype) for _ in range(2)]
    normalize = torch.ops.aten.native_batch_norm.out
    differentiate = torch.ops.aten.native_batch_norm_backward.out

    def forward() -> Sequence[Array]:
        normalize(x, gamma, beta, *running, True, 0.1, case.eps, out=out, save_mean=saved[0], save_invstd=saved[1])
        return [out.numpy(), *(statistic.numpy() for statistic in running)]

    def backward() -> Sequence[Array]:
        outputs = {"out0": dx, "out1": dgamma, "out2": dbeta}
        differentiate(dout, x, gamma, *running, *saved, True, case.eps, [True, True, True], **outputs)
        return dx.numpy(), dgamma.numpy(), dbeta.numpy()

    def inference() -> Sequence[Array]:
        outputs = {"out": out, "save_mean": unused[0], "save_invstd": unused[1]}
        normalize(x, gamma, beta, *statistics, False, 0.1, case.eps, **outputs)
        return [out.numpy()]

    forward()
    for target, statistic in zip(running, statistics, strict=True):
        target.copy_(statistic)
    return {"forward": forward, "backward": backward, "inference": inference}


PEERS: dict[str, Callable[[Case], dict[str, Call]]] = {
    "fastbn": fastbn_calls,
    "PyTorch out=": torch_calls,
    "NumPy": numpy_calls,
}


def expected(case: Case) -> dict[str, Sequence[Array]]:
    """What each operation must return when it is called for the first time, from the reference."""
    m = case.x.size // case.gamma.size
    out, mean, var = reference.forward(case.x, case.gamma, case.beta, eps=case.eps)
    running = (
        reference.running(case.running_mean, mean, 0.1),
        reference.running(case.running_var, var * m / (m - 1), 0.1),
    )
    statistics = case.running_mean, case.running_var
    return {
        "forward": (out, *running),
        "backward": reference.backward(case.dout, case.x, case.gamma, eps=case.eps),
        "inference": [reference.inference(case.x, *statistics, case.gamma, case.beta, eps=case.eps)],
    }


def check(library: str, operation: str, results: Sequence[Array], wanted: Sequence[Array]) -> None:
    """A peer that computes something else is not a peer; one that sums 400,000 values in float32 loses three digits."""
    for name, result, value in zip(OPERATIONS[operation][0], results, wanted, strict=True):
        error = np.abs(result - value).max() / np.abs(value).max()
        if not error < 1e-2:
            raise AssertionError(f"{library}: {operation} gives {name} with a relative error of {error:.1e}")
