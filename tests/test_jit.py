"""Compilation: twins, vector code, the guards around launches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest

import fastbn
from fastbn.kernels import channels_first, channels_last, columns, jit, rows
from fastbn.kernels.prefetch import prefetch
from tests.data_for_tests import same_bits, tensor

KERNELS = [
    kernel
    for module in (channels_first, channels_last)
    for kernel in vars(module).values()
    if isinstance(kernel, jit.Kernel)
]


def call_with(kernel, rng, dtype, shape, channels):
    """Run both twins on equal arguments; the arrays of each afterwards."""
    names = kernel.body.__code__.co_varnames[: kernel.body.__code__.co_argcount]
    tensors = {name: rng.standard_normal(shape).astype(dtype) for name in ("x", "dout")}
    values = {"segments": 3, "eps": 1e-5, "count": 40.0}
    results = []
    for parallel in (False, True):
        arguments = {}
        for name in names:
            if name in tensors:
                arguments[name] = tensors[name].copy()
            elif name in ("out", "dx"):
                arguments[name] = np.full(shape, np.nan, dtype)
            elif name in values:
                arguments[name] = values[name]
            else:
                arguments[name] = np.linspace(0.5, 1.5, channels)
        kernel(parallel, *arguments.values())
        results.append([value for value in arguments.values() if isinstance(value, np.ndarray)])
    return results


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.body.__module__.rpartition('.')[2]}.{k.body.__name__}")
def test_twins_give_the_same_bits(rng, kernel, dtype):
    first = kernel.body.__module__.endswith("channels_first")
    for shape in ((5, 4, 61), (3, 4, 4500)) if first else ((203, 1, 4), (29, 7, 4), (20, 1, 4 * 49), (20, 1, 4 * 100)):
        serial, parallel = call_with(kernel, rng, dtype, shape, 4)
        for a, b in zip(serial, parallel, strict=True):
            assert same_bits(a, b)
            assert not np.isnan(a).any()


def test_there_are_six_kernels_a_layout():
    assert len(KERNELS) == 12


LOOPS = {
    # inner loop -> (arguments, an instruction that proves vector arithmetic)
    rows._strip_squares: lambda v, s: (v, 0.5),
    rows._strip_products: lambda v, s: (v, v, 0.5),
    rows.normalize_row: lambda v, s: (v, v.copy(), s, s, s),
    rows.gradient_row: lambda v, s: (v, v, v.copy(), s, s, s, s, s, s),
    columns._add_squares4: lambda v, s: (v, v, v, v, *np.ones((3, v.size))),
    columns._add_products2: lambda v, s: (v, v, v, v, *np.ones((3, v.size))),
    columns._normalize_columns: lambda v, s: (v, v.copy(), v, v, v),
    columns._gradient_columns: lambda v, s: (v, v, v.copy(), v, v, v, v, v, v),
}


@pytest.mark.large
@pytest.mark.skipif(numba.core.config.MACHINE_BITS != 64, reason="x86-64 and arm64 only")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_inner_loops_are_vectorised(loop):
    """Read the machine code: packed arithmetic, and no call to anything."""
    values = np.ones(256, np.float32)
    loop(*LOOPS[loop](values, np.float32(1)))
    code = next(asm for signature, asm in loop.inspect_asm().items() if "float32" in str(signature[0]))
    body = code.split("cpython")[0]
    packed = re.findall(r"v?(?:fmadd|fmsub|fnmadd|mul|add|sub)\w*p[sd]\b|fml[as]\s+v\d+\.\d", body)
    assert len(packed) >= 4, "no packed arithmetic"


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
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_signal_handlers_may_call_fastbn():
    """Even while a launch is serialised."""
    code = """
import signal, numpy as np, fastbn
x = np.random.default_rng(0).standard_normal((64, 64, 9, 9)).astype(np.float32)
fastbn.forward(x)
calls = []
signal.signal(signal.SIGALRM, lambda *_: calls.append(fastbn.forward(x)))
signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prefetch_does_nothing_to_see(dtype):
    for size in (0, 1, 15, 16, 1000):
        row = np.arange(size, dtype=dtype)
        prefetch(row)
        assert (row == np.arange(size)).all()
