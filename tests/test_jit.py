"""Compilation: twins, vector code, the guards around launches."""

from __future__ import annotations

import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import pytest
from numba import types

import fastbn
from fastbn.kernels import (
    channels_first,
    channels_last,
    chunk_gradients,
    chunk_outputs,
    chunk_tasks,
    columns,
    groups,
    prefetch,
    processor,
    rows,
)
from fastbn.kernels.twins import Kernel
from tests.data_for_tests import same_bits, tensor

KERNELS = [
    kernel
    for module in (channels_first, channels_last)
    for kernel in vars(module).values()
    if isinstance(kernel, Kernel)
]


def call_with(kernel, rng, dtype, shape, parallel, streaming):
    """Run a twin on arguments that depend on ``rng`` alone; the arrays afterwards."""
    names = kernel.body.__code__.co_varnames[: kernel.body.__code__.co_argcount]
    channels = shape[1] if len(shape) == 3 else shape[2]
    size = math.prod(shape)
    arguments = {}
    for name in names:
        if name in ("x", "dout"):
            arguments[name] = rng.standard_normal(size).astype(dtype)
        elif name in ("out", "dx"):
            arguments[name] = np.full(size, np.nan, dtype)
        elif name == "coefficients":
            arguments[name] = rng.standard_normal((3 if "dout" not in names else 4, channels)).astype(dtype)
        elif name not in ("shape", "segments", "eps", "streaming"):
            arguments[name] = np.linspace(0.5, 1.5, channels)
    segments = min(3, rows.blocks_of(shape[0], shape[2])) if len(shape) == 3 else 3
    given = {**arguments, "shape": shape, "segments": segments, "eps": 1e-5, "streaming": streaming}
    kernel(parallel, *(given[name] for name in names))
    return list(arguments.values())


FIRST = [(5, 4, 61), (3, 4, 4500), (9, 70, 16), (2, 2, 40_000)]
LAST = [(203, 1, 4, 1), (29, 8, 4, 1), (20, 1, 16, 3), (20, 1, 4, 4), (3, 1, 600, 1), (9, 1, 1776, 1), (9, 1, 901, 1)]
LAST += [(27, 1, 528, 1)]  # two rows at a time, and one


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.body.__module__.rpartition('.')[2]}.{k.body.__name__}")
def test_twins_and_stores_give_the_same_bits(kernel, dtype):
    for shape in FIRST if kernel.body.__module__.endswith("channels_first") else LAST:
        results = [
            call_with(kernel, np.random.default_rng(0), dtype, shape, parallel, streaming)
            for parallel in (False, True)
            for streaming in (False, True)
        ]
        for result in results:
            for a, b in zip(result, results[0], strict=True):
                assert same_bits(a, b)
                assert not np.isnan(a).any()


def test_there_are_eight_kernels_a_layout():
    assert len(KERNELS) == 16


INT, B, F32, F64 = types.int64, types.boolean, types.float32, types.float64
P32, P64 = types.CPointer(F32), types.CPointer(F64)
THREE, FOUR = types.UniTuple(P32, 3), types.UniTuple(P32, 4)
LOOPS = {
    rows._add_squares: (P32, INT, INT, F64, INT, P64, P64),
    rows._add_products: (P32, P32, INT, INT, F64, INT, P64, P64),
    groups.normalize_run: (P32, P32, INT, INT, INT, INT, INT, B, THREE, B),
    groups.gradient_run: (P32, P32, P32, INT, INT, INT, INT, INT, B, FOUR, B),
    columns._add_squares: (P32, INT, INT, INT, INT, INT, P64, P64, P64),
    columns._add_products: (P32, P32, INT, INT, INT, INT, INT, P64, P64, P64),
    chunk_outputs._normalize_rows: (P32, P32, INT, INT, INT, INT, THREE, B, B),
    chunk_outputs._normalize_pairs: (P32, P32, INT, INT, INT, INT, THREE, B),
    chunk_outputs._normalize_in_order: (P32, P32, INT, INT, INT, INT, THREE, B),
    chunk_gradients._gradient_rows: (P32, P32, P32, INT, INT, INT, INT, FOUR, B, B),
    chunk_gradients._gradient_pairs: (P32, P32, P32, INT, INT, INT, INT, FOUR, B),
    chunk_gradients._gradient_in_order: (P32, P32, P32, INT, INT, INT, INT, FOUR, B),
}


