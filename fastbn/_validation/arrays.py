"""Tensors, buffers and what is given per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from fastbn._typing import Array
from fastbn._validation.options import FLOATS, HALF_HINT, below, channel_axis, describe, is_half, require_float

_FLOAT32, _FLOAT64 = map(np.dtype, FLOATS)


def on_device(value: Any) -> bool:
    """Whether it is an array in a GPU's memory: Numba's, CuPy's, PyTorch's or another library's."""
    if type(value) is np.ndarray:
        return False
    try:
        return hasattr(value, "__cuda_array_interface__") or hasattr(value, "__cuda_ndarray__")
    except Exception:  # other libraries' properties raise what they like, some for every array of the host
        return False


def _array(name: str, value: Any, *, widen: bool = False) -> Array:
    """``value`` as a plain array of native float32 or float64, of any shape; half precision is widened if asked for."""
    if type(value) is np.ndarray and (value.dtype is _FLOAT32 or value.dtype is _FLOAT64):
        return value  # first of all what nearly always comes
    if isinstance(value, np.ma.MaskedArray) or (
        isinstance(value, list | tuple) and any(isinstance(part, np.ma.MaskedArray) for part in value)
    ):
        raise TypeError(f"{name}: expected a plain array, got a masked array, whose mask would be ignored")
    if isinstance(value, np.ndarray):
        if type(value) not in (np.ndarray, np.memmap):
            raise TypeError(f"{name}: expected a plain array, got {type(value).__module__}.{type(value).__name__}")
        array = value if type(value) is np.ndarray else value.view(np.ndarray)
    else:
        if on_device(value):  # NumPy would copy it, or would not know it
            raise TypeError(f"{name}: expected an array in host memory, as the others, got {type(value).__name__}")
        array = _converted(name, value, widen)
    if widen and is_half(array.dtype):
        with np.errstate(all="ignore"):  # a signaling NaN
            return array.astype(np.float32)
    require_float(name, array.dtype)
    if array.dtype.isnative:
        return array
    with np.errstate(invalid="ignore"):  # a signaling NaN
        return array.astype(array.dtype.newbyteorder("="))


def _converted(name: str, value: Any, widen: bool) -> Array:
    """What NumPy makes of a list or of another library's array."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which PyTorch does not hand to NumPy
        if not widen:
            raise TypeError(f"{name}: expected dtype float32 or float64, got torch.bfloat16{HALF_HINT}")
        value = value.detach().float()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    except Exception as error:  # other libraries' objects raise what they like
        raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None


def _writable(name: str, value: Any) -> Array:
    """An array that fastbn is to write into: what was given, not a copy of it."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an array to write into, got {describe(value)}")
    if not value.dtype.isnative:
        raise TypeError(f"{name}: expected native byte order, got {value.dtype}")
    array = _array(name, value)
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if _overlaps_itself(array):
        raise ValueError(f"{name}: expected distinct elements, got strides {array.strides} for shape {array.shape}")
    return array


def _overlaps_itself(array: Array) -> bool:
    """Whether several indices may share memory (a broadcast, say). Errs on the side of yes for exotic strides."""
    if array.flags.c_contiguous:  # as everything empty is
        return False
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (length - 1) + reach
    return False


def tensor(name: str, value: Any) -> Array:
    """``x``, or anything of its kind: an array of 2 or more dimensions."""
    array = _array(name, value)
    if array.ndim < 2:
        raise ValueError(f"{name}: expected 2 or more dimensions, got {array.ndim}")
    return array


def dimensional(name: str, value: Any, *ndims: int) -> Array:
    """A tensor of so many dimensions, or of one of several numbers of them."""
    array = tensor(name, value)
    if array.ndim not in ndims:
        raise ValueError(f"{name}: expected {' or '.join(map(str, ndims))} dimensions, got shape {array.shape}")
    return array


def weight(name: str, value: Any, *ndims: int) -> tuple[Array, np.dtype[Any]]:
    """A weight of one of several numbers of dimensions, half precision widened, and the dtype that it came in."""
    if not isinstance(value, np.ndarray) and hasattr(value, "dtype") and not on_device(value):
        value = _converted(name, value, widen=True)
    array = dimensional(name, _array(name, value, widen=True), *ndims)
    half = isinstance(value, np.ndarray) and is_half(value.dtype)
    return array, value.dtype.newbyteorder("=") if half else array.dtype


def tensor_like(name: str, value: Any, x: Array) -> Array:
    """A tensor of the shape and dtype of ``x``."""
    array = _array(name, value)
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, that of x, got {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype}, that of x, got {array.dtype}")
    return array


def out_like(name: str, value: Any, x: Array, /, *, may_be: Array | None = None, **others: Any) -> Array | None:
    """A buffer for a result of the shape and dtype of ``x``; of all inputs, it may only be ``may_be`` itself."""
    if value is None:
        return None
    out = _writable(name, value)
    if out.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, that of x, got {out.shape}")
    if out.dtype != x.dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype}, that of x, got {out.dtype}")
    if may_be is not None and _share_memory(out, may_be) and not _same_memory(out, may_be):
        raise ValueError(f"{name}: expected the input itself or memory of its own, got an overlap with the input")
    distinct({name: out}, **others)
    return cast(Array, value)  # the caller's own object, a memory map, say


