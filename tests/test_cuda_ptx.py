"""What NVIDIA's compiler makes of the kernels, for an H100. Needs no GPU, but the compiler."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import fastbn
from tests.device import INSTALLED, SIMULATED

THREADS = 256


def compiler():
    if not INSTALLED or SIMULATED or numba.config.DISABLE_JIT:
        return False
    try:
        from numba.cuda.cudadrv.nvvm import NVVM

        return bool(NVVM())
    except Exception:  # no library, or one that cannot be loaded
        return False


pytestmark = pytest.mark.skipif(
    not compiler(), reason="needs NVIDIA's compiler (extra cuda12 or cuda13), and not the simulator"
)

CC = (9, 0)
WAITS = ["cudaCGGetIntrinsicHandle", "cudaCGSynchronize"]
"""What a cooperative kernel calls: its grid, and wait for that, once a group."""

# (kernel, tensors that it reads, how often it goes over them, tensors that it writes)
PLANES = [
    ("batch_stats", 1, 1, 0),
    ("normalize", 1, 1, 1),
    ("backward_sums", 2, 1, 0),
    ("backward_input", 2, 1, 1),
    ("forward", 1, 2, 1),
    ("backward", 2, 2, 1),
]
GROUPED = [("forward_grouped", 1, 2, 1), ("backward_grouped", 2, 2, 1)]
COLUMNS = PLANES[:4] + GROUPED
CASES = [("cuda_planes", *case) for case in PLANES + GROUPED] + [("cuda_columns", *case) for case in COLUMNS]


def signatures(shape):
    from numba import types

    i, f = types.int64, types.float64
    cuts, parameter = types.UniTuple(i, 3), types.UniTuple(i, 2)
    return {
        "batch_stats": (i, shape, cuts, i),
        "normalize": (i, i, shape, cuts, parameter, parameter, f, parameter, parameter),
        "backward_sums": (i, i, shape, cuts, parameter, i),
        "backward_input": (i, i, i, shape, cuts, *[parameter] * 5, f),
        "forward": (i, i, shape, f, parameter, parameter, i),
        "backward": (i, i, i, shape, *[parameter] * 5, f),
        "forward_grouped": (i, i, shape, cuts, i, i, f, parameter, parameter, i),
        "backward_grouped": (i, i, i, shape, cuts, i, i, *[parameter] * 5, f),
        "merge_stats": (i, i, i, cuts, i, i, i, i, f, i),
        "add_sums": (i, cuts, i, i, *[parameter] * 6),
        "keep_given": (parameter, parameter, f, i, i),
        "merge_given": (f, parameter, parameter, f, parameter, parameter, f, i, i),
        "update_running": (parameter, parameter, i, i, f, f),
    }


@functools.cache
def compiled(module, kernel, dtype, width, aligned, cc):
    from numba import cuda, types

    from fastbn.kernels import cuda_columns, cuda_planes
    from fastbn.kernels.cuda import kernels

    module, ndim = {"cuda_planes": (cuda_planes, 3), "cuda_columns": (cuda_columns, 4)}[module]
    function = getattr(kernels(module, np.dtype(dtype), width, aligned), kernel).py_func
    return cuda.compile_ptx(function, signatures(types.UniTuple(types.int64, ndim))[kernel], cc=cc)[0]


@pytest.fixture
def ptx(monkeypatch):
    import numba.cuda.dispatcher

    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=CC))
    return lambda module, kernel, dtype, width, aligned=True, cc=CC: compiled(module, kernel, dtype, width, aligned, cc)


def in_a_row(text, instruction, other):
    """The longest run of one instruction without another between."""
    order = re.findall(rf"{instruction}|{other}", text)
    runs = re.findall(r"x+", "".join("x" if re.fullmatch(instruction, each) else " " for each in order))
    return max(map(len, runs), default=0)


def calls(text):
    return re.findall(r"call\.uni[^;]*?(\w+),\s*\(", text)


@pytest.mark.parametrize(("dtype", "width", "kind"), [(np.float32, 4, "v4.f32"), (np.float64, 2, "v2.f64")])
@pytest.mark.parametrize(("module", "kernel", "reads", "passes", "writes"), CASES)
def test_wide_accesses_several_in_flight(ptx, module, kernel, reads, passes, writes, dtype, width, kind):
    text = ptx(module, kernel, dtype, width)
    loads, stores = rf"ld\.global\.{kind}", rf"st\.global\.{kind}"
    assert len(re.findall(loads, text)) >= 5 * reads * passes  # four in the loop and one behind it
    assert len(re.findall(stores, text)) >= 5 * writes
    assert in_a_row(text, loads, rf"{stores}|bra") >= 4 * reads
    assert ".local" not in text  # no spills, no arrays outside of registers
    assert calls(text) == (WAITS if "grouped" in kernel else [])
    shuffles = len(re.findall(r"shfl\.sync", text))
    assert (shuffles > 0) == (module == "cuda_planes" and kernel not in ("normalize", "backward_input"))


@pytest.mark.parametrize(
    ("dtype", "width", "aligned"), [(np.float32, 1, True), (np.float32, 4, False), (np.float64, 2, False)]
)
@pytest.mark.parametrize(("module", "kernel"), [case[:2] for case in CASES])
def test_single_accesses_elsewhere(ptx, module, kernel, dtype, width, aligned):
    text = ptx(module, kernel, dtype, width, aligned)
    assert not re.findall(r"(?:ld|st)\.global\.v", text)
    assert ".local" not in text
    assert calls(text) == (WAITS if "grouped" in kernel else [])


@pytest.mark.parametrize("cc", [(8, 0), CC])
@pytest.mark.parametrize(("dtype", "width"), [(np.float32, 4), (np.float32, 1), (np.float64, 2)])
@pytest.mark.parametrize("kernel", ["forward_grouped", "backward_grouped"])
@pytest.mark.parametrize("module", ["cuda_planes", "cuda_columns"])
def test_cooperative_kernels_link_and_do_not_spill(ptx, module, kernel, dtype, width, cc):
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba.cuda.cudadrv.libs import get_cudalib

    library = Path(get_cudalib("cudadevrt", static=True))
    if not library.is_file():
        pytest.skip("no libcudadevrt: a device would run the phases")
    text = ptx(module, kernel, dtype, width, cc=cc)
    parts = ObjectCode.from_ptx(text.encode()), ObjectCode.from_library(library.read_bytes())
    linker = Linker(*parts, options=LinkerOptions(arch="sm_{}{}".format(*cc), ptxas_options=["-v"]))
    linker.link("cubin")
    said = linker.get_info_log()
    assert re.findall(r"(\d+) bytes (?:stack|spill)", said) == ["0", "0", "0"]
    (registers,) = map(int, re.findall(r"Used (\d+) registers", said))
    assert registers * THREADS <= 65536  # one block at least; two on an H100 but for one kernel
    if cc == CC and (module, kernel, dtype, width) != ("cuda_columns", "backward_grouped", np.float32, 4):
        assert 2 * registers * THREADS <= 65536


@pytest.mark.parametrize("kernel", ["merge_stats", "add_sums", "keep_given", "merge_given", "update_running"])
def test_the_kernels_per_channel(ptx, kernel):
    text = ptx("cuda_planes", kernel, np.float64, 1, False)
    assert ".local" not in text
    assert calls(text) == []


def test_float32_is_not_summed_value_by_value_in_float64(ptx):
    """Three conversions for four loads of four, in the loop; one for each value only where float32's range ends."""
    text = ptx("cuda_planes", "batch_stats", np.float32, 4)
    blocks = re.split(r"^\$.*:$", text, flags=re.MULTILINE)
    loop = max(blocks, key=lambda block: block.count("ld.global.v4.f32"))
    assert loop.count("ld.global.v4.f32") == 4
    assert loop.count("cvt.f64.f32") <= 3


