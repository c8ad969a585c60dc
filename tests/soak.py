"""Many mixed calls in one process: ``python -m tests.soak [--calls N]``. Nothing may grow, and every result is checked.

Small calls of every operation, refused ones among them, and now and then a large one. After a warm-up of a tenth,
memory, threads and open files stay as they are, nothing more is compiled, and what Numba allocates it frees.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("NUMBA_NRT_STATS", "1")

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys

import fastbn
from fastbn import compiled, cs231n, functional
from fastbn.kernels import calls, channels_first, channels_last, coefficients, jit, small
from fastbn.kernels.twins import Kernel
from tests.data_for_tests import same_bits

SHAPES = [(2, 5), (64, 7), (1, 16), (3, 4, 9), (2, 3, 4, 17), (5, 2, 3, 2, 2), (4, 33, 1), (0, 3), (2, 0, 3)]
LARGE = [(40, 20, 14, 14), (1500, 65), (3, 2, 150, 131), (700, 100)]
MEMORY = 24 << 20
"""Bytes by which resident memory may grow after the warm-up: what malloc keeps at hand; 24 bytes a call at most."""


def refused(function, *args, **kwargs):
    """A call that is refused, whatever it was."""
    try:
        function(*args, **kwargs)
    except (ValueError, TypeError):
        return
    raise AssertionError(f"{function} was not refused")


class Work:
    """Sound arguments of one shape, and every operation on them."""

    def __init__(self, shape, axis, dtype, other, rng, folder):
        self.axis, self.path = axis, folder / f"{len(shape)}-{shape[axis]}.npz"
        self.x, self.dout = ((rng.standard_normal(shape) + 3).astype(dtype) for _ in range(2))
        channels = shape[axis]
        self.count = self.x.size // max(channels, 1)
        self.gamma, self.beta, self.mean = (rng.standard_normal(channels).astype(other) for _ in range(3))
        self.var = rng.uniform(1, 2, channels).astype(other)
        self.out = np.empty_like(self.x)
        self.layer = fastbn.BatchNorm(channels, axis=axis, dtype=other)
        self.frozen = fastbn.FrozenBatchNorm(self.mean, self.var, self.gamma, self.beta, axis=axis)
        self.trainable = self.count > 1 or not self.x.size
        if self.trainable:
            self.forwarded = fastbn.forward(self.x, self.gamma, self.beta, axis=axis)
        self.expected = {}

    @property
    def statistics(self):
        return self.mean, self.var

    def forward(self):
        running = self.mean.copy(), self.var.copy()
        out, cache = fastbn.forward(self.x, self.gamma, self.beta, *running, axis=self.axis, out=self.out)
        return out, cache.mean, *running

    def backward(self):
        return [a for a in fastbn.backward(self.dout, self.forwarded.cache) if a is not None]

    def inference(self):
        return (fastbn.inference(self.x, *self.statistics, self.gamma, None, axis=self.axis),)

    def frozen_forward(self):
        out, cache = fastbn.forward(self.x, None, None, *self.statistics, training=False, axis=self.axis)
        return out, fastbn.backward(self.dout, cache).dx

    def phases(self):
        moments = fastbn.moments(self.x, axis=self.axis)
        statistics = moments.mean, functional._engine.inv_std_of(moments.var, 1e-5)
        sums = fastbn.backward_sums(self.dout, self.x, *statistics, axis=self.axis)
        dx = fastbn.backward_input(
            self.dout, self.x, *statistics, self.gamma, *sums, max(self.count, 1), axis=self.axis
        )
        return fastbn.normalize(self.x, *statistics, axis=self.axis), dx, moments.merge(moments).var

    def layers(self):
        self.layer.running_mean[:], self.layer.running_var[:] = 0, 1
        out = self.layer.train()(self.x)
        dx = self.layer.backward(self.dout)
        return out, dx, self.layer.eval()(self.x), self.frozen(self.x), self.layer.freeze()(self.x)

    def strided(self):
        x = np.asfortranarray(self.x)
        return (fastbn.inference(x[::-1], *self.statistics, axis=self.axis),)

    def course(self):
        x = np.moveaxis(self.x, self.axis, -1).reshape(-1, self.x.shape[self.axis])
        out, cache = cs231n.batchnorm_forward(x, self.gamma, self.beta, {"mode": "train"})
        return out, cs231n.batchnorm_backward(out, cache).dx

    def for_compiled_code(self):
        x = np.ascontiguousarray(np.moveaxis(self.x, self.axis, -1)).reshape(-1, self.x.shape[self.axis], 1)
        out = np.empty_like(x)
        mean, _, inv_std = compiled.forward(x, self.gamma, self.beta, 1e-5, out)
        return out, mean, *compiled.backward(x, x, self.gamma, mean, inv_std, np.empty_like(x))

    def folded(self):
        weight = np.ones((self.x.shape[self.axis], 3), self.x.dtype)
        return fastbn.fold.linear(weight, None, self.frozen)

    def recalibrated(self):
        fastbn.recalibrate(self.layer, [self.x, self.x], progress=False)
        return self.layer.running_mean.copy(), self.layer.running_var.copy()

    def file(self):
        self.layer.save(self.path)
        return tuple(fastbn.BatchNorm.load(self.path).state_dict().values())[:2]

    def errors(self):
        refused(fastbn.forward, self.x, np.ones(10**4), axis=self.axis)
        refused(fastbn.forward, self.x, axis=77)
        refused(fastbn.inference, self.x, *self.statistics, out=self.x.astype("M8[s]"), axis=self.axis)
        refused(fastbn.inference, self.x, *self.statistics, eps=-1.0, axis=self.axis)
        refused(fastbn.backward, self.x, None)
        refused(self.layer, [[1.0], [2.0, 3.0]])
        refused(self.layer.load_state_dict, {})
        refused(fastbn.BatchNorm.load, __file__)
        return ()

    def operations(self):
        """Names, each with how often it is drawn; files and folders are slow."""
        weights = {
            "inference": 6,
            "frozen_forward": 2,
            "phases": 2,
            "strided": 1,
            "folded": 1,
            "errors": 1,
            "file": 0.1,
        }
        if self.trainable:
            weights |= {"forward": 6, "backward": 6, "layers": 4}
        if self.trainable and self.x.size:
            weights |= {"course": 1, "recalibrated": 0.5, "for_compiled_code": 1}
        return weights

    def run(self, name):
        """The results, once as they are, and ever after the same bits."""
        results = [np.array(a) for a in getattr(self, name)()]
        expected = self.expected.setdefault(name, results)
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True)), (name, self.x.shape)


def compiled_functions():
    """How many there are, of everything that is compiled."""
    modules = calls, channels_first, channels_last, coefficients, small, compiled, jit
    count = 0
    for value in (each for module in modules for each in vars(module).values()):
        if isinstance(value, jit.Entries):
            count += len(value.compiled)
        twins = (value.serial, value.parallel) if isinstance(value, Kernel) else (value,)
        count += sum(len(each.signatures) for each in twins if isinstance(each, Dispatcher))
    return count


def resident():
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def balance():
    """Numba's allocations that are not freed."""
    stats = rtsys.get_allocation_stats()
    assert stats.mi_alloc, "Numba counts only where NUMBA_NRT_STATS is set"
    return stats.alloc - stats.free, stats.mi_alloc - stats.mi_free


