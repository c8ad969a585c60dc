"""What the pages of docs/ show runs as printed, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.origins.keras import KEPT_ARRAYS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PEERS = re.compile(r"^(?:>>> )?(?:import|from) (?:jax|keras|onnx|torch)", flags=re.MULTILINE)
PROGRAMS = [
    pytest.param(page, marks=[pytest.mark.peers] * bool(PEERS.search(page.read_text())), id=page.stem)
    for page in PAGES
    if "```python" in page.read_text()
]
RUNNER = ROOT / "tests" / "run_page.py"


def run(page, folder):
    """A process of its own: pages set the environment and import what no other test does. Warnings are errors."""
    command = [sys.executable, "-W", "error", "-W", KEPT_ARRAYS, RUNNER, page]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)


@pytest.mark.parametrize("page", PROGRAMS)
def test_python_runs_as_printed(page, tmp_path):
    finished = run(page, tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    if finished.stdout.startswith("needs "):
        pytest.skip(f"from some block on it {finished.stdout.strip()}")


def anchors(text):
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), f"{target}#{anchor}"


def test_every_page_is_in_the_list():
    listed = re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text())
    assert sorted([*listed, "README.md"]) == [page.name for page in PAGES]


@pytest.mark.parametrize(
    ("text", "code", "printed"),
    [
        ("```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n", 0, ""),
        ("```python\nassert False\n```\n", 1, "page.md"),
        ("```python\n>>> 1 + 1\n3\n```\n", 1, "Expected:"),
        ("```python\n>>> x = 1\n```\n```python\n>>> x + 1\n2\n```\n```python\nassert x == 1\n```\n", 0, ""),
        ("```python\nimport no_such_library.part\n```\n```python\nassert False\n```\n", 0, "needs no_such_library"),
        ("```python\nassert False\n```\n```python\nimport no_such_library\n```\n", 1, "AssertionError"),
        ("```\nassert False\n```\n", 0, ""),
    ],
)
def test_the_runner_sees_errors(tmp_path, text, code, printed):
    page = tmp_path / "page.md"
    page.write_text(text)
    finished = run(page, tmp_path)
    assert finished.returncode == code
    assert printed in finished.stdout + finished.stderr
