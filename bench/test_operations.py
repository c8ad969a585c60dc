"""``pytest bench/``: each operation, shape, layout and dtype by every library in turn; the tables come at the end.

``-k "forward and nchw and float32"`` measures a part, ``--rounds`` sets the care, ``--json`` keeps the figures.
"""

from __future__ import annotations

import functools

import pytest

from bench.cases import OPERATIONS, Case, make_case
from bench.measure import Row, measure
from bench.peers import OURS, PEERS
from bench.run import problems
from bench.shapes import Problem

TENSORS = [(problem, last) for problem in problems(images=32) for last in problem.layouts]


@functools.lru_cache(maxsize=1)
def prepared(problem: Problem, last: bool, dtype: str) -> Case:
    """The data of one shape, shared by the operations that follow each other."""
    return make_case(problem, dtype, last=last)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("problem", "last"), TENSORS, ids=[f"{p.layout(last=last).lower()}-{p.name}" for p, last in TENSORS]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operation(measured: list[Row], rounds: int, dtype: str, problem: Problem, last: bool, operation: str) -> None:
    row = measure(prepared(problem, last, dtype), operation, PEERS, rounds=rounds)
    measured.append(row)
    assert OURS in row["seconds"]
