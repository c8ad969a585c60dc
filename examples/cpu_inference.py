"""Inference on a CPU: batch normalization folded where that is possible, frozen where it is not; both are measured.

The network is residual, with pre-activation blocks, 16 channels, convolutions of 3x3 with zero padding::

    x = relu(bn(conv(images)))                          # folds
    x = x + conv(relu(bn_2(conv(relu(bn_1(x))))))       # three times: bn_2 folds, bn_1 does not
    scores = mean(relu(bn(x))) @ weight.T               # does not

A batch normalization folds into the convolution right before it. ``bn_1`` comes after a sum whose other term is needed
as it is, and has a ReLU between itself and the convolution after it; even without the ReLU, the zeros of the padding
would be in the way. There ``FrozenBatchNorm`` computes its coefficients once, where a layer in evaluation mode computes
them in each call.

A bias in NumPy costs as much as a batch normalization: a pass over the values. Here it is one more column of the matrix
that a convolution multiplies with, beside a row of ones in what it multiplies.

The images are scikit-learn's handwritten digits, enlarged to 32x32. The weights are random: nothing depends on what
they are. The running statistics come from the images by ``fastbn.recalibrate``. All forms of the network have to give
the same scores: the program ends with an error otherwise.

    python examples/cpu_inference.py [--repeats 51] [--seed 0]

Needs scikit-learn: ``pip install -e ".[examples]"``. Runs on one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import fastbn

Array: TypeAlias = NDArray[Any]
Function: TypeAlias = Callable[[Array], Array]

CHANNELS, BLOCKS = 16, 3
BATCHES = 1, 32
EXACT = 1e-5  # of the largest score: float32 rounds at 6e-8, in sums of 144 products, through eight convolutions


class Convolution:
    """3x3 with zero padding, of tensors (C, N, H, W); the weight in PyTorch's layout, (out, in, 3, 3).

    With the channels first of all, all pixels of all images are one matrix product.
    """

    def __init__(self, weight: Array, bias: Array | None = None) -> None:
        self.weight = weight
        self.matrix = weight.reshape(len(weight), -1)
        if bias is not None:
            self.matrix = np.column_stack([self.matrix, bias])

    def __call__(self, x: Array) -> Array:
        """The output."""
        channels, count, height, width = x.shape
        rows = np.zeros((self.matrix.shape[1], count, height, width), x.dtype)
        rows[9 * channels :] = 1  # for the bias
        seen = rows[: 9 * channels].reshape(channels, 3, 3, count, height, width)  # a view
        for i, j in np.ndindex(3, 3):
            source = x[..., max(i - 1, 0) : height + i - 1, max(j - 1, 0) : width + j - 1]
            seen[:, i, j, :, max(1 - i, 0) : height + 1 - i, max(1 - j, 0) : width + 1 - j] = source
        out: Array = self.matrix @ rows.reshape(len(rows), -1)
        return out.reshape(-1, count, height, width)


@dataclass(frozen=True)
class Normalized:
    """A convolution and the batch normalization after it."""

    convolution: Convolution
    bn: fastbn.BatchNorm | fastbn.FrozenBatchNorm

    def __call__(self, x: Array) -> Array:
        """The output."""
        z = self.convolution(x)
        return self.bn(z, out=z)


@dataclass(frozen=True)
class Block:
    """``x + last(relu(first(relu(bn(x)))))``."""

    bn: fastbn.BatchNorm | fastbn.FrozenBatchNorm
    first: Normalized | Convolution
    last: Convolution

    def __call__(self, x: Array) -> Array:
        """The output."""
        hidden = self.first(relu(self.bn(x)))
        out = self.last(relu(hidden))
        out += x
        return out


@dataclass(frozen=True)
class Network:
    """The network in any form: with layers, frozen, or folded."""

    stem: Normalized | Convolution
    blocks: Sequence[Block]
    bn: fastbn.BatchNorm | fastbn.FrozenBatchNorm
    weight: Array

    def __call__(self, x: Array) -> Array:
        """Scores of ten classes."""
        x = relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        scores: Array = relu(self.bn(x)).mean(axis=(2, 3)).T @ self.weight.T
        return scores

    def converted(self, norm: Callable[[Any], Any], normalized: Callable[[Any], Any]) -> Network:
        """The same network with its parts in another form."""
        blocks = [Block(norm(block.bn), normalized(block.first), block.last) for block in self.blocks]
        return Network(normalized(self.stem), blocks, norm(self.bn), self.weight)


def relu(x: Array) -> Array:
    """In place: nobody else needs what the layer before it gave."""
    return np.maximum(x, 0, out=x)


def make(rng: np.random.Generator, images: Array) -> Network:
    """A network of layers in evaluation mode, with the statistics of the images."""

    def convolution(inputs: int) -> Convolution:
        weight = rng.standard_normal((CHANNELS, inputs, 3, 3)) * math.sqrt(2 / (9 * inputs))
        return Convolution(weight.astype(np.float32))

    layers = []

    def layer() -> fastbn.BatchNorm:
        bn = fastbn.BatchNorm(CHANNELS, axis=0).eval()
        bn.gamma, bn.beta = rng.uniform(0.5, 1.5, (2, CHANNELS)).astype(np.float32)
        layers.append(bn)
        return bn

    stem = Normalized(convolution(1), layer())
    blocks = [Block(layer(), Normalized(convolution(CHANNELS), layer()), convolution(CHANNELS)) for _ in range(BLOCKS)]
    network = Network(stem, blocks, layer(), rng.standard_normal((10, CHANNELS)).astype(np.float32))
    fastbn.recalibrate(layers, np.array_split(images, 8, axis=1), network, progress=False)
    return network


def frozen(network: Network) -> Network:
    """Each batch normalization by itself, its coefficients computed."""
    return network.converted(lambda bn: bn.freeze(), lambda part: Normalized(part.convolution, part.bn.freeze()))


def folded(network: Network) -> Network:
    """Batch normalization folded where it follows a convolution, frozen elsewhere."""
    return network.converted(lambda bn: bn.freeze(), fold)


def fold(part: Normalized) -> Convolution:
    """A convolution and its batch normalization as one convolution."""
    assert isinstance(part.bn, fastbn.BatchNorm)
    return Convolution(*fastbn.fold.conv(part.convolution.weight, None, part.bn))


def load() -> Array:
    """Handwritten digits, (1, 1797, 32, 32)."""
    from sklearn.datasets import load_digits  # here, as the network needs no scikit-learn

    images: Array = load_digits().images.astype(np.float32) / 16
    return images.repeat(4, axis=1).repeat(4, axis=2)[np.newaxis]


def medians(functions: Sequence[Function], x: Array, repeats: int) -> list[float]:
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
    """Make the three forms, compare them, measure them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=51, help="how many times each form is measured")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats: expected 1 or more")
    images = load()
    network = make(np.random.default_rng(options.seed), images[:, :256])
    forms = network, frozen(network), folded(network)
    block = network.blocks[0]
    parts: dict[str, tuple[Function, ...]] = {
        "whole network": forms,
        "convolution, bn": (block.first, forms[1].blocks[0].first, forms[2].blocks[0].first),
        "bn alone": (block.bn, forms[1].blocks[0].bn, forms[2].blocks[0].bn),
    }
    print(f"Milliseconds, medians of {options.repeats} calls that take turns\n")
    print(f"{'images':>6} | {'':16} | BatchNorm | FrozenBatchNorm | folded, else frozen")
    for count in BATCHES:
        x = np.ascontiguousarray(images[:, -count:])
        hidden = relu(network.stem(x))
        for name, functions in parts.items():
            times = medians(functions, x if functions is forms else hidden, options.repeats)
            print(f"{count:6} | {name:16} | {times[0]:9.3f} | {times[1]:15.3f} | {times[2]:19.3f}")
    expected = network(x)
    print("\nLargest difference of a score, of the largest score")
    for name, form in ("frozen", forms[1]), ("folded", forms[2]):
        difference = float(abs(form(x) - expected).max() / abs(expected).max())
        print(f"  {name}: {difference:.1e}")
        if not difference < EXACT:
            raise SystemExit(f"The {name} network is another one.")


if __name__ == "__main__":
    # Numba's threads and those of NumPy's BLAS, which does most of the work, would fight for the cores.
    numba.set_num_threads(1)
    with threadpool_limits(1):
        main()
