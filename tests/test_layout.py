from __future__ import annotations

import numpy as np
import pytest

import fastbn
from fastbn._engine import _route
from tests.data_for_tests import channels_last, read_only, same_bits


def layout_of(x, axis):
    return _route(x, axis)[0]


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((4, 3), 1, (4, 3, 1)),
        ((4, 3, 5), 1, (4, 3, 5)),
        ((4, 3, 5, 6), 1, (4, 3, 30)),
        ((4, 5, 6, 3), 3, (120, 3, 1)),
        ((4, 3, 5, 6), 0, (1, 4, 90)),
        ((4, 5, 3, 6), 2, (20, 3, 6)),
        ((4, 1, 5, 6), 1, (1, 1, 120)),
        ((4, 5, 6, 1), 3, (1, 1, 120)),
        ((0, 3, 5), 1, (0, 3, 5)),
        ((4, 0), 1, (4, 0, 1)),
    ],
)
def test_c_order(shape, axis, expected):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    layout = layout_of(x, axis)
    assert layout.shape == expected
    assert layout.channels_last is False
    assert layout.holds(x)
    loaded = layout.load(x)
    assert loaded.reshape(expected).shape == expected
    assert loaded.flags.c_contiguous
    assert not x.size or np.shares_memory(loaded, x)
    assert layout.empty(shape, np.float32).flags.c_contiguous


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)])
def test_channels_last_in_memory(shape):
    x = channels_last(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    layout = layout_of(x, 1)
    assert layout.shape == (x.size // 3, 3, 1)
    assert layout.channels_last is True
    loaded = layout.load(x)
    assert np.shares_memory(loaded, x)
    assert same_bits(loaded.reshape(-1, 3), np.moveaxis(x, 1, -1).reshape(-1, 3))
    assert layout.empty(shape, np.float32).strides == x.strides
    out = x.copy(order="K")
    assert layout.holds(out)
    assert layout.flat(out).flags.c_contiguous
    assert np.shares_memory(layout.flat(out), out)


def test_other_strides_are_copied():
    x = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    for view in (x[:, ::2], x[::-1], np.asfortranarray(x), x.transpose(2, 0, 1), np.broadcast_to(x[:1], x.shape)):
        layout = layout_of(view, 1)
        assert not layout.channels_last
        assert not layout.holds(view)
        loaded = layout.load(view)
        assert not np.shares_memory(loaded, x)
        assert same_bits(loaded.reshape(view.shape), np.ascontiguousarray(view))


def test_read_only_memory_is_loaded_in_place():
    x = read_only(np.arange(12, dtype=np.float32).reshape(4, 3))
    loaded = layout_of(x, 1).load(x)
    assert np.shares_memory(loaded, x)
    assert loaded.flags.writeable
    assert not x.flags.writeable
    foreign = np.frombuffer(x.tobytes(), np.float32).reshape(4, 3)  # memory that cannot be made writable
    loaded = layout_of(foreign, 1).load(foreign)
    del foreign
    assert same_bits(loaded.reshape(x.shape), x)  # and is kept alive


def test_a_buffer_is_copied_back_only_on_success(rng):
    """Where kernels cannot write into ``out`` itself."""
    x = rng.standard_normal((4, 3))
    out = np.zeros((4, 6))[:, ::2]
    assert fastbn.inference(x, np.zeros(3), np.ones(3), eps=0.0, out=out) is out
    assert same_bits(np.ascontiguousarray(out), x)
    out[:] = 5
    with pytest.raises(ValueError, match="running_var"):
        fastbn.inference(x, np.zeros(3), -np.ones(3), out=out)
    assert (out == 5).all()
