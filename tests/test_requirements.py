"""Packages outside the supported range are named at import, with both versions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastbn import _requirements

PRETEND = """
import {package}
{package}.__version__ = "{version}"
import fastbn
"""


@pytest.mark.parametrize(
    ("package", "version", "wanted"),
    [
        ("numba", "0.61.2", "numba>=0.65,<0.69"),
        ("numba", "0.69.0", "numba>=0.65,<0.69"),
        ("numba", "0.70.0dev0+12.gabc", "numba>=0.65,<0.69"),
        ("numba", "1.0.0rc1", "numba>=0.65,<0.69"),
        ("numpy", "1.26.4", "numpy>=2.0"),
    ],
)
def test_versions_outside_the_range(package, version, wanted):
    code = PRETEND.format(package=package, version=version)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    message = f"ImportError: fastbn: expected {wanted}, found {package} {version}; pip install '{wanted}'"
    assert done.stderr.splitlines()[-1] == message


def test_a_version_outside_the_range(monkeypatch):
    """In this process, too."""
    import numba

    monkeypatch.setattr(numba, "__version__", "0.61.2")
    with pytest.raises(ImportError, match=r"fastbn: expected numba>=0.65,<0.69, found numba 0\.61\.2"):
        _requirements.check_versions()


@pytest.mark.parametrize("version", ["0.65.0", "0.68.1", "0.68.2rc1", "unknown"])
def test_versions_inside_the_range(monkeypatch, version):
    import numba

    monkeypatch.setattr(numba, "__version__", version)
    _requirements.check_versions()


def test_the_range_is_that_of_the_metadata():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[(.*)\]$", text, re.MULTILINE).group(1)
    assert dependencies == '"numba>=0.65,<0.69", "numpy>=2.0"'
    assert _requirements.SUPPORTED == {"numpy": ((2, 0), None), "numba": ((0, 65), (0, 69))}
