"""``fastbn.cs231n`` beside the course's formulas."""

from __future__ import annotations

import numpy as np

from fastbn import cs231n
from tests.origins import course
from tests.origins.compare import Case, parameters


def against():
    return f"its formulas in NumPy {np.__version__}"


class Functions:
    """The functions of the course, from one module or the other, with their dictionary."""

    def __init__(self, module, gamma, beta, *, spatial=False):
        prefix = "spatial_" if spatial else ""
        self.forward = getattr(module, f"{prefix}batchnorm_forward")
        self.backward = getattr(module, f"{prefix}batchnorm_backward")
        self.parameters = gamma, beta
        self.bn_param = {"mode": "train"}

    def train(self, x, dout):
        self.bn_param["mode"] = "train"
        out, cache = self.forward(x, *self.parameters, self.bn_param)
        return out, self.backward(dout, cache)

    def running(self):
        return [self.bn_param["running_mean"], self.bn_param["running_var"]]

    def infer(self, x):
        self.bn_param["mode"] = "test"
        return self.forward(x, *self.parameters, self.bn_param)[0]


def cases(dtype):
    for shape in ((100, 7), (8, 7, 5, 6)):
        arguments = {"spatial": len(shape) == 4}
        gamma, beta = parameters(7, dtype)
        yield Case(Functions(cs231n, gamma, beta, **arguments), Functions(course, gamma, beta, **arguments), shape)
