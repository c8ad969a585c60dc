"""oneDNN's batch normalization through its C API and ctypes: as much of it as a benchmark needs.

The library is that of the PyPI package ``onednn-cpu-gomp``, which has neither headers nor Python code. The numbers
below are those of the public headers ``dnnl_types.h`` and ``dnnl_common_types.h`` of oneDNN 3, whose C API is stable.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Mapping
from ctypes import byref, c_float, c_int, c_int64, c_uint, c_void_p
from importlib import metadata
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

PACKAGE = "onednn-cpu-gomp"
STATUS = {1: "out of memory", 2: "invalid arguments", 3: "unimplemented", 4: "no implementation left", 5: "run time"}
DATA_TYPES = {"float16": 1, "float32": 3, "float64": 7}
VECTOR = 2
"""The format tag of one dimension."""
TENSORS = {"NCHW": 5, "NHWC": 22, "nChw8c": 102, "nChw16c": 78}
"""Format tags of four dimensions."""
BLOCKS = {"nChw8c": 8, "nChw16c": 16}
"""The channels of a block, in layouts in which each block of channels lies together at every pixel."""
ARGUMENTS = {
    "src": 1,
    "dst": 17,
    "mean": 49,
    "variance": 50,
    "scale": 51,
    "shift": 52,
    "diff_src": 129,
    "diff_dst": 145,
    "diff_scale": 255,
    "diff_shift": 256,
}
CPU, IN_ORDER = 1, 1
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
GLOBAL_STATISTICS, SCALE, SHIFT = 1, 2, 4
IMPLEMENTATION = 8
"""What to ask a description for the name of the code that would run."""


class RefusedError(RuntimeError):
    """A call that did not return success."""


class _Argument(ctypes.Structure):
    """``dnnl_exec_arg_t``."""

    _fields_ = (("index", c_int), ("memory", c_void_p))


@functools.cache
def _library() -> ctypes.CDLL:
    """The shared library, wherever the package was installed to."""
    for file in metadata.files(PACKAGE) or ():
        if file.name == "libdnnl.so.3":
            try:
                return ctypes.CDLL(str(file.locate()))
            except OSError as error:
                raise ImportError(str(error)) from error
    raise ImportError(f"{PACKAGE} has no libdnnl.so.3")


def set_threads(threads: int) -> None:
    """For calls from this thread. The symbol is looked up in the OpenMP library that oneDNN itself is linked to."""
    _library().omp_set_num_threads(threads)


def get_threads() -> int:
    """As many as oneDNN will use."""
    return int(_library().omp_get_max_threads())


def _make(function: str, *arguments: Any) -> c_void_p:
    """The object that a ``create`` function of the C API writes to its first argument."""
    handle = c_void_p()
    status = getattr(_library(), function)(byref(handle), *arguments)
    if status:
        raise RefusedError(f"{function}: {STATUS.get(status, status)}")
    return handle


@functools.cache
def _engine() -> c_void_p:
    return _make("dnnl_engine_create", c_int(CPU), ctypes.c_size_t(0))


@functools.cache
def _stream() -> c_void_p:
    return _make("dnnl_stream_create", _engine(), c_uint(IN_ORDER))


@functools.cache
def _descriptor(shape: tuple[int, ...], dtype: str, tag: int) -> c_void_p:
    """How an array lies in memory."""
    dims = (c_int64 * 12)(*shape)
    number = c_int(DATA_TYPES[dtype])
    return _make("dnnl_memory_desc_create_with_tag", c_int(len(shape)), dims, number, c_int(tag))


class BatchNorm:
    """One operation on given arrays: calling it runs it.

    ``operation`` is ``"forward"`` (src, scale, shift; writes dst, mean, variance), ``"inference"`` (src, scale, shift,
    mean, variance; writes dst) or ``"backward"`` (diff_dst, src, scale, mean, variance; writes diff_src, diff_scale,
    diff_shift). Tensors are arrays of any shape that hold the values of a tensor of ``shape`` in the order of
    ``layout``; the other arrays are (C,) and float32.
    """

    def __init__(
        self, operation: str, layout: str, shape: tuple[int, ...], eps: float, arrays: Mapping[str, Array]
    ) -> None:
        library = _library()
        tensor = _descriptor(shape, next(iter(arrays.values())).dtype.name, TENSORS[layout])
        vector = _descriptor(shape[1:2], "float32", VECTOR)
        description = _describe(operation, tensor, eps)
        try:
            if layout in BLOCKS and _implementation(description).startswith("ref"):
                raise RefusedError(f"only the reference code takes {layout} on this processor")
            self._primitive = _make("dnnl_primitive_create", description)
        finally:
            library.dnnl_primitive_desc_destroy(description)
        memories = [
            _make("dnnl_memory_create", vector if array.ndim == 1 else tensor, _engine(), c_void_p(array.ctypes.data))
            for array in arrays.values()
        ]
        self._arrays = arrays  # oneDNN has but their addresses
        self._arguments = (_Argument * len(arrays))(
            *(_Argument(ARGUMENTS[name], memory) for name, memory in zip(arrays, memories, strict=True))
        )
        self._execute, self._wait, self._stream = library.dnnl_primitive_execute, library.dnnl_stream_wait, _stream()
        weakref.finalize(self, _destroy, self._primitive, memories)

    def __call__(self) -> None:
        status = self._execute(self._primitive, self._stream, len(self._arguments), self._arguments)
        self._wait(self._stream)
        if status:
            raise RefusedError(f"dnnl_primitive_execute: {STATUS.get(status, status)}")


def _describe(operation: str, tensor: c_void_p, eps: float) -> c_void_p:
    """The primitive descriptor of an operation whose tensors are all described by ``tensor``."""
    inference = operation == "inference"
    kind = FORWARD_INFERENCE if inference else FORWARD_TRAINING
    flags = SCALE | SHIFT | (GLOBAL_STATISTICS if inference else 0)
    function = "dnnl_batch_normalization_{}_primitive_desc_create"
    rest = c_float(eps), c_uint(flags)
    forward = _make(function.format("forward"), _engine(), c_int(kind), tensor, tensor, *rest, None)
    if operation != "backward":
        return forward
    try:
        gradients = c_int(BACKWARD), tensor, tensor, tensor
        return _make(function.format("backward"), _engine(), *gradients, *rest, forward, None)
    finally:
        _library().dnnl_primitive_desc_destroy(forward)


def _implementation(description: c_void_p) -> str:
    """The name of the code that would run."""
    name = ctypes.c_char_p()
    status = _library().dnnl_primitive_desc_query(description, c_int(IMPLEMENTATION), c_int(0), byref(name))
    if status:
        raise RefusedError(f"dnnl_primitive_desc_query: {STATUS.get(status, status)}")
    return (name.value or b"").decode()


def _destroy(primitive: c_void_p, memories: list[c_void_p]) -> None:
    library = _library()
    library.dnnl_primitive_destroy(primitive)
    for memory in memories:
        library.dnnl_memory_destroy(memory)
