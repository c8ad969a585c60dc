"""The same for those who compare with pytest-benchmark: ``pytest bench/ --benchmark-only``, a test for each library.

pytest-benchmark times one test after another, so that the figures drift with the machine; ``--benchmark-skip`` leaves
the tests that let the libraries take turns.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import OPERATIONS, MissingError, check, expected
from bench.peers import PEERS, prepare
from bench.shapes import Problem
from bench.test_operations import TENSORS, prepared


@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("problem", "last"), TENSORS, ids=[f"{p.layout(last=last).lower()}-{p.name}" for p, last in TENSORS]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_library(benchmark: Any, dtype: str, problem: Problem, last: bool, operation: str, library: str) -> None:
    case = prepared(problem, last, dtype)
    try:
        work = prepare(library, case, operation)
    except MissingError as reason:
        pytest.skip(f"{library}: {reason}")
    check(operation, work.read(work.run()), expected(case, operation))
    benchmark.group = f"{operation} {case.layout} {problem.name} {dtype}"
    benchmark.extra_info["payload, GB"] = OPERATIONS[operation].traffic * case.x.nbytes / 1e9
    benchmark.pedantic(work.run, rounds=9, warmup_rounds=1)
