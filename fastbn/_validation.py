"""The only place that rejects a user's input.

Every function returns its argument in the form that the rest of the package takes, or raises ``TypeError`` (wrong
kind) or ``ValueError`` (wrong value or shape) with a message that names the argument, what was expected and what came.
Nothing here writes to an array.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np

from fastbn._typing import Array

_FLOATS = (np.float32, np.float64)
_FLOAT32, _FLOAT64 = map(np.dtype, _FLOATS)
_HALVES = ("float16", "bfloat16")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def on_device(value: Any) -> bool:
    """Whether it is an array in a GPU's memory: Numba's, CuPy's, PyTorch's or another library's."""
    if type(value) is np.ndarray:
        return False
    try:
        return hasattr(value, "__cuda_array_interface__") or hasattr(value, "__cuda_ndarray__")
    except Exception:  # other libraries' properties raise what they like, some for every array of the host
        return False


def _array(name: str, value: Any) -> Array:
    """``value`` as a plain array of native float32 or float64, of any shape."""
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
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
        except Exception as error:  # other libraries' objects raise what they like
            raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    require_float(name, array.dtype)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def require_float(name: str, dtype: np.dtype[Any]) -> None:
    """float32 or float64."""
    if dtype.type in _FLOATS:
        return
    hint = ": half precision is not built yet" if dtype.name in _HALVES else ""
    raise TypeError(f"{name}: expected dtype float32 or float64, got {dtype}{hint}")


def _writable(name: str, value: Any) -> Array:
    """An array that fastbn is to write into: what was given, not a copy of it."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an array to write into, got {_describe(value)}")
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
    if array.flags.c_contiguous:
        return False
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return array.size > 0
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


def integer(name: str, value: Any) -> int:
    """A whole number."""
    if type(value) is int:
        return value
    if not isinstance(value, bool | np.bool_):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name}: expected an integer, got {_describe(value)}")


def size(name: str, value: Any) -> int:
    """A whole number that is not negative."""
    result = integer(name, value)
    if not 0 <= result < 2**62:
        raise ValueError(f"{name}: expected an integer not below 0 and below 2**62, got {result}")
    return result


def positive(name: str, value: Any) -> int:
    """A whole number above 0."""
    result = size(name, value)
    if not result:
        raise ValueError(f"{name}: expected an integer above 0, got 0")
    return result


def divisor(name: str, value: Any, whole: int) -> int:
    """A whole number above 0 that divides ``whole``."""
    result = positive(name, value)
    if whole % result:
        raise ValueError(f"{name}: expected a divisor of {whole}, got {result}")
    return result


def channel_axis(axis: Any, ndim: int) -> int:
    """``axis``, not negative."""
    index = integer("axis", axis)
    if not -ndim <= index < ndim:
        raise ValueError(f"axis: expected {-ndim} to {ndim - 1} for {ndim} dimensions, got {index}")
    return index % ndim


def dimensions(name: str, value: Any) -> tuple[int, ...] | None:
    """Some numbers of dimensions, or ``None`` for all."""
    if value is None:
        return None
    if not isinstance(value, tuple):
        raise TypeError(f"{name}: expected a tuple of integers or None, got {_describe(value)}")
    return tuple(size(name, ndim) for ndim in value)


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
    """An array of one dimension."""
    array = _array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {array.shape}")
    return array


def parameter(name: str, value: Any, channels: int) -> Array:
    """A (C,) array of float32 or float64, to be read."""
    array = _array(name, value)
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), one value a channel, got {array.shape}")
    return array


def vectors(name: str, value: Any, names: Sequence[str]) -> dict[str, Array]:
    """Arrays of one dimension and one length in a list, by their names."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name}: expected a list of arrays ({', '.join(names)}), got {_describe(value)}")
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
    if var.size:
        least_variance(name, float(np.fmin.reduce(var)), eps)


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


def number(name: str, value: Any) -> float:
    """A real number."""
    if type(value) is float:
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: expected a number in float64's range, got {_describe(value)}") from None
    raise TypeError(f"{name}: expected a number, got {_describe(value)}")


def eps(value: Any, *, zero: bool) -> float:
    """``eps``: finite, and positive, or not negative where ``zero`` is allowed."""
    result = number("eps", value)
    if not math.isfinite(result) or result < 0.0 or (result == 0.0 and not zero):
        expected = "a finite number not below 0" if zero else "a finite number above 0 in training"
        raise ValueError(f"eps: expected {expected}, got {result}")
    return result


def momentum(value: Any) -> float:
    """``momentum``: 0 to 1."""
    result = number("momentum", value)
    if not 0.0 <= result <= 1.0:
        raise ValueError(f"momentum: expected 0 to 1, got {result}")
    return result


def correction(value: Any) -> float:
    """``correction``: finite and not negative."""
    result = number("correction", value)
    if not math.isfinite(result) or result < 0.0:
        raise ValueError(f"correction: expected a finite number not below 0, got {result}")
    return result


def count(value: Any) -> float:
    """``count``: how many values a channel has, above 0 and finite."""
    result = number("count", value)
    if not math.isfinite(result) or result <= 0.0:
        raise ValueError(f"count: expected a finite number above 0, got {result}")
    return result