def figures():
    """What must not grow."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    return {
        "compiled": compiled_functions(),
        "threads": threads,
        "Python threads": threading.active_count(),
        "files": files,
        "unfreed allocations": balance(),
    }


def soak(count, large_every, report):
    """Make so many calls; the figures after the warm-up and at the end."""
    rng = np.random.default_rng(20261122)
    with tempfile.TemporaryDirectory() as folder:
        usual = [
            Work(shape, axis, dtype, other, rng, Path(folder))
            for shape in SHAPES
            for axis in (1, -1)
            for dtype in (np.float32, np.float64)
            for other in (np.float32, np.float64)
        ]
        large = [
            Work(shape, 1, dtype, dtype, rng, Path(folder)) for shape in LARGE for dtype in (np.float32, np.float64)
        ]
        for work in usual + large:  # whatever is drawn later has been compiled
            for name in work.operations():
                work.run(name)
        made, start, before, memory = Counter(), time.monotonic(), None, []
        for i in range(count):
            work = large[i // large_every % len(large)] if i % large_every == 0 else usual[rng.integers(len(usual))]
            weights = work.operations()
            chances = np.cumsum(list(weights.values()))
            name = list(weights)[np.searchsorted(chances, rng.random() * chances[-1])]
            work.run(name)
            made[name] += 1
            if (i + 1) % max(count // 10, 1) == 0:
                now = figures()
                memory.append(resident())
                report(f"{i + 1} calls, {time.monotonic() - start:.0f} s, {memory[-1] / 1e6:.1f} MB, {now}")
                before = before or now
                assert now == before, (now, before)
    growth = max(memory) - memory[0]
    report(f"{dict(made)}; memory grew by {growth / 1e6:.1f} MB after the warm-up")
    assert growth < MEMORY, memory
    return made


def main() -> None:
    """What ``--calls`` says."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--large-every", type=int, default=200)
    arguments = parser.parse_args()
    soak(arguments.calls, arguments.large_every, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
