"""The examples run as the README says, in a short mode."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.large
def test_digits(tmp_path):
    for module in ("matplotlib", "sklearn", "tqdm"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    picture = tmp_path / "curves.png"
    command = [sys.executable, "-W", "error", EXAMPLES / "digits.py", "--epochs", "2", "--seeds", "1", "--out", picture]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    rows = [line for line in run.stdout.splitlines() if line.strip()[:2] in ("1 ", "2 ")]
    assert len(rows) == 2
    accuracies = [float(value) for value in rows[1].replace("|", " ").split()[1:]]
    assert len(accuracies) == 12
    assert min(accuracies) > 60  # two epochs teach every network something
    assert max(accuracies) <= 100
    assert "Too few epochs" in run.stdout
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 10_000
