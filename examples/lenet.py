"""LeNet on handwritten digits: convolutions in NumPy, batch normalization from fastbn, folded away for inference.

Conv 1-20 5x5, max-pool 2, BN, ReLU; conv 20-50 5x5, max-pool 2, BN, ReLU; dense 800-500 ReLU, 500-10. The images are
scikit-learn's, enlarged from 8x8 to 28x28. Softmax cross entropy, SGD with momentum.

Folding: max-pooling stands between a convolution and its batch normalization, which in evaluation mode is ``scale * x +
shift`` in each channel. A rising function may change places with a maximum: ``scale * max(x) + shift = max(scale * x +
shift)`` where ``scale >= 0``. A falling one turns it into a minimum. So convolution and batch normalization fold into
one convolution, and channels of negative scale are then min-pooled. The new bias, the same for all values that are
compared, is added after the pooling, to a quarter of the values.

The folded network has to give the scores of the network in evaluation mode, also after half of the scales were made
negative: the program ends with an error otherwise. There is little time to gain, as NumPy's convolutions take nearly
all of it, and the bias is a pass over the values, too; ``cpu_inference.py`` shows how to avoid that one.

    python examples/lenet.py [--epochs 10] [--seed 0] [--repeats 15]

Needs scikit-learn and tqdm: ``pip install -e ".[examples]"``. Runs on one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

import fastbn

Array: TypeAlias = NDArray[Any]
Data: TypeAlias = tuple[Array, ...]

KERNEL = 5
BATCH_SIZE = 64
RATE, MOMENTUM = 0.02, 0.9
EXACT = 1e-5  # of the largest score: float32 rounds at 6e-8, in sums of up to 800 products, through four layers


def windows(x: Array) -> Array:
    """What each output of a convolution sees: (N, H, W, C) to (N, H - 4, W - 4, 25 * C)."""
    seen = np.lib.stride_tricks.sliding_window_view(x, (KERNEL, KERNEL), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    return seen.reshape(*seen.shape[:3], -1)


def matrix(weight: Array) -> Array:
    """Weights in PyTorch's layout, (out, in, 5, 5), as the matrix that windows are multiplied with."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def overlaid(dseen: Array, shape: tuple[int, ...]) -> Array:
    """Gradient of ``windows``: every value takes part in up to 25 of them."""
    dx = np.zeros(shape, dseen.dtype)
    height, width = dseen.shape[1:3]
    parts = dseen.reshape(*dseen.shape[:3], KERNEL, KERNEL, -1)
    for i, j in np.ndindex(KERNEL, KERNEL):
        dx[:, i : i + height, j : j + width] += parts[:, :, :, i, j]
    return dx


def corners(x: Array) -> list[Array]:
    """The four values of each 2x2 square, as views."""
    return [x[:, i::2, j::2] for i, j in np.ndindex(2, 2)]


def max_pool(x: Array) -> Array:
    """The largest value of each square."""
    largest: Array = np.maximum.reduce(corners(x))
    return largest


def max_pool_gradient(dout: Array, x: Array, out: Array) -> Array:
    """Each square's gradient goes to its largest value, the first of them if there are several."""
    dx = np.zeros_like(x)
    free = np.ones(out.shape, bool)
    for value, target in zip(corners(x), corners(dx), strict=True):
        taken = free & (value == out)
        np.copyto(target, dout, where=taken)
        free &= ~taken
    return dx


class Stage:
    """Convolution, max-pooling, batch normalization, ReLU. No bias: the batch's mean would take it away again."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, dtype: DTypeLike) -> None:
        deviation = math.sqrt(2 / (inputs * KERNEL**2))
        self.weight = (rng.standard_normal((outputs, inputs, KERNEL, KERNEL)) * deviation).astype(dtype)
        self.bn = fastbn.BatchNorm(outputs, axis=-1, dtype=dtype)

    def forward(self, x: Array) -> Array:
        """Output; keeps what ``backward`` needs."""
        self.shape = x.shape
        self.seen = windows(x)
        self.z: Array = self.seen @ matrix(self.weight)
        self.pooled = max_pool(self.z)
        self.out = np.maximum(self.bn(self.pooled), 0)
        return self.out

    def backward(self, dout: Array) -> Array:
        """Gradient with respect to ``x``; keeps the parameters'."""
        dpooled = self.bn.backward(dout * (self.out > 0))
        dz = max_pool_gradient(dpooled, self.z, self.pooled)
        dmatrix = np.tensordot(self.seen, dz, axes=((0, 1, 2), (0, 1, 2)))
        outputs, inputs = self.weight.shape[:2]
        self.dweight = dmatrix.reshape(KERNEL, KERNEL, inputs, outputs).transpose(3, 2, 0, 1)
        return overlaid(dz @ matrix(self.weight).T, self.shape)

    def parameters(self) -> list[Array | None]:
        """What is learned."""
        return [self.weight, self.bn.gamma, self.bn.beta]

    def gradients(self) -> list[Array | None]:
        """The gradients of the parameters."""
        return [self.dweight, self.bn.dgamma, self.bn.dbeta]