def _same_memory(a: Array, b: Array) -> bool:
    strides = [[s for s, n in zip(x.strides, x.shape, strict=True) if n > 1] for x in (a, b)]
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and strides[0] == strides[1]


def _share_memory(a: Array, b: Array) -> bool:
    if (a is not b and a.flags.owndata and b.flags.owndata) or not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=cast(Any, 100_000))  # NumPy's stubs know -1 and 0 only
    except np.exceptions.TooHardError:  # cannot be told cheaply; such strides are not worth the risk
        return True


def distinct(written: Mapping[str, Array | None], /, **others: Any) -> None:
    """No array that is written shares memory with another one."""
    arrays = [(name, array) for name, array in written.items() if array is not None]
    inputs = [(name, array) for name, array in others.items() if isinstance(array, np.ndarray)]
    for i, (name, array) in enumerate(arrays):
        for other_name, other in arrays[i + 1 :] + inputs:
            if _share_memory(array, other):
                raise ValueError(f"{name}: expected memory of its own, got an overlap with {other_name}")


def features(value: Any, axis: int, channels: int, ndims: tuple[int, ...] | None) -> tuple[Array, int]:
    """``x`` for a layer, and ``axis`` for it: one of the given numbers of dimensions, the layer's channels."""
    x = tensor("x", value)
    return x, layer_axis(x, axis, channels, ndims)


def layer_axis(x: Any, axis: int, channels: int, ndims: tuple[int, ...] | None) -> int:
    """``axis`` for an ``x`` of one of the given numbers of dimensions and so many channels."""
    if ndims is not None and x.ndim not in ndims:
        raise ValueError(f"x: expected {' or '.join(map(str, ndims))} dimensions, got {x.ndim}")
    index = channel_axis(axis, x.ndim)
    if x.shape[index] != channels:
        raise ValueError(f"x: expected {channels} channels on axis {axis}, got {x.shape[index]} in shape {x.shape}")
    return index


def vector(name: str, value: Any) -> Array:
    """An array of one dimension, to be read; half precision is widened."""
    array = _array(name, value, widen=True)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {array.shape}")
    return array


def parameter(name: str, value: Any, channels: int) -> Array:
    """A (C,) array of float32 or float64, to be read; half precision is widened."""
    array = _array(name, value, widen=True)
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), one value a channel, got {array.shape}")
    return array


def vectors(name: str, value: Any, names: Sequence[str]) -> dict[str, Array]:
    """Arrays of one dimension and one length in a list, by their names."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name}: expected a list of arrays ({', '.join(names)}), got {describe(value)}")
    if len(value) != len(names):
        raise ValueError(f"{name}: expected {len(names)} arrays ({', '.join(names)}), got {len(value)}")
    first = vector(f"{name}: {names[0]}", value[0])
    return {each: parameter(f"{name}: {each}", array, first.size) for each, array in zip(names, value, strict=True)}


def optional_parameter(name: str, value: Any, channels: int) -> Array | None:
    """``parameter``, or ``None``."""
    return None if value is None else parameter(name, value, channels)


def running(name: str, value: Any, channels: int) -> Array:
    """A (C,) array of float32 or float64, to be updated in place."""
    return parameter(name, _writable(name, value), channels)


def both_or_neither(**given: Any) -> bool:
    """Whether the two arguments are there; one alone is refused."""
    a, b = given.values()
    if (a is None) == (b is None):
        return a is not None
    name_a, name_b = given
    missing, present = (name_a, name_b) if a is None else (name_b, name_a)
    raise ValueError(f"{missing}: expected an array, as {present} is given, got None")


def variance(name: str, var: Array, eps: float) -> None:
    """No variance below ``-eps``. NaN passes: it stays in its channel."""
    with np.errstate(invalid="ignore"):
        below = var[var < np.float64(-eps)]  # not np.fmin, from which a signaling NaN hides its neighbours
    if below.size:
        least_variance(name, float(below.min()), eps)


def least_variance(name: str, least: float, eps: float) -> None:
    """The same, given the least."""
    if least < -eps:
        raise ValueError(f"{name}: expected no value below -eps = {-eps}, got {least}")


def finite(name: str, mean: Array) -> None:
    """No NaN or infinity in the data whose channel means these are."""
    bad = np.flatnonzero(~np.isfinite(mean))
    if bad.size:
        raise ValueError(
            f"{name}: expected finite values (nan_policy='raise'), got NaN or infinity in channel {bad[0]}"
        )


def castable(name: str, given: np.dtype[Any], wanted: np.dtype[Any]) -> None:
    """No narrowing."""
    if not np.can_cast(given, wanted, "safe"):
        raise TypeError(f"{name}: expected dtype {wanted}, that of the layer, got {given}, which would be narrowed")


def trainable(x: Any, axis: int, correction: float) -> None:
    """Enough values a channel for batch statistics with this correction, unless ``x`` is empty."""
    values = x.size // max(x.shape[axis], 1)
    if values == 1:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")
    if x.size:
        below(correction, values)
