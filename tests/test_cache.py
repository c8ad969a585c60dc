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

CALL = """
import numpy as np, fastbn
from fastbn.kernels import cache, channels_last
x = np.arange(12.0).reshape(4, 3)
out = fastbn.forward(x, np.ones(3, np.float32)).out  # two dtypes: not what kernels.calls takes
assert abs(out.mean(0)).max() < 1e-12 and abs(out.std(0) - 1).max() < 1e-5
stats = channels_last.forward.serial.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), cache.folder())
"""


def run(folder, code=CALL, **environment):
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=variables,
        cwd=Path(folder).anchor,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hits, misses, path = done.stdout.split(maxsplit=2)
    return int(hits), int(misses), path.strip(), done.stderr


def test_second_process_compiles_nothing(tmp_path):
    hits, misses, path, warnings = run(tmp_path)
    assert (hits, misses, warnings) == (0, 1, "")
    assert Path(path).parent.parent == tmp_path
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert run(tmp_path)[:2] == (1, 0)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty"])
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_files(tmp_path, damage, suffix):
    path = run(tmp_path)[2]
    for file in Path(path).glob(f"*{suffix}"):
        content = file.read_bytes()
        file.write_bytes({"truncate": content[: len(content) // 2], "garbage": b"garbage" * 99, "empty": b""}[damage])
    hits, misses, _, warnings = run(tmp_path)
    assert (hits, misses) == (0, 1)
    assert warnings.count("RuntimeWarning: fastbn compiles its kernels anew: an unreadable file in") == 1
    hits, misses, _, warnings = run(tmp_path)  # mended
    assert (hits, misses, warnings) == (1, 0, "")


@pytest.mark.parametrize("where", ["file", "missing parent"])
def test_no_folder(tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    _, misses, path, warnings = run(tmp_path / "file" / ("x" if where == "missing parent" else ""))
    assert (misses, path) == (1, "None")
    assert warnings.count("RuntimeWarning: fastbn compiles its kernels anew: no folder") == 1


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    path = run(tmp_path)[2]
    os.chown(path, 12345, 12345)
    assert run(tmp_path)[2] == "None"


def test_a_changed_helper_makes_kernels_stale(tmp_path):
    """An upgrade with the same version and time stamps, in a module that holds no kernel."""
    package = tmp_path / "site" / "fastbn"
    shutil.copytree(Path(fastbn.__file__).parent, package)
    helper = package / "kernels" / "formulas.py"
    before = helper.stat()
    formula = "return (x - center) * scale + shift"
    assert formula in helper.read_text()
    look = CALL.replace("assert abs(", "scale = out.std()\nassert scale > 1.5 or abs(", 1)
    environment = {"PYTHONPATH": str(package.parent)}
    assert run(tmp_path, look, **environment)[:2] == (0, 1)
    assert run(tmp_path, look, **environment)[:2] == (1, 0)
    helper.write_text(helper.read_text().replace(formula, "return (x - center) * (scale + scale) + shift"))
    os.utime(helper, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = look.replace("assert scale > 1.5 or", "assert scale > 1.5 #")
    assert run(tmp_path, changed, **environment)[:2] == (0, 1)


def test_eight_processes_that_start_cold(tmp_path):
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", CALL], env=variables, stdout=subprocess.DEVNULL)
        for _ in range(8)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * 8
    assert run(tmp_path)[:2] == (1, 0)


def test_the_stamp_covers_every_kernel_module():
    package = Path(fastbn.__file__).parent / "kernels"
    assert len(cache.source_stamp()) == 64
    assert {path.name for path in package.glob("*.py")} >= {"formulas.py", "rows.py", "columns.py", "jit.py"}


def test_folder_names_versions_and_cpu():
    name = cache.folder().name
    assert fastbn.__version__ in name
    assert numba.__version__ in name
