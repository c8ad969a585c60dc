"""Arrays in a GPU's memory: where calls with them go, and how they come there and back.

``fastbn.cuda`` and Numba's CUDA target are imported when the first one comes.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastbn._typing import Array


def front() -> Any:
    """The module ``fastbn.cuda``. ``ImportError`` where its packages are missing."""
    return importlib.import_module("fastbn.cuda")


def view(name: str, array: Any) -> Any:
    """What can be said of an array without reading it."""
    return front()._arrays.view(name, array)


def to_device(array: Array) -> Any:
    """A copy on the current device."""
    return front()._driver.to_device(array)


def to_host(name: str, array: Any, channels: int) -> Array:
    """A copy, in host memory, of what is given per channel; waits for the device."""
    copy: Array = front()._driver.read(front()._arrays.parameter(name, array, channels))
    return copy


def copy_to(name: str, array: Any, values: Array) -> None:
    """Overwrite what is given per channel; waits for the device."""
    front()._driver.write(front()._arrays.parameter(name, array, values.size), values)
