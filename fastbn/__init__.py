"""Batch normalization for NumPy, on CPUs, at the speed of the memory."""

from fastbn import cs231n
from fastbn._keras import from_keras, to_keras
from fastbn._version import __version__
from fastbn.frozen import FrozenBatchNorm
from fastbn.functional import Cache, ForwardResult, Gradients, backward, forward, inference
from fastbn.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.moments import Moments, backward_input, backward_sums, moments, normalize

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Cache",
    "ForwardResult",
    "FrozenBatchNorm",
    "Gradients",
    "Moments",
    "__version__",
    "backward",
    "backward_input",
    "backward_sums",
    "cs231n",
    "forward",
    "from_keras",
    "inference",
    "moments",
    "normalize",
    "to_keras",
]
