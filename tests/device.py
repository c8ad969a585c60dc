"""Arrays on a device for the tests: Numba's, and those of some other library."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import threading

import numba
import numpy as np
import pytest

INSTALLED = importlib.util.find_spec("numba_cuda") is not None
SIMULATED = bool(numba.config.ENABLE_CUDASIM)


AT_ONCE = 3
"""Blocks of a cooperative kernel in the simulator."""


def shared_array(self, shape, dtype, alignment=None):
    """One array for all threads of a block: the simulator's own gives some of them others, if they ask at once."""
    caller = sys._getframe(1)
    place = caller.f_code.co_filename, caller.f_lineno, *threading.current_thread().blockIdx
    return self._allocations.setdefault(place, np.empty(shape, dtype))


class Thread(threading.Thread):
    """One of a kernel, which waits for its block's or for all."""

    def __init__(self, work, block, thread, of_block, of_grid):
        super().__init__(target=work, daemon=True)
        self.blockIdx, self.threadIdx = block, thread
        self.of_block, self.of_grid, self.error = of_block, of_grid, None

    def run(self):
        sys.settrace(None)  # coverage, which measures no kernels
        try:
            super().run()
        except Exception as error:
            self.error = error
            self.of_block.abort()
            self.of_grid.abort()

    def syncthreads(self):
        self.of_block.wait()


def run_together(function, blocks, threads, *arguments):
    """Blocks of a kernel at once. Where one thread waits for the others, each of them has to come.

    The simulator's own blocks run one after the other, so that those of a cooperative kernel wait for themselves, and
    are polled, which takes four times as long. Which thread goes ahead is drawn: none may read what another one, ahead
    of it by chance, has already written.
    """
    from numba.cuda.simulator.kernelapi import Dim3

    of_grid = threading.Barrier(len(blocks) * threads, timeout=60)
    of_blocks = {i: threading.Barrier(threads, timeout=60) for i in blocks}
    started = [
        Thread(lambda: function(*arguments), Dim3(i, 0, 0), Dim3(t, 0, 0), of_blocks[i], of_grid)
        for i in blocks
        for t in range(threads)
    ]
    random.Random(0).shuffle(started)
    for each in started:
        each.start()
    for each in started:
        each.join()
    errors = [each.error for each in started if each.error is not None]
    if errors:
        raise min(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError))


def patch_the_simulator():
    from numba.cuda.simulator import kernel, kernelapi

    class Manager(kernel.BlockManager):
        def run(self, point, *arguments):
            together = "cg" in self._f.__code__.co_names
            if not together or not any(point):
                blocks = range(self._grid_dim[0]) if together else [point[0]]
                run_together(self._f, blocks, self._block_dim[0], *arguments)

    kernel.BlockManager = Manager
    kernel.FakeOverload.max_cooperative_grid_blocks = lambda self, threads: AT_ONCE
    kernelapi.GridGroup.sync = lambda self: threading.current_thread().of_grid.wait()
    kernelapi.FakeCUDAShared.array = shared_array
    return Manager.__base__


POLLED = patch_the_simulator() if SIMULATED and INSTALLED else None
"""The simulator's own way to run a block."""


def usable():
    if not INSTALLED:
        return False
    from numba import cuda

    return SIMULATED or cuda.is_available()


USABLE = usable()
if USABLE:
    importlib.import_module("fastbn.cuda")
needs_device = pytest.mark.skipif(not USABLE, reason="needs numba-cuda, and a GPU or NUMBA_ENABLE_CUDASIM=1")


class Foreign:
    """What another library's array is to fastbn: an object with the interface, which keeps its memory alive."""

    def __init__(self, memory, **changes):
        self.memory = memory
        self.__cuda_array_interface__ = {
            "shape": tuple(memory.shape),
            "strides": None,
            "typestr": memory.dtype.str,
            "data": (address(memory), False),
            "version": 3,
            "stream": None,
        } | changes

    @property
    def shape(self):
        return self.__cuda_array_interface__["shape"]

    def copy_to_host(self):
        interface = self.__cuda_array_interface__
        offset = interface["data"][0] - address(self.memory)
        values = self.memory.copy_to_host().reshape(-1)
        return np.ndarray(self.shape, interface["typestr"], values, offset, interface["strides"])


def address(array):
    return array.ctypes.data if SIMULATED else array.device_ctypes_pointer.value


def put(array):
    """A copy on the device, in the same order in memory."""
    from numba import cuda

    if array.flags.c_contiguous:
        return cuda.to_device(array)
    order = sorted(range(array.ndim), key=lambda i: -array.strides[i])
    memory = cuda.to_device(np.ascontiguousarray(array.transpose(order)))
    return Foreign(memory, shape=array.shape, strides=array.strides)


def put_askew(array):
    """A copy that begins one value after where a wide access could."""
    from numba import cuda

    memory = cuda.to_device(np.concatenate([np.zeros(1, array.dtype), array.reshape(-1)]))
    return Foreign(memory, shape=array.shape, data=(address(memory) + array.itemsize, False))


def get(array):
    return array.copy_to_host()


def nan_like(x):
    """A place for a result that lies in memory as ``x`` does."""
    return put(np.full_like(x, np.nan))
