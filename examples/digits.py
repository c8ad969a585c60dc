"""What batch normalization does to a small network, at three batch sizes: handwritten digits, 64-100-100-10.

Trains with and without batch normalization in the hidden layers, with softmax cross entropy, plain SGD and one
learning rate for all. ReLU, since with a sigmoid the network without normalization hardly starts, and would be no
match. A seed fixes the first weights and the order of the images, alike with and without; results are means over
seeds. The test set is always the same quarter of the images, stratified.

Training accuracy is measured in two ways. *Inference mode*: after each epoch, on the whole training set, with the
running statistics. *While training*: on each batch before its update, normalised with the batch's own statistics.

    python examples/digits.py [--epochs 50] [--seeds 5] [--seed 0] [--out digits.png]

Needs matplotlib, scikit-learn and tqdm: ``pip install -e ".[examples]"``.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import fastbn

Array: TypeAlias = NDArray[Any]
Data: TypeAlias = tuple[Array, ...]

WIDTHS = (64, 100, 100, 10)
BATCH_SIZES = (5, 10, 50)
RATE = 0.1  # of 0.01, 0.03 and 0.1 the one at which all six networks learn the training set in 50 epochs

TRAIN, TEST, BATCH = range(3)  # training and test set in inference mode; batches while training
EARLY, LATE, LONG = 3, 10, 30  # so many epochs are the early ones, the late ones, and the least to have both
IMAGE = 0.22  # points that one test image is worth; a smaller effect is none


class Dense:
    """``batch_norm(x @ weights)``; without batch normalization ``x @ weights + beta``."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, batch_norm: bool) -> None:
        self.weights = rng.standard_normal((inputs, outputs), np.float32) * math.sqrt(2 / inputs)
        self.gamma = np.ones(outputs, np.float32) if batch_norm else None
        self.beta = np.zeros(outputs, np.float32)
        self.running_mean = np.zeros(outputs, np.float32)
        self.running_var = np.ones(outputs, np.float32)

    def infer(self, x: Array) -> Array:
        """Output by the running statistics."""
        z: Array = x @ self.weights
        if self.gamma is None:
            return z + self.beta
        return fastbn.inference(z, self.running_mean, self.running_var, self.gamma, self.beta)

    def forward(self, x: Array) -> Array:
        """Output by the batch's statistics, which move the running ones; keeps what ``backward`` needs."""
        self.x = x
        z: Array = x @ self.weights
        if self.gamma is None:
            return z + self.beta
        out, self.cache = fastbn.forward(z, self.gamma, self.beta, self.running_mean, self.running_var, training=True)
        return out

    def backward(self, dout: Array) -> Array:
        """Take a step of SGD; returns the gradient with respect to ``x``, from before the step."""
        if self.gamma is None:
            dz, dbeta = dout, dout.sum(axis=0)
        else:
            dz, dgamma, dbeta = fastbn.backward(dout, self.cache)
            assert dgamma is not None  # as gamma is not
            self.gamma -= RATE * dgamma
        dx: Array = dz @ self.weights.T
        self.weights -= RATE * (self.x.T @ dz)
        self.beta -= RATE * dbeta
        return dx


class Network:
    """Dense layers with ReLU between them; all but the last may have batch normalization."""

    def __init__(self, rng: np.random.Generator, batch_norm: bool) -> None:
        *hidden, last = itertools.pairwise(WIDTHS)
        self.layers = [*(Dense(rng, *shape, batch_norm) for shape in hidden), Dense(rng, *last, batch_norm=False)]

    def infer(self, x: Array) -> Array:
        """Scores of the classes, in inference mode."""
        *hidden, last = self.layers
        for layer in hidden:
            x = np.maximum(layer.infer(x), 0)
        return last.infer(x)

    def learn(self, x: Array, y: Array) -> float:
        """Take a step of SGD on the mean cross entropy of a batch; returns the accuracy on it before the step."""
        *hidden, last = self.layers
        for layer in hidden:
            x = np.maximum(layer.forward(x), 0)
        scores = last.forward(x)
        dscores = np.exp(scores - scores.max(axis=1, keepdims=True))
        dscores /= dscores.sum(axis=1, keepdims=True)
        dscores[np.arange(len(y)), y] -= 1
        dout = last.backward(dscores / len(y))
        for after, layer in itertools.pairwise(reversed(self.layers)):
            dout = layer.backward(dout * (after.x > 0))
        return accuracy(scores, y)


