"""Where batch normalization does harm: batches of two, three or four. Handwritten digits, 64-100-100-10.

The statistics of a batch of two say little of the data: in training each value is a little above or a little below the
other, and how far apart they are is lost. Trains the same network with and without batch normalization at several
batch sizes, for the same number of epochs, with plain SGD and the learning rate that suits it: of a few, the one with
the best mean accuracy on images held back for this. Prints accuracies on the test images, means over seeds with their
standard errors; a seed fixes first weights and order, alike with and without.

    python examples/tiny_batches.py [--epochs 20] [--seeds 10] [--batch-sizes 2 3 4 8 16 32 64]

Needs scikit-learn and tqdm: ``pip install -e ".[examples]"``.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import fastbn

Array: TypeAlias = NDArray[Any]

WIDTHS = (64, 100, 100, 10)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Network:
    """Dense layers with ReLU between them, and batch normalization before each ReLU, or a bias."""

    def __init__(self, rng: np.random.Generator, batch_norm: bool) -> None:
        shapes = list(itertools.pairwise(WIDTHS))
        self.weights = [rng.standard_normal(shape, np.float32) * math.sqrt(2 / shape[0]) for shape in shapes]
        self.biases = [np.zeros(outputs, np.float32) for _, outputs in shapes]
        self.norms = [fastbn.BatchNorm1d(outputs) for outputs in WIDTHS[1:-1]] if batch_norm else []

    def scores(self, x: Array, *, training: bool = False) -> Array:
        """Scores of the classes; keeps what ``learn`` needs."""
        self.inputs = [x]
        for index, (weights, bias) in enumerate(zip(self.weights[:-1], self.biases, strict=False)):
            z = self.inputs[-1] @ weights
            z = self.norms[index].train(training)(z) if self.norms else z + bias
            self.inputs.append(np.maximum(z, 0))
        scores: Array = self.inputs[-1] @ self.weights[-1] + self.biases[-1]
        return scores

    def learn(self, x: Array, y: Array, rate: float) -> None:
        """Take a step of SGD on the mean cross entropy of a batch."""
        scores = self.scores(x, training=True)
        dz = np.exp(scores - scores.max(axis=1, keepdims=True))
        dz /= dz.sum(axis=1, keepdims=True)
        dz[np.arange(len(y)), y] -= 1
        dz /= len(y)
        for index in reversed(range(len(self.weights))):
            if self.norms and index < len(self.norms):
                norm = self.norms[index]
                dz = norm.backward(dz)
                for parameter, gradient in (norm.gamma, norm.dgamma), (norm.beta, norm.dbeta):
                    assert parameter is not None  # the layer is affine
                    assert gradient is not None  # and has been through backward
                    parameter -= rate * gradient
            else:
                self.biases[index] -= rate * dz.sum(axis=0)
            dx = dz @ self.weights[index].T
            self.weights[index] -= rate * (self.inputs[index].T @ dz)
            dz = dx * (self.inputs[index] > 0)

    def accuracy(self, x: Array, y: Array) -> float:
        """Percentage of right answers in inference mode."""
        return 100 * float(np.mean(self.scores(x).argmax(axis=1) == y))


def load() -> list[tuple[Array, Array]]:
    """Images and labels to learn from, to choose the rate by, and to test on: 1047, 300 and 450."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=450, stratify=y, random_state=0)
    x, x_held, y, y_held = train_test_split(x, y, test_size=300, stratify=y, random_state=0)
    return [(x, y), (x_held, y_held), (x_test, y_test)]


def train(
    data: list[tuple[Array, Array]], batch_size: int, batch_norm: bool, rate: float, seed: int, epochs: int
) -> list[float]:
    """Accuracies of a new network on the images held back and on the test images. Incomplete batches are left out."""
    (x, y), *others = data
    rng = np.random.default_rng(seed)
    network = Network(rng, batch_norm)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for batch in order[: len(x) - len(x) % batch_size].reshape(-1, batch_size):
            network.learn(x[batch], y[batch], rate)
    return [network.accuracy(*other) for other in others]


def main(argv: Sequence[str] | None = None) -> None:
    """Train all networks, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds to average over")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 3, 4, 8, 16, 32, 64])
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.seeds < 2 or min(options.batch_sizes) < 2:
        parser.error("expected 1 epoch, 2 seeds and a batch size of 2 or more")
    data = load()
    shape = (len(options.batch_sizes), 2, len(RATES), options.seeds)
    accuracies = np.empty((*shape, 2))
    with np.errstate(over="ignore", invalid="ignore"):  # too high a rate may diverge
        for index in tqdm(list(np.ndindex(shape)), unit="network", disable=None):
            size, batch_norm, rate, seed = index
            accuracies[index] = train(
                data, options.batch_sizes[size], bool(batch_norm), RATES[rate], seed, options.epochs
            )
    print(f"Test accuracy in percent after {options.epochs} epochs, mean over {options.seeds} seeds ± standard error\n")
    print(f"{'batch size':>10} | {'without':>14} {'rate':>6} | {'with':>14} {'rate':>6} | {'difference':>14}")
    for batch_size, runs in zip(options.batch_sizes, accuracies, strict=True):
        best = runs[..., 0].mean(axis=-1).argmax(axis=-1)
        without, with_it = (runs[batch_norm, best[batch_norm], :, 1] for batch_norm in (0, 1))
        cells = [
            f"{values.mean():{sign}7.2f} ± {values.std(ddof=1) / math.sqrt(options.seeds):.2f}"
            for values, sign in ((without, ""), (with_it, ""), (with_it - without, "+"))
        ]
        columns = [f"{cell:>14} {RATES[rate]:6}" for cell, rate in zip(cells[:2], best, strict=True)]
        print(f"{batch_size:10} | {columns[0]} | {columns[1]} | {cells[2]:>14}")


if __name__ == "__main__":
    # A test set this small gains nothing by threads, and Numba's would fight those of NumPy's BLAS for the cores.
    numba.set_num_threads(1)
    main()
