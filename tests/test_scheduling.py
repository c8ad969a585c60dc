"""Which thread does which task: all are done, once, in each share's order, and by whoever has time."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import prange

from fastbn.kernels import jit
from fastbn.kernels.addresses import data
from fastbn.kernels.scheduling import counters, deal, fetch, fetch_add, give_way, meet, mirrored, signed, take, turns
from fastbn.kernels.twins import kernel


@jit.small
def taken_by(order, tasks, threads, taken):
    """Each worker of ``order`` takes its next task."""
    shares = counters(1, min(tasks, threads))[0]
    for i in range(len(order)):
        taken[i] = take(data(shares), len(shares), tasks, order[i] % len(shares))


def taken(order, tasks, threads):
    result = np.empty(len(order), np.int64)
    taken_by(np.array(order), tasks, threads, result)
    return list(result)


def test_the_own_share_from_the_start_and_that_of_others_from_the_end():
    assert taken([0] * 6, 5, 2) == [0, 1, 4, 3, 2, -1]
    assert taken([1] * 6, 5, 2) == [2, 3, 4, 1, 0, -1]
    assert taken([1, 1, 1, 1, 0, 0, 1], 5, 2) == [2, 3, 4, 1, 0, -1, -1]
    assert taken([2, 2, 2, 2, 0, 1, 0, 1], 6, 3) == [4, 5, 1, 0, 3, 2, -1, -1]


def test_there_are_no_more_workers_than_tasks():
    assert taken([0, 1, 2], 1, 8) == [0, -1, -1]


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 20), st.integers(1, 8))
def test_every_task_once_whatever_the_order(order, tasks, threads):
    given = [task for task in taken(order, tasks, threads) if task >= 0]
    assert len(set(given)) == len(given)
    assert set(given) <= set(range(tasks))
    assert len(given) == min(tasks, len(order))


@jit.small
def mirrors_of(tasks, workers, result):
    """The mirrored task of each."""
    for task in range(tasks):
        result[task] = mirrored(task, tasks, workers)


def mirrors(tasks, workers):
    result = np.empty(tasks, np.int64)
    mirrors_of(tasks, workers, result)
    return list(result)


def test_a_share_from_its_end():
    assert mirrors(5, 1) == [4, 3, 2, 1, 0]
    assert mirrors(5, 2) == [1, 0, 4, 3, 2]
    assert mirrors(8, 3) == [1, 0, 4, 3, 2, 7, 6, 5]


@given(st.integers(1, 40), st.integers(1, 16))
def test_every_share_from_its_end(tasks, threads):
    workers = min(tasks, threads)
    edges = [tasks * worker // workers for worker in range(workers + 1)]
    shares = [range(start, stop) for start, stop in itertools.pairwise(edges)]
    assert mirrors(tasks, workers) == [task for share in shares for task in reversed(share)]


@kernel
def wait_in_first_task(done, who):
    """The worker of task 0 waits until all others are done, those of the others until it has begun.

    For some seconds at most.
    """
    tasks = len(who)
    shares = deal(1, tasks)
    for worker in prange(len(shares[0])):
        for task in turns(shares[0], tasks, signed(worker)):
            who[task] += 1 + worker
            if task == 0:
                for _ in range(1 << 24):
                    if fetch(data(done), 0) == tasks - 1:
                        break
                    give_way()
            else:
                for _ in range(1 << 24):
                    if fetch(data(who), 0):
                        break
                    give_way()
                fetch_add(data(done), 0, 1)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="no threads")
def test_tasks_of_a_thread_that_is_held_up_are_done_by_others():
    if not jit.threads_usable():
        pytest.skip("one thread")
    done, who = np.zeros(1, np.int64), np.zeros(64, np.int64)
    wait_in_first_task(True, done, who)
    assert done[0] == 63
    assert who[0] == 1
    assert ((who[1:] > 1) & (who[1:] <= numba.get_num_threads())).all()


def test_one_thread_does_all_in_order():
    done, who = np.full(1, 40), np.zeros(41, np.int64)
    wait_in_first_task(False, done, who)
    assert (who == 1).all()


@kernel
def add_in_phases(values, sums):
    """Each task of a phase adds all that the tasks of the one before have left."""
    tasks = values.shape[1]
    shares = deal(3, tasks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], tasks, own):
            for _ in range(1000 * (task % 3)):
                fetch_add(data(sums), 0, 1)  # takes its time
            values[0, task] = task
        meet(shares[0], tasks)
        for task in turns(shares[1], tasks, own):
            values[1, task] = values[0].sum() + task
        meet(shares[1], tasks)
        for task in turns(shares[2], tasks, own):
            values[2, task] = values[1].sum() + task


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("tasks", [1, 2, 3, 17, 64])
def test_a_phase_sees_all_of_the_one_before(parallel, tasks):
    first = sum(range(tasks))
    second = first * tasks + first
    for _ in range(3 if numba.config.DISABLE_JIT else 2000):
        values = np.full((3, tasks), -1)
        add_in_phases(parallel, values, np.zeros(1, np.int64))
        assert (values[1] == first + np.arange(tasks)).all()
        assert (values[2] == second + np.arange(tasks)).all()


MORE_THREADS_THAN_CORES = """
import numpy as np, fastbn
x, dout = np.random.default_rng(0).standard_normal((2, 1024, 128)).astype(np.float32)
_, cache = fastbn.forward(x)
first = fastbn.backward(dout, cache)
for _ in range(200):
    _, cache = fastbn.forward(x)
    for a, b in zip(fastbn.backward(dout, cache), first):
        assert a is b or (a == b).all()
"""


@pytest.mark.large
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_more_threads_than_cores(layer):
    threads = str(8 * (os.cpu_count() or 1))
    environment = {**os.environ, "NUMBA_NUM_THREADS": threads, "NUMBA_THREADING_LAYER": layer}
    command = [sys.executable, "-W", "error", "-c", MORE_THREADS_THAN_CORES]
    subprocess.run(command, env=environment, timeout=300, check=True)
