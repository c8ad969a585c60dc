"""pytest-benchmark over the ResNet-50 shapes at 32 images: each operation, layout and library.

``pytest bench/`` runs all; ``-k "forward and nchw"`` a part. Absolute times on a shared machine drift: to compare
libraries, use ``python -m bench.report``, which lets them take turns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest

from bench.peers import OPERATIONS, PEERS, Array, Case, check, expected, make_case
from bench.shapes import RESNET50, Problem

IMAGES = 32


@functools.lru_cache(maxsize=1)
def prepared(problem: Problem, last: bool) -> tuple[Case, dict[str, Sequence[Array]]]:
    """The data and expected results of one shape, shared by the libraries that follow each other."""
    case = make_case(problem, last=last)
    return case, expected(case)


@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("problem", [p.with_images(IMAGES) for p in RESNET50], ids=lambda p: p.name)
def test_resnet50(benchmark: Any, problem: Problem, last: bool, operation: str, library: str) -> None:
    case, wanted = prepared(problem, last)
    try:
        call = PEERS[library](case)[operation]
    except ImportError as error:
        pytest.skip(f"{library} is not installed ({error})")
    benchmark.group = f"{operation} {'nhwc' if last else 'nchw'} {problem.name}"
    check(library, operation, call(), wanted[operation])
    benchmark.extra_info["payload GB"] = OPERATIONS[operation][1] * case.x.nbytes / 1e9
    benchmark.pedantic(call, rounds=3 if library == "NumPy" else 9, warmup_rounds=1)
