"""Running statistics taken anew from data: exact ones, in place of a moving average."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _engine, _state
from fastbn import _validation as check
from fastbn._typing import Array
from fastbn.layers import BatchNorm
from fastbn.moments import Moments, moments, normalize


def recalibrate(
    layers: BatchNorm | Iterable[BatchNorm],
    batches: Iterable[Any],
    run: Callable[[Any], object] | None = None,
    *,
    progress: bool | None = None,
) -> None:
    """Replace running statistics by those of the data, from one pass over it.

    Over all ``m`` values that a channel has in all batches together::

        running_mean = sum(x) / m
        running_var  = sum((x - running_mean)**2) / (m - correction)

    The batches' moments are merged in float64 (``Moments.merge``): the sizes of the batches and their order make no
    difference beyond rounding. One batch at a time is held, so the data may be larger than the memory.

    Parameters
    ----------
    layers : BatchNorm or iterable of BatchNorm
        The layers to recalibrate, with running statistics; each brings its ``correction``.
    batches : iterable
        Gone over once. Without ``run``, the layer's inputs, which have to be arrays: an ``(x, y)`` of a data loader is
        refused. With ``run``, whatever that takes.
    run : callable, optional
        Called with each batch: runs the network, in which the layers are called as ever. It may be left out for a
        single layer, which then takes the batches itself.
    progress : bool, optional
        Whether to show a progress bar. ``None``: if tqdm is installed and the standard error stream is a terminal.

    Raises
    ------
    ValueError, TypeError
        For layers without running statistics, no data for a layer, ``correction`` not below ``m``, and batches that do
        not fit, as ``fastbn.forward``. Whatever ``batches`` and ``run`` raise goes through.
    ImportError
        If ``progress`` is ``True`` and tqdm is not installed.

    Notes
    -----
    While ``run`` is at work, the layers normalise with the statistics of each batch, whatever their mode, and nothing
    of them is changed; no other thread may call them meanwhile. Running statistics and ``num_batches_tracked``, then
    the number of calls with data, are set at the end, for all layers or, after any exception, ``KeyboardInterrupt``
    included, for none.

    So deeper layers see inputs that the layers before them have normalised by batches, as in training. For the
    statistics of what a layer sees in evaluation mode, recalibrate one layer after the other, from the input on, with
    the network in evaluation mode: one pass over the data for each.

    References
    ----------
    Wu and Johnson 2021, arXiv:2105.07576, section 3 (*precise* statistics); Ioffe and Szegedy 2015, arXiv:1502.03167,
    algorithm 2, steps 8 to 10.
    """
    recorders = [_Recorder(layer) for layer in check.layers("layers", layers, BatchNorm)]
    check.batches("batches", batches, run, len(recorders))
    shown = _with_progress(batches, None if progress is None else check.flag("progress", progress))
    if run is None:
        for number, batch in enumerate(shown):
            check.array_batch(f"batches[{number}]", batch)
            recorders[0].record(batch)
    else:
        _record(recorders, shown, run)
    for number, recorder in enumerate(recorders):
        check.population(f"layers[{number}], {recorder.layer!r}", recorder.merged.count, recorder.layer.correction)
    _state.assign_together([assignment for recorder in recorders for assignment in recorder.assignments()])


_WRITTEN = ("running_mean", "running_var")


class _Recorder:
    """Stands in for a layer's ``forward``: normalises with the batch's moments, and merges them."""

    def __init__(self, layer: BatchNorm) -> None:
        layer._state(written=_WRITTEN)  # refuses replaced arrays that do not fit, before a pass that may be long
        zeros = np.zeros(layer.num_features)
        self.layer = layer
        self.merged = Moments(0, zeros, zeros)
        self.batches = 0

    def __call__(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        layer = self.layer
        x, axis = check.features(x, layer.axis, layer.num_features, layer.ndims)
        check.trainable(x, axis, correction=0.0)
        batch = self.record(x)
        inv_std = _engine.inv_std_of(batch.var, check.eps(layer.eps, zero=False))
        return normalize(x, batch.mean, inv_std, layer.gamma, layer.beta, axis=axis, out=out)

    def record(self, x: ArrayLike) -> Moments:
        """Merge the moments of an input of the layer into the others; returns them."""
        layer = self.layer
        x, axis = check.features(x, layer.axis, layer.num_features, layer.ndims)
        batch = moments(x, axis=axis)
        if layer.nan_policy == "raise":
            check.finite("x", batch.mean)
        self.merged = self.merged.merge(batch)
        self.batches += batch.count > 0
        return batch

    def assignments(self) -> list[_state.Assignment]:
        """What the layer's state becomes."""
        count, mean, var = self.merged.count, self.merged.mean, self.merged.var
        correction = self.layer.correction
        state = self.layer._state(written=_WRITTEN)
        with np.errstate(all="ignore"):  # values out of float32's range
            return [
                (state["running_mean"], mean.astype(state["running_mean"].dtype)),
                (state["running_var"], (var * (count / (count - correction))).astype(state["running_var"].dtype)),
                (state["num_batches_tracked"], self.batches),
            ]


def _record(recorders: Sequence[_Recorder], batches: Iterable[Any], run: Callable[[Any], object]) -> None:
    """Run all batches with the recorders in the places of their layers' ``forward``."""
    attributes = [vars(recorder.layer) for recorder in recorders]
    try:
        try:
            for names, recorder in zip(attributes, recorders, strict=True):
                names["forward"] = recorder
            for batch in batches:
                run(batch)
        finally:
            _forget_forward(attributes)
    finally:
        _forget_forward(attributes)  # again, for a signal that came before the first


def _forget_forward(attributes: Sequence[dict[str, Any]]) -> None:
    """Back to the ``forward`` of the class. In C, so that no signal handler runs between two layers."""
    deque(map(dict.pop, attributes, repeat("forward"), repeat(None)), maxlen=0)


def _with_progress(batches: Iterable[Any], progress: bool | None) -> Iterable[Any]:
    if progress is False:
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        if progress:
            raise ImportError(
                "progress: expected tqdm to be installed (pip install tqdm), for a progress bar"
            ) from None
        return batches
    shown: Iterable[Any] = tqdm(batches, unit="batch", disable=None if progress is None else False)
    return shown
