"""No kernel touches memory beyond an array: there it would be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages through the C library"),
]


def run(*arguments):
    command = [sys.executable, "-m", "tests.guard_pages", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_the_pages_are_guarded():
    assert run("fault").returncode == -signal.SIGSEGV


@pytest.mark.parametrize("sizes", ["small", "large"])
def test_nothing_beyond_is_touched(sizes):
    done = run(sizes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" checks\n")
