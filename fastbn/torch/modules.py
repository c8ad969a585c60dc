"""Batch normalization layers: subclasses of PyTorch's, on fastbn's kernels where these are faster.

That is where the batch's own statistics are used, for CPU tensors of float32 or float64 with parameters of the same
dtype. In everything else a layer is PyTorch's own, with its results and its errors: with running statistics, on other
devices, for other dtypes and memory layouts, for tensors of one value per channel or none, for subclasses of
``torch.Tensor`` and inside a ``TorchFunctionMode`` (``torch.set_default_device`` is one), under the transforms of
``torch.func`` and forward-mode differentiation, in ``torch.jit.trace``, ``torch.jit.script`` and ``torch.export``.
(With ``strict=True`` a program that is exported in training mode holds fastbn's operators: Dynamo traces it, and does
not say in every version of PyTorch whether for export or for ``torch.compile``.)

Two things differ from PyTorch. Under activation checkpointing a batch enters the running statistics once, not twice
(see ``ops``). With running statistics and parameters that need no gradient, no tensor of the size of the input is kept.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.overrides import has_torch_function_variadic

from fastbn.torch import eager
from fastbn.torch.functions import BatchNormFunction, FrozenFunction, apply_eagerly
from fastbn.torch.ops import update_running
from fastbn.torch.routes import route_of


def _is_ordinary(x: Tensor) -> bool:
    """Whether ``x`` is a dense CPU tensor of float32 or float64, and only autograd follows what is done with it."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and (x.dtype is torch.float32 or x.dtype is torch.float64)
        and x.layout is torch.strided
        and not x.is_nested
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
    )


