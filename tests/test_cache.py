"""The folder of compiled kernels: right results whatever is wrong with it, at worst slower and with one warning."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import fastbn
from fastbn.kernels import cache

pytestmark = [pytest.mark.large, pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")]
as_root = pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can be anybody")

CALL = """
import numpy as np, fastbn
from fastbn.kernels import cache, coefficients
layer = fastbn.FrozenBatchNorm(np.zeros(3), np.ones(3), np.full(3, 2.0), np.full(3, 5.0), eps=0.0)
for dtype in (np.float32, np.float64):
    assert (layer._coefficients[np.dtype(dtype)] == [[0.0], [2.0], [5.0]]).all()
stats = coefficients.affine.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), cache.folder())
"""
OTHER = """
import numpy as np
from fastbn.kernels import cache, coefficients
values = np.empty((3, 3), np.float32)
coefficients.affine(*np.array([[0], [1], [2], [5]], np.float32) * np.ones(3, np.float32), values)
assert (values == [[0.0], [2.0], [5.0]]).all()
stats = coefficients.affine.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), cache.folder())
"""
"""The same kernel for other arguments."""

STRANGER = 54321
ROOT = Path(fastbn.__file__).parents[1]


def environment_of(**changes):
    """The environment with changes; ``None`` removes."""
    merged = {**os.environ, **changes}
    return {name: str(value) for name, value in merged.items() if value is not None}


def run(folder, code=CALL, cwd=None, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment_of(NUMBA_CACHE_DIR=folder, **environment),
        cwd=cwd or ROOT.anchor,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hits, misses, path = done.stdout.split(maxsplit=2)
    return int(hits), int(misses), path.strip(), done.stderr


def warnings_in(text):
    return text.count("RuntimeWarning: fastbn compiles its kernels anew")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder, and what a first process that has it says."""
    folder = tmp_path_factory.mktemp("first")
    return folder, run(folder)


@pytest.fixture
def filled(tmp_path, first):
    """``tmp_path`` after that process: where its files are."""
    folder, (_, _, path, _) = first
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / Path(path).relative_to(folder)


def test_second_process_compiles_nothing(first):
    folder, (hits, misses, path, warnings) = first
    assert (hits, misses, warnings) == (0, 2, "")
    assert Path(path).parent.parent == folder
    assert run(folder) == (2, 0, path, "")


REGISTRIES = """
import sys
import numpy as np, numba, fastbn
rng = np.random.default_rng(0)
for shape, axis in (((60, 6), 1), ((40, 30, 70, 71), 1), ((20_000, 70), 1), ((9, 60, 61, 40), -1)):
    for dtype in (np.float32, np.float64):
        x, dout = rng.standard_normal((2, *shape)).astype(dtype)
        axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        moments = fastbn.moments(x, axis=axis)
        np.testing.assert_allclose(moments.mean, x.mean(axes, dtype=np.float64), atol=1e-6)
        out, cache = fastbn.forward(x, axis=axis)
        np.testing.assert_allclose(out.var(axes, dtype=np.float64), 1, atol=1e-3)
        assert abs(fastbn.backward(dout, cache).dx.sum(axes, dtype=np.float64)).max() < 1e-2
        assert np.isfinite(fastbn.inference(x, moments.mean, moments.var, axis=axis)).all()
print("numba.np.linalg" in sys.modules)
sort = numba.njit(lambda values: np.sort(values))
assert sort(np.array([2.0, 1.0]))[0] == 1 and "numba.np.linalg" in sys.modules
"""


