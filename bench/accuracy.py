"""``python -m bench.accuracy``: largest errors over all channels, against the widest floats on the same values.

float32 data of deviation 1 and several means, in both memory layouts: mean (absolute), variance (relative), output and
dx (absolute), dgamma (absolute, divided by the square root of the values per channel).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import fastbn

Array: TypeAlias = NDArray[Any]
Results: TypeAlias = tuple[Array, Array, Array, Array, Array]

SHAPE = (32, 64, 56, 56)
MEANS = (0.0, 1.0, 100.0, 1e4)
QUANTITIES = ("mean", "variance", "output", "dx", "dgamma")


def fastbn_results(x: Array, dout: Array) -> Results:
    """Mean, variance, output, dx, dgamma."""
    out, cache = fastbn.forward(x, np.ones(x.shape[1]))
    dx, dgamma, _ = fastbn.backward(dout, cache)
    assert dgamma is not None
    moments = fastbn.moments(x)
    return moments.mean, moments.var, out, dx, dgamma


def torch_results(x: Array, dout: Array) -> Results:
    """The same from PyTorch."""
    import torch

    tx, gamma = torch.from_numpy(x).requires_grad_(), torch.ones(x.shape[1]).requires_grad_()
    mean, var = torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
    out = torch.nn.functional.batch_norm(tx, mean, var, gamma, training=True, momentum=1.0)
    out.backward(torch.from_numpy(dout))
    m = x.size // x.shape[1]
    assert tx.grad is not None
    assert gamma.grad is not None
    biased = var.numpy() * ((m - 1) / m)
    return mean.numpy(), biased, out.detach().numpy(), tx.grad.numpy(), gamma.grad.numpy()


def columns(x: Array) -> Array:
    """(C, m) in the widest floats that NumPy has, each channel in order: its sums are then good to 1e-17."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.longdouble, order="C")


def errors(x: Array, dout: Array, results: Results) -> list[float]:
    """The largest error of each of ``QUANTITIES``."""
    rows, drows = columns(x), columns(dout)
    m = rows.shape[1]
    mean = rows.mean(axis=1)
    centred = rows - mean[:, None]
    var = np.square(centred).mean(axis=1)
    inv_std = 1 / np.sqrt(var + 1e-5)[:, None]
    x_hat = centred * inv_std
    dgamma, dbeta = (drows * x_hat).sum(axis=1), drows.sum(axis=1)
    dx = inv_std * (drows - dbeta[:, None] / m - x_hat * dgamma[:, None] / m)
    return [
        float(np.abs(results[0] - mean).max()),
        float(np.abs(results[1] / var - 1).max()),
        float(np.abs(columns(results[2]) - x_hat).max()),
        float(np.abs(columns(results[3]) - dx).max()),
        float(np.abs(results[4] - dgamma).max() / np.sqrt(m)),
    ]


def main() -> None:
    """Print the table."""
    peers: dict[str, Callable[[Array, Array], Results]] = {"fastbn": fastbn_results, "PyTorch": torch_results}
    print(f"| layout | mean of the data | library | {' | '.join(QUANTITIES)} |")
    print("|---" * (3 + len(QUANTITIES)) + "|")
    for layout in ("NCHW", "NHWC"):
        for mean in MEANS:
            rng = np.random.default_rng(7)
            x = (rng.standard_normal(SHAPE) + mean).astype(np.float32)
            dout = rng.standard_normal(SHAPE, dtype=np.float32)
            if layout == "NHWC":
                x, dout = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, dout))
            for name, results in peers.items():
                try:
                    values = errors(x, dout, results(x, dout))
                except ImportError:
                    continue
                print(f"| {layout} | {mean:g} | {name} | {' | '.join(f'{value:.0e}' for value in values)} |")


if __name__ == "__main__":
    main()
