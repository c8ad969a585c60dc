"""What is measured: operations, tensors to do them on, and the results they must have.

A library does an operation on a ``Case`` as a ``Work``, whose ``run`` is timed and whose ``read`` shows what came out,
for ``check``. All data is prepared beforehand; a library writes into memory of its own where it can.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bench.shapes import Problem
from fastbn import reference

Array: TypeAlias = NDArray[Any]


class Operation(NamedTuple):
    """The names of its results, and how many tensors it reads and writes at the least."""

    results: tuple[str, ...]
    traffic: int


_OUT, _GRADIENTS = ("out", "running_mean", "running_var"), ("dx", "dgamma", "dbeta")

OPERATIONS = {
    "forward": Operation(_OUT, 2),
    "backward": Operation(_GRADIENTS, 3),
    "forward + backward": Operation((*_OUT, *_GRADIENTS), 5),
    "inference": Operation(("out",), 2),
}


class Work(NamedTuple):
    """``read(run())`` gives the operation's results, tensors with channels on axis 1; only ``run`` is timed."""

    run: Callable[[], Any]
    read: Callable[[Any], Sequence[Array]]
    inputs: Any = None
    """What has to live as long, where the library has no more than its address."""


class MissingError(Exception):
    """A library is not installed, or does not offer the operation."""


class WrongResultError(Exception):
    """A library gives something else than the reference."""


@dataclass(frozen=True, eq=False)
class Case:
    """One shape with its data; ``last`` means that the channels are last in memory (axis 1 all the same)."""

    problem: Problem
    last: bool
    x: Array
    dout: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    fresh: bool = False
    """Whether every call writes its results to new memory, and tensors are aligned and shared by all libraries."""

    @property
    def eps(self) -> float:
        """The problem's."""
        return self.problem.eps

    @property
    def layout(self) -> str:
        """``NC``, or ``NCHW`` and ``NHWC`` with as many spatial letters as there are dimensions."""
        return self.problem.layout(last=self.last)

    @property
    def count(self) -> int:
        """Values of a channel."""
        return self.x.size // self.gamma.size

    @property
    def vectors(self) -> tuple[Array, Array, Array, Array]:
        """What there is one of for each channel: gamma, beta, running mean and running variance."""
        return self.gamma, self.beta, self.running_mean, self.running_var

    def in_new_memory(self) -> Case:
        """The same values in other tensors, for calls that write to new memory."""
        x, dout = (
            np.moveaxis(aligned(np.moveaxis(tensor, 1, -1)), -1, 1) if self.last else aligned(tensor)
            for tensor in (self.x, self.dout)
        )
        return replace(self, x=x, dout=dout, fresh=True)

    def needs_kept_memory(self) -> None:
        """Refuse, on behalf of a library that writes to memory which is there already."""
        if self.fresh:
            raise MissingError("writes only to memory that is kept")

    def compiles(self) -> None:
        """Refuse, on behalf of a library that compiles a function for each ``Case``."""
        if self.fresh:
            raise MissingError("would compile for each tensor of the ring")


def make_case(problem: Problem, dtype: DTypeLike = np.float32, *, last: bool = False) -> Case:
    """Random data of mean 0.5 and deviation 1, where NumPy allocates it."""
    rng = np.random.default_rng(0)
    channels = problem.shape[1]

    def tensor() -> Array:
        values = rng.standard_normal(problem.shape, dtype=np.float32).astype(dtype, copy=False)
        values += 0.5
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1) if last else values

    above: Array = rng.uniform(0.5, 2.0, (2, channels)).astype(dtype)
    around: Array = rng.standard_normal((2, channels)).astype(dtype)
    return Case(
        problem, last, tensor(), tensor(), gamma=above[0], beta=around[0], running_mean=around[1], running_var=above[1]
    )


def rows(tensor: Array) -> Array:
    """The (pixels, channels) view of a tensor with its channels last in memory, for libraries that know only axis 1."""
    return np.moveaxis(tensor, 1, -1).reshape(-1, tensor.shape[1])


def aligned(values: Array) -> Array:
    """A C-ordered copy that starts at a multiple of 64 bytes, as libraries lay out their own tensors."""
    copy = aligned_empty(values)
    copy[...] = values
    return copy


def aligned_empty(like: Array) -> Array:
    """A new C-ordered array of the same shape and dtype that starts at a multiple of 64 bytes."""
    memory = np.empty(like.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + like.nbytes].view(like.dtype).reshape(like.shape)


@functools.lru_cache(maxsize=3)
def expected(case: Case, operation: str) -> Sequence[Array]:
    """What the operation must give when it runs for the first time, from the reference."""
    if operation == "forward":
        out, mean, var = reference.forward(case.x, case.gamma, case.beta, eps=case.eps)
        return out, *updated(case, mean, var)
    if operation == "backward":
        return reference.backward(case.dout, case.x, case.gamma, eps=case.eps)
    if operation == "forward + backward":
        return *expected(case, "forward"), *expected(case, "backward")
    gamma, beta, mean, var = case.vectors
    return [reference.inference(case.x, mean, var, gamma, beta, eps=case.eps)]


def updated(case: Case, mean: Array, var: Array) -> tuple[Array, Array]:
    """The running arrays after a batch with this mean and biased variance."""
    unbiased = var * case.count / (case.count - 1)
    return reference.running(case.running_mean, mean, 0.1), reference.running(case.running_var, unbiased, 0.1)


def check(operation: str, results: Sequence[Array], wanted: Sequence[Array]) -> None:
    """A peer that computes something else is not a peer; one that sums 400,000 values in float32 loses three digits."""
    for name, result, value in zip(OPERATIONS[operation].results, results, wanted, strict=True):
        if np.shape(result) != value.shape:
            raise WrongResultError(f"gives {name} of shape {np.shape(result)}, not {value.shape}")
        error = np.abs(result - value).max() / np.abs(value).max()
        if not error < 1e-2:
            raise WrongResultError(f"gives {name} with a relative error of {error:.1e}")
