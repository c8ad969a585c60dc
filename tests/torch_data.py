"""What the tests of ``fastbn.torch`` share."""

from __future__ import annotations

import torch


def values(shape, dtype=torch.float32, seed=0, mean=0.5):
    """Random values of deviation 2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).add(mean).to(dtype)


def saved_by(function):
    """What ``function`` keeps for backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        function()
    return saved
