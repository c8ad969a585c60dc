"""All that is asked of the driver, through Numba: memory, streams, launches. None of it waits for the device."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.core.errors import NumbaPerformanceWarning

from fastbn._typing import Address, Array
from fastbn.kernels.cuda_warps import SIMULATED, Memory

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

LEGACY = 1
"""The handle of the default stream in the CUDA array interface; 0 to the driver."""

_chosen: contextvars.ContextVar[int | None] = contextvars.ContextVar("fastbn_stream", default=None)
_scratch = threading.local()
_most: dict[tuple[Any, int, int], int] = {}


@contextlib.contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """Run fastbn's calls on a stream, in this thread or task, whatever streams the arrays are on.

    ``stream`` is a stream of Numba, CuPy, PyTorch or another library that has ``__cuda_stream__``, or a handle.
    ``TypeError`` for anything else. Work that arrays say is on other streams is waited for, by the stream.
    """
    token = _chosen.set(_handle(stream))
    try:
        yield
    finally:
        _chosen.reset(token)


def _handle(stream: Any) -> int:
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, attribute, None)
        value = getattr(value, "value", value)
        if isinstance(value, int):
            return value
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if SIMULATED and isinstance(stream, cuda.stream):
        return 0
    raise TypeError(f"stream: expected a stream or its handle, got {type(stream).__name__} {stream!r}")


class Stream:
    """Where a call's work goes: the stream chosen with ``on_stream``, else that of the first array, else the default.

    The other arrays' streams are waited for.
    """

    def __init__(self, streams: Iterable[int | None]) -> None:
        handles = [handle for handle in streams if handle is not None]
        chosen = _chosen.get()
        self.device = current_device()
        self.handle = (handles[0] if handles else 0) if chosen is None else chosen
        self.stream = _stream(self.device, self.handle)
        for handle in {*map(_same, handles)} - {_same(self.handle)}:
            event = cuda.event(timing=False)
            event.record(_stream(self.device, handle))
            event.wait(self.stream)

    def launch(self, kernel: Any, grid: int, threads: int, *arguments: Any) -> None:
        """Start a kernel."""
        if SIMULATED:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # devices do not warn of NaN and infinity
                kernel[grid, threads](*arguments)
        else:
            _configured(kernel, grid, threads, self.device, self.handle)(*arguments)

    def launch_together(self, kernel: Any, blocks: int, threads: int, *arguments: Any) -> bool:
        """Start a kernel whose blocks wait for each other, with as many of them as run at once; whether it could be."""
        grid = min(blocks, _at_once(kernel, threads, self.device, *arguments))
        if grid:
            self.launch(kernel, grid, threads, *arguments)
        return grid > 0

    def empty(self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Any:
        """A new array, to be used on this stream. ``MemoryError`` where the device has no more."""
        try:
            return cuda.device_array(shape, dtype, strides=strides, stream=self.stream)
        except Exception as error:
            if getattr(error, "code", None) == OUT_OF_MEMORY:
                nbytes = math.prod(shape) * np.dtype(dtype).itemsize
                raise MemoryError(f"the device has no {nbytes} bytes for an array of shape {shape}") from error
            raise

    def scratch(self, size: int) -> Address:
        """So many float64 numbers, which the next call of this thread on this stream overwrites.

        They are kept: freeing memory waits for the device.
        """
        kept = _scratch.__dict__.setdefault("kept", {})
        key = self.device, _same(self.handle)
        if key not in kept or kept[key].size < size:
            kept[key] = self.empty((size,), np.float64)
        return address(pointer_of(kept[key]), kept[key].size, np.float64)


def _same(handle: int) -> int:
    """The default stream has two handles."""
    return LEGACY if handle == 0 else handle


@functools.lru_cache(maxsize=256)
def _stream(device: int, handle: int) -> Any:
    """Numba's object for a stream, or 0."""
    del device  # a handle may come again on another one
    return 0 if handle == 0 or SIMULATED else cuda.external_stream(handle)


@functools.lru_cache(maxsize=1024)
def _configured(kernel: Any, grid: int, threads: int, device: int, handle: int) -> Callable[..., None]:
    with warnings.catch_warnings():  # few blocks are what small tensors need
        warnings.simplefilter("ignore", NumbaPerformanceWarning)
        configured: Callable[..., None] = kernel[grid, threads, _stream(device, handle)]
    return configured


def _at_once(kernel: Any, threads: int, device: int, *arguments: Any) -> int:
    """How many blocks of a kernel the device runs at once; 0 where blocks cannot wait for each other.

    All that it runs, on whatever stream, is counted as gone by then: a cooperative launch waits for its room.
    """
    if SIMULATED:
        return int(kernel.overloads[()].max_cooperative_grid_blocks(threads))
    key = kernel, threads, device
    if key not in _most:
        from numba.cuda.cudadrv.libs import get_cudalib

        library = Path(get_cudalib("cudadevrt", static=True))  # has what blocks wait with
        possible = cuda.current_context().device.COOPERATIVE_LAUNCH and library.is_file()
        compiled = kernel.compile(tuple(map(kernel.typeof_pyval, arguments))) if possible else None
        _most[key] = compiled.max_cooperative_grid_blocks(threads) if compiled else 0
    return _most[key]


def current_device() -> int:
    """The number of the device that this thread works on. ``RuntimeError`` where there is none."""
    try:
        number: int = cuda.current_context().id if SIMULATED else cuda.current_context().device.id
    except Exception as error:
        raise RuntimeError(f"fastbn.cuda: expected a CUDA device and its driver, got none ({error})") from error
    return number


def device_of(pointer: int) -> int | None:
    """The number of the device that memory is on; ``None`` for an address that CUDA does not know."""
    if SIMULATED:
        return 0
    from cuda.bindings import driver

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, number = driver.cuPointerGetAttribute(attribute, pointer)
    return int(number) if error == driver.CUresult.CUDA_SUCCESS else None


def require_here(name: str, pointer: int) -> None:
    """Memory of the current device."""
    here, there = current_device(), device_of(pointer)
    if there is None:
        raise ValueError(f"{name}: expected memory of a device, got the address {pointer:#x}, which CUDA does not know")
    if there != here:
        raise ValueError(
            f"{name}: expected memory of the current device, {here}, got that of device {there} "
            f"(with numba.cuda.gpus[{there}]: makes it the current one)"
        )


def pointer_of(array: Any) -> int:
    """The address of an array that ``Stream.empty`` gave."""
    return int(array.ctypes.data if SIMULATED else array.device_ctypes_pointer.value or 0)


def address(pointer: int, size: int, dtype: Any) -> Address:
    """What kernels take: the number, or in the simulator the memory itself."""
    if not SIMULATED:
        return pointer
    nbytes = size * np.dtype(dtype).itemsize
    memory = (ctypes.c_char * nbytes).from_address(pointer) if nbytes else b""
    return Memory(np.frombuffer(memory, dtype))


def to_device(array: Array) -> Any:
    """A copy on the current device."""
    current_device()  # or an exception that says that there is none
    return cuda.to_device(array)


def read(array: Any) -> Array:
    """A copy in host memory of a view whose values lie side by side; waits for the device."""
    if SIMULATED:
        return address(array.pointer, array.size, array.dtype).values.copy()
    copy: Array = cuda.as_cuda_array(array.owner).copy_to_host()
    return copy


def write(array: Any, values: Array) -> None:
    """Overwrite such an array; waits for the device."""
    if SIMULATED:
        address(array.pointer, array.size, array.dtype).values[:] = values
    else:
        cuda.as_cuda_array(array.owner).copy_to_device(values)
        cuda.synchronize()