def test_kernels_load_without_what_numba_needs_to_compile():
    """Half of the time to a first result; and whoever compiles later has it."""
    loaded = [
        subprocess.run([sys.executable, "-c", REGISTRIES], capture_output=True, text=True, timeout=300, check=True)
        for _ in range(2)
    ]
    assert loaded[1].stdout.split() == ["False"]


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_only_the_owner_has_rights(tmp_path):
    path = Path(run(tmp_path / "new", "import os\nos.umask(0)\n" + CALL)[2])
    for made in (path, path.parent, tmp_path / "new"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def damaged(content, damage):
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "garbage": b"garbage" * 99,
        "empty": b"",
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[damage]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "one bit"])
def test_damaged_files(tmp_path, filled, damage):
    files = list(filled.iterdir())
    assert len(files) >= 2
    for file in files:
        file.write_bytes(damaged(file.read_bytes(), damage))
    hits, misses, _, warnings = run(tmp_path)
    assert (hits, misses) == (0, 2)
    assert warnings_in(warnings) == warnings.count("anew: an unreadable file in") == 1
    hits, misses, _, warnings = run(tmp_path)  # mended
    assert (hits, misses, warnings) == (2, 0, "")


@pytest.mark.parametrize("where", ["file", "missing parent"])
def test_no_folder(tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    _, misses, path, warnings = run(tmp_path / "file" / ("x" if where == "missing parent" else ""))
    assert (misses, path) == (2, "None")
    assert warnings_in(warnings) == warnings.count("anew: no folder") == 1


NO_HOME = """
import pwd
def getpwuid(number):
    raise KeyError(number)
pwd.getpwuid = getpwuid
"""
"""A user who is in no list of users, as in containers."""


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "relative"}], ids=["no home", "a relative one"])
def test_no_home(tmp_path, variables):
    """Nothing is put where the process happens to be, nor in a folder for temporary files."""
    environment = {"HOME": None, "XDG_CACHE_HOME": None, "PYTHONPATH": ROOT, **variables}
    hits, misses, path, warnings = run(None, NO_HOME + CALL, cwd=tmp_path, **environment)
    assert (hits, misses, path) == (0, 2, "None")
    assert warnings_in(warnings) == warnings.count("anew: no folder") == 1
    assert "(this user has no home); set NUMBA_CACHE_DIR to one" in warnings
    assert not list(tmp_path.iterdir())


READ_ONLY = """
import os, tempfile
def mkstemp(**options):
    raise PermissionError("read-only")
if os.name != "posix" or os.geteuid() == 0:  # whom rights do not stop
    tempfile.mkstemp = mkstemp
"""


def test_a_folder_that_cannot_be_written(tmp_path, filled):
    """An image with compiled kernels, say: they are read; what is missing is compiled."""
    filled.chmod(0o500)
    assert run(tmp_path, READ_ONLY + CALL) == (2, 0, str(filled), "")
    hits, misses, _, warnings = run(tmp_path, READ_ONLY + OTHER)
    assert (hits, misses) == (0, 1)
    assert warnings_in(warnings) == warnings.count("anew: a failure to write") == 1
    filled.chmod(0o700)


@as_root
def test_a_folder_of_somebody_else_is_refused(tmp_path, filled):
    os.chown(filled, STRANGER, STRANGER)
    _, misses, found, warnings = run(tmp_path)
    assert (misses, found, warnings_in(warnings)) == (2, "None", 1)
    assert f"{filled} belongs to user {STRANGER}, this process runs as user root (0)" in warnings
    assert f"NUMBA_CACHE_DIR is {tmp_path}" in warnings  # it is set: nobody is told to set it
    assert "set NUMBA_CACHE_DIR" not in warnings


@as_root
def test_a_file_of_somebody_else_is_not_read(tmp_path, filled):
    for file in filled.iterdir():
        os.chown(file, STRANGER, STRANGER)
    hits, misses, _, warnings = run(tmp_path)
    assert (hits, misses, warnings_in(warnings)) == (0, 2, 1)
    assert "belongs to another user" in warnings


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, filled, mode):
    filled.chmod(mode)
    _, misses, found, warnings = run(tmp_path)
    assert (misses, found, warnings_in(warnings)) == (2, "None", 1)
    assert f"others than its owner may write to {filled}, mode {mode:o}" in warnings


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_folder_behind_a_link(tmp_path, first):
    (tmp_path / "link").symlink_to(first[0])
    assert run(tmp_path / "link")[:2] == (2, 0)


LOOKS = {
    "kernels/formulas.py": """
import numpy as np
from fastbn.kernels import cache, coefficients
values = np.empty((3, 3))
coefficients.affine(*np.array([[0.0], [1.0], [2.0], [5.0]]) * np.ones(3), values)
stats = coefficients.affine.stats
""",
    "compiled.py": """
import numpy as np
from fastbn import compiled
from fastbn.kernels import cache
values = np.zeros((2, 3))
compiled.update_running(*values, np.ones(3), np.ones(3), 2, 0.5, 1.0)
stats = compiled.update_running.stats
""",
}
REPORT = "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), values.tolist()[1][0])"


@pytest.mark.parametrize(
    ("module", "text", "change", "expected"),
    [
        ("kernels/formulas.py", "scale = gamma * inv_std", "scale = gamma + inv_std", ("2.0", "3.0")),
        ("compiled.py", "= STREAM_ONCE[0]", "= STREAM_ONCE[1]", ("1.0", "1.0")),
    ],
    ids=["a helper in another module", "a constant of the caller's module"],
)
def test_a_change_makes_callers_stale(tmp_path, module, text, change, expected):
    """An upgrade with the same version, sizes and time stamps, where the changed text is in no kernel."""
    package = tmp_path / "site" / "fastbn"
    shutil.copytree(Path(fastbn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    changed = package / module
    before = changed.stat()

    def look():
        # Python's own cache, too, would take a file with the same time and size for the same
        return run(tmp_path, LOOKS[module] + REPORT, PYTHONPATH=package.parent, PYTHONDONTWRITEBYTECODE=1)[:3]

    assert look() == (0, 1, expected[0])
    assert look() == (1, 0, expected[0])
    assert text in changed.read_text()
    changed.write_text(changed.read_text().replace(text, change))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed.stat().st_size == before.st_size
    assert look() == (0, 1, expected[1])


def test_eight_processes_that_start_cold(tmp_path):
    """With two kinds of arguments for the same kernel: none is led to the other's code."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env=environment_of(NUMBA_CACHE_DIR=tmp_path),
            stdout=subprocess.DEVNULL,
        )
        for code in (CALL, OTHER) * 4
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * 8
    assert run(tmp_path)[:2] == (2, 0)
    hits, misses, path, _ = run(tmp_path, OTHER)
    assert (hits, misses) == (1, 0)
    assert {file.suffix for file in Path(path).iterdir()} == {".nbc"}


@pytest.mark.parametrize("variable", ["OPT", "BOUNDSCHECK", "CPU_NAME", "CPU_FEATURES"])
def test_options_of_the_compiler_and_features_of_the_processor_are_told_apart(tmp_path, filled, variable):
    """A processor may be another one than its name says: under a hypervisor, say."""
    features = numba.core.codegen.get_host_cpu_features().replace("+avx512f", "-avx512f") + ",-fma"
    value = {"CPU_NAME": "generic", "CPU_FEATURES": features}.get(variable, "1")
    assert run(tmp_path, **{f"NUMBA_{variable}": value})[:2] == (0, 2)
    assert run(tmp_path, **{f"NUMBA_{variable}": value})[:2] == (2, 0)
    assert run(tmp_path)[:2] == (2, 0)


def test_numbas_own_setting_for_caches_is_for_others(tmp_path):
    assert run(tmp_path, NUMBA_CACHE_LOCATOR_CLASSES="InTreeCacheLocator")[:2] == (0, 2)
    assert run(tmp_path)[:2] == (2, 0)


def test_the_stamp_covers_every_kernel_module():
    package = Path(fastbn.__file__).parent / "kernels"
    assert len(cache.source_stamp()) == 32
    assert {path.name for path in package.glob("*.py")} >= {"formulas.py", "rows.py", "columns.py", "jit.py"}


def test_folder_names_versions_and_cpu():
    name = cache.folder().name
    assert fastbn.__version__ in name
    assert numba.__version__ in name
    assert cache._cpu_name() in name
