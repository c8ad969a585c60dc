"""What is done in another order where the last-level cache is far: the same bits.

Groups whose output is written while others are summed, and second passes that begin where the first one ends.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys

import llvmlite.binding
import numba
import numpy as np
import pytest

import fastbn
from fastbn import reference
from fastbn.kernels import channels_first, channels_last, processor, rows, shares
from tests.data_for_tests import same_bits
from tests.tolerances import ULPS, ulps

SHAPES = [
    (1, 33, 16384),  # a group is a run
    (3, 5, 40001),  # runs of several blocks, of no whole lines
    (2, 2050, 130),  # wide groups, some wider than others, of runs shorter than a strip
    (32, 70, 257),  # and longer
    (700, 50, 16),  # of one register
    (64, 200, 49),
    (9, 70, 900),
]
FEW = [(1, 3, 64), (3, 5, 401), (2, 150, 20), (4, 7, 33), (40, 5, 16), (7, 40, 49)]
EPS = 1e-5
LAGS = numba.config.DISABLE_JIT or processor.FAR_CACHE
lagging = pytest.mark.skipif(not LAGS, reason="not on this processor: test_on_a_processor_that_lags")


@pytest.fixture
def lag(monkeypatch):
    """Interpreted, few values are enough."""
    if numba.config.DISABLE_JIT:
        monkeypatch.setattr(rows, "FAR_CACHE", True)
        monkeypatch.setattr(shares, "FAR_CACHE", True)
        monkeypatch.setattr(rows, "LAGGING", 1)
        monkeypatch.setattr(rows, "STRIP", 32)
        monkeypatch.setattr(rows, "SLICE", 512)
        monkeypatch.setattr(rows, "NEAR", 64)


def between_nans(size, dtype, shift):
    """Memory for a result, ``shift`` values behind a cache line, and all memory around it."""
    memory = np.full(size + 256, np.nan, dtype)
    start = 64 + -(memory.ctypes.data // memory.itemsize) % (64 // memory.itemsize) + shift
    return memory[start : start + size], (memory[:start], memory[start + size :])


def trained(name, parallel, x, dout, shape, streaming, shift, segments=1):
    """All that the kernels for forward and backward write; channels are last in shapes of four numbers."""
    kernels, channels = (channels_first, shape[1]) if len(shape) == 3 else (channels_last, shape[2])
    gamma, beta = np.linspace(0.5, 1.5, channels), np.linspace(-1, 1, channels)
    (out, beside_out), (dx, beside_dx) = (between_nans(x.size, x.dtype, shift) for _ in range(2))
    mean, var, inv_std, dbeta, dgamma = np.full((5, channels), np.nan)
    forward, backward = getattr(kernels, f"forward{name}"), getattr(kernels, f"backward{name}")
    forward(parallel, x, shape, segments, EPS, gamma, beta, out, mean, var, inv_std, streaming)
    backward(parallel, dout, x, shape, segments, mean, inv_std, gamma, dbeta, dgamma, dx, streaming)
    assert all(np.isnan(each).all() for each in (*beside_out, *beside_dx))
    return out, mean, var, inv_std, dbeta, dgamma, dx


@lagging
@pytest.mark.usefixtures("lag")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", FEW if numba.config.DISABLE_JIT else SHAPES, ids=str)
def test_the_bits_of_phases(rng, shape, dtype):
    assert rows.is_lagging(shape)
    x, dout = (rng.standard_normal(math.prod(shape)).astype(dtype) + 3 for _ in range(2))
    expected = trained("_in_phases", False, x, dout, shape, False, 0)
    for parallel in (False, True):
        for streaming in (False, True):
            for shift in (0, 5):
                results = trained("", parallel, x, dout, shape, streaming, shift)
                assert all(map(same_bits, results, expected))
    given = x.reshape(shape), dout.reshape(shape), np.linspace(0.5, 1.5, shape[1])
    wanted = reference.forward(given[0], given[2], np.linspace(-1, 1, shape[1]), eps=EPS)[0]
    assert ulps(expected[0].reshape(shape), wanted, dtype) < ULPS[dtype]["out"]
    wanted = reference.backward(given[1], given[0], given[2], eps=EPS)[0]
    assert ulps(expected[-1].reshape(shape), wanted, dtype) < ULPS[dtype]["dx"]


@lagging
@pytest.mark.usefixtures("lag")
def test_dx_in_place_of_dout(rng):
    """The group that is written has been summed, whatever is summed meanwhile."""
    shape = (3, 5, 401) if numba.config.DISABLE_JIT else (9, 70, 900)
    x, dout = rng.standard_normal((2, *shape)).astype(np.float32)
    _, cache = fastbn.forward(x)
    expected = fastbn.backward(dout, cache).dx
    assert same_bits(fastbn.backward(dout, cache, out=dout).dx, expected)
    assert same_bits(dout, expected)


BACK = [(9, 3, 4001), (40, 5, 900), (3001, 1, 65, 1), (500, 4, 16, 1), (900, 1, 20, 9)]
FEW_BACK = [(2, 3, 40), (37, 1, 5, 1), (12, 2, 4, 1), (9, 1, 3, 3)]


@lagging
@pytest.mark.usefixtures("lag")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", FEW_BACK if numba.config.DISABLE_JIT else BACK, ids=str)
def test_a_second_pass_from_the_end(rng, shape, dtype):
    """However many tasks and workers there are, and whatever the first pass found."""
    size = math.prod(shape)
    assert shares.goes_back(size)
    assert not shares.goes_back(shares.BACK + 1)
    x, dout = (rng.standard_normal(size).astype(dtype) + 3 for _ in range(2))
    expected = trained("", False, x, dout, shape, False, 0)
    for parallel in (False, True):
        for streaming in (False, True):
            results = trained("_in_phases", parallel, x, dout, shape, streaming, 5)
            assert all(map(same_bits, results, expected))
    segments = min(4, rows.blocks_of(shape[0], shape[2]) if len(shape) == 3 else shape[0])
    expected = trained("_in_phases", False, x, dout, shape, False, 0, segments)
    results = trained("_in_phases", True, x, dout, shape, False, 0, segments)
    assert not np.isnan(results[0]).any()
    assert all(map(same_bits, results, expected))


@pytest.mark.large
@pytest.mark.skipif(LAGS or platform.machine() != "x86_64", reason="compiled, where this processor does not lag")
def test_on_a_processor_that_lags():
    """The tests above, compiled with the plans for another processor and for what this one can do."""
    features = llvmlite.binding.get_host_cpu_features().flatten()
    environment = {**os.environ, "NUMBA_CPU_NAME": "emeraldrapids", "NUMBA_CPU_FEATURES": features}
    chosen = "bits_of or in_place or from_the_end"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, __file__]
    run = subprocess.run(command, env=environment, timeout=600, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert f"{2 * len(SHAPES) + 2 * len(BACK) + 1} passed, {len(PROCESSORS) + 1} deselected" in run.stdout


PROCESSORS = {"emeraldrapids": [False, True] * 2, "znver4": [False] * 4, "znver3": [False] * 4}


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_which_processors_lag(cpu):
    """From 2 MB of float32 on where the last-level cache is far, and nowhere else; second passes go back up to 34."""
    code = "from fastbn.kernels.rows import is_lagging\n"
    code += "from fastbn.kernels.shares import goes_back\n"
    code += "print(is_lagging((32, 16, 1023)), is_lagging((32, 16, 1024)))\n"
    code += "print(goes_back((1 << 23) + 1), goes_back(1 << 23))"
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True)
    assert run.stdout.split() == [str(each) for each in PROCESSORS[cpu]]
