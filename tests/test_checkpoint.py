"""Files: whole or not at all when written; no trust, bounded memory and ``ValueError`` when read."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

import fastbn
from fastbn import _checkpoint
from tests.data_for_tests import same_bits, tensor

OPTIONS = [
    {},
    {"momentum": None, "axis": -1, "eps": 1e-3, "correction": 0, "dtype": np.float64, "nan_policy": "raise"},
    {"affine": False},
    {"affine": "gamma"},
    {"affine": "beta"},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]


@pytest.fixture
def saved(tmp_path, rng):
    """A trained layer and its file."""
    layer = fastbn.BatchNorm1d(3)
    layer.gamma[:] = [1, 2, 3]
    layer(tensor(rng, (6, 3)))
    layer.save(tmp_path / "layer.npz")
    return layer, tmp_path / "layer.npz"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [fastbn.BatchNorm, fastbn.BatchNorm1d, fastbn.BatchNorm2d, fastbn.BatchNorm3d])
def test_round_trip(tmp_path, rng, kind, options):
    layer = kind(3, **options)
    shape = {fastbn.BatchNorm2d: (2, 3, 4, 3), fastbn.BatchNorm3d: (2, 3, 2, 4, 3)}.get(kind, (6, 3))
    layer(tensor(rng, shape))
    layer.save(str(tmp_path / "any name"))
    loaded = kind.load(tmp_path / "any name")
    assert repr(loaded) == repr(layer)
    state, expected = loaded.state_dict(), layer.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert same_bits(value, expected[name])
        assert value.shape == expected[name].shape
    x = tensor(rng, shape)
    assert same_bits(loaded.eval()(x), layer.eval()(x))
    assert same_bits(loaded.train()(x), layer.train()(x))  # not read-only


def test_file_is_a_plain_npz(saved):
    layer, path = saved
    with np.load(path, allow_pickle=False) as file:
        assert same_bits(file["weight"], layer.gamma)
        assert json.loads(file["config"].tobytes())["class"] == "BatchNorm1d"


def test_writing_replaces_whole_files_only(saved, monkeypatch):
    layer, path = saved
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    for target, name in ((np, "savez"), (os, "fsync"), (type(path), "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            with pytest.raises(OSError, match="disk full"):
                layer.save(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ["layer.npz"]
    layer.save(path)
    assert os.listdir(path.parent) == ["layer.npz"]


def test_another_class(saved):
    _, path = saved
    with pytest.raises(
        ValueError, match=r"path: expected a saved BatchNorm2d, got .*layer.npz.*it holds a BatchNorm1d"
    ):
        fastbn.BatchNorm2d.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastbn.BatchNorm.load(tmp_path / "none")


def test_every_truncation_is_noticed(saved):
    _, path = saved
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="path: expected"):
            fastbn.BatchNorm1d.load(path)


def test_every_flipped_byte_is_noticed_or_harmless(saved):
    layer, path = saved
    whole = path.read_bytes()
    state = {name: value.tobytes() for name, value in layer.state_dict().items()}
    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x5A
        path.write_bytes(damaged)
        try:
            loaded = fastbn.BatchNorm1d.load(path)
        except ValueError:
            noticed += 1
        else:  # a time stamp, say
            assert {name: value.tobytes() for name, value in loaded.state_dict().items()} == state
            assert repr(loaded) == repr(layer)
    assert noticed > len(whole) / 2


def npy(array, *, shape=None, descr=None):
    """An array as .npy bytes, with a header that may lie."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    header |= ({"shape": shape} if shape else {}) | ({"descr": descr} if descr else {})
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


CONFIG = {
    "format": 1,
    "class": "BatchNorm1d",
    "options": {
        "num_features": 3,
        "axis": 1,
        "eps": 1e-5,
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
        "correction": 1.0,
        "nan_policy": "propagate",
        "dtype": "float32",
    },
}
STATE = {
    "weight": np.ones(3, np.float32),
    "bias": np.zeros(3, np.float32),
    "running_mean": np.zeros(3, np.float32),
    "running_var": np.ones(3, np.float32),
    "num_batches_tracked": np.array(0),
}


def write(path, config=CONFIG, *, compression=zipfile.ZIP_STORED, **members):
    encoded = config if isinstance(config, bytes) else json.dumps(config).encode()
    content = {"config": npy(np.frombuffer(encoded, np.uint8))} | {name: npy(a) for name, a in STATE.items()} | members
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(f"{name}.npy", data)


