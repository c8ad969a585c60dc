from __future__ import annotations

import numba
import pytest
from numba import types

from fastbn.kernels import signatures
from fastbn.kernels.jit import inner
from fastbn.kernels.signatures import Remembering


class Asked:
    """A typing context that counts what it is asked."""

    name = "asked"

    def __init__(self, *answers):
        self.answers = list(answers)

    def resolve_function_type(self, func, args, kws):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(signatures, "_found", {})


def test_what_was_found_is_not_asked_again():
    context = Asked("of int", "of float", "by name")
    for _ in range(2):
        assert Remembering(context).resolve_function_type("f", (types.int64,), {}) == "of int"
        assert Remembering(context).resolve_function_type("f", (types.float64,), {}) == "of float"
        assert Remembering(context).resolve_function_type("f", [types.int64], {}) == "of int"  # as Numba's passes ask
        assert Remembering(context).resolve_function_type("f", (), {"x": types.int64}) == "by name"
    assert not context.answers


@pytest.mark.parametrize("failure", [None, KeyError("f")])
def test_what_was_not_found_is_asked_again(failure):
    context = Asked(failure, "found")
    if failure is None:
        assert Remembering(context).resolve_function_type("f", (), {}) is None
    else:
        with pytest.raises(KeyError):
            Remembering(context).resolve_function_type("f", (), {})
    assert Remembering(context).resolve_function_type("f", (), {}) == "found"


def test_it_is_the_context_in_everything_else():
    context = Asked()
    assert Remembering(context).name == "asked"
    with pytest.raises(AttributeError):
        Remembering(context).nothing_of_this_name  # noqa: B018


@inner
def twice(x):
    return x + x


def outer(x):
    return twice(x) + twice(x + 1)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="needs compiled kernels")
def test_compiling_fills_it():
    """One call of ``x + x`` for each type; the caller, Numba's own, asks elsewhere."""
    compiled = numba.njit(outer)
    assert (compiled(2), compiled(0.5)) == (10, 4.0)
    pairs = [args for _, args, _ in signatures._found if len(args) == 2]
    assert sorted(map(str, pairs)) == ["(float64, float64)", "(int64, int64)"]
