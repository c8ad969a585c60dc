"""Batch normalization of arrays in a GPU's memory: the functions of ``fastbn``, with the same names and arguments.

They take anything that has ``__cuda_array_interface__`` (arrays of Numba and CuPy, tensors of PyTorch), run on the
arrays' stream or that of ``on_stream``, and return arrays of Numba, or what was given as ``out``. Nothing waits for the
device and nothing of tensor size is copied. ``fastbn``'s own functions and layers come here with such arrays.

Values are never looked at: a ``running_var`` below ``-eps`` gives NaN in its channel instead of ``ValueError``.
"""

import importlib.util

if importlib.util.find_spec("numba_cuda") is None:
    raise ImportError("fastbn.cuda: expected the package numba-cuda, got none: pip install 'fastbn[cuda]'")

from fastbn.cuda._driver import on_stream
from fastbn.cuda.functional import backward, forward, inference
from fastbn.cuda.moments import Moments, backward_input, backward_sums, moments, normalize

__all__ = [
    "Moments",
    "backward",
    "backward_input",
    "backward_sums",
    "forward",
    "inference",
    "moments",
    "normalize",
    "on_stream",
]
