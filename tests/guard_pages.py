"""Every operation on arrays that begin or end where memory does, to be killed where it goes further.

``python -m tests.guard_pages [large]``. Pages that nobody may touch lie before and behind every array. Where an array
does not fill its pages, what is around it must be as it was, and outputs are NaN before each call.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from unittest import mock

import numpy as np

import fastbn
from fastbn import compiled
from fastbn.kernels import calls
from tests.data_for_tests import other_plans, same_bits, streamed_from, threads_for_eight

PAGE = mmap.PAGESIZE
CANARY = 0xA5
SIZE = 5 << 20


class Guarded:
    """Memory between two pages that nobody may touch."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.memory = mmap.mmap(-1, size + 2 * PAGE)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (0, size + PAGE):
            address = ctypes.c_void_p(self.bytes.ctypes.data + page)
            assert libc.mprotect(address, ctypes.c_size_t(PAGE), 0) == 0
        self.inside = self.bytes[PAGE : PAGE + size]

    def array(self, like: np.ndarray, at_end: bool) -> np.ndarray:
        """A copy that touches one of the two pages, in the strides of C order."""
        start = self.size - like.nbytes if at_end else 0
        self.used = slice(start, start + like.nbytes)
        self.around = [slice(max(0, start - PAGE), start), slice(self.used.stop, self.used.stop + PAGE)]
        for part in self.around:
            self.inside[part] = CANARY
        array = self.inside[self.used].view(like.dtype).reshape(like.shape)
        array[...] = like
        return array

    def is_whole(self) -> bool:
        """Whether nothing was written around the array."""
        return all((self.inside[part] == CANARY).all() for part in self.around)


NAMES = "x", "dout", "out", "dx", "gamma", "beta", "mean", "var"
MEMORY = {name: Guarded() for name in NAMES}


def everything(a, axis, at_end, place):
    """Results of all operations, for arrays that ``place`` put somewhere."""

    def buffer(name):
        return place(name, np.full_like(a["x"], np.nan), at_end)

    given = {name: place(name, values, at_end) for name, values in a.items()}
    x, dout, gamma, beta = (given[name] for name in ("x", "dout", "gamma", "beta"))
    statistics = given["mean"], given["var"]
    results = []
    out, cache = fastbn.forward(x, gamma, beta, *statistics, axis=axis, out=buffer("out"))
    results += [out.copy(), *(array.copy() for array in statistics), cache.mean, cache.inv_std]
    results += [array.copy() for array in fastbn.backward(dout, cache, out=buffer("dx"))]
    results += [fastbn.inference(x, *statistics, gamma, beta, axis=axis, out=buffer("out")).copy()]
    results += [fastbn.normalize(x, *statistics, gamma, beta, axis=axis, out=buffer("out")).copy()]
    results += [fastbn.FrozenBatchNorm(*statistics, gamma, beta, axis=axis)(x, out=buffer("out")).copy()]
    results += [fastbn.moments(x, axis=axis).var]
    sums = fastbn.backward_sums(dout, x, *statistics, axis=axis)
    results += sums
    arguments = dout, x, *statistics, gamma, *sums, 7
    results += [fastbn.backward_input(*arguments, axis=axis, out=buffer("dx")).copy()]
    results += [fastbn.backward(dout, cache, out=dout).dx.copy()]
    results += [fastbn.inference(x, *statistics, gamma, beta, axis=axis, out=x).copy()]
    return results


def compiled_calls(a, at_end, place):
    """The functions for compiled callers, which take any vectors as they are."""
    given = {name: place(name, values, at_end) for name, values in a.items()}
    x, dout, gamma, beta = (given[name] for name in ("x", "dout", "gamma", "beta"))
    out, dx = (place(name, np.full_like(a["x"], np.nan), at_end) for name in ("out", "dx"))
    mean, var, inv_std = compiled.forward(x, gamma, beta, 1e-5, out)
    results = [out.copy(), mean, var, inv_std, *compiled.backward(dout, x, gamma, mean, inv_std, dx), dx.copy()]
    compiled.inference(x, given["mean"], given["var"], gamma, beta, 1e-5, out)
    compiled.update_running(given["mean"], given["var"], mean, var, 10, 0.1, 1.0)
    return [*results, out.copy(), given["mean"].copy(), given["var"].copy()]


def guarded(name, values, at_end):
    return MEMORY[name].array(values, at_end)


def ordinary(name, values, at_end):
    return np.array(values)


def check(shape, axis, dtype):
    """The same bits as elsewhere in memory, nothing around the arrays written, nothing beyond touched."""
    rng = np.random.default_rng(0)
    channels = shape[axis]
    a = {name: rng.standard_normal(shape).astype(dtype) for name in ("x", "dout")}
    a |= {name: rng.uniform(1, 2, channels).astype(dtype) for name in ("gamma", "beta", "mean", "var")}
    for at_end in (False, True):
        for function, arguments in ((everything, (a, axis, at_end)), (compiled_calls, (a, at_end))):
            if function is compiled_calls and (len(shape), axis) != (3, 1):
                continue
            expected = function(*arguments, ordinary)
            for actual, values in zip(function(*arguments, guarded), expected, strict=True):
                assert same_bits(actual, values), (shape, axis, dtype, at_end, function)
            assert all(memory.is_whole() for memory in MEMORY.values()), (shape, axis, dtype, at_end, function)


SMALL = [
    *(((3, channels), 1) for channels in range(1, 70)),
    *(((2, 3, inner), 1) for inner in range(2, 70)),
    *(((rows, 17), 1) for rows in (2, 7, 8, 9, 33)),
    *(((2, channels, 5), 1) for channels in (1, 2, 7, 30)),
    *(((1, 4, 256), 1), ((4, 256), 1), ((2, 512, 1), 1), ((16, 64), 0), ((64, 16), -1)),  # whole pages
]
LARGE = [((65, 1024), 1), ((1024, 65), 1), ((1025, 100), -1), ((7, 3, 3200), 1), ((9, 300, 27), 1), ((2, 1025, 33), 1)]
LARGE += [
    ((40, 60, 49), 1),
    ((1, 2, 40961), 1),
    ((70001, 1), 1),
    ((1366, 16, 3), 1),
    ((64, 16, 64), 1),
]
SHAPES = {"small": SMALL, "large": LARGE, "lagging": [((33, 70, 257), 1)]}


def main(sizes: str) -> None:
    """These shapes in both dtypes, as they are called, the general way, and with plans for large tensors."""
    thresholds = {
        **streamed_from(1),
        "pay": threads_for_eight,
        "TASKS": 5,
        "MIN_ROWS": 2,
        "LEAST_CHUNKS": 1,
    }
    count = 0
    for (shape, axis), dtype in itertools.product(SHAPES[sizes], (np.float32, np.float64)):
        check(shape, axis, dtype)
        with mock.patch.object(calls, "WAY", [lambda *_: -1]):
            check(shape, axis, dtype)
            with other_plans(**thresholds):
                check(shape, axis, dtype)
        count += 3
    print(f"{count} checks")


if __name__ == "__main__":
    if sys.argv[1:] == ["fault"]:
        array = MEMORY["x"].array(np.zeros(16, np.float32), at_end=True)
        ctypes.c_float.from_address(array.ctypes.data + array.nbytes).value  # noqa: B018
    main(sys.argv[1])