def _fit(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether each is a CPU tensor of ``x``'s dtype with one value per channel, or ``None``."""
    dtype, shape = x.dtype, x.shape[1:2]
    for each in vectors:
        if each is not None and not (
            (type(each) is nn.Parameter or type(each) is Tensor)
            and each.dtype is dtype
            and each.shape == shape
            and each.is_cpu
            and each.layout is torch.strided
        ):
            return False
    return True


def takes(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether a function of this package can do with ``x`` and what is given per channel as PyTorch's would."""
    return _is_ordinary(x) and _fit(x, *vectors)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return any([each is not None and each.requires_grad for each in tensors])  # noqa: C419 - a generator takes longer


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Tensor:
    """With given statistics, by PyTorch; where only ``x`` needs a gradient, nothing of its size is saved."""
    if (
        x.requires_grad
        and torch.is_grad_enabled()
        and not _needs_gradient(weight, bias)
        and takes(x, weight, bias, mean, var)
    ):
        frozen: Tensor = FrozenFunction.apply(x, weight, bias, mean, var, eps)
        return frozen
    # F.batch_norm without its checks, which take longer than the work on a small tensor.
    return torch.batch_norm(x, weight, bias, mean, var, False, momentum, eps, torch.backends.cudnn.enabled)


def _can_count(counter: Tensor | None, momentum: float | None) -> bool:
    """Whether ``fastbn::update_running`` takes this counter."""
    if counter is None:
        return momentum is not None
    return type(counter) is Tensor and counter.is_cpu and counter.dtype is torch.int64 and counter.dim() == 0


_NOT_TRACKED: tuple[Any, ...] = None, None, None, 0.0
"""Nothing to update."""


class _BatchNorm(nn.Module):
    """``forward`` of the layers, whose other base is PyTorch's layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in PyTorch
        """Normalise ``input``; in training mode update the running statistics."""
        if isinstance(input, Proxy):  # torch.fx: a node of its own, as the layers of torch.nn are
            path = input.tracer.path_of_module(self)
            return input.tracer.create_proxy("call_module", path, (input,), {})
        return self._normalized(input)

    def _train_eagerly(self, x: Tensor) -> Tensor | None:
        """Training mode in an ordinary call; ``None``, with nothing done, where anything is out of the ordinary."""
        if not (eager.is_plain() and x.is_cpu and x.layout is torch.strided and not x.is_nested and self.eps > 0):
            return None
        parameters, buffers = self._parameters, self._buffers
        if "weight" not in parameters or "bias" not in parameters:  # parametrized
            return None
        self._check_input_dim(x)
        weight, bias = parameters["weight"], parameters["bias"]
        mean, var, counter = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        route = route_of(x)
        if route is None or not eager.fits(x, weight, bias, mean, var):
            return None
        momentum = self.momentum
        if not self.track_running_stats or (mean is None and var is None) or torch._C._current_graph_task_id() != -1:
            update = _NOT_TRACKED
        elif mean is None or var is None or not _can_count(counter, momentum):
            return None
        else:
            update = mean, var, counter, -1.0 if momentum is None else momentum
        if torch.is_grad_enabled() and (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
        ):
            out: Tensor = apply_eagerly(x, weight, bias, self.eps, route, update)
            return out
        result = eager.forward(x, route, weight, bias, self.eps, update)
        return None if result is None else result[0]

    def _normalized(self, x: Tensor) -> Tensor:
        if self.training and type(x) is Tensor and not torch.compiler.is_compiling():
            trained = self._train_eagerly(x)
            if trained is not None:
                return trained
        if has_torch_function_variadic(x):
            return super().forward(x)
        self._check_input_dim(x)
        mean, var = self.running_mean, self.running_var
        if self.training or (mean is None and var is None):
            return self._train(x, mean, var)
        weight, bias = self.weight, self.bias
        special = mean is None or var is None or has_torch_function_variadic(mean, var, weight, bias)
        if special or not self.eps >= 0:
            return super().forward(x)
        return normalize(x, weight, bias, mean, var, 0.0 if self.momentum is None else self.momentum, self.eps)

    def _train(self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> Tensor:
        """With the batch's statistics."""
        eps = self.eps
        if not _is_ordinary(x) or x.numel() <= x.shape[1] or not eps > 0:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if not (self.training and self.track_running_stats):
            return BatchNormFunction.apply(x, weight, bias, eps)[0] if _fit(x, weight, bias) else super().forward(x)
        counter, momentum = self.num_batches_tracked, self.momentum
        if (
            running_mean is None
            or running_var is None
            or not _fit(x, weight, bias, running_mean, running_var)
            or not _can_count(counter, momentum)
        ):
            return super().forward(x)
        out, mean, var = BatchNormFunction.apply(x, weight, bias, eps)
        update_running(running_mean, running_var, counter, mean, var, x.numel() // x.shape[1], momentum)
        return out

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles for this layer: PyTorch's, with the same parameters and buffers."""
        scripted = copy.copy(self)
        scripted.__class__ = self._scripted
        return scripted


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d``, for (N, C) and (N, C, L): its arguments, buffers, ``state_dict`` and ``repr``.

    In training mode, over the ``m`` values of a channel::

        mean = sum(x) / m
        var  = sum((x - mean)**2) / m
        out  = (x - mean) / sqrt(var + eps) * weight + bias

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * m / (m - 1)

    Statistics are computed in float64; ``out`` has the dtype and memory format of ``x``. The state is updated when
    ``out`` is there, all together or, after any exception, not at all.

    Raises
    ------
    ValueError, RuntimeError
        As PyTorch's layer.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    _scripted = nn.BatchNorm1d


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, for (N, C, H, W); see ``BatchNorm1d``."""

    _scripted = nn.BatchNorm2d


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d``, for (N, C, D, H, W); see ``BatchNorm1d``."""

    _scripted = nn.BatchNorm3d


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm``, for two and more dimensions, that also runs on a CPU, in one process.

    What ``convert`` makes of PyTorch's layer. Among several processes it is PyTorch's own, which refuses CPU tensors.
    """

    _scripted = nn.SyncBatchNorm

    def _check_input_dim(self, x: Tensor) -> None:
        super()._check_input_dim(x)
        self._check_non_zero_input_channels(x)

    def _is_one_of_several(self) -> bool:
        several = distributed.is_available() and distributed.is_initialized()
        return several and distributed.get_world_size(self.process_group) > 1

    def _train_eagerly(self, x: Tensor) -> Tensor | None:
        return None if self._is_one_of_several() else super()._train_eagerly(x)

    def _train(self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> Tensor:
        if self.training and self._is_one_of_several():
            return nn.SyncBatchNorm.forward(self, x)
        return super()._train(x, running_mean, running_var)
