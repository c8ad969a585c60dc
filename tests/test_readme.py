"""What the README shows runs as printed."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.large
def test_examples_print_what_they_show():
    """Every ``>>>`` of the README, as one session."""
    parser = doctest.DocTestParser()
    sessions = re.findall(r"```python\n(>>> .*?)```", README, flags=re.DOTALL)
    assert sessions
    test = parser.get_doctest("\n".join(sessions), {}, "README", "README.md", 0)
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.attempted >= 8
    assert results.failed == 0


def test_links_within_the_repository():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_its_two_commands_are_those_that_ci_runs():
    assert 'pip install -e ".[examples]" && python examples/digits.py' in README
    assert 'pip install -e ".[test]" && pytest' in README
