"""Options and the tables at the end of ``pytest bench/``."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import Row, machine, save
from bench.report import text

ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption("--rounds", type=int, default=5, help="rounds that count")
    group.addoption("--json", type=Path, default=None, help="where to write the figures")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How many turns each library gets."""
    return int(request.config.getoption("--rounds"))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> list[Row]:
    """Where figures are collected for the tables."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.write_line("")
        terminalreporter.write_line(text(machine(), rows))
    path = config.getoption("--json")
    if path:
        save(path, rows)
