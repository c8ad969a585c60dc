"""Training mode in ordinary eager calls: one compiled call on the tensors' memory, for forward and for backward.

Ordinary are dense CPU tensors of float32 or float64, contiguous or channels last, with parameters and running
statistics of the same dtype, while nothing but autograd follows what is done with them. The results are bitwise those
of the operators (see ``ops``), which do everything else.
"""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastbn.torch.routes import Route
from fastbn.torch.threads import run

_is_followed = torch._C._len_torch_dispatch_stack
_is_overridden = torch._C._is_torch_function_mode_enabled
_is_transformed = torch._C._are_functorch_transforms_active
_is_traced = torch._C._is_tracing


def is_plain() -> bool:
    """Whether no mode, transform or tracer follows what is done with tensors, but for autograd."""
    return not (
        numba.config.DISABLE_JIT
        or _is_followed()
        or _is_overridden()
        or _is_transformed()
        or _is_traced()
        or forward_ad._current_level >= 0
    )


def forward(
    x: Tensor, route: Route, weight: Tensor | None, bias: Tensor | None, eps: float, update: tuple[Any, ...]
) -> tuple[Tensor, Tensor] | None:
    """``out``, and (3, C) float64 statistics: mean, ``inv_std`` and biased variance.

    ``update`` are running mean, running variance and counter, tensors or ``None``, and the weight of the batch (see
    ``momentum``). ``None``, with nothing updated, where the operators have to do it.
    """
    out = torch.empty_like(x)
    if out.stride() != x.stride() or not has_values(x):
        return None
    statistics = torch.empty((3, route.cuts[1]), dtype=torch.float64)
    mean, var, counter, momentum = update
    arguments = (
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        statistics.data_ptr(),
        0 if mean is None else mean.data_ptr(),
        0 if var is None else var.data_ptr(),
        0 if counter is None else counter.data_ptr(),
        *route.cuts,
        float(eps),  # an integer would be another signature, to be compiled
        float(momentum),
    )
    return (out, statistics) if run(route.forward, arguments) else None


def backward(
    dout: Tensor, x: Tensor, route: Route, weight: Tensor | None, statistics: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """``dx``, ``dweight`` and ``dbias``, as far as they are wanted; ``None`` where the operators have to do it."""
    dx = torch.empty_like(x)
    strides = x.stride()
    if dx.stride() != strides or dout.stride() != strides or dout.dtype is not x.dtype or dout.shape != x.shape:
        return None
    if not has_values(dout):
        return None
    dweight = torch.empty(route.cuts[1], dtype=x.dtype) if wanted[1] else None
    dbias = torch.empty(route.cuts[1], dtype=x.dtype) if wanted[2] else None
    arguments = (
        dout.data_ptr(),
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        statistics.data_ptr(),
        dx.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        0 if dbias is None else dbias.data_ptr(),
        *route.cuts,
    )
    if not run(route.backward, arguments):
        return None
    return dx if wanted[0] else None, dweight, dbias


def has_values(x: Tensor) -> bool:
    """Whether the values of a tensor are those in its memory: it is no lazy negation, and no zeros without memory."""
    return x.data_ptr() != 0 and not x.is_neg()


def fits(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether each is a dense CPU tensor of ``x``'s dtype with one value per channel, or ``None``."""
    dtype, channels = x.dtype, x.shape[1]
    for each in vectors:
        if each is not None and not (
            (type(each) is Parameter or type(each) is Tensor)
            and each.dtype is dtype
            and each.is_cpu
            and each.layout is torch.strided
            and each.dim() == 1
            and each.numel() == channels
            and each.is_contiguous()
        ):
            return False
    return True
