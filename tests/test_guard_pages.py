"""No kernel touches memory beyond an array: there it would be killed."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages through the C library"),
]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "tests.guard_pages", *arguments]
    options = {"cwd": ROOT, "env": {**os.environ, **environment}, "timeout": 600, "check": False}
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_pages_are_guarded():
    assert run("fault").returncode == -signal.SIGSEGV


@pytest.mark.parametrize("sizes", ["small", "large"])
def test_nothing_beyond_is_touched(sizes):
    done = run(sizes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" checks\n")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no such processor")
def test_nor_where_output_is_written_while_others_are_summed():
    """In forward and in backward: as on a processor that does (see ``kernels.lagging``)."""
    features = llvmlite.binding.get_host_cpu_features().flatten()
    done = run("lagging", NUMBA_CPU_NAME="emeraldrapids", NUMBA_CPU_FEATURES=features)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 checks\n"
