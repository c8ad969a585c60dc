"""The benchmarks on a GPU, as far as they go without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench import gpu
from bench.cases import WrongResultError
from bench.shapes import Problem

PROBLEM = Problem("small", (4, 5, 3, 2), 1e-5)


def row(operation, layout, scale=1.0, **seconds):
    return {
        "operation": operation,
        "layout": layout,
        "shape": "1x2x3x4",
        "bytes": 3_000_000,
        "seconds": {name.replace("_", ", "): value * scale for name, value in seconds.items()},
        "missing": {},
    }


ROWS = [
    row("forward", "NCHW", fastbn=3e-6, PyTorch_cuDNN=6e-6, copy=2e-6),
    row("forward", "NCHW", 4, fastbn=3e-6, PyTorch_cuDNN=1.5e-6, copy=2e-6),
    row("backward", "NHWC", fastbn=6e-6, copy=2.5e-6),
]


def test_bandwidth_is_that_of_the_fastest_copy():
    assert gpu.bandwidth(ROWS) == pytest.approx(3e12)


def test_tables():
    lines = gpu.tables(ROWS).splitlines()
    assert lines[0] == "Copy: 3000 GB/s"
    forward = lines[2:7]
    head = "forward, NCHW: ms | fastbn | PyTorch, cuDNN | limit | fastbn / limit | PyTorch, cuDNN / limit"
    assert forward[0] == f"| {head} |"
    assert forward[2] == "| 1x2x3x4 | 0.003 | 0.006 | 0.002 | 1.50 | 3.00 |"
    assert forward[3] == "| 1x2x3x4 | 0.012 | 0.006 | 0.002 | 6.00 | 3.00 |"
    assert forward[4] == "| geometric mean; fastbn, times as fast |  | x 1.00 |  | 3.00 | 3.00 |"
    assert lines[8] == "| backward, NHWC: ms | fastbn | limit | fastbn / limit |"
    assert lines[10] == "| 1x2x3x4 | 0.006 | 0.003 | 2.00 |"


def test_show(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, rows in zip(paths, (ROWS[:1], ROWS[1:]), strict=True):
        path.write_text(json.dumps({"machine": {}, "rows": rows}))
    gpu.main(["--show", *map(str, paths)])
    assert capsys.readouterr().out == gpu.tables(ROWS) + "\n"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("operation", gpu.MEASURED)
def test_expected_results_are_checked(operation, last):
    data = gpu.Data(PROBLEM, last)
    assert data.x.shape == PROBLEM.shape
    assert data.x.transpose(0, 2, 3, 1).flags.c_contiguous == last
    whole = data.expected(operation, range(5))
    picked = data.expected(operation, [0, 4])
    gpu.check(operation, [a[:, [0, 4]] if a.ndim == 4 else a[[0, 4]] for a in whole], picked)
    with pytest.raises(WrongResultError, match="with a relative error of"):
        gpu.check(operation, [a + 0.01 for a in picked], picked)


def test_without_a_gpu_it_says_so(tmp_path):
    """Also where numba-cuda is not installed, or simulates."""
    command = [sys.executable, "-m", "bench.gpu", "--json", str(tmp_path / "figures.json")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert finished.returncode == 1
    assert finished.stderr.startswith("bench.gpu: expected a GPU, got ")
    assert not list(tmp_path.iterdir())
