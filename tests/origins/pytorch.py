"""``fastbn.BatchNorm1d``, ``2d`` and ``3d`` beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.origins.compare import Case, Layer, parameters

SHAPES = {"BatchNorm1d": ((100, 7), (20, 7, 9)), "BatchNorm2d": ((8, 7, 5, 6),), "BatchNorm3d": ((4, 7, 3, 5, 6),)}


def against():
    return f"PyTorch {pytest.importorskip('torch').__version__.partition('+')[0]}"


class Module:
    """A module of PyTorch's."""

    def __init__(self, torch, module):
        self.torch, self.module = torch, module

    def train(self, x, dout):
        given = self.torch.tensor(x).requires_grad_()
        self.module.zero_grad()
        out = self.module.train()(given)
        out.backward(self.torch.tensor(dout))
        gradients = given.grad, self.module.weight.grad, self.module.bias.grad
        return out.detach().numpy(), [gradient.numpy() for gradient in gradients]

    def running(self):
        return [self.module.running_mean.numpy(), self.module.running_var.numpy()]

    def infer(self, x):
        with self.torch.no_grad():
            return self.module.eval()(self.torch.tensor(x)).numpy()


def cases(dtype):
    torch = pytest.importorskip("torch")
    for name, shapes in SHAPES.items():
        for shape in shapes:
            ours = getattr(fastbn, name)(7, dtype=dtype)
            theirs = getattr(torch.nn, name)(7, dtype=getattr(torch, np.dtype(dtype).name))
            ours.gamma[:], ours.beta[:] = parameters(7, dtype)
            theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
            yield Case(Layer(ours), Module(torch, theirs), shape)
