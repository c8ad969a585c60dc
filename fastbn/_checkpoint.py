"""Layers in ``.npz`` files: written whole or not at all, and read without trusting them.

A file holds one array for each entry of the layer's state, and ``config``: a JSON object as bytes. Nothing is pickled
or compressed, so no file can run code or grow when it is read.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - zipfile imports it late, and a fork could fall into that (see kernels.locks)
import json
import math
import os
import stat
import struct
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastbn._typing import Array

_CONFIG = "config"
_CONFIG_BYTES = 4096
_AFFINE = {"weight": "gamma", "bias": "beta"}
_TRACKED = ("running_mean", "running_var", "num_batches_tracked")
_HEADER_BYTES = 1024
_DIRECTORY_BYTES = 4096
_LOCATOR, _END = struct.Struct("<4s16x"), struct.Struct("<4s8xL6x")
"""Signatures, and the size of the directory, in the last two records of an archive without a comment."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def write(path: str | os.PathLike[str], config: Mapping[str, Any], state: Mapping[str, Array]) -> None:
    """Write a temporary file beside ``path``, then rename it: a reader finds the old file or the new one."""
    path = Path(path)
    encoded = np.frombuffer(json.dumps(config, default=float).encode(), np.uint8)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            _write_whole(temporary, {_CONFIG: encoded, **state})
            temporary.replace(path)
        except Exception as error:
            # An interrupt inside of zipfile comes out as what zipfile says while it closes the archive.
            interrupt = _interrupt_behind(error)
            if interrupt is not None:
                raise interrupt from None
            raise
    finally:
        try:
            temporary.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)  # again, for a signal that came before the first


def _write_whole(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a new archive, and wait until it is on the disk."""
    # Not tempfile, whose files only their owner may read: this one is to have the rights of any new file.
    with path.open("xb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """The ``KeyboardInterrupt``, or its like, during which an error came up."""
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Configuration and state; ``ValueError`` for anything that ``write`` does not produce.

    Memory is bounded by the size of the file: what a header declares is compared with what the file holds before it is
    read.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        try:
            return _read(file)
        except Exception as error:  # damaged files make zipfile and NumPy raise many kinds
            raise ValueError(f"path: expected a file written by save, got {os.fspath(path)!r} ({error})") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; if it is a pipe, do not wait for somebody who writes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def require_arrays(state: Mapping[str, Array], options: Mapping[str, Any]) -> None:
    """``ValueError`` unless the arrays are those of a layer with these options.

    To be called before the layer is made, which could otherwise be of any size.
    """
    affine = options["affine"]
    expected = {name for name, parameter in _AFFINE.items() if affine is True or affine == parameter}
    expected |= {*(_TRACKED if options["track_running_stats"] else ())}
    if state.keys() != expected:
        raise ValueError(f"expected the arrays {sorted(expected)}, got {sorted(state)}")
    for name, array in state.items():
        counter = name == "num_batches_tracked"
        shape = () if counter else (options["num_features"],)
        if array.shape != shape or not (counter or array.dtype.type in (np.float32, np.float64)):
            raise ValueError(f"{name}: expected shape {shape} of floats, got {array.shape} of {array.dtype}")


def _read(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, Array]]:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    _require_short_directory(file, found.st_size)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) != len(archive.infolist()) or not {_CONFIG} <= members.keys() <= {_CONFIG, *_AFFINE, *_TRACKED}:
            raise ValueError(f"unexpected entries {archive.namelist()[:10]}")
        if sum(info.file_size for info in members.values()) > found.st_size:
            raise ValueError("entries larger than the file")  # zipfile asks for their memory first
        if members[_CONFIG].file_size > _CONFIG_BYTES + _HEADER_BYTES:
            raise ValueError("configuration too long")
        config = json.loads(_member(archive, members.pop(_CONFIG)).tobytes())
        if not isinstance(config, dict):
            raise ValueError("configuration is not an object")
        return config, {name: _member(archive, info) for name, info in members.items()}


def _require_short_directory(file: IO[bytes], size: int) -> None:
    """``ValueError`` for an archive of many names: ``zipfile`` makes an object of each before it can be asked.

    A directory may also be found through a locator, which ``write`` needs for files of 2 GiB and more.
    """
    file.seek(-_LOCATOR.size - _END.size, os.SEEK_END)
    locator = _LOCATOR.unpack(file.read(_LOCATOR.size))
    end = _END.unpack(file.read(_END.size))
    if end[0] != b"PK\5\6" or end[1] > _DIRECTORY_BYTES or (locator[0] == b"PK\6\7" and size < 2**31):
        raise ValueError("not the end of an archive of few entries")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One array, of the size that its header declares, neither more nor less."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{info.filename} is compressed")
    with archive.open(info) as stream:
        header = _HEADERS[np.lib.format.read_magic(stream)]
        shape, _, dtype = header(stream, max_header_size=_HEADER_BYTES)
        size = info.file_size - stream.tell()
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{info.filename} declares {dtype} {shape}, which is not {size} bytes")
        return np.frombuffer(stream.read(), dtype).reshape(shape)
