"""Training steps and how they are timed: the variants of a network take turns, a step each, in one process.

The whole step is timed in one pass, without hooks. A second pass times batch normalization alone, by hooks: in forward
from a layer's call to its return, in backward every node of autograd's graph between the layer's output and its input.
A hook costs some microseconds, the same in every variant. PyTorch's profiler costs more, and differently: by the number
of operators that a layer calls.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.models import Network
from bench.variants import VARIANTS, batch_norms

T = TypeVar("T")


class Step(NamedTuple):
    """What one whole step took."""

    seconds: float
    faults: float
    """Minor page faults, of all threads."""


class Parts(NamedTuple):
    """Seconds of batch normalization in one step."""

    forward: float
    backward: float


class Training:
    """A network with its data and optimizer, as one of ``VARIANTS``.

    The learning rate is zero, so that all steps do the same arithmetic and nothing diverges without batch
    normalization. The optimizer does as much as with any other rate.
    """

    def __init__(self, network: Network, layout: str, variant: str, batch: int, image: int) -> None:
        model = network.make(layout)
        names = batch_norms(model)
        self.model = VARIANTS[variant](model)
        self.layers = [self.model.get_submodule(name) for name in names]
        self.x, self.labels = network.data(layout, batch, image)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)

    def step(self) -> Any:
        """Forward, backward, optimizer; gives the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(self.model(self.x), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def results(self) -> tuple[float, Any]:
        """The loss, and its gradient with respect to the first parameter, of a step with the same random numbers."""
        torch.manual_seed(0)
        loss = float(self.step().detach())
        return loss, next(self.model.parameters()).grad.clone()


class Stopwatch:
    """As a context: adds up the seconds that layers take, forward and backward apart."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.forward = self.backward = 0.0
        self._layers = layers
        self._handles: list[Any] = []
        self._start = 0.0

    def __enter__(self) -> Stopwatch:
        for layer in self._layers:
            self._handles.append(layer.register_forward_pre_hook(self._begin))
            self._handles.append(layer.register_forward_hook(self._end_forward))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: object) -> None:
        self._start = time.perf_counter()

    def _end_forward(self, _: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        self.forward += time.perf_counter() - self._start
        for node in nodes_between(out, inputs[0]):
            node.register_prehook(self._begin)
            node.register_hook(self._end_backward)

    def _end_backward(self, *_: object) -> None:
        self.backward += time.perf_counter() - self._start


def nodes_between(out: Any, x: Any) -> Iterator[Any]:
    """Those of autograd's graph that lead from ``out`` to ``x``, without the ends of the graph, where gradients add."""
    seen = {None, x.grad_fn}
    waiting = [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node not in seen and not hasattr(node, "variable"):
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def timed(training: Training) -> Step:
    """A step without hooks."""
    faults, start = page_faults(), time.perf_counter()
    training.step()
    return Step(time.perf_counter() - start, page_faults() - faults)


def watched(training: Training) -> Parts:
    """A step with hooks; nothing for layers that are not there."""
    layers = [layer for layer in training.layers if not isinstance(layer, nn.Identity)]
    with Stopwatch(layers) as watch:
        training.step()
    return Parts(watch.forward, watch.backward)


def page_faults() -> int:
    """Minor ones of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def in_turns(
    trainings: Mapping[str, Training], measure: Callable[[Training], T], *, rounds: int, warm: int = 1
) -> dict[str, list[T]]:
    """What ``measure`` gives for each in every round, in an order that rotates; ``warm`` rounds before do not count."""
    names = list(trainings)
    found: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(-warm, rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            value = measure(trainings[name])
            if turn >= 0:
                found[name].append(value)
    return found
