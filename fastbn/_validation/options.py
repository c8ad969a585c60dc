"""Numbers, words, dtypes, collections and objects."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import reprlib
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

FLOATS = (np.float32, np.float64)
HALF_HINT = ": half precision is not built yet for tensors and for what is updated in place"


def describe(value: object) -> str:
    """What came, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether it is float16, or the bfloat16 of ``ml_dtypes``."""
    return dtype.name in ("float16", "bfloat16")


def require_float(name: str, dtype: np.dtype[Any]) -> None:
    """A dtype that fastbn computes in."""
    if dtype.type in FLOATS:
        return
    hint = HALF_HINT if is_half(dtype) else ""
    raise TypeError(f"{name}: expected dtype float32 or float64, got {dtype}{hint}")


def integer(name: str, value: Any) -> int:
    """A whole number."""
    if type(value) is int:
        return value
    if not isinstance(value, bool | np.bool_):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name}: expected an integer, got {describe(value)}")


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
        raise TypeError(f"{name}: expected a tuple of integers or None, got {describe(value)}")
    return tuple(size(name, ndim) for ndim in value)


def number(name: str, value: Any) -> float:
    """A real number."""
    if type(value) is float:
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: expected a number in float64's range, got {describe(value)}") from None
    raise TypeError(f"{name}: expected a number, got {describe(value)}")


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
    raise TypeError(f"{name}: expected True or False, got {describe(value)}")


def affine(value: Any) -> bool | str:
    """``affine`` of a layer: which of its two parameters it has."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    expected = "True or False, or 'gamma' or 'beta' for one of the two"
    if not isinstance(value, str):
        raise TypeError(f"affine: expected {expected}, got {describe(value)}")
    if value not in ("gamma", "beta"):
        raise ValueError(f"affine: expected {expected}, got {value!r}")
    return str(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of several words."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {choices}, got {describe(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    return value


def mode(bn_param: Mapping[str, Any]) -> str:
    """``mode`` of the course's ``bn_param``: ``ValueError`` for all but its two words, as in the course."""
    if "mode" not in bn_param:
        raise ValueError("bn_param['mode']: expected 'train' or 'test', got no such key")
    value = bn_param["mode"]
    if not isinstance(value, str) or value not in ("train", "test"):
        raise ValueError(f"bn_param['mode']: expected 'train' or 'test', got {describe(value)}")
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
        raise TypeError(f"{name}: expected float32 or float64, or a dtype policy of that name, got {describe(value)}")
    return float_dtype(name, given)


def float_dtype(name: str, value: Any) -> np.dtype[Any]:
    """float32 or float64."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {describe(value)}") from None
    require_float(name, dtype)
    native: np.dtype[Any] = np.dtype(dtype.type)
    return native


def counter(name: str, value: Any) -> int:
    """A whole number that is not negative, or an array of one, with no dimension or with one, as old states have it."""
    return size(name, value[0] if getattr(value, "shape", None) == (1,) else value)


def keys(name: str, given: Any, expected: Mapping[str, Any], optional: Set[str] = frozenset()) -> None:
    """A mapping with exactly these keys, of which the optional ones may be missing."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {describe(given)}")
    if given.keys() | (optional & expected.keys()) != expected.keys():
        raise ValueError(f"{name}: expected the keys {sorted(expected)}, got {sorted(map(str, given))}")


def subset(name: str, given: Any, expected: Set[str]) -> None:
    """A mapping with some of these keys."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {describe(given)}")
    unknown = sorted(map(str, given.keys() - expected))
    if unknown:
        raise ValueError(f"{name}: got unknown keys {unknown}, expected no others than {sorted(expected)}")


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
        raise TypeError(f"{name}: expected several {kind.__name__}, got {describe(value)}") from None
    for i, element in enumerate(result):
        instance(f"{name}[{i}]", element, kind)
    return result


def instance(name: str, value: Any, *kinds: type) -> None:
    """An object of one of these classes."""
    if isinstance(value, kinds):
        return
    names = [kind.__name__ for kind in kinds]
    reloaded = type(value).__name__ in names
    came = "one of a module that was imported again since" if reloaded else describe(value)
    raise TypeError(f"{name}: expected a {' or '.join(names)}, got {came}")


def layers(name: str, value: Any, kind: type) -> list[Any]:
    """One layer of this class or several, each with running statistics, and each once."""
    result = several(name, [value] if isinstance(value, kind) else value, kind)
    for i, layer in enumerate(result):
        tracked = layer.track_running_stats
        fits = layer.has_statistics
        setting(f"{name}[{i}].track_running_stats", tracked, fits, "True: there are running statistics to replace")
    if not result or len(set(map(id, result))) < len(result):
        raise ValueError(f"{name}: expected at least one layer, and each of them once, got {describe(result)}")
    return result


def batches(name: str, value: Any, run: Any, layers: int) -> None:
    """Batches, and a function to run them; for one layer that may be ``None``, and the batches are arrays."""
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        raise TypeError(f"{name}: expected an iterable of batches, got {describe(value)}")
    if run is None and layers > 1:
        raise TypeError(f"run: expected a function, as there are {layers} layers, got None")
    if run is None and isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an iterable of arrays, got {describe(value)}: for one batch, a list of it")
    if run is not None and not callable(run):
        raise TypeError(f"run: expected a function, got {describe(run)}")


def array_batch(name: str, value: Any) -> None:
    """A batch that is an array, and not several of them."""
    if isinstance(value, list | tuple | Mapping):
        advice = "to take the input out of it, give run, such as run=lambda batch: layer(batch[0])"
        raise TypeError(f"{name}: expected an array, got {type(value).__name__} of length {len(value)}; {advice}")


def population(layer: str, values: int, correction: float) -> None:
    """Data for a layer, with more values per channel than its ``correction``."""
    if not values:
        raise ValueError(f"batches: expected data for every layer, got none for {layer}")
    below(correction, values)


def below(correction: float, values: int) -> None:
    """``correction`` that leaves something of so many values to divide by."""
    if values <= correction:
        raise ValueError(f"correction: expected less than the {values} values per channel, got {correction}")
