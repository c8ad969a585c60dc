"""Layers from ONNX nodes, and nodes from layers. The ``onnx`` package is imported only here, when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _validation as check
from fastbn._typing import Array
from fastbn.interop.onnx_values import OWN_DOMAIN, GraphValues, array_of, opset_of
from fastbn.layers import BatchNorm

if TYPE_CHECKING:
    import onnx

_INPUTS = ("scale", "B", "input_mean", "input_var")
"""ONNX's names for what fastbn calls gamma, beta, running_mean and running_var."""

_LATEST_WITHOUT_A_MODEL = 15
"""The operator set of a node that comes without its model."""


class OnnxNode(NamedTuple):
    """What ``to_onnx`` returns: a node and the initialisers that it refers to."""

    node: onnx.NodeProto
    initializers: list[onnx.TensorProto]


@overload
def from_onnx(node: onnx.ModelProto) -> dict[str, BatchNorm]: ...


@overload
def from_onnx(
    node: onnx.NodeProto,
    initializers: Mapping[str, onnx.TensorProto | ArrayLike] | Iterable[onnx.TensorProto],
    *,
    opset: int = _LATEST_WITHOUT_A_MODEL,
) -> BatchNorm: ...


def from_onnx(
    node: onnx.NodeProto | onnx.ModelProto,
    initializers: Mapping[str, onnx.TensorProto | ArrayLike] | Iterable[onnx.TensorProto] | None = None,
    *,
    opset: int | None = None,
) -> BatchNorm | dict[str, BatchNorm]:
    """Layers that compute what ONNX ``BatchNormalization`` nodes do: all of a model's, or that of one node.

    ``epsilon`` is ``eps``. ``momentum`` is in ONNX the weight of the *old* running value, so the layer's is
    ``1 - momentum``. The running variance follows the biased one, so ``correction=0``. The channels are on axis 1.

    Parameters
    ----------
    node : onnx.ModelProto or onnx.NodeProto
        A model, which says by itself what its nodes' inputs and its operator set are; or a node.
    initializers : mapping or iterable
        With a node only: its scale, B, mean and variance by name, as arrays or ``onnx.TensorProto``; or an iterable of
        ``onnx.TensorProto``, such as ``model.graph.initializer``. It may hold others as well.
    opset : int
        With a node only, 15 by default: the version of the operator set that the model imports
        (``model.opset_import``, domain ``""`` or ``"ai.onnx"``). It decides what the attributes are and what tells
        training from inference: ``training_mode`` from 14 on; the number of outputs from 7 on; ``is_test`` before.

    Returns
    -------
    dict of str to BatchNorm, or BatchNorm
        Of a model: the layer of each ``BatchNormalization`` node of its graph by the name of the node's first output,
        in the graph's order. A node's inputs may be initialisers or ``Constant`` nodes, with ``Identity`` nodes
        between. A layer is in training mode where its node is, else in evaluation mode. Its dtype is the widest of the
        node's inputs, float32 at least. ``eps`` and ``momentum`` are the node's float32 values: ``1e-5`` comes as
        9.999999747378752e-06.

    Raises
    ------
    ImportError
        If the ``onnx`` package is missing.
    TypeError
        If ``node`` is neither, or initialisers are no floats.
    ValueError
        For nodes of another operator, with attributes or outputs that the opset does not know, or with ``spatial=0``
        (statistics for each activation, before opset 9); for inputs that are missing, computed, or do not fit; for a
        model that imports no operator set of ONNX's own.

    Notes
    -----
    A layer of a single channel takes an ``x`` of one dimension, (N,), as the node does.

    References
    ----------
    ONNX operator ``BatchNormalization``, versions 1, 6, 7, 9, 14 and 15.
    """
    onnx = _package()
    check.instance("node", node, onnx.NodeProto, onnx.ModelProto)
    if isinstance(node, onnx.ModelProto):
        for name, value in (("initializers", initializers), ("opset", opset)):
            check.setting(name, value, value is None, "None with a model, which has its own")
        return _layers_of(onnx, node)
    if initializers is None:
        raise TypeError("initializers: expected a mapping or an iterable with a node, got None")
    check.choice("node.domain", node.domain, OWN_DOMAIN)
    check.choice("node.op_type", node.op_type, ("BatchNormalization",))
    if not isinstance(initializers, Mapping):
        tensors = check.several("initializers", initializers, onnx.TensorProto)
        initializers = {tensor.name: tensor for tensor in tensors}
    given: Mapping[str, Any] = initializers
    return _layer_of(
        onnx,
        node,
        lambda name: check.item("initializers", given, name),
        check.positive("opset", _LATEST_WITHOUT_A_MODEL if opset is None else opset),
    )


