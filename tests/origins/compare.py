"""What all origins have in common: ten training steps and an inference on the same numbers, and how far they differ.

An origin gives cases: a layer of fastbn's, one of its own, and the shape that they take. Both sides are wrapped so
that they look like this:

* ``train(x, dout)``: a training step; the output, and the gradients of everything that has one (none where the origin
  knows no gradients);
* ``running()``: the running mean and variance;
* ``infer(x)``: the output in inference mode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.data_for_tests import tensor

STEPS = 10
QUANTITIES = ("training output", "running statistics after ten steps", "inference output", "gradients")
DTYPES = (np.float32, np.float64)


class Case(NamedTuple):
    ours: Any
    theirs: Any
    shape: tuple[int, ...]


def parameters(channels, dtype):
    """``gamma`` and ``beta``, neither ones nor zeros."""
    return np.linspace(0.5, 2.0, channels).astype(dtype), np.linspace(-1.0, 1.0, channels).astype(dtype)


class Layer:
    """A layer of fastbn's, wrapped."""

    def __init__(self, layer):
        self.layer = layer

    def train(self, x, dout):
        out, dx = self.layer.train()(x), self.layer.backward(dout)
        return out, [gradient for gradient in (dx, self.layer.dgamma, self.layer.dbeta) if gradient is not None]

    def running(self):
        return [self.layer.running_mean, self.layer.running_var]

    def infer(self, x):
        return self.layer.eval()(x)


def difference(ours, theirs):
    """The largest difference, over the largest magnitude."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def differences(ours, theirs):
    return [difference(a, b) for a, b in zip(ours, theirs, strict=True)]


def largest_differences(cases, dtype):
    """The largest difference of each quantity over all cases; ``None`` for gradients where the origin has none."""
    found = {quantity: [] for quantity in QUANTITIES}
    training, running, inference, gradients = found.values()
    for ours, theirs, shape in cases:
        rng = np.random.default_rng(20261122)
        for _ in range(STEPS):
            x, dout = tensor(rng, shape, dtype, mean=1.0, scale=2.0), tensor(rng, shape, dtype)
            (our_out, our_gradients), (their_out, their_gradients) = ours.train(x, dout), theirs.train(x, dout)
            training.append(difference(our_out, their_out))
            if their_gradients:
                gradients += differences(our_gradients, their_gradients)
        running += differences(ours.running(), theirs.running())
        x = tensor(rng, shape, dtype, mean=1.0, scale=2.0)
        inference.append(difference(ours.infer(x), theirs.infer(x)))
    return {quantity: max(values, default=None) for quantity, values in found.items()}
