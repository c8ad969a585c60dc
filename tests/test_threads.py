"""Layers shared by threads: the state of some serial order, and no call that sees half of a change."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
import threading
from functools import partial

import numba
import numpy as np
import pytest

import fastbn
from fastbn import _engine
from fastbn.kernels import locks
from tests.data_for_tests import read_only, same_bits, tensor

CHANNELS = 4096
"""So many that NumPy lets other threads run while it copies a parameter."""


@pytest.fixture(autouse=True)
def threads_that_change_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*functions):
    """Run each on a thread; whatever one raises."""
    raised, start = [], threading.Barrier(len(functions))

    def run(function):
        start.wait()
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def strided(array):
    """The same values where no compiled call takes them."""
    return None if array is None else array.repeat(2)[::2]


def outcome(layer, dout):
    """All that calls leave behind: the state, and of which call ``backward`` is."""
    return [*(array.tobytes() for array in layer.state_dict().values()), layer.backward(dout).tobytes()]


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["one compiled call", "the general way"])
def test_training_has_the_outcome_of_a_serial_order(rng, dtype, momentum):
    batches = [tensor(rng, (8, 3), mean=i) for i in range(3)]
    dout = tensor(rng, (8, 3))

    def new():
        return fastbn.BatchNorm1d(3, momentum=momentum, dtype=dtype)

    serial = []
    for order in itertools.permutations(batches):
        layer = new()
        for x in order:
            layer(x)
        serial.append(outcome(layer, dout))
    for _ in range(50 if numba.config.DISABLE_JIT else 300):
        layer = new()
        at_once(*(partial(layer, x) for x in batches))
        assert outcome(layer, dout) in serial


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["one compiled call", "the general way"])
def test_no_batch_is_lost(rng, dtype):
    """The cumulative average is that of all batches, whatever the order."""
    layer = fastbn.BatchNorm1d(3, momentum=None, correction=0, dtype=dtype)
    batches = [tensor(rng, (8, 3), mean=i) for i in range(6)]
    at_once(*(lambda x=x: [layer(x) for _ in range(50)] for x in batches))
    assert layer.num_batches_tracked == 300
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    for running, expected in ((layer.running_mean, np.mean), (layer.running_var, np.var)):
        mean = np.mean([expected(x.astype(np.float64), 0) for x in batches], 0)
        np.testing.assert_allclose(running, mean, rtol=tolerance, atol=tolerance)


def test_functions_share_running_arrays(rng):
    """The same without a layer."""
    x, repeats = tensor(rng, (8, 3)), 100
    mean, var, expected_mean, expected_var = (strided(np.zeros(3)) for _ in range(4))
    at_once(*[lambda: [fastbn.forward(x, running_mean=mean, running_var=var) for _ in range(repeats)]] * 4)
    for _ in range(4 * repeats):
        fastbn.forward(x, running_mean=expected_mean, running_var=expected_var)
    assert same_bits(mean, expected_mean)
    assert same_bits(var, expected_var)
    assert var.any()


def states():
    """Two states no part of which fits the other."""
    names = "weight", "bias", "running_mean", "running_var"
    for number in (1.0, 3.0):
        values = {name: np.full(CHANNELS, number * (i + 1), np.float32) for i, name in enumerate(names)}
        yield {**values, "num_batches_tracked": int(number)}


def flat(layer):
    return np.concatenate([array.ravel() for array in layer.state_dict().values()])


def saved_and_loaded(layer, path):
    layer.save(path)
    return flat(fastbn.BatchNorm1d.load(path))


X = read_only(np.full((16, CHANNELS), 5.0, np.float32))
LARGE = read_only(np.repeat(np.float32([[1.0], [2.0]]), CHANNELS, 1).repeat(16, 0))
"""So large that calls let other threads run."""
READERS = {
    "evaluation": lambda layer, path: layer.eval()(X),
    "evaluation, the general way": lambda layer, path: layer.eval()(X),
    "training": lambda layer, path: layer.forward(LARGE),
    "training, the general way": lambda layer, path: layer.forward(LARGE),
    "freeze": lambda layer, path: layer.freeze()(X),
    "state_dict": lambda layer, path: flat(layer),
    "copy": lambda layer, path: flat(copy.copy(layer)),
    "deepcopy": lambda layer, path: flat(copy.deepcopy(layer)),
    "pickle": lambda layer, path: flat(pickle.loads(pickle.dumps(layer))),
    "save": lambda layer, path: saved_and_loaded(layer, path),
}


@pytest.mark.large
@pytest.mark.parametrize("reader", READERS)
def test_calls_see_whole_states(tmp_path, reader):
    """While another thread loads one state after the other."""
    read = READERS[reader]
    layer = fastbn.BatchNorm1d(CHANNELS, track_running_stats="training" not in reader)
    if "general" in reader:
        for name in ("gamma", "beta", "running_mean", "running_var"):
            setattr(layer, name, strided(getattr(layer, name)))
    given = [{name: state[name] for name in layer.state_dict()} for state in states()]
    expected = []
    for state in given:
        layer.load_state_dict(state)
        expected.append(read(layer, tmp_path / "layer.npz").tobytes())
    assert expected[0] != expected[1]
    stop, seen = threading.Event(), []

    def write():
        for state in itertools.cycle(given):
            layer.load_state_dict(state)
            if stop.is_set():
                return

    def read_on():
        try:
            for _ in range(400):
                seen.append(read(layer, tmp_path / "layer.npz").tobytes())
        finally:
            stop.set()

    at_once(write, read_on)
    assert set(seen) <= {*expected}


WAITERS = {name: read for name, read in READERS.items() if name not in ("evaluation", "evaluation, the general way")}
WAITERS |= {
    "evaluation, the general way": lambda layer, path: layer.eval()(X.repeat(2, 0)[::2]),
    "load_state_dict": lambda layer, path: layer.load_state_dict(layer.state_dict()),
}


@pytest.mark.parametrize("waiter", WAITERS)
def test_calls_wait_for_changes_that_take_more_than_one_step(tmp_path, waiter):
    """One compiled call of evaluation does not need to; it reads all parameters before it lets other threads run."""
    layer = fastbn.BatchNorm1d(CHANNELS)
    wait = partial(WAITERS[waiter], layer, tmp_path / "layer.npz")
    wait()
    thread = threading.Thread(target=wait)
    with locks.state:
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join()


@pytest.mark.parametrize("training", [False, True])
def test_the_general_way_works_on_copies(monkeypatch, training):
    """Of parameters that another thread may change meanwhile."""
    layer, x = fastbn.BatchNorm1d(3).train(training), np.arange(24.0).reshape(8, 3)[::2]
    own, given = [layer.gamma, layer.beta, layer.running_mean, layer.running_var], []
    for name in ("forward", "inference"):
        function = getattr(_engine, name)

        def call(*args, function=function):
            given.extend(args[2:])
            return function(*args)

        monkeypatch.setattr(_engine, name, call)
    layer(x)
    given = [array for array in given if isinstance(array, np.ndarray)]
    assert len(given) == (2 if training else 4)
    assert not any(np.shares_memory(a, b) for a in given for b in own)


@pytest.mark.large
@pytest.mark.parametrize("general", [False, True], ids=["one compiled call", "the general way"])
def test_calls_see_whole_updates(rng, general):
    """While another thread trains."""
    dtype = np.float64 if general else np.float32
    layer, reading = (fastbn.BatchNorm1d(CHANNELS, momentum=1.0, dtype=dtype) for _ in range(2))
    for name in ("gamma", "beta", "running_mean", "running_var"):
        setattr(reading, name, getattr(layer, name))
    reading.eval()
    batches = [tensor(rng, (4, CHANNELS), mean=i, scale=i + 1.0) for i in range(2)]
    expected = set()
    for x in batches:
        layer(x)
        expected.add(reading(X).tobytes())
    stop, seen = threading.Event(), []

    def train():
        for x in itertools.cycle(batches):
            layer(x)
            if stop.is_set():
                return

    def evaluate():
        try:
            for _ in range(400):
                seen.append(reading(X).tobytes())
        finally:
            stop.set()

    at_once(train, evaluate)
    assert set(seen) <= expected


FORK = """
import os, threading, numpy as np, fastbn, warnings
from fastbn.kernels import locks
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
layer, x = fastbn.BatchNorm1d(3, dtype=np.float64), np.arange(12.0).reshape(4, 3)
layer(x)
held, go_on = threading.Event(), threading.Event()

def hold():
    with locks.state:
        held.set()
        go_on.wait(1.0)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    layer(x)
    os._exit(layer.num_batches_tracked)
go_on.set()
thread.join()
layer(x)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == layer.num_batches_tracked == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forks_wait_for_other_threads():
    """Else the child's first call would wait for ever."""
    subprocess.run([sys.executable, "-c", FORK], timeout=120, check=True)