class SingleChannelBatchNorm(BatchNorm):
    """``BatchNorm`` of one channel that takes (N,) as well, as an ONNX node of one channel does."""

    def forward(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """``BatchNorm.forward``; (N,) is taken for (N, 1)."""
        if np.ndim(x) != 1:
            return super().forward(x, out=out)
        result = super().forward(_column(x), out=None if out is None else _column(out))
        return result.reshape(-1) if out is None else out

    def backward(self, dout: ArrayLike, *, out: Array | None = None) -> Array:
        """``BatchNorm.backward``; (N,) is taken for (N, 1)."""
        if np.ndim(dout) != 1:
            return super().backward(dout, out=out)
        dx = super().backward(_column(dout), out=None if out is None else _column(out))
        return dx.reshape(-1) if out is None else out


def _column(values: Any) -> Any:
    """(N,) as (N, 1): a view of an array."""
    return np.asarray(values)[:, np.newaxis] if isinstance(values, np.ndarray | list | tuple) else values


def to_onnx(bn: BatchNorm, *, name: str = "batch_norm", x: str = "x", y: str = "y") -> OnnxNode:
    """A layer as an ONNX ``BatchNormalization`` node with its initialisers.

    In evaluation mode the node is one for inference, of opset 7 or newer; in training mode it has ``training_mode=1``,
    of opset 14 or newer, and gives the new running statistics as further outputs. The initialisers are in the layer's
    dtype, which most runtimes ask of the input, too.

    Parameters
    ----------
    bn : BatchNorm
        The layer, with the channels on axis 1.
    name : str
        Name of the node, and first part of the names of its initialisers, ``{name}.scale``, ``.B``, ``.input_mean`` and
        ``.input_var``, and of its further outputs, ``{name}.running_mean`` and ``.running_var``.
    x, y : str
        Names of the input and the output.

    Returns
    -------
    node : onnx.NodeProto
    initializers : list of onnx.TensorProto
        For the lists of the same names of an ``onnx.GraphProto``.

    Raises
    ------
    ImportError
        If the ``onnx`` package is missing.
    TypeError
        If ``bn`` is no ``BatchNorm``, or a name no string.
    ValueError
        For layers that no node computes: another axis, no running statistics; in training mode also ``correction``
        other than 0, since the variance in ONNX's running one is the biased one, and ``momentum=None``.

    Notes
    -----
    Attributes are float32 in ONNX: ``eps`` and ``1 - momentum`` are rounded to that. ``nan_policy`` is lost.
    """
    onnx = _package()
    check.instance("bn", bn, BatchNorm)
    for argument, value in (("name", name), ("x", x), ("y", y)):
        check.instance(argument, value, str)
    tracked, momentum, correction = bn.track_running_stats, bn.momentum, bn.correction
    fits = bn.has_statistics and (tracked or not bn.training)
    check.setting("bn.track_running_stats", tracked, fits, "True: a node always has statistics")
    check.setting("bn.axis", bn.axis, bn.axis == 1, "1, where ONNX has the channels")
    range32 = np.finfo(np.float32)
    fits = float(range32.smallest_subnormal) <= bn.eps <= float(range32.max) or (bn.eps == 0 and not bn.training)
    check.setting("bn.eps", bn.eps, fits, "a number in the range of float32, which ONNX's epsilon is")
    attributes: dict[str, Any] = {"epsilon": bn.eps}
    if momentum is not None:
        attributes["momentum"] = 1.0 - momentum
    outputs = [y]
    if bn.training:
        check.setting("bn.momentum", momentum, momentum is not None, "a number: ONNX has no cumulative average")
        check.setting("bn.correction", correction, correction == 0, "0: ONNX's running variance is biased")
        attributes["training_mode"] = 1
        outputs += [f"{name}.running_mean", f"{name}.running_var"]
    names = [f"{name}.{suffix}" for suffix in _INPUTS]
    state = bn.state_dict()
    ones, zeros = np.ones(bn.num_features, bn.dtype), np.zeros(bn.num_features, bn.dtype)
    parameters = state.get("weight", ones), state.get("bias", zeros), state["running_mean"], state["running_var"]
    dtype = np.result_type(*parameters)
    arrays = (np.ascontiguousarray(array, dtype) for array in parameters)
    return OnnxNode(
        onnx.helper.make_node("BatchNormalization", [x, *names], outputs, name=name, **attributes),
        [onnx.numpy_helper.from_array(array, own) for array, own in zip(arrays, names, strict=True)],
    )


def _package() -> ModuleType:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "from_onnx, to_onnx: expected the package onnx, fastbn's extra [onnx]: pip install onnx"
        ) from error
    package: ModuleType = onnx
    return package


