"""The PyTorch front: batch normalization layers for CPUs in place of PyTorch's own.

``convert`` changes the layers of a model in place, ``revert`` changes them back. The layers are subclasses of PyTorch's
and hand over to it wherever fastbn has nothing faster to offer (see ``modules``).
"""

try:
    import torch  # noqa: F401 - the message below is for whoever has no PyTorch
except ModuleNotFoundError as error:
    raise ImportError(
        "fastbn.torch: expected the package torch, fastbn's extra [torch]: pip install torch", name=error.name
    ) from error

from fastbn.torch.convert import convert, revert
from fastbn.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.torch.vision import BatchNormAct2d, FrozenBatchNorm2d

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct2d",
    "FrozenBatchNorm2d",
    "convert",
    "revert",
]
