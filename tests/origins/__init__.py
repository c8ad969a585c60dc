"""The code that people come from, to be compared with: ``ORIGINS`` lists it, ``compare`` says how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.origins import cs231n, keras, numpy_pair, onnx, pytorch
from tests.origins.compare import largest_differences
from tests.tolerances import ORIGINS as BOUNDS


class Origin(NamedTuple):
    """``against`` says what it is compared with, ``cases`` gives the cases of a dtype; both skip what is missing."""

    name: str
    against: Callable[[], str]
    cases: Callable[[Any], Any]
    computes_in: Any = None
    """A dtype that it computes in whatever it is given."""

    def differences(self, dtype):
        return largest_differences(self.cases(dtype), dtype)

    def bounds(self, dtype):
        return BOUNDS[self.computes_in or dtype]


ORIGINS = (
    Origin("CS231n", cs231n.against, cs231n.cases),
    Origin("train and test functions", numpy_pair.against, numpy_pair.cases),
    Origin("PyTorch", pytorch.against, pytorch.cases),
    Origin("Keras", keras.against, keras.cases, computes_in=np.float32),
    Origin("moments and moving average", keras.against, keras.plain_cases),
    Origin("ONNX", onnx.against, onnx.cases),
)