def _layers_of(onnx: ModuleType, model: onnx.ModelProto) -> dict[str, BatchNorm]:
    """The layers of a model's graph by the names of their nodes' first outputs."""
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization" and node.domain in OWN_DOMAIN]
    values = GraphValues(onnx, model.graph)
    return {node.output[0]: _layer_of(onnx, node, values, opset_of(model)) for node in nodes}


def _layer_of(onnx: ModuleType, node: onnx.NodeProto, value_of: Callable[[str], Any], opset: int) -> BatchNorm:
    """The layer of one node, whose inputs' values ``value_of`` finds by their names."""
    schema = onnx.defs.get_schema("BatchNormalization", opset, "")
    attributes = _attributes(onnx, node, schema)
    inputs = len(node.input)
    check.setting("node.input", inputs, inputs == 1 + len(_INPUTS), "5: x, scale, B, mean and variance")
    labels = [f"initializers[{name!r}]" for name in node.input[1:]]
    found = [array_of(onnx, label, value_of(name)) for label, name in zip(labels, node.input[1:], strict=True)]
    gamma = check.vector(labels[0], found[0])
    others = zip(labels[1:], found[1:], strict=True)
    beta, mean, var = (check.parameter(label, value, gamma.size) for label, value in others)
    training = _is_training(node, schema, attributes)
    eps = check.eps(attributes["epsilon"], zero=not training)
    check.variance(labels[-1], var, eps)
    layer = (SingleChannelBatchNorm if gamma.size == 1 else BatchNorm)(
        gamma.size,
        momentum=1.0 - check.momentum(attributes["momentum"]),
        correction=0,
        dtype=np.result_type(gamma, beta, mean, var),
    )
    layer.gamma, layer.beta, layer.running_mean, layer.running_var = (
        array.astype(layer.dtype) for array in (gamma, beta, mean, var)
    )
    layer.eps = eps
    return layer.train(training)


def _attributes(onnx: ModuleType, node: onnx.NodeProto, schema: Any) -> dict[str, Any]:
    """The node's attributes, with the defaults of its opset."""
    value_of = onnx.helper.get_attribute_value
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    given = {attribute.name: value_of(attribute) for attribute in node.attribute}
    check.subset(f"node.attribute (opset {schema.since_version})", given, defaults.keys())
    return {name: value_of(default) for name, default in defaults.items() if default.type} | given


def _is_training(node: onnx.NodeProto, schema: Any, attributes: Mapping[str, Any]) -> bool:
    """Whether the node normalises with the batch's statistics."""
    version, outputs = schema.since_version, len([name for name in node.output if name])
    most = schema.max_output
    if version < 9:
        spatial = bool(attributes["spatial"])
        check.setting("node.attribute spatial", spatial, spatial, "True: statistics for each channel")
    if version < 7:
        training = not attributes["is_test"]
    elif version < 14:
        training = outputs > 1
    else:
        training = bool(attributes["training_mode"])
        most = most if training else 1
    check.setting("node.output", outputs, outputs <= most, f"at most {most}, of a node with {training=}")
    return training
