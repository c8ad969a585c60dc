"""fastbn without its source files on disk: in a zip file, as .pyc files alone, from an importer of one's own.

What PyInstaller makes is the last of these: code objects from an archive, under paths where nothing is.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numba
import pytest

import fastbn
from fastbn.kernels import cache

PACKAGE = Path(fastbn.__file__).parent
pytestmark = [pytest.mark.large, pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")]

CALL = """
import numpy as np
import fastbn
from fastbn.kernels import cache, coefficients
values = np.empty((3, 3), np.float32)
coefficients.affine(*np.array([[0], [1], [2], [5]], np.float32) * np.ones(3, np.float32), values)
assert (values == [[0.0], [2.0], [5.0]]).all()
assert cache.folder() is None and "not all files" in cache.problem()
print(fastbn.__file__)
"""

FROM_AN_ARCHIVE = """
import importlib.abc, importlib.machinery, marshal, sys, zipfile

class Archive(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, path):
        self.archive = zipfile.ZipFile(path)
        self.names = set(self.archive.namelist())

    def find_spec(self, name, path=None, target=None):
        stem = name.replace(".", "/")
        for member, package in ((stem + "/__init__.py", True), (stem + ".py", False)):
            if member in self.names:
                spec = importlib.machinery.ModuleSpec(name, self, origin="/nowhere/" + member, is_package=package)
                spec.has_location = True
                if package:
                    spec.submodule_search_locations = ["/nowhere/" + stem]
                return spec
        return None

    def exec_module(self, module):
        origin = module.__spec__.origin
        exec(compile(self.archive.read(origin.removeprefix("/nowhere/")), origin, "exec"), module.__dict__)

sys.meta_path.insert(0, Archive(sys.argv[1]))
"""


def zipped(folder):
    path = folder / "site.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in PACKAGE.rglob("*.py"):
            archive.write(file, file.relative_to(PACKAGE.parent))
    return path


def in_a_zip_file(folder):
    return {"PYTHONPATH": str(zipped(folder))}, [CALL]


def pyc_alone(folder):
    target = folder / "site" / "fastbn"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(target, legacy=True, quiet=1)
    for file in target.rglob("*.py"):
        file.unlink()
    return {"PYTHONPATH": str(target.parent)}, [CALL]


def one_source_is_missing(folder):
    """Most of the files are there: a digest of these would not see a change in the one that is not."""
    target = folder / "site" / "fastbn"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(target, legacy=True, quiet=1)
    (target / "kernels" / "formulas.py").unlink()
    return {"PYTHONPATH": str(target.parent)}, [CALL]


def from_an_importer(folder):
    return {}, [FROM_AN_ARCHIVE + CALL, str(zipped(folder))]


@pytest.mark.parametrize("packed", [in_a_zip_file, pyc_alone, one_source_is_missing, from_an_importer])
def test_without_sources(tmp_path, packed):
    """Kernels are compiled in memory, with one warning that says why; nothing is written to the cache folder."""
    changes, command = packed(tmp_path)
    cached = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", *command],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cached), **changes},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(PACKAGE) not in done.stdout
    assert done.stderr.count("RuntimeWarning: fastbn compiles its kernels anew") == 1
    assert "fastbn's sources are not all files" in done.stderr
    assert not cached.exists()


def test_a_digest_of_no_file_is_none(tmp_path):
    assert cache._digest([tmp_path / "missing.py"]) is None
    assert cache._digest([tmp_path]) is None
    assert cache._stamp_of(str(tmp_path / "missing.py")) is None
