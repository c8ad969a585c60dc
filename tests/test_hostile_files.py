"""Files made to hurt, and files damaged at random: ``ValueError`` or a sound layer, at once, in little memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import same_bits
from tests.test_checkpoint import STATE, npy, write

LOAD = fastbn.BatchNorm1d.load
CLAIMED = 0x7FFFFF00
"""Bytes that a lying file says it has."""


@pytest.fixture(scope="module", autouse=True)
def _modules_are_loaded(tmp_path_factory):
    """What the first file imports is not counted."""
    folder = tmp_path_factory.mktemp("first")
    write(folder / "good")
    LOAD(folder / "good")
    write(folder / "bad", weight=npy(np.zeros(3, "M8[s]")))
    refused(folder / "bad")


def header(text, size=128):
    """An .npy header of this text."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", size - 10) + text.encode().ljust(size - 11) + b"\n"


def refused(path):
    """Refused, with what it took at the most."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^path: expected a"):
            LOAD(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[D]", "c8", "S4", "V4", "U1", "f2", "?", "g", "i4", [("a", "f4")], "V0"])
def test_other_dtypes(tmp_path, dtype):
    write(tmp_path / "bad", weight=npy(np.zeros(3, dtype)))
    assert refused(tmp_path / "bad") < 2e6


@pytest.mark.parametrize("counter", [np.nan, -1.0, 1.0, True, -(2**63), 2**62, np.datetime64("2020-01-01"), 1j])
def test_counters(tmp_path, counter):
    write(tmp_path / "bad", num_batches_tracked=npy(np.array(counter)))
    refused(tmp_path / "bad")


def test_the_other_byte_order_is_read(tmp_path):
    write(tmp_path / "good", weight=npy(np.array([1, 2, 3], ">f4")))
    assert LOAD(tmp_path / "good").gamma.tolist() == [1, 2, 3]


HEADERS = {
    "call": header("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (3,), }"),
    "nested": header("(" * 900, 1000),
    "unary": header("-" * 900 + "1", 1000),
    "power": header("{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,), }"),
    "many dimensions": header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'2**9,' * 100}), }}", 1000),
    "large dimensions": header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 400},), }}", 600),
    "nothing, many times": header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {2**62}), }}"),
    "sub-array": header("{'descr': ('<f4', (1073741824, 1073741824)), 'fortran_order': False, 'shape': (3,), }"),
    "objects": header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }") + bytes(24),
    "hidden objects": header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (3,), }") + bytes(24),
    "text": header("3"),
    "other keys": header("{'descr': '<f4', 'shape': (3,), }") + bytes(12),
    "truth": header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3), }") + bytes(12),
    "Python 2": header("{'descr': '<f4', 'fortran_order': False, 'shape': (3L,), }") + bytes(12),
    "escape": header(r"{'descr': '\d', 'fortran_order': False, 'shape': (3,), }") + bytes(12),
    "long": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b" " * 3000,
    "longer than allowed": b"\x93NUMPY\2\0" + struct.pack("<I", 3000) + b" " * 3000,
    "version": b"\x93NUMPY\3\0" + struct.pack("<I", 3000) + b" " * 3000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path, name):
    write(tmp_path / "bad", weight=HEADERS[name])
    assert refused(tmp_path / "bad") < 2e6


def patched(path, signature, change):
    """The file with the record of ``weight`` changed that has this signature."""
    raw = bytearray(path.read_bytes())
    at = raw.find(b"weight.npy", raw.find(b"PK\1\2") if signature == b"PK\1\2" else 0)
    change(raw, raw.rfind(signature, 0, at))
    path.write_bytes(raw)


def claim(raw, at):
    raw[at + 20 : at + 28] = struct.pack("<II", CLAIMED, CLAIMED)


def encrypt(raw, at):
    raw[at + 8] |= 1


def unknown_method(raw, at):
    raw[at + 10] = 99


@pytest.mark.parametrize("change", [claim, encrypt, unknown_method])
def test_directories_that_lie(tmp_path, change):
    """The array's own header says the same."""
    write(tmp_path / "bad", weight=npy(np.ones(3, np.float32), shape=((CLAIMED - 128) // 4,)))
    patched(tmp_path / "bad", b"PK\1\2", change)
    assert refused(tmp_path / "bad") < 2e6


def test_archives_of_many_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        for i in range(5000):
            archive.writestr(str(i), b"")
    assert refused(tmp_path / "bad") < 1e6


def test_a_directory_found_through_a_locator(tmp_path):
    """As zipfile looks for one wherever there is a locator."""
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        for i in range(5000):
            archive.writestr(str(i), b"")
    raw = (tmp_path / "bad").read_bytes()
    end = raw.rfind(b"PK\5\6")
    entries, size, offset = struct.unpack("<10xHLL2x", raw[end:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    short = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0)
    (tmp_path / "bad").write_bytes(raw[:end] + record + locator + short)
    with zipfile.ZipFile(tmp_path / "bad") as archive:
        assert len(archive.namelist()) == 5000
    assert refused(tmp_path / "bad") < 1e6


@pytest.mark.parametrize("name", ["../weight", "/weight", "weight.npy", "config/", "a" * 60_000, "con\0fig"])
def test_names(tmp_path, name):
    write(tmp_path / "bad", **{name: npy(np.ones(3, np.float32))})
    refused(tmp_path / "bad")
    assert list(tmp_path.iterdir()) == [tmp_path / "bad"]


def test_archives_in_archives(tmp_path):
    write(tmp_path / "inner")
    write(tmp_path / "bad", weight=(tmp_path / "inner").read_bytes())
    refused(tmp_path / "bad")


def test_what_is_no_archive(tmp_path):
    write(tmp_path / "good")
    whole = (tmp_path / "good").read_bytes()
    for content in (
        b"",
        b"PK\5\6",
        b"PK\5\6" + bytes(18),
        whole + b"more",
        whole + bytes(60_000),
        whole[:-1],
        whole[22:],
    ):
        (tmp_path / "bad").write_bytes(content)
        refused(tmp_path / "bad")
    with (tmp_path / "bad").open("wb") as file:
        file.truncate(1 << 40)  # holes
    assert refused(tmp_path / "bad") < 1e6


def test_what_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        LOAD(tmp_path)
    with pytest.raises(FileNotFoundError):
        LOAD(tmp_path / "nothing")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        LOAD(tmp_path / "dangling")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((OSError, RuntimeError)):
        LOAD(tmp_path / "loop")
    write(tmp_path / "good")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    assert LOAD(tmp_path / "link").num_features == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match=r"^path: .* \(not a regular file\)"):
            LOAD(path)


def trained():
    layer = fastbn.BatchNorm1d(3)
    layer(np.arange(18, dtype=np.float32).reshape(6, 3) ** 2)
    return layer


def is_sound(layer):
    state = layer.state_dict()
    return (
        state.keys() == STATE.keys()
        and all(state[name].shape == value.shape for name, value in STATE.items())
        and all(state[name].dtype == layer.dtype for name in STATE if name != "num_batches_tracked")
        and not (layer.running_var < -layer.eps).any()
        and layer.num_batches_tracked >= 0
    )


def damaged(rng, whole):
    """Some bytes changed, moved, repeated, or cut out."""
    raw = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at, length, to = int(rng.integers(len(raw))), int(rng.integers(1, 40)), int(rng.integers(len(raw)))
        kind = rng.integers(5)
        if kind == 0:
            raw[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            raw[at] = int(rng.integers(256))
        elif kind == 2:
            raw[at : at + length] = raw[to : to + length]
        elif kind == 3:
            raw[at : at + 8] = struct.pack("<q", int(rng.choice([0, -1, 2**31, 2**32, 2**62, 2**63 - 1])))
        else:
            del raw[at : at + length]
        raw = raw or bytearray(1)
    return bytes(raw)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_random_damage(tmp_path):
    """To the file: noticed, or nothing that matters. To an entry, with a checksum that fits: refused, or sound."""
    layer, rng = trained(), np.random.default_rng(1)
    state = layer.state_dict()
    layer.save(tmp_path / "good")
    whole = (tmp_path / "good").read_bytes()
    with zipfile.ZipFile(tmp_path / "good") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    bad, outcomes = tmp_path / "bad", {"refused": 0, "loaded": 0}
    for i in range(3000):
        if i % 2:
            bad.write_bytes(damaged(rng, whole))
        else:
            name = str(rng.choice(list(entries)))
            with zipfile.ZipFile(bad, "w") as archive:
                for each, content in entries.items():
                    archive.writestr(each, damaged(rng, content) if each == name else content)
        try:
            loaded = LOAD(bad)
        except ValueError as error:
            assert str(error).startswith("path: expected a")  # noqa: PT017 - of some thousand files, few load
            outcomes["refused"] += 1
            continue
        outcomes["loaded"] += 1
        assert is_sound(loaded)
        if i % 2:
            assert all(same_bits(value, state[name]) for name, value in loaded.state_dict().items())
            assert repr(loaded) == repr(layer)
    assert min(outcomes.values()) > 100
    assert all(same_bits(value, state[name]) for name, value in layer.state_dict().items())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_bombs_in_a_process_of_little_memory(tmp_path):
    """With 300 MB of address space more than it has, and no more than 30 MB of them used."""
    with zipfile.ZipFile(tmp_path / "compressed", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        zeros = npy(np.zeros(1, np.float32), shape=(100_000_000,)) + bytes(4 * 10**8 - 4)
        archive.writestr("weight.npy", zeros)
        archive.writestr("config.npy", zeros)
    assert (tmp_path / "compressed").stat().st_size < 1e6
    for size in (2**31 - 1, 2**40, 2**62):
        write(tmp_path / f"declared {size}", weight=npy(np.ones(3, np.float32), shape=(size,)))
    write(tmp_path / "lie", weight=npy(np.ones(3, np.float32), shape=((CLAIMED - 128) // 4,)))
    patched(tmp_path / "lie", b"PK\1\2", claim)
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 42)
    with zipfile.ZipFile(tmp_path / "names", "w") as archive:
        for i in range(20_000):
            archive.writestr(str(i), b"")
    program = """
        import resource, sys
        from pathlib import Path
        import fastbn
        def now(name):
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
        before = now("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (now("VmSize") * 1024 + 300_000_000,) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                fastbn.BatchNorm1d.load(path)
            except ValueError:
                print("refused", path.name)
        used = now("VmHWM") - before
        assert used < 30_000, used
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    root = Path(fastbn.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == len(list(tmp_path.iterdir()))