@pytest.mark.large
@pytest.mark.skipif(numba.core.config.MACHINE_BITS != 64, reason="x86-64 and arm64 only")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_inner_loops(loop):
    """Read the machine code: packed arithmetic, nothing that counts references, streaming stores for results."""
    loop.compile(LOOPS[loop])
    compiled = loop.overloads[LOOPS[loop]]
    assert compiled.library.get_pointer_to_function(compiled.fndesc.mangled_name)  # else it is as it was written
    body = loop.inspect_asm(LOOPS[loop])
    packed = re.findall(r"v?(?:fmadd|fmsub|fnmadd|mul|add|sub)\w*p[sd]\b|fml[as]\s+v\d+\.\d", body)
    assert len(packed) >= 4, "no packed arithmetic"
    assert "NRT" not in body
    if "streaming" in loop.py_func.__code__.co_varnames and platform.machine() == "x86_64":
        assert re.search(r"movntp[sd]", body), "no streaming store"
    if processor.HALVES and loop is columns._add_squares:
        assert "vfmadd" in body
        assert "zmm" not in body, "registers of 64 bytes"
        assert "vaddpd" not in body, "added by the adders"


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="its compiled code")
@pytest.mark.parametrize("threads", [1, 2])
def test_what_kernels_call_is_machine_code_in_them_alone(tmp_path, threads):
    """Numba would make it of each function, too, of every prange and its wrappers: half of the time of a first call."""
    code = f"""
import sys, numba, numpy as np, fastbn
from numba.core.codegen import JITCodeLibrary
numba.set_num_threads({threads})
finish = JITCodeLibrary._finalize_specific
JITCodeLibrary._finalize_specific = lambda library: (print(library.name), finish(library))[1]
x = np.ones((70_000, 32), np.float32)
_, cache = fastbn.forward(x)
fastbn.backward(x, cache)
"""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True)
    made = run.stdout.split()
    twin = "parallel" if threads > 1 else "serial"
    kernels = {f"{each}_by_{each}_in_phases_channels_last_{twin}" for each in ("forward", "backward")}
    assert kernels <= set(made)
    inside = (*vars(channels_last), *vars(chunk_tasks), *vars(columns), *vars(chunk_outputs), *vars(chunk_gradients))
    assert not [name for name in made if "gufunc" in name or name in inside or name.endswith("_linked")]


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="its compiled code")
def test_what_kernels_call_is_not_for_python():
    """It has no address; Numba would jump there."""
    loop = chunk_outputs._normalize_in_order
    loop.compile(LOOPS[loop])
    for function in (loop, chunk_outputs._normalize_part):
        arguments = next(iter(function.overloads))
        with pytest.raises(TypeError, match=f"{function.__name__} is for compiled code to call"):
            function(*arguments)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="its compiled code")
@pytest.mark.parametrize(
    ("loop", "called"),
    [
        (chunk_outputs._normalize_in_order, chunk_outputs._normalize_part),
        (chunk_gradients._gradient_in_order, chunk_gradients._gradient_part),
        (columns._add_squares, prefetch.onward),
    ],
    ids=lambda function: function.__name__,
)
def test_a_number_in_the_source_is_as_any_other(loop, called):
    """Numba would compile what is called with it for that number alone."""
    loop.compile(LOOPS[loop])
    assert called.overloads
    assert not [args for args in called.overloads if any(isinstance(each, types.Literal) for each in args)]


SUMS = """
import hashlib, numpy as np, fastbn
from fastbn import reference
digest = hashlib.sha256()
for shape in ((9, 20, 7, 7), (40, 20), (30, 64), (9, 20, 3, 3), (6, 20, 33, 33), (513, 19)):
    x, dout = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    out, cache = fastbn.forward(x)
    np.testing.assert_allclose(out, reference.forward(x)[0], atol=1e-5)
    dx, _, _ = fastbn.backward(dout, cache)
    np.testing.assert_allclose(dx, reference.backward(dout, x)[0], atol=1e-5)
    for each in (out, cache.mean, cache.inv_std, dx):
        digest.update(np.ascontiguousarray(each))
"""
HERE = llvmlite.binding.get_host_cpu_features()
PROCESSORS = [("haswell", "+avx2,+fma"), ("x86-64", "")] + [("znver4", HERE.flatten())] * (not processor.HALVES)


@pytest.mark.large
@pytest.mark.skipif(numba.config.DISABLE_JIT or platform.machine() != "x86_64", reason="its compiled code")
@pytest.mark.parametrize(("cpu", "features"), PROCESSORS, ids=lambda each: each[:10])
def test_processors_with_other_registers(cpu, features):
    """LLVM takes the lanes apart; a Zen 4 sums in registers of 32 bytes, by multiplying and adding; some lanes are
    stored in pieces: the same bits."""
    code = f"{SUMS}\nfrom fastbn.kernels import processor, registers"
    code += "\nprint(processor.HALVES, registers.MASKED, digest.hexdigest())"
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True)
    halves, masks, digest = run.stdout.split()
    assert halves == str(cpu == "znver4")
    assert masks == str("+avx512f" in features)
    if features and HERE.get("fma"):
        here: dict[str, Any] = {}
        exec(SUMS, here)
        assert digest == here["digest"].hexdigest()


