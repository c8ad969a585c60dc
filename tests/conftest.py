from __future__ import annotations

import gc

import numba
import numpy as np
import pytest
from hypothesis import settings

from fastbn.kernels import locks

JIT = not numba.config.DISABLE_JIT

# The same examples in every run; --hypothesis-profile=thorough looks for new ones.
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, deadline=None)
settings.register_profile("interpreted", settings.get_profile("ci"), max_examples=30)
settings.register_profile("thorough", max_examples=10_000, deadline=None)
settings.load_profile("ci" if JIT else "interpreted")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if not JIT and item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="needs compiled kernels"))
        if item.get_closest_marker("huge") and "huge" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes minutes; pytest -m huge"))


def pytest_collection_finish():
    """Half of the time goes to Numba's compiler, and a tenth of that to looking for what it has dropped."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No test changes the number of threads for the next one, or keeps a lock for which its threads would wait."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)
    held = locks.state._is_owned()
    while locks.state._is_owned():
        locks.state.release()
    assert not held


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)
