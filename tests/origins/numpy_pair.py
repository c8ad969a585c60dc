"""The train and test functions of NumPy tutorials: both sides are those of ``examples/train_test_pair.py``."""

from __future__ import annotations

import numpy as np

from examples.train_test_pair import FASTBN, FORMULAS, MOMENTA
from tests.origins.compare import Case, parameters


def against():
    return f"its formulas in NumPy {np.__version__}"


class Functions:
    """A pair with its running averages."""

    def __init__(self, pair, momentum, dtype):
        self.pair, self.momentum, self.parameters = pair, momentum, parameters(7, dtype)
        self.averages = np.zeros(7, dtype), np.zeros(7, dtype)

    def train(self, x, dout):
        out, cache = self.pair.train(x, *self.parameters, self.averages, self.momentum)
        return out, self.pair.backward(dout, cache)

    def running(self):
        return self.averages

    def infer(self, x):
        return self.pair.test(x, *self.parameters, self.averages)


def cases(dtype):
    for momentum in MOMENTA:
        yield Case(*(Functions(pair, momentum, dtype) for pair in (FASTBN, FORMULAS)), (100, 7))
