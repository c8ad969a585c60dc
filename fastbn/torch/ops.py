"""The operators ``torch.ops.fastbn``: training mode batch normalization of CPU tensors, and its autograd function.

Operators run fastbn's kernels on the memory of the tensors, without a copy where these are contiguous or channels last.
Results are allocated by PyTorch, in the memory format in which its own function would return them. Operators know
nothing of autograd; ``BatchNormFunction``, which calls them, does. ``torch.compile`` takes them into its graphs, so
that compiled and eager models give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastbn import _engine, _state
from fastbn._typing import Array, Float64Array
from fastbn.kernels import locks
from fastbn.torch.threads import on_torch_threads

_library = torch.library.Library("fastbn", "DEF")
_TAGS = torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order

_library.define(
    "batch_norm_forward(Tensor x, Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor out, Tensor mean, Tensor inv_std, Tensor var)",
    tags=_TAGS,
)
_library.define(
    "batch_norm_backward(Tensor dout, Tensor x, Tensor? weight, Tensor mean, Tensor inv_std)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=_TAGS,
)
_library.define(
    "update_running(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? num_batches_tracked,"
    " Tensor mean, Tensor var, int count, float? momentum) -> ()",
    tags=_TAGS,
)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _array(tensor: Tensor) -> Array:
    """The memory of a tensor as an array."""
    array: Array = tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
    return array


def _optional(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else _array(tensor)


def _result_like(x: Tensor) -> Tensor:
    """A new tensor in PyTorch's memory format for a result: channels last if ``x`` is, else contiguous."""
    result = torch.empty_like(x)
    channels_last = _CHANNELS_LAST.get(x.dim())
    if result.is_contiguous() or (channels_last is not None and result.is_contiguous(memory_format=channels_last)):
        return result
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _arrays(result: Tensor, *tensors: Tensor) -> tuple[int, list[Array]]:
    """The axis of channels, and tensors as arrays that lie in memory as the result, which comes last, does."""
    strides = result.stride()
    ordered = [each if each.stride() == strides else torch.empty_like(result).copy_(each) for each in tensors]
    arrays = [_array(each) for each in (*ordered, result)]
    if result.is_contiguous():
        return 1, arrays
    last = result.dim() - 1
    # What ``np.moveaxis(array, 1, -1)`` does, which takes 2 us longer.
    return last, [each.transpose(0, *range(2, last + 1), 1) for each in arrays]


def _require(condition: bool, expected: str, *given: Tensor | None) -> None:
    """Refuse what the kernels, which check nothing, would misread."""
    if not condition:
        got = ", ".join("None" if each is None else f"{each.dtype} {tuple(each.shape)}" for each in given)
        raise ValueError(f"fastbn: expected {expected}, got {got}")


def _require_input(x: Tensor, *vectors: Tensor | None) -> None:
    floating = x.dtype in (torch.float32, torch.float64)
    _require(floating and x.dim() >= 2, "x of float32 or float64 with two or more dimensions", x)
    shape = x.shape[1:2]
    fit = all([each is None or each.shape == shape for each in vectors])  # noqa: C419 - a generator takes longer
    _require(fit, "one value per channel of x", x, *vectors)


def _forward(x: Array, axis: int, eps: float, weight: Array | None, bias: Array | None, out: Array) -> Float64Array:
    return _engine.forward(x, axis, eps, weight, bias, out)[1]


