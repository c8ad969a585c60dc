from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

import fastbn
from fastbn import __main__ as command


def test_info(capsys):
    command.main(["info"])
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["fastbn"] == fastbn.__version__
    assert lines["numpy"] == np.__version__
    assert lines["numba"].startswith(numba.__version__)
    assert lines.keys() >= {"python", "cpu", "threads", "threading layer", "cache folder", "optional packages"}
    if not numba.config.DISABLE_JIT:
        assert lines["threading layer"] in ("tbb", "omp", "workqueue")


def test_usage():
    with pytest.raises(SystemExit):
        command.main([])
    with pytest.raises(SystemExit):
        command.main(["no such command"])
    with pytest.raises(SystemExit):
        command.main(["warmup", "--jobs", "0"])


def test_progress_is_written_over_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    command._show_progress(1, 2, "one")
    command._show_progress(2, 2, "two")
    text = capsys.readouterr().err
    assert text.startswith("\r[###############...............] 1/2 one")
    assert text.count("\n") == 1
    assert text.endswith("\n")


AFTER_WARMUP = """
import itertools, numpy as np, fastbn
from fastbn.kernels import calls, channels_first, channels_last, coefficients, jit, small
from fastbn.kernels.twins import Kernel
for dtype, given in itertools.product((np.float32, np.float64), repeat=2):
    serial = [(4, 3), (4, 3, 5), (4, 3, 300), (16, 3, 5)]
    parallel = [(100, 40, 30), (16, 64, 20, 20), (4, 3, 9000), (5000, 30), (100, 700), (100, 2100)]
    for shape in serial + parallel:
        x = np.ones(shape, dtype)
        x.flags.writeable = False
        layer = fastbn.BatchNorm(shape[1], dtype=given)
        layer.keep_for_backward = True
        layer(x), layer.backward(x), layer.eval()(x), layer.backward(x), layer.freeze()(x)
        strided = np.repeat(x, 2, -1)[..., ::2]
        running = np.ones((shape[1], 2), given).T
        fastbn.forward(strided, None, None, *running)
        fastbn.inference(strided, *running.copy())
        m = fastbn.moments(x)
        fastbn.normalize(x, *np.ones((4, shape[1]), given))
        s = fastbn.backward_sums(x, x, m.mean, m.var)
        fastbn.backward_input(x, x, m.mean, m.var, None, *s, m.count)
kernels = [k for m in (channels_first, channels_last) for k in vars(m).values() if isinstance(k, Kernel)]
twins = [twin for k in kernels for twin in (k.serial, k.parallel)]
twins += [f for m in (coefficients, small) for f in vars(m).values() if hasattr(f, "_cache") and f._cache.cache_path]
twins += [compiled for e in vars(calls).values() if isinstance(e, jit.Entries) for compiled in e.compiled]
print(sum(sum(t.stats.cache_misses.values()) for t in twins), sum(sum(t.stats.cache_hits.values()) for t in twins))
"""


@pytest.mark.large
def test_nothing_is_compiled_after_warmup():
    """In the user's cache folder, which the test run fills in any case."""
    run = subprocess.run(
        [sys.executable, "-m", "fastbn", "warmup", "--jobs", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert run.stdout.startswith("131 kernels in ")
    last = run.stderr.splitlines()[-1]
    assert last == "[##############################] 131/131 channels_last.backward_in_phases_parallel"
    calls = subprocess.run(
        [sys.executable, "-c", AFTER_WARMUP], capture_output=True, text=True, timeout=600, check=True
    )
    misses, hits = map(int, calls.stdout.split())
    assert misses == 0
    assert hits == 103 if (os.cpu_count() or 1) > 1 else hits == 67


@pytest.mark.skipif(not numba.config.DISABLE_JIT, reason="the test above runs it compiled")
@pytest.mark.parametrize("jobs", [1, 2])
def test_warmup_without_compilation(capsys, jobs):
    """Its arguments fit: every kernel takes them."""
    command.main(["warmup", "--jobs", str(jobs)])
    shown = capsys.readouterr()
    assert shown.out.startswith("131 kernels in ")
    assert "131/131 channels_last.backward" in shown.err
