"""The examples run, in a short mode; and LeNet's gradients and folding are right."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tolerances

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


LENET = ("sklearn", "threadpoolctl", "tqdm")


@pytest.mark.large
def test_lenet():
    """It compares itself with its folded form, and fails where they differ."""
    printed = run("lenet.py", "--epochs", "2", "--repeats", "2", needs=LENET)
    rows = [line.split("|") for line in printed.splitlines() if line.strip()[:2] in ("1 ", "2 ")]
    losses, accuracies = ([float(row[column]) for row in rows] for column in (1, 2))
    assert losses[1] < losses[0] / 2
    assert accuracies[1] > 90
    differences = [float(line.split()[-1]) for line in printed.splitlines()[-2:]]
    assert 0 < min(differences) <= max(differences) < 1e-5  # two networks, not one


@pytest.mark.large
def test_cpu_inference():
    printed = run("cpu_inference.py", "--repeats", "3", needs=("sklearn", "threadpoolctl"))
    rows = [line.split("|") for line in printed.splitlines() if line.count("|") == 4][1:]
    assert len(rows) == 6
    assert all(float(value) > 0 for row in rows for value in row[2:])
    frozen, folded = (float(line.split()[-1]) for line in printed.splitlines()[-2:])
    assert frozen == 0  # the same bits
    assert 0 < folded < 1e-5


@pytest.fixture
def lenet():
    pytest.importorskip("threadpoolctl")
    return importlib.import_module("examples.lenet")


@pytest.mark.large
@pytest.mark.parametrize("flipped", [False, True])
def test_gradients_of_lenet(rng, lenet, flipped):
    """Every kind of parameter, and the images, against central differences of the loss in training mode."""
    network = lenet.LeNet(rng, np.float64)
    for stage in network.stages:
        stage.bn.gamma[:] = rng.uniform(0.5, 1.5, stage.bn.num_features) * (-1 if flipped else 1)
        stage.bn.beta[:] = rng.standard_normal(stage.bn.num_features)
    images, labels = rng.standard_normal((3, 28, 28, 1)), rng.integers(0, 10, 3)
    _, dscores = lenet.cross_entropy(network.forward(images), labels)
    dimages = network.backward(dscores)
    arrays = [images, *network.parameters()]
    gradients = [gradient.copy() for gradient in (dimages, *network.gradients())]
    step = 1e-7  # so small that hardly any maximum or ReLU goes over to another value
    for array, gradient in zip(arrays, gradients, strict=True):
        assert array.shape == gradient.shape
        largest = np.argsort(abs(gradient), axis=None)[-3:]
        for place in (*largest, *rng.integers(0, array.size, 3)):
            index = np.unravel_index(place, array.shape)
            value, losses = array[index], []
            for moved in (value + step, value - step):
                array[index] = moved
                losses.append(lenet.cross_entropy(network.forward(images), labels)[0])
            array[index] = value
            numerical = (losses[0] - losses[1]) / (2 * step)
            assert abs(numerical - gradient[index]) < 1e-6 * abs(gradient).max()


@pytest.mark.large
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_folding_of_lenet(rng, lenet, dtype):
    """Scales of both signs, and zero."""
    network = lenet.LeNet(rng, dtype)
    for stage in network.stages:
        channels = stage.bn.num_features
        stage.bn.gamma[:], stage.bn.beta[:] = rng.standard_normal(channels), rng.standard_normal(channels)
        stage.bn.gamma[3] = 0
        stage.bn.running_mean[:] = rng.standard_normal(channels)
        stage.bn.running_var[:] = rng.uniform(0.5, 2.0, channels)
    network.train(False)
    images = rng.standard_normal((4, 28, 28, 1)).astype(dtype)
    folded = lenet.FoldedLeNet(network)
    assert all(0 < stage.falling.size < len(stage.bias) for stage in folded.stages)
    assert tolerances.ulps(folded.forward(images), network.forward(images), dtype) <= tolerances.ULPS[dtype]["out"] * 8
