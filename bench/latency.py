"""``python -m bench.latency``: microseconds a call on tensors so small that only the way to the kernel counts."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fastbn

SHAPES = ((1, 64), (1, 64, 7, 7))
REPEATS = 2_000
"""Calls of a turn: some milliseconds."""


def calls(shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """Inference in every way there is, and a training step."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    layer = fastbn.BatchNorm(shape[1]).eval()
    frozen, out = layer.freeze(), np.empty_like(x)
    gamma, beta, mean, var = np.ones((4, shape[1]), np.float32)
    # Values, not views: fastbn looks at every argument.
    gamma, beta, mean, var = gamma.copy(), beta.copy(), mean.copy(), var.copy()
    training = fastbn.BatchNorm(shape[1])
    made: dict[str, Callable[[], Any]] = {
        "BatchNorm, evaluation": lambda: layer(x),
        "FrozenBatchNorm": lambda: frozen(x),
        "FrozenBatchNorm, out=": lambda: frozen(x, out=out),
        "fastbn.inference": lambda: fastbn.inference(x, mean, var, gamma, beta),
    }
    if x.size > shape[1]:
        made["BatchNorm, training"] = lambda: training(x)
        made["BatchNorm, training and backward"] = lambda: training.backward(training(x))
    return made | _pytorch(x, training=x.size > shape[1])


def _pytorch(x: np.ndarray[Any, Any], *, training: bool) -> dict[str, Callable[[], Any]]:
    try:
        import torch
    except ImportError:
        return {}
    kind = torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d
    layer, trained, tensor = kind(x.shape[1]).eval(), kind(x.shape[1]), torch.from_numpy(x)

    def without_gradients(module: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return module(tensor)

        return call

    made = {"PyTorch module, evaluation": lambda: layer(tensor)}
    made["PyTorch module, evaluation, inference_mode"] = without_gradients(layer)
    if training:
        made["PyTorch module, training"] = lambda: trained(tensor)
    return made


def microseconds(competitors: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """Median over turns of ``REPEATS`` calls."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, call in competitors.items():
            call()
            start = time.perf_counter()
            for _ in range(REPEATS):
                call()
            times[name].append((time.perf_counter() - start) / REPEATS * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns (default: %(default)s)")
    rounds = parser.parse_args(argv).rounds
    results = [microseconds(calls(shape), rounds=rounds) for shape in SHAPES]
    print(f"| microseconds a call | {' | '.join(map(str, SHAPES))} |")
    print("|---" * (1 + len(SHAPES)) + "|")
    for name in results[-1]:
        print(f"| {name} | {' | '.join(f'{times[name]:.1f}' if name in times else '' for times in results)} |")


if __name__ == "__main__":
    main()