def test_the_hostile_writer_can_write_sound_files(tmp_path):
    write(tmp_path / "good")
    assert (fastbn.BatchNorm1d.load(tmp_path / "good").gamma == 1).all()


def options(**changes):
    return {**CONFIG, "options": {**CONFIG["options"], **changes}}


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": None},
        {"config": None},
        {"unknown": npy(np.ones(3))},
        {"weight": npy(np.ones(4, np.float32))},
        {"weight": npy(np.ones(3, np.int64))},
        {"weight": npy(np.ones(3, np.float64))},
        {"weight": npy(np.ones(3, np.float32), shape=(2**40,))},
        {"weight": npy(np.ones(3, np.float32), shape=(-3,))},
        {"weight": npy(np.ones(3, np.float32), shape=(2**62, 2**62))},
        {"weight": npy(np.ones(3, np.float32)) + b"more"},
        {"weight": npy(np.ones(3, np.float32))[:-1]},
        {"weight": npy(np.ones(24, np.uint8), descr="|O", shape=(3,))},
        {"weight": npy(np.ones(3, np.float32), descr="__import__('os').abort()")},
        {"weight": b"\x93NUMPY\x09\x00"},
        {"weight": b""},
        {"weight": pickle.dumps(np.ones(3))},
        {"num_batches_tracked": npy(np.array(-1))},
        {"num_batches_tracked": npy(np.array([0, 1]))},
        {"num_batches_tracked": npy(np.array(2**63, np.uint64))},
        {"config": b"not json"},
        {"config": b"[1, 2]"},
        {"config": b"{" * 4000},
        {"config": b" " * 10**6},
        {"config": {}},
        {"config": {**CONFIG, "format": 2}},
        {"config": {**CONFIG, "class": "FrozenBatchNorm"}},
        {"config": {**CONFIG, "options": None}},
        {"config": options(eps=-1.0)},
        {"config": options(num_features=4)},
        {"config": options(num_features=2**60)},
        {"config": options(num_features=2**60), "weight": None, "bias": None},
        {"config": options(affine=False)},
        {"config": options(affine="gamma")},
        {"config": options(affine="alpha"), "weight": None, "bias": None},
        {"config": options(affine=["gamma"]), "weight": None, "bias": None},
        {"config": options(num_features=2**60, affine=1), "weight": None, "bias": None},
        {"config": options(num_features="3")},
        {"config": options(dtype="object")},
        {"config": options(more=1)},
        {"compression": zipfile.ZIP_DEFLATED},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_hostile_files(tmp_path, changes):
    tracemalloc.start()
    path = tmp_path / "bad"
    write(path, **{"config": CONFIG, **changes}) if changes.get("config", 0) is not None else None
    if "config" in changes and changes["config"] is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weight.npy", npy(STATE["weight"]))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(ValueError, match="path: expected a"):
        fastbn.BatchNorm1d.load(path)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 4e6


def test_duplicate_entries(tmp_path):
    write(tmp_path / "bad")
    with zipfile.ZipFile(tmp_path / "bad", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("weight.npy", npy(np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="unexpected entries"):
        fastbn.BatchNorm1d.load(tmp_path / "bad")


def test_writer_and_reader_agree_on_names():
    assert (*_checkpoint._AFFINE, *_checkpoint._TRACKED) == tuple(STATE) == tuple(fastbn.BatchNorm(3).state_dict())


def test_interrupts_are_not_swallowed_by_an_except_clause(tmp_path, monkeypatch):
    """In the middle of an array zipfile answers to one with an error of its own."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastbn.BatchNorm1d(3).save(tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())


def test_what_zipfile_says_of_an_interrupt_is_not_what_comes_out(tmp_path, monkeypatch):
    """``ValueError: Can't close the ZIP file``, once in a hundred interrupts of a save."""

    def closing(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ValueError("Can't close the ZIP file") from None

    monkeypatch.setattr(_checkpoint, "_write_whole", closing)
    with pytest.raises(KeyboardInterrupt):
        fastbn.BatchNorm1d(3).save(tmp_path / "layer.npz")


def test_errors_while_saving_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastbn.BatchNorm1d(3).save(tmp_path / "missing" / "layer.npz")
