"""Layers with the constructors and keys of torchvision's ``FrozenBatchNorm2d`` and timm's ``BatchNormAct2d``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.torch.modules import BatchNorm2d, normalize, takes

_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_swish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
"""timm's names of PyTorch's activations."""


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and parameters are constants: torchvision's buffers, arguments and ``repr``.

    ``out = (x - running_mean) / sqrt(running_var + eps) * weight + bias`` in both modes. For backward one (C,) vector
    is saved, and no tensor of the size of ``x``.

    Parameters
    ----------
    num_features : int
        The number of channels C of an input (N, C, H, W).
    eps : float
        Added to the variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Without the counter of an ordinary layer's state."""
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``; what is no (N, C, H, W) of the dtype of the buffers is broadcast as in torchvision."""
        weight, bias, mean, var = self.weight, self.bias, self.running_mean, self.running_var
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript compiles nothing in here
            if takes(x, weight, bias, mean, var) and x.dim() == 4:
                return normalize(x, weight, bias, mean, var, 0.0, self.eps)
        scale = weight * (var + self.eps).rsqrt()
        shift = bias - mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.weight.shape[0]}, eps={self.eps})"


class BatchNormAct2d(BatchNorm2d):
    """``BatchNorm2d``, then ``drop``, then an activation ``act``: timm's arguments, attributes and keys.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype
        Those of ``BatchNorm2d``.
    apply_act : bool
        Whether there is an activation.
    act_layer : callable or str, optional
        What makes the activation, or timm's name of one of PyTorch's; ``None`` is the identity.
    act_kwargs : mapping, optional
        Its arguments.
    inplace : bool
        Whether it works in place, if it can.
    drop_layer : callable, optional
        What makes ``drop``, without arguments.

    Raises
    ------
    ValueError
        For a name that is not known.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        apply_act: bool = True,
        act_layer: Callable[..., nn.Module] | str | None = nn.ReLU,
        act_kwargs: Mapping[str, Any] | None = None,
        inplace: bool = True,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.drop = nn.Identity() if drop_layer is None else drop_layer()
        self.act = _activation(act_layer, act_kwargs or {}, inplace) if apply_act else nn.Identity()

    def _normalized(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super()._normalized(x)))

    def __prepare_scriptable__(self) -> nn.Module:
        """The three one after another."""
        return nn.Sequential(super().__prepare_scriptable__(), self.drop, self.act)


def _activation(layer: Callable[..., nn.Module] | str | None, options: Mapping[str, Any], inplace: bool) -> nn.Module:
    if layer is None or layer == "":
        return nn.Identity()
    if isinstance(layer, str) and layer not in _ACTIVATIONS:
        raise ValueError(f"act_layer: expected one of {', '.join(_ACTIVATIONS)}, got {layer!r}")
    make = _ACTIVATIONS[layer] if isinstance(layer, str) else layer
    if "inplace" in inspect.signature(make).parameters:
        options = {"inplace": inplace, **options}
    return make(**options)
