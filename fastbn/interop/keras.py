"""Layers from and to Keras' ``BatchNormalization``, through what its ``get_config`` and ``get_weights`` give.

Keras itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _validation as check
from fastbn._typing import Array
from fastbn.layers import BatchNorm

_DEFAULTS: dict[str, Any] = {
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 1e-3,
    "center": True,
    "scale": True,
    "dtype": None,
    "trainable": True,
    "renorm": False,
}
"""What is read of a config, with Keras' defaults."""

_IGNORED = {
    # They speak of the layer's place in its model,
    "name",
    "batch_input_shape",
    "batch_shape",
    # of weights that are there already,
    "beta_initializer",
    "gamma_initializer",
    "moving_mean_initializer",
    "moving_variance_initializer",
    # of what Keras' training loop does with the layer's parameters and outputs,
    "beta_regularizer",
    "gamma_regularizer",
    "beta_constraint",
    "gamma_constraint",
    "activity_regularizer",
    # of several processes, or of renorm=True.
    "synchronized",
    "renorm_clipping",
    "renorm_momentum",
}

_AFFINE: dict[tuple[bool, bool], bool | str] = {
    (True, True): True,
    (True, False): "gamma",
    (False, True): "beta",
    (False, False): False,
}
"""By ``scale`` and ``center``."""

_ATTRIBUTES = {"moving_mean": "running_mean", "moving_variance": "running_var"}
"""Keras' names where they are others."""


def from_keras(config: Mapping[str, Any], weights: Sequence[ArrayLike]) -> BatchNorm:
    """A layer with the numbers of a Keras ``BatchNormalization``, in training and in inference.

    ==================  =============================================================================
    Keras               the layer
    ==================  =============================================================================
    ``axis``            ``axis``
    ``epsilon``         ``eps``
    ``momentum``        ``momentum = 1 - momentum``: Keras' is the weight of the old moving values
    ``scale, center``   ``affine``: True, ``"gamma"``, ``"beta"`` or False; what is missing is ``None``
    ``dtype``           ``dtype``
    ``trainable``       False: the layer is in evaluation mode, as Keras' never leaves inference mode
    a biased variance   ``correction = 0``
    ==================  =============================================================================

    Parameters
    ----------
    config : mapping
        From ``get_config()``, of Keras 3 or 2, or the layer as ``keras.layers.serialize`` gives it, with that in its
        ``"config"``. What is missing has Keras' default; without a ``dtype`` it is that of
        the weights. Names, initializers, regularizers and constraints are not kept: what of them acts, does so in the
        training loop. ``synchronized`` is not kept either: a layer of fastbn's knows its own process only.
    weights : sequence of (C,) arrays
        From ``get_weights()`` of a layer that is built: ``gamma`` if ``scale``, ``beta`` if ``center``, moving mean,
        moving variance. Copied.

    Returns
    -------
    BatchNorm
        In training mode, unless ``trainable`` is false; with a counter of 0, as Keras does not count batches.

    Raises
    ------
    ValueError
        For ``renorm=True``, keys that are not those of the layer, a number or shapes of weights that do not fit, an
        ``epsilon`` that is not above 0, a ``momentum`` outside 0 to 1, and a moving variance below ``-epsilon``.
    TypeError
        For dtype policies other than float32 and float64, mixed precision included, for several axes, for weights
        that would lose precision in the layer's dtype, and for values of other kinds.
    """
    config = _own_config(config)
    check.subset("config", config, {*_DEFAULTS, *_IGNORED})
    options = {**_DEFAULTS, **config}
    check.setting("config['renorm']", options["renorm"], not options["renorm"], "False: fastbn has no renormalization")
    scale, center = (check.flag(f"config[{name!r}]", options[name]) for name in ("scale", "center"))
    names = [*["gamma"] * scale, *["beta"] * center, "moving_mean", "moving_variance"]
    arrays = check.vectors("weights", weights, names)
    dtype = options["dtype"]
    layer = BatchNorm(
        arrays["moving_mean"].size,
        axis=_axis(options["axis"]),
        eps=check.number("config['epsilon']", options["epsilon"]),
        momentum=1.0 - check.momentum(options["momentum"]),
        affine=_AFFINE[scale, center],
        correction=0,
        dtype=np.result_type(*arrays.values()) if dtype is None else check.policy("config['dtype']", dtype),
    )
    check.variance("weights: moving_variance", arrays["moving_variance"], layer.eps)
    for name, array in arrays.items():
        check.castable(f"weights: {name}", array.dtype, layer.dtype)
        setattr(layer, _ATTRIBUTES.get(name, name), array.astype(layer.dtype))
    return layer.train(check.flag("config['trainable']", options["trainable"]))


