"""Any shape, axis and strides as (outer, channels, inner), in place where memory allows, else by a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._typing import Array, Shape3


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies in memory. ``axis`` is not negative."""

    axis: int
    channels_last: bool
    shape: Shape3
    """(outer, channels, inner)."""

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int, channels_last: bool) -> Layout:
        """The layout of tensors of this shape."""
        channels = shape[axis]
        size = math.prod(shape)
        if channels == 1:  # one run of values, wherever the axis stands
            return cls(axis, channels_last, (1, 1, size))
        if channels_last:
            return cls(axis, channels_last, (size // channels if channels else 0, channels, 1))
        return cls(axis, channels_last, (math.prod(shape[:axis]), channels, math.prod(shape[axis + 1 :])))

    def _memory_order(self, array: Array) -> Array:
        return np.moveaxis(array, self.axis, -1) if self.channels_last else array

    def holds(self, array: Array) -> bool:
        """Whether kernels can work on ``array`` in place."""
        flags = self._memory_order(array).flags
        return flags.c_contiguous and flags.aligned

    def load(self, array: Array) -> Array:
        """``array`` flat, in memory order, to be read; a copy only where ``holds`` says no."""
        ordered = self._memory_order(array)
        if ordered.flags.carray:  # contiguous, aligned and writable
            return ordered.reshape(-1)
        if not self.holds(array):
            return np.array(ordered, order="C", copy=True).reshape(-1)
        return np.asarray(_Writable(ordered)).reshape(-1)

    def flat(self, array: Array) -> Array:
        """``array``, which ``holds`` says can be worked on in place, flat, to be written."""
        ordered = self._memory_order(array)
        flat = ordered.reshape(-1)
        return flat if type(flat) is np.ndarray else np.asarray(flat)  # a memory map is another type to Numba

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new tensor that lies in memory as this layout says."""
        if not self.channels_last:
            return np.empty(shape, dtype)
        moved = (*shape[: self.axis], *shape[self.axis + 1 :], shape[self.axis])
        return np.moveaxis(np.empty(moved, dtype), -1, self.axis)


def contiguous(array: Array) -> Array:
    """``array`` for a kernel that only reads: a copy where it is not contiguous, aligned and writable."""
    return array if array.flags.carray else np.array(array)


class _Writable:
    """Exports the memory of a read-only array as writable, for kernels that only read.

    To Numba a read-only array is another type, which would compile every kernel once more.
    """

    def __init__(self, array: Array) -> None:
        self._keep_alive = array
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
