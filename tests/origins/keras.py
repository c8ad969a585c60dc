"""``fastbn.from_keras`` beside the Keras layer that it was made of, and the plain layer of the time before Keras.

Keras runs on PyTorch here.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.origins.compare import Case, Layer, parameters

KEPT_ARRAYS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
"""NumPy's complaint about the way in which Keras' variables become arrays; Keras calls it itself, in get_weights."""


def library():
    """Keras on PyTorch. The environment is as before afterwards, and no other module here imports Keras."""
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        return pytest.importorskip("keras")


def against():
    return f"Keras {library().__version__} on PyTorch"


class KerasLayer:
    """A built ``keras.layers.BatchNormalization``, or anything that is called like one and has its variables."""

    def __init__(self, layer):
        self.torch = pytest.importorskip("torch")
        self.layer = layer

    def train(self, x, dout):
        given = self.torch.tensor(x).requires_grad_()
        variables = [variable.value for variable in (self.layer.gamma, self.layer.beta) if variable is not None]
        for variable in variables:
            variable.grad = None
        out = self.layer(given, training=True)
        out.backward(self.torch.tensor(dout))
        return out.detach().numpy(), [variable.grad.numpy() for variable in (given, *variables)]

    def running(self):
        variables = self.layer.moving_mean, self.layer.moving_variance
        return [variable.value.detach().numpy() for variable in variables]

    def infer(self, x):
        with self.torch.no_grad():
            return self.layer(self.torch.tensor(x), training=False).numpy()


def built(shape, dtype, **options):
    """A Keras layer for this shape, with ``gamma`` and ``beta`` that are neither ones nor zeros."""
    layer = library().layers.BatchNormalization(dtype=np.dtype(dtype).name, **options)
    layer.build((None, *shape[1:]))
    values = dict(zip(("gamma", "beta"), parameters(shape[layer.axis], dtype), strict=True))
    for name, value in values.items():
        variable = getattr(layer, name)
        if variable is not None:
            variable.assign(value)
    return layer


def moved_over(layer):
    """The same layer, fastbn's."""
    return fastbn.from_keras(layer.get_config(), layer.get_weights())


def cases(dtype):
    for shape, axis in (((100, 7), -1), ((8, 5, 6, 7), -1), ((8, 7, 5, 6), 1)):
        layer = built(shape, dtype, axis=axis)
        yield Case(Layer(moved_over(layer)), KerasLayer(layer), shape)


class Plain:
    """``moments`` over all axes but the last, and an exponential moving average that starts at zero.

    The average is TensorFlow's: ``shadow -= (1 - decay) * (shadow - value)``.
    """

    def __init__(self, shape, dtype, decay):
        self.keras, self.decay = library(), decay
        kind = np.dtype(dtype).name
        self.gamma, self.beta = (self.keras.Variable(value, dtype=kind) for value in parameters(shape[-1], dtype))
        zeros = np.zeros(shape[-1], dtype)
        self.moving_mean, self.moving_variance = (self.keras.Variable(zeros, dtype=kind) for _ in range(2))

    def __call__(self, x, *, training):
        ops = self.keras.ops
        statistics = self.moving_mean, self.moving_variance
        if training:
            batch = ops.moments(x, list(range(x.ndim - 1)))
            for shadow, value in zip(statistics, batch, strict=True):
                shadow.assign(shadow - (1 - self.decay) * (shadow - value))
            statistics = batch
        return ops.batch_normalization(x, *statistics, axis=-1, offset=self.beta, scale=self.gamma, epsilon=1e-3)


def plain_cases(dtype):
    for shape, decay in (((100, 7), 0.5), ((8, 5, 6, 7), 0.5), ((100, 7), 0.99)):
        ours = fastbn.BatchNorm(7, axis=-1, eps=1e-3, momentum=1 - decay, correction=0, dtype=dtype)
        ours.gamma[:], ours.beta[:] = parameters(7, dtype)
        ours.running_var[:] = 0  # as the average starts there
        yield Case(Layer(ours), KerasLayer(Plain(shape, dtype, decay)), shape)
