"""A model's batch normalization layers to fastbn's, and back."""

from __future__ import annotations

import logging
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from fastbn.torch import modules

Model = TypeVar("Model", bound=nn.Module)

_logger = logging.getLogger("fastbn.torch")

_OURS = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.SyncBatchNorm: modules.SyncBatchNorm,
}
_PYTORCHS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(model: Model) -> Model:
    """Make PyTorch's ``BatchNorm1d``, ``BatchNorm2d``, ``BatchNorm3d`` and ``SyncBatchNorm`` fastbn's, in place.

    A layer stays the same object, and only its class changes: parameters, buffers, hooks, mode and parametrizations
    are kept, optimizers and other modules that refer to it go on with it, and a state is what it was.

    Other normalization layers are left alone: subclasses, which may add something, lazy layers before their first
    batch, instance normalization, and layers whose ``forward`` was replaced. Their names are logged by
    ``logging.getLogger("fastbn.torch")``, at level ``INFO``.

    Parameters
    ----------
    model : torch.nn.Module
        It may itself be such a layer.

    Returns
    -------
    torch.nn.Module
        ``model``.
    """
    for name, module in model.named_modules():
        cls = parametrize.type_before_parametrizations(module)
        if cls in _OURS and "forward" not in vars(module):
            _set_class(module, _OURS[cls])
        elif isinstance(module, _NormBase) and cls not in _PYTORCHS:
            _logger.info("convert leaves %s, a %s.%s, as it is", name or "the model", cls.__module__, cls.__qualname__)
    return model


def revert(model: Model) -> Model:
    """Undo ``convert``, in place.

    Subclasses of fastbn's layers, such as ``BatchNormAct2d``, are left alone. Returns ``model``.
    """
    for module in model.modules():
        cls = parametrize.type_before_parametrizations(module)
        if cls in _PYTORCHS:
            _set_class(module, _PYTORCHS[cls])
    return model


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a module; under parametrizations, the base of the class that PyTorch made for it."""
    if parametrize.is_parametrized(module):  # by a new class, as copies of the module share the old one
        made_per_class = "__dict__", "__weakref__", "__doc__"
        members = {name: value for name, value in vars(type(module)).items() if name not in made_per_class}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls
