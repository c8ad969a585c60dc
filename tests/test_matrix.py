"""Threading layers x ways to use threads and processes: each cell a process with a time limit, its results compared.

The bits are those of a fresh process with one thread. The programs are in ``cells``.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cells import ALONE, THREADS, WAYS

pytestmark = [pytest.mark.matrix, pytest.mark.large]

ROOT = Path(__file__).parents[1]
LAYERS = ("tbb", "omp", "workqueue")
LAYER = "import numba.np.ufunc.parallel as p; p._launch_threads()"


def run(command, **variables):
    """What a process and its children print; all of them end with it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    libraries = [str(folder) for folder in (folder_of_tbb(), environment.get("LD_LIBRARY_PATH")) if folder]
    environment |= {"NUMBA_NUM_THREADS": str(THREADS), "LD_LIBRARY_PATH": os.pathsep.join(libraries), **variables}
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        pytest.fail(f"no end:\n{out}{errors}")
    return process.returncode, out, errors


def folder_of_tbb():
    """Where the package ``tbb`` keeps its library, which the loader does not look into by itself."""
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((file.locate().resolve().parent for file in files if file.name == "libtbb.so.12"), None)


@pytest.fixture(scope="module", params=LAYERS)
def layer(request):
    code, _, errors = run(["-c", LAYER], NUMBA_THREADING_LAYER=request.param)
    if code:
        pytest.skip(f"{request.param}: {errors.strip().splitlines()[-1]}")
    return request.param


@pytest.fixture(scope="module")
def digests():
    code, out, errors = run(["-m", "tests.cells"], NUMBA_NUM_THREADS="1")
    assert code == 0, errors
    return out.split()


@pytest.mark.parametrize("way", WAYS)
def test_cell(layer, digests, way):
    if "fork" in way and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    code, out, errors = run(["-W", "error", "-m", "tests.cells", way, *digests], NUMBA_THREADING_LAYER=layer)
    assert code == 0, out + errors
    assert out.split()[-1] == layer


@pytest.mark.parametrize("count", [3, 7])
def test_any_number_of_threads(digests, count):
    code, out, errors = run(["-m", "tests.cells", ALONE, *digests], NUMBA_NUM_THREADS=str(count))
    assert code == 0, out + errors