@pytest.mark.large
def test_no_memory_is_used_after_it_is_freed():
    """Numba drops a kernel's own array after the last line that names it, whatever still has its address."""
    code = """
import numpy as np, fastbn
rng = np.random.default_rng(0)
for shape in ((4, 64), (5000, 70), (2, 3_000_000), (3, 5, 40, 41), (40, 3, 90, 90), (64, 20, 2, 2)):
    x, dout = rng.standard_normal((2, *shape), dtype=np.float32)
    axes = (0, *range(2, x.ndim))
    moments = fastbn.moments(x)
    np.testing.assert_allclose(moments.mean, x.mean(axes, dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(moments.var, x.var(axes, dtype=np.float64), rtol=1e-5)
    inv_std = 1 / np.sqrt(moments.var + 1e-5)
    sums = fastbn.backward_sums(dout, x, moments.mean, inv_std)
    np.testing.assert_allclose(sums[0], dout.sum(axes, dtype=np.float64), atol=1e-4)
    out, cache = fastbn.forward(x)
    gradients = fastbn.backward(dout, cache)
    assert np.isfinite(gradients.dx).all() and abs(gradients.dx.sum(axes, dtype=np.float64)).max() < 1e-2
"""
    environment = {**os.environ, "MALLOC_PERTURB_": "85"}  # the C library overwrites what is freed
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, timeout=300, check=True)


@pytest.mark.large
def test_workqueue_launches_are_serialised():
    """The layer that aborts the process when two launches meet; eight Python threads at once."""
    code = """
import threading, numpy as np, fastbn, numba
x = np.random.default_rng(0).standard_normal((64, 64, 9, 9)).astype(np.float32)
expected = fastbn.forward(x).out
results = []
def work():
    for _ in range(20):
        results.append(bool((fastbn.forward(x).out == expected).all()))
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert results == [True] * 160
assert numba.config.DISABLE_JIT or numba.threading_layer() == "workqueue"
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=300, check=True)


USES = {
    "a launch": "fastbn.forward(x)",
    "the number of threads": "numba.get_num_threads()",
    "the threading layer": "jit.threading_layer()",
    "serial twins only": "numba.set_num_threads(1); fastbn.forward(x); numba.set_num_threads(2)",
    "nothing": "pass",
}


@pytest.mark.large
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("use", USES)
def test_forked_children_go_on_working(use):
    """Whatever started the thread pool, a child uses the serial twins: GNU OpenMP would kill it."""
    code = f"""
import os, numpy as np, fastbn, numba
from fastbn.kernels import jit
x = np.random.default_rng(0).standard_normal((64, 64, 9, 9)).astype(np.float32)
{USES[use]}
child = os.fork()
expected = fastbn.forward(x).out
if child == 0:
    grandchild = os.fork()
    good = bool((fastbn.forward(x).out == expected).all())
    if grandchild == 0:
        os._exit(0 if good else 1)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) if good else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (fastbn.forward(x).out == expected).all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=300, check=True)


@pytest.mark.large
def test_a_missing_threading_layer_costs_speed_only():
    code = """
import numpy as np, fastbn
x = np.random.default_rng(0).standard_normal((64, 64, 9, 9)).astype(np.float32)
assert abs(fastbn.forward(x).out.mean()) < 1e-6
assert abs(fastbn.forward(x).out.mean()) < 1e-6
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "no_such_layer", "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("RuntimeWarning: fastbn runs on one thread") == 1


@pytest.mark.large
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POFOUR timers")
def test_signal_handlers_may_call_fastbn():
    """Even while a launch is serialised."""
    code = """
import signal, numpy as np, fastbn
x = np.random.default_rng(0).standard_normal((64, 64, 9, 9)).astype(np.float32)
fastbn.forward(x)
calls = []
def handle(*_):
    calls.append(fastbn.forward(x))
    signal.setitimer(signal.ITIMER_REAL, 1e-3)  # not before: where a call takes longer, handlers would never end
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 1e-3)
while len(calls) < 50:
    fastbn.forward(x)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=True)


def test_the_thread_count_of_the_caller_is_respected(rng):
    numba.set_num_threads(1)
    x = tensor(rng, (64, 64, 9, 9))
    fastbn.forward(x)
    assert numba.get_num_threads() == 1


def test_python_threads_share_a_layer(rng):
    layer = fastbn.BatchNorm2d(16).eval()
    x = tensor(rng, (8, 16, 30, 30) if not numba.config.DISABLE_JIT else (2, 16, 3, 3))
    expected = layer(x)
    failures = []

    def work():
        failures.extend(not same_bits(layer(x), expected) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(failures)
