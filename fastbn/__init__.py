"""Batch normalization for NumPy, on CPUs, at the speed of the memory."""

from fastbn import _requirements  # noqa: F401 - first: what it refuses could not be imported

# isort: split
from fastbn import cs231n, fold
from fastbn._version import __version__
from fastbn.frozen import FrozenBatchNorm
from fastbn.functional import Cache, ForwardResult, Gradients, backward, forward, inference
from fastbn.interop.keras import from_keras, to_keras
from fastbn.interop.onnx import OnnxNode, from_onnx, to_onnx
from fastbn.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.moments import Moments, backward_input, backward_sums, moments, normalize
from fastbn.recalibration import recalibrate

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
    "OnnxNode",
    "__version__",
    "backward",
    "backward_input",
    "backward_sums",
    "cs231n",
    "fold",
    "forward",
    "from_keras",
    "from_onnx",
    "inference",
    "moments",
    "normalize",
    "recalibrate",
    "to_keras",
    "to_onnx",
]
