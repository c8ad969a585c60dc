"""Each line of the derivation in docs/gradient.md is one of reference.py, and none of these is missing there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from fastbn import reference

PAGE = (Path(__file__).parents[1] / "docs" / "gradient.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```reference\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
QUOTED = [ast.unparse(statement) for block in BLOCKS for statement in ast.parse(block).body]
PREPARATIONS = 4
"""Conversion of the arguments, axes, moments and count, which both functions begin with."""


def statements(function):
    """The assignments of a function's body, without the formatting."""
    body = ast.parse(inspect.getsource(function)).body[0].body
    return [ast.unparse(statement) for statement in body if isinstance(statement, ast.Assign)]


@pytest.mark.parametrize("function", [reference.backward, reference.backward_by_chain_rule])
def test_every_formula_of_the_reference_is_derived(function):
    formulas = statements(function)[PREPARATIONS:]
    assert len(formulas) >= 6
    for formula in formulas:
        assert formula in QUOTED


def test_every_quoted_line_is_in_the_reference():
    lines = statements(reference.backward) + statements(reference.backward_by_chain_rule)
    assert len(QUOTED) >= 12
    for quoted in QUOTED:
        assert quoted in lines
