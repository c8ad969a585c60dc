"""The train and test functions of NumPy tutorials, by their formulas and with fastbn, in the same network.

A tutorial's train function normalises with ``x.mean(axis=0)`` and ``x.var(axis=0)`` and keeps running averages of both;
its test function normalises with those. Here is such a pair in plain NumPy, and the same pair in three calls of
fastbn. The same network, 64-100-10 with ReLU, learns handwritten digits once with each, for each momentum that
tutorials use, and ends with the same weights, running averages and scores but for rounding in float64.

The accuracy on the test images, by the running averages, shows what the momentum does: it is the weight of the *old*
average, which starts at zero, so after ``n`` steps ``1 - momentum**n`` of the way is done.

    python examples/train_test_pair.py [--epochs 20] [--seed 0]

Needs scikit-learn: ``pip install -e ".[examples]"``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import fastbn

Array: TypeAlias = NDArray[np.float64]
Data: TypeAlias = tuple[NDArray[Any], ...]

MOMENTA = (0.9, 0.99, 0.999)
EPS = 1e-5
BATCH_SIZE = 64
RATE = 0.1
EXACT = 1e-12  # float64 rounds at 1e-16, and hundreds of steps of SGD carry that on


class Pair(NamedTuple):
    """``train`` with its gradient, and ``test``. ``running`` is a pair of arrays, mean and variance, zeros at first."""

    train: Callable[[Array, Array, Array, tuple[Array, Array], float], tuple[Array, Any]]
    backward: Callable[[Array, Any], tuple[Array, Array, Array]]
    test: Callable[[Array, Array, Array, tuple[Array, Array]], Array]


def formula_train(
    x: Array, gamma: Array, beta: Array, running: tuple[Array, Array], momentum: float
) -> tuple[Array, Any]:
    """Normalise with the batch's mean and variance; move the running ones."""
    mean, var = x.mean(axis=0), x.var(axis=0)
    for average, value in zip(running, (mean, var), strict=True):
        average[:] = momentum * average + (1 - momentum) * value
    inv_std = 1 / np.sqrt(var + EPS)
    x_hat = (x - mean) * inv_std
    return gamma * x_hat + beta, (x_hat, inv_std, gamma)


def formula_backward(dout: Array, cache: Any) -> tuple[Array, Array, Array]:
    """``dx``, ``dgamma``, ``dbeta``."""
    x_hat, inv_std, gamma = cache
    dgamma, dbeta = (dout * x_hat).sum(axis=0), dout.sum(axis=0)
    return gamma * inv_std * (dout - dbeta / len(dout) - x_hat * dgamma / len(dout)), dgamma, dbeta


def formula_test(x: Array, gamma: Array, beta: Array, running: tuple[Array, Array]) -> Array:
    """Normalise with the running values."""
    running_mean, running_var = running
    out: Array = gamma * (x - running_mean) / np.sqrt(running_var + EPS) + beta
    return out


def fastbn_train(
    x: Array, gamma: Array, beta: Array, running: tuple[Array, Array], momentum: float
) -> tuple[Array, Any]:
    """``momentum`` counts the other way; ``correction=0`` is ``x.var``. The running arrays are updated in place."""
    return fastbn.forward(x, gamma, beta, *running, momentum=1 - momentum, correction=0, eps=EPS)


def fastbn_backward(dout: Array, cache: Any) -> tuple[Array, Array, Array]:
    """``dx``, ``dgamma``, ``dbeta``."""
    dx, dgamma, dbeta = fastbn.backward(dout, cache)
    assert dgamma is not None  # as gamma
    assert dbeta is not None  # and beta were given
    return dx, dgamma, dbeta


def fastbn_test(x: Array, gamma: Array, beta: Array, running: tuple[Array, Array]) -> Array:
    """Normalise with the running values."""
    return fastbn.inference(x, *running, gamma, beta, eps=EPS)


