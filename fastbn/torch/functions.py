"""The autograd functions of the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbn.torch.ops import batch_norm_backward, batch_norm_forward


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
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            statistics = mean.to(x.dtype), inv_std.to(x.dtype)
            gradients = torch.ops.aten.native_batch_norm_backward(
                dout, x, weight, None, None, *statistics, True, ctx.eps, wanted
            )
        else:
            gradients = batch_norm_backward(dout, x, weight, mean, inv_std)
        dx, dweight, dbias = (each if want else None for each, want in zip(gradients, wanted, strict=True))
        return dx, dweight, dbias, None


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