class Dense:
    """``x @ weight.T + bias``."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, dtype: DTypeLike) -> None:
        self.weight = (rng.standard_normal((outputs, inputs)) * math.sqrt(2 / inputs)).astype(dtype)
        self.bias = np.zeros(outputs, dtype)

    def forward(self, x: Array) -> Array:
        """Output; keeps what ``backward`` needs."""
        self.x = x
        out: Array = x @ self.weight.T + self.bias
        return out

    def backward(self, dout: Array) -> Array:
        """Gradient with respect to ``x``; keeps the parameters'."""
        self.dweight, self.dbias = dout.T @ self.x, dout.sum(axis=0)
        dx: Array = dout @ self.weight
        return dx

    def parameters(self) -> list[Array | None]:
        """What is learned."""
        return [self.weight, self.bias]

    def gradients(self) -> list[Array | None]:
        """The gradients of the parameters."""
        return [self.dweight, self.dbias]


class LeNet:
    """Two stages and two dense layers, for images of 28x28."""

    def __init__(self, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> None:
        self.stages = Stage(rng, 1, 20, dtype), Stage(rng, 20, 50, dtype)
        self.hidden, self.last = Dense(rng, 800, 500, dtype), Dense(rng, 500, 10, dtype)

    def train(self, mode: bool = True) -> None:
        """Set training mode, or evaluation mode."""
        for stage in self.stages:
            stage.bn.train(mode)

    def forward(self, x: Array) -> Array:
        """Scores of the classes for images (N, 28, 28, 1)."""
        for stage in self.stages:
            x = stage.forward(x)
        self.activation = np.maximum(self.hidden.forward(x.reshape(len(x), -1)), 0)
        return self.last.forward(self.activation)

    def backward(self, dscores: Array) -> Array:
        """Gradient with respect to the images; the layers keep the parameters'."""
        dout = self.hidden.backward(self.last.backward(dscores) * (self.activation > 0))
        dout = dout.reshape(self.stages[-1].out.shape)
        for stage in reversed(self.stages):
            dout = stage.backward(dout)
        return dout

    def parameters(self) -> list[Array]:
        """What is learned."""
        layers = (*self.stages, self.hidden, self.last)
        return [parameter for layer in layers for parameter in layer.parameters() if parameter is not None]

    def gradients(self) -> list[Array]:
        """The gradients of the parameters, in the same order."""
        layers = (*self.stages, self.hidden, self.last)
        return [gradient for layer in layers for gradient in layer.gradients() if gradient is not None]


class FoldedStage:
    """A stage for inference: convolution and batch normalization in one."""

    def __init__(self, stage: Stage) -> None:
        weight, self.bias = fastbn.fold.conv(stage.weight, None, stage.bn)
        self.matrix = matrix(weight)
        scale, _ = fastbn.fold.scale_shift(stage.bn)
        self.falling = np.flatnonzero(scale < 0)

    def __call__(self, x: Array) -> Array:
        """Output of the stage in evaluation mode."""
        z: Array = windows(x) @ self.matrix
        out = max_pool(z)
        if self.falling.size:
            out[..., self.falling] = -max_pool(-z[..., self.falling])  # the smallest values
        out += self.bias
        return np.maximum(out, 0, out=out)


class FoldedLeNet:
    """A network for inference only, without batch normalization. It copies nothing that the dense layers hold."""

    def __init__(self, network: LeNet) -> None:
        self.stages = [FoldedStage(stage) for stage in network.stages]
        self.hidden, self.last = network.hidden, network.last

    def forward(self, x: Array) -> Array:
        """Scores of the classes."""
        for stage in self.stages:
            x = stage(x)
        return self.last.forward(np.maximum(self.hidden.forward(x.reshape(len(x), -1)), 0))


def cross_entropy(scores: Array, y: Array) -> tuple[float, Array]:
    """Mean over the images, and its gradient with respect to the scores."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = float(np.mean(np.log(sums[:, 0]) - shifted[rows, y]))
    dscores = exponentials / sums
    dscores[rows, y] -= 1
    return loss, dscores / len(y)


def accuracy(scores: Array, y: Array) -> float:
    """Percentage of the images whose largest score is at the right class."""
    return 100 * float(np.mean(scores.argmax(axis=1) == y))


def load() -> Data:
    """The digits, enlarged to 28x28 by linear interpolation: ``x_train, x_test, y_train, y_test``."""
    from sklearn.datasets import load_digits  # here, as the network needs no scikit-learn
    from sklearn.model_selection import train_test_split

    images, y = load_digits(return_X_y=True)
    places = np.linspace(0, 7, 28).reshape(-1, 1)
    line = np.maximum(0, 1 - abs(places - np.arange(8)))
    x = (line @ (images.reshape(-1, 8, 8) / 16) @ line.T).astype(np.float32)[..., np.newaxis]
    return tuple(train_test_split(x, y, test_size=0.25, stratify=y, random_state=0))


def train(network: LeNet, data: Data, epochs: int, rng: np.random.Generator) -> None:
    """SGD with momentum; prints loss and accuracy as it goes."""
    from tqdm import tqdm  # here, as load

    x_train, x_test, y_train, y_test = data
    velocities = [np.zeros_like(parameter) for parameter in network.parameters()]
    print("epoch | training loss | test accuracy in evaluation mode, %")
    for epoch in range(1, epochs + 1):
        network.train()
        order = rng.permutation(len(x_train))
        losses = []
        for start in tqdm(range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE), leave=False, disable=None):
            batch = order[start : start + BATCH_SIZE]
            loss, dscores = cross_entropy(network.forward(x_train[batch]), y_train[batch])
            network.backward(dscores)
            for parameter, gradient, velocity in zip(
                network.parameters(), network.gradients(), velocities, strict=True
            ):
                velocity *= MOMENTUM
                velocity -= RATE * gradient
                parameter += velocity
            losses.append(loss)
        network.train(False)
        print(f"{epoch:5} | {np.mean(losses):13.4f} | {accuracy(network.forward(x_test), y_test):6.2f}", flush=True)


def difference(network: LeNet, x: Array) -> float:
    """The largest between the scores of a network and its folded form, over the largest score."""
    expected = network.forward(x)
    return float(abs(FoldedLeNet(network).forward(x) - expected).max() / abs(expected).max())


def medians(functions: Sequence[Callable[[Array], Array]], x: Array, repeats: int) -> list[float]:
    """Milliseconds that each function takes; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, measured in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(x)
            if repeat:  # the first turn warms up
                measured.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(measured) for measured in times]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, fold, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15, help="how many times inference is measured")
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.repeats < 1:
        parser.error("--epochs and --repeats: expected 1 or more")
    rng = np.random.default_rng(options.seed)
    data = load()
    network = LeNet(rng)
    train(network, data, options.epochs, rng)

    _, x_test, _, y_test = data
    folded = FoldedLeNet(network)
    functions = network.forward, folded.forward
    right = [accuracy(function(x_test), y_test) for function in functions]
    times = medians(functions, x_test, options.repeats)
    print(f"\nInference on the {len(x_test)} test images, medians of {options.repeats} calls that take turns")
    print(f"  with batch normalization: {times[0]:6.1f} ms, {right[0]:.2f}% right")
    print(f"  folded:                   {times[1]:6.1f} ms, {right[1]:.2f}% right")
    print("Largest difference of a score, of the largest score")
    differences = [difference(network, x_test)]
    falling = sum(stage.falling.size for stage in folded.stages)
    print(f"  as trained, with {falling} of 70 scales negative: {differences[0]:.1e}")
    for stage in network.stages:
        assert stage.bn.gamma is not None  # as affine=True
        stage.bn.gamma[::2] *= -1
    differences.append(difference(network, x_test))
    print(f"  with every second scale negated:         {differences[1]:.1e}")
    if not max(differences) < EXACT:
        raise SystemExit("The folded network is another one.")


if __name__ == "__main__":
    # Numba's threads and those of NumPy's BLAS, which does nearly all of the work, would fight for the cores.
    numba.set_num_threads(1)
    with threadpool_limits(1):
        main()
