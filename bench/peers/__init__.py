"""Who is compared. Each library is a function of a module here, which is imported only when it is asked for.

The function takes a ``Case`` and the name of an operation and returns its ``Work``. It makes its library use as many
threads as Numba does, feeds it what it likes best, and raises ``MissingError`` for what the library does not offer.
If the case is ``fresh``, every call gives its results in new memory, which the library allocates in its own way, and
tensors are not copied.
"""

from __future__ import annotations

import importlib

from bench.cases import Case, MissingError, Work

OURS = "fastbn"

PEERS = {
    OURS: "ours.fused",
    "NumPy": "ours.formula",
    "PyTorch": "pytorch.eager",
    "PyTorch kernels": "pytorch.functional",
    "PyTorch out=": "pytorch.preallocated",
    "torch.compile": "pytorch.compiled",
    "oneDNN NCHW": "onednn.nchw",
    "oneDNN NHWC": "onednn.nhwc",
    "oneDNN nChw8c": "onednn.blocks_of_8",
    "oneDNN nChw16c": "onednn.blocks_of_16",
    "JAX": "jax.jitted",
    "ONNX Runtime": "onnxruntime.session",
    "OpenVINO": "openvino.request",
}
"""Library: module and function."""


def prepare(library: str, case: Case, operation: str) -> Work:
    """The library's work, or ``MissingError`` with the reason why there is none."""
    module, _, function = PEERS[library].partition(".")
    try:
        work: Work = getattr(importlib.import_module(f"bench.peers.{module}"), function)(case, operation)
    except ImportError as error:
        raise MissingError(f"not installed ({error})") from error
    return work