def test_small_grids_are_no_reason_to_warn(ptx):
    """As Numba does of them, and warnings are errors here."""
    from fastbn.cuda import _driver
    from fastbn.kernels import cuda_planes
    from fastbn.kernels.cuda import kernels

    kernel = kernels(cuda_planes, np.dtype(np.float32), 4, True).normalize
    with pytest.warns(Warning, match="Grid size 1 "):
        kernel[1, 256]
    assert _driver._configured(kernel, 1, 256, 0, 0).griddim == (1, 1, 1)


class Pretended:
    """An array on a device, but for the device: nobody looks at its memory."""

    def __init__(self, shape, dtype, strides=None):
        self.shape, self.dtype, self.size = shape, np.dtype(dtype), int(np.prod(shape))
        pointer = next(PLACES)
        self.device_ctypes_pointer = SimpleNamespace(value=pointer)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "strides": strides,
            "data": (pointer, False),
            "version": 3,
        }

    def __getitem__(self, i):
        return Pretended(self.shape[1:], self.dtype)


PLACES = itertools.count(1 << 44, 1 << 36)


@functools.cache
def compiled_for(kernel, *arguments):
    from numba import cuda

    return cuda.compile_ptx(kernel.py_func, arguments, cc=CC)


@pytest.fixture
def launches(ptx, monkeypatch):
    """The kernels that calls would start, compiled for the very arguments that they would be given."""
    from fastbn.cuda import _driver

    started = []

    def configured(kernel, grid, threads, *_):
        def launch(*arguments):
            assert grid > 0
            assert threads % 32 == 0
            assert compiled_for(kernel, *map(numba.typeof, arguments))
            started.append(kernel.__name__.partition("_float")[0])

        return launch

    monkeypatch.setattr(_driver, "_configured", configured)
    monkeypatch.setattr(_driver, "_at_once", lambda *_: 264)
    monkeypatch.setattr(_driver, "current_device", lambda: 0)
    monkeypatch.setattr(_driver, "require_here", lambda name, pointer: None)
    monkeypatch.setattr(_driver.Stream, "empty", lambda self, *arguments: Pretended(*arguments))
    return started