FORMULAS = Pair(formula_train, formula_backward, formula_test)
FASTBN = Pair(fastbn_train, fastbn_backward, fastbn_test)


class Network:
    """Dense, batch normalization, ReLU, dense."""

    def __init__(self, pair: Pair, momentum: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.pair, self.momentum = pair, momentum
        self.first = rng.standard_normal((64, 100)) * math.sqrt(2 / 64)
        self.last = rng.standard_normal((100, 10)) * math.sqrt(2 / 100)
        self.gamma, self.beta, self.bias = np.ones(100), np.zeros(100), np.zeros(10)
        self.running = np.zeros(100), np.zeros(100)

    def scores(self, x: Array) -> Array:
        """Scores of the classes, by the running values."""
        hidden = np.maximum(self.pair.test(x @ self.first, self.gamma, self.beta, self.running), 0)
        scores: Array = hidden @ self.last + self.bias
        return scores

    def learn(self, x: Array, y: NDArray[Any]) -> None:
        """Take a step of SGD on the mean cross entropy of a batch."""
        out, cache = self.pair.train(x @ self.first, self.gamma, self.beta, self.running, self.momentum)
        hidden = np.maximum(out, 0)
        scores = hidden @ self.last + self.bias
        dscores = np.exp(scores - scores.max(axis=1, keepdims=True))
        dscores /= dscores.sum(axis=1, keepdims=True)
        dscores[np.arange(len(y)), y] -= 1
        dscores /= len(y)
        dz, dgamma, dbeta = self.pair.backward((dscores @ self.last.T) * (hidden > 0), cache)
        gradients = x.T @ dz, hidden.T @ dscores, dgamma, dbeta, dscores.sum(axis=0)
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter -= RATE * gradient

    def parameters(self) -> tuple[Array, ...]:
        """What is learned."""
        return self.first, self.last, self.gamma, self.beta, self.bias


def load() -> Data:
    """The digits as ``x_train, x_test, y_train, y_test``."""
    from sklearn.datasets import load_digits  # here, as the functions above need no scikit-learn
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split(x / 16, y, test_size=0.25, stratify=y, random_state=0))


def train(networks: Sequence[Network], data: Data, seed: int, epochs: int) -> Iterator[float]:
    """Train all networks on the same batches; yields the test accuracy of the first after each epoch, in percent."""
    x_train, x_test, y_train, y_test = data
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x_train))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            for network in networks:
                network.learn(x_train[batch], y_train[batch])
        yield 100 * float(np.mean(networks[0].scores(x_test).argmax(axis=1) == y_test))


def difference(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The largest, over the largest magnitude of each array."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Train with each momentum, print accuracies and differences, and insist on the differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.epochs < 1:
        parser.error("--epochs: expected 1 or more")
    data = load()
    shown = [*(epoch for epoch in (1, 2, 5, 10, 20, 50) if epoch < options.epochs), options.epochs]
    print("Test accuracy in percent by the running averages, after so many epochs")
    print("Difference between fastbn and the formulas, of the largest magnitude\n")
    print("momentum | " + " ".join(f"{epoch:6}" for epoch in shown) + " | weights  averages  scores")
    for momentum in MOMENTA:
        ours, theirs = (Network(pair, momentum, options.seed) for pair in (FASTBN, FORMULAS))
        accuracies = list(train((ours, theirs), data, options.seed, options.epochs))
        differences = (
            difference(ours.parameters(), theirs.parameters()),
            difference(ours.running, theirs.running),
            difference([ours.scores(data[1])], [theirs.scores(data[1])]),
        )
        print(f"{momentum:8} | " + " ".join(f"{accuracies[epoch - 1]:6.2f}" for epoch in shown), end=" | ")
        print("  ".join(f"{value:.0e}" for value in differences))
        assert max(differences) < EXACT, "fastbn has left the formulas"


if __name__ == "__main__":
    main()