def flag(name: str, value: Any) -> bool:
    """``True`` or ``False``."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {_describe(value)}")


def affine(value: Any) -> bool | str:
    """``affine`` of a layer: which of its two parameters it has."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    expected = "True or False, or 'gamma' or 'beta' for one of the two"
    if not isinstance(value, str):
        raise TypeError(f"affine: expected {expected}, got {_describe(value)}")
    if value not in ("gamma", "beta"):
        raise ValueError(f"affine: expected {expected}, got {value!r}")
    return str(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of several words."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {choices}, got {_describe(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    return value


def mode(bn_param: Mapping[str, Any]) -> str:
    """``mode`` of the course's ``bn_param``: ``ValueError`` for all but its two words, as in the course."""
    if "mode" not in bn_param:
        raise ValueError("bn_param['mode']: expected 'train' or 'test', got no such key")
    value = bn_param["mode"]
    if not isinstance(value, str) or value not in ("train", "test"):
        raise ValueError(f"bn_param['mode']: expected 'train' or 'test', got {_describe(value)}")
    return value


def setting(name: str, value: Any, fits: bool, expected: str) -> None:
    """A sound value, which does not fit here unless it does."""
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def policy(name: str, value: Any) -> np.dtype[Any]:
    """float32 or float64, as Keras names it: by its name, or by a dtype policy that has this name."""
    config = value.get("config") if isinstance(value, Mapping) else {"name": value}
    given = config.get("name") if isinstance(config, Mapping) else None
    if not isinstance(given, str):
        raise TypeError(f"{name}: expected float32 or float64, or a dtype policy of that name, got {_describe(value)}")
    return float_dtype(name, given)


def float_dtype(name: str, value: Any) -> np.dtype[Any]:
    """float32 or float64."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {_describe(value)}") from None
    require_float(name, dtype)
    native: np.dtype[Any] = np.dtype(dtype.type)
    return native


def castable(name: str, given: np.dtype[Any], wanted: np.dtype[Any]) -> None:
    """No narrowing."""
    if not np.can_cast(given, wanted, "safe"):
        raise TypeError(f"{name}: expected dtype {wanted}, that of the layer, got {given}, which would be narrowed")


def keys(name: str, given: Any, expected: Mapping[str, Any]) -> None:
    """A mapping with exactly these keys."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {_describe(given)}")
    if given.keys() != expected.keys():
        raise ValueError(f"{name}: expected the keys {sorted(expected)}, got {sorted(map(str, given))}")


def subset(name: str, given: Any, expected: Set[str]) -> None:
    """A mapping with some of these keys."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {_describe(given)}")
    unknown = sorted(map(str, given.keys() - expected))
    if unknown:
        raise ValueError(f"{name}: expected no other keys than {sorted(expected)}, got {unknown}")


def item(name: str, given: Mapping[str, Any], key: str) -> Any:
    """What a mapping has under this key."""
    if key not in given:
        raise ValueError(f"{name}: expected one of the name {key!r}, got the names {reprlib.repr(sorted(given))}")
    return given[key]


def several(name: str, value: Any, kind: type) -> list[Any]:
    """Objects of this class."""
    try:
        result = list(value)
    except TypeError:
        raise TypeError(f"{name}: expected several {kind.__name__}, got {_describe(value)}") from None
    for i, element in enumerate(result):
        instance(f"{name}[{i}]", element, kind)
    return result


def instance(name: str, value: Any, *kinds: type) -> None:
    """An object of one of these classes."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: expected a {' or '.join(kind.__name__ for kind in kinds)}, got {_describe(value)}")


def layers(name: str, value: Any, kind: type) -> list[Any]:
    """One layer of this class or several, each with running statistics, and each once."""
    result = several(name, [value] if isinstance(value, kind) else value, kind)
    for i, layer in enumerate(result):
        tracked = layer.track_running_stats
        setting(f"{name}[{i}].track_running_stats", tracked, tracked, "True: there are running statistics to replace")
    if not result or len(set(map(id, result))) < len(result):
        raise ValueError(f"{name}: expected at least one layer, and each of them once, got {_describe(result)}")
    return result


def batches(name: str, value: Any, run: Any, layers: int) -> None:
    """Batches, and a function to run them; for one layer that may be ``None``, and the batches are arrays."""
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        raise TypeError(f"{name}: expected an iterable of batches, got {_describe(value)}")
    if run is None and layers > 1:
        raise TypeError(f"run: expected a function, as there are {layers} layers, got None")
    if run is None and isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an iterable of arrays, got {_describe(value)}: for one batch, a list of it")
    if run is not None and not callable(run):
        raise TypeError(f"run: expected a function, got {_describe(run)}")


def population(values: int, correction: float) -> float:
    """``correction`` for statistics of so many values per channel."""
    if not values:
        raise ValueError("batches: expected data for every layer, got none for one")
    _below(correction, values)
    return correction


def _below(correction: float, values: int) -> None:
    if values <= correction:
        raise ValueError(f"correction: expected less than the {values} values per channel, got {correction}")


def trainable(x: Any, axis: int, correction: float) -> None:
    """Enough values a channel for batch statistics with this correction, unless ``x`` is empty."""
    values = x.size // max(x.shape[axis], 1)
    if x.size and values == 1:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")
    if x.size:
        _below(correction, values)
