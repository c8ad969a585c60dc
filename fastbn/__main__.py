"""``python -m fastbn info`` and ``python -m fastbn warmup``."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from fastbn import __version__, _warmup
from fastbn.kernels import cache
from fastbn.kernels.jit import threading_layer

OPTIONAL = ("ml_dtypes", "torch", "onnx", "keras", "numba_cuda", "matplotlib", "sklearn", "tqdm", "pytest_benchmark")
BAR = 30


def info() -> None:
    """Print what matters to speed and to a bug report, one ``name: value`` a line."""
    folder = cache.folder()
    kernels = 0 if folder is None else len(list(folder.glob("*.nbc")))
    facts = {
        "fastbn": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()})",
        "numpy": np.__version__,
        "numba": f"{numba.__version__} (llvmlite {llvmlite.__version__}, LLVM {_llvm_version()})",
        "cpu": f"{llvmlite.binding.get_host_cpu_name()}, {_vector_bits()}-bit vectors",
        "threading layer": threading_layer(),
        "threads": f"{numba.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}",
        "compilation": "off (NUMBA_DISABLE_JIT)" if numba.config.DISABLE_JIT else "on",
        "cache folder": f"none: {cache.problem()}" if folder is None else folder,
        "cached kernels": kernels,
    }
    facts["optional packages"] = ", ".join(name for name in OPTIONAL if importlib.util.find_spec(name)) or "none"
    for name, value in facts.items():
        print(f"{name}: {value}")


def _llvm_version() -> str:
    return ".".join(map(str, llvmlite.binding.llvm_version_info))


def _vector_bits() -> int:
    """Width of the widest vector registers that the compiler may use."""
    features = llvmlite.binding.get_host_cpu_features()
    widths = {"avx512f": 512, "avx": 256, "sve": 128, "neon": 128, "sse2": 128}
    return max((bits for name, bits in widths.items() if features.get(name)), default=64)


def warmup(jobs: int) -> None:
    """Compile every kernel into the cache folder of the user who runs this. Run it as the user of the program."""
    start = time.perf_counter()
    total = len(_warmup.work())
    for done, name in enumerate(_warmup.compiled(jobs), 1):
        _show_progress(done, total, name)
    print(f"{total} kernels in {time.perf_counter() - start:.1f} s; cache folder: {cache.folder()}")


def _show_progress(done: int, total: int, what: str) -> None:
    """One line that is written over where there is a terminal, a line a step where there is none."""
    filled = BAR * done // total
    line = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{total} {what}"
    if sys.stderr.isatty():
        print(f"\r{line:<78}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m fastbn", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    options = {command: _add(subparsers, command) for command in (info, warmup)}
    jobs = "processes that compile (default: %(default)s)"
    options[warmup].add_argument("--jobs", type=_positive, default=1, help=jobs)
    given = vars(parser.parse_args(argv))
    del given["command"]
    given.pop("run")(**given)


def _add(subparsers: Any, command: Callable[..., None]) -> argparse.ArgumentParser:
    """The parser of a command's options, with its docstring for help."""
    summary = (command.__doc__ or "").strip()
    options: argparse.ArgumentParser = subparsers.add_parser(command.__name__, help=summary, description=summary)
    options.set_defaults(run=command)
    return options


def _positive(text: str) -> int:
    """A number of processes."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


if __name__ == "__main__":
    main()