@torch.library.impl(_library, "batch_norm_forward", "CPU")
def _forward_cpu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``out = (x - mean) * inv_std * weight + bias`` with ``inv_std = 1 / sqrt(var + eps)``.

    ``mean``, ``inv_std`` and ``var``, which is biased, are (C,) float64; ``out`` is of ``x``'s dtype and memory format.
    """
    _require_input(x, weight, bias)
    out = _result_like(x)
    axis, (values, result) = _arrays(out, x)
    statistics = on_torch_threads(_forward, values, axis, eps, _optional(weight), _optional(bias), result)
    mean, inv_std, var = statistics
    return out, torch.from_numpy(mean), torch.from_numpy(inv_std), torch.from_numpy(var)


@torch.library.impl(_library, "batch_norm_backward", "CPU")
def _backward_cpu(
    dout: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inv_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx = weight * inv_std * (dout - dbias / m - x_hat * dweight / m)`` over the ``m`` values of a channel.

    ``dbias = sum(dout)`` and ``dweight = sum(dout * x_hat)``, (C,), and ``dx`` are of ``x``'s dtype; ``mean`` and
    ``inv_std`` are (C,) float64.
    """
    _require_input(x, weight, mean, inv_std)
    _require(dout.shape == x.shape and dout.dtype == x.dtype, "dout like x", dout, x)
    _require(mean.dtype == inv_std.dtype == torch.float64, "statistics of float64", mean, inv_std)
    dx = _result_like(x)
    axis, (gradient, values, result) = _arrays(dx, dout, x)
    statistics = np.ascontiguousarray(_array(mean)), np.ascontiguousarray(_array(inv_std))
    _, sums = on_torch_threads(_engine.backward, gradient, values, axis, *statistics, _optional(weight), result)
    with np.errstate(over="ignore"):
        dweight, dbias = (torch.from_numpy(each.astype(values.dtype)) for each in (sums.sum_dout_xhat, sums.sum_dout))
    return dx, dweight, dbias


@torch.library.impl(_library, "update_running", "CPU")
def _update_cpu(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float | None,
) -> None:
    """``running = (1 - momentum) * running + momentum * batch``, and a step of the counter: all together or nothing.

    ``mean`` and ``var`` are those of ``batch_norm_forward``, ``count`` is the number of values of a channel;
    ``running_var`` follows the unbiased ``var * count / (count - 1)``. ``momentum=None`` is the cumulative average, of
    weight ``1 / num_batches_tracked``. Computed in float64, stored in the dtype of the running tensors, whose version
    counters stay, as in PyTorch's own batch normalization.

    Inside a backward pass this does nothing: activation checkpointing (``torch.utils.checkpoint``, reentrant or not)
    repeats the forward of a layer there, and a batch must not enter the running statistics twice. Nothing else that is
    common runs a layer in training mode during a backward pass.
    """
    if torch._C._current_graph_task_id() != -1:
        return
    fit = running_mean.shape == running_var.shape == mean.shape == var.shape and mean.dim() == 1
    _require(fit, "statistics of one shape (C,)", running_mean, running_var, mean, var)
    floating = running_mean.dtype == running_var.dtype and running_mean.dtype in (torch.float32, torch.float64)
    _require(floating, "running statistics of float32 or float64", running_mean, running_var)
    counter = num_batches_tracked
    counted = momentum is not None if counter is None else counter.dtype == torch.int64 and counter.numel() == 1
    _require(counted, "num_batches_tracked of int64, which momentum=None needs", counter)
    _require(count > 1, f"two or more values per channel, not {count}", mean)
    running = _array(running_mean), _array(running_var)
    statistics = np.empty((3, mean.numel()))
    statistics[0], statistics[2] = _array(mean), _array(var)
    batch = np.ndarray((count, mean.numel()), np.int8, _NOTHING, 0, (0, 0))  # of which only the shape is read
    weight = 0.0 if momentum is None else momentum
    with locks.state:
        _state.update(*running, statistics, batch, weight, 1.0, _optional(counter), momentum is None)


_NOTHING = bytes(1)


@torch.library.register_fake("fastbn::batch_norm_forward", lib=_library)
def _forward_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, inv_std, var = (x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(3))
    return _result_like(x), mean, inv_std, var


@torch.library.register_fake("fastbn::batch_norm_backward", lib=_library)
def _backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inv_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _result_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


@torch.library.register_fake("fastbn::update_running", lib=_library)
def _update_fake(*_: Any) -> None:
    return None


batch_norm_forward = torch.ops.fastbn.batch_norm_forward.default
batch_norm_backward = torch.ops.fastbn.batch_norm_backward.default
update_running = torch.ops.fastbn.update_running.default
