"""fastbn, and the formula in NumPy that it replaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import fastbn
from bench.cases import Array, Case, Work


def fused(case: Case, operation: str) -> Work:
    """The package, with ``out=`` where memory is kept."""
    out, dx = (None, None) if case.fresh else (np.empty_like(case.x), np.empty_like(case.x))
    running = case.running_mean.copy(), case.running_var.copy()

    def forward() -> fastbn.ForwardResult:
        return fastbn.forward(case.x, case.gamma, case.beta, *running, eps=case.eps, out=out)

    def backward(cache: fastbn.Cache) -> Sequence[Array | None]:
        return fastbn.backward(case.dout, cache, out=dx)

    def inference() -> Array:
        return fastbn.inference(
            case.x, case.running_mean, case.running_var, case.gamma, case.beta, eps=case.eps, out=out
        )

    def both() -> Sequence[Array | None]:
        result = forward()
        return result.out, *backward(result.cache)

    if operation == "backward":
        cache = forward().cache
        return Work(lambda: backward(cache), list)
    return {
        "forward": Work(forward, lambda result: (result.out, *running)),
        "forward + backward": Work(both, lambda values: (values[0], *running, *values[1:])),
        "inference": Work(inference, lambda y: [y]),
    }[operation]


def formula(case: Case, operation: str) -> Work:
    """The formulas as courses teach them: whole-array NumPy in the dtype of ``x``."""
    over = (0, *range(2, case.x.ndim))
    gamma, beta, mean, var = (values.reshape(-1, *[1] * (case.x.ndim - 2)) for values in case.vectors)
    running = case.running_mean.copy(), case.running_var.copy()
    m, eps = case.count, case.x.dtype.type(case.eps)

    def normalized() -> tuple[Array, Array, Array, Array]:
        mean, var = case.x.mean(over, keepdims=True), case.x.var(over, keepdims=True)
        inv_std = 1 / np.sqrt(var + eps)
        return (case.x - mean) * inv_std, inv_std, mean, var

    def forward() -> tuple[Array, Array, Array]:
        x_hat, inv_std, mean, var = normalized()
        for array, batch in zip(running, (mean, var * m / (m - 1)), strict=True):
            array[:] = 0.9 * array + 0.1 * batch.ravel()
        return gamma * x_hat + beta, x_hat, inv_std

    def backward(x_hat: Array, inv_std: Array) -> tuple[Array, Array, Array]:
        dbeta, dgamma = case.dout.sum(over, keepdims=True), (case.dout * x_hat).sum(over, keepdims=True)
        dx = gamma * inv_std / m * (m * case.dout - dbeta - x_hat * dgamma)
        return dx, dgamma.ravel(), dbeta.ravel()

    def both() -> tuple[Array, ...]:
        out, x_hat, inv_std = forward()
        return out, *backward(x_hat, inv_std)

    if operation == "backward":
        x_hat, inv_std = normalized()[:2]
        return Work(lambda: backward(x_hat, inv_std), list)
    return {
        "forward": Work(forward, lambda values: (values[0], *running)),
        "forward + backward": Work(both, lambda values: (values[0], *running, *values[1:])),
        "inference": Work(lambda: gamma * (case.x - mean) / np.sqrt(var + eps) + beta, lambda y: [y]),
    }[operation]
