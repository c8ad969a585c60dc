"""Where compiled kernels are kept between processes.

Numba's own cache notices a change only in the file that holds a kernel, raises where it cannot write or read, and keeps
an index beside the code: of two processes that add to it at once, each may be led to the other's code. This one has a
file for each kernel and kind of arguments, named by all that the code depends on. A file begins with a digest of the
sources and one of what follows. Where anything is wrong with it, the kernel is compiled again.

The folder is ``NUMBA_CACHE_DIR`` where that is set, else the user's cache folder, with one subfolder for each version
of fastbn, Numba and Python and each kind of CPU. Whoever can write there can run code in this process (the files are
pickles), so the folder is made for its owner alone and is not used when somebody else owns it or may write to it, and a
file that somebody else owns is not read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import user_cache_dir

from fastbn._version import __version__

_DIGEST = 32
_OPTIONS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LLVM_REFPRUNE_PASS", "LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE")
"""Of Numba, those that change the code."""


@functools.cache
def folder() -> Path | None:
    """The cache folder, made if need be; ``None`` where there is none that this user owns and can read."""
    try:
        root = Path(config.CACHE_DIR).absolute() / "fastbn" if config.CACHE_DIR else _users_folder()
        path = root / f"{__version__}-numba{numba.__version__}-py{platform.python_version()}-{_cpu_name()}"
        for each in (*reversed(path.parents), path):
            each.mkdir(mode=0o700, exist_ok=True)
        found = path.stat()
    except (OSError, RuntimeError):
        return None
    others_write = os.name == "posix" and found.st_mode & 0o022
    return path if _is_ours(found) and not others_write and os.access(path, os.R_OK | os.X_OK) else None


def _users_folder() -> Path:
    """The user's cache folder; without a home there is none, and never a shared one for temporary files."""
    path = Path(user_cache_dir("fastbn", appauthor=False))
    if not path.is_absolute():
        raise RuntimeError("no home")
    return path


def _is_ours(found: os.stat_result) -> bool:
    return os.name != "posix" or found.st_uid == os.geteuid()


def _cpu_name() -> str:
    return str(llvmlite.binding.get_host_cpu_name())


@functools.cache
def source_stamp() -> bytes:
    """A digest of all kernel modules: a change in a helper makes the kernels that call it stale."""
    return _digest(sorted(Path(__file__).parent.glob("*.py")))


@functools.cache
def _stamp_of(module: str) -> bytes:
    """The same together with the module that holds the function."""
    return hashlib.sha256(source_stamp() + _digest([Path(module)])).digest()


def _digest(paths: list[Path]) -> bytes:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.digest()


@functools.cache
def _target() -> str:
    """What code depends on beside its source and the types of its arguments; Numba's name of the CPU comes later."""
    features = llvmlite.binding.get_host_cpu_features().flatten()
    return repr((llvmlite.__version__, features, *(getattr(config, name) for name in _OPTIONS)))


class _KernelCache(NullCache):
    """The files of one function."""

    def __init__(self, function: Any, path: Path) -> None:
        module = Path(function.__code__.co_filename)
        self._folder = path
        self._name = f"{module.stem}.{function.__qualname__}"
        self._stamp = _stamp_of(str(module))

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # not refresh(): 0.2 s of imports, SciPy's among them, for compiling alone
        try:
            reduced = self._read(self._path(sig, target_context.codegen()))
            return None if reduced is None else CompileResult._rebuild(target_context, *reduced)
        except FileNotFoundError:
            return None
        except Exception as error:  # unpickling can raise anything
            _warn(f"an unreadable file in {self._folder} ({type(error).__name__}: {error})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        path = self._path(sig, data.codegen)
        payload = dumps(data._reduce())
        try:
            with _replacing(path) as file:
                file.write(self._stamp + hashlib.sha256(payload).digest() + payload)
        except OSError as error:
            if not path.exists():  # else another process was first
                _warn(f"a failure to write to {self._folder} ({error})")

    def _path(self, sig: Any, codegen: Any) -> Path:
        key = hashlib.sha256(repr((sig, codegen.magic_tuple(), _target())).encode()).hexdigest()
        return self._folder / f"{self._name}-{key[:24]}.nbc"

    def _read(self, path: Path) -> Any:
        """What ``save_overload`` wrote; ``None`` if that was made of other sources."""
        with path.open("rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                raise PermissionError(f"{path.name} belongs to another user")
            stamp, digest, payload = file.read(_DIGEST), file.read(_DIGEST), file.read()
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError(f"{path.name} is damaged")
        return pickle.loads(payload) if stamp == self._stamp else None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """A new file for its owner alone, which takes the place of ``path`` when it is whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


class _NoCache(NullCache):
    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ARG002 - Numba's signature
        _warn("no folder that is writable and owned by this user; set NUMBA_CACHE_DIR to one")


_warned: list[str] = []


def _warn(problem: str) -> None:
    """Warn of the first problem of this process."""
    if not _warned:
        _warned.append(problem)
        warnings.warn(f"fastbn compiles its kernels anew: {problem}", RuntimeWarning, stacklevel=2)


def attach(dispatcher: Any) -> None:
    """Give a compiled function this cache."""
    path = folder()
    dispatcher._cache = _NoCache() if path is None else _KernelCache(dispatcher.py_func, path)
