"""The tensor shapes that tests and benchmarks share: benchdnn's batch normalization problems, from ``shapes.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).with_name("shapes.json")


class Problem(NamedTuple):
    """One shape, channels on axis 1, with the ``eps`` that benchdnn uses."""

    topology: str
    shape: tuple[int, ...]
    eps: float

    @property
    def name(self) -> str:
        """The dimensions joined by ``x``."""
        return "x".join(map(str, self.shape))

    @property
    def layouts(self) -> tuple[bool, ...]:
        """Whether the channels are last, in each layout that the shape has: (N, C) has but one."""
        return (False,) if len(self.shape) == 2 else (False, True)

    def layout(self, *, last: bool) -> str:
        """``NC``, or ``NCHW`` and ``NHWC`` with as many spatial letters as there are dimensions."""
        space = "DHW"[5 - len(self.shape) :]
        return f"N{space}C" if last else f"NC{space}"

    def with_images(self, images: int) -> Problem:
        """The same with another batch size."""
        return self._replace(shape=(images, *self.shape[1:]))


def _load() -> list[Problem]:
    topologies = json.loads(_FILE.read_text())["shapes"]
    return [
        Problem(topology.removeprefix("shapes_"), tuple(entry["dims"]), entry["eps"])
        for topology, entries in topologies.items()
        for entry in entries
    ]


PROBLEMS = _load()
"""All of them, as benchdnn has them."""

RESNET50 = [problem for problem in PROBLEMS if problem.topology == "resnet_50"]
"""The nine shapes of ResNet-50, at benchdnn's 50 images."""

NETWORKS = [
    Problem(topology, shape, 1e-5)
    for topology, shapes in {
        "resnet_18": ((32, 64, 56, 56), (16, 64, 56, 56), (16, 64, 28, 28), (16, 256, 7, 7)),
        "resnet_50": ((8, 256, 28, 28), (8, 512, 14, 14), (8, 2048, 4, 4)),
        "mobilenet_v2": ((16, 96, 56, 56), (16, 144, 28, 28), (16, 576, 7, 7)),
        "densenet_121": ((8, 128, 28, 28), (8, 1024, 7, 7)),
    }.items()
    for shape in shapes
]
"""Twelve inputs of batch normalization, 0.8 to 26 MB of float32, in the networks of ``bench.models``.

They are what ``bench.networks`` runs: images of 112x112 in batches of 8 and 16, and the largest in a batch of 32.
"""

ROWS = [Problem("rows", shape, 1e-5) for shape in ((128, 512), (4096, 1024), (65536, 64))]
"""(N, C), as in fully connected networks."""
