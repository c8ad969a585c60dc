"""The autograd functions of the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbn.torch import eager
from fastbn.torch.ops import batch_norm_backward, batch_norm_forward, update_running
from fastbn.torch.routes import Route


class BatchNormFunction(torch.autograd.Function):
    """Batch normalization with the batch's own statistics: ``apply(x, weight, bias, eps)`` gives out, mean and var.

    Mean and var, which is biased, are (C,) float64 and not differentiable. Saved are ``x``, ``weight`` and two vectors
    of statistics; running statistics are not known here, so they may change before backward. A gradient is
    computed by fastbn; one that is to be differentiated again, or that is one of a batch under ``torch.vmap``, by
    PyTorch's own function.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``fastbn::batch_norm_forward``."""
        out, mean, inv_std, var = batch_norm_forward(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """``fastbn::batch_norm_backward``, or PyTorch's own function."""
        if dout is None:
            return None, None, None, None
        x, weight, mean, inv_std = ctx.saved_tensors
        return *_gradients(dout, x, weight, mean, inv_std, ctx.eps, ctx.needs_input_grad[:3]), None


def _gradients(
    dout: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    eps: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of ``x``, ``weight`` and ``bias``: by ``fastbn::batch_norm_backward``, or PyTorch's own function."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        statistics = mean.to(x.dtype), inv_std.to(x.dtype)
        gradients = torch.ops.aten.native_batch_norm_backward(
            dout, x, weight, None, None, *statistics, True, eps, wanted
        )
    else:
        gradients = batch_norm_backward(dout, x, weight, mean, inv_std)
    dx, dweight, dbias = (each if want else None for each, want in zip(gradients, wanted, strict=True))
    return dx, dweight, dbias


class EagerFunction(torch.autograd.Function):
    """``BatchNormFunction`` of an ordinary eager call: ``apply(x, weight, bias, eps, route, update)`` gives ``out``.

    ``route`` and ``update`` are those of ``eager.forward``, which also updates the running statistics.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        route: Route,
        update: tuple[Any, ...],
    ) -> Tensor:
        """One compiled call; where it is not taken, the operators."""
        result = eager.forward(x, route, weight, bias, eps, update)
        if result is None:
            out, mean, inv_std, var = batch_norm_forward(x, weight, bias, eps)
            statistics = torch.stack((mean, inv_std, var))
            *running, momentum = update
            if running[0] is not None:
                update_running(*running, mean, var, route.per_channel, None if momentum < 0 else momentum)
        else:
            out, statistics = result
        ctx.save_for_backward(x, weight, statistics)
        ctx.eps, ctx.route = eps, route
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """One compiled call, or as ``BatchNormFunction``."""
        if dout is None:
            return None, None, None, None, None, None
        x, weight, statistics = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        gradients = None
        alone = type(dout) is Tensor and not torch._C._functorch.is_legacy_batchedtensor(dout)  # of is_grads_batched
        if alone and not torch.is_grad_enabled() and eager.is_plain():
            gradients = eager.backward(dout, x, ctx.route, weight, statistics, wanted)
        if gradients is None:
            gradients = _gradients(dout, x, weight, statistics[0], statistics[1], ctx.eps, wanted)
        return *gradients, None, None, None


apply_eagerly = super(torch.autograd.Function, EagerFunction).apply
"""``EagerFunction.apply`` without its look for the transforms of ``torch.func``, of which ``eager.is_plain`` knows."""


class FrozenFunction(torch.autograd.Function):
    """Batch normalization with given statistics, by PyTorch, of which backward needs no tensor but one (C,) vector.

    ``apply(x, weight, bias, mean, var, eps)``; the gradient of ``x`` alone is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        """``(x - mean) / sqrt(var + eps) * weight + bias``."""
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(scale if weight is None else scale * weight)
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, torch.backends.cudnn.enabled)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """``dx = dout * weight / sqrt(var + eps)``."""
        (scale,) = ctx.saved_tensors
        return dout * scale.view(-1, *[1] * (dout.dim() - 2)), None, None, None, None, None
