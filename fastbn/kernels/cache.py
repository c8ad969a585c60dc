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
import pkgutil
import platform
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


class _Place(NamedTuple):
    """The cache folder, or the reason why there is none."""

    path: Path | None
    problem: str = ""


def folder() -> Path | None:
    """The cache folder, made if need be; ``None`` where there is none that can be trusted and used."""
    return _place().path


def problem() -> str:
    """Why there is no cache folder; empty where there is one."""
    return _place().problem


@functools.cache
def _place() -> _Place:
    if source_stamp() is None:
        return _Place(None, "fastbn's sources are not all files (a zip file, .pyc files alone, a packed application)")
    given = config.CACHE_DIR
    try:
        root = Path(given).absolute() / "fastbn" if given else _users_folder()
        path = root / f"{__version__}-numba{numba.__version__}-py{platform.python_version()}-{_cpu_name()}"
        for each in (*reversed(path.parents), path):
            each.mkdir(mode=0o700, exist_ok=True)
        reason = _distrusted(path)
    except (OSError, RuntimeError) as error:
        reason = str(error)
    if not reason:
        return _Place(path)
    advice = f"NUMBA_CACHE_DIR is {given}" if given else "set NUMBA_CACHE_DIR to one"
    return _Place(None, f"no folder that is writable and owned by this user ({reason}); {advice}")


def _distrusted(path: Path) -> str:
    """Why a folder is not used; empty if it can be: its files are pickles, so its owner alone may write to it."""
    found = path.stat()
    if not _is_ours(found):
        return f"{path} belongs to {_user(found.st_uid)}, this process runs as {_user(os.geteuid())}"
    if os.name == "posix" and found.st_mode & 0o022:
        return f"others than its owner may write to {path}, mode {stat.S_IMODE(found.st_mode):o}"
    return "" if os.access(path, os.R_OK | os.X_OK) else f"{path} cannot be read"


def _user(number: int) -> str:
    """A user's name, if there is one, and number."""
    import pwd  # POSIX alone has it

    try:
        return f"user {pwd.getpwuid(number).pw_name} ({number})"
    except KeyError:
        return f"user {number}"


def _users_folder() -> Path:
    """The user's cache folder; without a home there is none, and never a shared one for temporary files."""
    path = Path(user_cache_dir("fastbn", appauthor=False))
    if not path.is_absolute():
        raise RuntimeError("this user has no home")
    return path


def _is_ours(found: os.stat_result) -> bool:
    return os.name != "posix" or found.st_uid == os.geteuid()


def _cpu_name() -> str:
    return str(llvmlite.binding.get_host_cpu_name())


@functools.cache
def source_stamp() -> bytes | None:
    """A digest of all kernel modules: a change in a helper makes the kernels that call it stale.

    ``None`` where one of them is not there as a source file: then nothing tells old machine code from new.
    """
    here = Path(__file__).parent
    names = ["__init__", *sorted(module.name for module in pkgutil.iter_modules([str(here)]))]
    return _digest([here / f"{name}.py" for name in names])


@functools.cache
def _stamp_of(module: str) -> bytes | None:
    """The same together with the module that holds the function."""
    kernels, own = source_stamp(), _digest([Path(module)])
    return None if kernels is None or own is None else hashlib.sha256(kernels + own).digest()


def _digest(paths: list[Path]) -> bytes | None:
    """A digest of files; ``None`` if one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.name.encode() + path.read_bytes())
        except OSError:
            return None
    return digest.digest()


@functools.cache
def _target() -> str:
    """What code depends on beside its source and the types of its arguments; Numba's name of the CPU comes later."""
    features = llvmlite.binding.get_host_cpu_features().flatten()
    return repr((llvmlite.__version__, features, *(getattr(config, name) for name in _OPTIONS)))


class _KernelCache(NullCache):
    """The files of one function."""

    def __init__(self, function: Any, path: Path, stamp: bytes) -> None:
        self._folder = path
        self._name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}"
        self._stamp = stamp

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
        _warn(problem())


_warned: list[str] = []


def _warn(problem: str) -> None:
    """Warn of the first problem of this process."""
    if not _warned:
        _warned.append(problem)
        warnings.warn(f"fastbn compiles its kernels anew: {problem}", RuntimeWarning, stacklevel=2)


def attach(dispatcher: Any) -> None:
    """Give a compiled function this cache; where there is none, it is compiled again in each process."""
    path, stamp = folder(), _stamp_of(dispatcher.py_func.__code__.co_filename)
    if path is None or stamp is None:
        dispatcher._cache = _NoCache()
    else:
        dispatcher._cache = _KernelCache(dispatcher.py_func, path, stamp)