def accuracy(scores: Array, y: Array) -> float:
    """Percentage of the rows whose largest score is at the right class."""
    return 100 * float(np.mean(scores.argmax(axis=1) == y))


def load() -> Data:
    """The digits as ``x_train, x_test, y_train, y_test``, always split in the same way: 1347 and 450 images."""
    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split((x / 16).astype(np.float32), y, test_size=0.25, stratify=y, random_state=0))


def train(data: Data, batch_size: int, batch_norm: bool, seed: int, epochs: int) -> Iterator[tuple[float, ...]]:
    """Train a new network; yields the ``TRAIN``, ``TEST`` and ``BATCH`` accuracies of each epoch.

    Images that do not fill a batch are left out, others in each epoch: a batch of one could not be normalised.
    """
    x_train, x_test, y_train, y_test = data
    count = len(x_train)
    rng = np.random.default_rng(seed)
    network = Network(rng, batch_norm)
    for _ in range(epochs):
        batches = rng.permutation(count)[: count - count % batch_size].reshape(-1, batch_size)
        while_training = np.mean([network.learn(x_train[batch], y_train[batch]) for batch in batches])
        yield accuracy(network.infer(x_train), y_train), accuracy(network.infer(x_test), y_test), float(while_training)


def experiment(data: Data, seeds: Sequence[int], epochs: int) -> Array:
    """Accuracies in percent: (kinds, batch sizes, without and with batch normalization, seeds, epochs)."""
    curves = np.empty((3, len(BATCH_SIZES), 2, len(seeds), epochs))
    with tqdm(total=curves[0].size, unit="epoch", disable=None) as progress:
        for size, batch_norm, seed in np.ndindex(curves.shape[1:4]):
            run = train(data, BATCH_SIZES[size], bool(batch_norm), seeds[seed], epochs)
            for epoch, accuracies in enumerate(run):
                curves[:, size, batch_norm, seed, epoch] = accuracies
                progress.update()
    return curves


def print_table(curves: Array) -> None:
    """Accuracies in inference mode, by epoch and batch size."""
    seeds, epochs = curves.shape[3:]
    print(f"Accuracy in percent, inference mode, mean over {seeds} seed(s); +BN: with batch normalization\n")
    print("      " + "".join(f" | {f'batch size {size}':^27}" for size in BATCH_SIZES))
    print("epoch " + " |  train    +BN   test    +BN" * len(BATCH_SIZES))
    for epoch in [*(epoch for epoch in (1, 2, 3, 5, 10, 20, 30, 40) if epoch < epochs), epochs]:
        values = curves[[TRAIN, TEST], ..., epoch - 1].mean(axis=-1)
        cells = [" ".join(f"{value:6.2f}" for value in values[:, size].flat) for size in range(len(BATCH_SIZES))]
        print(f"{epoch:5}  | " + " | ".join(cells))


def interval(values: Array) -> tuple[float, float]:
    """Mean over the seeds and its standard error; rounded, and never -0.0."""
    return round(values.mean(), 2) + 0.0, round(values.std(ddof=1) / math.sqrt(values.size), 2)


def print_gains(gains: dict[str, Array]) -> None:
    """What batch normalization changes, by batch size."""
    print("\nPoints by which batch normalization raises the accuracy, ± the standard error over the seeds")
    print(f"(early: first {EARLY} epochs; late: last {LATE}; batches: while training, by their own statistics)\n")
    print(f"{'':24}" + "".join(f"{f'batch size {size}':>16}" for size in BATCH_SIZES))
    for name, rows in gains.items():
        print(f"{name:<24}" + "".join("{:+10.2f} ± {:.2f}".format(*interval(row)) for row in rows))


def print_verdict(name: str, values: Array, relation: str, threshold: float = IMAGE) -> None:
    """Whether the mean of ``values``, one a seed, is above or below the threshold, by three standard errors."""
    mean, error = interval(values)
    as_claimed = mean > threshold if relation == ">" else mean < threshold
    verdict = "undecided" if abs(mean - threshold) <= 3 * error else "confirmed" if as_claimed else "contradicted"
    print(f"  {verdict:<13} {name}: {mean:.2f} ± {error:.2f} (claim: {relation} {threshold:.2f})")


