"""``fastbn.from_onnx`` beside ONNX's reference evaluator, or ONNX Runtime, on the node that it was made of."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.origins.compare import Case, Layer, parameters

OPSET = 15
IR_VERSION = 10  # of the time of onnx 1.17: runtimes lag behind
SHAPES = (100, 7), (20, 7, 9), (8, 7, 5, 6), (4, 7, 3, 5, 6)


def library():
    return pytest.importorskip("onnx")


def against():
    return f"the reference evaluator of onnx {library().__version__}"


def evaluator(model):
    """ONNX's own way to run a model: NumPy."""
    session = pytest.importorskip("onnx.reference").ReferenceEvaluator(model)
    return lambda x: session.run(None, {model.graph.input[0].name: x})


def runtime(model):
    """ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {model.graph.input[0].name: x})


def model_of(node, initializers, ndim, opset=OPSET):
    """A checked model of one node, all of whose outputs but the first are per channel."""
    onnx = library()
    kind, (channels,) = initializers[0].data_type, initializers[0].dims
    shape = [None, channels, *[None] * (ndim - 2)]
    x, *outputs = (
        onnx.helper.make_tensor_value_info(name, kind, [channels] if i > 1 else shape)
        for i, name in enumerate((node.input[0], *node.output))
    )
    graph = onnx.helper.make_graph([node], "graph", [x], outputs, initializers)
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


class Node:
    """A node with ONNX's defaults. Whoever trains it gives it the statistics that the step before gave."""

    def __init__(self, shape, dtype, run):
        self.ndim, self.run = len(shape), run
        channels = shape[1]
        self.parameters = parameters(channels, dtype)
        self.statistics = [np.zeros(channels, dtype), np.ones(channels, dtype)]

    def parts(self, training):
        """The node and its initialisers."""
        onnx = library()
        names = "scale", "B", "mean", "var"
        arrays = zip([*self.parameters, *self.statistics], names, strict=True)
        outputs, options = (["y", "new_mean", "new_var"], {"training_mode": 1}) if training else (["y"], {})
        node = onnx.helper.make_node("BatchNormalization", ["x", *names], outputs, **options)
        return node, [onnx.numpy_helper.from_array(array, name) for array, name in arrays]

    def train(self, x, dout):
        out, *self.statistics = self.run(model_of(*self.parts(training=True), self.ndim))(x)
        return out, []

    def running(self):
        return self.statistics

    def infer(self, x):
        return self.run(model_of(*self.parts(training=False), self.ndim))(x)[0]


def cases(dtype, run=evaluator):
    library()
    for shape in SHAPES:
        node = Node(shape, dtype, run)
        yield Case(Layer(fastbn.from_onnx(*node.parts(training=True))), node, shape)
