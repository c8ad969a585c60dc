from __future__ import annotations

import numpy as np
import pytest

from fastbn import reference
from fastbn._state import assign_together, running_update


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_rule(rng, dtype):
    old, batch = rng.standard_normal((2, 5)).astype(dtype), rng.uniform(1, 2, (2, 5))
    update = running_update(*old, *batch, count=10, momentum=0.3, correction=1)
    for (target, values), previous, new in zip(update, old, (batch[0], batch[1] * 10 / 9), strict=True):
        assert values.dtype == target.dtype == dtype
        np.testing.assert_allclose(values, reference.running(previous, new, 0.3), rtol=2 * np.finfo(dtype).eps)


def test_update_writes_nothing_itself():
    mean, var = np.zeros(3), np.ones(3)
    update = running_update(mean, var, np.ones(3), np.ones(3), count=2, momentum=0.5, correction=1)
    assert (mean == 0).all()
    assert_values = [values.tolist() for _, values in update]
    assert_together = [[0.5] * 3, [1.5] * 3]
    assert assert_values == assert_together


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
