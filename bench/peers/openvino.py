"""OpenVINO: inference by its BatchNormInference operation, on tensors that share memory with NumPy.

The operation has its channels on axis 1: tensors with channels last are fed as (pixels, channels).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numba
import numpy as np

from bench.cases import Array, Case, MissingError, Work, aligned, rows

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # else the next line reports to its maker
import openvino  # noqa: E402 - after the line above
from openvino import opset15  # noqa: E402 - as before


@functools.cache
def core() -> Any:
    """Finds the plug-ins, once."""
    return openvino.Core()


def request(case: Case, operation: str) -> Work:
    """Inference; there is no training."""
    case.needs_kept_memory()
    if operation != "inference":
        raise MissingError("no operation takes the batch's statistics")
    if case.x.dtype == np.float64:
        raise MissingError("converts float64 to float32")
    x = aligned(rows(case.x) if case.last else case.x)
    out = aligned(x)
    parameter = opset15.parameter(x.shape, x.dtype)
    result = opset15.batch_norm_inference(parameter, *case.vectors, case.eps)
    options = {
        "INFERENCE_NUM_THREADS": numba.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by itself, on processors that have it
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core().compile_model(openvino.Model([result], [parameter]), "CPU", options)
    infer = compiled.create_infer_request()
    infer.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    infer.set_output_tensor(openvino.Tensor(out, shared_memory=True))

    def read(_: object) -> list[Array]:
        shape = np.moveaxis(case.x, 1, -1).shape if case.last else case.x.shape
        return [np.moveaxis(out.reshape(shape), -1, 1) if case.last else out]

    return Work(infer.infer, read, inputs=x)
