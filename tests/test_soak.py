"""The soak, shortened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_grows():
    command = [sys.executable, "-m", "tests.soak", "--calls", "4000", "--large-every", "100"]
    environment = {**os.environ, "NUMBA_NRT_STATS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory grew by" in done.stdout
