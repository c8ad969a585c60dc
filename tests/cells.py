"""Programs of ``test_matrix``: fastbn used in one way, by threads and processes; ``python -m tests.cells WAY DIGESTS``.

Every thread and process does the same work, whose results must have the bits that the two DIGESTS stand for. Without
arguments the work is done once, and its digests printed.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import multiprocessing
import os
import sys
import threading
import time
import warnings

import numba
import numpy as np

import fastbn
from fastbn import compiled
from fastbn.kernels import jit
from tests.data_for_tests import channels_last

THREADS = 4
SHAPES = [
    # Serial twins, then parallel ones: both modules of kernels, with one segment and with several.
    (5, 4, 3),
    (6, 5, 4, 5),
    (8, 24, 20, 20),
    (3, 2, 150, 131),
    (40, 20, 10, 10),
    (2000, 65),
    (64, 1200),
]
COMPILED = (12, 24, 300), (700, 96, 1)


@functools.lru_cache
def data():
    rng = np.random.default_rng(0)
    given = []
    for shape in SHAPES:
        for dtype in (np.float32, np.float64):
            tensors = [rng.standard_normal(shape).astype(dtype) + 3 for _ in range(2)]
            given.append(tensors)
            if len(shape) == 4:
                given.append([channels_last(x) for x in tensors])
            given.append([np.repeat(x, 2, 0)[::2] for x in tensors])  # goes the general way
    return given


@numba.njit(nogil=True)
def train_compiled(x, dout, gamma, beta, running_mean, running_var):
    out, dx = np.empty_like(x), np.empty_like(x)
    mean, var, inv_std = compiled.forward(x, gamma, beta, 1e-5, out)
    compiled.update_running(running_mean, running_var, mean, var, x.shape[0] * x.shape[2], 0.1, 1.0)
    dgamma, dbeta = compiled.backward(dout, x, gamma, mean, inv_std, dx)
    compiled.inference(x, running_mean, running_var, gamma, beta, 1e-5, dout)
    return out, dx, dgamma, dbeta, dout


def results():
    """What all kinds of calls give."""
    for x, dout in data():
        layer = fastbn.BatchNorm(x.shape[1], dtype=x.dtype)
        yield layer(x)
        yield layer.backward(dout)
        yield layer.eval()(x)
        yield from layer.state_dict().values()
        yield layer.freeze()(x)
        moments = fastbn.moments(x)
        yield moments.mean
        yield from fastbn.backward_sums(dout, x, moments.mean, moments.var)
        yield fastbn.normalize(x, moments.mean, moments.var)


def compiled_results():
    rng = np.random.default_rng(1)
    for shape in COMPILED:
        vectors = [np.linspace(1, 2, shape[1]) for _ in range(4)]
        x, dout = rng.standard_normal((2, *shape))
        yield from train_compiled(x, dout, *vectors)
        yield from vectors


def digest(arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def work(of=results):
    return digest(of())


def good(of=results):
    return work(of) == EXPECTED[of.__name__]


def on_threads(function, count=THREADS):
    """Whether it is true on every thread."""
    done = []
    threads = [threading.Thread(target=lambda: done.append(function())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done == [True] * count


def in_child(function):
    """Whether it is true in a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if function() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def threads():
    """Which begin by racing for the first launch."""
    return on_threads(lambda: good() and good())


def thread_pool():
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return all(pool.map(lambda _: good(), range(2 * THREADS)))


def processes(method):
    """A pool of two processes, after use."""
    before = good()
    with multiprocessing.get_context(method).Pool(2) as pool:
        theirs = [pool.apply_async(work) for _ in range(2)]
        return all(each.get() == EXPECTED["results"] for each in theirs) and before and good()


def fork_after_use():
    return good() and in_child(good) and good()


def grandchild():
    return good() and in_child(lambda: good() and in_child(good) and good()) and good()


def fork_from_a_thread():
    """While others, and the main one, are at work."""
    return good() and on_threads(lambda: good() and in_child(good) and good())


def fork_beside_compilation():
    """The child needs the compiler, which another thread was using."""
    before = good()
    compiling = threading.Event()

    def same(value):
        return value

    @numba.extending.overload(same)
    def same_compiled(value):  # the compiler calls this
        compiling.set()
        time.sleep(1.0)
        return lambda value: value

    thread = threading.Thread(target=numba.njit(lambda value: same(value)), args=(1.0,))
    thread.start()
    assert compiling.wait(60)
    child_is_good = in_child(good)
    thread.join()
    return before and child_is_good and good()


def compiled_caller():
    """Called by the user's compiled code, without Python's lock, beside ordinary calls."""
    return on_threads(lambda: good(compiled_results) and good() and good(compiled_results))


@numba.njit(parallel=True)
def users_sum(x):
    total = 0.0
    for i in numba.prange(x.size):
        total += x[i]
    return total


def users_parallel_code():
    """At the same time: with ``workqueue`` only beside threads whose calls of fastbn are on one thread each."""
    if os.environ["NUMBA_THREADING_LAYER"] != "workqueue":
        return on_threads(lambda: users_sum(np.ones(100_000)) == 100_000 and good())

    def alone():
        numba.set_num_threads(1)
        return good()

    stop = threading.Event()
    sums = []

    def sum_on():
        while not stop.is_set():
            sums.append(users_sum(np.ones(100_000)) == 100_000)

    thread = threading.Thread(target=sum_on)
    thread.start()
    results = on_threads(alone)
    stop.set()
    thread.join()
    return results and len(sums) > 0 and all(sums)


def thread_counts():
    """Each thread has its own, which no call of its own or of others changes."""
    counts = iter(range(1, THREADS + 1))

    def with_count():
        first = numba.get_num_threads()
        count = next(counts)
        numba.set_num_threads(count)
        return all(good() and numba.get_num_threads() == count for _ in range(2)) and first == THREADS

    before = numba.get_num_threads()
    return on_threads(with_count) and good() and numba.get_num_threads() == before == THREADS


WAYS = {
    "threads": threads,
    "ThreadPoolExecutor": thread_pool,
    "spawn": functools.partial(processes, "spawn"),
    "forkserver": functools.partial(processes, "forkserver"),
    "multiprocessing's fork": functools.partial(processes, "fork"),
    "fork after use": fork_after_use,
    "grandchild": grandchild,
    "fork from a thread": fork_from_a_thread,
    "fork beside compilation": fork_beside_compilation,
    "njit caller": compiled_caller,
    "user's parallel code": users_parallel_code,
    "thread counts": thread_counts,
}
ALONE = "alone"
"""Without any of them."""
EXPECTED = dict(zip(("results", "compiled_results"), sys.argv[2:], strict=False))


def main():
    if len(sys.argv) == 1:
        print(work(), work(compiled_results))
        return
    assert {**WAYS, ALONE: good}[sys.argv[1]]()
    print(jit.threading_layer())


if __name__ == "__main__":
    main()
