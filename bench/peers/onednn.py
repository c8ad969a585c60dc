"""oneDNN in four memory layouts; what lies in them is prepared and read back outside the timing.

oneDNN gives the batch's mean and variance and leaves the running ones to its caller: they are not counted.
"""

from __future__ import annotations

from functools import partial

import numba
import numpy as np

from bench import onednn
from bench.cases import Array, Case, MissingError, Work, aligned, updated


def work(layout: str, case: Case, operation: str) -> Work:
    """Its work on tensors that lie in memory as ``layout`` says."""
    case.needs_kept_memory()
    onednn.set_threads(numba.get_num_threads())
    images, pixels, channels = _pixels(case.x).shape
    gamma, beta, mean, var = (aligned(values) for values in case.vectors)
    x, dout = (_lay_out(values, layout) for values in (case.x, case.dout))
    out, dx = aligned(x), aligned(x)
    dgamma, dbeta = aligned(gamma), aligned(beta)
    make = partial(onednn.BatchNorm, layout=layout, shape=(images, channels, pixels, 1), eps=case.eps)
    parameters = {"scale": gamma, "mean": mean, "variance": var}
    outputs = {"diff_src": dx, "diff_scale": dgamma, "diff_shift": dbeta}
    try:
        if operation == "inference":
            inference = make("inference", arrays={"src": x, "dst": out, "shift": beta, **parameters})
            return Work(inference, lambda _: [_read(out, layout, case.x)])
        forward = make("forward", arrays={"src": x, "dst": out, "shift": beta, **parameters})
        backward = make("backward", arrays={"src": x, "diff_dst": dout, **parameters, **outputs})
    except onednn.RefusedError as refusal:
        raise MissingError(str(refusal)) from refusal

    def both() -> None:
        forward()
        backward()

    def forward_results() -> tuple[Array, ...]:
        return _read(out, layout, case.x), *updated(case, mean, var)

    def backward_results() -> tuple[Array, ...]:
        return _read(dx, layout, case.x), dgamma, dbeta

    if operation == "backward":
        forward()
    return {
        "forward": Work(forward, lambda _: forward_results()),
        "backward": Work(backward, lambda _: backward_results()),
        "forward + backward": Work(both, lambda _: (*forward_results(), *backward_results())),
    }[operation]


nchw, nhwc, blocks_of_8, blocks_of_16 = (partial(work, layout) for layout in onednn.TENSORS)


def _pixels(tensor: Array) -> Array:
    """(N, H W, C). Rows of (N, C) are the pixels of images of sixteen where they can be: fast kernels want pixels."""
    channels_last = np.moveaxis(tensor, 1, -1)
    images, channels = tensor.shape[:2]
    if tensor.ndim == 2:
        images = images // 16 if images % 16 == 0 else 1
    return channels_last.reshape(images, -1, channels)


def _lay_out(tensor: Array, layout: str) -> Array:
    """A copy in oneDNN's order."""
    pixels = _pixels(tensor)
    if layout == "NHWC":
        return aligned(pixels)
    if layout == "NCHW":
        return aligned(pixels.transpose(0, 2, 1))
    images, count, channels = pixels.shape
    block = onednn.BLOCKS[layout]
    padded = np.pad(pixels, ((0, 0), (0, 0), (0, -channels % block)))
    return aligned(padded.reshape(images, count, -1, block).transpose(0, 2, 1, 3))


def _read(memory: Array, layout: str, like: Array) -> Array:
    """The inverse of ``_lay_out``, for a tensor of the shape of ``like``."""
    if layout == "NCHW":
        memory = memory.transpose(0, 2, 1)
    if layout in onednn.BLOCKS:
        memory = memory.transpose(0, 2, 1, 3)
    images, channels = like.shape[:2]
    pixels = memory.reshape(*memory.shape[:2], -1)[:, :, :channels]
    return np.moveaxis(pixels.reshape(images, *like.shape[2:], channels), -1, 1)
