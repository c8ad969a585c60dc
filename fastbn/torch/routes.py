"""How tensors of one shape, dtype and memory layout are trained on in ordinary eager calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastbn._dispatch import plan
from fastbn.kernels.pointers import compiled

Entries: TypeAlias = tuple[Callable[..., bool], Callable[..., bool]]
"""For one thread, and for several."""

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Route(NamedTuple):
    """The compiled functions and their arguments."""

    forward: Entries
    backward: Entries
    cuts: tuple[int, int, int, int]
    """Outer dimension, channels, inner dimension, segments: arguments of both."""
    per_channel: int
    """Values of a channel."""


MOST_ROUTES = 4096
"""Shapes that are remembered at a time: batches of sentences may bring new ones for ever."""

_routes: dict[Any, Route] = {}


def route_of(x: Tensor) -> Route | None:
    """The route of a dense tensor; ``None`` where the operators have to do it.

    Those are other dtypes and layouts, fewer than two dimensions, no values, and one value per channel.
    """
    contiguous = x.is_contiguous()
    key = x.shape, x.dtype, contiguous
    route = _routes.get(key)
    if route is None:
        route = _new_route(x, contiguous)
        if route is not None:
            if len(_routes) >= MOST_ROUTES:
                _routes.clear()
            _routes[key] = route
    return route if contiguous or _is_channels_last(x) else None


def _new_route(x: Tensor, contiguous: bool) -> Route | None:
    shape, dtype = x.shape, _DTYPES.get(x.dtype)
    if dtype is None or len(shape) < 2 or x.numel() <= shape[1]:
        return None
    channels, per_channel = shape[1], x.numel() // shape[1]
    outer = shape[0] if contiguous else per_channel
    how = plan(outer, channels, per_channel // outer, np.dtype(dtype).itemsize)

    def entries(operation: str) -> Entries:
        one, several = (
            compiled(operation, how.kernels, parallel, how.at_once, dtype) for parallel in (False, how.parallel)
        )
        return one, several

    cuts = outer, channels, per_channel // outer, how.segments
    return Route(entries("forward"), entries("backward"), cuts, per_channel)


def _is_channels_last(x: Tensor) -> bool:
    layout = _CHANNELS_LAST.get(x.dim())
    return layout is not None and x.is_contiguous(memory_format=layout)
