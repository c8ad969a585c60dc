"""JAX: the formula as Flax has it, compiled by XLA.

The variance is ``mean(x**2) - mean(x)**2``: it spares a pass, and XLA is up to six times as fast with it as with
``jnp.var``, at the price of a variance that is wrong where the mean is far from zero.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np

from bench.cases import Array, Case, MissingError, Work

os.environ.setdefault("NPROC", str(numba.get_num_threads()))  # XLA asks once, when it starts
jax.config.update("jax_enable_x64", True)  # else float64 becomes float32


def jitted(case: Case, operation: str) -> Work:
    """``jax.jit`` of the operation, and ``jax.vjp`` for gradients."""
    case.compiles()
    threads = os.environ["NPROC"]
    if threads != str(numba.get_num_threads()):
        raise MissingError(f"runs {threads} threads in this process")
    x, dout = (jnp.asarray(np.moveaxis(a, 1, -1) if case.last else a) for a in (case.x, case.dout))
    gamma, beta, *statistics = (jnp.asarray(values) for values in case.vectors)
    axis = x.ndim - 1 if case.last else 1
    over = tuple(i for i in range(x.ndim) if i != axis)
    column = [-1 if i == axis else 1 for i in range(x.ndim)]

    def normalize(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        scale = gamma * jax.lax.rsqrt(var + case.eps)
        return (x - mean.reshape(column)) * scale.reshape(column) + beta.reshape(column)

    def forward(x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any) -> Any:
        mean = x.mean(over)
        var = jnp.maximum(0, (x * x).mean(over) - mean * mean)
        unbiased = var * (case.count / (case.count - 1))
        running = 0.9 * running_mean + 0.1 * mean, 0.9 * running_var + 0.1 * unbiased
        return normalize(x, gamma, beta, mean, var), running

    def differentiable(x: Any, gamma: Any, beta: Any, *running: Any) -> Any:
        return jax.vjp(lambda *values: forward(*values, *running), x, gamma, beta, has_aux=True)

    def both(dout: Any, *values: Any) -> Any:
        out, gradients, running = differentiable(*values)
        return (out, running), gradients(dout)

    def work(function: Any, *values: Any) -> Any:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*values))

    def tensor(values: Any) -> Array:
        return np.moveaxis(np.asarray(values), axis, 1)

    arguments = x, gamma, beta, *statistics
    if operation == "forward":
        return Work(work(forward, *arguments), lambda y: (tensor(y[0]), *y[1]))
    if operation == "inference":
        return Work(work(normalize, *arguments), lambda y: [tensor(y)])
    if operation == "backward":
        gradients = jax.jit(differentiable)(*arguments)[1]
        return Work(work(lambda pullback, dout: pullback(dout), gradients, dout), lambda d: (tensor(d[0]), *d[1:]))
    return Work(work(both, dout, *arguments), lambda y: (tensor(y[0][0]), *y[0][1], tensor(y[1][0]), *y[1][1:]))
