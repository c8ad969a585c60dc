from __future__ import annotations

import numpy as np
import pytest

from fastbn import reference
from fastbn._state import assign_together, update
from fastbn.kernels import calls
from tests.data_for_tests import same_bits


def update_of(mean, var, batch, *, values=10, counter=None, momentum=0.3, correction=1.0):
    """``update`` with a batch of so many values a channel."""
    statistics = np.stack([batch[0], np.zeros(batch[0].size), batch[1]])
    update(mean, var, statistics, np.empty((values, batch[0].size)), momentum, correction, counter)


def strided(array):
    """The same values where no compiled call takes them."""
    return np.repeat(array, 2, -1)[..., ::2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 5, 8, 64])
def test_update_rule(rng, dtype, channels):
    old, batch = rng.standard_normal((2, channels)).astype(dtype), rng.uniform(1, 2, (2, channels))
    running, counter = old.copy(), np.zeros((), np.int64)
    update_of(*running, batch, counter=counter)
    for values, previous, new in zip(running, old, (batch[0], batch[1] * (10 / 9)), strict=True):
        eps = 2 * np.finfo(dtype).eps  # of old and new, which may cancel
        np.testing.assert_allclose(values, reference.running(previous, new, 0.3), rtol=eps, atol=eps)
        assert same_bits(values, ((1 - 0.3) * previous.astype(np.float64) + 0.3 * new).astype(dtype))
    assert counter == 1
    for general in ((strided(old[0]), old[1].copy()), (old[0].copy(), strided(old[1]))):
        update_of(*general, batch, counter=counter)
        assert same_bits(np.stack(general), running)
    assert counter == 3


def test_what_a_compiled_call_has_done_is_not_done_again(monkeypatch):
    taken = []
    monkeypatch.setattr(calls, "UPDATE", [lambda *arguments: taken.append(arguments) or True])
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    update_of(mean, var, np.ones((2, 3)))
    assert len(taken) == 1
    assert same_bits(np.stack([mean, var]), np.float32([[0] * 3, [1] * 3]))


def test_update_of_two_dtypes(rng):
    mean, var, batch = np.zeros(5), np.ones(5, np.float32), rng.uniform(1, 2, (2, 5))
    update_of(mean, var, batch, momentum=1.0, correction=0.0)
    assert same_bits(mean, batch[0])
    assert same_bits(var, batch[1].astype(np.float32))


def test_assign_together():
    a, b, c = np.zeros(3), np.zeros(2, np.float32), np.zeros((), np.int64)
    assign_together([(a, np.ones(3)), (b, np.float32(2)), (c, c + 3)])
    assert (a == 1).all()
    assert (b == 2).all()
    assert c == 3


@pytest.mark.parametrize("position", range(3))
def test_a_failure_anywhere_undoes_all(position):
    arrays = [np.zeros(3), np.zeros(2), np.zeros((), np.int64)]
    values = [1.0, 2.0, 3]
    values[position] = np.ones(7)
    with pytest.raises((TypeError, ValueError), match=r"broadcast|sequence|array"):
        assign_together(list(zip(arrays, values, strict=True)))
    assert all((a == 0).all() for a in arrays)
