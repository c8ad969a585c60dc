"""A program of ``test_forks``: two threads make their first calls while the main one forks; ``SEED`` decides when.

``python -m tests.fork_storm SEED`` is one run; ``python -m tests.fork_storm --runs N`` is N of them, over both
threading layers, with a cold and a warm cache. A process that hangs is ended by its alarm, which fails the run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import numpy as np

FORKS = 6
CHILD_SECONDS, RUN_SECONDS = 120, 240
"""A cold cache on a busy machine takes a process 30."""


def calls(fastbn, seed):
    """First calls of several kinds: small and large, in place and through a copy."""
    rng = np.random.default_rng(seed)
    small, large = rng.standard_normal((8, 5)), rng.standard_normal((32, 16, 28, 28), dtype=np.float32)
    kinds = [
        lambda: fastbn.moments(small).mean,
        lambda: fastbn.moments(small.repeat(2, 0)[::2]).mean,
        lambda: fastbn.forward(large).out,
        lambda: fastbn.forward(large[:, :, ::-1]).out,
        lambda: fastbn.inference(large, np.zeros(16), np.ones(16)),
    ]
    rng.shuffle(kinds)
    return kinds


def call_all(fastbn, seed):
    for call in calls(fastbn, seed):
        assert np.isfinite(call()).all()


def child(fastbn, seed):
    signal.alarm(CHILD_SECONDS)
    status = 1
    try:
        call_all(fastbn, seed)
        status = 0
    finally:
        os._exit(status)


def run(seed):
    import fastbn

    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
    signal.alarm(RUN_SECONDS)
    rng = np.random.default_rng(seed)
    delays = rng.exponential(0.05, FORKS) if seed % 2 else rng.uniform(0, 2.0, FORKS) / FORKS
    threads = [threading.Thread(target=call_all, args=(fastbn, seed + i), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    children = []
    for i, delay in enumerate(delays):
        time.sleep(delay)
        process = os.fork()
        if process == 0:
            child(fastbn, seed + i)
        children.append(process)
    for thread in threads:
        thread.join()
    call_all(fastbn, seed)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children] == [0] * FORKS


def storm(runs):
    """The exit statuses of so many runs."""
    warm = tempfile.mkdtemp()
    statuses = []
    for seed in range(runs):
        layer = ("omp", "workqueue")[seed // 2 % 2]
        with tempfile.TemporaryDirectory() as cold:
            folder = cold if seed % 10 == 9 else warm
            environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_CACHE_DIR": folder}
            command = [sys.executable, "-m", "tests.fork_storm", str(seed)]
            statuses.append(subprocess.run(command, env=environment, check=False).returncode)
        if statuses[-1]:
            print(f"seed {seed}, {layer}: status {statuses[-1]}", flush=True)
    return statuses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--runs", type=int)
    given = parser.parse_args()
    if given.runs is None:
        run(given.seed)
    else:
        failed = sum(status != 0 for status in storm(given.runs))
        print(f"{given.runs - failed} passed, {failed} failed")
        sys.exit(failed > 0)
