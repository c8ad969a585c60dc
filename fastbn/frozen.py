"""Batch normalization for inference only, with its coefficients computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _engine, _far
from fastbn import _validation as check
from fastbn._typing import Array, Float64Array
from fastbn.kernels import calls


class FrozenBatchNorm:
    """Batch normalization with fixed statistics: ``(x - mean) / sqrt(var + eps) * gamma + beta``.

    Gives the bits of the layer that it came from in evaluation mode, keeps nothing from one call to the next, and may
    be called by any number of threads.

    Parameters
    ----------
    running_mean, running_var : (C,) array, float32 or float64
        The statistics; copied.
    gamma, beta : (C,) array, float32 or float64, optional
        Scale and shift; ``None`` means ones and zeros. Copied.
    eps : float
        Added to the variance; 0 or above.
    axis : int
        The channel axis.
    ndims : tuple of int, optional
        The numbers of dimensions that are taken; ``None`` for all from 2 up.

    Attributes
    ----------
    mean, inv_std, gamma, beta : (C,) float64 array, read-only
        The coefficients.

    Raises
    ------
    ValueError, TypeError
        As ``fastbn.inference``.
    """

    def __init__(
        self,
        running_mean: ArrayLike,
        running_var: ArrayLike,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        *,
        eps: float = 1e-5,
        axis: int = 1,
        ndims: tuple[int, ...] | None = None,
    ) -> None:
        eps = check.eps(eps, zero=True)
        mean = check.vector("running_mean", running_mean)
        channels = mean.size
        var = check.parameter("running_var", running_var, channels)
        check.variance("running_var", var, eps)
        gamma = check.optional_parameter("gamma", gamma, channels)
        beta = check.optional_parameter("beta", beta, channels)
        self.axis = check.integer("axis", axis)
        self.ndims = check.dimensions("ndims", ndims)
        self.num_features = channels
        ones, zeros = np.ones(channels), np.zeros(channels)
        self.mean = _read_only(mean)
        self.inv_std = _read_only(_engine.inv_std_of(_engine.float64(var), eps))
        self.gamma = _read_only(ones if gamma is None else gamma)
        self.beta = _read_only(zeros if beta is None else beta)
        parameters = self.mean, self.inv_std, self.gamma, self.beta
        dtypes = [np.dtype(dtype) for dtype in (np.float32, np.float64)]
        self._coefficients = {dtype: _engine.affine(dtype, *parameters) for dtype in dtypes}
        self._near = {dtype for dtype in dtypes if not _far.is_far(dtype, self.mean)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a pickle or a deep copy, whose arrays are writable at first."""
        self.__dict__.update(state)
        for array in (self.mean, self.inv_std, self.gamma, self.beta):
            array.flags.writeable = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_features}, axis={self.axis})"

    def __call__(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """Normalise ``x``, with ``num_features`` channels on ``axis``; ``out`` may be ``x``.

        Raises ``ValueError`` and ``TypeError`` as ``fastbn.inference``.
        """
        normalized = self._quick(x, out)
        if normalized is not None:
            return normalized
        x, axis = check.features(x, self.axis, self.num_features, self.ndims)
        if out is not None:
            out = check.out_like("out", out, x, may_be=x)
        if _far.is_far(x.dtype, self.mean):
            return _engine.normalize(x, axis, self.mean, self.inv_std, self.gamma, self.beta, out)
        return _engine.scale(x, axis, self._coefficients[x.dtype], out)

    def _quick(self, x: Any, out: Array | None) -> Array | None:
        """``x`` normalised in one compiled call; ``None`` where anything is out of the ordinary."""
        way = calls.WAY[0](x, self.axis, self.num_features, 1)
        if way < 0 or not (self.ndims is None or x.ndim in self.ndims) or x.dtype not in self._near:
            return None
        result = np.empty_like(x) if out is None else out
        arguments = x, self.axis, self._coefficients[x.dtype], result, 1, 0
        return result if _engine.whole(calls.SCALE, calls.SCALE, way, arguments, x, self.axis, "stream_out") else None


def _read_only(array: Array) -> Float64Array:
    copy = _engine.float64(array)
    copy.flags.writeable = False
    return copy
