"""Batch normalization as layers that keep their parameters and running statistics."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbn import _checkpoint, _device, _state, functional
from fastbn import _validation as check
from fastbn._options import FixedOption, Option
from fastbn._typing import Array
from fastbn.frozen import FrozenBatchNorm
from fastbn.kernels import locks
from fastbn.moments import moments

Layer = TypeVar("Layer", bound="BatchNorm")

_ATTRIBUTES = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
"""Those of the arrays that are a layer's state, by PyTorch's names."""

_ARRAYS = (*_ATTRIBUTES.values(), "dgamma", "dbeta")

_RUNNING = ("running_mean", "running_var")


def _nan_policy(layer: BatchNorm, value: Any) -> str:
    policy = check.choice("nan_policy", value, ("propagate", "raise"))
    fits = layer.device == "cpu" or policy == "propagate"
    check.setting("nan_policy", policy, fits, "'propagate' with device='cuda'")
    return policy


def _tracking(layer: BatchNorm, value: Any) -> bool:
    tracked = check.flag("track_running_stats", value)
    possible = "track_running_stats" not in vars(layer) or not tracked or layer.has_statistics
    check.setting("track_running_stats", tracked, possible, "False, as the layer has no running arrays to update")
    return tracked


class BatchNorm:
    """Batch normalization over the channels on ``axis``, for tensors of any number of dimensions from 2 up.

    In training mode, the mode at first, a call normalises with the batch's statistics and updates the running ones::

        out          = (x - mean) / sqrt(var + eps) * gamma + beta
        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * m / (m - correction)

    In evaluation mode it normalises with the running statistics. After any exception, ``KeyboardInterrupt`` included,
    the running arrays and the counter are as they were before the call; only a signal that comes when the call has
    ended, and before its caller goes on, finds it done.

    Parameters
    ----------
    num_features : int
        Number of channels, C.
    axis : int
        The channel axis.
    eps : float
        Added to the variance; above 0. It may be set to 0 afterwards, for evaluation; training then refuses it.
    momentum : float or None
        Weight of a batch in the running statistics, 0 to 1. ``None`` is the cumulative average: weight
        ``1 / num_batches_tracked``.
    affine : bool, "gamma" or "beta"
        Whether there are ``gamma`` (ones at first) and ``beta`` (zeros), or only the one that is named; what is not
        there is ``None``.
    track_running_stats : bool
        Whether there are running statistics; else the batch's are used in both modes. Set to ``False`` later on, as in
        PyTorch, training leaves the running arrays as they are, and evaluation goes on using them.
    correction : float
        1: ``running_var`` follows the unbiased variance. 0: the biased one.
    dtype : float32 or float64
        Of the parameters and running statistics; ``x`` may have either.
    nan_policy : "propagate" or "raise"
        What NaN or infinity in ``x`` does: spoil its own channel, running statistics included, or raise
        ``ValueError`` before anything is written (at the price of one more pass over ``x``).
    device : "cpu" or "cuda"
        Where the parameters and running statistics are, and ``x`` has to be. On a GPU calls return when the work is
        handed to it: an interrupt that comes after that finds the call done. Not with ``nan_policy="raise"``, which
        would have to wait for the result. Needs the extra ``cuda``.

    Attributes
    ----------
    axis, eps, momentum, track_running_stats, correction, nan_policy
        The options, free to be changed and validated at once. ``num_features``, ``affine``, ``dtype`` and ``device``
        cannot be changed.
    keep_for_backward : bool
        Whether a call in evaluation mode that uses running statistics keeps ``x`` for ``backward``; ``False`` at first,
        so that a network in evaluation mode keeps no tensor alive.
    gamma, beta, running_mean, running_var : (C,) array or None
        Parameters and running statistics, free to be changed in place or replaced.
    num_batches_tracked : int or None
        Batches that entered the running statistics. Empty and refused batches do not count.
    dgamma, dbeta : (C,) array or None
        Gradients, set by ``backward``.
    training : bool
        The mode.

    References
    ----------
    Ioffe and Szegedy 2015, arXiv:1502.03167. ``correction=1`` and the names of ``state_dict`` are PyTorch's.
    """

    ndims: ClassVar[tuple[int, ...] | None] = None
    """The numbers of dimensions that are taken; ``None`` for all from 2 up."""

    num_features: int = cast(Any, FixedOption(lambda _, value: check.size("num_features", value)))
    affine: bool | str = cast(Any, FixedOption(lambda _, value: check.affine(value)))
    dtype: np.dtype[Any] = cast(Any, FixedOption(lambda _, value: check.float_dtype("dtype", value)))
    device: str = cast(Any, FixedOption(lambda _, value: check.choice("device", value, ("cpu", "cuda"))))
    axis: int = cast(Any, Option(lambda _, value: check.integer("axis", value)))
    eps: float = cast(Any, Option(lambda _, value: check.eps(value, zero=True)))
    momentum: float | None = cast(Any, Option(lambda _, value: None if value is None else check.momentum(value)))
    correction: float = cast(Any, Option(lambda _, value: check.correction(value)))
    training: bool = cast(Any, Option(lambda _, value: check.flag("training", value)))
    keep_for_backward: bool = cast(Any, Option(lambda _, value: check.flag("keep_for_backward", value)))
    track_running_stats: bool = cast(Any, Option(_tracking))
    nan_policy: str = cast(Any, Option(_nan_policy))

    gamma: Array | None
    beta: Array | None
    running_mean: Array | None
    running_var: Array | None
    dgamma: Array | None
    dbeta: Array | None

    def __init__(
        self,
        num_features: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool | str = True,
        track_running_stats: bool = True,
        correction: float = 1,
        dtype: DTypeLike = np.float32,
        nan_policy: str = "propagate",
        device: str = "cpu",
    ) -> None:
        self.num_features = num_features
        self.axis = axis
        self.eps = check.eps(eps, zero=False)
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.correction = correction
        self.dtype = cast(Any, dtype)
        self.device = device
        self.nan_policy = nan_policy
        self.training = True
        self.keep_for_backward = False
        self.gamma = self._array(1.0) if self._has("gamma") else None
        self.beta = self._array(0.0) if self._has("beta") else None
        self.running_mean = self._array(0.0) if self.track_running_stats else None
        self.running_var = self._array(1.0) if self.track_running_stats else None
        self.dgamma = None
        self.dbeta = None
        # An array, so that it can be assigned together with the running arrays.
        self._num_batches_tracked = np.zeros((), np.int64)
        # In evaluation mode what a cache is made of: few calls are followed by backward.
        self._cache: functional.Cache | tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        names = ("axis", "eps", "momentum", "affine", "track_running_stats", "correction", "nan_policy")
        place = () if self.device == "cpu" else ("device",)
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in (*names, *place))
        return f"{type(self).__name__}({self.num_features}, {options}, dtype={self.dtype.name!r})"

    @property
    def num_batches_tracked(self) -> int | None:
        """Batches that entered the running statistics."""
        return int(self._num_batches_tracked) if self.has_statistics else None

    @num_batches_tracked.setter
    def num_batches_tracked(self, value: int) -> None:
        self._num_batches_tracked[...] = check.size("num_batches_tracked", value)

    @property
    def has_statistics(self) -> bool:
        """Whether there are running statistics, to be used in evaluation mode."""
        return self.running_mean is not None or self.running_var is not None

    def __getstate__(self) -> dict[str, Any]:
        """All but what ``backward`` needs: copies and pickles carry no tensors, and what they carry is on the host.

        Copies of arrays as they are at one moment, so that ``copy.copy`` copies them, too.
        """
        with locks.state:
            state = {**self.__dict__, "_cache": None}
            if self.device == "cpu":
                return copy.deepcopy(state)
        for name in _ARRAYS:
            if state[name] is not None:
                state[name] = _device.to_host(name, state[name], self.num_features)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Back to the device. Older pickles know no ``keep_for_backward``."""
        self.__dict__.update({"keep_for_backward": False, **state})
        if self.device == "cuda":
            for name in _ARRAYS:
                if state[name] is not None:
                    setattr(self, name, _device.to_device(state[name]))

    def train(self: Layer, mode: bool = True) -> Layer:
        """Set training mode (or evaluation mode, with ``False``); returns the layer."""
        self.training = check.flag("mode", mode)
        return self

    def eval(self: Layer) -> Layer:
        """Set evaluation mode; returns the layer."""
        return self.train(False)

    def __call__(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """``forward``."""
        return self.forward(x, out=out)

    def forward(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """Normalise ``x``; in training mode update the running statistics.

        Parameters
        ----------
        x : array, float32 or float64
            With ``num_features`` channels on ``axis``.
        out : array, optional
            Where to write the result. It may be ``x`` only where running statistics are used.

        Returns
        -------
        out : array
            Shape and dtype of ``x``.

        Raises
        ------
        ValueError, TypeError
            As ``fastbn.forward``; ``ValueError`` also for a number of dimensions that the layer does not take, and for
            NaN and infinity where ``nan_policy="raise"``.
        """
        axis, channels = self.axis, self.num_features
        if self.nan_policy == "raise" or not (self.ndims is None or getattr(x, "ndim", None) in self.ndims):
            x, axis = self._features(x)
        arrays = self.gamma, self.beta, self.running_mean, self.running_var
        if not self.training and self.has_statistics:
            result, cache = self._evaluate(x, axis, arrays, out)
            self._cache = cache if self.keep_for_backward else None
            return result
        if not self.track_running_stats:
            arrays = self.gamma, self.beta, None, None
        counter, cumulative = self._num_batches_tracked, self.momentum is None
        momentum = 1.0 / (int(counter) + 1) if self.momentum is None else self.momentum
        options = True, momentum, self.eps, axis, self.correction, out, channels
        (result, cache), update = functional.prepare(x, *arrays, *options)
        with locks.state:
            self._cache = cache
            if update is not None:  # last: what comes after it could be interrupted
                _state.update(*update, counter, cumulative)
            elif self.device == "cuda" and self.track_running_stats:
                counter += _device.view("x", x).size > 0  # the device updates the running arrays
        return result

    def _evaluate(
        self, x: Any, axis: int, arrays: tuple[Any, Any, Any, Any], out: Array | None
    ) -> tuple[Array, functional.Cache | tuple[Any, ...]]:
        """The result with running statistics, and a cache or what one is made of."""
        channels = self.num_features
        evaluated = functional.evaluate(x, *arrays, self.eps, axis, out, channels)
        if evaluated is not None:
            result, statistics = evaluated
            return result, (x, self.gamma, self.beta, statistics, axis, False)
        if check.on_device(x):
            options = False, 0.0, self.eps, axis, self.correction, out, channels
            return functional.prepare(x, *arrays, *options)[0]
        x, axis = check.features(x, axis, channels, None)
        return functional.frozen(x, *arrays, eps=check.eps(self.eps, zero=True), axis=axis, out=out)

    def backward(self, dout: ArrayLike, *, out: Array | None = None) -> Array:
        """Gradient with respect to the input of the last ``forward``; sets ``dgamma`` and ``dbeta``.

        Parameters
        ----------
        dout : array
            Gradient with respect to the output: shape and dtype of ``x``.
        out : array, optional
            Where to write ``dx``. It may be ``dout`` itself.

        Returns
        -------
        dx : array
            Shape and dtype of ``x``.

        Raises
        ------
        RuntimeError
            If there was no ``forward``, or if the last one was in evaluation mode and kept nothing.
        ValueError, TypeError
            As ``fastbn.backward``.
        """
        if self._cache is None:
            raise RuntimeError(
                "backward: expected a call of forward before it that kept its input, got none; calls in evaluation "
                "mode keep it where keep_for_backward is True"
            )
        if not isinstance(self._cache, functional.Cache):
            self._cache = functional.make_cache(*self._cache)
        dx, self.dgamma, self.dbeta = functional.backward(dout, self._cache, out=out)
        return dx

    def _features(self, x: Any) -> tuple[Any, int]:
        """``x`` and ``axis`` where there is more to say of them than the functions know."""
        if check.on_device(x):
            check.setting("device", self.device, self.device == "cuda", "'cuda', as x is on a device")
            return x, check.layer_axis(_device.view("x", x), self.axis, self.num_features, self.ndims)
        x, axis = check.features(x, self.axis, self.num_features, self.ndims)
        if self.nan_policy == "raise":
            check.finite("x", moments(x, axis=axis).mean)
        return x, axis

    def _array(self, value: float) -> Array:
        """A new array of a value a channel, where the layer is."""
        array = np.full(self.num_features, value, self.dtype)
        return array if self.device == "cpu" else _device.to_device(array)

    def _has(self, parameter: str) -> bool:
        """Whether the layer was made with ``gamma``, or with ``beta``."""
        return self.affine is True or self.affine == parameter

    def _state(self, written: Collection[str] = ()) -> dict[str, Array]:
        """The layer's own arrays, or their copies on the host, under PyTorch's names.

        Checked, as they may have been replaced; those named in ``written`` have to be writable.
        """
        names = [name for name in ("weight", "bias") if self._has(_ATTRIBUTES[name])]
        state: dict[str, Array] = {}
        for name in [*names, *_RUNNING] if self.has_statistics else names:
            attribute = _ATTRIBUTES[name]
            array = getattr(self, attribute)
            array = _device.to_host(attribute, array, self.num_features) if self.device == "cuda" else array
            kind = check.running if name in written else check.parameter
            state[name] = kind(attribute, array, self.num_features)
        if self.has_statistics:
            state["num_batches_tracked"] = self._num_batches_tracked
        return state

    def state_dict(self) -> dict[str, Array]:
        """Copies of parameters and running statistics under PyTorch's names.

        ``weight`` and ``bias`` as ``affine`` has it; ``running_mean``, ``running_var`` and ``num_batches_tracked``
        (int64, no dimensions) where there are running statistics.
        """
        with locks.state:
            return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take parameters and running statistics from what ``state_dict``, or PyTorch's, gave. All or nothing.

        Half precision is widened. A state without ``num_batches_tracked``, as old ones of PyTorch and those of frozen
        layers are, sets the counter to 0. (On a device an interrupt may come between two arrays.)

        Raises
        ------
        ValueError
            For missing or unexpected keys and wrong shapes, and for arrays of the layer that are read-only.
        TypeError
            For values that are not floats, or that would lose precision in the layer's dtype.
        """
        own = self._state(written=_ATTRIBUTES)
        check.keys("state", state, own, optional={"num_batches_tracked"})
        assignments: list[_state.Assignment] = []
        for name, target in own.items():
            if name == "num_batches_tracked":
                assignments.append((target, check.counter(f"state[{name!r}]", state.get(name, 0))))
                continue
            values = check.parameter(f"state[{name!r}]", state[name], self.num_features)
            check.castable(f"state[{name!r}]", values.dtype, target.dtype)
            if name == "running_var":
                check.variance(f"state[{name!r}]", values, self.eps)
            assignments.append((target, values))
        _state.assign_together(assignments)
        if self.device == "cuda":  # those above are copies
            for name in own.keys() - {"num_batches_tracked"}:
                _device.copy_to(name, getattr(self, _ATTRIBUTES[name]), own[name])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to an ``.npz`` file, which appears whole or not at all. Never a pickle.

        Raises ``ValueError`` and ``TypeError`` where arrays of the layer were replaced by others that do not fit.
        """
        names = ("num_features", "axis", "eps", "momentum", "affine", "track_running_stats", "correction", "nan_policy")
        options = {name: getattr(self, name) for name in names}
        options |= {"dtype": self.dtype.name, "track_running_stats": self.has_statistics}
        config = {"format": 1, "class": type(self).__name__, "options": options}
        if self.has_statistics and not self.track_running_stats:
            config["tracking"] = False
        state = self.state_dict()
        for name, array in state.items():
            if name != "num_batches_tracked":
                check.castable(name, array.dtype, self.dtype)
        _checkpoint.write(path, config, state)

    @classmethod
    def load(cls: type[Layer], path: str | os.PathLike[str], *, device: str = "cpu") -> Layer:
        """A layer from a file that ``save`` wrote, in training mode, on any device.

        Raises
        ------
        ValueError
            For a file that is damaged, was not written by ``save``, or holds a layer of another class.
        """
        config, state = _checkpoint.read(path)
        try:
            if config["format"] != 1 or config["class"] != cls.__name__:
                raise ValueError(f"it holds a {config['class']}, format {config['format']}")
            _checkpoint.require_arrays(state, config["options"])
            layer = cls(**{**config["options"], "eps": 1.0}, device=device)
            layer.eps = config["options"]["eps"]
            layer.load_state_dict(state)
            if "tracking" in config:
                layer.track_running_stats = config["tracking"]
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise ValueError(f"path: expected a saved {cls.__name__}, got {os.fspath(path)!r} ({error})") from error
        return layer

    def freeze(self) -> FrozenBatchNorm:
        """An inference-only copy with its coefficients computed; later changes of this layer do not reach it.

        Raises ``ValueError`` if there are no running statistics, or if they are on a device.
        """
        check.setting("device", self.device, self.device == "cpu", "'cpu', where frozen layers are")
        if self.running_mean is None or self.running_var is None:
            raise ValueError("freeze: expected a layer with running statistics, got one without")
        with locks.state:
            arrays = self.running_mean, self.running_var, self.gamma, self.beta
            return FrozenBatchNorm(*arrays, eps=self.eps, axis=self.axis, ndims=self.ndims)


class BatchNorm1d(BatchNorm):
    """``BatchNorm`` for (N, C) and (N, C, L)."""

    ndims = (2, 3)


class BatchNorm2d(BatchNorm):
    """``BatchNorm`` for (N, C, H, W)."""

    ndims = (4,)


class BatchNorm3d(BatchNorm):
    """``BatchNorm`` for (N, C, D, H, W)."""

    ndims = (5,)
