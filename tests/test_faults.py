"""Signals, exhausted memory and sudden death: the state is whole, and the next call goes on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastbn
from tests.interrupts import interrupted_at_edge

pytestmark = [pytest.mark.large, pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")]

INTERRUPTED = """
import os, signal, threading, numpy as np, fastbn, numba
layer = fastbn.BatchNorm2d(16, momentum=None, correction=0)
x = np.ones((64, 16, 64, 64), np.float32)  # a launch takes milliseconds
x[::2] = 3  # mean 2, variance 1, whatever the average
layer(x)
armed, interrupted, done = False, 0, 1

def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
print("ready", flush=True)
while interrupted < 40:
    before = layer.num_batches_tracked
    try:
        armed = True
        layer(x)
        armed = False
    except KeyboardInterrupt:
        interrupted += 1
    armed = False
    assert layer.num_batches_tracked - before in (0, 1)
    np.testing.assert_allclose(layer.running_mean, 2, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, 1, rtol=1e-5)
other = threading.Thread(target=layer, args=(x,))  # no lock was left behind
other.start()
other.join()
print(numba.threading_layer(), flush=True)
os._exit(0)  # Python's own end could be interrupted
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_interrupts_from_outside_while_kernels_run(layer):
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    delays = np.random.default_rng(0).uniform(0.001, 0.02, 10_000)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            for delay in delays:
                if process.poll() is not None:
                    break
                process.send_signal(signal.SIGINT)
                time.sleep(delay)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert out == f"{layer}\n"


@pytest.mark.parametrize("call", ["forward", "backward", "inference"])
def test_interrupts_leave_no_lock_behind(call):
    """Wherever a call on threads is interrupted, one on another thread goes on."""
    layer = fastbn.BatchNorm2d(16)
    x = np.random.default_rng(0).standard_normal((64, 16, 16, 16), dtype=np.float32)
    layer(x)
    calls = {
        "forward": lambda: layer(x),
        "backward": lambda: layer.backward(x),
        "inference": lambda: fastbn.inference(x, layer.running_mean, layer.running_var),
    }
    interrupted = 0
    while interrupted_at_edge(interrupted, calls[call]):
        interrupted += 1
        other = threading.Thread(target=calls[call], daemon=True)
        other.start()
        other.join(timeout=60)
        assert not other.is_alive()
    assert interrupted > 5


OUT_OF_MEMORY = """
import resource, numpy as np, fastbn
x = np.random.default_rng(0).standard_normal((SHAPE), dtype=np.float32)
fastbn.BatchNorm(x.shape[1])(x)

def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def state():
    return [array.tobytes() for array in layer.state_dict().values()]

layer = fastbn.BatchNorm(x.shape[1], momentum=None)
expected = layer(x)
layer.backward(x)
after = [array.copy() for array in layer.state_dict().values()]
failed = succeeded = 0
for spare in np.linspace(0, 5 * x.nbytes, 40, dtype=int):
    layer = fastbn.BatchNorm(x.shape[1], momentum=None)
    before, out = state(), None
    resource.setrlimit(resource.RLIMIT_AS, (used() + int(spare), resource.RLIM_INFINITY))
    try:
        out = layer(x)
        count = 1
    except MemoryError:
        count = 0
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if count:
        succeeded += 1
        assert (out == expected).all()
        assert state() == [array.tobytes() for array in after]
    else:
        failed += 1
        assert state() == before
assert failed and succeeded, (failed, succeeded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("shape", [(40, 16, 128, 128), (4, 500_000)], ids=["tensors", "many channels"])
def test_exhausted_memory(shape):
    """Wherever a call fails for lack of memory, it counts as none."""
    code = OUT_OF_MEMORY.replace("(SHAPE)", str(shape))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # zipfile's own, of what it left
def test_interrupts_while_saving(tmp_path):
    """Wherever one comes, it comes out as itself, and leaves the old file or the new one, whole and alone."""
    layer, path = fastbn.BatchNorm1d(3), tmp_path / "layer.npz"
    layer.save(path)
    interrupted = before = 0
    while interrupted_at_edge(interrupted, lambda: layer.save(path)):
        interrupted += 1
        assert [file.name for file in tmp_path.iterdir()] == ["layer.npz"]
        loaded = fastbn.BatchNorm1d.load(path)
        assert before <= loaded.num_batches_tracked <= layer.num_batches_tracked
        before = loaded.num_batches_tracked
        layer.num_batches_tracked += 1
    assert interrupted > 100
    gc.collect()  # what zipfile left is found here, not in another test


SAVE_ON = """
import sys, fastbn
layer = fastbn.BatchNorm1d(20_000)
number = 0
print("ready", flush=True)
while True:
    number += 1
    for array in (layer.gamma, layer.beta, layer.running_mean, layer.running_var):
        array[:] = number
    layer.num_batches_tracked = number
    layer.save(sys.argv[1])
"""


def test_sudden_death_while_saving(tmp_path):
    """The file is one of those that were written, whole; only a hidden file may be left beside it."""
    path = tmp_path / "layer.npz"
    moments = np.random.default_rng(0).uniform(0, 0.02, 12)
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-c", SAVE_ON, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(moment)
        process.kill()
        process.communicate(timeout=60)
        state = fastbn.BatchNorm1d.load(path).state_dict()
        assert len({value for array in state.values() for value in np.unique(array).tolist()}) == 1
    left = [file.name for file in tmp_path.iterdir() if file != path]
    assert all(name.startswith(".layer.npz.") and name.endswith(".tmp") for name in left)
    fastbn.BatchNorm1d(3).save(path)
    assert fastbn.BatchNorm1d.load(path).num_features == 3
