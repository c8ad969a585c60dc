"""Which versions of other packages fastbn works with, checked before anything of them is used."""

from __future__ import annotations

import importlib
import re

SUPPORTED = {"numpy": ((2, 0), None), "numba": ((0, 65), (0, 69))}
"""The first version of each package that is supported, and the first that is not any more; as in the metadata."""


def check_versions() -> None:
    """``ImportError`` for a package of a version outside the range, which would fail somewhere inside."""
    for package, (first, end) in SUPPORTED.items():
        found = importlib.import_module(package).__version__
        numbers = re.match(r"(\d+)\.(\d+)", found)
        version = tuple(map(int, numbers.groups())) if numbers else first
        if version < first or (end is not None and version >= end):
            wanted = f"{package}>={_text(first)}" + (f",<{_text(end)}" if end else "")
            raise ImportError(f"fastbn: expected {wanted}, found {package} {found}; pip install '{wanted}'")


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


check_versions()
