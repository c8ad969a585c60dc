"""What stands in the place of a network's batch normalization while its training step is timed.

``pytorch``
    PyTorch's own layers.
``fastbn``
    The network as ``fastbn.torch.convert`` leaves it.
``none``
    Nothing: the least that the step can take.
``accesses``, ``accesses, streaming``
    Layers that move the memory and do no arithmetic but one addition a value: the least that batch normalization can
    take in its place, with normal stores, and with stores past the caches.

A forward of the accesses reads ``x``, reads it once more and writes it to a new tensor. A backward reads ``dout`` and
``x``, reads both once more and writes their sum to a new tensor. The kernels are those of ``bench.accesses``: groups of
channels one after another in NCHW, where the second reading finds a group in a core's cache, and the whole tensor twice
with the channels last. Nothing but ``x`` is saved. PyTorch allocates the new tensors.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench import accesses
from bench.cases import Array, MissingError

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d)


def batch_norms(model: nn.Module) -> list[str]:
    """Where in the model batch normalization is."""
    return [name for name, module in model.named_modules() if isinstance(module, KINDS)]


def replaced(model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """The model with other layers in the place of batch normalization."""
    for name in batch_norms(model):
        model.set_submodule(name, make())
    return model


def converted(model: nn.Module) -> nn.Module:
    """The model with fastbn's layers."""
    try:
        module = importlib.import_module("fastbn.torch")
    except ImportError as error:
        raise MissingError(f"not installed ({error})") from error
    return module.convert(model)


class Accesses(torch.autograd.Function):
    """The memory accesses of batch normalization, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Any, streaming: bool) -> Any:
        ctx.save_for_backward(x)
        ctx.streaming = streaming
        return moved(x, x, both=False, streaming=streaming)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> tuple[Any, None]:
        (x,) = ctx.saved_tensors
        return moved(dout, x, both=True, streaming=ctx.streaming), None


class AccessesLayer(nn.Module):
    """A layer that does nothing else."""

    def __init__(self, *, streaming: bool) -> None:
        super().__init__()
        self.streaming = streaming

    def forward(self, x: Any) -> Any:
        return Accesses.apply(x, self.streaming)


passes = functools.cache(accesses.passes)


def moved(dout: Any, x: Any, *, both: bool, streaming: bool) -> Any:
    """``x``, or the sum of both, in a new tensor that lies in memory as ``x`` does."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    dout, x = (tensor.detach().contiguous(memory_format=order) for tensor in (dout, x))
    whole = x.nbytes % 64 == 0
    out = torch.empty_like(x) if whole else torch.zeros_like(x)  # nothing is written to a part of a cache line
    dtype = str(x.dtype).removeprefix("torch.")
    made = passes(tuple(x.shape), dtype, last=last, both=both)
    made.run(*made.arguments(lines(dout, last=last), lines(x, last=last), lines(out, last=last), streaming))
    return out


def lines(tensor: Any, *, last: bool) -> Array:
    """The whole cache lines of a tensor, in the order of memory."""
    return accesses.flat((tensor.movedim(1, -1) if last else tensor).numpy())


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pytorch": lambda model: model,
    "fastbn": converted,
    "none": lambda model: replaced(model, nn.Identity),
    "accesses": lambda model: replaced(model, lambda: AccessesLayer(streaming=False)),
    "accesses, streaming": lambda model: replaced(model, lambda: AccessesLayer(streaming=True)),
}
"""Name: what makes it of a model with PyTorch's layers, in place."""
