"""Where compiled kernels are kept between processes.

Numba's own cache notices a change only in the file that holds a kernel, writes beside the sources, and raises where
it cannot write or read. This one keys every kernel on the text of all kernel modules, lives in a folder that belongs
to the user, and where anything is wrong with it, compiles again.

The folder is ``NUMBA_CACHE_DIR`` where that is set, else the user's cache folder, with one subfolder for each version
of fastbn, Numba and Python and each kind of CPU. Whoever can write there can run code in this process (the files are
pickles), so the folder is made for its owner alone and is not used when somebody else owns it or
may write to it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any, ClassVar

import llvmlite.binding
import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _CacheLocator
from numba.misc.appdirs import user_cache_dir

from fastbn._version import __version__


@functools.cache
def folder() -> Path | None:
    """The cache folder, made if need be; ``None`` where there is none that this user can own and write."""
    root = Path(config.CACHE_DIR) / "fastbn" if config.CACHE_DIR else Path(user_cache_dir("fastbn", appauthor=False))
    cpu = llvmlite.binding.get_host_cpu_name()
    path = root / f"{__version__}-numba{numba.__version__}-py{platform.python_version()}-{cpu}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            return None  # somebody else can write there
    except (OSError, RuntimeError):
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None


@functools.cache
def source_stamp() -> str:
    """A digest of all kernel modules: a change in a helper makes the kernels that call it stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class _Locator(_CacheLocator):
    def __init__(self, py_func: Any, path: Path) -> None:
        self._py_file = py_func.__code__.co_filename
        self._path = path

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return source_stamp()

    def get_disambiguator(self) -> str:
        return "fastbn"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator | None:  # noqa: ARG003 - Numba's signature
        path = folder()
        return None if path is None else cls(py_func, path)


class _Implementation(CompileResultCacheImpl):
    _locator_classes: ClassVar[list[type[_CacheLocator]]] = [_Locator]


class _KernelCache(FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged file can raise anything that unpickling can
            _warn(f"an unreadable file in {self.cache_path} ({type(error).__name__}: {error})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, or a damaged index, which is made anew
            _warn(f"a failure to write to {self.cache_path} ({type(error).__name__}: {error})")
            with contextlib.suppress(OSError):
                self.flush()
                super().save_overload(sig, data)


class _NoCache(NullCache):
    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ARG002 - Numba's signature
        _warn("no folder that is writable and owned by this user; set NUMBA_CACHE_DIR to one")


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"fastbn compiles its kernels anew: {problem}", RuntimeWarning, stacklevel=2)


def attach(dispatcher: Any) -> None:
    """Give a compiled function this cache."""
    dispatcher._cache = _NoCache() if folder() is None else _KernelCache(dispatcher.py_func)
