"""The batch normalization of Stanford's course CS231n: its five functions, with their arguments and numbers.

``bn_param`` is the course's dictionary, and the only state:

* ``mode``: ``"train"`` or ``"test"``; required.
* ``eps``: added to the variance; 1e-5 where missing; above 0 in training.
* ``momentum``: weight of the *old* running values, 0 to 1; 0.9 where missing. ``fastbn.forward`` takes the new's.
* ``running_mean``, ``running_var``: (C,) arrays; zeros in the dtype of ``x`` where missing.

Other keys are left alone. In training mode::

    running_mean = momentum * running_mean + (1 - momentum) * mean
    running_var  = momentum * running_var  + (1 - momentum) * var

with the batch's mean and its biased variance. The new arrays replace the old ones in ``bn_param``, both or, after any
exception, neither; an array that the caller has taken out of it before keeps its values. In test mode they stay as they
are, and are created where missing.

Some copies of the course's solution add ``eps`` to the running variance at its update and leave it out at test time;
docs/from_cs231n.md shows how to get their numbers.

What is not as in the course: results have the dtype of ``x`` (``dgamma`` and ``dbeta`` those of ``gamma`` and
``beta``), integers are a ``TypeError``, and a training batch with one value per channel is a ``ValueError``. The cache
is a ``fastbn.Cache``, not a tuple; that of test mode gives the gradients of a layer with fixed statistics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _validation as check
from fastbn import functional
from fastbn._typing import Array
from fastbn.functional import Cache, ForwardResult, Gradients

__all__ = [
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
]


def batchnorm_forward(x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, bn_param: dict[str, Any]) -> ForwardResult:
    """Batch normalization over the rows of ``x``.

    With the ``mean`` and the biased ``var`` of each column, in test mode the running ones::

        out = (x - mean) / sqrt(var + eps) * gamma + beta

    Parameters
    ----------
    x : (N, D) array, float32 or float64
        The input.
    gamma, beta : (D,) array, float32 or float64
        Scale and shift.
    bn_param : dict
        Mode, options and running statistics, as the module's text says. Updated in training mode.

    Returns
    -------
    out : (N, D) array
        In the dtype of ``x``.
    cache : Cache
        For ``batchnorm_backward``.

    Raises
    ------
    ValueError
        For a ``mode`` that is missing or neither ``"train"`` nor ``"test"``, and as ``fastbn.forward``.
    TypeError
        If ``bn_param`` is not a dict, and as ``fastbn.forward``.

    References
    ----------
    CS231n, assignment 2. Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    return _forward(check.dimensional("x", x, 2), gamma, beta, bn_param)


def batchnorm_backward(dout: ArrayLike, cache: Cache) -> Gradients:
    """Gradients of batch normalization: ``fastbn.backward``.

    Parameters
    ----------
    dout : (N, D) array
        Gradient with respect to the output: shape and dtype of ``x``.
    cache : Cache
        From ``batchnorm_forward``.

    Returns
    -------
    dx : (N, D) array
        In the dtype of ``x``.
    dgamma, dbeta : (D,) array
        In the dtypes of ``gamma`` and ``beta``.

    Raises
    ------
    ValueError, TypeError
        As ``fastbn.backward``.
    """
    return functional.backward(dout, cache)


def batchnorm_backward_alt(dout: ArrayLike, cache: Cache) -> Gradients:
    """The same as ``batchnorm_backward``, with the same bits.

    The course has two functions since it asks for the gradient twice: step by step through the graph, and by the
    formula to which the steps reduce. They are equal but for rounding, and the formula is the shorter way, so one
    kernel that evaluates the formula stands behind both names::

        dx = gamma * inv_std * (dout - sum(dout) / m - x_hat * sum(dout * x_hat) / m)

    Step by step it is in ``fastbn.reference.backward_by_chain_rule``.
    """
    return functional.backward(dout, cache)


def spatial_batchnorm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, bn_param: dict[str, Any]
) -> ForwardResult:
    """``batchnorm_forward`` for images: statistics of each channel over images, rows and columns.

    Parameters
    ----------
    x : (N, C, H, W) array, float32 or float64
        The input.
    gamma, beta : (C,) array, float32 or float64
        Scale and shift.
    bn_param : dict
        As for ``batchnorm_forward``, with running arrays of shape (C,).

    Returns
    -------
    out : (N, C, H, W) array
        In the dtype of ``x``.
    cache : Cache
        For ``spatial_batchnorm_backward``.

    Raises
    ------
    ValueError, TypeError
        As ``batchnorm_forward``.
    """
    return _forward(check.dimensional("x", x, 4), gamma, beta, bn_param)


def spatial_batchnorm_backward(dout: ArrayLike, cache: Cache) -> Gradients:
    """Gradients of ``spatial_batchnorm_forward``; ``dout`` and ``dx`` are (N, C, H, W).

    Raises ``ValueError`` and ``TypeError`` as ``fastbn.backward``.
    """
    return functional.backward(dout, cache)


def _forward(x: Array, gamma: ArrayLike, beta: ArrayLike, bn_param: dict[str, Any]) -> ForwardResult:
    check.instance("bn_param", bn_param, dict)
    training = check.mode(bn_param) == "train"
    momentum = check.momentum(bn_param.get("momentum", 0.9))
    channels = x.shape[1]
    running = {name: bn_param.get(name, np.zeros(channels, x.dtype)) for name in ("running_mean", "running_var")}
    if training:  # updated: not the caller's own
        running = {name: check.parameter(name, values, channels).copy() for name, values in running.items()}
    result = functional.forward(
        x,
        gamma,
        beta,
        **running,
        training=training,
        momentum=1.0 - momentum,
        eps=bn_param.get("eps", 1e-5),
        correction=0,
    )
    bn_param.update(running)  # one call: nothing comes in between
    return result
