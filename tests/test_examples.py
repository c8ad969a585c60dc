"""The examples run as the README says, in a short mode."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, needs):
    """What an example prints; warnings are errors."""
    for module in needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    command = [sys.executable, "-W", "error", EXAMPLES / name, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.large
def test_digits(tmp_path):
    picture = tmp_path / "curves.png"
    needs = ("matplotlib", "sklearn", "tqdm")
    printed = run("digits.py", "--epochs", "2", "--seeds", "1", "--out", picture, needs=needs)
    rows = [line for line in printed.splitlines() if line.strip()[:2] in ("1 ", "2 ")]
    assert len(rows) == 2
    accuracies = [float(value) for value in rows[1].replace("|", " ").split()[1:]]
    assert len(accuracies) == 12
    assert min(accuracies) > 60  # two epochs teach every network something
    assert max(accuracies) <= 100
    assert "Too few epochs" in printed
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 10_000


@pytest.mark.large
def test_train_test_pair():
    """It compares itself with the formulas, and fails where it leaves them."""
    printed = run("train_test_pair.py", "--epochs", "2", needs=["sklearn"])
    rows = {line.split()[0]: line.split("|") for line in printed.splitlines() if line.strip().startswith("0.9")}
    assert list(rows) == ["0.9", "0.99", "0.999"]
    accuracies = {momentum: float(columns[1].split()[-1]) for momentum, columns in rows.items()}
    assert accuracies["0.9"] > 80
    assert accuracies["0.9"] > accuracies["0.99"] > accuracies["0.999"]  # 42 steps are few for a slow average
    for columns in rows.values():
        assert 0 < max(map(float, columns[2].split())) < 1e-12  # two networks, not one


@pytest.mark.large
def test_tiny_batches():
    """The harm at two images a batch is large enough to be seen after one epoch."""
    short = ("--epochs", "1", "--seeds", "2", "--batch-sizes", "2", "32")
    printed = run("tiny_batches.py", *short, needs=["sklearn", "tqdm"])
    rows = [line.split("|") for line in printed.splitlines() if line.count("|") == 3]
    differences = {size.strip(): float(difference.split()[0]) for size, _, _, difference in rows[1:]}
    assert list(differences) == ["2", "32"]
    assert differences["2"] < -10 < -5 < differences["32"]