@pytest.mark.parametrize(
    ("shape", "strides", "way"),
    [
        ((32, 64, 56, 56), None, "grouped"),
        ((32, 64, 56, 56), (802816, 4, 14336, 256), "grouped"),
        ((8, 64, 56, 56), None, "phases"),
        ((8, 64, 56, 56), (802816, 4, 14336, 256), "phases"),
        ((32, 64, 56, 56), None, "no cooperative launch"),
        ((32, 256, 14, 14), None, "fused"),
    ],
)
def test_calls_start_kernels_that_compile(launches, monkeypatch, shape, strides, way):
    """All but the launch itself, without a GPU: the kernels and the types of their arguments."""
    from fastbn.cuda import _driver

    if way == "no cooperative launch":
        monkeypatch.setattr(_driver, "_at_once", lambda *_: 0)
    one = {"grouped": "_grouped", "fused": ""}.get(way)
    x, dout = (Pretended(shape, np.float32, strides) for _ in range(2))
    gamma, beta, mean, var = (Pretended(shape[1:2], np.float32) for _ in range(4))
    out, cache = fastbn.forward(x, gamma, beta, mean, var)
    assert out.__cuda_array_interface__["strides"] == strides
    forward = ["batch_stats", "merge_stats", "normalize"] if one is None else [f"forward{one}"]
    assert launches == [*forward, "update_running"]
    launches.clear()
    fastbn.backward(dout, cache, out=dout)
    backward = ["backward_sums", "add_sums", "backward_input"]
    assert launches == (backward if one is None else [f"backward{one}"])
    launches.clear()
    fastbn.inference(x, mean, var, gamma, beta)
    assert launches == ["normalize"]
    launches.clear()
    moments = fastbn.moments(x).merge(fastbn.moments(x))
    fastbn.normalize(x, moments.mean, moments.inv_std(), gamma)
    fastbn.backward(dout, fastbn.forward(x, gamma, beta, mean, var, training=False)[1])
    wanted = ["batch_stats", "merge_stats"] * 2 + ["merge_given"] * 2 + ["normalize"]
    assert launches == [*wanted, "keep_given", "normalize", "backward_sums", "add_sums", "normalize"]


@pytest.mark.parametrize(("possible", "library", "blocks"), [(1, __file__, 264), (0, __file__, 0), (1, "nowhere", 0)])
def test_blocks_wait_for_each_other_where_the_device_can(monkeypatch, possible, library, blocks):
    from numba import cuda
    from numba.cuda.cudadrv import libs

    from fastbn.cuda import _driver

    asked = []

    class Kernel:
        typeof_pyval = staticmethod(numba.typeof)

        def compile(self, kinds):
            asked.append(kinds)
            return SimpleNamespace(max_cooperative_grid_blocks=lambda threads: threads + 8)

    device = SimpleNamespace(COOPERATIVE_LAUNCH=possible)
    monkeypatch.setattr(cuda, "current_context", lambda: SimpleNamespace(device=device))
    monkeypatch.setattr(libs, "get_cudalib", lambda name, static: library)
    kernel = Kernel()
    answers = [_driver._at_once(kernel, THREADS, 0, 1, (2.0,)) for _ in range(2)]
    assert answers == [blocks, blocks]
    assert len(asked) == (blocks > 0)  # only once
