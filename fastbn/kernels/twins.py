"""Kernels: two compiled functions from one body.

A *kernel* is compiled as ``serial``, for small tensors and for places where threads must not be started, and as
``parallel`` for the rest. Both give the same bits. Its outer loop is a ``prange`` over workers (see ``scheduling``),
of which the serial twin has one, for all tasks::

    shares = deal(2, tasks)
    for worker in prange(len(shares[0])):
        own = signed(worker)
        for task in turns(shares[0], tasks, own):
            ...
        meet(shares[0], tasks)
        for task in turns(shares[1], tasks, own):
            ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, cast

from fastbn.kernels import scheduling
from fastbn.kernels.jit import entry, inner, launch, threads_usable, with_globals

P = ParamSpec("P")

IS_PARALLEL = True
"""In the body of a kernel: whether this is the parallel twin."""

_TWINS: dict[str, dict[str, Any]] = {
    "serial": {
        "IS_PARALLEL": False,
        "deal": scheduling.one_share,
        "turns": scheduling.all_tasks,
        "meet": scheduling.go_on,
    },
    "parallel": {
        "IS_PARALLEL": True,
        "deal": scheduling.deal,
        "turns": scheduling.turns,
        "meet": scheduling.meet,
    },
}


class Kernel(Generic[P]):
    """Call it with the wish for threads first, then the body's arguments.

    ``serial`` and ``parallel`` are for Python, ``linked``, by the same names, for what is compiled itself.
    """

    def __init__(self, body: Callable[P, None]) -> None:
        self.body = body
        self.serial = entry(self._twin("serial"), parallel=False)
        self.parallel = entry(self._twin("parallel"), parallel=True)
        self.linked = {twin: inner(self._twin(twin, "_linked"), parallel=twin == "parallel") for twin in _TWINS}

    def __call__(self, parallel: bool, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Run the twin that is wished for, or the serial one where threads cannot be used."""
        if parallel and threads_usable():
            launch(self.parallel, *args, **kwargs)
        else:
            self.serial(*args, **kwargs)

    def _twin(self, twin: str, suffix: str = "") -> Callable[P, None]:
        """A renamed copy of the body: Numba's cache tells functions apart by name, not by flags."""
        return cast(Callable[P, None], with_globals(self.body, f"{self.body.__name__}_{twin}{suffix}", _TWINS[twin]))


def kernel(body: Callable[P, None]) -> Kernel[P]:
    """Compile ``body`` as a serial and a parallel twin."""
    return Kernel(body)
