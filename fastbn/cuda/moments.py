"""The phases of batch normalization one by one, on arrays on a device; see ``fastbn.moments`` for what they mean.

Statistics and sums stay on the device, as (C,) float64 arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastbn import _device
from fastbn import _validation as check
from fastbn.cuda import _arrays
from fastbn.cuda._engine import GIVEN, Call, merge, rows
from fastbn.moments import Moments as HostMoments


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Count, mean and biased variance of each channel of some data, ``mean`` and ``var`` on the device.

    The device's counterpart of ``fastbn.Moments``. Made by ``moments``, or from such arrays; ``ValueError`` and
    ``TypeError`` if they do not fit together.
    """

    count: int
    mean: Any
    var: Any

    def __post_init__(self) -> None:
        """Validate what can be."""
        mean = _arrays.view("mean", self.mean)
        if mean.ndim != 1:
            raise ValueError(f"mean: expected 1 dimension, got shape {mean.shape}")
        for name, value in (("mean", self.mean), ("var", self.var)):
            _arrays.parameter(name, value, mean.shape[0])
        object.__setattr__(self, "count", check.size("count", self.count))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of data together, on the device; see ``fastbn.Moments.merge``."""
        check.instance("other", other, Moments)
        channels = _arrays.view("mean", self.mean).shape[0]
        theirs = [_arrays.parameter(f"other.{name}", getattr(other, name), channels) for name in ("mean", "var")]
        if not self.count or not other.count:
            return self if self.count else other
        ours = [_arrays.view("mean", self.mean), _arrays.view("var", self.var)]
        mean, _, var = rows(merge(self.count, ours, other.count, theirs))
        return Moments(self.count + other.count, mean, var)

    def inv_std(self, eps: float = 1e-5) -> Any:
        """``1 / sqrt(var + eps)``, on the device, for ``normalize`` and the phases of the gradient."""
        eps = check.eps(eps, zero=True)
        mean, var = _arrays.view("mean", self.mean), _arrays.view("var", self.var)
        return rows(merge(1, [mean, var], 0, [mean, var], eps))[1]

    def to_host(self) -> HostMoments:
        """The same in host memory. Waits for the device."""
        channels = _arrays.view("mean", self.mean).size
        arrays = (_device.to_host(name, getattr(self, name), channels) for name in ("mean", "var"))
        return HostMoments(self.count, *arrays)


def moments(x: Any, *, axis: int = 1) -> Moments:
    """``fastbn.moments`` of an array on a device. Raises as ``fastbn.cuda.forward``."""
    tensor = _arrays.tensor("x", x)
    axis = check.channel_axis(axis, tensor.ndim)
    call = Call(tensor, axis, (), ())
    statistics = call.statistics()
    call.batch_stats(1.0, statistics)
    count = math.prod(tensor.shape[:axis] + tensor.shape[axis + 1 :])
    mean, _, var = rows(statistics)
    return Moments(count, mean, var)


def normalize(
    x: Any, mean: Any, inv_std: Any, gamma: Any = None, beta: Any = None, *, axis: int = 1, out: Any = None
) -> Any:
    """``fastbn.normalize`` of arrays on a device. Raises as ``fastbn.cuda.forward``."""
    tensor = _arrays.tensor("x", x)
    axis = check.channel_axis(axis, tensor.ndim)
    channels = tensor.shape[axis]
    mean_ = _arrays.parameter("mean", mean, channels)
    inv_std_ = _arrays.parameter("inv_std", inv_std, channels)
    gamma_ = _arrays.optional_parameter("gamma", gamma, channels)
    beta_ = _arrays.optional_parameter("beta", beta, channels)
    others = {"mean": mean_, "inv_std": inv_std_, "gamma": gamma_, "beta": beta_}
    target = _arrays.out_like("out", out, tensor, may_be=tensor, **others)
    call = Call(tensor, axis, (target,), (mean_, inv_std_, gamma_, beta_))
    result = call.result(target)
    call.normalize(tensor, mean_, inv_std_, GIVEN, gamma_, beta_, result)
    return result.owner


def backward_sums(dout: Any, x: Any, mean: Any, inv_std: Any, *, axis: int = 1) -> tuple[Any, Any]:
    """``fastbn.backward_sums`` of arrays on a device. Raises as ``fastbn.cuda.forward``."""
    tensor = _arrays.tensor("x", x)
    axis = check.channel_axis(axis, tensor.ndim)
    channels = tensor.shape[axis]
    dout_ = _arrays.like("dout", dout, tensor)
    mean_ = _arrays.parameter("mean", mean, channels)
    inv_std_ = _arrays.parameter("inv_std", inv_std, channels)
    call = Call(tensor, axis, (dout_,), (mean_, inv_std_))
    sums = call.vector(), call.vector()
    call.backward_sums(dout_, mean_, inv_std_, *sums)
    return sums[0].owner, sums[1].owner


def backward_input(
    dout: Any,
    x: Any,
    mean: Any,
    inv_std: Any,
    gamma: Any,
    sum_dout: Any,
    sum_dout_xhat: Any,
    count: float,
    *,
    axis: int = 1,
    out: Any = None,
) -> Any:
    """``fastbn.backward_input`` of arrays on a device. Raises as ``fastbn.cuda.forward``."""
    count = check.count(count)
    tensor = _arrays.tensor("x", x)
    axis = check.channel_axis(axis, tensor.ndim)
    channels = tensor.shape[axis]
    dout_ = _arrays.like("dout", dout, tensor)
    gamma_ = _arrays.optional_parameter("gamma", gamma, channels)
    given = {"mean": mean, "inv_std": inv_std, "sum_dout": sum_dout, "sum_dout_xhat": sum_dout_xhat}
    arrays = {name: _arrays.parameter(name, value, channels) for name, value in given.items()}
    target = _arrays.out_like("out", out, tensor, may_be=dout_, x=tensor, gamma=gamma_, **arrays)
    call = Call(tensor, axis, (dout_, target), (gamma_, *arrays.values()))
    result = call.result(target)
    mean_, inv_std_, *sums = arrays.values()
    call.backward_input(dout_, mean_, inv_std_, gamma_, sums[0], sums[1], count, result)
    return result.owner