def to_keras(bn: BatchNorm) -> tuple[dict[str, Any], list[Array]]:
    """What makes a Keras ``BatchNormalization`` of a layer: the way back from ``from_keras``.

    ::

        config, weights = fastbn.to_keras(bn)
        layer = keras.layers.BatchNormalization.from_config(config)
        layer.build(shape)  # of the input
        layer.set_weights(weights)

    Parameters
    ----------
    bn : BatchNorm
        With ``correction=0``, a ``momentum`` and running statistics. For a layer with ``correction=1``, as PyTorch's,
        set ``bn.correction = 0`` first: inference stays as it is, and the moving variance goes on without the
        correction. The mode, the counter and ``nan_policy`` are not kept.

    Returns
    -------
    config : dict
        ``axis``, ``momentum``, ``epsilon``, ``center``, ``scale``, ``dtype``.
    weights : list of (C,) arrays
        Copies of ``gamma`` and ``beta``, if there, ``running_mean`` and ``running_var``, in the layer's dtype.

    Raises
    ------
    ValueError
        For a layer that is none of Keras': with another ``correction``, ``momentum=None`` or
        ``track_running_stats=False``; and for arrays that were replaced by others of another shape.
    TypeError
        If ``bn`` is not a ``BatchNorm``, and for replaced arrays that would lose precision in the layer's dtype.
    """
    check.instance("bn", bn, BatchNorm)
    tracked, momentum, correction = bn.track_running_stats, bn.momentum, bn.correction
    check.setting(
        "bn.track_running_stats", tracked, bn.has_statistics, "True: Keras' layer always has moving statistics"
    )
    check.setting("bn.momentum", momentum, momentum is not None, "a number: Keras has no cumulative average")
    check.setting("bn.correction", correction, correction == 0, "0: Keras' moving variance is biased")
    state = bn.state_dict()
    del state["num_batches_tracked"]
    for name, array in state.items():
        check.castable(name, array.dtype, bn.dtype)
    config = {
        "axis": bn.axis,
        "momentum": 1.0 - check.momentum(momentum),
        "epsilon": bn.eps,
        "center": "bias" in state,
        "scale": "weight" in state,
        "dtype": bn.dtype.name,
    }
    return config, [array.astype(bn.dtype) for array in state.values()]


def _own_config(config: Any) -> Any:
    """The layer's own config, also where it comes inside of a serialised layer."""
    if not isinstance(config, Mapping) or not isinstance(config.get("config"), Mapping):
        return config
    name = config.get("class_name", "BatchNormalization")
    known = isinstance(name, str) and name.rpartition(">")[2].startswith("BatchNormalization")
    check.setting("config['class_name']", name, known, "'BatchNormalization'")
    return config["config"]


def _axis(value: Any) -> int:
    """Keras 2 gives a list of one axis."""
    if not isinstance(value, list | tuple):
        return check.integer("config['axis']", value)
    check.setting("config['axis']", value, len(value) == 1, "one axis: fastbn has no statistics over several")
    return check.integer("config['axis']", value[0])
