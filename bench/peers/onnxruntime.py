"""ONNX Runtime: a model of one BatchNormalization node, with memory bound to its inputs and outputs.

The node has its channels on axis 1: tensors with channels last are fed as (pixels, channels).
"""

from __future__ import annotations

import numba
import numpy as np
import onnxruntime
from onnx import helper

from bench.cases import Array, Case, MissingError, Work, aligned, rows

INPUTS = ("x", "gamma", "beta", "mean", "var")
OUTPUTS = ("out", "running_mean", "running_var")


def session(case: Case, operation: str) -> Work:
    """Inference, and training forward by the node's training mode; there are no gradients."""
    case.needs_kept_memory()
    if "backward" in operation:
        raise MissingError("its CPU provider has no gradients")
    inputs = {"x": aligned(rows(case.x) if case.last else case.x)}
    inputs |= dict(zip(INPUTS[1:], (aligned(values) for values in case.vectors), strict=True))
    outputs = {"out": aligned(inputs["x"])}
    if operation == "forward":
        outputs |= {"running_mean": aligned(inputs["mean"]), "running_var": aligned(inputs["var"])}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = numba.get_num_threads()
    running = onnxruntime.InferenceSession(
        _model(inputs, outputs, case.eps), options, providers=["CPUExecutionProvider"]
    )
    binding = running.io_binding()
    for arrays, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def read(_: object) -> list[Array]:
        shape = np.moveaxis(case.x, 1, -1).shape if case.last else case.x.shape
        out = outputs["out"].reshape(shape)
        results = [np.moveaxis(out, -1, 1) if case.last else out]
        if operation == "forward":  # ONNX's running variance follows the biased one
            old = 0.9 * case.running_var
            results += [outputs["running_mean"], old + (outputs["running_var"] - old) * case.count / (case.count - 1)]
        return results

    return Work(lambda: running.run_with_iobinding(binding), read, inputs)


def _model(inputs: dict[str, Array], outputs: dict[str, Array], eps: float) -> bytes:
    """One node; in training mode where running statistics are among the outputs."""
    training = len(outputs) > 1
    mode = {"training_mode": 1, "momentum": 0.9} if training else {}
    node = helper.make_node("BatchNormalization", list(inputs), list(outputs), epsilon=eps, **mode)
    declared = [
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
        for arrays in (inputs, outputs)
    ]
    graph = helper.make_graph([node], "batch_normalization", *declared)
    opset = [helper.make_opsetid("", 15)]
    model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return model
