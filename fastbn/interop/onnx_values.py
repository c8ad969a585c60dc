"""The constant values that the nodes of an ONNX model refer to by name."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn import _validation as check
from fastbn._typing import Array

if TYPE_CHECKING:
    import onnx

OWN_DOMAIN = ("", "ai.onnx")
"""The names of ONNX's own operator set."""

_FLOAT_ATTRIBUTES = ("value_float", "value_floats")
"""Those of a ``Constant`` node that are numbers, as far as parameters of batch normalization can be."""


class GraphValues:
    """What a graph's names stand for: initialisers and ``Constant`` nodes, with ``Identity`` nodes between."""

    def __init__(self, package: ModuleType, graph: onnx.GraphProto) -> None:
        self._package = package
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}

    def __call__(self, name: str) -> Any:
        """A constant by its name; ``ValueError`` for what is computed, given by the user, or nowhere."""
        source = name
        for _ in range(len(self._producers) + 1):  # a graph without a cycle is not longer
            if source in self._initializers:
                return self._initializers[source]
            node = self._producers.get(source)
            if node is None or node.domain not in OWN_DOMAIN or node.op_type not in ("Identity", "Constant"):
                break
            if node.op_type == "Constant":
                return self._constant(name, node)
            source = node.input[0]
        came = "a name that no node gives" if node is None else f"the output of a node {node.op_type!r}"
        raise ValueError(f"node.input {name!r}: expected an initializer or a constant, got {came}")

    def _constant(self, name: str, node: onnx.NodeProto) -> Any:
        (attribute,) = node.attribute
        value = self._package.helper.get_attribute_value(attribute)
        if attribute.name in _FLOAT_ATTRIBUTES:
            return np.asarray(value, np.float32)
        dense = attribute.name == "value"
        check.setting(f"node.input {name!r}", attribute.name, dense, "a Constant node with a tensor or floats")
        return value


def array_of(package: ModuleType, label: str, value: Any) -> Any:
    """A ``TensorProto`` as an array; anything else as it is."""
    if not isinstance(value, package.TensorProto):
        return value
    location, kind = value.data_location, value.data_type
    check.setting(f"{label}.data_location", location, not location, "0: data that are loaded")
    known = kind in package.TensorProto.DataType.values() and kind != package.TensorProto.UNDEFINED
    check.setting(f"{label}.data_type", kind, known, "a data type of ONNX's")
    try:
        array: Array = package.numpy_helper.to_array(value)
    except Exception as error:  # damaged data raise what NumPy and ONNX like
        raise ValueError(f"{label}: expected a whole tensor, got one that cannot be read ({error})") from error
    return array


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a model imports, whatever others it imports beside."""
    versions = [entry.version for entry in model.opset_import if entry.domain in OWN_DOMAIN]
    found = [f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import]
    check.setting("model.opset_import", found, len(versions) == 1, "one entry of the domain '' or 'ai.onnx'")
    return check.positive("model.opset_import", versions[0])
