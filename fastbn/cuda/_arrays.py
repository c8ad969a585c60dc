"""What can be said of arrays on a device without reading them, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn import _validation as check
from fastbn._typing import Shape3
from fastbn.cuda import _driver
from fastbn.kernels.cuda_warps import BYTES

NO_COPY = "fastbn.cuda makes no hidden copies"


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """An array by its address; ``owner`` is the object that the caller gave."""

    owner: Any
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    read_only: bool
    stream: int | None
    """The handle of the stream that has work on it; ``None`` where nothing is to be waited for."""

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Values."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The address after the last value of a dense array."""
        return self.pointer + self.size * self.dtype.itemsize

    @property
    def aligned(self) -> bool:
        """Whether it starts where a widest access may."""
        return self.pointer % BYTES == 0

    def in_order(self, order: tuple[int, ...]) -> bool:
        """Whether the values lie side by side, the last of these dimensions fastest."""
        step = self.dtype.itemsize
        if not self.size:
            return True
        for i in reversed(order):
            if self.shape[i] > 1 and self.strides[i] != step:
                return False
            step *= self.shape[i]
        return True


def view(name: str, value: Any) -> View:
    """Any array of float32 or float64 on the current device."""
    interface = _interface(name, value)
    if interface.get("mask") is not None:
        raise TypeError(f"{name}: expected a plain array, got a masked array, whose mask would be ignored")
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    check.require_float(name, dtype)
    strides = interface.get("strides")
    if strides is None:
        strides = tuple(dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
    pointer, read_only = interface["data"]
    if 0 not in shape:
        _driver.require_here(name, pointer)
    return View(value, pointer, shape, tuple(strides), dtype, read_only, interface.get("stream"))


def _interface(name: str, value: Any) -> Mapping[str, Any]:
    """The CUDA array interface, version 3 or what it keeps of the earlier ones."""
    try:
        interface = getattr(value, "__cuda_array_interface__", None)
    except Exception as error:  # a tensor that requires a gradient, say
        raise TypeError(f"{name}: expected an array on the device, got {type(value).__name__} ({error})") from None
    ours = getattr(value, "__cuda_ndarray__", False)
    if ours and interface is None:  # the simulator's arrays have none
        data = value.ctypes.data, not value.flags.writeable
        interface = {"shape": value.shape, "typestr": value.dtype.str, "data": data}
    if ours:  # their interface calls what was broadcast contiguous
        interface = {**dict(interface or {}), "strides": value.strides}
    if interface is None:
        advice = f"numba.cuda.to_device({name}) copies it there; fastbn.forward and its like take arrays of the host"
        raise TypeError(f"{name}: expected an array on the device, got {type(value).__name__}: {advice}")
    return dict(interface)


def tensor(name: str, value: Any) -> View:
    """``x``, or anything of its kind."""
    array = view(name, value)
    if array.ndim < 2:
        raise ValueError(f"{name}: expected 2 or more dimensions, got {array.ndim}")
    return array


def channels_last(name: str, x: View, axis: int) -> bool:
    """Whether the channels are last in memory; other than that or C order is refused."""
    everything = tuple(range(x.ndim))
    if x.in_order(everything):
        return False
    if x.in_order((*everything[:axis], *everything[axis + 1 :], axis)):
        return True
    raise ValueError(
        f"{name}: expected C order, or the channels last in memory, got strides {x.strides} for shape {x.shape}: "
        f"{NO_COPY}"
    )


def like(name: str, value: Any, x: View) -> View:
    """A tensor of the shape and dtype of ``x``, which lies in memory as ``x`` does."""
    array = view(name, value)
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, that of x, got {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype}, that of x, got {array.dtype}")
    lengths = [i for i, length in enumerate(x.shape) if length > 1]
    if x.size and any(array.strides[i] != x.strides[i] for i in lengths):
        raise ValueError(f"{name}: expected strides {x.strides}, those of x, got {array.strides}: {NO_COPY}")
    return array


def parameter(name: str, value: Any, channels: int) -> View:
    """One value a channel, side by side."""
    array = view(name, value)
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), one value a channel, got {array.shape}")
    if not array.in_order((0,)):
        raise ValueError(f"{name}: expected values side by side, got strides {array.strides}: {NO_COPY}")
    return array


def optional_parameter(name: str, value: Any, channels: int) -> View | None:
    """``parameter``, or ``None``."""
    return None if value is None else parameter(name, value, channels)


def writable(name: str, array: View) -> View:
    """An array that is to be written."""
    if array.read_only:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    return array


def out_like(name: str, value: Any, x: View, /, *, may_be: View | None = None, **others: View | None) -> View | None:
    """A buffer for a result like ``x``; of all inputs, it may only be ``may_be`` itself."""
    if value is None:
        return None
    out = writable(name, like(name, value, x))
    if may_be is not None and _overlap(out, may_be) and out.pointer != may_be.pointer:
        raise ValueError(f"{name}: expected the input itself or memory of its own, got an overlap with the input")
    distinct({name: out}, **others)
    return out


def distinct(written: Mapping[str, View | None], /, **others: View | None) -> None:
    """No array that is written shares memory with another one."""
    arrays = [(name, array) for name, array in written.items() if array is not None]
    inputs = [(name, array) for name, array in others.items() if array is not None]
    for i, (name, array) in enumerate(arrays):
        for other_name, other in arrays[i + 1 :] + inputs:
            if _overlap(array, other):
                raise ValueError(f"{name}: expected memory of its own, got an overlap with {other_name}")


def _overlap(a: View, b: View) -> bool:
    return a.pointer < b.end and b.pointer < a.end


def shape_of(x: View, axis: int, last: bool) -> Shape3:
    """(outer, channels, inner) as it lies in memory."""
    channels = x.shape[axis]
    if channels == 1:
        return 1, 1, x.size
    if last:
        return x.size // max(channels, 1), channels, 1
    return math.prod(x.shape[:axis]), channels, math.prod(x.shape[axis + 1 :])
