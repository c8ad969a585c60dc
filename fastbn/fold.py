"""Batch normalization folded into the layer before it: for inference it is then gone.

With fixed statistics batch normalization is ``scale * x + shift`` in each channel, and so is what a convolution or a
dense layer does last. The two together are one layer with other weights.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _validation as check
from fastbn._typing import Array, Float64Array
from fastbn.frozen import FrozenBatchNorm
from fastbn.layers import BatchNorm

AnyBatchNorm: TypeAlias = BatchNorm | FrozenBatchNorm
"""What can be folded: a layer with running statistics, in whichever mode, or a frozen one."""


def scale_shift(bn: AnyBatchNorm) -> tuple[Float64Array, Float64Array]:
    """Batch normalization in evaluation mode as ``out = scale * x + shift``.

    ::

        scale = gamma / sqrt(running_var + eps)
        shift = beta - running_mean * scale

    Parameters
    ----------
    bn : BatchNorm or FrozenBatchNorm
        The layer. Its mode does not matter: the running statistics are used.

    Returns
    -------
    scale, shift : (C,) float64 array

    Raises
    ------
    TypeError
        If ``bn`` is something else.
    ValueError
        If it has no running statistics, or arrays that do not fit.

    Notes
    -----
    ``x * scale + shift`` loses precision where the mean is much larger than the deviation; the layer itself, which
    subtracts first, does not.
    """
    frozen = _frozen(bn)
    scale = _scale(frozen)
    with np.errstate(all="ignore"):
        return scale, frozen.beta - frozen.mean * scale


def conv(
    weight: ArrayLike,
    bias: ArrayLike | None,
    bn: AnyBatchNorm,
    *,
    transposed: bool = False,
    groups: int | None = None,
) -> tuple[Array, Array]:
    """Weight and bias of the convolution that does what ``bn(convolution(x))`` does in evaluation mode.

    For each output channel::

        weight = weight * scale
        bias   = (bias - running_mean) * scale + beta

    Parameters
    ----------
    weight : array, float32 or float64, or half precision
        In PyTorch's layout: ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` where ``transposed``,
        with 1 to 3 kernel dimensions.
    bias : (out,) array, float32 or float64, or None
        ``None`` means zeros.
    bn : BatchNorm or FrozenBatchNorm
        The layer after the convolution, with ``out`` channels. Its running statistics are used, whatever its mode.
    transposed : bool
        Whether the convolution is a transposed one.
    groups : int, optional
        Number of groups. ``None``: what the channels of ``bn`` imply for a transposed convolution; others are folded
        alike for any number.

    Returns
    -------
    weight, bias : array
        New arrays in the dtype of ``weight``, computed in float64. What is out of the dtype's range becomes infinite,
        in its own channel.

    Raises
    ------
    TypeError
        For ``bn`` that is no batch normalization, and dtypes other than float32 and float64.
    ValueError
        For shapes that do not fit, and ``bn`` without running statistics.

    Notes
    -----
    The order matters. Batch normalization *before* a convolution cannot be folded into it where the borders are padded:
    the padding is zero after the normalization, and would have to be ``-shift / scale`` before it, which differs
    between channels. A nonlinearity between the two forbids it as well. ``FrozenBatchNorm`` is for these.
    """
    weight, dtype = check.weight("weight", weight, 3, 4, 5)
    frozen = _frozen(bn)
    if not check.flag("transposed", transposed):
        check.divisor("groups", 1 if groups is None else groups, weight.shape[0])
        return _fold(weight, dtype, bias, frozen, weight.shape, outputs=(0,))
    inputs, each, *kernel = weight.shape
    if groups is None:
        groups = max(frozen.num_features // max(each, 1), 1)
    groups = check.divisor("groups", groups, inputs)
    return _fold(weight, dtype, bias, frozen, (groups, inputs // groups, each, *kernel), outputs=(0, 2))


def linear(weight: ArrayLike, bias: ArrayLike | None, bn: AnyBatchNorm) -> tuple[Array, Array]:
    """Weight and bias of the dense layer that does what ``bn(x @ weight.T + bias)`` does in evaluation mode.

    As ``conv``, with ``weight`` of shape ``(out, in)``, PyTorch's layout.

    Notes
    -----
    Batch normalization *before* a dense layer can be folded too, by the caller: with ``scale, shift = scale_shift(bn)``
    the weight is ``weight * scale``, and the bias ``bias + weight @ shift``.
    """
    weight, dtype = check.weight("weight", weight, 2)
    return _fold(weight, dtype, bias, _frozen(bn), weight.shape, outputs=(0,))


def _frozen(bn: AnyBatchNorm) -> FrozenBatchNorm:
    """The layer's coefficients, in float64."""
    check.instance("bn", bn, BatchNorm, FrozenBatchNorm)
    if isinstance(bn, FrozenBatchNorm):
        return bn
    tracked = bn.track_running_stats
    check.setting("bn.track_running_stats", tracked, bn.has_statistics, "True: batch statistics cannot be folded")
    return bn.freeze()


def _scale(frozen: FrozenBatchNorm) -> Float64Array:
    with np.errstate(all="ignore"):
        scale: Float64Array = frozen.gamma * frozen.inv_std
    return scale


def _fold(
    weight: Array,
    dtype: np.dtype[Any],
    bias: ArrayLike | None,
    bn: FrozenBatchNorm,
    shape: tuple[int, ...],
    outputs: tuple[int, ...],
) -> tuple[Array, Array]:
    """``shape`` is that of ``weight`` with its groups apart; ``outputs`` are the axes of the output channels."""
    spread = [length if axis in outputs else 1 for axis, length in enumerate(shape)]
    channels = math.prod(spread)
    fits = bn.num_features == channels
    check.setting("bn.num_features", bn.num_features, fits, f"{channels}, the output channels of weight")
    bias = check.optional_parameter("bias", bias, channels)
    scale = _scale(bn)
    with np.errstate(all="ignore"):
        folded = (weight.reshape(shape) * scale.reshape(spread)).reshape(weight.shape)
        shift = ((0.0 if bias is None else bias) - bn.mean) * scale + bn.beta
        return folded.astype(dtype), shift.astype(dtype)
