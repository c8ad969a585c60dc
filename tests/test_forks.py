"""Forks while another thread makes its first calls: neither child nor parent may wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import pytest

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled"),
]

IMPORTS = """
import sys
import numpy as np
import fastbn
import numba.np.ufunc.parallel
from numba.core.compiler_lock import global_compiler_lock

class Watch:
    def find_spec(self, name, path=None, target=None):
        own = numba.np.ufunc.parallel._backend_init_thread_lock._is_owned()
        if not global_compiler_lock.is_locked() and not own:
            print(name)
        return None

sys.meta_path.insert(0, Watch())
for shape, axis in (((8, 5), 1), ((2000, 64), 1), ((4, 5, 60, 61), 1), ((4, 60, 61, 64), -1)):
    x = np.ones(shape, np.float32)
    x[::2] = 3
    for given in (x, x.repeat(2, 0)[::2], x.astype(">f4"), x.tolist()):
        moments = fastbn.moments(given, axis=axis)
        out, cache = fastbn.forward(given, axis=axis)
        fastbn.backward(out, cache)
        fastbn.inference(given, moments.mean, moments.var, axis=axis)
        fastbn.normalize(given, moments.mean, moments.var, axis=axis)
x = x.transpose(0, 3, 1, 2)
bn = fastbn.BatchNorm2d(64)
bn(x)
bn.backward(x)
bn.save(sys.argv[1])
fastbn.BatchNorm2d.load(sys.argv[1]).eval().freeze()(x)
fastbn.recalibrate(bn, [x], progress=False)
fastbn.fold.scale_shift(bn)
bn.correction = 0
fastbn.to_keras(bn)
for wrong in (None, [1], np.ma.ones((2, 2)), np.ones((2, 2), np.float16)):
    try:
        fastbn.forward(wrong)
    except (TypeError, ValueError):
        pass
"""


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_calls_import_nothing_that_a_fork_does_not_wait_for(tmp_path, cache):
    """A child that is forked in the middle of an import could never import that module."""
    environment = {**os.environ}
    if cache == "cold":
        environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IMPORTS, str(tmp_path / "layer.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


HELD = """
import os, signal, threading, time, warnings
import numpy as np
import fastbn
import numba.np.ufunc.parallel as parallel
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
x = np.ones((32, 16, 28, 28), np.float32)
parallel._set_init_process_lock()
held = threading.Event()

def hold():
    with parallel._backend_init_process_lock:
        held.set()
        time.sleep(1.0)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
signal.alarm(60)  # for each of the two
if child == 0:
    fastbn.forward(x)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child"
thread.join()
fastbn.forward(x)
grandchild = os.fork()
if grandchild == 0:
    signal.alarm(60)
    fastbn.forward(x)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0, "a child after the first launch"
"""

FIRST_IMPORT = """
import os, signal, sys, threading, warnings
import numpy as np
import fastbn
warnings.simplefilter("ignore", DeprecationWarning)
x = np.ones((8, 5))
seen = threading.Event()

class Watch:  # forks as soon as the first call imports anything
    def find_spec(self, name, path=None, target=None):
        seen.set()
        return None

sys.meta_path.insert(0, Watch())
thread = threading.Thread(target=fastbn.moments, args=(x,))
thread.start()
seen.wait(5)
child = os.fork()
signal.alarm(60)
if child == 0:
    fastbn.moments(x)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
"""


@pytest.mark.parametrize("code", [HELD, FIRST_IMPORT], ids=["Numba's lock between processes", "a first import"])
def test_a_fork_in_the_middle_of(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_storm():
    """Some of the runs; ``python -m tests.fork_storm --runs 100`` has more, and cold caches."""
    command = [sys.executable, "-m", "tests.fork_storm", "--runs", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "6 passed, 0 failed"
