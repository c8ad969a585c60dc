from __future__ import annotations

import numba
import numpy as np
import pytest

JIT = not numba.config.DISABLE_JIT


def pytest_configure(config):
    config.addinivalue_line("markers", "large: tensors that are too large for interpreted kernels (NUMBA_DISABLE_JIT)")
    config.addinivalue_line("markers", "matrix: many processes, in a step of its own: pytest -m matrix")


def pytest_collection_modifyitems(items):
    if JIT:
        return
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="needs compiled kernels"))


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    """No test changes the number of threads for the next one."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)
