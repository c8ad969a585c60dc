"""Any shape, channel axis and strides, as the contiguous (outer, channels, inner) that the kernels take.

Two memory layouts are worked on in place: C order, and channels last (C order once the channel axis is moved to the
end; for an NCHW tensor, what PyTorch calls ``channels_last``). Any other arrangement (slices with steps, negative
strides, Fortran order, broadcasts, misaligned data) is first copied into C order, and so gives the bits of that copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._typing import Array


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies in memory. ``axis`` is not negative."""

    axis: int
    channels_last: bool
    shape: tuple[int, int, int]
    """(outer, channels, inner)."""

    def _memory_order(self, array: Array) -> Array:
        return np.moveaxis(array, self.axis, -1) if self.channels_last else array

    def holds(self, array: Array) -> bool:
        """Whether kernels can work on ``array`` in place."""
        return _is_ready(self._memory_order(array))

    def load(self, array: Array) -> Array:
        """``array`` in memory order and contiguous, to be read; a copy only where ``holds`` says no."""
        ordered = self._memory_order(array)
        if not _is_ready(ordered):
            return np.array(ordered, order="C", copy=True)
        return ordered if ordered.flags.writeable else _as_writable(ordered)

    @contextmanager
    def target(self, out: Array) -> Iterator[Array]:
        """``out`` in memory order, to be written; where ``holds`` says no, a buffer that is copied to it at the end."""
        buffer = out if self.holds(out) else self.empty(out.shape, out.dtype)
        yield self._memory_order(np.asarray(buffer))  # not a memory map, which is another type to Numba
        if buffer is not out:
            np.copyto(out, buffer)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new tensor that lies in memory as this layout says."""
        if not self.channels_last:
            return np.empty(shape, dtype)
        moved = (*shape[: self.axis], *shape[self.axis + 1 :], shape[self.axis])
        return np.moveaxis(np.empty(moved, dtype), -1, self.axis)


def layout_of(x: Array, axis: int) -> Layout:
    """The layout in which ``x`` is worked on; ``axis`` is not negative."""
    channels_last = not x.flags.c_contiguous and np.moveaxis(x, axis, -1).flags.c_contiguous
    channels = x.shape[axis]
    if channels == 1:  # one run of values, wherever the axis stands
        shape = (1, 1, x.size)
    elif channels_last:
        shape = (x.size // channels if channels else 0, channels, 1)
    else:
        shape = (math.prod(x.shape[:axis]), channels, math.prod(x.shape[axis + 1 :]))
    return Layout(axis, channels_last, shape)


def _is_ready(ordered: Array) -> bool:
    """Whether kernels can take an array that is in memory order as it is."""
    return ordered.flags.c_contiguous and ordered.flags.aligned


class _Writable:
    """Exports the memory of a read-only array as writable."""

    def __init__(self, array: Array) -> None:
        self._keep_alive = array
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _as_writable(array: Array) -> Array:
    """The same memory without the read-only flag, for kernels that only read.

    To Numba a read-only array is another type, which would compile every kernel once more.
    """
    return np.asarray(_Writable(array))