def print_claims(gains: dict[str, Array]) -> None:
    """What is known of this experiment, confronted with the run."""
    small, *_, large = BATCH_SIZES
    early, late = gains["early test"], gains["late test"]
    print(f"\nWhat is known, judged by three standard errors; a test image is worth {IMAGE} points")

    print("\nSmall batches make batch normalization act as a regulariser and lower training accuracy:")
    for name in "late training batches", "late training set":
        loss = np.minimum(gains[name][-1], 0) - gains[name][0]
        print_verdict(f"{name}, lost at {small} beyond any loss at {large}", loss, ">")
    print_verdict(f"late test, won at {small}", late[0], ">")

    print("Larger batches speed the early epochs most:")
    lead = early[-1] - np.maximum(early[:-1].max(axis=0), 0)
    print_verdict(f"early test, won at {large} beyond any gain at the others", lead, ">")

    print("Late test accuracies converge:")
    nearer = np.abs(early).mean(axis=0) - np.abs(late).mean(axis=0)
    print_verdict("test, distance of with and without, early less late", nearer, ">")
    farthest = late[np.abs(late.mean(axis=1)).argmax()]
    print_verdict("late test, distance where it is largest", np.abs(farthest), "<", 1.0)


def print_results(curves: Array) -> None:
    """The table; and where the run is long enough to tell, what it says of batch normalization."""
    print_table(curves)
    seeds, epochs = curves.shape[3:]
    if epochs < LONG or seeds < 2:
        print(f"\nToo few epochs or seeds to tell what batch normalization does: {LONG} and 2 are needed")
        return
    differences = curves[:, :, 1] - curves[:, :, 0]
    late = differences[..., -LATE:].mean(axis=-1)
    gains = {
        "early test": differences[TEST, ..., :EARLY].mean(axis=-1),
        "late test": late[TEST],
        "late training set": late[TRAIN],
        "late training batches": late[BATCH],
    }
    print_gains(gains)
    print_claims(gains)


def draw(curves: Array, path: Path) -> None:
    """Learning curves, one panel a batch size."""
    seeds, epochs = curves.shape[3:]
    means = curves.mean(axis=3)
    figure = Figure(figsize=(12, 4.5), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(BATCH_SIZES), sharey=True)
    ticks = [epoch for epoch in (1, 2, 5, 10, 20, 50) if epoch <= epochs]
    for size, panel in enumerate(panels):
        for batch_norm, name, colour in (0, "without", "#D55E00"), (1, "with", "#0072B2"):
            for kind, label, style in (TEST, "test", "-"), (TRAIN, "training", "--"), (BATCH, "while training", ":"):
                if kind != BATCH or batch_norm:  # without, it hardly differs from the training accuracy
                    line = means[kind, size, batch_norm]
                    panel.plot(range(1, epochs + 1), line, style, color=colour, label=f"{name}, {label}")
        panel.set(title=f"batch size {BATCH_SIZES[size]}", xlabel="epoch", xscale="log", xlim=(0.9, 1.1 * epochs))
        panel.set_xticks(ticks, labels=map(str, ticks))
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    lowest = means[..., min(1, epochs - 1) :].min()
    panels[0].set(ylabel="accuracy (%)", ylim=(lowest - 1, 100.5))
    panels[-1].legend(loc="lower right", title="batch normalization")
    figure.suptitle(f"Handwritten digits with and without batch normalization, mean over {seeds} seed(s)")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, print its results, draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds to average over")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="where to write the learning curves")
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.seeds < 1:
        parser.error("--epochs and --seeds: expected 1 or more")
    if not options.out.parent.is_dir():
        parser.error(f"--out: expected a file in a folder that exists, got {options.out}")
    curves = experiment(load(), range(options.seed, options.seed + options.seeds), options.epochs)
    print_results(curves)
    draw(curves, options.out)
    print(f"\nLearning curves: {options.out}")


if __name__ == "__main__":
    # A test set this small gains nothing by threads, and Numba's would fight those of NumPy's BLAS for the cores.
    numba.set_num_threads(1)
    main()
